use super::rig::{GRAIN, Rig, WRITE};
use crate::core::Repair;
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::record::Protocol;
use crate::core::request::Errno;

/// Seed 133150 of the simulation: what was dirty differed on a slow secondary; before the verify's piece had read both, a copy that
/// was to mend the range had taken its dirty bit.
#[test]
fn a_verify_says_nothing_of_what_a_copy_behind_it_is_to_mend() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.pause_resync(rig.now, true);
    // As if it had been found to differ.
    rig.mirror.dirty.mark(Range::new(GRAIN, GRAIN));
    rig.write(1, 2);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.mirror.verify(rig.now, Repair::No).expect("in sync");
    rig.take_effects();
    // The verify's first piece waits for a write on the secondary; the copy is admitted meanwhile.
    rig.mirror.pause_resync(rig.now, false);
    rig.take_effects();
    assert_eq!(rig.mirror.status().dirty_bytes, 0, "the copy has taken the bit");
    rig.end(LegId::B, WRITE, Ok(()));
    rig.end_read(LegId::A, 0);
    rig.end_read(LegId::B, 0);
    rig.compared(&[1]);
    assert_eq!(rig.differences(), []);
}

/// What is known of one block excuses no other.
#[test]
fn a_verify_reports_a_block_beside_one_that_is_being_mended() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.pause_resync(rig.now, true);
    rig.mirror.dirty.mark(Range::new(GRAIN, GRAIN));
    rig.mirror.verify(rig.now, Repair::No).expect("in sync");
    rig.take_effects();
    rig.end_read(LegId::A, 0);
    rig.end_read(LegId::B, 0);
    rig.compared(&[0, 1, 2]);
    assert_eq!(
        rig.differences(),
        [Range::new(0, GRAIN), Range::new(2 * GRAIN, GRAIN)],
        "block 1 is dirty"
    );
}

/// The secondary has what the primary failed.
#[test]
fn a_verify_says_nothing_of_what_the_primary_lacks() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.fail_to_fail_over();
    rig.mirror.verify(rig.now, Repair::No).expect("in sync");
    rig.take_effects();
    rig.end_read(LegId::A, 0);
    rig.end_read(LegId::B, 0);
    rig.compared(&[1, 2]);
    assert_eq!(rig.differences(), [Range::new(2 * GRAIN, GRAIN)]);
}
