//! What needs a quiet device: a switch, a change of protocol, a stop, a hand-over (see `hand_over`).
//!
//! In order: (switch) the lag is brought down with the guest throttled; new mutations and barriers are held, reads are not;
//! everything admitted is answered and on both legs; both legs are flushed; the record is made durable; what was held goes on.
//!
//! *What must hold:* roles change in memory only after the record that says so is durable, and while anything is held for a
//! switch both legs are equal, but where the primary failed and the secondary is right (see `doubt`). So a kill at any step leaves one authoritative leg, and it has everything acknowledged.
//! Until the record is begun the switch can be given up without a trace. When its write fails, the old roles are recorded
//! again under a higher number, and until that is durable only what both legs completed is acknowledged.

use super::Mirror;
use super::OpKind;
use super::follow::Follow;
use crate::core::breaks::{self, Break};
use crate::core::config::RECORD_BUDGET;
use crate::core::effect::Event;
use crate::core::leg::{Health, LegId};
use crate::core::record::Protocol;
use crate::core::request::{Errno, Operation, Tag};
use crate::core::time::{Span, Time};

pub(super) const HOLD_DRAIN: u8 = 1;
pub(super) const HOLD_DIGEST: u8 = 2;
/// Reads too.
pub(super) const HOLD_READS: u8 = 4;

/// Lag in pool bytes that a switch lets go into its pause.
const LOW: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Switch,
    Protocol(Protocol),
    /// Move the guest off a primary that failed; then stop, if that is what was interrupted.
    Failover {
        stops: bool,
    },
    Stop,
    /// When the record with this number is durable, records can be written.
    HandOver(u64),
}

impl Purpose {
    /// Whether it ends with a record that says clean, and this core with it.
    pub(super) fn is_final(self) -> bool {
        match self {
            Purpose::Stop | Purpose::HandOver(_) => true,
            Purpose::Switch | Purpose::Protocol(_) | Purpose::Failover { .. } => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Bring the lag down; the epoch must be durable on the secondary.
    Lower(u64),
    /// Hold, and wait until nothing is under way.
    Hold,
    /// Both legs are being flushed.
    Flush,
    /// What is dirty is being saved, so that the record can be clean.
    Save,
    /// The record is being written.
    Record,
    /// Stopped for good.
    Stopped,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    pub(super) purpose: Purpose,
    pub(super) phase: Phase,
    max_pause: Option<Span>,
    /// When the hold began; before that, when the drain did; for a failover's record, when that was wanted.
    pub(super) held_at: Time,
    pub(super) clean: bool,
    /// Bytes of the pool that may be in use; sinks while the lag is brought down.
    limit: u64,
    /// The longest time that a request was held and then let go on.
    longest: Span,
}

/// A flush of a leg that a drain or a checkpoint asked for; it may come back after that was given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainFlush {
    pub(super) issued_at: Time,
    /// Where the list of unflushed writes stood then.
    pub(super) mark: u64,
}

impl Mirror {
    pub(super) fn begin_drain(&mut self, purpose: Purpose, max_pause: Option<Span>) {
        let in_sync = self.follow == Follow::InSync;
        let lowers = match purpose {
            Purpose::Switch | Purpose::Protocol(_) => in_sync,
            Purpose::Failover { .. } | Purpose::Stop => false,
            Purpose::HandOver(_) => true,
        };
        let phase = if lowers {
            Phase::Lower(if in_sync { self.epochs.close() } else { 0 })
        } else {
            Phase::Hold
        };
        self.drain = Some(Drain {
            purpose,
            phase,
            max_pause,
            held_at: self.now,
            clean: true,
            limit: self.pool.used().max(LOW),
            longest: Span(0),
        });
        if lowers {
            self.try_flush_secondary();
        } else {
            self.hold();
        }
    }

    /// Most bytes of the pool that a drain that is coming allows. The limit sinks with each payload that is admitted, so
    /// the guest goes on at a part of the secondary's speed while the lag comes down.
    pub(super) fn drain_limit(&self) -> u64 {
        match self.drain {
            Some(Drain {
                phase: Phase::Lower(_),
                limit,
                ..
            }) => limit,
            _ => u64::MAX,
        }
    }

    /// A payload of so many bytes was admitted.
    pub(super) fn lower_limit(&mut self, held: u64) {
        if let Some(drain) = &mut self.drain {
            drain.limit = drain.limit.saturating_sub(held).max(LOW);
        }
    }

    /// The request waits because the lag is being brought down. That is no fault of the secondary: its clocks do not run,
    /// the drain's does.
    pub(super) fn throttle(&mut self, tag: Tag) {
        let guest = &mut self.guests[tag.0 as usize];
        if guest.held_since.is_none() {
            guest.held_since = Some(self.now);
            if let Some(Drain {
                max_pause: Some(pause), ..
            }) = self.drain
            {
                self.arm(self.now + pause);
            }
        }
    }

    /// A request that was held is admitted.
    pub(super) fn note_hold(&mut self, since: Time) {
        let held = self.now.since(since);
        if let Some(drain) = &mut self.drain {
            drain.longest = drain.longest.max(held);
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        let stops = |drain: Drain| match drain.purpose {
            Purpose::Stop | Purpose::Failover { stops: true } => true,
            Purpose::Failover { stops: false } | Purpose::Switch | Purpose::Protocol(_) | Purpose::HandOver(_) => {
                drain.phase == Phase::Stopped
            }
        };
        self.drain.is_some_and(stops)
    }

    fn set_phase(&mut self, phase: Phase) {
        self.drain.as_mut().expect("a drain is under way").phase = phase;
    }

    fn hold(&mut self) {
        self.holds |= HOLD_DRAIN;
        let now = self.now;
        let drain = self.drain.as_mut().expect("a drain is under way");
        drain.phase = Phase::Hold;
        drain.held_at = now;
        let longest = match drain.purpose {
            Purpose::Failover { .. } => self.config.leg_timeout,
            Purpose::Switch | Purpose::Protocol(_) | Purpose::Stop | Purpose::HandOver(_) => {
                drain.max_pause.unwrap_or(RECORD_BUDGET)
            }
        };
        let look_at = now + longest;
        let hands_over = matches!(drain.purpose, Purpose::HandOver(_));
        self.arm(look_at);
        for &tag in &self.waiting {
            let guest = &mut self.guests[tag.0 as usize];
            guest.held_since = guest.held_since.or(Some(now));
            if hands_over {
                // Whatever it waited for, it is the hand-over now, and no fault of the secondary.
                guest.alone_since = None;
            }
        }
        if hands_over {
            self.hold_reads();
        }
    }

    /// Whether a drain that is under way, if one is, can make place for a failover: its record is not begun, and no stop has
    /// given up being clean.
    pub(super) fn may_drain_for_failover(&self) -> bool {
        match self.drain {
            None => true,
            Some(Drain { phase, clean, .. }) => matches!(phase, Phase::Lower(_) | Phase::Hold | Phase::Flush) && clean,
        }
    }

    /// Give up whatever a failover interrupts.
    pub(super) fn give_up_drain(&mut self) {
        match self.drain.map(|drain| drain.purpose) {
            Some(Purpose::Switch) => self.give_up_switch(),
            Some(Purpose::Protocol(_)) => self.give_up_protocol(),
            // It begins anew.
            Some(Purpose::Stop) => self.drain = None,
            Some(Purpose::HandOver(_)) => self.hand_over_disturbed(),
            Some(Purpose::Failover { .. }) | None => {}
        }
    }

    /// Whether a read that failed may take a place in the order of both legs now: nothing counts on there being none. (What a
    /// hand-over holds waits with the other reads.)
    pub(super) fn may_rewrite(&self) -> bool {
        match self.drain {
            None => true,
            Some(Drain { purpose, phase, .. }) => {
                matches!(phase, Phase::Lower(_) | Phase::Hold) && !matches!(purpose, Purpose::Failover { .. })
            }
        }
    }

    /// The drain is over, one way or the other: what was held goes on. Returns the longest time that a request was held.
    pub(super) fn end_drain(&mut self) -> Span {
        let longest = self.drain.take().map_or(Span(0), |drain| drain.longest);
        self.watch_tracking();
        let longest = longest.max(self.release_hold(HOLD_DRAIN | HOLD_READS));
        self.release_reads();
        self.watch_quiet();
        longest
    }

    /// Reads that were held wait for nothing that came before them.
    fn release_reads(&mut self) {
        for _ in 0..self.waiting.len() {
            let Some(tag) = self.waiting.pop_front() else { break };
            let guest = &mut self.guests[tag.0 as usize];
            match guest.operation {
                Operation::Read => {
                    guest.alone_since = None;
                    self.read_from_primary(tag);
                }
                Operation::Write { .. } | Operation::WriteZeroes { .. } | Operation::Discard | Operation::Flush => {
                    self.waiting.push_back(tag);
                }
            }
        }
    }

    /// Hold reads too; a drain that holds is under way.
    pub(super) fn hold_reads(&mut self) {
        self.holds |= HOLD_READS;
        self.park_failed_reads();
    }

    /// Let go on what was held. Returns the longest time that a request was.
    pub(super) fn release_hold(&mut self, holds: u8) -> Span {
        self.holds &= !holds;
        let mut longest = Span(0);
        for &tag in &self.waiting {
            if let Some(since) = self.guests[tag.0 as usize].held_since.take() {
                longest = longest.max(self.now.since(since));
            }
        }
        longest
    }

    pub(super) fn pump_drain(&mut self) {
        let Some(drain) = self.drain else { return };
        debug_assert!(
            drain.purpose != Purpose::Switch || self.follow == Follow::InSync,
            "a switch ends before its secondary does"
        );
        match drain.phase {
            Phase::Lower(epoch) => {
                let low = self.pool.used() <= LOW && self.epochs.durable() >= epoch;
                let ready = match drain.purpose {
                    Purpose::HandOver(number) => low && self.proves_records(number),
                    Purpose::Switch | Purpose::Protocol(_) | Purpose::Failover { .. } | Purpose::Stop => {
                        low || self.follow != Follow::InSync
                    }
                };
                if ready {
                    self.hold();
                    self.pump_drain();
                }
            }
            Phase::Hold => {
                if self.is_stop_unrecordable() {
                    // From here on it is not clean, whatever becomes of the record: a secondary that comes to be in sync now is
                    // not flushed for it.
                    self.drain = Some(Drain { clean: false, ..drain });
                }
                if self.is_quiet() {
                    match drain.purpose {
                        Purpose::Switch | Purpose::Failover { .. } | Purpose::Stop | Purpose::HandOver(_) => {
                            self.flush_for_drain()
                        }
                        Purpose::Protocol(_) => self.record_drain(),
                    }
                }
            }
            Phase::Flush if self.is_flushing() => {}
            Phase::Flush if drain.purpose.is_final() && drain.clean => {
                self.set_phase(Phase::Save);
                self.save();
            }
            Phase::Flush => self.record_drain(),
            Phase::Save if self.is_stop_unrecordable() => self.drain_unsaved(),
            Phase::Save => {}
            Phase::Record if self.is_stop_unrecordable() => self.stopped(false),
            Phase::Record | Phase::Stopped => {}
        }
    }

    /// What a stop had saved is durable, or is not. Returns false if it does not wait for that (any more).
    pub(super) fn drain_saved(&mut self, result: Result<(), Errno>) -> bool {
        if result.is_err() {
            self.hand_over_disturbed();
        }
        let waits = self.drain.is_some_and(|drain| drain.phase == Phase::Save);
        if waits {
            match result {
                // Nothing is under way: this says it all.
                Ok(()) => self.tracking.tracked = self.is_trackable(),
                Err(_) => self.lose_track(),
            }
            self.record_drain();
        }
        waits
    }

    fn drain_unsaved(&mut self) {
        self.lose_track();
        self.record_drain();
    }

    /// A stop has been waiting for a record as long as it may: it ends without, and the next start compares everything.
    fn is_stop_unrecordable(&self) -> bool {
        self.stop_record_due().is_some_and(|due| due <= self.now)
    }

    /// When a stop that waits for a record, or for the state directory's tables, waits no longer.
    fn stop_record_due(&self) -> Option<Time> {
        let drain = self.drain.filter(|drain| match drain.purpose {
            Purpose::Stop => true,
            // Before that it can be given up.
            Purpose::HandOver(_) => drain.phase == Phase::Record,
            Purpose::Switch | Purpose::Protocol(_) | Purpose::Failover { .. } => false,
        })?;
        let since = match self.recorder.busy_since() {
            Some(since) => since.max(drain.held_at),
            None if !self.tracking.is_idle() || self.is_telling() || !self.are_suspects_kept() => drain.held_at,
            None => return None,
        };
        Some(since + RECORD_BUDGET)
    }

    pub(super) fn stopped(&mut self, clean: bool) {
        // The record that ends this core is also the first after which a leg that is being detached can be let go: nothing is
        // told, or let go, after this.
        self.leg_is_quiet();
        self.set_phase(Phase::Stopped);
        match self.drain {
            Some(Drain {
                purpose: Purpose::HandOver(_),
                held_at: since,
                ..
            }) => self.notify(Event::HandedOver { clean, since }),
            Some(_) | None => self.notify(Event::Stopped { clean }),
        }
    }

    /// Stopped for good: there are no further effects.
    pub(super) fn is_stopped(&self) -> bool {
        self.drain.is_some_and(|drain| drain.phase == Phase::Stopped)
    }

    /// A record is begun: a drain that may be waiting for it looks at its clock when it should be durable.
    pub(super) fn watch_drain_record(&mut self) {
        if self.drain.is_some() {
            self.arm(self.now + RECORD_BUDGET);
        }
    }

    fn is_quiet(&self) -> bool {
        if breaks::on(Break::SwitchUndrained) && self.drain.is_some_and(|drain| drain.purpose == Purpose::Switch) {
            return true;
        }
        if self.is_failing_over() {
            return self.is_quiet_for_failover();
        }
        let unrecordable = self
            .drain
            .is_some_and(|drain| drain.purpose == Purpose::Stop && !drain.clean);
        let steady = matches!(self.follow, Follow::Not | Follow::Syncing | Follow::InSync) || unrecordable;
        let answered = steady && self.admitted == 0;
        let is_final = self.drain.is_some_and(|drain| drain.purpose.is_final());
        // The next core is to know what is suspect, and nobody writes the list behind its back.
        let tables_idle = !is_final || unrecordable || self.tracking.is_idle() && self.are_suspects_kept();
        let asked = self.tracking.is_flushing() || self.check.is_flushing();
        let flushing = self.drain_flushes.iter().any(Option::is_some) || asked;
        let hashing = is_final && (self.pieces > 0 || self.is_telling()) && !unrecordable;
        let under_way = self.flush.is_some() || flushing || hashing || !tables_idle;
        match self.drain {
            // A leg that does not count has no part in the protocol: what it may still be at is not waited for.
            Some(Drain {
                purpose: Purpose::Protocol(_),
                ..
            }) if self.follow != Follow::InSync => answered,
            Some(Drain {
                purpose: Purpose::HandOver(_),
                ..
            }) if self.reads != [0; 2] || self.failed_reads > 0 => false,
            Some(_) | None => answered && self.table.len() == 0 && self.abandoned == 0 && !under_way,
        }
    }

    fn flush_for_drain(&mut self) {
        self.set_phase(Phase::Flush);
        for leg in LegId::ALL {
            let wanted = match leg == self.primary {
                true => !self.is_failing_over(),
                false => self.follow == Follow::InSync || self.keeps_copied(),
            };
            if wanted {
                let mark = self.unflushed[leg.index()].mark();
                self.drain_flushes[leg.index()] = Some(DrainFlush {
                    issued_at: self.now,
                    mark,
                });
                self.submit_flush(OpKind::DrainFlush(leg), leg);
                self.watch_leg();
            }
        }
    }

    /// Whether a flush that the drain waits for is under way.
    fn is_flushing(&self) -> bool {
        let [primary, secondary] =
            [self.primary, self.secondary()].map(|leg| self.drain_flushes[leg.index()].is_some());
        primary || (secondary && (self.follow == Follow::InSync || self.keeps_copied()))
    }

    pub(super) fn drain_flush_completed(&mut self, leg: LegId, result: Result<(), Errno>) {
        let flush = self.drain_flushes[leg.index()]
            .take()
            .expect("a drain's flush is under way");
        match result {
            Ok(()) => {
                self.unflushed[leg.index()].flushed(flush.mark);
                // Nothing was admitted since it was issued, if the drain still waits for it.
                let waited_for = self.drain.is_some_and(|drain| drain.phase == Phase::Flush);
                if waited_for && leg != self.primary && self.counters.is_following() {
                    self.counters.flushed = self.counters.mirrored();
                }
            }
            Err(error) => {
                self.unasked_flush_failed(leg, error);
                if leg == self.primary {
                    self.drain_failed();
                }
            }
        }
        self.leg_is_quiet();
    }

    /// The primary could not be flushed: roles stay as they are, a stop is not clean.
    fn drain_failed(&mut self) {
        match &mut self.drain {
            Some(Drain {
                purpose: Purpose::Switch,
                phase: Phase::Flush,
                ..
            }) => self.give_up_switch(),
            Some(Drain {
                purpose: Purpose::HandOver(_),
                ..
            }) => self.hand_over_disturbed(),
            Some(Drain {
                purpose: Purpose::Failover { .. },
                ..
            }) => {}
            Some(drain) => drain.clean = false,
            None => {}
        }
    }

    /// The secondary is given up. A switch has no purpose any more; if its record is being written, the next one is to say
    /// otherwise, and until that is durable the leg counts as primary. A stop looks again at what it has to wait for.
    pub(super) fn drain_lost_secondary(&mut self) {
        match self.drain {
            Some(Drain {
                purpose: Purpose::Switch,
                ..
            }) => self.give_up_switch(),
            Some(Drain {
                purpose: Purpose::HandOver(_),
                ..
            }) => self.hand_over_disturbed(),
            Some(Drain {
                purpose: Purpose::Failover { stops },
                ..
            }) => self.give_up_failover(stops),
            Some(Drain {
                phase: Phase::Flush, ..
            }) => self.set_phase(Phase::Hold),
            Some(_) | None => {}
        }
    }

    fn record_drain(&mut self) {
        let Some(drain) = self.drain else { return };
        self.set_phase(Phase::Record);
        match drain.purpose {
            Purpose::Switch => {
                self.recorder.primary = self.primary.other();
                if self.is_primary_doubted() {
                    let primary = self.primary;
                    self.leg_mut(primary).health = Health::Syncing;
                }
            }
            Purpose::Failover { .. } => {
                self.record_failover();
                let now = self.now;
                self.drain.as_mut().expect("a drain is under way").held_at = now;
                self.arm(now + RECORD_BUDGET);
            }
            Purpose::Protocol(protocol) => self.recorder.protocol = protocol,
            Purpose::Stop | Purpose::HandOver(_) if drain.clean => {
                let secondary = self.secondary();
                let lacks = self.doubt.some_lacks();
                let unequal = lacks || !self.dirty.is_empty() || self.resync.active || !self.is_trackable();
                if self.follow == Follow::InSync && unequal {
                    // What is dirty is known to this core only: the next one must not take the leg for equal.
                    self.leg_mut(secondary).health = Health::Syncing;
                }
                self.recorder.clean = true;
            }
            Purpose::Stop | Purpose::HandOver(_) => {
                self.stopped(false);
                return;
            }
        }
        self.pump_record();
        self.drain_recorded();
    }

    /// A record is durable: if it is the one that a drain waits for, go on.
    pub(super) fn drain_recorded(&mut self) {
        let Some(Drain {
            purpose,
            phase: Phase::Record,
            ..
        }) = self.drain
        else {
            return;
        };
        if self.recorder.is_busy() {
            // Another record may be in force before long: one that was begun under the old roles, when a failover's was late.
            return;
        }
        let durable = *self.recorder.durable();
        match purpose {
            Purpose::Switch if durable.primary != self.primary => {
                self.primary = durable.primary;
                // The new primary has everything, durably.
                self.flush_failure_untold = false;
                // It was the old one that failed, even if nothing is lacking or in doubt there: the guest is off it.
                self.failover_due = false;
                self.counters.follow();
                self.counters.flushed = self.counters.source;
                let pause = self.end_drain();
                let (from, to, generation) = (self.secondary(), self.primary, self.counters.source);
                if self.leg(from).health != Health::InSync {
                    self.catch_up_doubted();
                }
                self.notify(Event::Switched {
                    from,
                    to,
                    pause,
                    generation,
                    era: durable.era,
                });
            }
            Purpose::Protocol(protocol) if durable.protocol == protocol => {
                self.protocol = protocol;
                self.end_drain();
                self.notify(Event::ProtocolSet { done: true });
            }
            Purpose::Failover { stops } if durable.primary != self.primary => self.failed_over(stops),
            Purpose::Stop | Purpose::HandOver(_) if durable.clean => self.stopped(true),
            Purpose::Switch
            | Purpose::Protocol(_)
            | Purpose::Failover { .. }
            | Purpose::Stop
            | Purpose::HandOver(_) => {}
        }
    }

    /// The record's write failed: nobody knows what is on disk.
    pub(super) fn drain_record_failed(&mut self) {
        match self.drain {
            Some(Drain {
                purpose: Purpose::Switch,
                phase: Phase::Record,
                ..
            }) => self.give_up_switch(),
            Some(Drain {
                purpose: Purpose::Protocol(_),
                phase: Phase::Record,
                ..
            }) => self.give_up_protocol(),
            Some(Drain {
                purpose: Purpose::HandOver(_),
                ..
            }) => self.hand_over_unrecorded(),
            _ => {}
        }
    }

    fn give_up_protocol(&mut self) {
        self.recorder.protocol = self.protocol;
        self.end_drain();
        self.notify(Event::ProtocolSet { done: false });
    }

    fn give_up_switch(&mut self) {
        self.keep_roles();
        let pause = self.end_drain();
        self.notify(Event::SwitchGivenUp { pause });
    }

    /// The record is to say what it said of the primary before a switch or a failover.
    pub(super) fn keep_roles(&mut self) {
        let primary = self.primary;
        self.recorder.primary = primary;
        self.leg_mut(primary).health = Health::InSync;
    }

    pub(super) fn check_drain_deadline(&mut self) {
        if let Some(due) = self.stop_record_due().filter(|due| *due > self.now) {
            self.arm(due);
        }
        if let Some(Drain {
            purpose: Purpose::Failover { stops },
            phase,
            held_at,
            ..
        }) = self.drain
        {
            self.check_failover(stops, phase, held_at);
            return;
        }
        let Some(Drain {
            purpose,
            phase,
            max_pause: Some(pause),
            held_at,
            ..
        }) = self.drain
        else {
            return;
        };
        let oldest = self
            .waiting
            .iter()
            .filter_map(|tag| self.guests[tag.0 as usize].held_since)
            .min();
        let (since, pause) = match phase {
            Phase::Lower(_) if matches!(purpose, Purpose::HandOver(_)) => self.lowering_ends(held_at, oldest, pause),
            Phase::Lower(_) => (oldest, pause),
            Phase::Hold | Phase::Flush | Phase::Save => {
                (Some(oldest.map_or(held_at, |oldest| oldest.min(held_at))), pause)
            }
            // The state directory does not answer. With the old roles (or protocol) the guest goes on: until a record says so
            // again, only what both legs completed is acknowledged.
            Phase::Record => (self.recorder.writing_since(), RECORD_BUDGET),
            Phase::Stopped => (None, pause),
        };
        match since {
            Some(since) if since + pause > self.now => self.arm(since + pause),
            Some(_) => match purpose {
                Purpose::Switch => self.give_up_switch(),
                Purpose::Protocol(_) => self.give_up_protocol(),
                Purpose::HandOver(_) => self.hand_over_disturbed(),
                Purpose::Failover { .. } | Purpose::Stop => {}
            },
            None => {}
        }
    }
}
