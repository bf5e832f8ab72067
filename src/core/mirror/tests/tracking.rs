use super::rig::{GRAIN, NO_SPACE, Rig, WRITE};
use crate::core::config::{LINGER, RECORD_BUDGET};
use crate::core::effect::{Action, Event};
use crate::core::leg::{Health, LegId};
use crate::core::record::Protocol;
use crate::core::request::Errno;
use crate::core::time::Span;

/// As many regions as may be active at once, and a few more.
const REGIONS: u64 = 2048 + 8;

/// Write one block into each of so many regions; the primary is quick, the secondary answers nothing. Returns the first that is not
/// answered.
fn write_regions(rig: &mut Rig, regions: u64) -> Option<u64> {
    for region in 0..regions {
        rig.write(0, 4 * region);
        if !rig.ops.iter().any(|op| op.leg == LegId::A && op.action == WRITE) {
            return Some(region);
        }
        rig.end(LegId::A, WRITE, Ok(()));
        assert_eq!(rig.answer(0), Some(Ok(())));
    }
    None
}

/// A large device whose pool holds all that is pending.
fn large(protocol: Protocol) -> Rig {
    Rig::of_grains(4 * REGIONS, protocol)
}

#[test]
fn in_flush_a_write_waits_for_a_region_until_the_stall_budget_and_then_goes_on_alone() {
    let mut rig = large(Protocol::Flush);
    let full = write_regions(&mut rig, REGIONS).expect("pending payloads hold their regions");
    assert!(full >= 2048, "{full}");
    // The checkpoint that is to make room wants both legs.
    rig.end(LegId::A, Action::Flush, Ok(()));
    rig.pass_time(Span::from_millis(4_999));
    assert!(rig.record.is_none(), "the secondary has its budget");
    rig.pass_time(Span::from_millis(2));
    assert_eq!(given_up(&mut rig), Some(Health::Behind));
    assert_eq!(rig.answer(0), None);
    go_on_alone(&mut rig);
}

#[test]
fn in_async_a_write_never_waits_for_a_region_that_the_secondary_holds() {
    let mut rig = large(Protocol::Async);
    let full = write_regions(&mut rig, REGIONS).expect("pending payloads hold their regions");
    assert!(full >= 2048, "{full}");
    rig.end(LegId::A, Action::Flush, Ok(()));
    assert_eq!(given_up(&mut rig), Some(Health::Behind));
    go_on_alone(&mut rig);
}

/// What a record that is under way says of the secondary; it ends well.
fn given_up(rig: &mut Rig) -> Option<Health> {
    rig.end_record(Ok(())).legs[1].map(|leg| leg.health)
}

/// The write that waited for a region gets one, although whatever hangs on the secondary still does, and holds its own.
fn go_on_alone(rig: &mut Rig) {
    let hangs = |rig: &Rig| rig.ops.iter().filter(|op| op.leg == LegId::B).count();
    let before = hangs(rig);
    rig.end_all(LegId::A);
    assert_eq!(rig.answer(0), Some(Ok(())));
    assert!(hangs(rig) == before && before > 100, "{before}");
}

/// What a leg that was given up still works at may land at any time: its region stays marked, or its grain is dirty.
#[test]
fn a_hung_secondary_keeps_its_regions_marked_or_dirty() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.write(1, 9);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.end(LegId::B, WRITE, Ok(()));
    assert_eq!(rig.ops.len(), 1, "the first hangs: {:?}", rig.ops);
    rig.end_all(LegId::B);
    rig.write(0, 2);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.pass_time(Span::from_secs(21));
    rig.end_record(Ok(()));
    for _ in 0..8 {
        rig.end_all(LegId::A);
        rig.pass_time(Span::from_secs(101));
        if rig.record.is_some() {
            rig.end_record(Ok(()));
        }
    }
    assert!(rig.ops.iter().any(|op| op.leg == LegId::B), "it still hangs");
    assert!(rig.saved.contains(&2), "{:?}", rig.saved);
    assert!(rig.marks.contains(&0), "{:?}", rig.marks);
    assert!(!rig.marks.contains(&2), "nobody uses it: {:?}", rig.marks);
}

#[test]
fn a_state_directory_that_fails_is_said_not_to_track_before_the_write_goes_on_and_comes_back() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    assert_eq!(rig.answer(0), Some(Ok(())));
    rig.pass_time(Span::from_secs(10));
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    assert!(rig.end_record(Ok(())).tracked);
    rig.pass_time(Span::from_secs(60));

    rig.tables = Err(NO_SPACE);
    rig.write(0, 13);
    assert_eq!(rig.ops, [], "its mark is not durable");
    assert!(!rig.record.expect("it is said").tracked);
    rig.end_record(Ok(()));
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    assert_eq!(rig.answer(0), Some(Ok(())));
    rig.pass_time(Span::from_secs(60));
    assert!(
        rig.ops.is_empty() && rig.record.is_none(),
        "nothing to do but to try again"
    );

    rig.tables = Ok(());
    rig.write(0, 5);
    for _ in 0..8 {
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        rig.pass_time(Span::from_secs(6));
    }
    assert!(rig.end_record(Ok(())).tracked);
    let told = rig.events.iter().filter_map(|event| match event {
        Event::Tracked(tracked) => Some(*tracked),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn when_neither_mark_nor_record_can_be_written_the_write_goes_on() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    for _ in 0..2 {
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        rig.pass_time(Span::from_secs(10));
    }
    assert!(rig.end_record(Ok(())).tracked);
    rig.tables = Err(NO_SPACE);
    rig.write(1, 13);
    assert_eq!(rig.ops, []);
    rig.end_record(Err(NO_SPACE));
    rig.end_all(LegId::A);
    assert_eq!(rig.answer(1), Some(Ok(())));
}

/// Seeds 649 and 1132 of the simulation: the record still said that what is tracked is all.
#[test]
fn no_region_is_left_after_a_failed_flush_of_the_primary() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.detach(rig.now, LegId::B).expect("it follows");
    rig.take_effects();
    rig.end_all(LegId::B);
    rig.end_record(Ok(()));
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.flush(1);
    rig.end(LegId::A, Action::Flush, Err(Errno::IO));
    assert_eq!(rig.answer(1), Some(Err(Errno::IO)));
    rig.pass_time(Span::from_secs(60));
    rig.end_all(LegId::A);
    rig.pass_time(Span::from_secs(60));
    assert_eq!(rig.marks, [0]);
}

/// Seed 375 of the simulation: what was in the cache of a leg that was let go was saved nowhere.
#[test]
fn what_a_leg_may_lose_that_is_let_go_is_dirty() {
    let mut rig = Rig::in_sync(Protocol::Async);
    rig.mirror.set_leg_timeout(rig.now, Span::from_secs(5));
    rig.write(0, 1);
    rig.flush(1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    rig.write(0, 6);
    rig.end_all(LegId::A);
    rig.end(LegId::B, WRITE, Ok(()));
    rig.write(0, 2);
    rig.end_all(LegId::A);
    rig.pass_time(Span::from_secs(6));
    rig.end_record(Ok(()));
    rig.end_all(LegId::B);
    assert_eq!(rig.health_told(), [(LegId::B, Health::Behind)]);
    rig.mirror.detach(rig.now, LegId::B).expect("it is there");
    rig.take_effects();
    rig.end_record(Ok(()));
    assert_eq!(rig.events.last(), Some(&Event::Detached(LegId::B)));
    assert_eq!(rig.mirror.status().dirty_bytes, 2 * GRAIN, "grains 2 and 6");
}

/// The disk tells a failed flush once: if no guest asked for it, the next barrier of a guest's says so.
#[test]
fn a_failed_flush_that_no_guest_asked_for_fails_the_next_barrier_unless_the_guest_is_moved() {
    for moved in [false, true] {
        fails_the_next_barrier(moved);
    }
}

fn fails_the_next_barrier(moved: bool) {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    assert_eq!(rig.answer(0), Some(Ok(())));
    rig.pass_time(Span::from_secs(10));
    rig.end(LegId::A, Action::Flush, Err(Errno::IO));
    if moved {
        rig.settle();
        rig.flush(1);
        rig.settle();
        assert_eq!(rig.mirror.status().primary, LegId::B);
        assert_eq!(rig.answer(1), Some(Ok(())), "it is on the new primary");
        return;
    }
    rig.fail_to_fail_over();
    let flush = |rig: &mut Rig| {
        rig.flush(1);
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        rig.answer(1)
    };
    assert_eq!(
        flush(&mut rig),
        Some(Err(Errno::IO)),
        "what was acknowledged may be lost"
    );
    assert_eq!(flush(&mut rig), Some(Ok(())), "it is told once");
}

/// Seed 24595 of the simulation: each try that failed anew began the budget anew.
#[test]
fn marks_that_fail_again_and_again_hold_a_write_for_one_budget() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    for _ in 0..2 {
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        rig.pass_time(Span::from_secs(10));
    }
    assert!(rig.end_record(Ok(())).tracked);
    rig.marks_fail = true;
    rig.write(1, 13);
    assert!(rig.record.is_some(), "it does not end");
    rig.pass_time(Span(RECORD_BUDGET.0 - 1_000_000));
    assert_eq!(rig.ops, []);
    rig.pass_time(Span::from_millis(1));
    rig.end_all(LegId::A);
    assert_eq!(rig.answer(1), Some(Ok(())));
}

#[test]
fn marks_that_never_come_back_hold_a_write_no_longer_than_marks_that_fail() {
    for record_hangs in [false, true] {
        let mut rig = Rig::in_sync(Protocol::Flush);
        rig.write(0, 1);
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        assert_eq!(rig.answer(0), Some(Ok(())));
        rig.pass_time(Span::from_secs(10));
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        assert!(rig.end_record(Ok(())).tracked);

        rig.marks_hang = true;
        rig.write(0, 13);
        assert!(rig.ops.is_empty() && rig.record.is_none());
        rig.pass_time(Span::from_secs(10));
        assert!(!rig.record.expect("it is said").tracked);
        assert_eq!(rig.ops, [], "a record may be in force that says otherwise");
        if record_hangs {
            rig.pass_time(Span::from_secs(10));
        } else {
            rig.end_record(Ok(()));
        }
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        assert_eq!(rig.answer(0), Some(Ok(())), "{record_hangs}");
    }
}

/// What was copied and not flushed is on nobody's list any more when the leg is given up on the way: it is dirty then.
#[test]
fn what_the_host_could_not_flush_on_a_leg_being_copied_to_is_saved_as_dirty() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.flush(0);
    rig.end_all(LegId::A);
    rig.be_syncing();
    rig.mirror.pause_resync(rig.now, false);
    rig.take_effects();
    for leg in LegId::ALL {
        rig.end_read(leg, 0);
    }
    rig.compared(&[0]);
    rig.end(LegId::B, WRITE, Ok(()));
    rig.pass_time(Span::from_secs(10));
    rig.end(LegId::A, Action::Flush, Ok(()));
    rig.end(LegId::B, Action::Flush, Err(Errno::NO_MEMORY));
    assert!(rig.saved.contains(&0), "{:?}", rig.saved);
    assert!(!rig.mirror.status().counting);
}

/// A hot gibibyte, written at random for longer than a region stays marked: what is marked once is marked, and nothing else is written.
#[test]
fn a_million_writes_to_a_hot_set_want_no_write_of_metadata() {
    const WRITES: u64 = 1_000_000;
    let mut rig = Rig::as_served(16 << 30, Protocol::Flush);
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut write = |rig: &mut Rig, number: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        rig.write(0, state % ((1 << 30) / GRAIN));
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        assert_eq!(rig.answer(0), Some(Ok(())));
        if number.is_multiple_of(100) {
            rig.flush(1);
            rig.end_all(LegId::A);
            rig.end_all(LegId::B);
            assert_eq!(rig.answer(1), Some(Ok(())));
        }
        // Ten thousand a second.
        rig.pass_time(Span(100_000));
    };
    // Where the legs may differ is tracked from a second after the start on.
    (0..20_000).for_each(|number| write(&mut rig, number));
    let warm = rig.metadata_writes;
    assert!(warm > 0, "regions were marked");
    (0..WRITES).for_each(|number| write(&mut rig, number));
    assert_eq!(rig.metadata_writes, warm);
    assert!(
        Span(100_000 * WRITES) > Span(9 * LINGER.0),
        "they would have been left, had they not been hot"
    );
}
