//! What the core wants done, and what it tells those who asked.

use super::geometry::Range;
use super::layout::Buf;
use super::leg::LegId;
use super::record::Record;
use super::request::{Errno, Tag};
use super::signature::{Signature, Source};
use super::signatures::NoteId;
use super::suspects::Suspect;
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

    /// What is in either.
    pub fn or(&self, other: &BlockMask) -> BlockMask {
        BlockMask(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    /// What is in this one alone.
    pub fn without(&self, other: &BlockMask) -> BlockMask {
        BlockMask(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }
}

/// An entry of the signature tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// Comes back with the answer.
    pub id: NoteId,
    /// Of which extent.
    pub extent: u64,
    /// What it is known by.
    pub signature: Signature,
    /// The newest generation that it covers.
    pub generation: u64,
    /// By [`LegId::index`]: where the signature comes from; `None`: it is not noted in the table of this leg.
    pub sources: [Option<Source>; 2],
}

/// The number of a [`Consult`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsultId(pub u32);

/// What do the tables say of an extent that was read?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consult {
    /// Comes back with the answer.
    pub id: ConsultId,
    /// Which extent.
    pub extent: u64,
    /// By [`LegId::index`]: of what was read there; `None`: the leg was not read.
    pub read: [Option<Signature>; 2],
}

/// What the entry of a table says of what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Where the entry comes from.
    pub source: Source,
    /// By [`LegId::index`]: what was read there is what the entry says.
    pub equals: [bool; 2],
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
    /// Forget what is stale in the signature tables, as [`super::Mirror::forgetting`] has it now, durably, and everything that
    /// was noted there before as well; then make the dirty map durable, as [`super::Mirror::unsynced`] has it now; answer with
    /// `handle_saved`. At most one is under way.
    Save,
    /// Note in the signature tables what extent this is the signature of; answer with `handle_noted`, whatever becomes of it: a
    /// table in which nothing can be noted must say nothing. Notes, [`Effect::Forget`], [`Effect::Save`], [`Effect::Recall`] and
    /// [`Effect::Match`] take effect in the order in which they are polled.
    Note(Note),
    /// Empty the signature table of this leg: it has another disk, or one that may have changed. Answer with `handle_emptied`,
    /// whatever becomes of it: if that cannot be done, no later [`Effect::Save`] may succeed.
    Forget(LegId),
    /// Look up the signatures of a digest, in the table of this leg: of the extents that [`super::Mirror::recallable`] has now.
    /// Answer with `handle_recalled`.
    Recall(LegId),
    /// Look up what the tables say of an extent that was read; answer with `handle_consulted`.
    Consult(Consult),
    /// Make durable which places are suspect, as [`super::Mirror::suspects`] has them now; answer with `handle_suspected`. At most
    /// one is under way.
    Suspects,
    /// Look up which extents have the same signature in both tables, and which in that of this leg alone, of those that
    /// [`super::Mirror::matchable`] has now of each; answer with `handle_matched`.
    Match(LegId),
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
        /// Whether the digest that is under way is to have it too.
        digest: bool,
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

/// Where the hashes of a digest come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// All from the signature table.
    Recorded,
    /// All from the disk.
    ReadBack,
    /// From both.
    Mixed,
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
    Difference(Suspect),
    /// Bytes were found to differ where nobody had asked.
    Strayed(Suspect),
    /// What differed is mended on this leg, durably.
    Mended {
        /// The leg.
        leg: LegId,
        /// Where.
        range: Range,
    },
    /// A verify has walked the whole device.
    Verified {
        /// Bytes compared; less than the device's size if something could not be read or the walk was broken off.
        bytes_compared: u64,
        /// Whether everything was compared, and what was to be mended is.
        complete: bool,
        /// Bytes mended.
        repaired: u64,
    },
    /// All that was suspect has been looked at again ([`super::Mirror::recheck`]).
    Rechecked {
        /// Bytes that are suspect now.
        suspect: u64,
    },
    /// Every extent's hash belongs to the device's content at this generation.
    Digested {
        /// The generation.
        generation: u64,
        /// The leg that was read.
        leg: LegId,
        /// Whether that was reached.
        complete: bool,
        /// Where the hashes come from.
        known: Known,
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
