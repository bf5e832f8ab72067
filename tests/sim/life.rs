//! The lives of a device: started, used, cut or killed or stopped, and started again from what is left.
//!
//! Verifies at each end what the disks hold against the record that a start finds, at rest that everything is equal and
//! counted, after a stop that the record is clean and all of it durable. A start does what the daemon does: after an unclean end
//! the secondary is recorded as syncing before anything is served.

use crate::admin::Awaited;
use crate::check::{Check, End, at_rest, flush_acknowledged, image_after, survivor_holds};
use crate::counters::Counters;
use crate::disk::Disk;
use crate::faults::FaultState;
use crate::guest::Guest;
use crate::oracle::Oracle;
use crate::plan::{Admin, Lasting, Plan};
use crate::record::Store;
use crate::rng::Rng;
use crate::stats::Stats;
use crate::token::{SECTOR, Token};
use crate::walk::Walks;
use crate::what_if::is_taken_in;
use crate::world::{Happening, World};
use twinblk::core::time::Span;
use twinblk::core::{
    CopyMode, Health, LegId, LegRecord, LegTraits, Mirror, Protocol, Record, Repair, Status, Suspects,
};

/// Simulated time within which a healthy device comes to rest.
const REST: Span = Span(600_000_000_000);

/// What is suspect may have to be mended so often: lists that cannot be written keep it from that.
const MOST_DECISIONS: u32 = 8;

/// Run the world of `plan` to its end.
pub fn run(plan: Plan, trace: bool) -> Check<Stats> {
    let mut world = first_life(plan, trace);
    for life in 0..plan.lives {
        world.stats.lives += 1;
        world.live(plan.requests)?;
        world.stats.ceilings_raised += std::mem::take(&mut world.store.ceilings_raised);
        let last = life + 1 == plan.lives;
        match world.rng.below(if last { 6 } else { 5 }) {
            choice if world.admin.stopped => world.end(if choice < 3 { End::Cut } else { End::Kill })?,
            0 => world.end(End::Cut)?,
            1 => world.end(End::Kill)?,
            _ => {
                world.rest()?;
                world.check_up()?;
                match world.rng.below(4) {
                    0 => world.end(End::Cut)?,
                    1 => world.end(End::Kill)?,
                    _ => world.stop_cleanly()?,
                }
            }
        }
        world.start_again()?;
    }
    world.live(20)?;
    if !world.admin.stopped {
        world.rest()?;
    }
    Ok(world.stats)
}

/// A start records before it serves that a secondary which may differ is not in sync.
fn check_opened(found: &Record, opened: &Record) -> Check {
    let secondary = found.primary.other().index();
    let in_sync = |record: &Record| record.legs[secondary].is_some_and(|leg| leg.health == Health::InSync);
    if opened.clean || opened.number <= found.number || opened.era <= found.era || opened.primary != found.primary {
        return Err(format!("a start makes {opened:?} of {found:?}"));
    }
    if in_sync(opened) && !(found.clean && in_sync(found)) {
        return Err(format!("a start trusts the secondary: {opened:?} after {found:?}"));
    }
    Ok(())
}

/// The record that a start makes; of plans that have few generations at a time, it makes few available.
fn opened(found: &Record, there: [bool; 2], plan: &Plan) -> Record {
    Record {
        generation_ceiling: found.generation_ceiling + plan.config.generations,
        ..found.opened(there)
    }
}

fn traits(plan: &Plan, leg: LegId) -> LegTraits {
    LegTraits {
        punches: plan.punches[leg.index()],
    }
}

pub fn first_life(plan: Plan, trace: bool) -> World {
    let mut rng = Rng::new(plan.seed ^ 0x5eed);
    let sectors = plan.config.geometry.size / SECTOR;
    let block = u64::from(plan.config.geometry.block) / SECTOR;
    let content: Vec<Token> = (0..sectors).map(|sector| Token::written(1, sector)).collect();
    let other = if plan.begins_mirrored {
        content.clone()
    } else {
        (0..sectors).map(|sector| Token::junk(7, sector)).collect()
    };
    let leg = LegRecord {
        health: Health::InSync,
        consistent_at: 0,
        attached: true,
        doubted: false,
    };
    let first = Record {
        legs: [Some(leg), plan.begins_mirrored.then_some(leg)],
        ..Record::first(plan.protocol)
    };
    let there = first.legs.map(|leg| leg.is_some());
    let record = opened(&first, there, &plan);
    let legs = LegId::ALL.map(|leg| there[leg.index()].then(|| traits(&plan, leg)));
    let disks = [Disk::new(content, block), Disk::new(other, block)];
    let world_rng = Rng::new(rng.next());
    let mut world = World::assemble(
        plan,
        world_rng,
        Mirror::new(
            plan.config,
            record,
            legs,
            None,
            Suspects::none(),
            CopyMode::Compare,
            twinblk::core::Time(1_000_000),
        ),
        disks,
        Store::new(record, twinblk::core::Time(1_000_000)),
        1,
        trace,
    );
    world.admin.claimed = there;
    world.told_by_record(&record);
    world.admin.replaced = [false, !plan.begins_mirrored];
    world.admin.touched = world.admin.replaced;
    world
}

impl World {
    /// Let the guest, the administrator and chance do what they like, until `requests` more were issued.
    pub fn live(&mut self, requests: u64) -> Check {
        self.trace(|| format!("a life begins: {:?}", self.plan));
        self.budget = self.issued + requests;
        self.settle_effects()?;
        self.wake();
        self.at(0, Happening::Admin);
        if self.plan.renews {
            self.at(0, Happening::Renew);
        }
        if let Some(interval) = self.plan.rot_interval {
            let delay = self.rot.rng.around(interval.0);
            self.at(delay, Happening::Rot);
        }
        let delay = self.around(self.plan.fault_interval.0);
        self.at(delay, Happening::Fault);
        let mut lasting_at = match self.plan.lasting {
            Lasting::None => u64::MAX,
            _ => self.issued + self.rng.below(requests),
        };
        while self.issued < self.budget {
            if self.issued >= lasting_at && self.begin_lasting() {
                lasting_at = u64::MAX;
            }
            if self.hand_over_perhaps()? {
                return Ok(());
            }
            self.must_step()?;
        }
        if self.outwait_hand_over()? {
            return Ok(());
        }
        // The end comes in the middle of things.
        for _ in 0..self.rng.below(40) {
            if !self.is_quiet() && !self.step()? {
                break;
            }
        }
        if self.faults.lasting().is_some() && self.rng.percent(80) {
            self.outlast()?;
        } else if self.plan.admin == Admin::Seeding && self.signatures.rng.percent(40) {
            self.stop_in_haste()?;
        }
        Ok(())
    }

    /// A stop in the middle of things, whatever is being copied.
    fn stop_in_haste(&mut self) -> Check {
        self.heal_everything()?;
        self.stop()?;
        self.settle_effects()?;
        while self.admin.awaits(Awaited::Stop) {
            self.must_step()?;
        }
        Ok(())
    }

    /// What lasts does not end: every request is answered all the same, and so are those that come after.
    fn outlast(&mut self) -> Check {
        let until = self.now + self.admin.stall_budget + self.admin.leg_timeout;
        for more in [0, 20] {
            self.budget = self.issued + more;
            self.wake();
            while self.issued < self.budget || self.guest.outstanding().next().is_some() {
                self.must_step()?;
            }
        }
        while self.now < until && self.step()? {}
        match self.faults.lasting() {
            Some(Lasting::SecondaryHangs) => self.stats.outlasted_hangs += 1,
            Some(Lasting::PrimaryLost) => {
                self.stats.outlasted_losses += 1;
                self.survive()?;
                self.stop_in_trouble()?;
            }
            Some(Lasting::RecordsFail | Lasting::RecordsHang) => {
                self.stats.outlasted_records += 1;
                self.stop_in_trouble()?;
            }
            Some(Lasting::None) | None => {}
        }
        Ok(())
    }

    /// The primary is lost; what is on its way to a secondary that follows gets there.
    fn survive(&mut self) -> Check {
        let status = self.mirror.status();
        let secondary = status.primary.other();
        let follows = |status: &Status| {
            let [recorded, is] = [
                status.record.legs.map(|leg| leg.map(|leg| leg.health)),
                status.legs.map(|leg| leg.map(|leg| leg.health)),
            ]
            .map(|legs| legs[secondary.index()] == Some(Health::InSync));
            recorded && is && status.counting && status.writes_mirrored == status.source_generation
        };
        if self.faults.is_lost(secondary) {
            // The guest was moved to the leg that is left.
            self.stats.survivors += 1;
            return survivor_holds(&self.oracle, &self.disks[status.primary.index()], &[]);
        }
        if follows(&status) && !self.flights.values().any(|flight| flight.op.leg == secondary) {
            self.stats.survivors += 1;
            survivor_holds(&self.oracle, &self.disks[secondary.index()], &self.suspected_now())?;
        }
        Ok(())
    }

    /// A stop where no record can be written, or the primary cannot be flushed, ends, and is not clean.
    fn stop_in_trouble(&mut self) -> Check {
        if !self.rng.percent(40) {
            return Ok(());
        }
        self.stop()?;
        self.settle_effects()?;
        while self.admin.awaits(Awaited::Stop) {
            self.must_step()?;
        }
        if self.admin.stopped {
            self.stats.unrecordable_stops += 1;
            let moved = self.faults.is_lost(self.mirror.status().primary.other());
            if self.admin.stopped_clean && !moved {
                return Err("a stop is said to be clean that could not be recorded".into());
            }
        }
        Ok(())
    }

    /// All clients that wait for nothing ask again.
    fn wake(&mut self) {
        for tag in 0..self.guest.pending.len() {
            if self.guest.pending[tag].is_none() {
                let delay = self.rng.below(100_000);
                self.at(delay, Happening::Client { tag: tag as u16 });
            }
        }
    }

    pub fn must_step(&mut self) -> Check {
        if self.step()? {
            Ok(())
        } else {
            Err(format!("nothing will ever happen again: {}", self.unrest()))
        }
    }

    /// Faults end, the guest and the administrator pause: everything must come to rest, answered, counted and equal.
    pub fn rest(&mut self) -> Check {
        self.budget = self.issued;
        self.heal_everything()?;
        self.mirror.pause_resync(self.now, false);
        self.mirror.set_rate(self.now, 0);
        self.mirror.set_catch_up(self.now, true);
        // A leg that is slower than its time-out by nature never comes back: here it may be as slow as it is.
        self.set_budgets(REST, REST);
        self.settle_effects()?;
        self.trace(|| "to rest".into());
        let mut until = self.now + REST;
        let (mut attached, mut decisions) = (false, 0);
        let mut lingers = self.signatures.rng.percent(50);
        loop {
            if self.is_rested() && std::mem::take(&mut lingers) {
                self.linger()?;
            }
            if self.is_rested() {
                break;
            }
            let undecided = decisions < MOST_DECISIONS && !self.mirror.suspects().is_empty();
            let late = self.now > until;
            if late && !undecided {
                return Err(format!("it does not come to rest: {}", self.unrest()));
            }
            if late || !self.step()? {
                // What is suspect keeps the guest on a primary that failed.
                if undecided {
                    (decisions, until) = (decisions + 1, self.now + REST);
                    self.decide()?;
                    continue;
                }
                // A leg that failed waits for the administrator.
                if attached || !self.nudge()? {
                    return Err(format!("stuck, and not at rest: {}", self.unrest()));
                }
                attached = true;
            }
        }
        // What comes after is judged by the budgets that the plan means.
        self.set_budgets(self.plan.config.stall_budget, self.plan.config.leg_timeout);
        self.settle_effects()?;
        let status = self.mirror.status();
        at_rest(&self.oracle, &self.disks, &status.record, &self.suspected_now())?;
        self.check_known_at_rest(self.secondary_follows())?;
        if self.secondary_follows() {
            self.stats.rests_in_sync += 1;
        }
        Ok(())
    }

    /// What was written is hashed, now that it is quiet.
    fn linger(&mut self) -> Check {
        let until = self.now + Span(200_000_000);
        while self.now < until && self.step()? {}
        Ok(())
    }

    /// Whether a secondary is there and followed.
    fn secondary_follows(&self) -> bool {
        let record = self.mirror.status().record;
        let other = record.primary.other().index();
        self.admin.claimed[other] && record.legs[other].is_some_and(|leg| leg.attached)
    }

    fn is_rested(&self) -> bool {
        if !self.is_quiet() || self.admin.awaits_anything().is_some() || self.admin.renewal.is_some() {
            return false;
        }
        if !self.secondary_follows() {
            return true;
        }
        let status = self.mirror.status();
        let leg = status.record.legs[status.record.primary.other().index()];
        leg.is_some_and(|leg| leg.health == Health::InSync)
            && status.dirty_bytes == 0
            && !status.rechecking
            && status.writes_mirrored == status.source_generation
    }

    fn unrest(&self) -> String {
        let requests: Vec<_> = self.guest.outstanding().map(|pending| pending.request).collect();
        format!(
            "awaited {:?}, renewal {:?}, requests {requests:?}, operations {:?}, record under way {}, walks {}, {:?}",
            self.admin.awaits_anything(),
            self.admin.renewal,
            self.flights.values().map(|flight| flight.op).collect::<Vec<_>>(),
            self.store.is_writing(),
            !self.walks.is_idle(),
            self.mirror.status()
        )
    }

    /// Take a leg that will not come back by itself off and attach it anew.
    fn nudge(&mut self) -> Check<bool> {
        let status = self.mirror.status();
        let leg = status.record.primary.other();
        let failed = status.record.legs[leg.index()].is_some_and(|leg| leg.health != Health::InSync);
        if !failed || status.comes_by_itself {
            return Ok(false);
        }
        if self.mirror.detach(self.now, leg).is_err() {
            return Ok(false);
        }
        self.trace(|| format!("admin: leg {leg} will not come back by itself"));
        self.settle_nudge(leg)?;
        self.attach(leg)?;
        self.settle_effects()?;
        Ok(true)
    }

    fn settle_nudge(&mut self, leg: LegId) -> Check {
        self.admin.expect_detach(self.now);
        self.settle_effects()?;
        while self.admin.claimed[leg.index()] {
            self.must_step()?;
        }
        Ok(())
    }

    /// At rest: corrupt something, verify under load, digest, and come to rest again.
    fn check_up(&mut self) -> Check {
        self.faults.suspended = true;
        if self.secondary_follows() {
            if self.rng.percent(50) {
                self.rot(4);
            }
            self.verify()?;
            self.settle_effects()?;
            self.busy_while(Awaited::Verify)?;
            if self.rot.rng.percent(60) && self.secondary_follows() {
                self.decide()?;
                self.busy_while(Awaited::Verify)?;
            }
        }
        self.digest()?;
        self.settle_effects()?;
        self.busy_while(Awaited::Digest)?;
        if self.signatures.rng.percent(50) {
            // Of what was not written since, nothing is read again.
            let primary = self.mirror.status().primary;
            self.digest_of(primary, Span(100_000_000), false)?;
            self.settle_effects()?;
            self.busy_while(Awaited::Digest)?;
        }
        self.faults.suspended = false;
        self.rest()
    }

    /// Somebody decides what is right where the legs differ.
    fn decide(&mut self) -> Check {
        let right = self.rot.rng.pick(&LegId::ALL);
        self.verify_with(Repair::From(right))?;
        self.settle_effects()
    }

    /// Some load while something is awaited, then none, until it has come.
    fn busy_while(&mut self, what: Awaited) -> Check {
        self.budget = self.issued + self.rng.below(40);
        self.wake();
        let until = self.now + REST;
        while self.admin.awaits(what) {
            let status = self.mirror.status();
            if self.issued >= self.budget && (status.paused || status.rate != 0) {
                // Whatever the administrator did under the load: a pause would never end by itself.
                self.mirror.pause_resync(self.now, false);
                self.mirror.set_rate(self.now, 0);
                self.settle_effects()?;
                if !self.admin.awaits(what) {
                    break;
                }
            }
            self.must_step()?;
            if self.now > until {
                return Err(format!("{what:?} does not end"));
            }
        }
        self.budget = self.issued;
        while !self.is_quiet() {
            self.must_step()?;
        }
        Ok(())
    }

    /// A clean stop: everything durable, the record clean, nothing in flight.
    fn stop_cleanly(&mut self) -> Check {
        self.stop()?;
        self.settle_effects()?;
        let until = self.now + REST;
        while self.admin.awaits(Awaited::Stop) {
            self.must_step()?;
            if self.now > until {
                return Err("a stop does not end".into());
            }
        }
        if !self.admin.stopped || !self.admin.stopped_clean {
            return Err("a stop at rest was refused, or is not clean".into());
        }
        if !self.is_quiet() {
            return Err(format!("stopped with something in flight: {:?}", self.flights));
        }
        for record in self.store.possible() {
            if !record.clean {
                return Err(format!("stopped, but a start may find {record:?}"));
            }
        }
        let floor = self.oracle.floor().to_vec();
        flush_acknowledged(&self.oracle, &self.disks, self.store.possible(), &self.places, &floor)
            .map_err(|what| format!("after a clean stop: {what}"))?;
        let record = *self.store.possible().next().expect("there is always a record");
        at_rest(&self.oracle, &self.disks, &record, &self.suspected_now())?;
        self.check_found(&self.disks, &record)?;
        self.reopen_disks(&record);
        Ok(())
    }

    /// The next daemon opens the disks anew, and sees what a failed flush has lost; or what a disk shows that is recorded to be in
    /// doubt. (Of a flush that failed while the daemon died nobody can know.)
    fn reopen_disks(&mut self, found: &Record) {
        for leg in LegId::ALL {
            let doubted = found.legs[leg.index()].is_some_and(|leg| leg.doubted);
            let pretends = self.plan.drive_caches && doubted;
            self.stats.pretending_starts += u64::from(pretends);
            self.disks[leg.index()].reopen(pretends);
        }
    }

    /// The life ends here and now.
    fn end(&mut self, how: End) -> Check {
        // What is in flight may land, in part or whole: the next daemon waits for it.
        let flights: Vec<u64> = self.flights.keys().copied().collect();
        for id in flights {
            if self.rng.percent(50) {
                self.land(id, self.plan.seed ^ id)?;
            }
        }
        if how == End::Cut {
            self.disks.iter_mut().for_each(|disk| disk.cut(&mut self.rng));
        }
        match how {
            End::Cut => self.stats.cuts += 1,
            End::Kill => self.stats.kills += 1,
        }
        let choice = self.rng.next();
        let record = self.store.find(choice);
        if how == End::Kill {
            self.reopen_disks(&record);
        }
        self.trace(|| format!("{how:?}: a start finds {record:?}"));
        let spared = self.places.surely(&record);
        image_after(&self.oracle, &self.disks, &record, how, self.admin.replaced, &spared)
    }

    /// Signature tables are believed beside a clean record, but for those of legs that somebody has written to. Returns which are, by leg.
    fn believe(&mut self, found: &Record, astray: bool) -> Check<[bool; 2]> {
        let outside = self.outside(found).map(|outside| outside || astray);
        let believed = self.signatures.find(found, outside);
        let known = LegId::ALL
            .iter()
            .any(|leg| self.signatures.entries(*leg).next().is_some());
        self.stats.starts_believing += u64::from(known);
        self.check_found(&self.disks, found)?;
        Ok(believed)
    }

    /// A new daemon takes over what is left.
    fn start_again(&mut self) -> Check {
        let found = self.store.find(0);
        let secondary = found.primary.other().index();
        let mut there = [true; 2];
        there[secondary] = found.legs[secondary].is_some_and(|leg| leg.attached) && self.rng.percent(85);
        let taken_in = found.legs[secondary].is_some_and(is_taken_in);
        let changed = self.admin.replaced[secondary] && !taken_in;
        // Of one leg there is nothing to track, whatever its record says.
        let alone = found.legs[secondary].is_none();
        let tracked = self.tables.find(&found, &mut self.rng).filter(|_| !changed && !alone);
        // Somebody wrote to it and was refused when he attached it: what is tracked says nothing of that.
        there[secondary] &= tracked.is_none() || !self.admin.touched[secondary];
        let follows = found.legs[secondary].is_some_and(|leg| leg.attached && leg.health == Health::InSync);
        let astray = found.clean && follows && !changed && self.goes_astray();
        let believed = self.believe(&found, astray)?;
        // What is suspect is of a disk that is not there any more.
        let mut suspects = Some(self.places.find(&found)).filter(|_| !changed).unwrap_or_default();
        if astray {
            suspects = self.places.take_all();
        }
        let record = Record {
            tracked: tracked.is_some(),
            suspect: !suspects.is_empty(),
            ..opened(&found, there, &self.plan)
        };
        if tracked.is_some() {
            self.stats.starts_tracked += 1;
        }
        check_opened(&found, &record)?;
        if there[secondary] && record.legs[secondary].is_some_and(|leg| leg.health == Health::InSync) {
            self.stats.starts_in_sync += 1;
        }
        self.store.put(record, self.now);
        self.clear();
        // What is left is what there is: ids of this life say nothing on the other leg any more.
        self.disks.iter_mut().for_each(Disk::begin_anew);
        let primary = &self.disks[record.primary.index()];
        self.oracle = Oracle::new(primary.live(), primary.durable(), self.oracle.newest());
        let legs = LegId::ALL.map(|leg| there[leg.index()].then(|| traits(&self.plan, leg)));
        let in_sync = record.legs[secondary].is_some_and(|leg| leg.health == Health::InSync);
        self.rot.behind = tracked
            .as_ref()
            .filter(|_| in_sync)
            .map(|tracked| tracked.dirty.clone());
        self.mirror = Mirror::new(
            self.plan.config,
            record,
            legs,
            tracked,
            suspects,
            CopyMode::Compare,
            self.now,
        );
        for leg in LegId::ALL.into_iter().filter(|leg| !believed[leg.index()]) {
            self.mirror.begin_unknown(self.now, leg);
        }
        self.mirror.recheck(self.now);
        if self.mirror.status().source_generation < self.generation {
            return Err(format!(
                "a start goes on at generation {}, {} was used before",
                self.mirror.status().source_generation,
                self.generation
            ));
        }
        let replaced = self.admin.replaced;
        let lenient = record.protocol == Protocol::Async || self.admin.lenient;
        self.admin = crate::admin::AdminState::new(&self.plan);
        self.admin.claimed = there;
        self.told_by_record(&record);
        self.admin.lenient = lenient;
        self.admin.replaced = replaced;
        self.admin.touched[secondary] = changed;
        self.arena = crate::arena::Arena::new(&self.plan.config.layout);
        self.faults = FaultState::default();
        self.counters = Counters::default();
        self.walks = Walks::default();
        self.guest = Guest::new(&self.plan, &mut self.rng);
        if changed {
            self.rot.forget();
        }
        self.rot.begin_life(&self.suspected_now())?;
        self.settle_effects()
    }
}
