//! Verify and digest: walks that write nothing.
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
use super::drain::HOLD_DIGEST;
use super::follow::Follow;
use super::walk::{Job, Slot};
use crate::core::effect::{BlockMask, Event};
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::status::{WalkKind, WalkStatus};
use crate::core::time::{Span, Time};

/// Extents that may be read while mutations are held.
const HELD_EXTENTS: u64 = 64;
/// Rounds after which a digest gives up.
const ROUNDS: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Verify,
    Digest { leg: LegId, max_pause: Span },
}

pub(super) struct Check {
    purpose: Option<Purpose>,
    status: WalkStatus,
    cursor: u64,
    /// By extent: its hash is fresh. Used by a digest only.
    fresh: Vec<u64>,
    stale: u64,
    rounds: u32,
    held_at: Option<Time>,
    /// Wind up without a result.
    broken: bool,
    /// Something could not be read.
    incomplete: bool,
}

impl Check {
    pub(super) fn new() -> Check {
        Check {
            purpose: None,
            status: WalkStatus::default(),
            cursor: 0,
            fresh: Vec::new(),
            stale: 0,
            rounds: 0,
            held_at: None,
            broken: false,
            incomplete: false,
        }
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

    fn is_fresh(&self, extent: u64) -> bool {
        self.fresh[(extent / 64) as usize] >> (extent % 64) & 1 != 0
    }
}

impl Mirror {
    pub(super) fn begin_verify(&mut self) {
        self.begin_check(Purpose::Verify, WalkKind::Verify);
    }

    pub(super) fn begin_digest(&mut self, leg: LegId, max_pause: Span) {
        self.begin_check(Purpose::Digest { leg, max_pause }, WalkKind::Digest);
        let extents = self.config.geometry.extents();
        self.check.fresh = vec![0; extents.div_ceil(64) as usize];
        self.check.stale = extents;
    }

    fn begin_check(&mut self, purpose: Purpose, kind: WalkKind) {
        self.check.purpose = Some(purpose);
        self.check.cursor = 0;
        self.check.rounds = 0;
        self.check.broken = false;
        self.check.incomplete = false;
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
            Some(Purpose::Verify) => self.pump_verify(),
            Some(Purpose::Digest { leg, max_pause }) => self.pump_digest(leg, max_pause),
            None => {}
        }
    }

    fn pump_verify(&mut self) {
        let size = self.config.geometry.size;
        let most = BlockMask::SPAN.min(self.config.layout.copy_bytes as u64);
        while !self.check.broken && self.check.cursor < size {
            let start = self.check.cursor;
            let range = Range::new(start, most.min(size - start));
            if !self.may_start_piece(range.len) {
                return;
            }
            self.check.cursor = range.end();
            self.start_piece(Job::Verify, range);
        }
        if self.check_is_idle() {
            let complete = !self.check.broken && !self.check.incomplete;
            let bytes_compared = self.check.status.bytes_done;
            self.end_check();
            self.notify(Event::Verified {
                bytes_compared,
                complete,
            });
        }
    }

    fn pump_digest(&mut self, leg: LegId, max_pause: Span) {
        let extents = self.config.geometry.extents();
        loop {
            while !self.check.broken && self.check.cursor < extents {
                let extent = self.check.cursor;
                if self.check.is_fresh(extent) {
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
                self.end_check();
                self.notify(Event::Digested {
                    generation: self.counters.source,
                    leg,
                    complete,
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
        self.slots
            .iter()
            .all(|slot| slot.is_free() || matches!(slot.job, Job::Resync(_)))
    }

    fn end_check(&mut self) {
        self.check.purpose = None;
        self.check.status.running = false;
        self.check.status.ended = self.now;
        self.check.fresh = Vec::new();
        if self.check.held_at.take().is_some() {
            self.release_hold(HOLD_DIGEST);
            self.admit_waiting();
        }
        self.walks_may_rest();
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
            if self.check.is_fresh(extent) {
                self.check.fresh[(extent / 64) as usize] &= !(1 << (extent % 64));
                self.check.stale += 1;
            }
        }
        for slot in &mut self.slots {
            slot.spoiled |= !slot.is_free() && slot.range.overlaps(range);
        }
    }

    pub(super) fn digest_hashed(&mut self, piece: &Slot) {
        if piece.spoiled || self.check.fresh.is_empty() {
            return;
        }
        let extent = piece.range.start / self.config.geometry.extent as u64;
        self.check.fresh[(extent / 64) as usize] |= 1 << (extent % 64);
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
        self.check.broken = true;
        for slot in 0..self.slots.len() as u16 {
            if !self.slots[slot as usize].is_free() && !matches!(self.slots[slot as usize].job, Job::Resync(_)) {
                self.cancel_piece(slot);
            }
        }
    }

    /// The secondary is given up: a check that needs it ends.
    pub(super) fn check_lost_secondary(&mut self) {
        match self.check.purpose {
            Some(Purpose::Verify) => self.check_failed(),
            Some(Purpose::Digest { leg, .. }) if leg != self.primary => self.check_failed(),
            Some(Purpose::Digest { .. }) | None => {}
        }
    }

    pub(super) fn may_read_all(&self, leg: LegId) -> bool {
        leg == self.primary || self.follow == Follow::InSync
    }
}
