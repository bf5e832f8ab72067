//! A hand-over: another daemon goes on with the device and its guest.
//!
//! It is a stop (see [`drain`](super::drain)) under a guest that is still there, so it has a bound, and it holds reads too:
//! nothing may be under way on a leg when this core ends, and none may begin.
//!
//! *What must hold:* nothing is written to a leg, and nothing answered, once a record that says clean may be on disk. Whoever
//! finds that record compares nothing.
//! *How:* that record is begun when nothing is admitted and nothing is under way, and from then on there is no way back: holds
//! stay, whatever becomes of the record. So whichever record is found is true: the clean one, or the one before, under which
//! what is marked active is compared. Before it is begun everything can be given up without a trace.
//! *Why that costs nobody his device:* a state directory in which no record can be written stops the next daemon as well, so
//! before anything is held a record is written that says nothing new. It must be durable.
//! *Why it ends:* the lag comes down or [`LOWERING`] ends; from the hold on the pause runs; from the record on its budget.

use super::Mirror;
use super::drain::{Drain, Phase, Purpose};
use super::follow::Follow;
use super::table::Side;
use crate::core::config::Refusal;
use crate::core::effect::Event;
use crate::core::leg::LegId;
use crate::core::request::Tag;
use crate::core::time::{Span, Time};

/// How long the lag may take to come down, and the first record to be durable.
const LOWERING: Span = Span::from_secs(10);

impl Mirror {
    /// Bring everything to the legs and record it as clean, with the guest's requests held, for another core to go on; ends with
    /// `HandedOver`, after which nothing more is answered, or with `HandOverGivenUp`. No request is held longer than
    /// `max_pause` before the record is begun.
    ///
    /// # Errors
    /// `Busy`; `Unanswered` if it could only be given up, because of that leg.
    pub fn hand_over(&mut self, now: Time, max_pause: Span) -> Result<(), Refusal> {
        self.now = now;
        self.refuse_while_draining()?;
        if self.check.is_asked_for() || self.recorder.is_uncertain() || self.failover_due {
            return Err(Refusal::Busy);
        }
        if let Some(leg) = self.unanswering(max_pause) {
            return Err(Refusal::Unanswered(leg));
        }
        self.recheck_gives_way();
        let number = self.recorder.renew();
        self.begin_drain(Purpose::HandOver(number), Some(max_pause));
        self.arm(now + LOWERING);
        self.pump_record();
        self.pump();
        Ok(())
    }

    /// A leg with operations that nobody waits for any more, or that have taken longer already than may be waited.
    fn unanswering(&self, max_pause: Span) -> Option<LegId> {
        let of_drain = LegId::ALL
            .into_iter()
            .find(|leg| self.drain_flushes[leg.index()].is_some() || self.check.mend_flush_on(*leg).is_some());
        let (now, secondary) = (self.now, self.secondary());
        let mut entries = self.table.indices().map(|index| &self.table[index]);
        let hangs = entries.any(|entry| {
            entry.live && entry.sides[secondary.index()] == Side::Issued && entry.issued_at + max_pause <= now
        });
        of_drain.or((self.abandoned > 0 || hangs).then_some(secondary))
    }

    pub(super) fn is_handing_over(&self) -> bool {
        self.drain
            .is_some_and(|drain| matches!(drain.purpose, Purpose::HandOver(_)))
    }

    /// Whether a secondary that is not in sync is flushed all the same: what was copied since its last flush would have to be
    /// copied again.
    pub(super) fn keeps_copied(&self) -> bool {
        self.is_handing_over() && self.follow == Follow::Syncing
    }

    /// Whether the record that was to prove that records can be written is durable, and no other under way.
    pub(super) fn proves_records(&self, number: u64) -> bool {
        self.recorder.durable().number >= number && !self.recorder.is_busy()
    }

    /// Since when, and how long, the lag may be brought down.
    pub(super) fn lowering_ends(&self, begun_at: Time, oldest: Option<Time>, pause: Span) -> (Option<Time>, Span) {
        match oldest {
            Some(oldest) if oldest + pause < begun_at + LOWERING => (Some(oldest), pause),
            Some(_) | None => (Some(begun_at), LOWERING),
        }
    }

    /// Something stands in the way of a hand-over, if one is under way: it is given up, unless it is too late for that.
    pub(super) fn hand_over_disturbed(&mut self) {
        let Some(Drain {
            purpose: Purpose::HandOver(_),
            phase,
            ..
        }) = self.drain
        else {
            return;
        };
        match phase {
            Phase::Lower(_) | Phase::Hold | Phase::Flush | Phase::Save => self.give_up_hand_over(),
            Phase::Record | Phase::Stopped => {}
        }
    }

    /// A record's write failed. If it was the clean one, nobody knows whether it is on disk: the only way is on.
    pub(super) fn hand_over_unrecorded(&mut self) {
        if self.drain.is_some_and(|drain| drain.phase == Phase::Record) {
            self.stopped(false);
        } else {
            self.hand_over_disturbed();
        }
    }

    fn give_up_hand_over(&mut self) {
        let unfinished = LegId::ALL.map(|leg| self.is_unfinished(leg));
        let pause = self.end_drain();
        self.notify(Event::HandOverGivenUp { pause, unfinished });
    }

    /// Whether something on the leg has not ended that a hand-over waits for.
    fn is_unfinished(&self, leg: LegId) -> bool {
        let (at, is_secondary) = (leg.index(), leg != self.primary);
        // What waits there, waits for one of these.
        let on_it = |side: Side| matches!(side, Side::Issued | Side::Abandoned);
        let mut entries = self.table.indices().map(|index| &self.table[index]);
        let asked = [self.drain_flushes[at], self.tracking.flushes[at]];
        let flushed = asked.iter().all(Option::is_none) && self.check.mend_flush_on(leg).is_none();
        let flushes_of_guests = || {
            (0..self.guests.len() as u16).map(Tag).any(|tag| {
                let guest = &self.guests[tag.0 as usize];
                guest.active && guest.admitted && !guest.primary_flushed
            })
        };
        let of_role = match is_secondary {
            true => self.flush.is_some() || self.abandoned > 0,
            false => flushes_of_guests(),
        };
        !flushed || of_role || self.reads[at] > 0 || entries.any(|entry| entry.live && on_it(entry.sides[at]))
    }
}
