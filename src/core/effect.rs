//! What the core wants done, and what it tells those who asked.

use super::geometry::Range;
use super::layout::Buf;
use super::leg::LegId;
use super::record::Record;
use super::request::{Errno, Tag};
use super::time::{Span, Time};

/// The core's name for an operation on a leg; below 2^48, and not used again before its completion was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId(pub u64);

/// A slot of the background walk (copy, compare, verify, digest).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WalkId(pub u16);

/// What a leg is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the range into the buffer.
    Read,
    /// Write the buffer to the range; with `fua`, durably before the completion.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Make every operation that completed before durable. Has no range and no buffer.
    Flush,
    /// Make the range read as zeroes, by whatever means the leg has, in the end by writing zeroes; space may be given
    /// back only with `unmap`. Has no buffer.
    Zero {
        /// Whether the range may be unmapped.
        unmap: bool,
    },
}

/// An operation for a leg. Its buffer belongs to it until its completion was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegOp {
    /// Comes back with the completion.
    pub id: OpId,
    /// Which leg.
    pub leg: LegId,
    /// What to do.
    pub action: Action,
    /// Where on the device.
    pub range: Range,
    /// The bytes, `range.len` of them; meaningless for [`Action::Flush`] and [`Action::Zero`].
    pub buf: Buf,
}

/// Which blocks of an extent differ: bit `i` is the `i`th [`BlockMask::BLOCK`] bytes of the compared range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockMask(pub [u64; 4]);

impl BlockMask {
    /// The unit in which two extents are compared, in bytes. 256 of them cover the default extent; a larger extent is
    /// walked in pieces of [`BlockMask::SPAN`].
    pub const BLOCK: u64 = 4096;
    /// The most bytes that one mask covers.
    pub const SPAN: u64 = 256 * BlockMask::BLOCK;

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// Whether block `i` differs.
    pub fn contains(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 != 0
    }

    /// Note that block `i` differs.
    pub fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }
}

/// Something to carry out. Effects are to be begun in the order in which they are polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start an operation on a leg; answer with `handle_completion`.
    Submit(LegOp),
    /// Copy `len` bytes of the arena now, before any later effect.
    Keep {
        /// Source.
        from: Buf,
        /// Destination.
        to: Buf,
        /// Bytes.
        len: u32,
    },
    /// Answer the guest. For a read the data lies in `buf`. `next` is where the tag's next payload is to be put.
    Complete {
        /// Which request.
        tag: Tag,
        /// Success, or the error the guest sees.
        result: Result<(), Errno>,
        /// Where the data of a read lies.
        buf: Buf,
        /// The buffer of the tag's next request (equal to `buf` but after an exchange).
        next: Buf,
    },
    /// Make this record durable; answer with `handle_record`. At most one is under way.
    Record(Record),
    /// Make the marks of active regions durable, as [`super::Mirror::marks`] has them now; answer with `handle_marked`. At
    /// most one is under way.
    Mark,
    /// Make the dirty map durable, as [`super::Mirror::unsynced`] has it now; answer with `handle_saved`. At most one is
    /// under way.
    Save,
    /// Compare `len` bytes at the two places; answer with `handle_compared`.
    Compare {
        /// Which walk slot.
        walk: WalkId,
        /// Bytes of one leg.
        left: Buf,
        /// Bytes of the other.
        right: Buf,
        /// How many.
        len: u32,
    },
    /// Hash the bytes of this range of the device; answer with `handle_hashed`.
    Hash {
        /// Which walk slot.
        walk: WalkId,
        /// Where on the device: one whole extent (the last may be partial).
        range: Range,
        /// The bytes.
        buf: Buf,
    },
    /// Back bytes `start..start+len` of the arena with (locked) memory, or give that memory back. Takes effect before
    /// any later effect; a failure to lock is logged and not fatal.
    Populate {
        /// Offset in the arena, in bytes.
        start: u64,
        /// Bytes.
        len: u64,
        /// Whether the memory is needed from now on, or no longer.
        wanted: bool,
    },
    /// No operation on this leg is left, and none will come until it is attached again: let it go.
    Release(LegId),
    /// Tell whoever asked or watches.
    Notify(Event),
}

/// What an administrator may be waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A leg's health is now this, and the record says so.
    Health {
        /// Which leg.
        leg: LegId,
        /// What it is worth now.
        health: super::leg::Health,
    },
    /// An operation on a leg ended in an error.
    LegError {
        /// Which leg.
        leg: LegId,
        /// What was done.
        action: Action,
        /// Where.
        range: Range,
        /// Which error.
        error: Errno,
    },
    /// Whether the state directory says where the legs may differ after a crash: if not, everything is compared then.
    Tracked(bool),
    /// The leg follows no more; [`Effect::Release`] comes with it.
    Detached(LegId),
    /// Roles are exchanged, durably.
    Switched {
        /// The old primary.
        from: LegId,
        /// The new primary.
        to: LegId,
        /// The longest time that a request was held because of it.
        pause: Span,
        /// The generation at which it happened.
        generation: u64,
        /// The era that began with it.
        era: u64,
    },
    /// The switch did not fit its pause (or could not be recorded); roles are as before and the guest goes on.
    SwitchGivenUp {
        /// How long requests were held.
        pause: Span,
    },
    /// The primary failed, and the guest is moved to the other leg, durably.
    FailedOver {
        /// The leg that failed.
        from: LegId,
        /// The new primary.
        to: LegId,
        /// The longest time that a request was held because of it.
        pause: Span,
        /// The generation at which it happened.
        generation: u64,
        /// The era that began with it.
        era: u64,
    },
    /// What the primary could not read was read from the secondary and written to the primary anew.
    Rewritten(Range),
    /// A resync ended: nothing is dirty, or it cannot go on.
    ResyncEnded {
        /// Whether the leg is now in sync.
        in_sync: bool,
    },
    /// A verify found bytes that differ.
    Difference(Range),
    /// A verify has walked the whole device.
    Verified {
        /// Bytes compared; less than the device's size if something could not be read or the walk was broken off.
        bytes_compared: u64,
        /// Whether everything was compared.
        complete: bool,
    },
    /// Every extent's hash belongs to the device's content at this generation.
    Digested {
        /// The generation.
        generation: u64,
        /// The leg that was read.
        leg: LegId,
        /// Whether that was reached.
        complete: bool,
    },
    /// The protocol is now as asked, durably; or it could not be recorded and is as before.
    ProtocolSet {
        /// Whether it is as asked.
        done: bool,
    },
    /// Everything is drained and flushed, and recorded as clean unless a flush failed; no further effect will come.
    Stopped {
        /// Whether the record says clean.
        clean: bool,
    },
    /// As [`Event::Stopped`], and the guest waits: what has arrived and is not answered is for the next core. If it is not
    /// clean, the record found may still say so, rightly.
    HandedOver {
        /// Whether the record says clean.
        clean: bool,
        /// Since when requests have been held.
        since: Time,
    },
    /// The device could not be handed over in time, or something went wrong on the way; the guest goes on as before.
    HandOverGivenUp {
        /// How long requests were held.
        pause: Span,
        /// By [`LegId::index`]: whether something on the leg had not ended.
        unfinished: [bool; 2],
    },
}
