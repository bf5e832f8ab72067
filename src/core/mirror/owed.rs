//! What guests wait for while a record cannot be made durable, and for how long.
//!
//! Two things of a guest's wait for a record and for nothing else: what counted on a secondary that was given up (until the
//! record says that it does not count), and mutations that no generation is left for. Neither may be acknowledged
//! without the record, and neither may wait without bound: a guest that is held for ever is worse off than one that is told.
//!
//! *What must hold:* nothing is acknowledged on a demotion that is not durable, before the budget has run out or after.
//! *How:* the clock begins with the demotion (or the first mutation without a generation) and no partial progress sets it
//! back. When it has run out the record is *overdue*: what waits for it, and whatever comes to wait for it, fails with EIO.
//! Failing is always allowed: a write that failed may be on the primary and is dirty for the secondary like any other that the
//! secondary missed; a barrier that failed promises nothing. What needs no record goes on: reads, and in `flush` and
//! `async` plain writes.
//! *How it ends:* records are tried again all the while. With the first durable one that says what was owed, the
//! secondary counts no more, and the next barrier is the primary's alone.

use super::Mirror;
use super::follow::Follow;
use crate::core::breaks::{self, Break};
use crate::core::config::RECORD_BUDGET;
use crate::core::request::Errno;
use crate::core::time::Time;

/// The record that guests wait for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owed {
    since: Option<Time>,
    /// The budget has run out.
    overdue: bool,
}

impl Owed {
    pub(super) const NOTHING: Owed = Owed {
        since: None,
        overdue: false,
    };
}

impl Mirror {
    /// The secondary was given up: what counted on it waits for the record that says so, for a budget of its own.
    pub(super) fn owe_demotion(&mut self) {
        self.recorder.owed = Owed::NOTHING;
        self.owe_record();
    }

    /// A mutation waits for generations.
    pub(super) fn owe_record(&mut self) {
        if self.recorder.owed.since.is_none() {
            self.recorder.owed.since = Some(self.now);
            self.arm(self.now + RECORD_BUDGET);
        }
    }

    /// A record is durable: is it the one?
    pub(super) fn review_owed(&mut self) {
        if self.follow != Follow::Leaving && self.has_generations() {
            self.recorder.owed = Owed::NOTHING;
        }
    }

    /// Whether what waits for a record is to fail.
    pub(super) fn is_overdue(&self) -> bool {
        self.recorder.owed.overdue
    }

    /// Whether every mutation that could be under way would find a generation below the durable ceiling.
    pub(super) fn has_generations(&self) -> bool {
        self.recorder
            .has_generations(self.counters.source + self.guests.len() as u64)
    }

    /// How a request ends that nothing but a record stands against, if it is to wait no longer.
    pub(super) fn overdue_end(&self) -> Option<Result<(), Errno>> {
        if self.follow != Follow::Leaving || !self.is_overdue() {
            return None;
        }
        let acknowledged = breaks::on(Break::UnrecordedAcknowledged);
        Some(if acknowledged { Ok(()) } else { Err(Errno::IO) })
    }

    pub(super) fn check_owed(&mut self) {
        let Some(since) = self.recorder.owed.since else { return };
        if self.is_overdue() || breaks::on(Break::HeldForEver) {
            return;
        }
        if since + RECORD_BUDGET > self.now {
            self.arm(since + RECORD_BUDGET);
            return;
        }
        self.recorder.owed.overdue = true;
        // Mutations without a generation fail where they are admitted.
        self.review_guests();
    }
}
