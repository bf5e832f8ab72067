//! Verify and digest: walks that write nothing. What is compared unasked is in `recheck`.
//!
//! A verify's piece stands in the order of both legs, so both reads see the same point in the order of arrival: lag is never
//! taken for difference, and a difference is one. It is news only where nobody knew: what was dirty at any moment from the
//! piece's admission to its verdict is being mended, and is not reported. *Why the verdict can tell:* a dirty bit goes away
//! only when a copy is admitted, and that copy stands behind every piece under way, which therefore saw the range unmended:
//! each of them is told then. A copy that was admitted before the piece either has mended the range before the piece reads
//! it, or has failed by then, and the range is dirty, or listed as failed, again.
//!
//! A digest wants every extent's hash to belong to one moment. A hash is *fresh* until a mutation of its extent is admitted.
//! Extents that are not fresh are read again, round by round; when few are left, mutations are held for at most the pause
//! that was allowed. It is reached in a moment when all are fresh: then every mutation admitted so far is in its hash.

use super::Mirror;
use super::drain::{DrainFlush, HOLD_DIGEST};
use super::follow::Follow;
use super::recheck::Asked;
use super::walk::{Job, Slot};
use crate::core::bits::Bits;
use crate::core::breaks::{self, Break};
use crate::core::config::Repair;
use crate::core::effect::{BlockMask, Effect, Event, Known};
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::status::{WalkKind, WalkStatus};
use crate::core::time::{Span, Time};

/// Extents that may be read while mutations are held.
const HELD_EXTENTS: u64 = 64;
/// Places to be mended, or found equal, at which a verify pauses, and mends them, or has them suspect no more.
const MANY: usize = 120;
/// In about so many steps a device all of which is suspect ceases to be.
const CLEARINGS: u64 = 128;
/// Questions to the tables that a verify leaves open at once.
pub(super) const QUESTIONS: usize = 4;
/// Rounds after which a digest gives up.
const ROUNDS: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Verify(Repair),
    Recheck,
    Digest { leg: LegId, max_pause: Span },
}

pub(super) struct Check {
    pub(super) purpose: Option<Purpose>,
    /// What waits for a recheck that is broken off.
    pub(super) waiting: Option<Asked>,
    /// When a recheck is to begin.
    pub(super) recheck_at: Option<Time>,
    pub(super) status: WalkStatus,
    pub(super) cursor: u64,
    /// Extents whose hash is fresh. Used by a digest only.
    fresh: Bits,
    stale: u64,
    /// The table is being asked for hashes: `fresh` says which of them would be.
    recalling: bool,
    /// It has not answered yet, whoever asked.
    recall_pending: bool,
    /// Extents whose hash the table had.
    recalled: u64,
    /// Whatever the table says is not asked, and not replaced.
    pub(super) reads_back: bool,
    rounds: u32,
    held_at: Option<Time>,
    /// Wind up without a result.
    pub(super) broken: bool,
    /// Something could not be read, or not be mended.
    incomplete: bool,
    /// Of a verify: ranges to be read again, and how often they have been.
    pub(super) again: Vec<(Range, u8)>,
    /// Of a verify: what was suspect and is equal, if it is so durably.
    pub(super) equal: Vec<Range>,
    /// What is being mended.
    pub(super) mending: Option<Mending>,
    /// Something could not be mended: nothing more is.
    pub(super) mend_failed: bool,
    /// By leg: a flush of what was mended; it may come back after the verify was broken off.
    pub(super) mend_flushes: [Option<DrainFlush>; 2],
    /// Bytes mended.
    pub(super) repaired: u64,
}

/// A round of mending; see `repair`.
pub(super) struct Mending {
    pub(super) cursor: u64,
    /// Nothing is to be mended: it is about what was found equal.
    pub(super) clears_only: bool,
    /// What was written over, and where.
    pub(super) pieces: Vec<(LegId, Range)>,
    /// It was flushed, or is being.
    pub(super) flushed: bool,
}

impl Mending {
    pub(super) fn new(clears_only: bool) -> Mending {
        Mending {
            cursor: 0,
            clears_only,
            pieces: Vec::new(),
            flushed: false,
        }
    }
}

impl Check {
    pub(super) fn new() -> Check {
        Check {
            purpose: None,
            waiting: None,
            recheck_at: None,
            status: WalkStatus::default(),
            cursor: 0,
            fresh: Bits::none(0),
            stale: 0,
            recalling: false,
            recall_pending: false,
            recalled: 0,
            reads_back: false,
            rounds: 0,
            held_at: None,
            broken: false,
            incomplete: false,
            again: Vec::new(),
            equal: Vec::new(),
            mending: None,
            mend_failed: false,
            mend_flushes: [None; 2],
            repaired: 0,
        }
    }

    /// What the verify that runs does about what differs.
    pub(super) fn repair(&self) -> Repair {
        match self.purpose {
            Some(Purpose::Verify(repair)) => repair,
            Some(Purpose::Recheck | Purpose::Digest { .. }) | None => Repair::No,
        }
    }

    /// Whether a flush of what was mended is under way.
    pub(super) fn is_flushing(&self) -> bool {
        self.mend_flushes.iter().any(Option::is_some)
    }

    /// Since when a flush of what was mended has been under way on this leg.
    pub(super) fn mend_flush_on(&self, leg: LegId) -> Option<Time> {
        self.mend_flushes[leg.index()].map(|flush| flush.issued_at)
    }

    pub(super) fn is_active(&self) -> bool {
        self.purpose.is_some()
    }

    pub(super) fn status(&self) -> WalkStatus {
        self.status
    }

    pub(super) fn status_mut(&mut self) -> &mut WalkStatus {
        &mut self.status
    }

    /// Whether a table that was asked for hashes has not answered yet.
    pub(super) fn is_recall_pending(&self) -> bool {
        self.recall_pending
    }
}

impl Mirror {
    pub(super) fn begin_verify(&mut self, repair: Repair) {
        // What it mends is what it has found itself.
        self.suspects.forget_verdicts();
        self.begin_check(Purpose::Verify(repair), WalkKind::Verify);
    }

    /// The most that a verify's piece covers, from a multiple of it on.
    pub(super) fn piece_bytes(&self) -> u64 {
        BlockMask::SPAN.min(self.config.layout.copy_bytes as u64)
    }

    pub(super) fn begin_digest(&mut self, leg: LegId, max_pause: Span, read_back: bool) {
        self.begin_check(Purpose::Digest { leg, max_pause }, WalkKind::Digest);
        let extents = self.config.geometry.extents();
        self.check.fresh = match read_back {
            true => Bits::none(extents),
            false => self.signatures.trusted(leg).clone(),
        };
        self.check.stale = extents - self.check.fresh.count();
        self.check.recalled = 0;
        self.check.reads_back = read_back;
        self.check.recalling = self.check.stale < extents;
        if self.check.recalling {
            self.check.recall_pending = true;
            self.effects.push_back(Effect::Recall(leg));
        }
    }

    /// The extents whose hash a digest looks up.
    pub fn recallable(&self) -> &Bits {
        &self.check.fresh
    }

    /// Of these extents the table had the hash.
    pub fn handle_recalled(&mut self, now: Time, recalled: &Bits) {
        self.now = now;
        self.check.recall_pending = false;
        if std::mem::take(&mut self.check.recalling) {
            // What was written since it was asked is not fresh any more, whatever the table said.
            match breaks::on(Break::RecalledOutdated) {
                true => self.check.fresh = recalled.clone(),
                false => self.check.fresh.intersect(recalled),
            }
            self.check.recalled = self.check.fresh.count();
            self.check.stale = self.config.geometry.extents() - self.check.recalled;
            let extent = u64::from(self.config.geometry.extent);
            self.check.status.bytes_done = (self.check.recalled * extent).min(self.config.geometry.size);
        }
        self.pump();
    }

    pub(super) fn begin_check(&mut self, purpose: Purpose, kind: WalkKind) {
        self.check.purpose = Some(purpose);
        self.check.cursor = 0;
        self.check.rounds = 0;
        self.check.broken = false;
        self.check.incomplete = false;
        self.check.again.clear();
        self.check.equal.clear();
        self.check.mending = None;
        self.check.mend_failed = false;
        self.check.repaired = 0;
        self.check.status = WalkStatus {
            kind,
            running: true,
            bytes_total: self.config.geometry.size,
            began: self.now,
            ..WalkStatus::default()
        };
        self.want_copies(true);
    }

    pub(super) fn pump_check(&mut self) {
        match self.check.purpose {
            Some(Purpose::Verify(repair)) => self.pump_verify(repair),
            Some(Purpose::Recheck) => self.pump_verify(Repair::No),
            Some(Purpose::Digest { leg, max_pause }) => self.pump_digest(leg, max_pause),
            None => {}
        }
    }

    fn pump_verify(&mut self, repair: Repair) {
        loop {
            let many = (self.to_be_mended(repair) >= MANY || self.is_much_equal()) && !self.check.mend_failed;
            if !self.check.broken && !many && !self.start_verifying() {
                return;
            }
            if !self.check_is_idle() {
                return;
            }
            if self.check.broken {
                break;
            }
            let through = self.check.cursor >= self.config.geometry.size && self.check.again.is_empty();
            if (many || through) && !self.pump_mending(repair) {
                return;
            }
            if through && self.check.again.is_empty() {
                break;
            }
        }
        if !self.check.broken && !self.are_suspects_settled() {
            return;
        }
        if self.check.is_recheck() {
            self.end_recheck();
            return;
        }
        let complete = !self.check.broken && !self.check.incomplete;
        let (bytes_compared, repaired) = (
            self.check.status.bytes_done.min(self.config.geometry.size),
            self.check.repaired,
        );
        self.end_check();
        self.notify(Event::Verified {
            bytes_compared,
            complete,
            repaired,
        });
    }

    /// Start the pieces of a verify that are left. Returns whether none is.
    fn start_verifying(&mut self) -> bool {
        let size = self.config.geometry.size;
        let most = self.piece_bytes();
        loop {
            let again = self.check.again.last().copied();
            if again.is_none() {
                self.check.cursor = self.next_to_verify();
                if self.check.cursor >= size {
                    return true;
                }
                if self.check.is_recheck() && self.resync.paused {
                    return false;
                }
            }
            let start = self.check.cursor;
            let (range, tries) = again.unwrap_or_else(|| (Range::new(start, most.min(size - start)), 0));
            if self.questions() >= QUESTIONS || !self.may_start_piece(range.len) {
                return false;
            }
            match again {
                Some(_) => {
                    self.check.again.pop();
                    // It was counted when it was read first.
                    self.check.status.bytes_done -= range.len;
                }
                None => self.check.cursor = range.end(),
            }
            self.start_piece_again(Job::Verify, range, tries);
        }
    }

    /// Whether so much was found equal that it should be suspect no more: a recheck that is broken off goes on from there.
    fn is_much_equal(&self) -> bool {
        let equal = &self.check.equal;
        let bytes: u64 = equal.iter().map(|range| range.len).sum();
        let much = (self.config.geometry.size / CLEARINGS).max(u64::from(self.config.geometry.extent));
        equal.len() >= MANY || bytes >= much
    }

    fn pump_digest(&mut self, leg: LegId, max_pause: Span) {
        let extents = self.config.geometry.extents();
        if self.check.recalling && !self.check.broken {
            return;
        }
        loop {
            while !self.check.broken && self.check.cursor < extents {
                let extent = self.check.cursor;
                if self.check.fresh.contains(extent) {
                    self.check.cursor += 1;
                    continue;
                }
                let range = self.config.geometry.extent_range(extent);
                if !self.may_start_piece(range.len) {
                    return;
                }
                self.check.cursor += 1;
                self.start_piece(Job::Digest(leg), range);
            }
            if !self.check_is_idle() {
                return;
            }
            if self.check.broken || self.check.stale == 0 {
                // On the secondary a write may have landed whose generation is not known yet.
                if !self.check.broken && leg != self.primary && self.table.len() > 0 {
                    return;
                }
                let complete = !self.check.broken;
                let known = match (self.check.recalled, self.check.status.bytes_read) {
                    (_, 0) => Known::Recorded,
                    (0, _) => Known::ReadBack,
                    (_, _) => Known::Mixed,
                };
                self.end_check();
                self.notify(Event::Digested {
                    generation: self.counters.source,
                    leg,
                    complete,
                    known,
                });
                return;
            }
            self.check.cursor = 0;
            if self.check.held_at.is_some() {
                continue;
            }
            self.check.rounds += 1;
            if self.check.rounds > ROUNDS {
                self.check.broken = true;
            } else if self.check.stale <= HELD_EXTENTS && max_pause > Span(0) {
                self.check.held_at = Some(self.now);
                self.holds |= HOLD_DIGEST;
                self.arm(self.now + max_pause);
            }
        }
    }

    fn check_is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.is_free() || !slot.is_of_check()) && self.questions() == 0
    }

    pub(super) fn end_check(&mut self) {
        self.check.purpose = None;
        self.check.status.running = false;
        self.check.status.ended = self.now;
        self.check.fresh = Bits::none(0);
        self.check.recalling = false;
        if self.check.held_at.take().is_some() {
            self.release_hold(HOLD_DIGEST);
            self.admit_waiting();
        }
        self.walks_may_rest();
        self.watch_quiet();
    }

    pub(super) fn check_digest_deadline(&mut self) {
        let (Some(held_at), Some(Purpose::Digest { max_pause, .. })) = (self.check.held_at, self.check.purpose) else {
            return;
        };
        if held_at + max_pause > self.now {
            self.arm(held_at + max_pause);
        } else {
            self.check.held_at = None;
            self.release_hold(HOLD_DIGEST);
        }
    }

    /// A mutation of `range` is admitted: hashes of its extents are not fresh any more.
    pub(super) fn spoil_check(&mut self, range: Range) {
        let Some(Purpose::Digest { .. }) = self.check.purpose else {
            return;
        };
        let extent_bytes = self.config.geometry.extent as u64;
        for extent in range.start / extent_bytes..range.end().div_ceil(extent_bytes) {
            if self.check.fresh.contains(extent) {
                self.check.fresh.remove(extent);
                self.check.stale += 1;
            }
        }
    }

    pub(super) fn digest_hashed(&mut self, piece: &Slot) {
        let is_wanted = matches!(self.check.purpose, Some(Purpose::Digest { .. }));
        if piece.spoiled || !is_wanted {
            return;
        }
        let extent = self.config.geometry.extent_at(piece.range.start);
        self.check.fresh.insert(extent);
        self.check.stale -= 1;
    }

    /// A copy of `range` is about to be admitted, and its dirty bits are gone: a verify's pieces under way stand before it and
    /// see what it is to mend.
    pub(super) fn note_mending(&mut self, range: Range) {
        let pieces = self.slots.iter_mut().filter(|slot| !slot.is_free());
        for slot in pieces.filter(|slot| slot.job == Job::Verify && slot.range.overlaps(range)) {
            for i in 0..slot.blocks() {
                if slot.block_range(i, i + 1).overlaps(range) {
                    slot.mended_behind.insert(i);
                }
            }
        }
    }

    /// Of the blocks that a verify's piece found to differ, those that nobody knew of.
    pub(super) fn news(&self, piece: &Slot, differing: BlockMask) -> BlockMask {
        let mut news = BlockMask::default();
        for i in (0..piece.blocks()).filter(|&i| differing.contains(i) && !piece.mended_behind.contains(i)) {
            let block = piece.block_range(i, i + 1);
            if !self.dirty.touches(block)
                && !self.doubt.lacks(block)
                && !self.resync.failed.iter().any(|failed| failed.overlaps(block))
            {
                news.insert(i);
            }
        }
        news
    }

    /// A piece could not be read on one leg: the check goes on, and says so at its end.
    pub(super) fn check_incomplete(&mut self) {
        self.check.incomplete = true;
    }

    /// End the running check without a result.
    pub(super) fn check_failed(&mut self) {
        self.asked_in_vain();
        if self.check.is_active() {
            self.break_off_check();
        }
    }

    pub(super) fn break_off_check(&mut self) {
        self.check.broken = true;
        self.check.mending = None;
        self.forget_questions();
        for slot in 0..self.slots.len() as u16 {
            let piece = &self.slots[slot as usize];
            if !piece.is_free() && piece.is_of_check() {
                self.cancel_piece(slot);
            }
        }
    }

    /// The secondary is given up: a check that needs it ends.
    pub(super) fn check_lost_secondary(&mut self) {
        match self.check.purpose {
            Some(Purpose::Verify(_)) => self.check_failed(),
            Some(Purpose::Recheck) => self.break_off_check(),
            Some(Purpose::Digest { leg, .. }) if leg != self.primary => self.check_failed(),
            Some(Purpose::Digest { .. }) | None => {}
        }
    }

    pub(super) fn may_read_all(&self, leg: LegId) -> bool {
        leg == self.primary || self.follow == Follow::InSync
    }
}
