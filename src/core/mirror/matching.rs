//! Where signatures say that both legs hold the same, a resync that knows nothing else copies nothing, and reads little.
//!
//! In this order: the tables are asked where both know the same; then, where the primary's alone knows something, the secondary is
//! read, and *recognised* by that; what is left is compared, byte by byte.
//!
//! *Why what is equal by both tables needs no copy:* both entries say what the legs hold, from before the question until the answer: a
//! mutation of the extent takes it out of what was asked, and so does doubt of a leg.
//!
//! *Why what is recognised needs none:* a piece reads the secondary in the order of its writes, so what was admitted before it is in what
//! it reads; whatever is admitted behind it, on either leg, spoils it. The primary's entry is trusted at the answer: it says what the
//! primary holds since before the piece, or the piece would be spoiled. Its dirty bits are taken only then; until then a guest's write goes to
//! the primary alone, as to everything that is not copied yet.
//!
//! *Why that is as good as a copy:* what a leg shows may not be durable there; so it counts as written and not flushed.
//!
//! *Why it ends:* each extent is read once to be recognised, and is compared if it is not. One that is being written is not worth hashing
//! and is left to that at once.

use super::Mirror;
use super::check::QUESTIONS;
use super::follow::Follow;
use super::walk::{Job, Slot};
use crate::core::bits::Bits;
use crate::core::breaks::{self, Break};
use crate::core::config::CopyMode;
use crate::core::effect::{ConsultId, Effect, Evidence};
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::signature::{Signature, Source};
use crate::core::status::WalkKind;
use crate::core::time::Time;

/// What the tables know of a resync.
pub(super) struct Matching {
    /// What they are being asked for, if they are: by leg, extents whose entries may be believed.
    asked: Option<[Bits; 2]>,
    /// They have not answered yet, whoever asked.
    pending: bool,
    /// The extents that the primary's table alone knows.
    lone: Bits,
    /// Those before this one were looked at.
    cursor: u64,
}

impl Matching {
    pub(super) fn new() -> Matching {
        Matching {
            asked: None,
            pending: false,
            lone: Bits::none(0),
            cursor: 0,
        }
    }
}

impl Mirror {
    /// Before everything is compared, ask the tables.
    pub(super) fn ask_tables(&mut self) {
        let everything = self.dirty.bytes() == self.config.geometry.size && !self.doubt.is_doubted(self.secondary());
        let compares = self.follow == Follow::Syncing && self.copy_mode == CopyMode::Compare;
        let matching = &mut self.resync.matching;
        if !compares || !everything || matching.pending || self.signatures.trusted(self.primary).is_empty() {
            return;
        }
        matching.pending = true;
        matching.asked = Some(LegId::ALL.map(|leg| self.signatures.trusted(leg).clone()));
        self.effects.push_back(Effect::Match(self.primary));
    }

    /// Whether the tables' answer to [`Effect::Match`] is still wanted.
    pub fn is_matching(&self) -> bool {
        self.resync.matching.asked.is_some()
    }

    /// By leg: the extents of which the tables are asked. Panics if they are not.
    pub fn matchable(&self) -> &[Bits; 2] {
        let asked = self.resync.matching.asked.as_ref();
        asked.expect("the tables are being asked")
    }

    /// What the tables were asked of `range` is of no use any more.
    pub(super) fn spoil_matching(&mut self, range: Range) {
        if let Some(asked) = &mut self.resync.matching.asked
            && !breaks::on(Break::MatchedOutdated)
        {
            let extent = u64::from(self.config.geometry.extent);
            for extent in range.start / extent..range.end().div_ceil(extent) {
                asked.iter_mut().for_each(|asked| asked.remove(extent));
            }
        }
    }

    /// Whatever the tables say is of no use any more.
    pub(super) fn forget_matching(&mut self) {
        self.resync.matching.asked = None;
        self.resync.matching.lone = Bits::none(0);
        self.forget_recognition();
    }

    /// `equal`: these extents have the same signature in both tables. `lone`: these have one in the primary's alone.
    pub fn handle_matched(&mut self, now: Time, equal: &Bits, lone: &Bits) {
        self.now = now;
        self.resync.matching.pending = false;
        let asked = self.resync.matching.asked.take();
        if let Some([a, b]) = asked.filter(|_| !self.is_stopped()) {
            let mut run = Range::EMPTY;
            for extent in equal.iter().filter(|&extent| a.contains(extent) && b.contains(extent)) {
                let range = self.config.geometry.extent_range(extent);
                if run.end() == range.start {
                    run.len += range.len;
                } else {
                    self.take_matched(run);
                    run = range;
                }
            }
            self.take_matched(run);
            self.resync.matching.lone = lone.clone();
            self.resync.matching.cursor = 0;
        }
        self.pump();
    }

    /// The legs are known to be equal in these extents.
    fn take_matched(&mut self, run: Range) {
        if run.len == 0 {
            return;
        }
        let secondary = self.secondary().index();
        self.dirty.take(run);
        self.unflushed[secondary].note(&self.config.geometry, run);
        let status = &mut self.resync.status;
        status.kind = WalkKind::Signature;
        status.bytes_done += run.len;
        status.bytes_matched += run.len;
    }

    /// Read the secondary where the primary's table alone knows something. Returns whether nothing is left to be.
    pub(super) fn pump_recognition(&mut self) -> bool {
        while let Some(extent) = self.resync.matching.lone.next(self.resync.matching.cursor) {
            let range = self.config.geometry.extent_range(extent);
            let is_worth_it = self.is_recognisable(extent, range) && !self.signatures.is_hot(extent);
            let is_busy = self.consulting() + self.recognising() >= QUESTIONS;
            if is_worth_it && (self.resync.paused || is_busy || !self.may_start_piece(range.len)) {
                self.resync.matching.cursor = extent;
                return false;
            }
            self.resync.matching.cursor = extent + 1;
            if is_worth_it {
                self.start_piece(Job::Recognise, range);
            }
        }
        // What was searched in vain is not searched again.
        self.resync.matching.cursor = self.resync.matching.lone.len();
        self.recognising() == 0 && !self.is_recognition_asked()
    }

    /// How many pieces are to recognise something.
    fn recognising(&self) -> usize {
        let recognises = |slot: &&Slot| !slot.is_free() && slot.job == Job::Recognise;
        self.slots.iter().filter(recognises).count()
    }

    /// Whether what the primary's table says of the extent may stand for what the primary holds, and what the secondary shows for what
    /// it holds.
    fn is_recognisable(&self, extent: u64, range: Range) -> bool {
        self.follow == Follow::Syncing
            && self.signatures.is_trusted(self.primary, extent)
            && self.dirty.covers(range)
            && !self.doubt.touches(self.secondary(), range)
            && !self.suspects.touch(range)
    }

    /// What a piece has read of the secondary is hashed.
    pub(super) fn recognise(&mut self, piece: &Slot, signature: Signature) {
        if !self.is_of_now(piece) {
            return;
        }
        let secondary = self.secondary();
        let mut piece = *piece;
        piece.first = Some(signature);
        self.consult(piece, LegId::ALL.map(|leg| (leg == secondary).then_some(signature)));
    }

    /// Whether what a piece has read is still what the secondary holds, and the primary what its entry says.
    fn is_of_now(&self, piece: &Slot) -> bool {
        let extent = self.config.geometry.extent_at(piece.range.start);
        !piece.spoiled && self.is_recognisable(extent, piece.range) || breaks::on(Break::RecognisedOutdated)
    }

    /// Whether an answer to this question may tell that the legs hold the same.
    pub fn is_recognising(&self, id: ConsultId) -> bool {
        let piece = self.question(id);
        piece.is_some_and(|piece| piece.job == Job::Recognise && self.is_of_now(piece))
    }

    /// What the tables say of what a piece has read of the secondary.
    pub(super) fn recognised(&mut self, piece: &Slot, evidence: [Option<Evidence>; 2]) {
        let (primary, secondary) = (self.primary.index(), self.secondary().index());
        let is_same = evidence[primary].is_some_and(|evidence| evidence.equals[secondary]);
        if !is_same || !self.is_of_now(piece) {
            return;
        }
        self.take_matched(piece.range);
        let mut sources = [None; 2];
        sources[secondary] = Some(Source::One);
        self.note(piece.range, piece.first.expect("it is hashed"), sources);
    }
}
