//! What a leg is and can be.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The identity of a leg: it never changes, its role does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LegId {
    /// The leg the device was created with.
    A,
    /// The leg attached to it.
    B,
}

impl LegId {
    /// Both legs, in order.
    pub const ALL: [LegId; 2] = [LegId::A, LegId::B];

    /// 0 for `a`, 1 for `b`.
    pub const fn index(self) -> usize {
        match self {
            LegId::A => 0,
            LegId::B => 1,
        }
    }

    /// The other one.
    pub const fn other(self) -> LegId {
        match self {
            LegId::A => LegId::B,
            LegId::B => LegId::A,
        }
    }
}

impl fmt::Display for LegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LegId::A => "a",
            LegId::B => "b",
        })
    }
}

/// What a leg is worth. Only `InSync` counts for a barrier and may become primary unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Follows every write in order; equal to the primary but for lag.
    InSync,
    /// Stopped following, nothing copied since: an image of the device as of a known generation.
    Behind,
    /// A copy is writing it: a mixture, not consistent.
    Syncing,
    /// Answered with an error; its content is unknown.
    Failed,
    /// Not there.
    Absent,
}

impl Health {
    /// The word used in status and messages.
    pub const fn word(self) -> &'static str {
        match self {
            Health::InSync => "in-sync",
            Health::Behind => "behind",
            Health::Syncing => "syncing",
            Health::Failed => "failed",
            Health::Absent => "absent",
        }
    }
}
