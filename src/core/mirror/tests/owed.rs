use super::rig::{NO_SPACE, Rig, WRITE};
use crate::core::config::{Comes, CopyMode, LegTraits, RECORD_BUDGET};
use crate::core::effect::{Action, Event};
use crate::core::leg::{Health, LegId};
use crate::core::record::{Protocol, Record};
use crate::core::request::Errno;
use crate::core::time::Span;

const SHORTLY: Span = Span::from_millis(1);

fn just_under(span: Span) -> Span {
    Span(span.0 - SHORTLY.0)
}

/// A device whose secondary has just failed under a write, with that write answered as `protocol` wants it.
fn secondary_fails(protocol: Protocol) -> Rig {
    let mut rig = Rig::in_sync(protocol);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.end(LegId::B, WRITE, Err(Errno::IO));
    rig
}

#[test]
fn a_barrier_fails_when_the_demotion_it_waits_for_cannot_be_recorded() {
    let mut rig = secondary_fails(Protocol::Flush);
    assert_eq!(rig.answer(0), Some(Ok(())), "in `flush` a write is the primary's");
    rig.flush(1);
    rig.end_all(LegId::A);
    rig.pass_failing_records(just_under(RECORD_BUDGET));
    assert_eq!(rig.answer(1), None, "the budget has not run out");
    rig.pass_failing_records(SHORTLY);
    assert_eq!(rig.answer(1), Some(Err(Errno::IO)));

    rig.flush(1);
    assert_eq!(rig.answer(1), None, "the primary has not flushed");
    rig.end_all(LegId::A);
    assert_eq!(rig.answer(1), Some(Err(Errno::IO)), "nothing has changed");
    rig.write(2, 3);
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(2), Some(Ok(())), "a write needs no record");

    rig.pass_time(Span::from_secs(1));
    let record = rig.end_record(Ok(()));
    assert_eq!(record.legs[1].map(|leg| leg.health), Some(Health::Failed));
    rig.flush(1);
    rig.end_all(LegId::A);
    assert_eq!(
        rig.answer(1),
        Some(Ok(())),
        "the record says that the primary stands alone"
    );
}

#[test]
fn a_record_that_never_ends_is_no_better_than_one_that_fails() {
    let mut rig = secondary_fails(Protocol::Flush);
    rig.flush(1);
    rig.end_all(LegId::A);
    rig.pass_time(just_under(RECORD_BUDGET));
    assert_eq!(rig.answer(1), None);
    rig.pass_time(SHORTLY);
    assert_eq!(rig.answer(1), Some(Err(Errno::IO)));
    rig.end_record(Ok(()));
    rig.flush(1);
    rig.end_all(LegId::A);
    assert_eq!(rig.answer(1), Some(Ok(())));
}

/// Seed 272823 of the simulation: a record begun before the demotion ended well after the budget had run out.
#[test]
fn a_record_that_ends_well_ends_the_failing_even_if_it_is_an_older_one() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.switch(rig.now, None, false).expect("in sync");
    rig.take_effects();
    rig.end(LegId::A, Action::Flush, Ok(()));
    rig.end(LegId::B, Action::Flush, Ok(()));
    rig.pass_time(RECORD_BUDGET);
    rig.write(0, 1);
    rig.end(LegId::B, WRITE, Err(Errno::IO));
    rig.end(LegId::A, WRITE, Ok(()));
    rig.pass_time(RECORD_BUDGET);
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)));
    rig.end_record(Ok(()));
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(0), None, "the demotion is on its way");
    rig.end_record(Ok(()));
    assert_eq!(rig.answer(0), Some(Ok(())));
}

#[test]
fn in_sync_a_write_fails_when_the_demotion_it_waits_for_cannot_be_recorded() {
    let mut rig = secondary_fails(Protocol::Sync);
    rig.pass_failing_records(just_under(RECORD_BUDGET));
    assert_eq!(rig.answer(0), None);
    rig.pass_failing_records(SHORTLY);
    assert_eq!(rig.answer(0), Some(Err(Errno::IO)));
    rig.write(2, 3);
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(2), Some(Err(Errno::IO)));
}

#[test]
fn a_leg_whose_return_cannot_be_recorded_holds_nothing() {
    let mut rig = secondary_fails(Protocol::Flush);
    rig.pass_failing_records(RECORD_BUDGET);
    rig.pass_time(Span::from_secs(1));
    rig.end_record(Ok(()));
    // It is taken back and fails again.
    let traits = LegTraits { punches: true };
    rig.mirror
        .attach(rig.now, LegId::B, traits, CopyMode::Dirty, Comes::Known)
        .expect("it may come back");
    rig.take_effects();
    rig.end_record(Err(NO_SPACE));
    rig.pass_failing_records(RECORD_BUDGET);
    rig.flush(1);
    rig.end_all(LegId::A);
    assert_eq!(rig.answer(1), Some(Ok(())), "no record may call it in sync");
}

#[test]
fn mutations_without_a_generation_fail_when_none_can_be_recorded() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.counters = crate::core::counters::Counters::new(Record::GENERATIONS - 9);
    rig.mirror.counters.follow();
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(0), Some(Ok(())));
    rig.write(1, 2);
    rig.pass_failing_records(just_under(RECORD_BUDGET));
    assert_eq!(rig.answer(1), None);
    rig.pass_failing_records(SHORTLY);
    assert_eq!(rig.answer(1), Some(Err(Errno::IO)));
    rig.write(1, 2);
    assert_eq!(rig.answer(1), Some(Err(Errno::IO)));
    rig.pass_time(Span::from_secs(1));
    let record = rig.end_record(Ok(()));
    assert_eq!(record.generation_ceiling, 2 * Record::GENERATIONS);
    rig.write(1, 2);
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(1), Some(Ok(())));
}

/// A leg that is given up meanwhile has a clock of its own.
#[test]
fn a_lost_leg_does_not_set_back_the_clock_of_what_waits_for_a_generation() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.counters = crate::core::counters::Counters::new(Record::GENERATIONS - 9);
    rig.mirror.counters.follow();
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.write(1, 2);
    rig.pass_failing_records(just_under(RECORD_BUDGET));
    rig.end(LegId::B, WRITE, Err(Errno::IO));
    assert_eq!(rig.answer(1), None);
    rig.pass_failing_records(SHORTLY);
    assert_eq!(rig.answer(1), Some(Err(Errno::IO)));
}

#[test]
fn health_is_told_when_the_record_says_so() {
    let mut rig = secondary_fails(Protocol::Flush);
    assert_eq!(rig.health_told(), []);
    rig.end_record(Err(NO_SPACE));
    assert_eq!(rig.health_told(), []);
    rig.pass_time(Span::from_secs(1));
    rig.end_record(Ok(()));
    assert_eq!(rig.health_told(), [(LegId::B, Health::Failed)]);
}

#[test]
fn a_switch_whose_record_does_not_end_is_given_up() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror.switch(rig.now, None, false).expect("in sync");
    rig.take_effects();
    rig.end(LegId::A, Action::Flush, Ok(()));
    rig.end(LegId::B, Action::Flush, Ok(()));
    rig.write(0, 1);
    rig.pass_time(just_under(RECORD_BUDGET));
    assert_eq!(rig.ops, [], "the write is held");
    rig.pass_time(SHORTLY);
    assert!(
        matches!(rig.events[..], [Event::SwitchGivenUp { .. }]),
        "{:?}",
        rig.events
    );
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(0), None, "the record may have made the other leg primary");
    rig.end(LegId::B, WRITE, Ok(()));
    assert_eq!(rig.answer(0), Some(Ok(())));
}

#[test]
fn a_change_of_protocol_whose_record_does_not_end_binds_until_another_does() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.mirror
        .set_protocol(rig.now, Protocol::Sync)
        .expect("nothing else is under way");
    rig.take_effects();
    rig.end_all(LegId::B);
    rig.pass_time(RECORD_BUDGET);
    assert_eq!(rig.events, [Event::ProtocolSet { done: false }]);
    rig.write(0, 1);
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(rig.answer(0), None, "the record may say `sync`");
    rig.end_record(Ok(()));
    assert_eq!(rig.answer(0), None, "the record says `sync`");
    rig.end_record(Ok(()));
    assert_eq!(rig.answer(0), Some(Ok(())), "the record says `flush` again");
}

#[test]
fn a_stop_that_cannot_be_recorded_ends_unclean_and_for_good() {
    for secondary_fails in [false, true] {
        let mut rig = Rig::in_sync(Protocol::Flush);
        if secondary_fails {
            rig.write(0, 1);
            rig.end(LegId::A, WRITE, Ok(()));
            rig.end(LegId::B, WRITE, Err(Errno::IO));
        }
        rig.mirror.stop(rig.now).expect("nothing else is under way");
        rig.take_effects();
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        rig.pass_failing_records(just_under(RECORD_BUDGET));
        assert!(!rig.events.iter().any(|event| matches!(event, Event::Stopped { .. })));
        rig.pass_failing_records(SHORTLY);
        rig.end_all(LegId::A);
        assert_eq!(rig.events.last(), Some(&Event::Stopped { clean: false }));
        let said = rig.events.len();
        rig.pass_failing_records(Span::from_secs(60));
        assert!(rig.ops.is_empty() && rig.record.is_none() && rig.events.len() == said);
    }
}

/// The clock of the demotion runs out first, and with it the alarm that was set for both.
#[test]
fn a_stop_ends_while_a_record_does_not() {
    let mut rig = secondary_fails(Protocol::Flush);
    rig.pass_time(Span::from_secs(1));
    rig.mirror.stop(rig.now).expect("nothing else is under way");
    rig.take_effects();
    rig.pass_time(RECORD_BUDGET);
    rig.end(LegId::A, Action::Flush, Ok(()));
    assert_eq!(rig.events.last(), Some(&Event::Stopped { clean: false }));
}

/// What the primary shows after a failed flush it may lose when it is opened again, and the other leg has it.
#[test]
fn a_stop_after_a_failed_flush_of_the_primary_does_not_call_the_legs_equal() {
    for failed in [false, true] {
        let mut rig = Rig::in_sync(Protocol::Flush);
        rig.be_syncing();
        rig.flush(0);
        rig.end(LegId::A, Action::Flush, if failed { Err(Errno::IO) } else { Ok(()) });
        // What the primary shows is what the secondary gets.
        rig.become_in_sync();
        rig.mirror.stop(rig.now).expect("nothing else is under way");
        rig.take_effects();
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        let record = rig.end_record(Ok(()));
        let health = if failed { Health::Syncing } else { Health::InSync };
        assert_eq!(record.legs[1].map(|leg| leg.health), Some(health));
        assert!(record.clean);
    }
}

/// From the freeze on the leg counts, so the record that says so keeps nobody waiting.
#[test]
fn the_guest_does_not_wait_for_the_record_of_a_leg_that_becomes_in_sync() {
    let mut rig = secondary_fails(Protocol::Flush);
    rig.end_record(Ok(()));
    let traits = LegTraits { punches: true };
    rig.mirror
        .attach(rig.now, LegId::B, traits, CopyMode::Dirty, Comes::Known)
        .expect("it may come back");
    rig.take_effects();
    rig.end_record(Ok(()));
    while rig.record.is_none() {
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
        rig.compare_all_equal();
    }
    rig.write(2, 3);
    rig.flush(1);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.end(LegId::A, Action::Flush, Ok(()));
    rig.end(LegId::B, WRITE, Ok(()));
    assert_eq!(rig.answer(1), None, "the leg counts");
    rig.end(LegId::B, Action::Flush, Ok(()));
    assert_eq!(rig.answer(1), Some(Ok(())));
    let shown = |rig: &Rig| rig.mirror.status().legs[1].map(|leg| leg.health);
    assert_eq!(
        shown(&rig),
        Some(Health::Syncing),
        "nobody is told before it is recorded"
    );
    let record = rig.end_record(Ok(()));
    assert_eq!(shown(&rig), Some(Health::InSync));
    assert_eq!(record.legs[1].map(|leg| leg.health), Some(Health::InSync));
    assert_eq!(rig.health_told().last(), Some(&(LegId::B, Health::InSync)));
}
