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
    /// Whether the device was stopped cleanly: everything drained, flushed and nobody serving it.
    pub clean: bool,
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
            clean: true,
        }
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
