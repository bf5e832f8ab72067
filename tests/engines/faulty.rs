//! What only a faulty engine can show.

use crate::engines::faulty_rig;
use crate::rig::{MIB, WRITE, WRITE_FUA, ZERO};
use twinblk::core::{Action, Buf, Errno, LegId, Range};
use twinblk::io::Engine;
use twinblk::io::faulty::{Fault, Kind, Rule, Stage, When};

fn always(fault: Fault) -> Rule {
    Rule::new(When::From { after: 0 }, fault)
}

#[test]
fn an_error_hits_what_the_rule_names_and_nothing_happens_on_the_disk() {
    let error = Errno(libc::EREMOTEIO);
    let rule = always(Fault::Error(error))
        .on(LegId::B)
        .of(Kind::Write)
        .touching(Range::new(4096, 4096));
    let mut rig = faulty_rig(&[rule]);
    rig.arena.write(Buf(0), &[1; 8192]);
    for (leg, action, start, expected) in [
        (LegId::B, WRITE, 4096, Err(error)),
        (LegId::B, WRITE_FUA, 0, Err(error)),
        (LegId::A, WRITE, 4096, Ok(())),
        (LegId::B, Action::Read, 4096, Ok(())),
        (LegId::B, WRITE, 8192, Ok(())),
        (LegId::B, Action::Flush, 0, Ok(())),
    ] {
        assert_eq!(
            rig.run(leg, action, Range::new(start, 8192), Buf(0)),
            expected,
            "{action:?} at {start}"
        );
        rig.arena.write(Buf(0), &[1; 8192]);
    }
    assert_eq!(rig.engine.injected(), 2);
    let content = rig.engine.inner().content(LegId::B);
    assert!(
        content[..8192].iter().all(|&byte| byte == 0),
        "a failed write has happened"
    );
    assert!(content[8192..16384].iter().all(|&byte| byte == 1));
    rig.engine.heal();
    rig.run(LegId::B, WRITE, Range::new(4096, 4096), Buf(0)).unwrap();
}

#[test]
fn an_error_once_comes_once_and_later_ones_come_for_ever() {
    let once = Rule::new(When::Once { after: 2 }, Fault::Error(Errno::IO)).of(Kind::Flush);
    let from = Rule::new(When::From { after: 3 }, Fault::Error(Errno::IO)).of(Kind::Zero);
    let mut rig = faulty_rig(&[once, from]);
    let mut results = |action: Action, range: Range| -> Vec<bool> {
        (0..6)
            .map(|_| rig.run(LegId::A, action, range, Buf(0)).is_ok())
            .collect()
    };
    assert_eq!(
        results(Action::Flush, Range::EMPTY),
        [true, true, false, true, true, true]
    );
    assert_eq!(
        results(ZERO, Range::new(0, 512)),
        [true, true, true, false, false, false]
    );
}

#[test]
fn an_error_by_chance_comes_about_as_often_as_asked_and_again_with_the_same_seed() {
    let run = || -> Vec<bool> {
        let mut rig = faulty_rig(&[Rule::new(
            When::Chance { per_million: 250_000 },
            Fault::Error(Errno::IO),
        )]);
        (0..1000)
            .map(|_| rig.run(LegId::A, Action::Flush, Range::EMPTY, Buf(0)).is_err())
            .collect()
    };
    let failed = run();
    assert!((150..350).contains(&failed.iter().filter(|&&failed| failed).count()));
    assert_eq!(failed, run());
}

#[test]
fn an_undetermined_error_has_happened_all_the_same() {
    let mut rig = faulty_rig(&[always(Fault::ErrorAfter(Errno::IO)).of(Kind::Write)]);
    rig.arena.write(Buf(0), &[1; 4096]);
    assert_eq!(rig.run(LegId::A, WRITE, Range::new(0, 4096), Buf(0)), Err(Errno::IO));
    assert!(
        rig.engine.inner().content(LegId::A)[..4096]
            .iter()
            .all(|&byte| byte == 1)
    );
}

#[test]
fn a_torn_write_leaves_whole_first_blocks_and_never_all() {
    let mut rig = faulty_rig(&[always(Fault::Torn(Errno::IO)).of(Kind::Write)]);
    let mut landed = [false; 8];
    for i in 0..200 {
        let fill = i as u8 + 1;
        rig.engine.inner_mut().set_leg(LegId::A, Some(MIB));
        rig.arena.write(Buf(0), &[fill; 4096]);
        assert_eq!(rig.run(LegId::A, WRITE, Range::new(4096, 4096), Buf(0)), Err(Errno::IO));
        let content = &rig.engine.inner().content(LegId::A)[4096..8192];
        let bytes = content.iter().take_while(|&&byte| byte == fill).count();
        assert!(content[bytes..].iter().all(|&byte| byte == 0));
        assert_eq!(bytes % 512, 0);
        landed[bytes / 512] = true;
    }
    assert_eq!(landed, [true; 8], "not every way of tearing has come up");
}

#[test]
fn a_lost_write_is_reported_as_done() {
    let mut rig = faulty_rig(&[always(Fault::Lost).touching(Range::new(0, 512))]);
    rig.write(LegId::A, WRITE_FUA, 0, &[1; 512]);
    assert_eq!(rig.read(LegId::A, 0, 512), [0; 512]);
    assert_eq!(rig.engine.injected(), 1, "a read was lost");
}

#[test]
fn a_delayed_write_lands_after_newer_ones_and_a_delayed_completion_comes_after_theirs() {
    for (stage, last) in [(Stage::Before, 1), (Stage::After, 2)] {
        let delay = Fault::Delay { operations: 3, stage };
        let mut rig = faulty_rig(&[Rule::new(When::Once { after: 0 }, delay)]);
        rig.arena.write(Buf(0), &[1; 512]);
        rig.arena.write(Buf(1), &[2; 512]);
        let range = Range::new(0, 512);
        let late = rig.submit(LegId::A, WRITE, range, Buf(0));
        let mut ended = Vec::new();
        rig.engine.wait(0, &mut ended).unwrap();
        let newer = rig.submit(LegId::A, WRITE, range, Buf(1));
        rig.engine.wait(1, &mut ended).unwrap();
        assert_eq!(ended, [(newer, Ok(()))]);
        let flushes = [0, 1].map(|_| rig.submit(LegId::B, Action::Flush, Range::EMPTY, Buf(0)));
        ended.clear();
        rig.engine.wait(3, &mut ended).unwrap();
        let mut ids: Vec<_> = ended.iter().map(|(id, _)| *id).collect();
        ids.sort_by_key(|id| id.0);
        assert_eq!(ids, [late, flushes[0], flushes[1]]);
        assert_eq!(rig.read(LegId::A, 0, 512), [last; 512], "{stage:?}");
    }
}

#[test]
fn what_hangs_ends_only_when_released_and_hinders_nothing_else() {
    for stage in [Stage::Before, Stage::After] {
        let mut rig = faulty_rig(&[always(Fault::Hang(stage)).on(LegId::B)]);
        let hanging = rig.submit(LegId::B, WRITE, Range::new(0, 512), Buf(0));
        rig.run(LegId::A, WRITE, Range::new(0, 512), Buf(0)).unwrap();
        let mut ended = Vec::new();
        rig.engine.wait(1, &mut ended).unwrap();
        assert_eq!((ended.len(), rig.engine.in_flight()), (0, 1));
        rig.engine.release();
        rig.engine.wait(1, &mut ended).unwrap();
        assert_eq!(ended, [(hanging, Ok(()))]);
    }
}

#[test]
fn what_is_released_before_it_has_reached_the_disk_does_not_hang_afterwards() {
    let mut rig = faulty_rig(&[always(Fault::Hang(Stage::After))]);
    let released = rig.submit(LegId::B, WRITE, Range::new(0, 512), Buf(0));
    rig.engine.release();
    let mut ended = Vec::new();
    rig.engine.wait(1, &mut ended).unwrap();
    assert_eq!(ended, [(released, Ok(()))]);
}
