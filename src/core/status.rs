//! What a core says of itself.

use super::leg::{Health, LegId};
use super::record::{Protocol, Record};
use super::time::Time;
use serde::{Deserialize, Serialize};

/// Figures of the running or the last background walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkStatus {
    /// What it does.
    pub kind: WalkKind,
    /// Whether it is under way.
    pub running: bool,
    /// Bytes it is about.
    pub bytes_total: u64,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes read, of both legs together.
    pub bytes_read: u64,
    /// Bytes written to the secondary.
    pub bytes_written: u64,
    /// Bytes compared and found equal.
    pub bytes_matched: u64,
    /// When it began.
    pub began: Time,
    /// When it ended, if it has.
    pub ended: Time,
}

/// Kinds of background walks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WalkKind {
    /// None has run.
    #[default]
    None,
    /// Copies or compares everything.
    Full,
    /// Copies what is dirty.
    Dirty,
    /// Compares signatures, and then what they do not prove equal.
    Signature,
    /// Compares what a crash left in doubt.
    Reconcile,
    /// Compares and reports.
    Verify,
    /// Hashes.
    Digest,
}

/// What one leg looks like now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegStatus {
    /// What it is worth.
    pub health: Health,
    /// Whether it is followed or meant to be.
    pub attached: bool,
    /// The generation up to which it is a valid image.
    pub consistent_at: u64,
    /// Bytes written by the guest that it does not hold yet.
    pub lag_bytes: u64,
    /// When the oldest of them was asked for, if there are any.
    pub lacking_since: Option<Time>,
}

/// What the device looks like now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The record in force.
    pub record: Record,
    /// The leg that the guest is served from.
    pub primary: LegId,
    /// When writes and barriers are acknowledged.
    pub protocol: Protocol,
    /// By [`LegId::index`].
    pub legs: [Option<LegStatus>; 2],
    /// G: the newest generation.
    pub source_generation: u64,
    /// M: all generations up to this are on the secondary.
    pub writes_mirrored: u64,
    /// R: what the newest barrier must reach.
    pub flush_request: u64,
    /// F: M as of the newest completed flush of the secondary, taken when it was issued.
    pub writes_flushed: u64,
    /// Whether the secondary is in sync, so that M and F move.
    pub counting: bool,
    /// Bytes of grains that are dirty.
    pub dirty_bytes: u64,
    /// Bytes of the pool in use.
    pub pool_used: u64,
    /// Size of the pool while there is a secondary, in bytes.
    pub pool_bytes: u64,
    /// The running or last resync.
    pub resync: WalkStatus,
    /// The running or last verify, recheck or digest.
    pub check: WalkStatus,
    /// Whether what is suspect is being looked at again, or is to be.
    pub rechecking: bool,
    /// Bytes of extents whose signature is not known of a leg that is read, because they were written since.
    pub unsigned_bytes: u64,
    /// How often an extent was not hashed because it was being written.
    pub hot_skipped: u64,
    /// Whether background work is paused.
    pub paused: bool,
    /// Bytes per second that background work keeps to; 0: no limit.
    pub rate: u64,
    /// Whether a secondary that is not in sync will become so without anybody's help.
    pub comes_by_itself: bool,
    /// Whether the state directory says where the legs may differ after a crash.
    pub tracked: bool,
    /// Whether records cannot be written at the moment.
    pub record_failing: bool,
    /// Guest requests by kind, with their bytes.
    pub io: IoCounts,
}

/// Guest requests answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoCounts {
    /// Reads.
    pub reads: u64,
    /// Writes and write-zeroes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
}
