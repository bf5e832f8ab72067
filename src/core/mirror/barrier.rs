//! Barriers: FLUSH, and the flush that a FUA write stands for.
//!
//! *What must hold:* a barrier is acknowledged only when every leg that counts has made durable what was acknowledged
//! before the barrier arrived (and, for FUA, its own write).
//!
//! *How, on the primary:* its own flush, issued when the barrier arrives, or the FUA flag of the write itself.
//! *On the secondary, in `flush`:* the barrier ends the open epoch; it is met when that epoch is durable there. Everything
//! acknowledged before was admitted before, so it is in that epoch or an earlier one. *In `sync`:* what was acknowledged is
//! on the secondary already, so any flush issued after the barrier arrived will do; they are issued one at a time and
//! shared. F is M as it was when the flush was issued: what lands while it runs is not covered.
//!
//! *Why it ends:* the epochs waited for are closed; flushes complete or the secondary's clocks run out.

use super::Mirror;
use super::OpKind;
use super::admit::Need;
use super::follow::{Follow, is_hosts};
use crate::core::breaks::{self, Break};
use crate::core::effect::Action;
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::record::Protocol;
use crate::core::request::{Errno, Tag};
use crate::core::time::Time;

/// A flush of the secondary that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct SecondaryFlush {
    /// M when it was issued.
    mirrored: u64,
    /// The current epoch becomes durable with it.
    epoch: bool,
    /// Where the list of unflushed writes stood when it was issued.
    mark: u64,
    pub(super) issued_at: Time,
}

impl Mirror {
    pub(super) fn admit_flush(&mut self, tag: Tag) {
        self.admitted += 1;
        self.counters.requested = self.counters.requested.max(self.counters.source);
        let need = match self.follow {
            Follow::Not | Follow::Starting | Follow::Syncing => Need::Nothing,
            Follow::Departing { .. } | Follow::Leaving => self.need_of_excuse(),
            Follow::Joining { .. } | Follow::InSync => match self.barrier_protocol() {
                Protocol::Async => {
                    self.epochs.close();
                    Need::Nothing
                }
                Protocol::Sync if self.follow == Follow::InSync => self.want_flush(),
                Protocol::Sync | Protocol::Flush => Need::Epoch(self.epochs.close()),
            },
        };
        let guest = &mut self.guests[tag.0 as usize];
        guest.admitted = true;
        guest.need = need;
        guest.primary_flushed = false;
        self.flush_primary_for(tag);
        self.try_flush_secondary();
    }

    /// What a FUA write that is being admitted will need; it has joined its epoch already.
    pub(super) fn need_of_fua(&mut self, both: bool) -> Need {
        match self.follow {
            Follow::Not | Follow::Starting | Follow::Syncing => Need::Nothing,
            Follow::Departing { .. } | Follow::Leaving => self.need_of_excuse(),
            Follow::Joining { .. } | Follow::InSync => {
                debug_assert!(both, "a leg that counts gets every write");
                match self.barrier_protocol() {
                    Protocol::Async if breaks::on(Break::FuaEpoch) => Need::Nothing,
                    Protocol::Async => {
                        self.epochs.close();
                        Need::Nothing
                    }
                    Protocol::Sync if self.follow == Follow::InSync => Need::Landing,
                    Protocol::Sync | Protocol::Flush => Need::Epoch(self.epochs.close()),
                }
            }
        }
    }

    /// The protocol for barriers. While a record may be in force that names another primary or a stricter protocol, a
    /// barrier needs both legs.
    fn barrier_protocol(&self) -> Protocol {
        match self.protocol {
            Protocol::Async
                if self.recorder.may_be_stricter_than_async() || self.recorder.may_be_primary(self.secondary()) =>
            {
                Protocol::Flush
            }
            protocol => protocol,
        }
    }

    fn need_of_excuse(&self) -> Need {
        match self.barrier_protocol() {
            Protocol::Async => Need::Nothing,
            Protocol::Sync | Protocol::Flush => Need::Excuse,
        }
    }

    /// A flush of the secondary that is issued from now on is wanted.
    pub(super) fn want_flush(&mut self) -> Need {
        let under_way = breaks::on(Break::FlushedAtCompletion) && self.flush.is_some();
        self.flush_wanted = self.flushes_issued + u64::from(!under_way);
        Need::Flush(self.flush_wanted)
    }

    pub(super) fn is_met(&self, need: Need) -> bool {
        !self.counts()
            || breaks::on(Break::AckBeforeSecondary)
            || match need {
                Need::Nothing => true,
                Need::Epoch(epoch) => self.epochs.durable() >= epoch && !self.is_abandoning(),
                Need::Flush(number) => self.flushes_completed >= number,
                Need::Landing | Need::Excuse => false,
            }
    }

    /// The secondary was given up and the record does not say so yet: nothing of it is durable any more.
    fn is_abandoning(&self) -> bool {
        self.follow == Follow::Leaving
    }

    /// Barriers that are not answered yet count on the secondary from now on, up to `epoch`.
    pub(super) fn hold_barriers_for(&mut self, epoch: u64) {
        if self.protocol == Protocol::Async {
            return;
        }
        for guest in &mut self.guests {
            let barrier = match guest.operation {
                crate::core::request::Operation::Flush => true,
                crate::core::request::Operation::Write { fua }
                | crate::core::request::Operation::WriteZeroes { fua, .. } => fua,
                crate::core::request::Operation::Read | crate::core::request::Operation::Discard => false,
            };
            if guest.active && guest.admitted && barrier {
                guest.need = Need::Epoch(epoch);
            }
        }
    }

    pub(super) fn flush_primary_for(&mut self, tag: Tag) {
        let leg = self.primary;
        let guest = &mut self.guests[tag.0 as usize];
        guest.mark = self.unflushed[leg.index()].mark();
        guest.flush_failures = self.flush_failures;
        self.submit_flush(OpKind::GuestFlush(tag), leg);
    }

    pub(super) fn primary_flush_completed(&mut self, tag: Tag, result: Result<(), Errno>) {
        let leg = self.primary;
        let guest = &mut self.guests[tag.0 as usize];
        guest.primary_flushed = true;
        let (mark, entry, buf) = (guest.mark, guest.entry, guest.buf);
        // A flush that failed while this one was under way may have dropped what this one was to cover; and so may one that
        // failed before it and that no guest has heard of: the disk tells it once.
        let spoiled = guest.flush_failures != self.flush_failures;
        let spoiled = std::mem::take(&mut self.flush_failure_untold) || spoiled;
        match result {
            Ok(()) if !spoiled => self.unflushed[leg.index()].flushed(mark),
            Ok(()) => {}
            Err(error) => {
                self.tell_flush_error(leg, error);
                if !is_hosts(error) {
                    self.primary_flush_failed();
                }
            }
        }
        let result = if spoiled { result.and(Err(Errno::IO)) } else { result };
        if let Err(error) = result {
            match entry {
                Some(index) => self.table[index].error = Some(error),
                None if self.is_failing_over() => self.guests[tag.0 as usize].failed = Some(error),
                None => self.answer(tag, Err(error), buf),
            }
        }
        match entry {
            Some(index) => self.settle(index),
            None if result.is_ok() => self.try_answer_flush(tag),
            None => {}
        }
    }

    /// A flush that no guest asked for has failed.
    pub(super) fn unasked_flush_failed(&mut self, leg: LegId, error: Errno) {
        self.tell_flush_error(leg, error);
        if is_hosts(error) {
            // Nothing was flushed, and nothing is lost by it. A secondary that is not followed any more must be known not to be
            // before what is dirty is saved: what it was not flushed for is part of that.
            if leg != self.primary {
                self.leave_lagging();
            }
            self.checkpoint_failed();
        } else if leg == self.primary {
            self.flush_failure_untold = true;
            self.primary_flush_failed();
        } else {
            self.doubt_secondary();
            self.leave_failed();
            self.left_leg_failed();
        }
    }

    fn tell_flush_error(&mut self, leg: LegId, error: Errno) {
        self.tell_leg_error(leg, Action::Flush, Range::EMPTY, error);
    }

    /// What the primary was to make durable may be lost, and nothing is as tracked as it was. A secondary that has everything can
    /// keep what the primary could not, if the primary counts no more.
    pub(super) fn primary_flush_failed(&mut self) {
        if self.fail_over() {
            self.hold_reads();
        }
        self.flush_failures += 1;
        self.doubt_primary();
        if !self.is_trackable() {
            self.lose_track();
        }
        self.regions_stay();
        if !self.is_failing_over() {
            self.pump_record();
        }
    }

    pub(super) fn try_answer_flush(&mut self, tag: Tag) {
        let guest = &self.guests[tag.0 as usize];
        if !guest.primary_flushed || guest.failed.is_some() {
            return;
        }
        let (met, buf) = (self.is_met(guest.need), guest.buf);
        match met.then_some(Ok(())).or_else(|| self.overdue_end()) {
            Some(end) => self.answer(tag, end, buf),
            None => self.wait_alone(tag),
        }
    }

    /// Issue the flush that is due on the secondary, if one is. One at a time.
    pub(super) fn try_flush_secondary(&mut self) {
        let epoch = self.epochs.is_complete();
        let following = matches!(
            self.follow,
            Follow::InSync | Follow::Joining { .. } | Follow::Departing { .. }
        );
        if self.flush.is_some() || !following || !(epoch || self.flush_wanted > self.flushes_issued) {
            return;
        }
        let leg = self.secondary();
        self.flushes_issued += 1;
        self.flush = Some(SecondaryFlush {
            mirrored: self.counters.mirrored(),
            epoch,
            mark: self.unflushed[leg.index()].mark(),
            issued_at: self.now,
        });
        self.submit_flush(OpKind::SecondaryFlush, leg);
        self.watch_leg();
    }

    pub(super) fn secondary_flush_completed(&mut self, result: Result<(), Errno>) {
        let Some(flush) = self.flush.take() else {
            self.abandoned -= 1;
            if result.is_err_and(|error| !is_hosts(error)) {
                self.doubt_secondary();
                self.left_leg_failed();
            }
            self.leg_is_quiet();
            return;
        };
        let leg = self.secondary();
        if let Err(error) = result {
            self.tell_flush_error(leg, error);
            if !is_hosts(error) {
                self.doubt_secondary();
            }
            self.leave_because(error);
            return;
        }
        self.flushes_completed = self.flushes_issued;
        self.unflushed[leg.index()].flushed(flush.mark);
        if self.counters.is_following() {
            let late = breaks::on(Break::FlushedAtCompletion);
            let mirrored = if late { self.counters.mirrored() } else { flush.mirrored };
            self.counters.flushed = self.counters.flushed.max(mirrored);
        }
        if flush.epoch {
            self.epochs.set_durable();
            self.epoch_durable();
        }
        self.review_guests();
        self.try_flush_secondary();
    }
}
