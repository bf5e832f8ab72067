//! What goes wrong with disks and records, when, and whether it explains what the guest was told.
//!
//! Verifies that no request of the guest fails that a healthy leg could have served: the leg that served it (one that some
//! possible record names as primary) had an error of that kind in that place while the request was under way, and the other
//! leg was not whole then, or had trouble of its own since; or no record became durable for as long as the core may hold what
//! waits for one.

use crate::admin::Awaited;
use crate::check::Check;
use crate::disk::FlushLoss;
use crate::guest::Pending;
use crate::plan::{Faults, Lasting, Plan};
use crate::record::Store;
use crate::rng::Rng;
use crate::world::{Happening, World};
use twinblk::core::config::RECORD_BUDGET;
use twinblk::core::time::Span;
use twinblk::core::{Action, Errno, LegId, LegOp, Operation, Range, Time};

/// The next `left` operations of these kinds fail.
#[derive(Clone, Copy, Debug)]
struct Rule {
    kinds: u8,
    left: u32,
    error: Errno,
}

struct Injected {
    action: Action,
    range: Range,
    at: Time,
    /// The other leg had everything.
    sheltered: bool,
    /// It is the host's: nobody is moved for it.
    of_host: bool,
}

#[derive(Default)]
pub struct FaultState {
    rules: [Vec<Rule>; 2],
    lost: [bool; 2],
    /// What lasts, once it has begun, and the leg it is about.
    lasting: Option<(Lasting, LegId)>,
    /// Operations that a hung leg keeps.
    kept: Vec<(u64, u64)>,
    hung: [Option<Time>; 2],
    /// Errors of a leg that might be the primary.
    injected: Vec<Injected>,
    /// One of them ended a flush that no guest asked for: the next barrier may say so.
    untold: Option<Time>,
    /// When the guest had to wait for the primary or for a record last.
    excuse: Time,
    /// When a record could not be written last.
    record_failed: Option<Time>,
    /// A leg that was primary hangs.
    primary_hung: bool,
    /// Since when the guest is being moved.
    failover: Option<Time>,
    /// The primary hangs as soon as the guest is being moved off it.
    hangs_then: bool,
    /// The guest was being moved for as long as that may take, and is not moved yet.
    overdue: bool,
    /// By leg: the disk itself has failed something.
    failed: [bool; 2],
    /// When there were suspect places last: nobody is moved then.
    suspect_at: Option<Time>,
    /// By leg: when it was last seen to be in trouble.
    trouble: [Option<Time>; 2],
    /// How much went wrong in this life.
    count: u32,
    /// Nothing goes wrong for a while.
    pub suspended: bool,
}

/// How much goes wrong in one life.
const MOST_FAULTS: u32 = 24;

const READ: u8 = 1;
const WRITE: u8 = 2;
const FLUSH: u8 = 4;
const ZERO: u8 = 8;

fn kind(action: Action) -> u8 {
    match action {
        Action::Read => READ,
        Action::Write { .. } => WRITE,
        Action::Flush => FLUSH,
        Action::Zero { .. } => ZERO,
    }
}

impl FaultState {
    /// How an operation submitted now will end.
    pub fn fate(&mut self, leg: usize, action: Action, _range: Range) -> Result<(), Errno> {
        if self.lost[leg] {
            return Err(Errno(6));
        }
        for rule in &mut self.rules[leg] {
            if rule.kinds & kind(action) != 0 && rule.left > 0 {
                rule.left -= 1;
                return Err(rule.error);
            }
        }
        Ok(())
    }

    /// How it ends after all: a leg lost meanwhile takes what is in flight with it.
    pub fn late_fate(&self, leg: usize, fate: Result<(), Errno>) -> Result<(), Errno> {
        if self.lost[leg] { Err(Errno(6)) } else { fate }
    }

    pub fn is_lost(&self, leg: LegId) -> bool {
        self.lost[leg.index()]
    }

    pub fn is_hung(&self, leg: usize) -> bool {
        self.hung[leg].is_some()
    }

    pub fn hung_until(&self, leg: usize) -> Option<Time> {
        self.hung[leg]
    }

    /// Whether a leg that hangs for good keeps this operation, until it is healed.
    pub fn keeps(&mut self, leg: usize, id: u64, nonce: u64) -> bool {
        let keeps = self
            .lasting
            .is_some_and(|lasting| lasting == (Lasting::SecondaryHangs, LegId::ALL[leg]));
        if keeps {
            self.kept.push((id, nonce));
        }
        keeps
    }

    pub fn lasting(&self) -> Option<Lasting> {
        self.lasting.map(|(lasting, _)| lasting)
    }

    fn lasts(&self, lasting: Lasting, leg: usize) -> bool {
        self.lasting == Some((lasting, LegId::ALL[leg]))
    }

    pub fn note_error(&mut self, could_be_primary: bool, sheltered: bool, op: LegOp, error: Errno, now: Time) {
        self.trouble[op.leg.index()] = Some(now);
        let of_host = error.is_of_host();
        self.failed[op.leg.index()] |= !of_host;
        if could_be_primary {
            // The ids of guests' flushes end in 3.
            if op.action == Action::Flush && op.id.0 & 7 != 3 {
                self.untold = Some(now);
            }
            self.injected.push(Injected {
                action: op.action,
                range: op.range,
                at: now,
                sheltered,
                of_host,
            });
        }
    }

    /// The secondary was given up, for whatever reason.
    pub fn note_demotion(&mut self, leg: LegId, now: Time) {
        self.trouble[leg.index()] = Some(now);
    }

    /// There are suspect places.
    pub fn note_suspects(&mut self, now: Time) {
        self.suspect_at = Some(now);
    }

    /// The guest was moved off this leg.
    pub fn failed_over(&mut self, from: LegId, now: Time) {
        self.trouble[from.index()] = Some(now);
        self.failover = None;
        self.overdue = false;
    }

    /// Whether the disk itself has failed something in this life.
    pub fn has_failed(&self, leg: LegId) -> bool {
        self.failed[leg.index()]
    }

    /// Whether the guest was to be moved, and that took too long.
    pub fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// Whether the guest is being moved: it is held, for a time that is bounded whatever the legs do. Returns whether that was
    /// given up.
    fn note_failover(
        &mut self,
        under_way: bool,
        now: Time,
        leg_timeout: Span,
        plan: &Plan,
        store: &Store,
    ) -> Check<bool> {
        self.overdue |= self.failover.is_some_and(|since| now.since(since).0 >= leg_timeout.0);
        let Some(since) = self.failover.filter(|_| under_way) else {
            let given_up = self.failover.is_some();
            self.failover = under_way.then_some(now);
            return Ok(given_up);
        };
        self.excuse = now;
        // One that failed is tried again after a while.
        let pauses = store.undetermined().next().is_some();
        let fails = store.failing > 0 || store.hangs || self.record_failed.is_some_and(|at| at >= since);
        let unrecorded = fails || pauses;
        let for_records = if unrecorded { RECORD_BUDGET.0 } else { 0 };
        // A record that is under way is waited for, and then its own.
        let allowed = leg_timeout
            .0
            .saturating_add(for_records + 100_000_000 + 100 * plan.record_latency.0);
        if now.since(since).0 > allowed {
            return Err(format!("the guest is being moved since {since:?}"));
        }
        Ok(false)
    }

    /// Whether something stood in the way of moving the guest to the other leg when, or since, `error` was seen.
    fn was_alone(&self, store: &Store, primary: LegId, error: &Injected, overdue: bool) -> bool {
        let other = primary.other().index();
        let troubled =
            self.trouble[other].is_some_and(|at| at >= error.at) || self.hung[other].is_some() || self.lost[other];
        let unrecorded = self.record_failed.is_some_and(|at| at >= error.at) || store.failing > 0 || store.hangs;
        // A read is served by the other leg all the same, unless the primary then fails to take what was read.
        let unwritten = |later: &Injected| {
            let written = matches!(later.action, Action::Write { .. });
            written && later.at >= error.at && later.range.overlaps(error.range)
        };
        let moved = error.action != Action::Read || self.injected.iter().any(unwritten);
        let suspect = moved && self.suspect_at.is_some_and(|at| at >= error.at);
        !error.sheltered || error.of_host || troubled || unrecorded || overdue || suspect
    }

    pub fn flush_loss(&self, could_be_primary: bool, error: Errno, rng: &mut Rng) -> FlushLoss {
        if error.is_of_host() {
            FlushLoss::Kept
        } else if could_be_primary {
            rng.pick(&[FlushLoss::Kept, FlushLoss::Shown])
        } else {
            rng.pick(&[FlushLoss::Kept, FlushLoss::Shown, FlushLoss::Reverted])
        }
    }

    /// The last moment at which a request may have waited for something that nobody bounds.
    pub fn excused_until(&mut self, now: Time, store: &Store) -> Time {
        if store.failing > 0 || store.hangs {
            self.record_failed = Some(now);
        }
        if self.primary_hung {
            self.excuse = now;
        }
        self.excuse
    }

    /// How much longer than usual a request may wait because a record could not be written while it did: the core holds it
    /// for a budget, twice if it is a switch first and a leg's failure then.
    pub fn held_for_records(&self, since: Time) -> Span {
        match self.record_failed {
            Some(at) if at >= since => Span(2 * RECORD_BUDGET.0),
            _ => Span(0),
        }
    }

    /// A flush of the guest's succeeded that came after: what was still to be told has been.
    pub fn flush_succeeded(&mut self, submitted_at: Time) {
        self.untold = self.untold.filter(|at| *at >= submitted_at);
    }

    /// Whether something injected explains that this request fails.
    pub fn explains(&self, store: &Store, pending: &Pending, primary: LegId, now: Time, leg_timeout: Span) -> Check {
        let overdue = self.overdue || self.failover.is_some_and(|since| now.since(since).0 >= leg_timeout.0);
        let request = pending.request;
        let kinds = match request.operation {
            Operation::Read => READ,
            Operation::Flush => FLUSH,
            Operation::Write { fua: false } => WRITE,
            Operation::Write { fua: true } => WRITE | FLUSH,
            Operation::Discard => ZERO,
            Operation::WriteZeroes { .. } => ZERO | WRITE | FLUSH,
        };
        let explained = self.injected.iter().rev().any(|error| {
            error.at >= pending.submitted_at
                && kinds & kind(error.action) != 0
                && (error.action == Action::Flush || error.range.overlaps(request.range))
                && self.was_alone(store, primary, error, overdue)
        });
        let unrecorded = now.since(store.durable_at).0 >= RECORD_BUDGET.0 && request.operation != Operation::Read;
        let told_late = kinds & FLUSH != 0 && self.untold.is_some();
        if explained || unrecorded || told_late {
            Ok(())
        } else {
            Err(format!(
                "the primary had no such error that the other leg could not make up for since {:?} (now {now:?}), and a record was durable at {:?}",
                pending.submitted_at, store.durable_at
            ))
        }
    }

    fn heal(&mut self, leg: usize) {
        self.rules[leg].clear();
        self.lost[leg] &= self.lasts(Lasting::PrimaryLost, leg);
        if !self.lasts(Lasting::SecondaryHangs, leg) {
            self.hung[leg] = None;
        }
    }
}

impl World {
    /// Something goes wrong; later the next thing will.
    pub fn inject(&mut self) -> Check {
        let faults = self.plan.faults;
        if faults == Faults::None || self.issued >= self.budget || self.faults.suspended {
            return Ok(());
        }
        let interval = self.plan.fault_interval.0;
        let delay = self.around(interval);
        self.at(delay, Happening::Fault);
        let primary = self.mirror.status().record.primary;
        let chosen = match faults {
            Faults::None => return Ok(()),
            Faults::SecondaryErrors => 0,
            Faults::Errors => self.rng.pick(&[0, 1]),
            Faults::Hangs => self.rng.pick(&[2, 2, 3]),
            Faults::Records => 4,
            Faults::Everything => self.rng.pick(&[0, 1, 2, 2, 3, 4]),
            Faults::Doubt => self.rng.pick(&[0, 1, 1, 1, 1, 3, 4, 4, 4, 4, 5]),
        };
        // A world in which something always hangs or fails comes to no end.
        let hangs = self.faults.hung != [None; 2];
        if hangs && matches!(chosen, 2 | 3) || self.faults.count >= MOST_FAULTS {
            return Ok(());
        }
        self.faults.count += 1;
        match chosen {
            0 => self.break_leg(primary.other(), true),
            1 => {
                self.faults.hangs_then |= faults == Faults::Doubt && self.rng.percent(30);
                self.break_leg(primary, false);
            }
            2 => self.hang_leg(primary.other()),
            3 => self.hang_leg(primary),
            5 => {
                let leg = self.rng.pick(&LegId::ALL);
                self.host_fails(leg);
            }
            _ if self.store.failing > 0 || self.store.hangs => {}
            _ if faults == Faults::Doubt => {
                self.store.failing = self.rng.pick(&[5, u32::MAX, u32::MAX]);
                let delay = self.rng.pick(&[RECORD_BUDGET.0 / 2, RECORD_BUDGET.0 * 3 / 2]);
                self.at(delay, Happening::HealRecords);
                self.trace(|| "fault: records fail, for long".into());
            }
            _ => {
                self.store.failing = self.rng.pick(&[1, 1, 2, 5]);
                let delay = self.around(interval);
                self.at(delay, Happening::HealRecords);
                self.trace(|| "fault: records fail".into());
            }
        }
        self.stats.faults += 1;
        Ok(())
    }

    fn break_leg(&mut self, leg: LegId, may_be_lost: bool) {
        let at = leg.index();
        if may_be_lost && self.rng.percent(20) {
            self.faults.lost[at] = true;
        } else {
            let rule = Rule {
                kinds: self
                    .rng
                    .pick(&[READ, WRITE, WRITE, FLUSH, FLUSH, ZERO, WRITE | FLUSH, 15]),
                left: self.rng.pick(&[1, 1, 2, 20]),
                error: Errno::IO,
            };
            self.faults.rules[at].push(rule);
        }
        self.trace(|| {
            format!(
                "fault: leg {leg} lost {} rules {:?}",
                self.faults.lost[at], self.faults.rules[at]
            )
        });
        let delay = self.around(self.plan.fault_interval.0 * 2);
        self.at(delay, Happening::Heal { leg: at as u8 });
    }

    /// The host cannot do what a leg is asked.
    fn host_fails(&mut self, leg: LegId) {
        let rule = Rule {
            kinds: self.rng.pick(&[READ, WRITE, FLUSH, ZERO, 15]),
            left: self.rng.pick(&[1, 1, 2, 5]),
            error: Errno::NO_MEMORY,
        };
        self.faults.rules[leg.index()].push(rule);
        self.trace(|| format!("fault: the host cannot do what leg {leg} is asked: {rule:?}"));
        let delay = self.around(self.plan.fault_interval.0 * 2);
        self.at(delay, Happening::Heal { leg: leg.index() as u8 });
    }

    /// The guest is being moved, or not.
    pub fn watch_failover(&mut self) -> Check {
        let under_way = self.mirror.is_failing_over();
        let given_up =
            self.faults
                .note_failover(under_way, self.now, self.admin.leg_timeout, &self.plan, &self.store)?;
        self.stats.failovers_given_up += u64::from(given_up);
        if under_way && std::mem::take(&mut self.faults.hangs_then) && self.faults.hung == [None; 2] {
            self.hang_leg(self.mirror.status().primary);
        }
        Ok(())
    }

    fn hang_leg(&mut self, leg: LegId) {
        let at = leg.index();
        let long = self.admin.stall_budget.0.min(1_000_000_000);
        let mut length = self.rng.pick(&[long / 10, long / 2, long * 2]) + 1;
        if self.plan.faults == Faults::Doubt {
            length += 2 * self.admin.leg_timeout.0.min(4_000_000_000);
        }
        self.faults.hung[at] = Some(Time(self.now.0 + length));
        let primary = self.store.possible().any(|record| record.primary == leg);
        self.faults.primary_hung |= primary;
        self.trace(|| format!("fault: leg {leg} hangs for {} us", length / 1000));
        self.at(length, Happening::Heal { leg: at as u8 });
    }

    /// Whether what is to heal the leg is not what ends its hanging: with so many faults there is always something else.
    pub fn hangs_on(&self, leg: usize) -> bool {
        self.plan.faults == Faults::Doubt && self.faults.hung[leg].is_some_and(|until| until > self.now)
    }

    pub fn heal_leg(&mut self, leg: LegId) -> Check {
        self.trace(|| format!("heal leg {leg}"));
        self.faults.heal(leg.index());
        let none_hangs = self.faults.hung.iter().all(Option::is_none);
        if none_hangs && std::mem::take(&mut self.faults.primary_hung) {
            self.faults.excuse = self.now;
        }
        Ok(())
    }

    /// How long the secondary may keep a request, and an operation, waiting from now on.
    pub fn set_budgets(&mut self, stall: Span, timeout: Span) {
        self.mirror.set_leg_timeout(self.now, timeout);
        self.mirror.set_stall_budget(self.now, stall);
        self.admin.stall_budget = stall;
        self.admin.leg_timeout = timeout;
    }

    pub fn heal_everything(&mut self) -> Check {
        self.end_lasting();
        for leg in LegId::ALL {
            self.heal_leg(leg)?;
        }
        self.store.failing = 0;
        Ok(())
    }

    /// What lasts begins, if it can now.
    pub fn begin_lasting(&mut self) -> bool {
        let lasting = self.plan.lasting;
        let primary = self.mirror.status().primary;
        let layout = &self.plan.config.layout;
        let copies = layout.tags_bytes()..layout.pool_start();
        // A guest's read that was sent to a leg just before it ceased to be the primary waits for that leg, however long.
        let left_behind = self.flights.values().any(|flight| {
            let op = &flight.op;
            op.leg != primary && op.action == Action::Read && !copies.contains(&op.buf.offset())
        });
        let settled = !left_behind
            && self.store.possible().all(|record| record.primary == primary)
            && !self.admin.awaits(Awaited::Switch);
        match lasting {
            Lasting::None => return true,
            Lasting::SecondaryHangs if !settled => return false,
            Lasting::SecondaryHangs => self.faults.hung[primary.other().index()] = Some(Time(u64::MAX)),
            Lasting::PrimaryLost if !settled => return false,
            Lasting::PrimaryLost => self.faults.lost[primary.index()] = true,
            Lasting::RecordsFail => self.store.failing = u32::MAX,
            Lasting::RecordsHang => self.store.hangs = true,
        }
        let leg = if lasting == Lasting::PrimaryLost {
            primary
        } else {
            primary.other()
        };
        self.faults.lasting = Some((lasting, leg));
        self.trace(|| format!("fault that lasts: {lasting:?} ({leg})"));
        true
    }

    /// What lasted is over: what hung goes on.
    fn end_lasting(&mut self) {
        let Some((lasting, _)) = self.faults.lasting.take() else {
            return;
        };
        self.trace(|| format!("{lasting:?} is over"));
        for (op, nonce) in std::mem::take(&mut self.faults.kept) {
            let delay = self.rng.below(1_000_000);
            self.at(delay, Happening::Completion { op, nonce });
        }
        self.store.hangs = false;
        if self.store.is_writing() && self.store.kept {
            self.store.kept = false;
            self.at(1_000, Happening::Recorded);
        }
    }
}
