//! The administrator's verbs. Each refuses, having changed nothing, or starts something whose end is an event.

use super::Mirror;
use super::drain::Purpose;
use super::follow::Follow;
use super::recheck::Asked;
use crate::core::breaks::{self, Break};
use crate::core::config::{Comes, CopyMode, LegTraits, Refusal, Repair};
use crate::core::leg::{Health, LegId};
use crate::core::record::Protocol;
use crate::core::status::WalkKind;
use crate::core::time::{Span, Time};

impl Mirror {
    /// Follow this leg, which is there, claimed and not smaller than the device, and make it equal. Also takes a leg back
    /// that failed or fell behind and is still claimed.
    ///
    /// # Errors
    /// `IsPrimary`, `AlreadyAttached` if it is followed, `Busy` while operations of an earlier following are under way.
    pub fn attach(
        &mut self,
        now: Time,
        leg: LegId,
        traits: LegTraits,
        how: CopyMode,
        comes: Comes,
    ) -> Result<(), Refusal> {
        self.now = now;
        let is_known = comes == Comes::Known;
        self.refuse_while_draining()?;
        if leg == self.primary {
            return Err(Refusal::IsPrimary);
        }
        if self.follow != Follow::Not || self.leg(leg).detaching {
            return Err(Refusal::AlreadyAttached);
        }
        if !self.is_secondary_idle() || !is_known && self.signatures.is_emptying(leg) {
            return Err(Refusal::Busy);
        }
        let known = self.leg(leg).known;
        self.leg_mut(leg).traits = Some(traits);
        self.leg_mut(leg).consistent_at = 0;
        if how == CopyMode::Dirty {
            // It may have been given up, or detached, with copies and writes in its cache.
            self.doubt_unflushed(leg);
        }
        self.unflushed[leg.index()].forget();
        if !is_known {
            self.forget_table(leg);
            self.suspects.forget_verdicts();
        }
        match how {
            CopyMode::Dirty if known => {
                // What an interrupted full copy did not reach is not worth reading: such a copy goes on as it began. Else
                // little of a grain that is dirty differs.
                if self.copy_mode != CopyMode::Blind || self.dirty.is_empty() {
                    self.copy_mode = CopyMode::Compare;
                    self.copy_kind = WalkKind::Dirty;
                }
            }
            CopyMode::Dirty => {
                self.doubt_all();
                self.copy_mode = CopyMode::Compare;
                self.copy_kind = WalkKind::Full;
            }
            CopyMode::Blind | CopyMode::Compare if breaks::on(Break::TrackedAfterAttach) => {
                self.dirty.mark_all();
                self.copy_mode = how;
                self.copy_kind = WalkKind::Full;
            }
            CopyMode::Blind | CopyMode::Compare => {
                self.doubt_all();
                self.copy_mode = how;
                self.copy_kind = WalkKind::Full;
            }
        }
        // What is on it is given up, in the record that says syncing, and that nothing is tracked. One before would claim to know where the
        // legs differ, or that the leg is an image of some moment; one behind would leave out of the copy what nobody has looked at.
        if how == CopyMode::Blind || comes == Comes::Another {
            self.give_up_suspects();
        }
        self.start_following();
        self.pump();
        Ok(())
    }

    /// Stop following this leg, drained and flushed if it is in sync; ends with [`crate::core::Event::Detached`].
    ///
    /// # Errors
    /// `IsPrimary`, `NoSuchLeg`, `Busy`.
    pub fn detach(&mut self, now: Time, leg: LegId) -> Result<(), Refusal> {
        self.now = now;
        self.refuse_while_draining()?;
        if leg == self.primary {
            return Err(Refusal::IsPrimary);
        }
        if !self.leg(leg).known || !(self.leg(leg).attached || self.leg(leg).traits.is_some()) {
            return Err(Refusal::NoSuchLeg);
        }
        if self.leg(leg).detaching {
            return Err(Refusal::Busy);
        }
        self.leg_mut(leg).detaching = true;
        self.check_lost_secondary();
        match self.follow {
            Follow::InSync => {
                let epoch = self.epochs.close_even_empty();
                self.follow = Follow::Departing { epoch };
                self.try_flush_secondary();
            }
            Follow::Starting | Follow::Syncing | Follow::Joining { .. } => self.stop_following(),
            Follow::Not | Follow::Leaving => {
                self.leg_mut(leg).attached = false;
                self.pump_record();
                self.leg_is_quiet();
            }
            Follow::Departing { .. } => unreachable!("a departing leg is detaching"),
        }
        self.pump();
        Ok(())
    }

    /// Exchange roles; ends with `Switched` or `SwitchGivenUp`. No request is held longer than `max_pause` (else the stall
    /// budget) before the record is begun. With `force`, also where places are suspect.
    ///
    /// # Errors
    /// `NotInSync`, `Suspect`, `Busy`.
    pub fn switch(&mut self, now: Time, max_pause: Option<Span>, force: bool) -> Result<(), Refusal> {
        self.now = now;
        self.refuse_while_draining()?;
        if self.follow != Follow::InSync || !self.dirty.is_empty() || self.resync.active {
            return Err(Refusal::NotInSync);
        }
        if !self.suspects.is_empty() && !force {
            return Err(Refusal::Suspect);
        }
        if self.check.is_asked_for() || self.recorder.is_uncertain() || self.drain_flushes.iter().any(Option::is_some) {
            return Err(Refusal::Busy);
        }
        self.recheck_gives_way();
        let max_pause = max_pause.unwrap_or(self.config.stall_budget);
        self.begin_drain(Purpose::Switch, Some(max_pause));
        self.pump();
        Ok(())
    }

    /// Compare the legs, and mend what is to be; ends with `Verified`, after a `Difference` for each range that differs, and
    /// `Mended` for each that was mended.
    ///
    /// # Errors
    /// `NotInSync`, `Busy`.
    pub fn verify(&mut self, now: Time, repair: Repair) -> Result<(), Refusal> {
        self.now = now;
        self.refuse_while_draining()?;
        if self.follow != Follow::InSync {
            return Err(Refusal::NotInSync);
        }
        if self.check.is_asked_for() {
            return Err(Refusal::Busy);
        }
        self.ask_for(Asked::Verify(repair));
        Ok(())
    }

    /// Whether nothing else is compared, or has been and is not done with.
    pub(super) fn may_verify(&self) -> bool {
        let weighing = self.slots.iter().any(|slot| !slot.is_free() && slot.is_weighed());
        let busy = self.check.is_active() || weighing || self.is_consulting() || self.check.is_flushing();
        !busy && self.drain.is_none() && !self.is_stopped()
    }

    /// Hash every extent of this leg at one moment, or, unless all are to be read back, look up its signature where that is known;
    /// yields `Recall` and `Hash` effects, some extents more than once (the last counts), and ends with `Digested`.
    ///
    /// # Errors
    /// `NotInSync` for a secondary that is not, `Busy`.
    pub fn digest(&mut self, now: Time, leg: LegId, max_pause: Span, read_back: bool) -> Result<(), Refusal> {
        self.now = now;
        self.refuse_while_draining()?;
        if !self.may_read_all(leg) {
            return Err(Refusal::NotInSync);
        }
        if self.check.is_asked_for() || self.check.is_recall_pending() {
            return Err(Refusal::Busy);
        }
        self.ask_for(Asked::Digest {
            leg,
            max_pause,
            read_back,
        });
        Ok(())
    }

    /// Break off a verify or digest; its event comes with `complete: false`.
    pub fn cancel_check(&mut self, now: Time) {
        self.now = now;
        if self.check.is_asked_for() {
            self.check_failed();
        }
        self.pump();
    }

    /// Drain, flush, and record the device as clean; ends with `Stopped`. Mutations that arrive later are never answered. If the
    /// guest is being moved off a primary that failed, or is to be, it stops behind that.
    ///
    /// # Errors
    /// `Busy` while roles are being exchanged otherwise, `Stopping`.
    pub fn stop(&mut self, now: Time) -> Result<(), Refusal> {
        self.now = now;
        if !self.is_failing_over() || self.is_stopping() {
            self.refuse_while_draining()?;
        }
        if self.fail_over_before_stop() {
            self.pump();
            return Ok(());
        }
        if self.check.is_asked_for() {
            self.check_failed();
            self.pump();
        }
        self.recheck_gives_way();
        self.begin_drain(Purpose::Stop, None);
        self.pump();
        Ok(())
    }

    /// Change when writes and barriers are acknowledged; ends with `ProtocolSet`.
    ///
    /// # Errors
    /// `Busy`.
    pub fn set_protocol(&mut self, now: Time, protocol: Protocol) -> Result<(), Refusal> {
        self.now = now;
        self.refuse_while_draining()?;
        // While records fail it could only hold the guest and be given up.
        if self.check.is_asked_for() || self.recorder.is_uncertain() {
            return Err(Refusal::Busy);
        }
        self.recheck_gives_way();
        self.begin_drain(Purpose::Protocol(protocol), Some(self.config.stall_budget));
        self.pump();
        Ok(())
    }

    /// How long a request may wait for the secondary alone.
    pub fn set_stall_budget(&mut self, now: Time, budget: Span) {
        self.config.stall_budget = budget;
        self.handle_timeout(now);
    }

    /// How long an operation of the secondary may take.
    pub fn set_leg_timeout(&mut self, now: Time, timeout: Span) {
        self.config.leg_timeout = timeout;
        self.handle_timeout(now);
    }

    /// How large the pool is while there is a secondary.
    ///
    /// # Errors
    /// `Invalid` below the size of all requests' buffers or above the layout's maximum.
    pub fn set_pool_bytes(&mut self, now: Time, bytes: u64) -> Result<(), Refusal> {
        self.now = now;
        let layout = &self.config.layout;
        if bytes < layout.tags_bytes() || bytes > layout.pool_max {
            return Err(Refusal::Invalid);
        }
        self.config.pool_bytes = bytes;
        if self.pool.bytes() > 0 {
            self.size_pool(bytes);
        }
        self.pump();
        Ok(())
    }

    /// Most bytes the secondary may lag; 0: the pool decides.
    pub fn set_lag_bytes(&mut self, now: Time, bytes: u64) {
        self.now = now;
        self.config.lag_bytes = bytes;
        self.pump();
    }

    /// Whether a leg that is behind catches up by itself.
    pub fn set_catch_up(&mut self, now: Time, automatic: bool) {
        self.now = now;
        self.config.catch_up = automatic;
        self.try_catch_up();
        self.pump();
    }

    /// Start no further piece of background work, or go on. Going on also tries a leg that is behind, and what could not be
    /// copied.
    pub fn pause_resync(&mut self, now: Time, paused: bool) {
        self.now = now;
        self.resync.paused = paused;
        if !paused {
            self.watch_quiet();
            if matches!(self.follow, Follow::Syncing | Follow::InSync) && !self.dirty.is_empty() {
                self.begin_resync();
            }
            let leg = *self.leg(self.secondary());
            let waits = matches!(leg.health, Health::Behind | Health::Syncing) && leg.attached && !leg.detaching;
            let possible = leg.traits.is_some() && self.is_secondary_idle() && self.drain.is_none();
            if self.follow == Follow::Not && waits && possible {
                self.start_following();
            }
        }
        self.pump();
    }

    /// Bytes per second that background work keeps to; 0: no limit.
    pub fn set_rate(&mut self, now: Time, bytes_per_second: u64) {
        self.now = now;
        self.resync.rate = bytes_per_second;
        self.pump();
    }

    /// Write a record although it may say nothing new, for what is recorded along with it. That is durable when a record of
    /// the number returned is, or of a higher one; after an error the next is written, as ever.
    ///
    /// # Errors
    /// `Stopping`: no record follows the one that says clean. `Busy` while the device is being handed over.
    pub fn renew_record(&mut self, now: Time) -> Result<u64, Refusal> {
        self.now = now;
        if self.is_stopping() {
            return Err(Refusal::Stopping);
        }
        if self.is_handing_over() {
            return Err(Refusal::Busy);
        }
        let number = self.recorder.renew();
        self.pump_record();
        self.pump();
        Ok(number)
    }

    pub(super) fn refuse_while_draining(&self) -> Result<(), Refusal> {
        match self.drain {
            None => Ok(()),
            Some(_) if self.is_stopping() => Err(Refusal::Stopping),
            Some(_) => Err(Refusal::Busy),
        }
    }
}
