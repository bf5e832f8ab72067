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
use crate::plan::{Faults, Lasting};
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
}

struct Injected {
    action: Action,
    range: Range,
    at: Time,
    /// The other leg had everything.
    sheltered: bool,
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
    /// Since when the guest is being moved, and when that was seen last.
    failover: Option<(Time, Time)>,
    /// By leg: when it was last seen to be in trouble.
    trouble: [Option<Time>; 2],
    /// How much went wrong in this life.
    count: u32,
    /// Nothing goes wrong for a while.
    pub suspended: bool,
}

/// How long the guest may be held while it is moved off a primary that fails: each operation of the secondary has its deadline, and
/// the record a budget.
const MOST_FAILOVER: Span = Span(300_000_000_000);

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
                return Err(Errno::IO);
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

    pub fn note_error(&mut self, could_be_primary: bool, sheltered: bool, op: LegOp, now: Time) {
        self.trouble[op.leg.index()] = Some(now);
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
            });
        }
    }

    /// The secondary was given up, for whatever reason.
    pub fn note_demotion(&mut self, leg: LegId, now: Time) {
        self.trouble[leg.index()] = Some(now);
    }

    /// The guest was moved off this leg.
    pub fn failed_over(&mut self, from: LegId, now: Time) {
        self.trouble[from.index()] = Some(now);
    }

    /// The guest is being moved: it waits for the secondary, as long as that gets on.
    pub fn note_failover(&mut self, now: Time) -> Check {
        let since = match self.failover {
            Some((since, last)) if now.since(last).0 < 1_000_000_000 => since,
            _ => now,
        };
        self.failover = Some((since, now));
        self.excuse = now;
        if now.since(since).0 > MOST_FAILOVER.0 {
            return Err(format!("the guest is being moved since {since:?}"));
        }
        Ok(())
    }

    /// Whether something stood in the way of moving the guest to the other leg when, or since, `error` was seen.
    fn was_alone(&self, store: &Store, primary: LegId, error: &Injected) -> bool {
        let other = primary.other().index();
        let troubled =
            self.trouble[other].is_some_and(|at| at >= error.at) || self.hung[other].is_some() || self.lost[other];
        let unrecorded = self.record_failed.is_some_and(|at| at >= error.at) || store.failing > 0 || store.hangs;
        !error.sheltered || troubled || unrecorded
    }

    pub fn flush_loss(&self, could_be_primary: bool, rng: &mut Rng) -> FlushLoss {
        if could_be_primary {
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
    pub fn explains(&self, store: &Store, pending: &Pending, primary: LegId, now: Time) -> Check {
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
                && self.was_alone(store, primary, error)
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
        };
        // A world in which something always hangs or fails comes to no end.
        let hangs = self.faults.hung != [None; 2];
        if hangs && matches!(chosen, 2 | 3) || self.faults.count >= MOST_FAULTS {
            return Ok(());
        }
        self.faults.count += 1;
        match chosen {
            0 => self.break_leg(primary.other(), true),
            1 => self.break_leg(primary, false),
            2 => self.hang_leg(primary.other()),
            3 => self.hang_leg(primary),
            _ if self.store.failing > 0 || self.store.hangs => {}
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

    fn hang_leg(&mut self, leg: LegId) {
        let at = leg.index();
        let long = self.admin.stall_budget.0.min(1_000_000_000);
        let length = self.rng.pick(&[long / 10, long / 2, long * 2]) + 1;
        self.faults.hung[at] = Some(Time(self.now.0 + length));
        let primary = self.store.possible().any(|record| record.primary == leg);
        self.faults.primary_hung |= primary;
        self.trace(|| format!("fault: leg {leg} hangs for {} us", length / 1000));
        self.at(length, Happening::Heal { leg: at as u8 });
    }

    pub fn heal_leg(&mut self, leg: LegId) -> Check {
        self.trace(|| format!("heal leg {leg}"));
        self.faults.heal(leg.index());
        if self.faults.hung.iter().all(Option::is_none) {
            self.faults.primary_hung = false;
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
