//! Who is wrong where the legs differ, and in which order that is recorded and mended.

use super::rig::{GRAIN, NO_SPACE, Rig, WRITE};
use crate::core::Repair;
use crate::core::effect::{Action, BlockMask, Event, Evidence};
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::record::Protocol;
use crate::core::request::{Errno, Operation};
use crate::core::signature::Source;
use crate::core::suspects::Suspect;
use crate::core::time::Span;

/// The first extent differs in its second grain.
const PLACE: Range = Range::new(GRAIN, GRAIN);

fn says(source: Source, equals: [bool; 2]) -> Option<Evidence> {
    Some(Evidence { source, equals })
}

/// A verify that has found [`PLACE`] to differ, and everything else to be equal; the tables are asked, and have not answered.
fn asking(repair: Repair) -> Rig {
    let mut rig = Rig::in_sync(Protocol::Flush);
    ask(&mut rig, repair);
    rig
}

fn ask(rig: &mut Rig, repair: Repair) {
    rig.consults_hang = true;
    rig.mirror.verify(rig.now, repair).expect("in sync");
    rig.take_effects();
    compare(rig);
}

/// Whatever is to be read for the verify is, and the first extent differs in [`PLACE`].
fn compare(rig: &mut Rig) {
    let at_reads = |rig: &Rig| rig.ops.iter().position(|op| op.action == Action::Read);
    while at_reads(rig).is_some() || !rig.compares.is_empty() {
        while let Some(at) = at_reads(rig) {
            rig.end_at(at, Ok(()));
        }
        for walk in std::mem::take(&mut rig.compares) {
            let mut mask = BlockMask::default();
            if rig.mirror.slots[usize::from(walk.0)].range.start == 0 {
                mask.insert(1);
            }
            rig.mirror.handle_compared(rig.now, walk, mask);
            rig.take_effects();
        }
    }
}

fn differences(rig: &Rig) -> Vec<Suspect> {
    let told = rig.events.iter().filter_map(|event| match event {
        Event::Difference(suspect) => Some(*suspect),
        _ => None,
    });
    told.collect()
}

fn is_verified(rig: &Rig) -> bool {
    rig.events.iter().any(|event| matches!(event, Event::Verified { .. }))
}

fn is_suspect(rig: &Rig) -> bool {
    rig.mirror.suspects().touch(PLACE)
}

/// What is told of [`PLACE`] when the tables have answered this.
fn verdict(evidence: [Option<Evidence>; 2]) -> Option<LegId> {
    let mut rig = asking(Repair::No);
    rig.consulted(evidence);
    match differences(&rig)[..] {
        [Suspect { range: PLACE, wrong }] => wrong,
        ref told => panic!("{told:?}"),
    }
}

#[test]
fn an_entry_proves_a_leg_wrong_that_it_does_not_fit_while_it_fits_the_other() {
    for source in [Source::Payload, Source::Both] {
        for holder in LegId::ALL {
            for wrong in LegId::ALL {
                let mut evidence = [None; 2];
                evidence[holder.index()] = says(source, LegId::ALL.map(|leg| leg != wrong));
                assert_eq!(verdict(evidence), Some(wrong), "{source:?} in the table of {holder}");
            }
        }
    }
}

#[test]
fn an_entry_read_back_from_one_leg_alone_proves_nothing_of_the_other() {
    for holder in LegId::ALL {
        for wrong in LegId::ALL {
            let mut evidence = [None; 2];
            evidence[holder.index()] = says(Source::One, LegId::ALL.map(|leg| leg != wrong));
            assert_eq!(verdict(evidence), Some(wrong).filter(|_| wrong == holder));
        }
    }
}

#[test]
fn entries_that_disagree_or_fit_neither_leg_prove_nothing() {
    let [of_a, of_b] = [[true, false], [false, true]];
    for source in [Source::Payload, Source::Both] {
        assert_eq!(verdict([says(source, of_a), says(source, of_b)]), None);
        assert_eq!(verdict([says(source, [false; 2]), says(source, [false; 2])]), None);
    }
    assert_eq!(verdict([None; 2]), None);
    assert_eq!(
        verdict([says(Source::One, of_b), says(Source::Both, of_b)]),
        Some(LegId::A),
        "both say the same"
    );
}

#[test]
fn an_entry_of_what_was_written_since_proves_nothing() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    rig.write(0, 0);
    rig.settle();
    ask(&mut rig, Repair::Proven);
    rig.consulted([says(Source::Both, [false, true]); 2]);
    assert_eq!(differences(&rig)[0].wrong, None);
}

#[test]
fn what_is_written_while_the_tables_are_asked_is_read_again_and_told_without_a_verdict_at_last() {
    let mut rig = asking(Repair::Proven);
    for _ in 0..3 {
        rig.write(0, 0);
        rig.end(LegId::A, WRITE, Ok(()));
        rig.end(LegId::B, WRITE, Ok(()));
        rig.consulted([says(Source::Both, [false, true]); 2]);
        assert_eq!(differences(&rig), [], "it is read again");
        compare(&mut rig);
    }
    rig.write(0, 0);
    rig.consulted([says(Source::Both, [false, true]); 2]);
    let told = Suspect {
        range: PLACE,
        wrong: None,
    };
    assert_eq!(differences(&rig), [told]);
}

#[test]
fn a_verify_ends_when_what_it_found_suspect_is_durable_and_the_record_says_so() {
    let mut rig = asking(Repair::No);
    rig.suspects_hang = true;
    rig.consulted([None; 2]);
    assert!(rig.record.is_none() && !is_verified(&rig), "the list comes first");
    rig.suspected(Ok(()));
    assert!(rig.record.is_some_and(|record| record.suspect) && !is_verified(&rig));
    rig.end_record(Ok(()));
    assert!(is_verified(&rig));
    assert!(rig.mirror.switch(rig.now, None, false).is_err() && rig.mirror.switch(rig.now, None, true).is_ok());
}

#[test]
fn a_verify_does_not_wait_for_a_list_that_cannot_be_written() {
    let mut rig = asking(Repair::No);
    rig.suspects_hang = true;
    rig.consulted([None; 2]);
    rig.suspected(Err(NO_SPACE));
    assert!(is_verified(&rig) && is_suspect(&rig));
    rig.pass_time(Span::from_secs(6));
    assert!(rig.writes_suspects, "it is tried again");
}

/// A verify has found that leg `wrong` is, and everything is durable; it is about to be mended.
fn mending(wrong: LegId) -> Rig {
    let mut rig = asking(Repair::Proven);
    rig.suspects_hang = true;
    rig.consulted([says(Source::Both, LegId::ALL.map(|leg| leg != wrong)), None]);
    assert!(rig.ops.is_empty(), "nothing is read before it is suspect, durably");
    rig.suspected(Ok(()));
    assert!(rig.ops.is_empty(), "nor before the record says so");
    rig.end_record(Ok(()));
    rig
}

#[test]
fn what_is_mended_is_read_then_written_then_flushed_and_only_then_suspect_no_more() {
    for wrong in LegId::ALL {
        let mut rig = mending(wrong);
        rig.end(wrong.other(), Action::Read, Ok(()));
        assert!(
            rig.ops
                .iter()
                .all(|op| (op.leg, op.action, op.range) == (wrong, WRITE, PLACE))
        );
        rig.end(wrong, WRITE, Ok(()));
        for leg in LegId::ALL {
            assert!(is_suspect(&rig) && !is_verified(&rig), "it may lie in a cache");
            rig.end(leg, Action::Flush, Ok(()));
        }
        assert!(!is_suspect(&rig));
        assert!(rig.events.contains(&Event::Mended {
            leg: wrong,
            range: PLACE
        }));
    }
}

#[test]
fn a_guests_write_while_it_is_mended_stands_behind_it_on_both_legs() {
    for wrong in LegId::ALL {
        let mut rig = mending(wrong);
        rig.write(0, 1);
        let writes = |rig: &Rig, leg| rig.ops.iter().filter(|op| op.leg == leg && op.action == WRITE).count();
        assert_eq!(
            [LegId::A, LegId::B].map(|leg| writes(&rig, leg)),
            [0, 0],
            "it is being read"
        );
        rig.end(wrong.other(), Action::Read, Ok(()));
        assert_eq!(writes(&rig, wrong), 1, "what mends it");
        rig.end(wrong, WRITE, Ok(()));
        assert_eq!(writes(&rig, wrong), 1, "what the guest wrote");
    }
}

#[test]
fn what_the_primary_does_not_take_stays_suspect() {
    let mut rig = mending(LegId::A);
    rig.end(LegId::B, Action::Read, Ok(()));
    rig.end(LegId::A, WRITE, Err(Errno::IO));
    rig.end_all(LegId::A);
    rig.end_all(LegId::B);
    assert!(is_suspect(&rig) && is_verified(&rig));
    let complete = |event: &Event| matches!(event, Event::Verified { complete: true, .. } | Event::Mended { .. });
    assert!(!rig.events.iter().any(complete));
}

#[test]
fn what_a_flush_does_not_make_durable_stays_suspect() {
    let mut rig = mending(LegId::A);
    rig.end(LegId::B, Action::Read, Ok(()));
    rig.end(LegId::A, WRITE, Ok(()));
    rig.end(LegId::A, Action::Flush, Err(Errno::IO));
    assert!(is_suspect(&rig) && !rig.events.iter().any(|event| matches!(event, Event::Mended { .. })));
}

/// Rot 1081 of the simulation: the flush behind the mending was good, and the mended bytes were lost by the one before.
#[test]
fn what_a_failed_flush_of_the_guest_may_have_lost_is_not_mended() {
    let mut rig = mending(LegId::A);
    rig.end(LegId::B, Action::Read, Ok(()));
    rig.flush(0);
    rig.end(LegId::A, WRITE, Ok(()));
    rig.end(LegId::A, Action::Flush, Err(Errno::IO));
    rig.settle();
    assert!(is_suspect(&rig) && is_verified(&rig));
    assert!(!rig.events.iter().any(|event| matches!(event, Event::Mended { .. })));
}

#[test]
fn what_is_found_equal_is_suspect_until_both_legs_are_flushed() {
    let mut rig = asking(Repair::No);
    rig.consulted([None; 2]);
    rig.end_record(Ok(()));
    assert!(is_verified(&rig) && is_suspect(&rig));
    rig.ask(0, Operation::Write { fua: false }, PLACE);
    rig.settle();
    assert!(is_suspect(&rig), "nobody has looked");
    rig.mirror.verify(rig.now, Repair::No).expect("in sync");
    rig.take_effects();
    while let Some(at) = rig.ops.iter().position(|op| op.action == Action::Read) {
        rig.end_at(at, Ok(()));
        rig.compare_all_equal();
    }
    for leg in LegId::ALL {
        assert!(is_suspect(&rig));
        rig.end(leg, Action::Flush, Ok(()));
    }
    assert!(!is_suspect(&rig));
}

#[test]
fn a_leg_that_failed_a_flush_gets_what_it_shows_where_that_is_suspect_and_what_the_primary_holds_elsewhere() {
    let failed = LegId::B;
    let mut rig = Rig::in_sync(Protocol::Flush);
    // The first extent, grain by grain; what is suspect is in the middle.
    for grain in 0..4 {
        rig.write(0, grain);
        rig.end_all(LegId::A);
        rig.end_all(LegId::B);
    }
    ask(&mut rig, Repair::No);
    rig.consulted([None; 2]);
    rig.settle();
    rig.flush(1);
    rig.end(LegId::A, Action::Flush, Ok(()));
    rig.end(failed, Action::Flush, Err(Errno::IO));
    rig.settle();
    rig.mirror.detach(rig.now, failed).expect("it follows no more");
    rig.settle();
    rig.attach_again(failed);
    rig.end_record(Ok(()));
    let buf_read = |rig: &Rig, leg| {
        let read = rig.ops.iter().find(|op| (op.leg, op.action) == (leg, Action::Read));
        read.expect("it is read").buf
    };
    let [of_primary, of_failed] = [buf_read(&rig, failed.other()), buf_read(&rig, failed)];
    let first_extent = Range::new(0, 4 * GRAIN);
    let mut written = Vec::new();
    while rig.record.is_none() {
        assert!(rig.compares.is_empty(), "what it shows proves nothing");
        let op = rig.ops[0];
        if (op.leg, op.action) == (failed, WRITE) && first_extent.contains(op.range) {
            written.push((op.range, op.buf));
        }
        rig.end_at(0, Ok(()));
    }
    let grains = |first, count| Range::new(first * GRAIN, count * GRAIN);
    assert_eq!(
        written,
        [
            (grains(0, 1), of_primary),
            (grains(1, 1), of_failed.skip(GRAIN)),
            (grains(2, 2), of_primary.skip(2 * GRAIN)),
        ]
    );
    assert!(is_suspect(&rig), "nobody has decided");
    let record = rig.end_record(Ok(()));
    assert_eq!(record.legs[failed.index()].map(|leg| leg.doubted), Some(false));
}
