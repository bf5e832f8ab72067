//! Everything that happens because time has passed.
//!
//! One alarm, at or before the earliest thing that may be due; when it goes off everything is looked at and the alarm is
//! set anew. So an operation costs a comparison, and no timer is ever lost.

use super::Mirror;
use super::follow::Follow;
use super::table::Side;
use crate::core::breaks::{self, Break};
use crate::core::time::{Span, Time};

impl Mirror {
    /// The alarm went off (or may have).
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = now;
        self.alarm = None;
        if self.is_stopped() {
            return;
        }
        self.retry_record();
        self.check_owed();
        self.check_stall();
        self.check_leg();
        self.try_catch_up();
        self.check_drain_deadline();
        self.check_failover_pause();
        self.check_digest_deadline();
        self.check_tracking();
        self.check_quiet();
        self.check_suspicion();
        self.pump();
    }

    /// When `handle_timeout` is due; `None`: not before something else happens.
    pub fn next_timeout(&self) -> Option<Time> {
        self.alarm
    }

    pub(super) fn arm(&mut self, at: Time) {
        self.alarm = Some(self.alarm.map_or(at, |alarm| alarm.min(at)));
    }

    /// An operation was issued on the secondary.
    pub(super) fn watch_leg(&mut self) {
        self.arm(self.now + self.config.leg_timeout);
    }

    fn is_followed(&self) -> bool {
        match self.follow {
            Follow::Syncing | Follow::Joining { .. } | Follow::InSync | Follow::Departing { .. } => true,
            Follow::Not | Follow::Starting | Follow::Leaving => false,
        }
    }

    /// The first clock: how long a guest's request has waited for the secondary and nothing else.
    fn check_stall(&mut self) {
        if self.is_failing_over() {
            // What waits for the secondary has nobody else: see `failover`.
            return;
        }
        let oldest = self
            .guests
            .iter()
            .filter(|guest| guest.active)
            .filter_map(|guest| guest.alone_since)
            .min();
        self.give_up_after(oldest, self.config.stall_budget);
    }

    /// The second clock: how long an operation has been under way on the secondary.
    fn check_leg(&mut self) {
        if breaks::on(Break::LegClock) {
            return;
        }
        let secondary = self.secondary().index();
        let entries = self.table.indices().map(|index| &self.table[index]);
        let oldest = entries
            .filter(|entry| entry.live && entry.sides[secondary] == Side::Issued)
            .map(|entry| entry.issued_at)
            .chain(self.flush.map(|flush| flush.issued_at))
            .chain(self.drain_flushes[secondary].map(|flush| flush.issued_at))
            .chain(self.tracking.flushes[secondary].map(|flush| flush.issued_at))
            .chain(self.check.mend_flush_on(self.secondary()))
            .min();
        self.give_up_after(oldest, self.config.leg_timeout);
    }

    fn give_up_after(&mut self, oldest: Option<Time>, allowed: Span) {
        let Some(oldest) = oldest else { return };
        if !self.is_followed() {
            return;
        }
        if oldest + allowed <= self.now {
            self.leave_lagging();
        } else {
            self.arm(oldest + allowed);
        }
    }
}
