//! What a device looks like: the object of `twinblk status NAME --json`.
//!
//! [`gather`] makes it from what a daemon or a record says; [`Outlook`] is what a wait goes by.

pub mod gather;
mod outlook;
mod text;

pub use gather::{Facts, LegFacts};
pub use outlook::Outlook;
pub use text::{rfc3339, uuid_text};

use super::settings::Settings;
use crate::core::{Health, IoCounts, LegId, Protocol};
use crate::table::LegIdentity;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A device. Scripts depend on it: fields are added, never renamed or removed. What only a running daemon knows is null
/// when none runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The device's name.
    pub name: String,
    /// Its identity, fixed when it was created.
    pub uuid: String,
    /// The block device; null when it is not served.
    pub device: Option<PathBuf>,
    /// Its size.
    pub size_bytes: u64,
    /// Its logical block size, in bytes.
    #[serde(default)]
    pub logical_block_size: u32,
    /// When writes and barriers are acknowledged.
    pub protocol: Protocol,
    /// Raised with every change of legs, roles or health.
    pub era: u64,
    /// All in one word.
    pub state: State,
    /// The legs, `a` first.
    pub legs: Vec<LegStatus>,
    /// Generations; null without a daemon.
    pub counters: Option<Counters>,
    /// Bytes of grains on which the legs may differ.
    pub dirty_bytes: u64,
    /// The resync that runs, or else the verify or digest that runs.
    pub resync: Option<Walk>,
    /// The figures of the last resync.
    #[serde(default)]
    pub last_resync: Option<Walk>,
    /// The figures of the last verify or digest.
    #[serde(default)]
    pub last_check: Option<Walk>,
    /// The process that serves the device; null without one.
    pub daemon: Option<Daemon>,
    /// What the driver says of the device.
    pub driver_state: DriverState,
    /// Guest requests since the daemon began; null without one.
    pub io: Option<Io>,
    /// What is known of the legs by signatures; null without a daemon.
    #[serde(default)]
    pub signatures: Option<Signatures>,
    /// The number of the record in force.
    #[serde(default)]
    pub record_number: u64,
    /// Whether records cannot be written at the moment.
    #[serde(default)]
    pub record_failing: bool,
    /// Bytes of payloads that wait for the secondary.
    #[serde(default)]
    pub pool_used_bytes: u64,
    /// Whether the state directory says where the disks may differ after a crash; else everything is compared then.
    #[serde(default)]
    pub tracked: bool,
    /// Whether background work is paused.
    #[serde(default)]
    pub paused: bool,
    /// Whether a secondary that is not in sync will become so without anybody's help.
    #[serde(default)]
    pub comes_by_itself: bool,
    /// What background work keeps to; null: no limit.
    #[serde(default)]
    pub rate_limit_bytes_per_s: Option<u64>,
    /// The settings in force, or recorded.
    #[serde(default)]
    pub settings: Option<Settings>,
}

impl Status {
    /// The authoritative leg.
    pub fn primary(&self) -> Option<&LegStatus> {
        self.legs.iter().find(|leg| leg.role == Role::Primary)
    }

    /// The leg that follows or followed.
    pub fn secondary(&self) -> Option<&LegStatus> {
        self.legs.iter().find(|leg| leg.role == Role::Secondary)
    }
}

/// A device in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// One leg, and no other is to be followed.
    Single,
    /// A secondary is being made equal, or what went wrong on one that is in sync is being copied again.
    Syncing,
    /// Both legs are in sync, and nothing is dirty. The newest writes may be on their way to the secondary.
    Mirrored,
    /// There ought to be a secondary in sync, and there is not.
    Degraded,
    /// The primary does not serve, or the daemon died.
    Failed,
    /// Stopped cleanly.
    Stopped,
}

impl State {
    /// The word used in JSON and on the terminal.
    pub const fn word(self) -> &'static str {
        match self {
            State::Single => "single",
            State::Syncing => "syncing",
            State::Mirrored => "mirrored",
            State::Degraded => "degraded",
            State::Failed => "failed",
            State::Stopped => "stopped",
        }
    }
}

/// A leg.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegStatus {
    /// Its identity within the device; never changes.
    pub id: LegId,
    /// Its disk.
    pub path: PathBuf,
    /// Whether it is authoritative or follows.
    pub role: Role,
    /// What it is worth.
    pub health: Health,
    /// Whether its content is a valid image of the device at some generation.
    pub consistent: bool,
    /// At which generation; null when it is not consistent.
    pub consistent_at_generation: Option<u64>,
    /// Bytes written by the guest that it does not hold yet.
    pub lag_bytes: u64,
    /// Places that nothing proves right.
    pub suspect: Vec<Place>,
    /// Whether the device is meant to follow it; false after a detach.
    #[serde(default)]
    pub attached: bool,
    /// Whether somebody still holds its disk, and the daemon takes it by itself when it is free.
    #[serde(default)]
    pub awaited: bool,
    /// Since when it has not been in sync: RFC 3339, UTC; null when it is, or has never been.
    #[serde(default)]
    pub not_in_sync_since: Option<String>,
    /// Age of the oldest thing that it lacks, in ms: 0 when it lacks nothing; null where nobody can say, and without a daemon.
    #[serde(default)]
    pub lag_ms: Option<u64>,
    /// Whether what says what its disk holds is saved and wiped.
    #[serde(default)]
    pub retired: bool,
    /// What the disk is known by.
    #[serde(default)]
    pub identity: Option<LegIdentity>,
}

/// Which part a leg plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Authoritative.
    Primary,
    /// Follows.
    Secondary,
}

impl Role {
    /// What `leg` is when `primary` is authoritative.
    pub fn of(leg: LegId, primary: LegId) -> Role {
        if leg == primary { Role::Primary } else { Role::Secondary }
    }

    /// The word used in JSON and on the terminal.
    pub const fn word(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Secondary => "secondary",
        }
    }
}

/// A place on the device: `{"offset":0,"length":4096}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// The generations that matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// G: the newest.
    pub source_generation: u64,
    /// M: all up to this are on the secondary.
    pub writes_mirrored: u64,
    /// R: what the newest barrier must reach.
    pub flush_request: u64,
    /// F: M as it was when the newest completed flush of the secondary was issued.
    pub writes_flushed: u64,
}

/// Figures of a walk over the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    /// What it does.
    pub kind: WalkKind,
    /// Bytes that it is about.
    pub bytes_total: u64,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes read, of both legs together.
    pub bytes_read: u64,
    /// Bytes written to the secondary.
    pub bytes_written: u64,
    /// Bytes found equal.
    pub bytes_matched: u64,
    /// The average since it began.
    pub rate_bytes_per_s: u64,
    /// Seconds left at that rate; null when that cannot be said, 0 when it has ended.
    pub eta_s: Option<u64>,
    /// Seconds it has taken.
    #[serde(default)]
    pub elapsed_s: u64,
}

/// What a walk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WalkKind {
    /// Copies or compares everything.
    Full,
    /// Copies what is known to be dirty.
    Dirty,
    /// Copies what differs by signature.
    Signature,
    /// Makes regions equal that were active when a daemon died.
    Reconcile,
    /// Compares and reports.
    Verify,
    /// Hashes.
    Digest,
}

impl WalkKind {
    /// The word used in JSON and on the terminal.
    pub const fn word(self) -> &'static str {
        match self {
            WalkKind::Full => "full",
            WalkKind::Dirty => "dirty",
            WalkKind::Signature => "signature",
            WalkKind::Reconcile => "reconcile",
            WalkKind::Verify => "verify",
            WalkKind::Digest => "digest",
        }
    }
}

/// The process that serves a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its number.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it began: RFC 3339, UTC (see [`rfc3339`]).
    pub started: String,
}

/// What is known of the legs by signatures; one object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signatures {
    /// Bytes that were written and not hashed since, by whole extents, or of which nobody knows what they are after an unclean end: they are
    /// hashed when they have been quiet for a while.
    pub unsigned_bytes: u64,
    /// How often an extent was left because it was still being written: each time its hash would have been outdated at once.
    pub hot_skipped: u64,
}

/// What the driver says of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverState {
    /// It is served.
    Live,
    /// It waits for a daemon; so does the guest.
    Quiesced,
    /// It is there and answers with errors.
    Dead,
    /// There is none.
    Absent,
}

impl DriverState {
    /// The word used in JSON and on the terminal.
    pub const fn word(self) -> &'static str {
        match self {
            DriverState::Live => "live",
            DriverState::Quiesced => "quiesced",
            DriverState::Dead => "dead",
            DriverState::Absent => "absent",
        }
    }
}

/// Guest requests answered, and what they took; one object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// By kind.
    #[serde(flatten)]
    pub guest: IoCounts,
    /// Durable writes to the state directory.
    pub metadata_writes: u64,
}

#[cfg(test)]
mod tests;
