use super::rig::{GRAIN, Rig, WRITE};
use crate::core::bits::Bits;
use crate::core::config::Comes;
use crate::core::effect::{Action, Evidence};
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::record::Protocol;
use crate::core::signature::Source;

/// Grains of an extent.
const EXTENT: u64 = 4;

/// A disk of which nothing is known is to be made equal; the primary's table knows all four extents.
fn seeded() -> Rig {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.detach(rig.now, LegId::B).expect("it is the secondary");
    rig.settle();
    rig.matches_hang = true;
    rig.consults_hang = true;
    rig.attach(LegId::B, Comes::Another);
    while rig.record.is_some() {
        rig.end_record(Ok(()));
    }
    assert!(rig.mirror.is_matching() && rig.ops.is_empty());
    rig.mirror.handle_matched(rig.now, &Bits::none(4), &Bits::all(4));
    rig.take_effects();
    rig
}

/// What the tables say: the primary's entry is what was read of the secondary, or is not.
fn of_primary(same: bool) -> [Option<Evidence>; 2] {
    let source = Source::Payload;
    [
        Some(Evidence {
            source,
            equals: [false, same],
        }),
        None,
    ]
}

fn reads(rig: &Rig, leg: LegId) -> Vec<Range> {
    let reads = rig.ops.iter().filter(|op| op.leg == leg && op.action == Action::Read);
    reads.map(|op| op.range).collect()
}

fn dirty_extents(rig: &Rig) -> u64 {
    rig.mirror.status().dirty_bytes / (EXTENT * GRAIN)
}

#[test]
fn where_the_primarys_table_alone_knows_something_the_secondary_alone_is_read() {
    let mut rig = seeded();
    rig.end_all(LegId::B);
    for extent in 0..4 {
        assert_eq!(reads(&rig, LegId::A), []);
        assert_eq!(rig.consults[0].read.map(|read| read.is_some()), [false, true]);
        rig.consulted(of_primary(extent != 2));
    }
    assert_eq!(dirty_extents(&rig), 0, "the last is being compared");
    // What differs is compared, on both.
    let extent = Range::new(2 * EXTENT * GRAIN, EXTENT * GRAIN);
    assert_eq!([reads(&rig, LegId::A), reads(&rig, LegId::B)], [[extent], [extent]]);
    rig.settle();
    assert!(rig.mirror.status().counting && rig.mirror.status().dirty_bytes == 0);
}

/// The answer is about what the secondary held when it was read, and the primary when its entry was noted.
#[test]
fn what_is_written_since_it_was_read_is_not_recognised() {
    let mut rig = seeded();
    assert_eq!(reads(&rig, LegId::B).len(), 4, "all are looked at at once");
    // Behind one that is being read, and one of which the table is being asked.
    rig.write(1, 0);
    rig.end_all(LegId::B);
    rig.write(2, EXTENT);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(
        rig.consults.iter().map(|consult| consult.extent).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    for _ in 0..3 {
        rig.consulted(of_primary(true));
    }
    let compared = [0, EXTENT].map(|grain| Range::new(grain * GRAIN, EXTENT * GRAIN));
    assert_eq!(reads(&rig, LegId::A), compared);
    rig.settle();
    assert!(rig.mirror.status().counting);
}

/// A leg that is let go meanwhile is not taken for equal by an answer that comes too late.
#[test]
fn what_was_asked_of_a_leg_that_was_let_go_says_nothing() {
    let mut rig = seeded();
    rig.end_all(LegId::B);
    assert_eq!(rig.consults.len(), 4);
    rig.mirror.detach(rig.now, LegId::B).expect("it is the secondary");
    for _ in 0..4 {
        rig.consulted(of_primary(true));
    }
    assert_eq!(dirty_extents(&rig), 4);
    rig.consults_hang = false;
    rig.matches_hang = false;
    rig.settle();
    assert_eq!(dirty_extents(&rig), 4);
}
