//! Whether the other leg is served where the recorded primary is missing, and what that costs: said in the same words by the
//! tool, before it opens a disk for it, and by the daemon, which decides.

use super::error::Error;
use super::launch::Start;
use super::status::rfc3339;
use crate::core::{LegId, Stale, StandIn, Unfit};
use crate::table::Superblock;

/// Whether the guest of a dead daemon may go on with the leg that stands in for the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// It has every write that was acknowledged to it.
    Everything,
    /// It would go back in time.
    AnEarlierMoment,
}

/// Whether the leg that is not the primary may be served as it is asked for. `doubt` says that a newer record may have been
/// lost. `why` says what is the matter with the primary.
///
/// # Errors
/// Refused: with what would be lost and how to accept that, or why it is never served.
pub fn stand_in(superblock: &Superblock, doubt: bool, asked: &Start, why: &str) -> Result<Keeps, Error> {
    let record = &superblock.record;
    let (name, other) = (&superblock.name, record.primary.other());
    let described = format!("leg {other} ({})", path(superblock, other));
    let never = |because: String| {
        Error::refused(format!("{why}; {because}")).hint(format!(
            "bring the disk of leg {} ({}) back",
            record.primary,
            path(superblock, record.primary)
        ))
    };
    if doubt {
        return Err(never(format!(
            "one of the two records is damaged, so nobody knows whether {described} was being copied to"
        )));
    }
    let refused = |what: String, flag: &str| {
        Err(Error::refused(format!("{why}; {what}")).hint(format!(
            "bring it back, or go on with leg {other} alone: twinblk start {name} {flag}"
        )))
    };
    match record.stand_in() {
        StandIn::Complete if asked.degraded || asked.accept_stale => Ok(Keeps::Everything),
        StandIn::Complete => refused(
            format!("{described} has every write that was acknowledged"),
            "--degraded",
        ),
        StandIn::Stale(_) if asked.accept_stale => Ok(Keeps::AnEarlierMoment),
        StandIn::Stale(stale) => refused(
            format!("{described} {}: that would be lost", lacks(superblock, other, stale)),
            "--accept-stale",
        ),
        StandIn::Unfit(Unfit::None) => Err(never("the device has no other leg".into())),
        StandIn::Unfit(Unfit::Detached) => Err(never(format!(
            "{described} was detached, and what was done with it since is not the device's (twinblk create serves it by itself)"
        ))),
        StandIn::Unfit(Unfit::Doubted) => Err(never(format!(
            "{described} failed a flush, and may not have what it shows"
        ))),
        StandIn::Unfit(Unfit::Health(health)) => Err(never(format!(
            "{described} is {}: it is no image of the device of any moment",
            health.word()
        ))),
    }
}

/// What a leg lacks, in words.
pub fn lacks(superblock: &Superblock, leg: LegId, stale: Stale) -> String {
    const DIFFERS: &str = "differs from the primary in places of which nobody knows which is right";
    match stale {
        Stale::Flushed => "has everything that was flushed, but may lack writes after the last flush".into(),
        Stale::Barrier => {
            "is the device as of an earlier barrier, and nobody knows which: it may lack later writes, also \
                           flushed ones"
                .into()
        }
        Stale::Suspect => DIFFERS.into(),
        Stale::Generation(generation) => {
            let since = superblock.since[leg.index()];
            let since = since.map_or_else(String::new, |since| format!(" (at {})", rfc3339(since)));
            let suspect = match superblock.record.suspect {
                true => format!(", {DIFFERS}"),
                false => String::new(),
            };
            format!("stopped following at generation {generation}{since}{suspect}, and lacks everything written since")
        }
    }
}

fn path(superblock: &Superblock, leg: LegId) -> &str {
    superblock.legs[leg.index()].as_ref().map_or("none", |disk| &disk.path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Health, LegRecord, Protocol};
    use crate::table::superblock::example;

    fn superblock(health: Health, protocol: Protocol, clean: bool) -> Superblock {
        let mut superblock = example();
        let leg = |health| {
            Some(LegRecord {
                health,
                consistent_at: 41,
                attached: true,
                doubted: false,
            })
        };
        let record = &mut superblock.record;
        (record.protocol, record.clean, record.primary) = (protocol, clean, LegId::B);
        record.legs = [leg(health), leg(Health::InSync)];
        superblock.since = [Some(1_767_225_599), None];
        superblock
    }

    const DEGRADED: Start = Start {
        degraded: true,
        force: false,
        accept_stale: false,
    };
    const STALE: Start = Start {
        degraded: false,
        force: false,
        accept_stale: true,
    };

    #[test]
    fn what_would_be_lost_is_said_before_it_is() {
        let behind = superblock(Health::Behind, Protocol::Flush, true);
        for asked in [Start::default(), DEGRADED] {
            let error = stand_in(&behind, false, &asked, "it is gone").expect_err("nobody has accepted that");
            for word in ["it is gone", "generation 41", "2025-12-31T23:59:59Z"] {
                assert!(error.message.contains(word), "{word}: {}", error.message);
            }
            assert!(error.hint.expect("there is a way").contains("--accept-stale"));
        }
        assert_eq!(stand_in(&behind, false, &STALE, ""), Ok(Keeps::AnEarlierMoment));
    }

    #[test]
    fn that_the_legs_differed_is_said_of_a_leg_that_fell_behind_too() {
        for health in [Health::Behind, Health::InSync] {
            let mut differs = superblock(health, Protocol::Sync, false);
            differs.record.suspect = true;
            let error = stand_in(&differs, false, &DEGRADED, "").expect_err("nobody has accepted that");
            assert!(
                error.message.contains("nobody knows which is right"),
                "{}",
                error.message
            );
        }
    }

    #[test]
    fn a_leg_that_has_everything_asks_for_less() {
        for (protocol, clean) in [(Protocol::Async, true), (Protocol::Sync, false)] {
            let equal = superblock(Health::InSync, protocol, clean);
            let error = stand_in(&equal, false, &Start::default(), "").expect_err("a leg is missing");
            assert!(error.hint.expect("there is a way").contains("--degraded"));
            assert_eq!(stand_in(&equal, false, &DEGRADED, ""), Ok(Keeps::Everything));
            assert_eq!(stand_in(&equal, false, &STALE, ""), Ok(Keeps::Everything));
        }
    }

    #[test]
    fn nothing_makes_a_mixture_acceptable() {
        let all = Start {
            degraded: true,
            force: true,
            accept_stale: true,
        };
        for health in [Health::Syncing, Health::Failed, Health::Absent] {
            let error = stand_in(&superblock(health, Protocol::Sync, true), false, &all, "").expect_err(health.word());
            assert!(error.message.contains(health.word()), "{}", error.message);
        }
        // A lost record may have said syncing.
        let equal = superblock(Health::InSync, Protocol::Sync, true);
        assert!(stand_in(&equal, true, &all, "").is_err());
    }
}
