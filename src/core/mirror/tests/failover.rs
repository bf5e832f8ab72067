use super::rig::{GRAIN, NO_SPACE, Rig, WRITE};
use crate::core::config::{Comes, CopyMode, LegTraits, RECORD_BUDGET};
use crate::core::effect::{Action, Event, LegOp};
use crate::core::geometry::Range;
use crate::core::leg::{Health, LegId};
use crate::core::record::{Protocol, Record};
use crate::core::request::{Errno, Operation};
use crate::core::time::Span;

const FUA: Action = Action::Write { fua: true };

fn write_fua(rig: &mut Rig, tag: u16, grain: u64) {
    rig.ask(tag, Operation::Write { fua: true }, Range::new(grain * GRAIN, GRAIN));
}

fn read(rig: &mut Rig, tag: u16, grain: u64) {
    rig.ask(tag, Operation::Read, Range::new(grain * GRAIN, GRAIN));
}

/// The record of a failover from `a` to `b`.
fn is_failover(record: &Record) -> bool {
    record.primary == LegId::B && record.legs[0].map(|leg| leg.health) == Some(Health::Failed)
}

fn has_failed_over(rig: &Rig) -> bool {
    rig.events.iter().any(|event| matches!(event, Event::FailedOver { .. }))
}

#[test]
fn a_write_that_the_primary_fails_is_answered_by_the_secondary_once_the_demotion_is_durable() {
    for protocol in [Protocol::Sync, Protocol::Flush, Protocol::Async] {
        let mut rig = Rig::in_sync(protocol);
        rig.write(0, 1);
        rig.write(1, 2);
        rig.end(LegId::A, WRITE, Err(Errno::IO));
        rig.end(LegId::A, WRITE, Ok(()));
        rig.write(2, 3);
        assert!(!rig.ops.iter().any(|op| op.leg == LegId::A), "new mutations are held");
        rig.end(LegId::B, WRITE, Ok(()));
        assert!(rig.record.is_none(), "a payload is pending");
        rig.end(LegId::B, WRITE, Ok(()));
        assert!(rig.record.is_none(), "the secondary is not flushed");
        rig.end(LegId::B, Action::Flush, Ok(()));
        assert_eq!((rig.answer(0), rig.answer(1)), (None, Some(Ok(()))));
        assert!(is_failover(&rig.end_record(Ok(()))));
        assert_eq!(rig.answer(0), Some(Ok(())));
        assert!(has_failed_over(&rig));
        rig.end(LegId::B, WRITE, Ok(()));
        assert_eq!(rig.answer(2), Some(Ok(())), "what was held goes on");
        let status = rig.mirror.status();
        assert_eq!(status.primary, LegId::B);
        assert_eq!(status.source_generation, 3);
        assert!(
            status.dirty_bytes >= 2 * GRAIN,
            "the old primary lacks what it failed and what came since"
        );
    }
}

#[test]
fn the_error_is_the_guests_if_the_secondary_has_not_got_everything() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.end(LegId::B, WRITE, Err(Errno::IO));
    rig.end_record(Ok(()));
    rig.write(0, 1);
    let _ = rig.answer(0);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)));

    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.mirror.detach(rig.now, LegId::B).expect("in sync");
    rig.take_effects();
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)), "it is being detached");
}

#[test]
fn a_secondary_that_fails_on_the_way_leaves_the_guest_where_it_was() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    assert_eq!(rig.answer(0), None);
    rig.end(LegId::B, WRITE, Err(Errno::IO));
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)));
    let record = rig.end_record(Ok(()));
    assert_eq!(record.primary, LegId::A);
    assert_eq!(
        record.legs.map(|leg| leg.map(|leg| leg.health)),
        [Some(Health::InSync), Some(Health::Failed)]
    );
    rig.write(1, 3);
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(1), Some(Ok(())));
}

#[test]
fn a_record_that_cannot_be_written_fails_the_request_within_its_budget_and_binds_both_legs() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.end(LegId::B, WRITE, Ok(()));
    rig.end(LegId::B, Action::Flush, Ok(()));
    assert!(is_failover(rig.record.as_ref().expect("it is begun")));
    rig.pass_failing_records(Span(RECORD_BUDGET.0 - 1_000_000));
    assert_eq!(rig.answer(0), None);
    rig.pass_failing_records(Span::from_millis(1));
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)));
    assert_eq!(rig.mirror.status().primary, LegId::A);
    rig.write(1, 9);
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(1), None, "the record may have made the other leg primary");
    rig.end(LegId::B, WRITE, Ok(()));
    assert_eq!(rig.answer(1), Some(Ok(())));
}

#[test]
fn a_record_that_fails_at_first_is_written_again() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.end(LegId::B, WRITE, Ok(()));
    rig.end(LegId::B, Action::Flush, Ok(()));
    rig.end_record(Err(NO_SPACE));
    rig.pass_time(Span::from_secs(1));
    assert_eq!(rig.answer(0), None);
    assert!(is_failover(&rig.end_record(Ok(()))));
    assert_eq!(rig.answer(0), Some(Ok(())));
}

#[test]
fn a_barrier_that_the_primary_cannot_keep_is_the_secondarys() {
    for protocol in [Protocol::Sync, Protocol::Flush, Protocol::Async] {
        let mut rig = Rig::in_sync(protocol);
        rig.write(0, 1);
        rig.end(LegId::A, WRITE, Ok(()));
        rig.end(LegId::B, WRITE, Ok(()));
        let _ = rig.answer(0);
        rig.flush(1);
        rig.end(LegId::A, Action::Flush, Err(Errno::IO));
        rig.end_all(LegId::B);
        assert_eq!(rig.answer(1), None);
        assert!(is_failover(&rig.end_record(Ok(()))));
        assert_eq!(rig.answer(1), Some(Ok(())));
        assert!(
            rig.mirror.status().dirty_bytes >= GRAIN,
            "what the old primary may have lost"
        );
    }
}

#[test]
fn a_zeroing_with_fua_that_the_primary_fails_is_the_secondarys() {
    let before = Rig::in_sync(Protocol::Flush).mirror.status().source_generation;
    let zero = Operation::WriteZeroes {
        unmap: false,
        fua: true,
    };
    for flush_fails in [false, true] {
        let mut rig = Rig::in_sync(Protocol::Flush);
        rig.ask(0, zero, Range::new(0, GRAIN));
        if flush_fails {
            rig.end(LegId::A, Action::Zero { unmap: false }, Ok(()));
            rig.end(LegId::A, Action::Flush, Err(Errno::IO));
        } else {
            rig.end(LegId::A, Action::Zero { unmap: false }, Err(Errno::IO));
        }
        rig.end_all(LegId::B);
        assert_eq!(rig.answer(0), None);
        rig.end_record(Ok(()));
        assert_eq!(rig.answer(0), Some(Ok(())));
        assert_eq!(rig.mirror.status().source_generation, before + 1, "it is one write");
    }
}

#[test]
fn a_switch_in_progress_is_given_up_for_it() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    write_fua(&mut rig, 0, 1);
    rig.mirror.switch(rig.now, None, false).expect("in sync");
    rig.take_effects();
    rig.end(LegId::A, FUA, Err(Errno::IO));
    assert!(matches!(
        rig.events[..],
        [Event::LegError { .. }, Event::SwitchGivenUp { .. }] | [Event::SwitchGivenUp { .. }, ..]
    ));
    rig.end_all(LegId::B);
    assert!(is_failover(&rig.end_record(Ok(()))));
    assert_eq!(rig.answer(0), Some(Ok(())));
}

/// Seed 103099 of the simulation: a zeroing that is older than the attach is on the secondary by a copy, and not by an operation
/// of its own.
#[test]
fn what_the_secondary_has_by_a_copy_alone_is_answered_by_it() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.detach(rig.now, LegId::B).expect("it is the secondary");
    rig.take_effects();
    rig.end_all(LegId::B);
    rig.end_record(Ok(()));
    let zeroes = Operation::WriteZeroes {
        unmap: false,
        fua: true,
    };
    rig.ask(0, zeroes, Range::new(GRAIN, GRAIN));
    rig.end(LegId::A, Action::Zero { unmap: false }, Ok(()));
    let traits = LegTraits { punches: true };
    rig.mirror
        .attach(rig.now, LegId::B, traits, CopyMode::Blind, Comes::Known)
        .expect("it is free");
    rig.take_effects();
    rig.end_record(Ok(()));
    // The flush that makes the zeroing durable takes longer than the whole copy.
    while rig.record.is_none() {
        while rig.ops.iter().any(|op| op.leg == LegId::A && op.action == Action::Read) {
            rig.end(LegId::A, Action::Read, Ok(()));
        }
        rig.end_all(LegId::B);
    }
    rig.end_record(Ok(()));
    assert!(rig.mirror.status().counting);
    // That flush, and the one that the end of the copy has begun.
    while rig
        .ops
        .iter()
        .any(|op| op.leg == LegId::A && op.action == Action::Flush)
    {
        rig.end(LegId::A, Action::Flush, Err(Errno::IO));
    }
    rig.end_all(LegId::B);
    assert_eq!(rig.answer(0), None);
    assert!(is_failover(&rig.end_record(Ok(()))));
    assert_eq!(rig.answer(0), Some(Ok(())));
}

#[test]
fn a_stop_goes_on_behind_it_and_is_clean() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.stop(rig.now).expect("nothing else is under way");
    rig.take_effects();
    rig.end(LegId::A, Action::Flush, Err(Errno::IO));
    rig.end_all(LegId::B);
    assert!(is_failover(&rig.end_record(Ok(()))));
    rig.end_all(LegId::B);
    let record = rig.end_record(Ok(()));
    assert!(record.clean && record.primary == LegId::B);
    assert_eq!(rig.events.last(), Some(&Event::Stopped { clean: true }));
}

#[test]
fn a_leg_that_failed_as_primary_can_be_taken_back() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.end_all(LegId::B);
    rig.end_record(Ok(()));
    let traits = LegTraits { punches: true };
    rig.mirror
        .attach(rig.now, LegId::A, traits, CopyMode::Dirty, Comes::Known)
        .expect("it is a leg that failed");
    rig.take_effects();
    while rig.record.is_some() || !rig.ops.is_empty() || !rig.compares.is_empty() {
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        (0..rig.compares.len()).for_each(|_| rig.compared(&[0]));
        if rig.record.is_some() {
            rig.end_record(Ok(()));
        }
    }
    let status = rig.mirror.status();
    assert!(status.counting && status.dirty_bytes == 0);
}

#[test]
fn a_read_that_the_primary_fails_is_served_by_the_secondary_and_rewritten() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    // Its region is active.
    rig.write(1, 1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    read(&mut rig, 0, 1);
    rig.end(LegId::A, Action::Read, Err(Errno::IO));
    rig.end(LegId::B, Action::Read, Ok(()));
    assert_eq!(rig.answer(0), None, "the next read must show the same");
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(0), Some(Ok(())));
    assert!(rig.events.contains(&Event::Rewritten(Range::new(GRAIN, GRAIN))));
}

#[test]
fn a_newer_write_is_not_replaced_by_a_rewrite_and_an_older_one_is_in_it() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(1, 1);
    read(&mut rig, 0, 1);
    rig.end(LegId::A, Action::Read, Err(Errno::IO));
    assert!(
        !rig.ops.iter().any(|op| op.action == Action::Read),
        "the older write has not landed"
    );
    rig.write(2, 1);
    rig.end(LegId::B, WRITE, Ok(()));
    rig.end(LegId::B, Action::Read, Ok(()));
    let on_primary = |rig: &Rig| rig.ops.iter().filter(|op| op.leg == LegId::A).count();
    assert_eq!(on_primary(&rig), 1, "the older write is not there yet");
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(on_primary(&rig), 1, "the rewrite, and the newer write behind it");
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!((rig.answer(0), rig.answer(2)), (Some(Ok(())), None));
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(2), Some(Ok(())));
}

#[test]
fn a_rewrite_that_fails_moves_the_guest_and_the_read_is_asked_again() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(1, 1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    read(&mut rig, 0, 1);
    rig.end(LegId::A, Action::Read, Err(Errno::IO));
    rig.end(LegId::B, Action::Read, Ok(()));
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.end_all(LegId::B);
    assert!(is_failover(&rig.end_record(Ok(()))));
    assert_eq!(rig.answer(0), None);
    rig.end(LegId::B, Action::Read, Ok(()));
    assert_eq!(rig.answer(0), Some(Ok(())));
}

#[test]
fn a_read_that_neither_leg_can_serve_fails_and_one_that_hangs_keeps_its_buffer() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(1, 1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    read(&mut rig, 0, 1);
    rig.end(LegId::A, Action::Read, Err(Errno::IO));
    rig.end(LegId::B, Action::Read, Err(Errno::IO));
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)));

    read(&mut rig, 0, 1);
    rig.end(LegId::A, Action::Read, Err(Errno::IO));
    let hangs = rig.ops[0];
    assert_eq!((hangs.leg, hangs.action), (LegId::B, Action::Read));
    rig.pass_time(Span::from_secs(21));
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)));
    read(&mut rig, 0, 1);
    let again = rig
        .ops
        .iter()
        .find(|op| op.leg == LegId::A && op.action == Action::Read);
    assert_ne!(
        again.expect("it is asked").buf,
        hangs.buf,
        "the secondary may still write there"
    );
}

/// The guest is told nothing of that flush: what the disk goes back to must not show.
#[test]
fn after_a_failed_flush_no_read_of_the_old_primary_is_answered() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    assert_eq!(rig.answer(0), Some(Ok(())));
    read(&mut rig, 2, 1);
    rig.flush(1);
    rig.end(LegId::A, Action::Flush, Err(Errno::IO));
    read(&mut rig, 3, 1);
    rig.end(LegId::A, Action::Read, Ok(()));
    assert!(!rig.ops.iter().any(|op| op.action == Action::Read), "{:?}", rig.ops);
    rig.end_all(LegId::B);
    assert_eq!(rig.answers, []);
    rig.end_record(Ok(()));
    assert_eq!(rig.answer(1), Some(Ok(())));
    for _ in 0..2 {
        rig.end(LegId::B, Action::Read, Ok(()));
    }
    assert_eq!((rig.answer(2), rig.answer(3)), (Some(Ok(())), Some(Ok(()))));
}

#[test]
fn reads_that_were_held_go_on_at_the_old_primary_if_the_guest_stays() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end_all(LegId::A);
    rig.flush(1);
    rig.end(LegId::A, Action::Flush, Err(Errno::IO));
    read(&mut rig, 3, 1);
    rig.end(LegId::B, WRITE, Err(Errno::IO));
    assert_eq!(rig.answer(1), Some(Err(Errno::IO)));
    rig.end(LegId::A, Action::Read, Ok(()));
    assert_eq!(rig.answer(3), Some(Ok(())));
}

/// It may show what it never made durable, and its flushes succeed again.
#[test]
fn a_switch_after_a_failed_flush_has_what_was_lost_written_again() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    // The flush that fails is not the first: only this grain is in doubt.
    rig.flush(2);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    rig.be_syncing();
    rig.write(0, 1);
    rig.end_all(LegId::A);
    rig.flush(1);
    rig.end(LegId::A, Action::Flush, Err(Errno::IO));
    assert_eq!(
        rig.answer(1),
        Some(Err(Errno::IO)),
        "the secondary has not got everything"
    );
    rig.become_in_sync();
    assert!(!has_failed_over(&rig));

    rig.mirror.switch(rig.now, None, false).expect("in sync");
    rig.take_effects();
    while !rig.ops.is_empty() {
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
    }
    let record = rig.end_record(Ok(()));
    assert_eq!(record.primary, LegId::B);
    assert_eq!(record.legs[0].map(|leg| leg.health), Some(Health::Syncing));
    assert!(rig.events.iter().any(|event| matches!(event, Event::Switched { .. })));
    assert!(record.legs[0].is_some_and(|leg| leg.doubted));
    assert_eq!(rig.mirror.status().dirty_bytes, GRAIN);
    rig.pass_time(Span::from_millis(1));
    rig.end(LegId::B, Action::Read, Ok(()));
    assert!(rig.compares.is_empty(), "what it shows proves nothing");
    rig.end(LegId::A, WRITE, Ok(()));
    rig.end(LegId::A, Action::Flush, Ok(()));
    let record = rig.end_record(Ok(()));
    assert_eq!(
        record.legs[0].map(|leg| (leg.health, leg.doubted)),
        Some((Health::InSync, false))
    );
    rig.flush(1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);

    // Once: from here on it is as good as it was.
    rig.settle();
    for to in LegId::ALL {
        rig.mirror.switch(rig.now, None, false).expect("in sync");
        rig.settle();
        let status = rig.mirror.status();
        assert!(status.primary == to && status.counting && status.dirty_bytes == 0);
    }
}

/// Each error would hold the guest for the record's budget.
#[test]
fn while_no_record_can_be_written_the_guest_is_told_at_once() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.end(LegId::B, WRITE, Ok(()));
    rig.end(LegId::B, Action::Flush, Ok(()));
    rig.pass_failing_records(RECORD_BUDGET);
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)));
    rig.write(0, 2);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)));
    rig.end(LegId::B, WRITE, Ok(()));

    // Where the primary lacks something it may show something older next time; elsewhere what was read is right.
    for (grain, expected) in [(2, Err(Errno::IO)), (3, Ok(()))] {
        read(&mut rig, 1, grain);
        rig.end(LegId::A, Action::Read, Err(Errno::IO));
        rig.end_read(LegId::B, grain);
        rig.end(LegId::A, WRITE, Err(Errno::IO));
        assert_eq!(rig.answer(1), Some(expected), "grain {grain}");
    }
    assert!(!rig.mirror.is_failing_over());
}

/// What the primary failed, write or flush, the secondary has: it is not given what the primary shows.
#[test]
fn a_failover_that_could_not_be_recorded_is_tried_again_at_the_next_record_and_nothing_is_copied_before() {
    for action in [WRITE, Action::Flush] {
        let mut rig = Rig::in_sync(Protocol::Flush);
        rig.write(0, 1);
        if action == Action::Flush {
            rig.end_all(LegId::A);
            rig.end_all(LegId::B);
            rig.flush(1);
        }
        rig.end(LegId::A, action, Err(Errno::IO));
        rig.end_all(LegId::B);
        rig.pass_failing_records(Span(RECORD_BUDGET.0 + 1_000_000));
        assert!(!rig.mirror.is_failing_over());
        assert!(rig.mirror.status().dirty_bytes >= GRAIN, "the legs differ");
        assert!(rig.ops.iter().all(|op| op.action == Action::Flush), "nothing is copied");
        // What comes later goes to both.
        rig.write(2, 5);
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        assert_eq!(rig.answer(2), Some(Ok(())));
        rig.pass_time(Span::from_secs(1));
        assert_eq!(rig.end_record(Ok(())).primary, LegId::A);
        assert!(rig.mirror.is_failing_over(), "records can be written again");
        assert_eq!(
            rig.ops.iter().map(|op| (op.leg, op.action)).collect::<Vec<_>>(),
            [(LegId::B, Action::Flush)]
        );
        rig.end_all(LegId::B);
        assert!(is_failover(&rig.end_record(Ok(()))));
        assert_eq!(rig.mirror.status().primary, LegId::B);
        assert!(
            rig.mirror.status().dirty_bytes >= 2 * GRAIN,
            "what it failed, and what it did not flush"
        );
    }
}

/// A record that was begun under the old roles is durable last.
#[test]
fn roles_are_not_exchanged_while_a_record_of_the_old_ones_is_being_written() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.fail_to_fail_over();
    assert!(is_failover(&rig.end_record(Ok(()))), "late, but durable");
    assert_eq!(rig.record.expect("roles are as they were").primary, LegId::A);
    rig.end_all(LegId::B);
    assert_eq!(rig.mirror.status().primary, LegId::A);
    rig.write(1, 2);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    assert_eq!(rig.answer(1), None, "it is held");
    rig.end_record(Ok(()));
    assert!(is_failover(&rig.end_record(Ok(()))));
    assert_eq!(rig.mirror.status().primary, LegId::B);
}

#[test]
fn what_the_primary_lacks_is_dirty_when_the_secondary_is_given_up() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.flush(1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.fail_to_fail_over();
    rig.write(1, 2);
    rig.end(LegId::B, WRITE, Err(Errno::IO));
    rig.end_all(LegId::A);
    rig.settle();
    let status = rig.mirror.status();
    assert_eq!(
        (status.primary, status.counting, status.dirty_bytes),
        (LegId::A, false, 2 * GRAIN)
    );
    rig.write(2, 3);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    assert_eq!(rig.answer(2), Some(Err(Errno::IO)), "there is nobody to move to");
}

#[test]
fn a_switch_goes_to_the_secondary_that_has_what_the_primary_failed() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.flush(1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    rig.write(0, 1);
    rig.write(1, 2);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.end_all(LegId::B);
    // The other write is not answered.
    rig.pass_time(Span::from_secs(20));
    assert!(!rig.mirror.is_failing_over());
    rig.end_all(LegId::A);
    assert!(rig.record.is_none(), "roles are certain");
    rig.mirror.switch(rig.now, None, false).expect("in sync");
    rig.settle();
    let status = rig.mirror.status();
    assert_eq!(status.primary, LegId::B);
    assert!(!has_failed_over(&rig));
    assert!(
        status.dirty_bytes > 0 && !status.counting,
        "the old primary lacks what it failed"
    );
}

/// A primary that does not answer, a secondary that does not get on: each would hold the guest for as long as it likes.
#[test]
fn a_failover_holds_the_guest_for_the_leg_timeout_and_is_tried_again_after_as_long() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.write(1, 2);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.end_all(LegId::B);
    rig.write(2, 3);
    rig.pass_time(Span(Span::from_secs(20).0 - 1_000_000));
    assert_eq!((rig.answer(0), rig.ops.len()), (None, 1), "all is held");
    rig.pass_time(Span::from_millis(1));
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)));
    assert_eq!(rig.ops.len(), 3, "what was held goes on, on both legs");
    // Until it is tried again the guest is told at once.
    rig.write(0, 4);
    let newest = rig.ops.iter().rposition(|op| op.leg == LegId::A);
    rig.end_at(newest.expect("it is at it"), Err(Errno::IO));
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)));
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    rig.pass_time(Span::from_secs(20));
    assert_eq!(rig.end_record(Ok(())).primary, LegId::A);
    assert!(rig.mirror.is_failing_over());
    rig.settle();
    assert!(has_failed_over(&rig));
}

#[test]
fn a_stop_that_comes_during_a_failover_goes_on_behind_it_whether_it_can_be_recorded_or_not() {
    for recorded in [true, false] {
        let mut rig = Rig::in_sync(Protocol::Flush);
        rig.write(0, 1);
        rig.end(LegId::A, WRITE, Err(Errno::IO));
        rig.mirror.stop(rig.now).expect("a failover makes way for it");
        rig.take_effects();
        assert!(rig.mirror.stop(rig.now).is_err(), "it is stopping");
        rig.end_all(LegId::B);
        if recorded {
            rig.settle();
            assert_eq!(rig.answer(0), Some(Ok(())));
        } else {
            rig.pass_failing_records(RECORD_BUDGET);
            rig.end_all(LegId::A);
            rig.end_all(LegId::B);
            rig.pass_failing_records(RECORD_BUDGET);
            assert_eq!(rig.answer(0), Some(Err(Errno::IO)));
        }
        assert_eq!(rig.events.last(), Some(&Event::Stopped { clean: recorded }));
        assert_eq!(rig.mirror.status().record.clean, recorded);
    }
}

/// The record of a stop must not make the secondary a copy of what the primary shows.
#[test]
fn a_stop_moves_the_guest_first_if_that_is_due() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.fail_to_fail_over();
    rig.mirror.stop(rig.now).expect("nothing is under way");
    assert!(rig.mirror.is_failing_over());
    rig.settle();
    let record = rig.mirror.status().record;
    assert!(record.clean && is_failover(&record));
    assert_eq!(rig.events.last(), Some(&Event::Stopped { clean: true }));
}

/// Its cache may show what the medium does not hold, and a comparison would call that equal.
#[test]
fn what_a_leg_may_have_lost_in_a_flush_is_not_compared_when_it_is_attached_again() {
    for (failing, other) in [(LegId::A, LegId::B), (LegId::B, LegId::A)] {
        let mut rig = Rig::in_sync(Protocol::Flush);
        for grain in [5, 1] {
            rig.write(0, grain);
            rig.end_all(LegId::A);
            rig.end_all(LegId::B);
            rig.flush(1);
            if grain == 5 {
                rig.settle();
            }
        }
        rig.end(failing, Action::Flush, Err(Errno::IO));
        rig.settle();
        let record = rig.mirror.status().record;
        assert_eq!(record.primary, other);
        let is = |record: &Record| record.legs[failing.index()].map(|leg| (leg.health, leg.doubted));
        assert_eq!(is(&record), Some((Health::Failed, true)));
        rig.mirror.detach(rig.now, failing).expect("it follows no more");
        rig.settle();
        rig.attach_again(failing);
        assert_eq!(is(&rig.end_record(Ok(()))), Some((Health::Syncing, true)));
        let mut written = Vec::<LegOp>::new();
        while rig.record.is_none() {
            rig.end_all(other);
            written.extend(rig.ops.iter().filter(|op| op.leg == failing && op.action == WRITE));
            rig.end_all(failing);
            rig.compare_all_equal();
        }
        let covers = |range: Range| written.iter().any(|op| op.range.contains(range));
        assert!(covers(Range::new(GRAIN, GRAIN)), "{written:?}");
        assert!(
            !covers(Range::new(12 * GRAIN, GRAIN)),
            "elsewhere it is compared: {written:?}"
        );
        assert_eq!(is(&rig.end_record(Ok(()))), Some((Health::InSync, false)));
    }
}

#[test]
fn a_doubted_leg_is_written_blindly_after_a_restart_and_a_doubted_primary_is_not_tracked() {
    for doubted in LegId::ALL {
        let mut rig = Rig::restarted(doubted);
        assert!(!rig.mirror.status().tracked);
        let mut compared = false;
        while rig.record.is_some() || !rig.ops.is_empty() || !rig.compares.is_empty() {
            rig.end_all(LegId::A);
            rig.end_all(LegId::B);
            compared |= !rig.compares.is_empty();
            rig.compare_all_equal();
            if rig.record.is_some() {
                rig.end_record(Ok(()));
            }
        }
        assert_eq!(
            compared,
            doubted == LegId::A,
            "the secondary is made equal by what the primary shows"
        );
        rig.write(0, 1);
        rig.settle();
        rig.pass_time(Span::from_secs(101));
        rig.settle();
        assert_eq!(rig.mirror.status().tracked, doubted == LegId::B);
        if doubted == LegId::B {
            continue;
        }
        rig.mirror.switch(rig.now, None, false).expect("in sync");
        rig.take_effects();
        while rig.record.is_none() {
            rig.end_all(LegId::A);
            rig.end_all(LegId::B);
        }
        let record = rig.end_record(Ok(()));
        assert_eq!(record.legs[0].map(|leg| leg.health), Some(Health::Syncing));
        assert_eq!(rig.mirror.status().dirty_bytes, 16 * GRAIN);
    }
}

/// The host was short of memory: nobody's disk is worse for it.
#[test]
fn what_the_host_cannot_do_demotes_no_primary_and_fails_no_leg() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Err(Errno::NO_MEMORY));
    assert_eq!(rig.answer(0), Some(Err(Errno::NO_MEMORY)), "as such");
    let record = rig.end_record(Ok(()));
    assert_eq!(record.primary, LegId::A);
    assert_eq!(
        record.legs[1].map(|leg| leg.health),
        Some(Health::Behind),
        "it may have what the primary has not"
    );
    assert_eq!(rig.mirror.status().dirty_bytes, GRAIN);

    for leg in LegId::ALL {
        let mut rig = Rig::in_sync(Protocol::Flush);
        rig.write(0, 1);
        rig.flush(1);
        rig.end(LegId::A, WRITE, Ok(()));
        rig.end(LegId::B, WRITE, Ok(()));
        rig.end(leg, Action::Flush, Err(Errno::NO_MEMORY));
        let expected = if leg == LegId::A { Err(Errno::NO_MEMORY) } else { Ok(()) };
        rig.settle();
        assert_eq!(rig.answer(1), Some(expected));
        let record = rig.mirror.status().record;
        assert!(record.primary == LegId::A && record.legs.iter().flatten().all(|leg| !leg.doubted));
        assert_ne!(record.legs[1].map(|leg| leg.health), Some(Health::Failed));
    }

    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(1, 1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    read(&mut rig, 0, 1);
    rig.end(LegId::A, Action::Read, Err(Errno::NO_MEMORY));
    rig.end(LegId::B, Action::Read, Ok(()));
    rig.end(LegId::A, WRITE, Err(Errno::NO_MEMORY));
    assert_eq!(rig.answer(0), Some(Ok(())));
    assert!(!rig.mirror.is_failing_over());
}

/// Seed 16637 of the worlds of doubt: what was read from the secondary held a write that the primary was still to fail.
#[test]
fn a_read_that_shows_a_write_that_fails_behind_it_is_not_answered_if_it_cannot_be_rewritten() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(1, 1);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    rig.write(2, 1);
    read(&mut rig, 0, 1);
    rig.end(LegId::A, Action::Read, Err(Errno::IO));
    rig.end(LegId::B, WRITE, Ok(()));
    rig.end(LegId::B, Action::Read, Ok(()));
    rig.end(LegId::A, WRITE, Err(Errno::NO_MEMORY));
    assert_eq!(rig.answer(2), Some(Err(Errno::NO_MEMORY)));
    rig.end(LegId::A, WRITE, Err(Errno::NO_MEMORY));
    assert_eq!(
        rig.answer(0),
        Some(Err(Errno::NO_MEMORY)),
        "the next read would not show it"
    );
}

#[test]
fn a_request_whose_error_was_told_is_not_answered_again_when_the_next_failover_is_given_up() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.flush(1);
    rig.end(LegId::A, Action::Flush, Err(Errno::IO));
    rig.fail_to_fail_over();
    assert_eq!(rig.answer(1), Some(Err(Errno::IO)));
    let answered = rig.answers.len();
    rig.end_record(Ok(()));
    assert!(rig.mirror.is_failing_over(), "it is tried again at the next record");
    rig.end_record(Err(Errno::IO));
    rig.pass_time(RECORD_BUDGET);
    rig.pass_time(RECORD_BUDGET);
    assert!(!rig.mirror.is_failing_over());
    assert_eq!(rig.answers.len(), answered);
}
