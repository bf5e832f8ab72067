//! What guests wait for while a record cannot be made durable, and for how long.
//!
//! Two things of a guest's wait for a record and for nothing else: what counted on a secondary that was given up (until the
//! record says that it does not count), and mutations that no generation is left for. Neither may be acknowledged
//! without the record, and neither may wait without bound: a guest that is held for ever is worse off than one that is told.
//!
//! *What must hold:* nothing is acknowledged on a demotion that is not durable, before the budget has run out or after.
//! *How:* the clock begins with the demotion (or the first mutation without a generation). A record that was under way by then
//! and ends well shows that records can be written, and begins it anew: once at most, for the next one says all. When it has run out the record is *overdue*: what waits for it, and whatever comes to wait for it, fails with EIO.
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

/// How long something has been waiting for a record.
#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Option<Time>,
    /// The budget has run out.
    overdue: bool,
}

impl Wait {
    const NONE: Wait = Wait {
        since: None,
        overdue: false,
    };

    /// Begin to wait, unless it does already. Returns when it is to be looked at.
    fn begin(&mut self, now: Time) -> Time {
        *self.since.get_or_insert(now) + RECORD_BUDGET
    }

    /// When the budget runs out, if it has not.
    fn due(&self) -> Option<Time> {
        let since = self.since.filter(|_| !self.overdue)?;
        Some(since + RECORD_BUDGET)
    }
}

/// The records that guests wait for. Each has its clock, so that a leg that comes and goes sets back no other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owed {
    demotion: Wait,
    generations: Wait,
}

impl Owed {
    pub(super) const NOTHING: Owed = Owed {
        demotion: Wait::NONE,
        generations: Wait::NONE,
    };
}

impl Mirror {
    /// The secondary was given up: what counted on it waits for the record that says so.
    pub(super) fn owe_demotion(&mut self) {
        let due = self.recorder.owed.demotion.begin(self.now);
        self.arm(due);
    }

    /// No record may call the secondary in sync any more.
    pub(super) fn settle_demotion(&mut self) {
        self.recorder.owed.demotion = Wait::NONE;
    }

    /// A mutation waits for generations. Returns whether it is to fail instead.
    pub(super) fn owe_generations(&mut self) -> bool {
        let due = self.recorder.owed.generations.begin(self.now);
        if due > self.now {
            self.arm(due);
        }
        self.recorder.owed.generations.overdue
    }

    /// A record is durable. If it is not the one, the next one is.
    pub(super) fn review_owed(&mut self) {
        self.recorder.owed = Owed::NOTHING;
        if self.follow == Follow::Leaving {
            self.owe_demotion();
        }
        if !self.has_generations() && !self.waiting.is_empty() {
            self.owe_generations();
        }
    }

    /// Whether every mutation that could be under way would find a generation below the durable ceiling.
    pub(super) fn has_generations(&self) -> bool {
        self.recorder
            .has_generations(self.counters.source + self.guests.len() as u64)
    }

    /// How a request ends that nothing but the record of a demotion stands against, if it is to wait no longer.
    pub(super) fn overdue_end(&self) -> Option<Result<(), Errno>> {
        if self.follow != Follow::Leaving || !self.recorder.owed.demotion.overdue {
            return None;
        }
        let acknowledged = breaks::on(Break::UnrecordedAcknowledged);
        Some(if acknowledged { Ok(()) } else { Err(Errno::IO) })
    }

    pub(super) fn check_owed(&mut self) {
        if breaks::on(Break::HeldForEver) {
            return;
        }
        let Owed { demotion, generations } = self.recorder.owed;
        if let Some(due) = [demotion.due(), generations.due()].into_iter().flatten().min() {
            if due > self.now {
                self.arm(due);
                return;
            }
            let owed = &mut self.recorder.owed;
            for wait in [&mut owed.demotion, &mut owed.generations] {
                wait.overdue |= wait.due().is_some_and(|due| due <= self.now);
            }
            // Mutations without a generation fail where they are admitted.
            self.review_guests();
            self.check_owed();
        }
    }
}
