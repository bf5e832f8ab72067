//! What outlives this core: marks of active regions, written ahead, and the dirty map, saved behind.
//!
//! *What must hold:* while the record says *tracked*, every byte in which the legs may differ lies in a region that is marked
//! active in the state directory, or in a grain that the dirty map there says is dirty. So the next core compares those and
//! nothing else.
//!
//! *Before a write:* a mutation is admitted when all its regions are marked, durably (`may_enter`).
//!
//! *A region is left* by a checkpoint, in this order: regions are chosen that nobody uses; the primary, and the secondary if
//! it is followed, are flushed; the dirty map is saved; the marks are cleared. A region that is written to at any step
//! before the last stays. Once its mark is being cleared it is not active, and who comes then waits for a new mark. If a
//! flush fails or the secondary is given up on the way, all regions stay: what they held back is now dirty, in memory only.
//!
//! *What is saved* as dirty is what is dirty or lacking on the primary (`doubt`), what pieces of a resync have taken and not finished, and what was written to a
//! followed secondary since its last good flush: a copy that is not durable there is none. A secondary that is not followed
//! has no such list: it became dirty when the leg was given up, or becomes so here.
//!
//! *After a failed flush of the primary* nothing is tracked until the next start, which compares everything: see
//! `is_trackable`. No region is left any more, because a record that says otherwise may be in force for long.
//!
//! *When a mark or a save fails*, the record is made to say *not tracked*, in a slot that is there already; writes wait for
//! that. If that fails too they go on: the guest does not stop for a state directory that is lost, and what a crash would
//! mean then is said. So do they when one of the two hangs. It is tried again; tracking begins anew when every mutation under way is marked and all is saved.

use super::drain::DrainFlush;
use super::follow::Follow;
use super::walk::Job;
use super::{Mirror, OpKind};
use crate::core::bits::Bits;
use crate::core::breaks::{self, Break};
use crate::core::config::RECORD_BUDGET;
use crate::core::effect::{Effect, Event};
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::regions::Regions;
use crate::core::request::Errno;
use crate::core::time::{Span, Time};

/// How long a state directory that failed is left alone.
const RETRY: Span = Span::from_secs(5);

/// Whether a mutation may reach a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entrance {
    /// Yes. Whether its regions are marked.
    Open { marked: bool },
    /// Its regions are being marked, or others are being left to make room.
    Marking,
    /// All regions that may be active are in use.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    Flush,
    Save,
    /// The marks are to be cleared, or are being.
    Clear,
}

/// See the module.
pub(super) struct Tracking {
    pub(super) regions: Regions,
    /// Marks are written ahead: the state directory can be written.
    marking: bool,
    /// What the record is to say.
    pub(super) tracked: bool,
    /// Guest mutations under way without a mark.
    pub(super) unmarked: u32,
    /// A write of the table is under way.
    writing: bool,
    /// When it was begun.
    writing_since: Time,
    /// Since when the record is to say that nothing is tracked.
    lost_at: Time,
    /// That write clears what the checkpoint leaves.
    clears: bool,
    /// The dirty map is being saved.
    saving: bool,
    step: Step,
    /// Every mutation under way was marked when the checkpoint began.
    sound: bool,
    /// By leg.
    pub(super) flushes: [Option<DrainFlush>; 2],
    failures: u64,
    /// How far the resync was at the last checkpoint, in bytes done.
    copied: u64,
    look_at: Option<Time>,
    retry_at: Option<Time>,
}

impl Tracking {
    pub(super) fn new(regions: Regions, tracked: bool) -> Tracking {
        Tracking {
            regions,
            marking: true,
            tracked,
            unmarked: 0,
            writing: false,
            writing_since: Time(0),
            lost_at: Time(0),
            clears: false,
            saving: false,
            step: Step::Idle,
            sound: false,
            flushes: [None; 2],
            failures: 0,
            copied: 0,
            look_at: None,
            retry_at: None,
        }
    }

    /// Whether nothing of the state directory's tables is being written, and no flush for it is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.step == Step::Idle && !self.writing && !self.saving && self.flushes.iter().all(Option::is_none)
    }

    pub(super) fn is_flushing(&self) -> bool {
        self.flushes.iter().any(Option::is_some)
    }
}

/// What a failure is taken for where it is to be ignored.
fn ignored(which: Break, error: Errno) -> Result<(), Errno> {
    if breaks::on(which) { Ok(()) } else { Err(error) }
}

impl Mirror {
    /// Whether a mutation of `range` may be admitted; if not, what it waits for is under way.
    #[inline]
    pub(super) fn may_enter(&mut self, range: Range) -> Entrance {
        if !self.remembers() {
            Entrance::Open { marked: false }
        } else if self.tracking.regions.are_active(range) {
            Entrance::Open { marked: true }
        } else {
            self.want_entrance(range)
        }
    }

    #[cold]
    fn want_entrance(&mut self, range: Range) -> Entrance {
        let full = self.tracking.regions.is_full();
        if !self.tracking.marking || full && !self.is_trackable() {
            return if self.recorder.is_untracked() || self.is_record_stuck() {
                Entrance::Open { marked: false }
            } else {
                Entrance::Marking
            };
        }
        if full {
            self.begin_checkpoint(Span(0));
            return if self.makes_room() {
                Entrance::Marking
            } else {
                Entrance::Full
            };
        }
        self.tracking.regions.want(range);
        self.pump_marks();
        if breaks::on(Break::MarkNotAwaited) {
            return Entrance::Open { marked: true };
        }
        Entrance::Marking
    }

    /// Whether the record that is to say that nothing is tracked has been waited for as long as it may.
    fn is_record_stuck(&mut self) -> bool {
        // A write of it that hangs already is not waited for anew.
        let hangs_since = self.recorder.writing_since().unwrap_or(self.tracking.lost_at);
        let due = hangs_since.min(self.tracking.lost_at) + RECORD_BUDGET;
        if due > self.now {
            self.arm(due);
        }
        due <= self.now
    }

    /// A mark that does not come back is no better than one that failed.
    fn check_marks(&mut self) {
        let due = self.tracking.writing_since + RECORD_BUDGET;
        if !self.tracking.writing || !self.tracking.marking {
            return;
        }
        if due <= self.now {
            self.tracking_failed();
        } else {
            self.arm(due);
        }
    }

    /// Whether a checkpoint that is under way may make room, or stands in the way of one, and waits for something else than the
    /// secondary.
    fn makes_room(&self) -> bool {
        let tracking = &self.tracking;
        let [primary, secondary] = [self.primary, self.secondary()].map(|leg| tracking.flushes[leg.index()].is_some());
        let alone = tracking.step == Step::Flush && secondary;
        primary || tracking.saving || tracking.step != Step::Idle && !alone || self.drain.is_some()
    }

    /// A mutation waits behind others: have its regions marked with theirs.
    pub(super) fn want_ahead(&mut self, range: Range) {
        if self.remembers() && self.tracking.marking && !self.tracking.regions.is_full() {
            self.tracking.regions.want(range);
        }
    }

    /// A mutation is under way.
    #[inline]
    pub(super) fn enter_regions(&mut self, range: Range, marked: bool) {
        if marked {
            self.tracking.regions.enter(range);
        } else {
            self.tracking.unmarked += 1;
        }
    }

    /// Both legs are done with a mutation.
    #[inline]
    pub(super) fn leave_regions(&mut self, range: Range, marked: bool) {
        if marked {
            self.tracking.regions.leave(range, self.now);
        } else {
            self.tracking.unmarked -= 1;
        }
        self.watch_tracking();
    }

    /// Begin a write of the table of marks if one is due and none is under way.
    fn pump_marks(&mut self) {
        let clears = self.tracking.step == Step::Clear;
        let due = clears || self.tracking.regions.wants();
        if self.tracking.writing || !due || !self.tracking.marking || self.is_stopped() {
            return;
        }
        self.tracking.clears = clears;
        self.tracking.writing = true;
        self.tracking.writing_since = self.now;
        self.arm(self.now + RECORD_BUDGET);
        self.tracking.regions.begin_write(clears);
        self.effects.push_back(Effect::Mark);
    }

    /// What the write of the marks that is to be begun says: the regions that are active.
    pub fn marks(&self) -> &Bits {
        self.tracking.regions.table()
    }

    /// The write of the marks has ended; an error says nothing of what is on disk now.
    pub fn handle_marked(&mut self, now: Time, result: Result<(), Errno>) {
        self.now = now;
        let result = result.or_else(|error| ignored(Break::MarkFailureIgnored, error));
        self.tracking.writing = false;
        self.tracking.regions.end_write(result.is_ok());
        if std::mem::take(&mut self.tracking.clears) && self.tracking.step == Step::Clear {
            self.tracking.step = Step::Idle;
            if result.is_ok() {
                self.leave_decided();
            }
        }
        if result.is_err() {
            self.tracking_failed();
        }
        self.pump_marks();
        self.watch_tracking();
        self.pump();
    }

    /// Whether mutations of `range` are under way, or may not be durable on both legs.
    pub(super) fn is_used(&self, range: Range) -> bool {
        self.tracking.regions.is_any_in_use(range)
    }

    /// Whether a start would compare all of `range`.
    pub(super) fn is_marked(&self, range: Range) -> bool {
        self.tracking.regions.are_active(range)
    }

    /// Look for something to do within a while, if there may be something.
    #[inline]
    pub(super) fn watch_tracking(&mut self) {
        if self.tracking.look_at.is_none() && self.is_worth_a_look() {
            // Often enough that nothing stays twice as long as it should; what is not tracked costs most.
            let linger = self.config.linger;
            let soon = if self.tracking.tracked {
                linger
            } else {
                Span(linger.0 / 10)
            };
            let at = self.now + soon;
            self.tracking.look_at = Some(at);
            self.arm(at);
        }
    }

    pub(super) fn check_tracking(&mut self) {
        self.check_marks();
        if let Some(at) = self.tracking.retry_at {
            if at > self.now {
                self.arm(at);
            } else if !self.tracking.saving && !self.tracking.writing && self.drain.is_none() {
                // Nobody waits for this one.
                self.tracking.retry_at = None;
                self.save();
            } else {
                self.tracking.retry_at = Some(self.now + RETRY);
                self.arm(self.now + RETRY);
            }
        }
        let Some(at) = self.tracking.look_at else { return };
        if at > self.now {
            self.arm(at);
            return;
        }
        self.tracking.look_at = None;
        self.begin_checkpoint(self.config.linger);
        self.watch_tracking();
    }

    /// Whether there may be something for a checkpoint when regions have lingered. What makes it so looks again.
    #[inline]
    fn is_worth_a_look(&self) -> bool {
        let tracking = &self.tracking;
        let begins = !tracking.tracked && tracking.unmarked == 0;
        let wants = tracking.regions.some_unused() || begins || self.has_copied();
        wants && self.may_begin_checkpoint()
    }

    /// Whether nothing stands against a checkpoint.
    fn may_begin_checkpoint(&self) -> bool {
        let tracking = &self.tracking;
        let idle = tracking.step == Step::Idle && !tracking.saving && !self.is_checkpoint_flushing();
        idle && tracking.marking && self.drain.is_none() && self.is_trackable() && self.remembers()
    }

    /// Whether a resync has got on since the last checkpoint, where that can be kept.
    fn has_copied(&self) -> bool {
        let tracking = &self.tracking;
        tracking.tracked && self.resync.status.bytes_done != tracking.copied
    }

    /// A resync is through: what is saved as dirty is not, any more, and a kill is not to cost a comparison of it.
    pub(super) fn keep_copied(&mut self) {
        self.begin_checkpoint(self.config.linger);
        self.watch_tracking();
    }

    /// Whether a flush of a checkpoint is under way that counts: not that of a secondary that was given up.
    fn is_checkpoint_flushing(&self) -> bool {
        let [primary, secondary] =
            [self.primary, self.secondary()].map(|leg| self.tracking.flushes[leg.index()].is_some());
        primary || (secondary && self.is_written())
    }

    /// Save what is dirty and leave the regions that nobody has used for `idle`, if there is anything to save or leave.
    fn begin_checkpoint(&mut self, idle: Span) {
        if !self.may_begin_checkpoint() {
            return;
        }
        let copied = self.has_copied();
        let tracking = &mut self.tracking;
        let leaving = tracking.regions.choose(self.now, idle);
        tracking.sound = tracking.unmarked == 0;
        let begins = !tracking.tracked && tracking.sound;
        if leaving == 0 && !begins && !copied {
            return;
        }
        tracking.copied = self.resync.status.bytes_done;
        tracking.step = Step::Flush;
        tracking.failures = self.flush_failures;
        // What is tracked from here on begins with a primary that holds all that it shows: earlier writes had no marks.
        if leaving > 0 || begins {
            self.flush_for_checkpoint(self.primary);
        }
        if self.is_written() {
            self.flush_for_checkpoint(self.secondary());
        }
        self.checkpoint_flushed();
    }

    /// Whether mutations reach the secondary.
    fn is_written(&self) -> bool {
        match self.follow {
            Follow::Syncing | Follow::Joining { .. } | Follow::InSync | Follow::Departing { .. } => true,
            Follow::Not | Follow::Starting | Follow::Leaving => false,
        }
    }

    fn flush_for_checkpoint(&mut self, leg: LegId) {
        let mark = self.unflushed[leg.index()].mark();
        let skipped = if leg == self.primary {
            Break::PrimaryLeftUnflushed
        } else {
            Break::SecondaryLeftUnflushed
        };
        if breaks::on(skipped) {
            self.unflushed[leg.index()].flushed(mark);
            return;
        }
        self.tracking.flushes[leg.index()] = Some(DrainFlush {
            issued_at: self.now,
            mark,
        });
        self.submit_flush(OpKind::CheckpointFlush(leg), leg);
        if leg != self.primary {
            self.watch_leg();
        }
    }

    pub(super) fn checkpoint_flush_completed(&mut self, leg: LegId, result: Result<(), Errno>) {
        let flush = self.tracking.flushes[leg.index()].take().expect("a flush is under way");
        match result {
            Ok(()) if leg != self.primary || self.tracking.failures == self.flush_failures => {
                self.unflushed[leg.index()].flushed(flush.mark);
            }
            Ok(()) => {}
            Err(error) => self.unasked_flush_failed(leg, error),
        }
        self.checkpoint_flushed();
        self.watch_tracking();
        self.leg_is_quiet();
    }

    /// If nothing is left to be flushed, save. A secondary that was given up is not waited for.
    pub(super) fn checkpoint_flushed(&mut self) {
        if self.tracking.step == Step::Flush && !self.is_checkpoint_flushing() {
            if breaks::on(Break::ClearedUnsaved) && self.tracking.regions.leaving() > 0 {
                self.tracking.step = Step::Clear;
                self.pump_marks();
                return;
            }
            self.tracking.step = Step::Save;
            if breaks::on(Break::ClearedBeforeSaved) && !self.tracking.writing {
                self.tracking.writing = true;
                self.tracking.regions.begin_write(true);
                self.effects.push_back(Effect::Mark);
            }
            self.save();
        }
    }

    /// A leg could not be flushed, and lost nothing by that: nothing is left, and nothing begins to be tracked.
    pub(super) fn checkpoint_failed(&mut self) {
        self.tracking.sound = false;
        self.regions_stay();
    }

    /// Something was lost on the way: every region that was to be left stays.
    pub(super) fn regions_stay(&mut self) {
        self.tracking.regions.stay();
        self.checkpoint_flushed();
    }

    /// Have the dirty map saved.
    pub(super) fn save(&mut self) {
        debug_assert!(!self.tracking.saving);
        if !self.is_written() && self.leg(self.secondary()).traits.is_some() {
            self.doubt_unflushed(self.secondary());
        }
        if self.is_written() && self.drain.is_some_and(|drain| drain.purpose.is_final()) {
            self.distrust_unflushed(self.secondary());
        }
        self.tracking.saving = true;
        if !breaks::on(Break::StaleKept) {
            self.signatures.forget_stale();
        }
        self.effects.push_back(Effect::Save);
    }

    /// What is to be saved as dirty, at this moment: see the module. Panics if `grains` is not of this device.
    pub fn unsynced(&self, grains: &mut Bits) {
        let geometry = &self.config.geometry;
        self.dirty.copy_to(grains);
        if let Some(lacking) = self.doubt.lacking() {
            lacking.add_to(grains);
        }
        let mut add = |range: Range| {
            let (first, end) = geometry.grains_of(range);
            grains.insert_run(first, end);
        };
        let pieces = self.slots.iter().filter(|slot| !slot.is_free());
        pieces
            .filter(|slot| matches!(slot.job, Job::Resync(_)) && !breaks::on(Break::SavedWithoutPieces))
            .for_each(|slot| add(slot.range));
        self.resync.failed().iter().for_each(|&range| add(range));
        // A copy has left them out; a start that does not know them is to compare them.
        if !self.are_suspects_recorded() {
            self.suspects.iter().for_each(|suspect| add(suspect.range));
        }
        if self.is_written()
            && !breaks::on(Break::SavedWithoutUnflushed)
            && !self.unflushed[self.secondary().index()].each(geometry, &mut add)
        {
            add(geometry.whole());
        }
    }

    /// The dirty map is saved, or could not be.
    pub fn handle_saved(&mut self, now: Time, result: Result<(), Errno>) {
        self.now = now;
        let result = result.or_else(|error| ignored(Break::SaveFailureIgnored, error));
        self.tracking.saving = false;
        self.signatures.forgotten(result.is_ok());
        if self.drain_saved(result) {
            self.pump();
            return;
        }
        match (self.tracking.step, result) {
            (_, Err(_)) => self.tracking_failed(),
            (Step::Save, Ok(())) => {
                let sound = std::mem::take(&mut self.tracking.sound);
                if sound && !self.tracking.tracked && self.is_trackable() {
                    self.tracking.tracked = true;
                    self.notify(Event::Tracked(true));
                    self.pump_record();
                }
                self.tracking.step = Step::Idle;
                if self.tracking.failures != self.flush_failures {
                    self.tracking.regions.stay();
                }
                if self.tracking.regions.leaving() > 0 {
                    self.tracking.step = Step::Clear;
                    self.pump_marks();
                }
            }
            // A try after a failure: from now on marks are written again.
            (_, Ok(())) => self.tracking.marking = true,
        }
        self.watch_tracking();
        self.pump();
    }

    /// The state directory cannot be written.
    pub(super) fn tracking_failed(&mut self) {
        self.tracking.marking = false;
        self.tracking.regions.stay();
        self.tracking.step = Step::Idle;
        let at = self.now + RETRY;
        self.tracking.retry_at = Some(at);
        self.arm(at);
        self.lose_track();
        self.pump_record();
    }

    /// What is in the state directory does not say any more where the legs may differ: the next record says so.
    pub(super) fn lose_track(&mut self) {
        if std::mem::replace(&mut self.tracking.tracked, false) {
            self.tracking.lost_at = self.now;
            self.notify(Event::Tracked(false));
        }
        self.tracking.sound = false;
        self.watch_tracking();
    }

    /// Whether what is saved can say where the legs may differ. A primary that failed a flush may have lost what it shows, and later
    /// flushes succeed all the same: after a cut it may differ wherever it was written to.
    pub(super) fn is_trackable(&self) -> bool {
        self.flush_failures == 0 || breaks::on(Break::TrackedAfterFailedFlush)
    }

    /// Everything is dirty, and what is in the state directory says less.
    pub(super) fn doubt_all(&mut self) {
        self.dirty.mark_all();
        self.lose_track();
    }
}
