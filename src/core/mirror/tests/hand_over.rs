use super::rig::{GRAIN, NO_SPACE, Rig, WRITE};
use crate::core::Repair;
use crate::core::bits::Bits;
use crate::core::config::{Comes, CopyMode, LegTraits, RECORD_BUDGET, Refusal};
use crate::core::effect::{Action, Event};
use crate::core::geometry::Range;
use crate::core::leg::{Health, LegId};
use crate::core::record::{Protocol, Record};
use crate::core::request::{Errno, Operation, Tag};
use crate::core::time::Span;

const PAUSE: Span = Span::from_secs(5);

/// A device that is about to be handed over: records can be written, and requests are held. It has been written to.
fn holding() -> Rig {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.end(LegId::B, WRITE, Ok(()));
    assert_eq!(rig.answer(0), Some(Ok(())));
    rig.mirror.hand_over(rig.now, PAUSE).expect("nothing stands against it");
    rig.take_effects();
    // The epoch of the write.
    rig.end(LegId::B, Action::Flush, Ok(()));
    rig.end_record(Ok(()));
    rig
}

/// Both legs are flushed, and the record that says clean is begun.
fn recording() -> Rig {
    let mut rig = holding();
    rig.end(LegId::A, Action::Flush, Ok(()));
    rig.end(LegId::B, Action::Flush, Ok(()));
    assert!(rig.record.is_some_and(|record| record.clean));
    rig
}

fn read(rig: &mut Rig, tag: u16) {
    rig.ask(tag, Operation::Read, Range::new(0, GRAIN));
}

fn handed_over(rig: &Rig) -> Option<bool> {
    rig.events.iter().find_map(|event| match event {
        Event::HandedOver { clean, .. } => Some(*clean),
        _ => None,
    })
}

fn given_up(rig: &Rig) -> Option<[bool; 2]> {
    rig.events.iter().find_map(|event| match event {
        Event::HandOverGivenUp { unfinished, .. } => Some(*unfinished),
        _ => None,
    })
}

/// Whatever is asked from here on, nothing is written, read or answered.
fn is_silent(rig: &mut Rig) {
    rig.write(3, 2);
    rig.flush(4);
    read(rig, 5);
    rig.ask(6, Operation::Read, Range::new(1 << 40, GRAIN));
    rig.pass_time(Span(2 * RECORD_BUDGET.0));
    assert!(rig.ops.is_empty(), "{:?}", rig.ops);
    assert!(rig.answers.is_empty(), "{:?}", rig.answers);
}

#[test]
fn after_a_clean_record_nothing_is_written_and_nothing_answered() {
    let mut rig = recording();
    let record = rig.end_record(Ok(()));
    assert_eq!(record.legs.map(|leg| leg.unwrap().health), [Health::InSync; 2]);
    assert_eq!(handed_over(&rig), Some(true));
    is_silent(&mut rig);
    assert_eq!(rig.mirror.renew_record(rig.now), Err(Refusal::Stopping));
    assert_eq!(rig.mirror.switch(rig.now, None, false), Err(Refusal::Stopping));
    assert!(rig.record.is_none());
}

/// The record may be on disk: to go on would make it a lie.
#[test]
fn a_clean_record_that_may_be_on_disk_or_not_is_no_way_back() {
    for ends in [true, false] {
        let mut rig = recording();
        if ends {
            rig.end_record(Err(NO_SPACE));
        } else {
            rig.pass_time(RECORD_BUDGET);
        }
        assert_eq!(handed_over(&rig), Some(false));
        assert_eq!(given_up(&rig), None);
        is_silent(&mut rig);
    }
}

#[test]
fn while_it_holds_reads_under_way_are_waited_for_and_later_ones_held() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    read(&mut rig, 0);
    rig.mirror.hand_over(rig.now, PAUSE).expect("nothing stands against it");
    rig.take_effects();
    rig.end_record(Ok(()));
    read(&mut rig, 1);
    assert_eq!(rig.ops.len(), 1, "the first read, and no flush yet: {:?}", rig.ops);
    rig.end(LegId::A, Action::Read, Ok(()));
    assert_eq!(rig.answer(0), Some(Ok(())));
    rig.end(LegId::A, Action::Flush, Ok(()));
    rig.end(LegId::B, Action::Flush, Ok(()));
    rig.end_record(Ok(()));
    assert_eq!(handed_over(&rig), Some(true));
    assert_eq!(rig.answer(1), None);
}

#[test]
fn a_leg_that_hangs_ends_it_within_the_pause_and_the_guest_goes_on() {
    for hangs in LegId::ALL {
        let mut rig = holding();
        rig.end(hangs.other(), Action::Flush, Ok(()));
        rig.write(0, 2);
        read(&mut rig, 1);
        rig.pass_time(PAUSE);
        assert_eq!(
            given_up(&rig),
            Some(LegId::ALL.map(|leg| leg == hangs)),
            "leg {hangs} hangs"
        );
        let record: Option<Record> = rig.record;
        assert!(record.is_none_or(|record| !record.clean));
        rig.end(LegId::A, WRITE, Ok(()));
        rig.end(LegId::A, Action::Read, Ok(()));
        rig.answers.sort_by_key(|(tag, _)| tag.0);
        assert_eq!(rig.answers, [(Tag(0), Ok(())), (Tag(1), Ok(()))], "leg {hangs} hangs");
        // Again it could only be given up, with the guest held in between.
        assert_eq!(rig.mirror.hand_over(rig.now, PAUSE), Err(Refusal::Unanswered(hangs)));
        assert_eq!(rig.mirror.status().legs[1].map(|leg| leg.health), Some(Health::InSync));
    }
}

#[test]
fn a_flush_that_fails_ends_it_and_the_guest_goes_on() {
    for fails in LegId::ALL {
        let mut rig = holding();
        rig.write(0, 2);
        rig.end(fails, Action::Flush, Err(Errno::IO));
        assert!(given_up(&rig).is_some(), "leg {fails} fails");
        let primary = fails.other();
        if primary == LegId::B {
            // The guest is moved first.
            rig.end_all(LegId::B);
            rig.end_record(Ok(()));
        }
        assert!(rig.ops.iter().any(|op| op.leg == primary && op.action == WRITE));
    }
}

#[test]
fn nothing_is_held_before_a_record_has_shown_that_records_can_be_written() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.hand_over(rig.now, PAUSE).expect("nothing stands against it");
    rig.take_effects();
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(0), Some(Ok(())));
    rig.end_record(Err(NO_SPACE));
    assert_eq!(given_up(&rig), Some([false, true]), "the write is on its way to leg b");
    assert_eq!(rig.mirror.hand_over(rig.now, PAUSE), Err(Refusal::Busy), "records fail");
}

#[test]
fn a_hand_over_keeps_everything_else_away_and_comes_to_nothing_that_runs() {
    let mut rig = holding();
    assert_eq!(rig.mirror.switch(rig.now, None, false), Err(Refusal::Busy));
    assert_eq!(rig.mirror.renew_record(rig.now), Err(Refusal::Busy));
    assert_eq!(rig.mirror.hand_over(rig.now, PAUSE), Err(Refusal::Busy));
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.verify(rig.now, Repair::No).expect("in sync");
    assert_eq!(rig.mirror.hand_over(rig.now, PAUSE), Err(Refusal::Busy));
}

/// What was copied to it and not flushed would be dirty for the next core.
#[test]
fn a_leg_that_is_being_made_equal_is_flushed_too_and_what_is_copied_stays_copied() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    let traits = LegTraits { punches: true };
    rig.write(0, 1);
    rig.end(LegId::B, WRITE, Err(Errno::IO));
    rig.end(LegId::A, WRITE, Ok(()));
    rig.end_record(Ok(()));
    rig.mirror
        .attach(rig.now, LegId::B, traits, CopyMode::Compare, Comes::Known)
        .expect("it may come back");
    rig.take_effects();
    rig.end_record(Ok(()));
    // Pieces under way end, no new ones begin.
    rig.mirror.hand_over(rig.now, PAUSE).expect("nothing stands against it");
    rig.take_effects();
    while !rig.compares.is_empty() || rig.ops.iter().any(|op| op.action == Action::Read) {
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        (0..rig.compares.len()).for_each(|_| rig.compared(&[0]));
    }
    rig.end_all(LegId::B);
    rig.end_record(Ok(()));
    rig.end(LegId::A, Action::Flush, Ok(()));
    assert!(rig.record.is_none(), "leg b is being flushed");
    rig.end(LegId::B, Action::Flush, Ok(()));
    let mut unsynced = Bits::none(16);
    rig.mirror.unsynced(&mut unsynced);
    assert_eq!(unsynced.iter().count(), 0, "all pieces were under way");
    let record = rig.end_record(Ok(()));
    assert!(record.clean && record.tracked);
    assert_eq!(record.legs[1].map(|leg| leg.health), Some(Health::Syncing));
    assert_eq!(handed_over(&rig), Some(true));
}

/// It is for whoever has the guest in the end.
#[test]
fn a_read_that_fails_while_reads_are_held_is_held_with_them() {
    for hangs in [false, true] {
        let mut rig = Rig::in_sync(Protocol::Flush);
        // Its region is active.
        rig.write(1, 0);
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        assert_eq!(rig.answer(1), Some(Ok(())));
        read(&mut rig, 0);
        rig.mirror.hand_over(rig.now, PAUSE).expect("nothing stands against it");
        rig.take_effects();
        rig.end(LegId::B, Action::Flush, Ok(()));
        rig.end_record(Ok(()));
        rig.end(LegId::A, Action::Read, Err(Errno::IO));
        rig.end(LegId::B, Action::Flush, Ok(()));
        if hangs {
            rig.pass_time(PAUSE);
            assert!(given_up(&rig).is_some());
            rig.end(LegId::A, Action::Read, Err(Errno::IO));
            rig.end(LegId::B, Action::Read, Ok(()));
            rig.end(LegId::A, WRITE, Ok(()));
            assert_eq!(rig.answer(0), Some(Ok(())));
        } else {
            rig.end(LegId::A, Action::Flush, Ok(()));
            rig.end_record(Ok(()));
            assert_eq!(handed_over(&rig), Some(true));
            assert_eq!(rig.answer(0), None);
            is_silent(&mut rig);
        }
    }
}

/// The lag is still being brought down; the guest does not wait.
#[test]
fn a_read_that_fails_before_anything_is_held_is_made_up_for() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(1, 0);
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    read(&mut rig, 0);
    rig.mirror.hand_over(rig.now, PAUSE).expect("nothing stands against it");
    rig.take_effects();
    rig.end(LegId::A, Action::Read, Err(Errno::IO));
    rig.end(LegId::B, Action::Read, Ok(()));
    rig.end_record(Ok(()));
    rig.end_all(LegId::B);
    assert!(rig.record.is_none(), "the rewrite is under way");
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(0), Some(Ok(())));
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    rig.end_record(Ok(()));
    assert_eq!(handed_over(&rig), Some(true));
}

/// In whatever step it is: a guest that has to be moved comes first.
#[test]
fn a_primary_that_fails_ends_it_and_the_guest_is_moved() {
    for step in ["lower", "hold", "flush"] {
        let mut rig = Rig::in_sync(Protocol::Flush);
        rig.write(0, 1);
        rig.mirror.hand_over(rig.now, PAUSE).expect("nothing stands against it");
        rig.take_effects();
        if step != "lower" {
            rig.end_record(Ok(()));
            rig.end_all(LegId::B);
        }
        if step == "flush" {
            rig.end(LegId::A, WRITE, Ok(()));
            rig.end_all(LegId::B);
            rig.end(LegId::A, Action::Flush, Err(Errno::IO));
        } else {
            rig.end(LegId::A, WRITE, Err(Errno::IO));
        }
        assert!(given_up(&rig).is_some(), "{step}");
        rig.end_all(LegId::B);
        if step == "lower" {
            rig.end_record(Ok(()));
        }
        let record = rig.end_record(Ok(()));
        assert_eq!((record.primary, record.clean), (LegId::B, false), "{step}");
        assert_eq!(rig.answer(0), Some(Ok(())), "{step}");
        assert_eq!(handed_over(&rig), None);
    }
}
