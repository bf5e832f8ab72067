//! Signatures: what was read or copied is hashed, and noted in the legs' tables; what was written is hashed when it is quiet.
//!
//! *What must hold:* an entry that is trusted says what the leg holds. *How:* a piece of a walk is *spoiled* by whatever mutation is
//! admitted behind it (see [`written`](Mirror::written)); what was admitted before it is in what it reads. What is hashed after the piece
//! has ended is noted if it is not spoiled by then, and what comes while it is being noted makes the note stale
//! (`core::signatures`). So from the admission of the piece on, no mutation of the extent is missed.
//!
//! *Where a leg is in doubt* (see `doubt`) nothing is noted, and nothing is trusted: it may show today what it does not tomorrow.
//! So too where a leg was given up with something in its cache.
//!
//! *Which source:* of a copy, the secondary holds what was written to it (`Payload`) and the primary what was read (`One`); what was
//! read from both and is equal is of `Both`.
//!
//! *Nobody waits for a hash:* a piece has left the order of both legs before it is hashed. Hashing takes processor time alone; tables
//! are written by others, and a note that has no room is dropped: the extent is hashed when it is quiet. So is what a copy has read while
//! half of the pieces are being hashed already: it goes on as fast as the disks.
//!
//! *After an unclean end* anybody may have written to the legs before they were claimed again, and nothing in the state directory would
//! say so: all of them is hashed as if it had been written.
//!
//! *Hot extents* are left until they are quiet; one is hashed at a time, at no more than [`RATE`], when there is nothing else to walk.
//! Only where a second leg is known: there is nothing to compare with otherwise.

use super::Mirror;
use super::follow::Follow;
use super::walk::{Job, Slot};
use crate::core::bits::Bits;
use crate::core::breaks::{self, Break};
use crate::core::effect::{Effect, Note};
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::signature::{Signature, Source};
use crate::core::signatures::NoteId;
use crate::core::time::{Span, Time};

/// What stands in the way is looked at so often at least.
const PATIENCE: Span = Span::from_secs(60);

/// Bytes per second that are read for quiet extents, of each leg.
const RATE: u64 = 64 << 20;

/// Where the signatures of a piece come from, by leg.
pub(super) type Sources = [Option<Source>; 2];

/// The search for quiet extents.
pub(super) struct Quiet {
    /// When to look next; `None`: nothing was written since nothing was found.
    look_at: Option<Time>,
    /// When the span of time ends in which what is written is recent.
    turn_at: Time,
    cursor: u64,
    /// Extents have been hashed since it last found that none was left, nor was being written to.
    at_work: bool,
    /// How long it looked away last.
    pause: Span,
    /// How often an extent was left because it was hot: each time its hash would have been that of something else by now.
    pub(super) skipped: u64,
}

impl Quiet {
    pub(super) fn new() -> Quiet {
        Quiet {
            look_at: None,
            turn_at: Time(0),
            cursor: 0,
            at_work: false,
            pause: Span(0),
            skipped: 0,
        }
    }

    /// Whether extents are being hashed, or may be soon, as they were before.
    pub(super) fn is_at_work(&self) -> bool {
        self.at_work
    }
}

impl Mirror {
    /// A guest's mutation of `range` is admitted that may reach these legs.
    #[inline]
    pub(super) fn written(&mut self, range: Range, mut reached: [bool; 2]) {
        if breaks::on(Break::SecondaryTrusted) {
            reached[self.secondary().index()] = false;
        }
        self.signatures.write(range, reached);
        if self.quiet.look_at.is_none() {
            self.watch_quiet();
        }
        let walking = self.pieces > 0 || self.check.is_active() || self.is_matching();
        if walking || self.is_consulting() {
            self.spoil_walks(range);
        }
    }

    /// Since the last core somebody may have written to this leg, and its table is empty: all of it is read, when it is quiet, and compared with
    /// the other. To be called before anything is asked of this core.
    pub fn begin_unknown(&mut self, now: Time, leg: LegId) {
        self.now = now;
        self.signatures.begin_unknown(leg);
        self.watch_quiet();
    }

    /// What this leg holds of `range` may change, by a copy or by itself.
    pub(super) fn distrust(&mut self, leg: LegId, range: Range) {
        self.signatures.touch(range, LegId::ALL.map(|id| id == leg));
    }

    /// What is in the cache of this leg may be gone when the next core starts. A stop does not flush a leg that is being copied to: it
    /// saves as dirty what was not flushed. Here it is not trusted either, or a start after a power cut would find entries of what
    /// the leg held before.
    pub(super) fn distrust_unflushed(&mut self, leg: LegId) {
        let (geometry, legs) = (&self.config.geometry, LegId::ALL.map(|id| id == leg));
        let signatures = &mut self.signatures;
        if !self.unflushed[leg.index()].each(geometry, |range| signatures.touch(range, legs)) {
            signatures.touch(geometry.whole(), legs);
        }
    }

    /// What was read of `range` by walks under way is not what the legs hold any more.
    #[cold]
    pub(super) fn spoil_walks(&mut self, range: Range) {
        self.spoil_check(range);
        self.spoil_matching(range);
        for slot in &mut self.slots {
            slot.spoiled |= !slot.is_free() && slot.range.overlaps(range);
        }
        self.spoil_questions(range);
    }

    /// How many pieces are being signed.
    pub(super) fn signing(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| matches!(slot.job, Job::Sign(_)))
            .count()
    }

    /// Where the signature of what this piece has read comes from; `None`: it says nothing of a whole extent.
    pub(super) fn sources_of(&self, piece: &Slot) -> Option<Sources> {
        let spoiled = piece.spoiled && !breaks::on(Break::SpoiledSigned);
        let extent = self.config.geometry.extent_at(piece.range.start);
        if !piece.is_sound() || spoiled || self.config.geometry.extent_range(extent) != piece.range {
            return None;
        }
        let (primary, secondary) = (self.primary.index(), self.secondary().index());
        let mut sources = match piece.job {
            Job::Resync(_) if !piece.is_equal() => {
                let mut sources = [Some(Source::One); 2];
                sources[secondary] = Some(Source::Payload);
                sources
            }
            Job::Resync(_) | Job::Verify | Job::Quiet { both: true } => [Some(Source::Both); 2],
            Job::Quiet { both: false } => {
                let mut sources = [None; 2];
                sources[primary] = Some(Source::One);
                sources
            }
            Job::Mend { .. } if !piece.is_written_whole() => return None,
            // It was wrong, and holds now what was read from the other.
            Job::Mend { leg } => {
                let mut sources = [None; 2];
                sources[leg.index()] = Some(Source::Payload);
                sources
            }
            Job::Recognise | Job::Digest(_) | Job::Sign(_) | Job::Weigh { .. } => return None,
        };
        for leg in LegId::ALL {
            if self.doubt.touches(leg, piece.range) && !breaks::on(Break::DoubtedSigned) {
                sources[leg.index()] = None;
            }
        }
        sources.iter().any(Option::is_some).then_some(sources)
    }

    /// The leg is not what it was: its table is emptied. What was read of it before it was let go may still be being hashed, and is
    /// not noted for it either: such a piece spares the secondary, so the leg was attached anew without waiting for it.
    pub(super) fn forget_table(&mut self, leg: LegId) {
        for slot in &mut self.slots {
            if let Job::Sign(sources) = &mut slot.job {
                sources[leg.index()] = None;
            }
            slot.spoiled |= slot.is_weighed();
        }
        self.forget_all_questions();
        self.signatures.begin_emptying(leg);
        self.effects.push_back(Effect::Forget(leg));
    }

    /// Note the signature of an extent.
    pub(super) fn note(&mut self, range: Range, signature: Signature, sources: Sources) {
        if self.is_stopped() || sources == [None; 2] {
            return;
        }
        let extent = self.config.geometry.extent_at(range.start);
        if let Some(id) = self
            .signatures
            .begin_note(extent, sources.map(|source| source.is_some()))
        {
            self.effects.push_back(Effect::Note(Note {
                id,
                extent,
                signature,
                generation: self.counters.source,
                sources,
            }));
        }
    }

    /// A signature is noted.
    pub fn handle_noted(&mut self, now: Time, id: NoteId) {
        self.now = now;
        self.signatures.end_note(id);
    }

    /// The table of a leg is emptied ([`Effect::Forget`]), or could not be.
    pub fn handle_emptied(&mut self, now: Time, leg: LegId) {
        self.now = now;
        self.signatures.end_emptying(leg);
    }

    /// The extents whose entries in this leg's table are to be forgotten by the save that is begun.
    pub fn forgetting(&self, leg: LegId) -> &Bits {
        self.signatures.forgetting(leg)
    }

    /// Whether the entry of this extent in the leg's table, if there is one, says what the leg holds.
    pub fn is_trusted(&self, leg: LegId, extent: u64) -> bool {
        self.signatures.is_trusted(leg, extent)
    }

    /// Bytes of extents that were written and are not signed since.
    pub(super) fn unsigned_bytes(&self) -> u64 {
        let unsigned = match self.remembers() {
            true => self.signatures.untrusted(self.signed_legs()),
            // Nothing is hashed unasked.
            false => 0,
        };
        unsigned * u64::from(self.config.geometry.extent)
    }

    /// By leg: whether what is quiet is hashed there.
    fn signed_legs(&self) -> [bool; 2] {
        let mut legs = [false; 2];
        legs[self.primary.index()] = true;
        legs[self.secondary().index()] = self.follow == Follow::InSync;
        legs
    }

    /// How long an extent is not written before it is hashed.
    pub fn set_quiet(&mut self, now: Time, quiet: Span) {
        self.now = now;
        self.config.quiet = quiet;
        self.watch_quiet();
    }

    /// Something was written, or may be hashed now.
    pub(super) fn watch_quiet(&mut self) {
        if self.quiet.look_at.is_none() && self.remembers() {
            self.quiet.turn_at = self.now + self.config.quiet;
            self.look_for_quiet(self.quiet.turn_at);
        }
    }

    fn look_for_quiet(&mut self, at: Time) {
        self.quiet.look_at = Some(at);
        self.arm(at);
    }

    /// Hash the next extent that is quiet, if it is time and there is nothing else to do.
    pub(super) fn check_quiet(&mut self) {
        match self.quiet.look_at {
            None => return,
            Some(at) if at > self.now => {
                self.arm(at);
                return;
            }
            Some(_) => self.quiet.look_at = None,
        }
        if self.now >= self.quiet.turn_at {
            self.quiet.skipped += self.signatures.turn();
            self.quiet.turn_at = self.now + self.config.quiet;
        }
        let legs = self.signed_legs();
        let both = legs == [true; 2];
        let quiet = self.signatures.next_quiet(self.quiet.cursor, legs);
        let next = quiet.or_else(|| self.signatures.next_quiet(0, legs));
        match next.filter(|_| self.may_hash_quiet()) {
            Some(extent) => {
                let range = self.config.geometry.extent_range(extent);
                let starts = !self.is_hashing() && self.may_start_piece(range.len);
                if starts {
                    self.quiet.cursor = extent + 1;
                    self.quiet.at_work = true;
                    self.want_copies(true);
                    self.start_piece(Job::Quiet { both }, range);
                }
                let rate = match self.resync.rate {
                    0 => RATE,
                    rate => rate.min(RATE),
                };
                let pause = (u128::from(range.len) * 1_000_000_000 / u128::from(rate)) as u64;
                // What is under way may take long, on a leg that hangs: it is given as long again as it has taken, within bounds.
                let waited = if starts {
                    0
                } else {
                    self.quiet.pause.0.saturating_mul(2).min(PATIENCE.0)
                };
                self.quiet.pause = Span(pause.max(waited));
                self.look_for_quiet(self.now + self.quiet.pause);
            }
            None if self.signatures.is_active() => self.look_for_quiet(self.quiet.turn_at),
            None => self.quiet.at_work = false,
        }
        self.walks_may_rest();
    }

    /// A quiet extent was read: if there is no signature for it, there will be none before it is written.
    pub(super) fn quiet_ended(&mut self, piece: &Slot) {
        let expected = match piece.job {
            Job::Quiet { both: true } => 2,
            _ => 1,
        };
        let sources = self.sources_of(piece).unwrap_or_default();
        if !piece.is_cancelled() && !piece.spoiled && sources.iter().flatten().count() < expected {
            self.signatures.leave(self.config.geometry.extent_at(piece.range.start));
        }
    }

    /// Whether a piece, or what becomes of one, is under way: one at a time.
    fn is_hashing(&self) -> bool {
        self.pieces > 0 || self.signatures.is_noting() || self.is_consulting()
    }

    /// Whether nothing else is walked, or held; whatever is looks again when it ends.
    fn may_hash_quiet(&self) -> bool {
        let follows = matches!(self.follow, Follow::Not | Follow::InSync);
        let elsewhere = self.resync.active || self.check.is_active() || self.resync.paused;
        follows && self.remembers() && !elsewhere && self.drain.is_none() && self.dirty_is_settled()
    }

    /// Whether the legs are equal, or one of them is left alone.
    fn dirty_is_settled(&self) -> bool {
        self.follow == Follow::Not || self.dirty.is_empty() && !self.doubt.some_lacks()
    }
}
