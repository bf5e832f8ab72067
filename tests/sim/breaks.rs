//! The test of the test: the simulation finds each deliberate fault of the core. `TWINBLK_SIM_BREAKS` names some of them.

use crate::plan::Plan;
use crate::run;
use twinblk::core::breaks::{self, Break};

/// Within this many worlds each fault must show.
const ENOUGH: u64 = 400;

/// The world in which to look for it: some need errors of a primary that has a secondary, again and again, or sectors that rot.
fn world(which: Break, seed: u64) -> Plan {
    match which {
        Break::RewriteOvertakes | Break::DoubtForgotten => Plan::of_errors(seed),
        Break::CopiedFromDoubted
        | Break::FailoverForgotten
        | Break::HeldByFailover
        | Break::DoubtedCompared
        | Break::DoubtUnrecorded
        | Break::HostTakenForDisk => Plan::of_doubt(seed),
        Break::MatchedOutdated => Plan::of_signatures(seed),
        Break::SuspectUnrecorded
        | Break::SuspectCopied
        | Break::JudgedOutdated
        | Break::AccusedByOther
        | Break::MendedUnsuspected
        | Break::MendedUnflushed
        | Break::DecidedUnflushed => Plan::of_rot(seed),
        _ => Plan::new(seed),
    }
}

#[test]
fn every_deliberate_break_is_found() {
    let mut missed = Vec::new();
    let only = std::env::var("TWINBLK_SIM_BREAKS").unwrap_or_default();
    let chosen = |which: &Break| only.is_empty() || only.split(',').any(|name| name == format!("{which:?}"));
    for which in Break::ALL.into_iter().filter(chosen) {
        let found = (0..ENOUGH).find_map(|seed| {
            breaks::arm(Some(which));
            let broken = run::plan(world(which, seed), false);
            breaks::arm(None);
            // What fails unbroken too proves nothing.
            broken
                .err()
                .filter(|_| run::plan(world(which, seed), false).is_ok())
                .map(|what| (seed, what))
        });
        match found {
            Some((seed, what)) => println!("{which:?}: seed {seed}: {what}"),
            None => missed.push(which),
        }
    }
    assert_eq!(missed, [], "not found within {ENOUGH} seeds");
}
