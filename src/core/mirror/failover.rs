//! The primary answered a write or a flush with an error: the guest is moved to the secondary, if that has everything.
//!
//! In order: what failed is not answered; new mutations and barriers are held, reads are not; everything admitted lands on the
//! secondary; the secondary is flushed; the record is made durable that names it primary and the old one failed; roles are
//! exchanged; what had failed is answered with success, and what was held goes on.
//!
//! *What must hold:* at each moment the leg that a start would serve has everything acknowledged, flushed as far as a barrier
//! was; whichever record the start finds.
//! *Why, until the record is begun:* the old primary is authoritative, and nothing is acknowledged that it has not completed:
//! what failed there is not answered, and the rest goes its usual way.
//! *Why, while it is being written:* nothing is under way, so both legs have everything acknowledged; and whatever a barrier was
//! acknowledged for, in `async` too, is durable on the secondary by the flush before. Nothing is acknowledged until the record is
//! durable, or given up.
//! *Why, afterwards:* the old primary is a leg that failed. Where it may lack something is dirty: where it failed (see `doubt`), and
//! where it was written to since its last good flush. What failed is on the new primary, which was flushed after it landed: that makes a FUA
//! write, or a FLUSH, true.
//!
//! *The secondary has everything* if it is in sync and nothing is being copied to it: what the primary fails is lacking there (see
//! `doubt`), and not dirty. A secondary that is
//! being detached misses what came since: the guest gets the error. One that is about to be in sync has everything too, but the
//! record does not say so yet: the guest gets the error, and is moved then.
//!
//! *A read* that fails meanwhile waits for the end, and is asked again of whichever leg is primary then. After a failed flush all
//! reads are held: the old primary may show what it had before.
//!
//! *Something else under way:* a switch, a change of protocol or a hand-over is given up; if its record is being written nothing
//! that could fail is. A stop begins anew behind it. A verify or digest ends without a result.
//!
//! *How it ends otherwise:* if the secondary is given up on the way the old primary stays what it is, what failed is answered with
//! its error, and is dirty. If the record cannot be made durable within its budget, or nothing comes to rest within the leg
//! time-out, what failed is answered with its error too, and stays lacking on the primary: the secondary has it, and is not given
//! what the primary shows. If the record may be in force all the same, only what both legs completed is acknowledged until a
//! later one is durable, as after a switch.
//! *It is tried again* at the next durable record: before, each error would hold the guest for a budget. If records can be
//! written, one is written for it, after as long a pause as the hold may last. A stop tries it at once, for the last time.
//!
//! *Why it ends:* nothing is admitted; the hold has a budget, the leg time-out, which neither the secondary's progress nor an
//! operation that the primary does not answer begins anew; and the record has one. The stall clock stands still: the secondary
//! is slow, and what the guest would be given instead is an error.
//!
//! *Not here: a primary that hangs.* Nobody is moved off it before its operations have ended: the guest's buffers are theirs (a
//! read's too, which would have to be asked again into another one), a FLUSH under way there keeps its tag's name for an operation
//! (see `OpKind`), and an epoch ends on the secondary only when the primary has numbered it. Each can be had, none for nothing; and
//! unlike an error a stall of a network disk ends by itself, while the move is for good.
//!
//! *After a failed flush* of the old primary nothing is tracked until the next start, as without a move: nobody knows what it
//! will show.

use super::Mirror;
use super::drain::{Drain, Phase, Purpose};
use super::follow::Follow;
use super::table::{Change, Owner, Side};
use crate::core::breaks::{self, Break};
use crate::core::config::{CopyMode, RECORD_BUDGET};
use crate::core::effect::Event;
use crate::core::leg::Health;
use crate::core::request::{Operation, Tag};
use crate::core::status::WalkKind;
use crate::core::time::{Span, Time};

impl Mirror {
    /// The primary has failed a mutation or a flush. Before anything is marked dirty for it: move the guest to the secondary if
    /// that has everything. Returns whether it is under way.
    pub(super) fn fail_over(&mut self) -> bool {
        if self.is_failing_over() {
            return true;
        }
        let stops = self.is_stopping();
        if !self.is_secondary_complete() || !self.may_drain_for_failover() || self.failover_waits {
            return false;
        }
        self.give_up_drain();
        self.check_failed();
        self.begin_drain(Purpose::Failover { stops }, None);
        true
    }

    /// The guest is to be moved, and was not yet.
    pub(super) fn try_failover(&mut self) {
        let in_the_way = self.drain.is_some_and(|drain| drain.purpose != Purpose::Stop);
        if !in_the_way && !breaks::on(Break::FailoverForgotten) {
            self.fail_over();
        }
    }

    /// A stop is asked for: the guest waits anyhow. Returns whether it is being moved first; the stop goes on behind that.
    pub(super) fn fail_over_before_stop(&mut self) -> bool {
        if self.failover_due {
            self.failover_waits = false;
            self.fail_over();
        }
        if let Some(Drain {
            purpose: Purpose::Failover { stops },
            ..
        }) = &mut self.drain
        {
            *stops = true;
        }
        self.is_failing_over()
    }

    /// The clocks of a failover.
    pub(super) fn check_failover(&mut self, stops: bool, phase: Phase, held_at: Time) {
        let budget = match phase {
            Phase::Record => RECORD_BUDGET,
            Phase::Lower(_) | Phase::Hold | Phase::Flush | Phase::Save | Phase::Stopped => self.config.leg_timeout,
        };
        let due = held_at + budget;
        if due > self.now || phase != Phase::Record && breaks::on(Break::HeldByFailover) {
            self.arm(due.max(self.now + Span::from_millis(1)));
            return;
        }
        self.failover_waits = true;
        let at = self.now + budget;
        self.failover_at = Some(at);
        self.give_up_failover(stops);
        self.arm(at);
    }

    /// A failover that was given up waits for a record: if there is nothing else to record, write one all the same.
    pub(super) fn check_failover_pause(&mut self) {
        let Some(at) = self.failover_at else { return };
        if at > self.now {
            self.arm(at);
            return;
        }
        self.failover_at = None;
        if self.failover_due && self.failover_waits && !self.is_stopping() {
            self.recorder.renew();
            self.pump_record();
        }
    }

    /// Whether the guest is being moved to the other leg because the primary failed.
    pub fn is_failing_over(&self) -> bool {
        matches!(self.drain.map(|drain| drain.purpose), Some(Purpose::Failover { .. }))
    }

    /// Whether the secondary has, or is about to have, everything that was admitted.
    pub(super) fn is_secondary_complete(&self) -> bool {
        if breaks::on(Break::MovedToIncomplete) && self.follow == Follow::Syncing {
            return true;
        }
        let copied = self.dirty.is_empty() && !self.resync.active && !self.resync.stuck;
        self.follow == Follow::InSync && copied && self.suspects.is_empty()
    }

    /// Whether nothing is left to be done before the secondary can be flushed.
    pub(super) fn is_quiet_for_failover(&self) -> bool {
        if breaks::on(Break::MovedUndrained) {
            return true;
        }
        let asked = self.tracking.is_flushing() || self.check.is_flushing();
        let flushing = self.drain_flushes.iter().any(Option::is_some) || asked;
        let idle = self.flush.is_none() && !flushing && self.abandoned == 0;
        // What failed, and has landed on the other leg, is all that is left.
        let failed = |index: u32| self.table[index].error.is_some() && self.table[index].settled;
        let mut entries = self.table.indices().filter(|&index| self.table[index].live);
        idle && entries.all(failed)
            && self.guests.iter().all(|guest| {
                !guest.active || !guest.admitted || guest.failed.is_some() || guest.entry.is_some_and(failed)
            })
    }

    /// What the record of a failover says, beside the new primary.
    pub(super) fn record_failover(&mut self) {
        let primary = self.primary;
        self.recorder.primary = primary.other();
        let leg = self.leg_mut(primary);
        leg.health = Health::Failed;
        leg.consistent_at = 0;
    }

    /// The record is durable: exchange the roles.
    pub(super) fn failed_over(&mut self, stops: bool) {
        let era = self.recorder.durable().era;
        let (from, to) = (self.primary, self.secondary());
        self.primary = to;
        self.follow = Follow::Not;
        // The new primary has everything, durably.
        self.flush_failure_untold = false;
        self.counters.unfollow();
        self.doubt_unflushed(from);
        self.dirty_doubted(from);
        self.dirty_lacking();
        self.regions_stay();
        // What failed is on the new primary: it completes there, now.
        for index in self.table.indices() {
            let entry = &mut self.table[index];
            if !entry.live || entry.error.take().is_none() {
                continue;
            }
            // One that is older than the leg came there by a copy.
            entry.sides[to.index()] = Side::Done;
            let fua = entry.change.is_fua();
            // It completed before: what failed is the flush behind it.
            if let (Change::Zero { fua: true, .. }, Owner::Guest(tag)) = (entry.change, entry.owner)
                && self.guests[tag.0 as usize].primary_flushed
            {
                continue;
            }
            let generation = self.counters.complete(false);
            if fua {
                self.counters.requested = self.counters.requested.max(generation);
            }
            self.recorder.note_generation(generation);
        }
        for guest in &mut self.guests {
            if guest.active && guest.admitted {
                guest.failed = None;
                // Of whatever was still to be flushed: the new primary was, after it had landed.
                guest.primary_flushed = true;
            }
        }
        let pause = self.end_drain();
        self.abandon_secondary();
        self.end_resync(false);
        self.review_guests();
        let generation = self.counters.source;
        self.notify(Event::FailedOver {
            from,
            to,
            pause,
            generation,
            era,
        });
        self.pump_record();
        self.stop_again(stops, true);
    }

    /// The guest was moved, by a switch, off a leg that may not have all it shows (see `doubt`): what is in doubt is written to it.
    pub(super) fn catch_up_doubted(&mut self) {
        self.follow = Follow::Not;
        self.counters.unfollow();
        self.dirty_doubted(self.secondary());
        self.dirty_lacking();
        self.regions_stay();
        self.abandon_secondary();
        self.copy_mode = CopyMode::Dirty;
        self.copy_kind = WalkKind::Dirty;
        self.catch_up.at = Some(self.now);
        self.arm(self.now);
    }

    /// The guest stays where it is: what failed is answered with its error.
    pub(super) fn give_up_failover(&mut self, stops: bool) {
        self.keep_roles();
        self.end_drain();
        for tag in 0..self.guests.len() as u16 {
            let guest = self.guests[tag as usize];
            let Some(error) = guest.failed.filter(|_| guest.operation != Operation::Read) else {
                continue;
            };
            if guest.entry.is_none() {
                self.answer(Tag(tag), Err(error), guest.buf);
            }
        }
        for index in self.table.indices() {
            let entry = &self.table[index];
            if entry.live && entry.error.is_some() && matches!(entry.owner, Owner::Guest(_)) {
                self.settle(index);
            }
        }
        // If the secondary is being given up there is more to say.
        if self.leg(self.secondary()).health == Health::InSync {
            self.pump_record();
        }
        self.arm(self.now);
        self.stop_again(stops, false);
    }

    /// A failover interrupted a stop: it goes on. Not cleanly, and without another failover, if the guest was not moved.
    fn stop_again(&mut self, stops: bool, clean: bool) {
        if stops {
            self.begin_drain(Purpose::Stop, None);
            if let Some(drain) = &mut self.drain {
                drain.clean = clean;
            }
        }
    }
}
