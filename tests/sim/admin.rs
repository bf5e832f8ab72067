//! The administrator: attaches, detaches, switches and changes settings at any moment, whether it fits or not.
//!
//! Verifies: what was accepted is answered by its event within a bound; a leg is released only when nothing is in flight on it;
//! a leg's health is told when the record says so; a secondary that hangs for longer than its time-out is given up;
//! without faults nothing is demoted that the administrator did not ask for; a resync writes no more than the device
//! once. A refusal is legal whenever the core says so, but `stats` must show that each verb succeeds somewhere.

use crate::check::Check;
use crate::plan::{Admin, Faults, Lasting, Plan};
use crate::token::{SECTOR, Token};
use crate::world::{Happening, World};
use twinblk::core::time::Span;
use twinblk::core::{
    Action, Comes, CopyMode, Event, Health, LegId, LegOp, LegTraits, Protocol, Record, Refusal, Status, Time,
};

/// How much later than a clock runs out it may be seen to.
const CLOCKS_LATE: Span = Span::from_millis(100);

/// What an administrator waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    Detach,
    Switch,
    Verify,
    Digest,
    Stop,
    Protocol,
    HandOver,
}

pub struct AdminState {
    pub claimed: [bool; 2],
    /// Somebody else has written to the leg since it was detached, or it never belonged to the device; until it is in
    /// sync again nothing is expected of its content.
    pub replaced: [bool; 2],
    /// The same, until it is attached: nobody may vouch for it.
    pub touched: [bool; 2],
    pub stopped: bool,
    pub stopped_clean: bool,
    /// The largest and the smallest that were in force.
    pub stall_budget: Span,
    pub stall_budget_least: Span,
    /// Demotions, and copies of what a slow leg had to miss, need no other reason than load: `async` was chosen, or a
    /// limit is meant to be hit.
    pub lenient: bool,
    /// The number of the record that is to be durable for what goes with it.
    pub renewal: Option<u64>,
    /// By leg: the health that was recorded at the start, or told last.
    told: [Option<Health>; 2],
    /// How long an operation of the secondary may take.
    pub leg_timeout: Span,
    awaited: Vec<(Awaited, Time)>,
    in_sync: bool,
    /// The secondary was in sync without interruption since the verify began.
    verify_undisturbed: bool,
    resync_began: Time,
}

impl AdminState {
    pub fn new(plan: &Plan) -> AdminState {
        AdminState {
            claimed: [false; 2],
            replaced: [false; 2],
            touched: [false; 2],
            stopped: false,
            stopped_clean: false,
            stall_budget: plan.config.stall_budget,
            stall_budget_least: plan.config.stall_budget,
            lenient: plan.protocol == Protocol::Async
                || plan.faults != Faults::None
                || plan.lasting != Lasting::None
                || plan.config.lag_bytes != 0,
            renewal: None,
            told: [None; 2],
            leg_timeout: plan.config.leg_timeout,
            awaited: Vec::new(),
            in_sync: false,
            verify_undisturbed: false,
            resync_began: Time(0),
        }
    }

    /// A verify begins.
    pub fn begin_verify(&mut self) {
        self.verify_undisturbed = self.in_sync;
    }

    pub fn awaits(&self, what: Awaited) -> bool {
        self.awaited.iter().any(|(awaited, _)| *awaited == what)
    }

    pub fn awaits_anything(&self) -> Option<Awaited> {
        self.awaited.first().map(|(awaited, _)| *awaited)
    }

    /// A detach was asked for outside [`World::administrate`].
    pub fn expect_detach(&mut self, now: Time) {
        self.awaited.push((Awaited::Detach, now));
    }

    pub fn answered(&mut self, what: Awaited) -> Check {
        match self.awaited.iter().position(|(awaited, _)| *awaited == what) {
            Some(at) => {
                self.awaited.remove(at);
                Ok(())
            }
            None => Err(format!("nobody waits for {what:?}")),
        }
    }
}

impl World {
    /// The administrator does something, and will again.
    pub fn administrate(&mut self) -> Check {
        if self.issued >= self.budget {
            return Ok(());
        }
        // What lasts is waited for by whole seconds: an administrator in a hurry would do nothing but be refused.
        let haste = if self.faults.lasting().is_some() { 50 } else { 1 };
        let delay = self.around(self.plan.admin_interval.0) * haste;
        self.at(delay, Happening::Admin);
        let secondary = self.mirror.status().record.primary.other();
        let claimed = self.admin.claimed[secondary.index()];
        //            attach switch detach protocol verify digest pause rate pool budgets cancel
        let weights = match self.plan.admin {
            Admin::Absent => return Ok(()),
            Admin::Calm => [30, 0, 0, 0, 3, 3, 1, 1, 1, 0, 0],
            Admin::Switching => [30, 30, 3, 2, 1, 1, 0, 0, 0, 0, 0],
            Admin::Seeding => [30, 4, 10, 0, 2, 12, 1, 0, 0, 0, 1],
            Admin::Restless => [20, 10, 10, 8, 6, 6, 6, 6, 5, 5, 3],
        };
        let mut weights = weights;
        if self.plan.rot_interval.is_some() {
            weights[4] *= 4;
        }
        match self.rng.weighted(&weights) {
            0 if !claimed => self.attach(secondary),
            0 => Ok(()),
            1 => {
                let pause = self
                    .rng
                    .pick(&[None, Some(0), Some(500_000), Some(50_000_000)])
                    .map(Span);
                self.switch(pause)
            }
            2 => {
                let result = self.mirror.detach(self.now, secondary);
                self.asked(Some(Awaited::Detach), "detach", result)
            }
            3 => {
                let protocol = self.rng.pick(&[Protocol::Sync, Protocol::Flush, Protocol::Async]);
                self.admin.lenient |= protocol == Protocol::Async;
                let result = self.mirror.set_protocol(self.now, protocol);
                self.asked(Some(Awaited::Protocol), protocol.word(), result)
            }
            4 => self.verify(),
            5 => self.digest(),
            choice => {
                self.adjust(choice);
                self.adjust_quiet();
                Ok(())
            }
        }
    }

    fn adjust(&mut self, choice: usize) {
        let (now, rng) = (self.now, &mut self.rng);
        match choice {
            6 => self.mirror.pause_resync(now, rng.percent(40)),
            7 => self.mirror.set_rate(now, rng.pick(&[0, 0, 1 << 20, 16 << 20])),
            8 => {
                let layout = &self.plan.config.layout;
                let buffers = rng.within(1, layout.pool_max / u64::from(layout.max_io));
                // A refusal is fine: what is in use cannot be taken away.
                let _ = self.mirror.set_pool_bytes(now, buffers * u64::from(layout.max_io));
            }
            9 if self.plan.faults != Faults::None => {
                let budget = Span::from_millis(rng.pick(&[5, 50, 500]));
                self.admin.stall_budget = Span(self.admin.stall_budget.0.max(budget.0));
                self.admin.stall_budget_least = Span(self.admin.stall_budget_least.0.min(budget.0));
                self.mirror.set_stall_budget(now, budget);
            }
            9 => {
                self.admin.lenient = true;
                self.mirror.set_lag_bytes(now, rng.within(0, 32) * 4096);
            }
            _ => self.mirror.cancel_check(now),
        }
    }

    /// Extents are to be hashed sooner or later than before.
    fn adjust_quiet(&mut self) {
        if self.signatures.rng.percent(20) {
            let quiet = self.signatures.rng.pick(&[100_000, 2_000_000, 50_000_000]);
            self.mirror.set_quiet(self.now, Span(quiet));
        }
    }

    pub fn attach(&mut self, leg: LegId) -> Check {
        let at = leg.index();
        if !self.admin.replaced[at] && self.rng.percent(25) {
            (self.admin.replaced[at], self.admin.touched[at]) = (true, true);
            let nonce = self.rng.below(1 << 30) + 1;
            let kept: Vec<Token> = self.disks[at].live().to_vec();
            let block = u64::from(self.plan.config.geometry.block) / SECTOR;
            let junk = kept.into_iter().enumerate().map(|(sector, token)| {
                let keeps = crate::rng::mix(nonce ^ (sector as u64 / block)) & 1 == 0;
                if keeps {
                    token
                } else {
                    Token::junk(nonce, sector as u64)
                }
            });
            self.disks[at].replace(junk);
        }
        let pretends = self.plan.drive_caches && self.rng.percent(60);
        if self.disks[at].reopen(pretends) {
            (self.admin.replaced[at], self.admin.touched[at]) = (true, true);
        }
        self.disks[at].begin_anew();
        let how = if self.admin.touched[at] {
            self.rng.pick(&[CopyMode::Blind, CopyMode::Compare])
        } else {
            let how = self
                .rng
                .pick(&[CopyMode::Blind, CopyMode::Compare, CopyMode::Dirty, CopyMode::Dirty]);
            let seeded = self.signatures.rng.percent(35);
            if seeded { CopyMode::Compare } else { how }
        };
        // Whether it is unchanged cannot always be proved, unless somebody says so.
        let is_proven = how == CopyMode::Dirty || self.signatures.rng.percent(85);
        let is_known = !self.admin.touched[at] && is_proven;
        let traits = LegTraits {
            punches: self.plan.punches[at],
        };
        self.admin.claimed[at] = true;
        let comes = if is_known { Comes::Known } else { Comes::Another };
        let result = self.mirror.attach(self.now, leg, traits, how, comes);
        match result {
            Ok(()) => {
                self.stats.attaches += 1;
                self.admin.touched[at] = false;
                if !is_known || how == CopyMode::Blind {
                    self.rot.forget();
                }
            }
            Err(_) => self.admin.claimed[at] = false,
        }
        self.asked(None, "attach", result)
    }

    fn switch(&mut self, pause: Option<Span>) -> Check {
        let suspect = !self.mirror.suspects().is_empty();
        let force = suspect && self.rot.rng.percent(20);
        let result = self.mirror.switch(self.now, pause, force);
        if suspect && !force && result.is_ok() {
            return Err(format!("a switch begins, and there are {:?}", self.mirror.suspects()));
        }
        if suspect && result.is_ok() {
            // From now on either leg may be found to be the primary.
            self.decide_by_switch(self.mirror.status().primary.other());
        }
        self.stats.suspect_refusals += u64::from(result == Err(Refusal::Suspect));
        self.asked(Some(Awaited::Switch), "switch", result)
    }

    pub fn verify(&mut self) -> Check {
        let repair = self.rot.choose();
        self.verify_with(repair)
    }

    pub fn digest(&mut self) -> Check {
        let leg = self.rng.pick(&LegId::ALL);
        let pause = Span(self.rng.pick(&[0, 1_000_000, 100_000_000]));
        let reads_back = self.signatures.rng.percent(30);
        self.digest_of(leg, pause, reads_back)
    }

    pub fn digest_of(&mut self, leg: LegId, pause: Span, reads_back: bool) -> Check {
        let result = self.mirror.digest(self.now, leg, pause, reads_back);
        if result.is_ok() {
            self.walks.begin_digest(reads_back);
        }
        self.asked(Some(Awaited::Digest), "digest", result)
    }

    pub fn stop(&mut self) -> Check {
        let result = self.mirror.stop(self.now);
        self.asked(Some(Awaited::Stop), "stop", result)
    }

    pub fn asked(&mut self, awaited: Option<Awaited>, verb: &str, result: Result<(), Refusal>) -> Check {
        self.trace(|| format!("admin: {verb} {result:?}"));
        match (result, awaited) {
            (Ok(()), Some(awaited)) => self.admin.awaited.push((awaited, self.now)),
            (Ok(()), None) => {}
            (Err(_), _) => self.stats.refusals += 1,
        }
        Ok(())
    }

    pub fn notified(&mut self, event: Event) -> Check {
        self.trace(|| format!("event {event:?}"));
        match event {
            Event::Health {
                leg,
                health: Health::Failed,
            } if !self.faults.has_failed(leg) => Err(format!("leg {leg} is failed, and no disk has failed anything")),
            Event::Health { leg, health } => {
                self.admin.told[leg.index()] = Some(health);
                self.check_told(leg)
            }
            Event::ResyncEnded { .. } | Event::Tracked(_) => Ok(()),
            Event::FailedOver { from, .. } if !self.faults.has_failed(from) => {
                Err(format!("the guest is moved off leg {from}, which has failed nothing"))
            }
            Event::FailedOver { .. } if !self.mirror.suspects().is_empty() => Err(format!(
                "the guest is moved, and there are {:?}",
                self.mirror.suspects()
            )),
            Event::FailedOver { from, .. } => {
                self.stats.failovers += 1;
                // Its reads may have shown what the guest was not told of, and it is not what it was.
                self.faults.failed_over(from, self.now);
                self.disks[from.index()].expect_again();
                Ok(())
            }
            Event::Rewritten(_) => {
                self.stats.rewrites += 1;
                Ok(())
            }
            Event::LegError { .. } => {
                self.stats.leg_errors += 1;
                self.admin.verify_undisturbed = false;
                Ok(())
            }
            Event::Detached(_) => {
                self.stats.detaches += 1;
                self.admin.answered(Awaited::Detach)
            }
            Event::Switched { from, to, .. } => {
                self.decide_by_switch(to);
                self.stats.switches += 1;
                self.disks[from.index()].expect_again();
                self.admin.answered(Awaited::Switch)
            }
            Event::SwitchGivenUp { .. } => {
                self.stats.switches_given_up += 1;
                self.admin.answered(Awaited::Switch)
            }
            Event::Rechecked { .. } => {
                self.stats.rechecks += 1;
                Ok(())
            }
            Event::Difference(suspect) => self.told_to_differ(suspect, true),
            Event::Strayed(suspect) => self.told_to_differ(suspect, false),
            Event::Mended { leg, range } => self.told_to_be_mended(leg, range),
            Event::Verified { complete, repaired, .. } => {
                self.admin.answered(Awaited::Verify)?;
                self.verified(complete, self.admin.verify_undisturbed, repaired)
            }
            Event::Digested {
                generation,
                leg,
                complete,
                known,
            } => {
                self.admin.answered(Awaited::Digest)?;
                if complete {
                    return self.check_digest(generation, leg, known);
                }
                self.stats.digests_given_up += 1;
                Ok(())
            }
            Event::ProtocolSet { done } => {
                self.stats.protocols_set += u64::from(done);
                self.admin.answered(Awaited::Protocol)
            }
            Event::HandedOver { clean, since: _ } => self.handed_over(clean),
            Event::HandOverGivenUp { .. } => {
                self.stats.hand_overs_given_up += 1;
                self.admin.answered(Awaited::HandOver)
            }
            Event::Stopped { clean } => {
                self.admin.stopped = true;
                self.admin.stopped_clean = clean;
                self.stats.stops += 1;
                self.admin.answered(Awaited::Stop)
            }
        }
    }

    pub fn release(&mut self, leg: LegId) -> Check {
        self.trace(|| format!("release {leg}"));
        if let Some(flight) = self.flights.values().find(|flight| flight.op.leg == leg) {
            return Err(format!("leg {leg} is released with {:?} in flight", flight.op));
        }
        self.admin.claimed[leg.index()] = false;
        self.stats.releases += 1;
        Ok(())
    }

    /// What was told of a leg is what the record says, whichever a start finds.
    fn check_told(&self, leg: LegId) -> Check {
        let told = self.admin.told[leg.index()];
        let recorded = |record: &Record| record.legs[leg.index()].map(|leg| leg.health);
        match self.store.possible().find(|record| recorded(record) != told) {
            None => Ok(()),
            Some(record) => Err(format!(
                "leg {leg} was told to be {told:?}, a start may find {record:?}"
            )),
        }
    }

    /// A life begins with what its first record says.
    pub fn told_by_record(&mut self, record: &Record) {
        self.admin.told = record.legs.map(|leg| leg.map(|leg| leg.health));
    }

    /// Nothing has become durable of which nobody was told.
    fn watch_told(&self, status: &Status) -> Check {
        let recorded = status.record.legs.map(|leg| leg.map(|leg| leg.health));
        if recorded == self.admin.told {
            Ok(())
        } else {
            Err(format!("told {:?}, recorded {:?}", self.admin.told, status.record))
        }
    }

    /// A secondary that has been at an operation for longer than the leg time-out is not followed any more.
    fn watch_hung(&self, status: &Status) -> Check {
        let secondary = status.record.primary.other();
        let followed = status.legs[secondary.index()].is_some_and(|leg| leg.health == Health::InSync);
        let allowed = self.admin.leg_timeout.0.saturating_add(CLOCKS_LATE.0);
        let layout = &self.plan.config.layout;
        let copies = layout.tags_bytes()..layout.pool_start();
        let hung = self.flights.values().find(|flight| {
            // A guest's read of a leg that was primary when it came is nothing that the leg is followed by.
            let follows = flight.op.action != Action::Read || copies.contains(&flight.op.buf.offset());
            flight.op.leg == secondary && follows && self.now.since(flight.issued_at).0 > allowed
        });
        match hung.filter(|_| followed && status.primary == status.record.primary) {
            None => Ok(()),
            Some(flight) => Err(format!(
                "leg {secondary} counts as in sync and hangs in {:?}",
                flight.op
            )),
        }
    }

    /// Health as the core sees it: counts, and demotions that nothing explains.
    pub fn watch_health(&mut self, status: &Status) -> Check {
        self.watch_told(status)?;
        self.watch_hung(status)?;
        let secondary = status.record.legs[status.record.primary.other().index()];
        let in_sync = secondary.is_some_and(|leg| leg.health == Health::InSync && leg.attached);
        let was = std::mem::replace(&mut self.admin.in_sync, in_sync);
        if in_sync && !was {
            self.stats.in_sync += 1;
            self.admin.replaced = [false; 2];
        }
        if was && !in_sync {
            self.stats.demotions += 1;
            self.faults.note_demotion(status.primary.other(), self.now);
            self.admin.verify_undisturbed = false;
            let asked = self.admin.awaits(Awaited::Detach) || self.stats.detaches > 0;
            if !self.admin.lenient && !asked {
                return Err(format!(
                    "the secondary is demoted without a reason: {:?}",
                    status.record
                ));
            }
        }
        if status.resync.began != self.admin.resync_began {
            self.admin.resync_began = status.resync.began;
            self.walks.copied = 0;
        }
        let geometry = &self.plan.config.geometry;
        let most = geometry.extents() * u64::from(geometry.extent);
        if !self.admin.lenient && self.walks.copied > most {
            return Err(format!(
                "a resync wrote {} bytes to a device of {most}",
                self.walks.copied
            ));
        }
        Ok(())
    }

    /// Count what is written out of copy buffers.
    pub fn count_copied(&mut self, op: &LegOp) {
        let layout = &self.plan.config.layout;
        let copies = layout.tags_bytes()..layout.pool_start();
        let copied = matches!(op.action, Action::Write { .. }) && copies.contains(&op.buf.offset());
        if copied && !self.is_mending(op) {
            self.walks.copied += op.range.len;
        }
    }
}
