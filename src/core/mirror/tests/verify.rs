use super::rig::{GRAIN, Rig, WRITE};
use crate::core::Repair;
use crate::core::effect::{Action, BlockMask, Event};
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::record::Protocol;
use crate::core::request::Errno;
use crate::core::suspects::{Suspect, Suspects};

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

/// Both legs in sync, but where the second extent was found to differ, in its second grain.
fn with_a_suspect() -> Rig {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.verify(rig.now, Repair::No).expect("in sync");
    rig.take_effects();
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    second_extent_differs(&mut rig);
    rig.settle();
    assert_eq!(rig.mirror.suspects().bytes(), GRAIN);
    rig.events.clear();
    rig
}

/// All that is being compared is equal, but for the second grain of the second extent.
fn second_extent_differs(rig: &mut Rig) {
    let walk = rig.compares.remove(1);
    rig.compare_all_equal();
    rig.compares.push(walk);
    rig.compared(&[1]);
}

/// The same, and it is being looked at again.
fn rechecking() -> Rig {
    let mut rig = with_a_suspect();
    rig.mirror.recheck(rig.now);
    rig.take_effects();
    rig
}

fn rechecked(rig: &Rig) -> Option<u64> {
    rig.events.iter().find_map(|event| match event {
        Event::Rechecked { suspect } => Some(*suspect),
        _ => None,
    })
}

fn verified(rig: &Rig) -> Option<bool> {
    rig.events.iter().find_map(|event| match event {
        Event::Verified { complete, .. } => Some(*complete),
        _ => None,
    })
}

fn reads(rig: &Rig) -> Vec<(LegId, Range)> {
    let reads = rig.ops.iter().filter(|op| op.action == Action::Read);
    reads.map(|op| (op.leg, op.range)).collect()
}

#[test]
fn a_recheck_reads_what_is_suspect_alone_and_clears_what_is_equal_when_it_is_flushed() {
    let mut rig = rechecking();
    let extent = Range::new(4 * GRAIN, 4 * GRAIN);
    assert_eq!(reads(&rig), LegId::ALL.map(|leg| (leg, extent)));
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    rig.compared(&[]);
    assert!(rig.mirror.suspects().touch(extent), "it is not flushed");
    rig.settle();
    assert!(rig.mirror.suspects().is_empty());
    assert_eq!((rechecked(&rig), verified(&rig)), (Some(0), None));
}

#[test]
fn a_recheck_rests_while_background_work_is_paused() {
    let mut rig = with_a_suspect();
    rig.mirror.pause_resync(rig.now, true);
    rig.mirror.recheck(rig.now);
    rig.take_effects();
    assert!(rig.ops.is_empty() && rig.mirror.status().rechecking);
    // Nor does it stand in the way of anything meanwhile.
    rig.mirror.verify(rig.now, Repair::No).expect("a recheck gives way");
    rig.settle();
    assert_eq!(verified(&rig), Some(true));
    rig.mirror.pause_resync(rig.now, false);
    rig.settle();
    assert!(rig.mirror.suspects().is_empty() && !rig.mirror.status().rechecking);
}

#[test]
fn what_differs_still_is_told_by_the_end_of_a_recheck_alone() {
    let mut rig = rechecking();
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    rig.compared(&[1]);
    rig.settle();
    assert_eq!((rechecked(&rig), rig.events.len()), (Some(GRAIN), 1));
}

/// Nobody has asked for it, so nobody is refused anything because of it.
#[test]
fn a_recheck_gives_way_and_begins_again() {
    let mut rig = rechecking();
    rig.mirror.verify(rig.now, Repair::No).expect("a recheck gives way");
    assert!(rig.mirror.verify(rig.now, Repair::No).is_err(), "a verify does not");
    rig.take_effects();
    assert_eq!(reads(&rig).len(), 2, "what is under way comes first");
    for _ in 0..2 {
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
    }
    assert_eq!(rig.compares.len(), 4, "all of it");
    second_extent_differs(&mut rig);
    assert_eq!(verified(&rig), Some(true));
    // It looks again behind the verify.
    assert_eq!(rechecked(&rig), None);
    rig.settle();
    assert_eq!(rechecked(&rig), Some(0));
}

/// Somebody who waits for a verify hears of it, whatever becomes of the device.
#[test]
fn a_verify_that_waits_for_a_recheck_is_told_when_it_cannot_begin() {
    let mut rig = rechecking();
    rig.mirror.verify(rig.now, Repair::No).expect("a recheck gives way");
    rig.mirror.stop(rig.now).expect("it may");
    rig.take_effects();
    assert_eq!(verified(&rig), Some(false));
    rig.settle();
    assert!(rig.mirror.is_stopped());
}

#[test]
fn a_recheck_stands_in_the_way_of_no_switch_that_is_forced_and_goes_on_behind_it() {
    let mut rig = rechecking();
    rig.mirror.switch(rig.now, None, true).expect("it is forced");
    rig.settle();
    let at_switch = |event: &Event| matches!(event, Event::Switched { .. });
    assert!(rig.events.iter().any(at_switch));
    assert!(rig.mirror.suspects().is_empty(), "it was found equal");
}

/// All is suspect, and most of it equal: what is equal is not written anew because somebody has decided which leg is right.
#[test]
fn what_is_found_equal_is_not_mended() {
    let mut rig = with_a_suspect();
    rig.mirror.suspects = Suspects::of([Range::new(0, 16 * GRAIN)]);
    rig.mirror.verify(rig.now, Repair::From(LegId::A)).expect("in sync");
    rig.take_effects();
    let mut written = Vec::new();
    while verified(&rig).is_none() {
        while let Some(op) = rig.ops.first() {
            if op.action == WRITE {
                written.push((op.leg, op.range));
            }
            rig.end_at(0, Ok(()));
        }
        for walk in std::mem::take(&mut rig.compares) {
            let mut mask = BlockMask::default();
            if rig.mirror.slots[usize::from(walk.0)].range.start == 4 * GRAIN {
                mask.insert(1);
            }
            rig.mirror.handle_compared(rig.now, walk, mask);
            rig.take_effects();
        }
        if rig.record.is_some() {
            rig.end_record(Ok(()));
        }
    }
    assert_eq!(written, [(LegId::B, Range::new(5 * GRAIN, GRAIN))]);
    assert!(rig.mirror.suspects().is_empty());
    let mended = rig.events.iter().filter(|event| matches!(event, Event::Mended { .. }));
    assert_eq!(mended.count(), 1);
}

/// What was equal when it was read first, and differs when it is read again, is not cleared by the first reading.
#[test]
fn what_differs_at_last_is_not_cleared_by_an_earlier_look() {
    let mut rig = with_a_suspect();
    rig.mirror.check.equal.push(Range::new(5 * GRAIN, GRAIN));
    let told = Suspect {
        range: Range::new(5 * GRAIN, GRAIN),
        wrong: None,
    };
    rig.mirror.suspect(told);
    assert_eq!(rig.mirror.check.equal, []);
}
