//! The facts of a device that must survive it: written whole, one record after another.

use super::leg::{Health, LegId};
use serde::{Deserialize, Serialize};

/// When a write and a barrier are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// A write by both legs, a barrier by both legs.
    Sync,
    /// A write by the primary, a barrier by both legs.
    Flush,
    /// A write by the primary, a barrier by the primary.
    Async,
}

impl Protocol {
    /// The word used on the command line and in status.
    pub const fn word(self) -> &'static str {
        match self {
            Protocol::Sync => "sync",
            Protocol::Flush => "flush",
            Protocol::Async => "async",
        }
    }
}

/// What is recorded of one leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegRecord {
    /// What it is worth.
    pub health: Health,
    /// The generation up to which its content is a valid image of the device; 0 when unknown.
    pub consistent_at: u64,
    /// Whether the device is meant to follow it: false after a detach.
    pub attached: bool,
    /// Whether it failed a flush, and what it may have lost was not written to it again since: what it shows proves nothing.
    pub doubted: bool,
}

impl LegRecord {
    /// Whether the device goes on with what is on the disk: it follows it, and it has not failed.
    pub fn is_used(&self) -> bool {
        self.attached && !matches!(self.health, Health::Failed | Health::Absent)
    }
}

/// One record. Of two that are both intact, the one with the higher number decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Higher than that of any record written before, whether that write succeeded or not.
    pub number: u64,
    /// Raised before anything is acknowledged under a changed set of legs, roles or health.
    pub era: u64,
    /// The leg that is authoritative.
    pub primary: LegId,
    /// Both legs, by [`LegId::index`]; `None` where there never was one.
    pub legs: [Option<LegRecord>; 2],
    /// When writes and barriers are acknowledged.
    pub protocol: Protocol,
    /// No generation above this has been used.
    pub generation_ceiling: u64,
    /// Whether the marks of active regions and the dirty map say where the legs may differ; else it may be anywhere.
    pub tracked: bool,
    /// Whether the legs differ in places of which nobody has decided which leg is right.
    pub suspect: bool,
    /// Whether the device was stopped cleanly: everything drained, flushed and nobody serving it.
    pub clean: bool,
}

/// What the other leg is worth where the recorded primary is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandIn {
    /// It has every write that was acknowledged.
    Complete,
    /// It is what a disk may hold after a power cut, as of an earlier moment.
    Stale(Stale),
    /// It must not be served.
    Unfit(Unfit),
}

/// Of which moment a leg is an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// It has everything that was flushed; of later writes, nobody knows which.
    Flushed,
    /// It has everything before a barrier, and nobody knows before which.
    Barrier,
    /// It has everything up to this generation.
    Generation(u64),
    /// It differs in places of which nobody knows which leg is right.
    Suspect,
}

/// Why a leg must not be served in the primary's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// There never was another leg.
    None,
    /// It was detached: what was done with it since is not the device's.
    Detached,
    /// This says that it is no image of any moment.
    Health(Health),
    /// It failed a flush: it may lose what it shows.
    Doubted,
}

impl Record {
    /// How many generations one record makes available.
    pub const GENERATIONS: u64 = 1 << 24;

    /// The first record of a device that has one leg.
    pub const fn first(protocol: Protocol) -> Record {
        Record {
            number: 1,
            era: 1,
            primary: LegId::A,
            legs: [
                Some(LegRecord {
                    health: Health::InSync,
                    consistent_at: 0,
                    attached: true,
                    doubted: false,
                }),
                None,
            ],
            protocol,
            generation_ceiling: 0,
            tracked: false,
            suspect: false,
            clean: true,
        }
    }

    /// What the leg that is not the primary is worth, if the primary is missing and this record is the newest.
    ///
    /// *Why a leg in sync is complete* after a clean end: both legs were drained and flushed equal before that was recorded.
    /// In `sync` also after any other: nothing is acknowledged that is not on every leg that a record which may be in force
    /// calls in-sync. In `flush` that holds for barriers alone; in `async` for nothing but their order. A leg that is behind
    /// is as it was at its last flush, because a record says syncing before the first copy writes to it.
    pub fn stand_in(&self) -> StandIn {
        let Some(leg) = &self.legs[self.primary.other().index()] else {
            return StandIn::Unfit(Unfit::None);
        };
        if !leg.attached {
            return StandIn::Unfit(Unfit::Detached);
        }
        if leg.doubted {
            return StandIn::Unfit(Unfit::Doubted);
        }
        match (leg.health, self.protocol) {
            (Health::InSync, _) if self.suspect => StandIn::Stale(Stale::Suspect),
            (Health::InSync, _) if self.clean => StandIn::Complete,
            (Health::InSync, Protocol::Sync) => StandIn::Complete,
            (Health::InSync, Protocol::Flush) => StandIn::Stale(Stale::Flushed),
            (Health::InSync, Protocol::Async) => StandIn::Stale(Stale::Barrier),
            (Health::Behind, _) => StandIn::Stale(Stale::Generation(leg.consistent_at)),
            (health @ (Health::Syncing | Health::Failed | Health::Absent), _) => StandIn::Unfit(Unfit::Health(health)),
        }
    }

    /// The record to go on from ([`Record::opened`]) when the other leg stands in for a primary that is missing.
    ///
    /// The old primary may hold writes that are given up with this. It is not followed any more, so that nothing of it is
    /// overwritten unasked; nothing is known of where it differs, so it is compared whole if it ever comes back.
    ///
    /// # Panics
    /// If the other leg must not be served.
    pub fn promoted(&self) -> Record {
        assert!(
            !matches!(self.stand_in(), StandIn::Unfit(_)),
            "only an image of some moment is served"
        );
        let mut next = *self;
        next.primary = self.primary.other();
        next.tracked = false;
        next.clean = false;
        // Whatever is served now is what is right.
        next.suspect = false;
        for (leg, health) in [(next.primary, Health::InSync), (self.primary, Health::Absent)] {
            next.legs[leg.index()] = Some(LegRecord {
                health,
                consistent_at: 0,
                attached: leg == next.primary,
                doubted: self.legs[leg.index()].is_some_and(|leg| leg.doubted),
            });
        }
        next
    }

    /// The record to make durable before a device is served on from this one. `present` says, by [`LegId::index`],
    /// which legs are there and claimed; the primary must be.
    ///
    /// After an unclean end nothing says what of the last writes reached the secondary, so it is recorded as syncing
    /// before anything is served, unless it was not in sync anyway. A leg that is not there is absent.
    pub fn opened(&self, present: [bool; 2]) -> Record {
        let mut next = *self;
        next.number += 1;
        next.era += 1;
        next.clean = false;
        next.generation_ceiling += Record::GENERATIONS;
        let secondary = self.primary.other().index();
        if let Some(leg) = &mut next.legs[secondary] {
            leg.health = match leg.health {
                _ if !leg.attached => leg.health,
                Health::Failed => Health::Failed,
                _ if !present[secondary] => Health::Absent,
                Health::InSync if self.clean => Health::InSync,
                Health::InSync | Health::Behind | Health::Syncing | Health::Absent => Health::Syncing,
            };
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(health: Health, protocol: Protocol, clean: bool) -> Record {
        let leg = |health, consistent_at| LegRecord {
            health,
            consistent_at,
            attached: true,
            doubted: false,
        };
        Record {
            legs: [Some(leg(Health::InSync, 0)), Some(leg(health, 41))],
            protocol,
            clean,
            tracked: true,
            suspect: false,
            number: 7,
            era: 5,
            generation_ceiling: 3 * Record::GENERATIONS,
            ..Record::first(protocol)
        }
    }

    #[test]
    fn only_a_leg_that_is_an_image_of_some_moment_stands_in_for_the_primary() {
        let protocols = [Protocol::Sync, Protocol::Flush, Protocol::Async];
        for (protocol, clean) in protocols.into_iter().flat_map(|it| [(it, false), (it, true)]) {
            let of = |health| record(health, protocol, clean).stand_in();
            for health in [Health::Syncing, Health::Failed, Health::Absent] {
                assert_eq!(of(health), StandIn::Unfit(Unfit::Health(health)));
            }
            assert_eq!(of(Health::Behind), StandIn::Stale(Stale::Generation(41)));
            let in_sync = match (clean, protocol) {
                (true, _) | (false, Protocol::Sync) => StandIn::Complete,
                (false, Protocol::Flush) => StandIn::Stale(Stale::Flushed),
                (false, Protocol::Async) => StandIn::Stale(Stale::Barrier),
            };
            assert_eq!(of(Health::InSync), in_sync, "{protocol:?}, clean: {clean}");
        }
        let mut detached = record(Health::Behind, Protocol::Flush, true);
        detached.legs[1].as_mut().expect("it has two").attached = false;
        assert_eq!(detached.stand_in(), StandIn::Unfit(Unfit::Detached));
        let mut doubted = record(Health::Behind, Protocol::Flush, true);
        doubted.legs[1].as_mut().expect("it has two").doubted = true;
        assert_eq!(doubted.stand_in(), StandIn::Unfit(Unfit::Doubted));
        assert_eq!(Record::first(Protocol::Sync).stand_in(), StandIn::Unfit(Unfit::None));
    }

    #[test]
    fn a_primary_that_was_given_up_is_never_followed_unasked() {
        let mut old = record(Health::Behind, Protocol::Flush, false);
        old.legs[0].as_mut().expect("it has two").doubted = true;
        let new = old.promoted();
        let [a, b] = new.legs.map(|leg| leg.expect("it has two"));
        assert_eq!((new.primary, b.health, b.attached), (LegId::B, Health::InSync, true));
        assert_eq!((a.health, a.attached), (Health::Absent, false));
        assert!(
            !new.tracked && !new.clean && a.doubted,
            "it is known what it is worth when it comes back"
        );
        // Also when its disk is there again at a later start.
        let opened = new.opened([true, true]);
        assert_eq!(opened.legs[0], Some(a));
        assert!(opened.number > old.number && opened.era > old.era);
        assert!(opened.generation_ceiling > old.generation_ceiling);
    }

    #[test]
    #[should_panic(expected = "an image of some moment")]
    fn a_mixture_is_not_promoted() {
        record(Health::Syncing, Protocol::Sync, true).promoted();
    }
}
