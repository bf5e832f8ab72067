//! Carries out what the core wants, on simulated disks and memory.
//!
//! Verifies of every operation: its id is not in flight; the leg is claimed and, if released, not touched; the range is
//! aligned and inside the device; its memory is populated and nobody else's; no two writes that overlap are in flight on one
//! leg, because a disk orders them as it likes; a write puts nothing older over something newer; its payload is meant
//! for exactly that place; nothing is copied to a leg in sync. Bytes are taken from memory (and put there) block by block at two moments between submission and
//! completion, so a buffer used again too early shows.

use crate::admin::Awaited;
use crate::arena::span;
use crate::check::{Check, flush_acknowledged, write_acknowledged};
use crate::guest::Pending;
use crate::oracle::sectors;
use crate::rng::mix;
use crate::token::{SECTOR, Token, WriteId};
use crate::world::{Happening, World, op_id};
use twinblk::core::config::RECORD_BUDGET;
use twinblk::core::{Action, Buf, Effect, Errno, Health, LegOp, Operation, Record, Tag, Time};

/// An operation on a leg, in flight.
#[derive(Clone, Debug)]
pub struct Flight {
    pub op: LegOp,
    /// The disk's number for a write, or when a flush was issued.
    handle: u64,
    /// Which guest write a zeroing belongs to.
    zeroes: WriteId,
    /// Tells this operation from a later one of the same id, and which blocks are taken early.
    nonce: u64,
    early_done: bool,
    pub issued_at: Time,
    pub result: Result<(), Errno>,
}

/// Effects that one event may cause: far above what any plan needs.
const MOST_EFFECTS: u32 = 100_000;

fn is_write(action: Action) -> bool {
    matches!(action, Action::Write { .. } | Action::Zero { .. })
}

fn has_buffer(action: Action) -> bool {
    matches!(action, Action::Write { .. } | Action::Read)
}

fn overlap(a: (Buf, u64), b: (Buf, u64)) -> bool {
    let (a, b) = (span(a.0, a.1), span(b.0, b.1));
    a.start < b.end && b.start < a.end
}

impl World {
    pub fn carry_out(&mut self) -> Check {
        for _ in 0..MOST_EFFECTS {
            let Some(effect) = self.mirror.poll_effect() else {
                return Ok(());
            };
            if self.admin.stopped {
                return Err(format!("an effect after Stopped: {effect:?}"));
            }
            match effect {
                Effect::Submit(op) => self.submit(op)?,
                Effect::Keep { from, to, len } => self.keep(from, to, len.into())?,
                Effect::Complete { tag, result, buf, next } => self.complete(tag, result, buf, next)?,
                Effect::Record(record) => {
                    self.trace(|| format!("record {record:?}"));
                    self.store.begin(record)?;
                    let delay = self.around(self.plan.record_latency.0);
                    self.at(delay, Happening::Recorded);
                    self.stats.records += 1;
                }
                Effect::Mark => {
                    let marks = self.mirror.marks().clone();
                    self.trace(|| format!("marks {:?}", marks.iter().collect::<Vec<_>>()));
                    self.tables.mark(marks, &mut self.rng)?;
                    let delay = self.around(self.plan.record_latency.0);
                    self.at(delay, Happening::Marked);
                    self.stats.marks += 1;
                }
                Effect::Note(_) | Effect::Forget(_) | Effect::Recall(_) | Effect::Match(_) | Effect::Consult(_) => {
                    self.send(effect)?;
                }
                Effect::Suspects => self.keep_suspects()?,
                Effect::Save => {
                    self.send(effect)?;
                    self.stats.saves += 1;
                }
                Effect::Compare { walk, left, right, len } => self.walk_compare(walk, left, right, len)?,
                Effect::Hash {
                    walk,
                    range,
                    buf,
                    digest,
                } => self.walk_hash(walk, range, buf, digest)?,
                Effect::Populate { start, len, wanted } => self.populate(start, len, wanted)?,
                Effect::Release(leg) => self.release(leg)?,
                Effect::Notify(event) => self.notified(event)?,
            }
        }
        Err("effects without end".into())
    }

    fn submit(&mut self, op: LegOp) -> Check {
        self.check_submission(&op).map_err(|what| format!("{what}: {op:?}"))?;
        let leg = op.leg.index();
        let nonce = self.rng.next();
        let result = self.faults.fate(leg, op.action, op.range);
        if result.is_err() && is_write(op.action) {
            self.oracle.taint(op.range);
        }
        let mut zeroes = 0;
        let handle = match op.action {
            Action::Read => 0,
            Action::Flush => self.disks[leg].begin_flush(),
            Action::Write { .. } => self.disks[leg].begin_write().into(),
            Action::Zero { .. } => {
                zeroes = self
                    .oracle
                    .source_of_zeroes(leg, op.range, &self.disks[leg])
                    .ok_or_else(|| format!("no request asks for these zeroes: {op:?}"))?;
                self.disks[leg].begin_write().into()
            }
        };
        self.trace(|| format!("  submit {op:?}{}", if result.is_err() { " (will fail)" } else { "" }));
        let delay = self.latency(leg);
        if nonce & 3 != 0 && op.action != Action::Flush {
            let early = self.rng.below(delay + 1);
            self.at(early, Happening::Early { op: op.id.0, nonce });
        }
        self.at(delay, Happening::Completion { op: op.id.0, nonce });
        self.stats.leg_ops += 1;
        self.note_walk(&op);
        self.count_quiet(&op);
        self.flights.insert(
            op.id.0,
            Flight {
                op,
                handle,
                zeroes,
                nonce,
                early_done: false,
                issued_at: self.now,
                result,
            },
        );
        Ok(())
    }

    fn check_submission(&mut self, op: &LegOp) -> Check {
        if op.id.0 >= 1 << 48 || self.flights.contains_key(&op.id.0) {
            return Err("the id is in use or too large".into());
        }
        if !self.admin.claimed[op.leg.index()] {
            return Err("the leg is not attached".into());
        }
        if op.action == Action::Flush {
            return Ok(());
        }
        self.check_marked(op)?;
        self.check_mending(op)?;
        self.check_not_copied(op)?;
        let geometry = &self.plan.config.geometry;
        let block = u64::from(geometry.block);
        if op.range.len == 0 || !op.range.start.is_multiple_of(block) || !op.range.len.is_multiple_of(block) {
            return Err("the range is empty or not aligned".into());
        }
        if op.range.end() > geometry.size {
            return Err("the range ends behind the device".into());
        }
        if has_buffer(op.action) {
            self.arena.check(op.buf, op.range.len)?;
        }
        for flight in self.flights.values() {
            let other = &flight.op;
            let same_leg = other.leg == op.leg && other.range.overlaps(op.range);
            if same_leg && is_write(other.action) && is_write(op.action) {
                return Err(format!("an overlapping write is in flight on the leg: {other:?}"));
            }
            let shares = has_buffer(other.action)
                && has_buffer(op.action)
                && overlap((other.buf, other.range.len), (op.buf, op.range.len));
            if shares && (other.action == Action::Read || op.action == Action::Read) {
                return Err(format!("the buffer is in use by {other:?}"));
            }
        }
        Ok(())
    }

    /// What reaches the primary is a guest's, or mends what is suspect: where a start would trust the marks, a guest's regions are
    /// marked.
    fn check_marked(&mut self, op: &LegOp) -> Check {
        let trusted = self.store.possible().any(|record| record.tracked);
        if !is_write(op.action) || op.leg != self.mirror.status().primary || !trusted || self.is_mending(op) {
            return Ok(());
        }
        let region = self.plan.config.region;
        let mut regions = op.range.start / region..op.range.end().div_ceil(region);
        match regions.find(|&region| !self.tables.is_marked(region)) {
            // Nothing can be written at all, and the guest goes on: a double fault, of which a start knows nothing.
            Some(_) if self.store.undetermined().any(|record| !record.tracked) || self.record_hangs() => {
                self.tables.outrun = true;
                Ok(())
            }
            Some(region) => Err(format!("region {region} is not marked")),
            None => Ok(()),
        }
    }

    /// Whether nothing could be recorded for so long that the guest goes on without.
    fn record_hangs(&self) -> bool {
        self.store.is_writing() && self.now.since(self.store.durable_at).0 >= RECORD_BUDGET.0
    }

    /// Whether block `sector` of an operation moves early.
    fn moves_early(&self, flight: &Flight, sector: usize) -> bool {
        let block = sector as u64 * SECTOR / u64::from(self.plan.config.geometry.block);
        mix(flight.nonce ^ block) & 1 == 0
    }

    /// Move the bytes of an operation: the early blocks, or all that have not moved.
    fn move_bytes(&mut self, id: u64, early: bool) -> Check {
        let mut flight = self.flights[&id].clone();
        let (op, leg) = (flight.op, flight.op.leg.index());
        let torn = flight.result.is_err();
        for sector in sectors(op.range) {
            if flight.early_done && self.moves_early(&flight, sector) || early && !self.moves_early(&flight, sector) {
                continue;
            }
            // A failed operation did something to some of its blocks.
            let block = sector as u64 * SECTOR / u64::from(self.plan.config.geometry.block);
            if torn && mix(flight.nonce ^ block.rotate_left(32)) & 1 == 0 {
                continue;
            }
            let place = (op.buf.0 as usize) + (sector - (op.range.start / SECTOR) as usize);
            match op.action {
                Action::Read => self.arena.write(place, self.disks[leg].live()[sector]),
                Action::Write { .. } => {
                    self.arena.check(op.buf, op.range.len)?;
                    let token = self.arena.read(place);
                    self.put(&flight, sector, token)?;
                }
                Action::Zero { .. } => self.put(&flight, sector, Token::zeroed(flight.zeroes, sector as u64))?,
                Action::Flush => {}
            }
        }
        flight.early_done |= early;
        self.flights.insert(id, flight);
        Ok(())
    }

    fn put(&mut self, flight: &Flight, sector: usize, token: Token) -> Check {
        let leg = flight.op.leg.index();
        if token.sector() != sector as u64 || token.is_junk() && !token.is_rotten() {
            return Err(format!("sector {sector} gets {token:?} from {:?}", flight.op));
        }
        let shown = self.disks[leg].live()[sector];
        let older = shown.id() > self.oracle.base() && token.newness() < shown.id() && !token.same_bytes(shown);
        self.replaced(&flight.op, sector, token, shown)?;
        if older && !self.oracle.is_tainted(sector) {
            return Err(format!(
                "at sector {sector} the older {token:?} replaces {shown:?}: {:?}",
                flight.op
            ));
        }
        self.disks[leg].take(flight.handle as u32, sector, token);
        Ok(())
    }

    pub fn op_early(&mut self, id: u64, nonce: u64) -> Check {
        let fits = self.flights.get(&id).is_some_and(|flight| flight.nonce == nonce);
        let hung = fits && self.faults.is_hung(self.flights[&id].op.leg.index());
        if fits && !hung {
            self.move_bytes(id, true)
        } else {
            Ok(())
        }
    }

    pub fn op_done(&mut self, id: u64, nonce: u64) -> Check {
        let Some(flight) = self.flights.get(&id).filter(|flight| flight.nonce == nonce) else {
            return Ok(());
        };
        let (op, handle) = (flight.op, flight.handle);
        let leg = op.leg.index();
        if self.faults.keeps(leg, id, nonce) {
            return Ok(());
        }
        if let Some(until) = self.faults.hung_until(leg) {
            let delay = until.since(self.now).0 + self.rng.below(1_000_000);
            self.at(delay, Happening::Completion { op: id, nonce });
            return Ok(());
        }
        if let Err(error) = self.faults.late_fate(leg, self.flights[&id].result) {
            self.flights.get_mut(&id).expect("it is in flight").result = Err(error);
            if is_write(op.action) {
                self.oracle.taint(op.range);
            }
        }
        self.move_bytes(id, false)?;
        let flight = self.flights.remove(&id).expect("it is in flight");
        let possible_primary = self.store.possible().any(|record| record.primary == op.leg);
        let sheltered = self.is_sheltered(&op);
        match (op.action, flight.result) {
            (Action::Read, _) => {}
            (Action::Write { fua }, Ok(())) => self.disks[leg].complete_write(handle as u32, fua),
            (Action::Write { .. } | Action::Zero { .. }, _) => self.disks[leg].complete_write(handle as u32, false),
            (Action::Flush, Ok(())) => self.disks[leg].complete_flush(handle),
            (Action::Flush, Err(error)) => {
                let loss = self.faults.flush_loss(possible_primary, error, &mut self.rng);
                self.disks[leg].fail_flush(handle, loss, possible_primary);
            }
        }
        if let Err(error) = flight.result {
            self.faults.note_error(possible_primary, sheltered, op, error, self.now);
            self.stats.host_errors += u64::from(error.is_of_host());
        }
        self.trace(|| format!("  done {:?} {:?}", op.id, flight.result));
        self.count_copied(&op);
        let before = self.mirror.status().source_generation;
        let subject = match op.action {
            Action::Write { .. } => self.arena.read(op.buf.0 as usize).id(),
            Action::Zero { .. } => flight.zeroes,
            Action::Read | Action::Flush => 0,
        };
        self.mirror.handle_completion(self.now, op_id(id), flight.result);
        if subject != 0 && possible_primary && flight.result.is_ok() {
            self.count_generation(before, subject);
        }
        Ok(())
    }

    /// Whether the secondary could stand in for the primary at this moment.
    fn is_sheltered(&self, op: &LegOp) -> bool {
        if self.mirror.is_failing_over() {
            return true;
        }
        let status = self.mirror.status();
        let secondary = status.primary.other().index();
        let in_sync = |record: &Record| {
            let leg = record.legs[secondary];
            record.primary == status.primary && leg.is_some_and(|leg| leg.health == Health::InSync && leg.attached)
        };
        let whole = status.counting && status.dirty_bytes == 0 && !status.resync.running;
        whole
            && !self.is_suspect(op)
            && self.store.possible().all(in_sync)
            && !self.admin.awaits(Awaited::Detach)
            && !self.admin.awaits(Awaited::Stop)
            && !self.faults.is_overdue()
    }

    /// The daemon is dead; what was in flight lands, whole or in part.
    pub fn land(&mut self, id: u64, nonce: u64) -> Check {
        let flight = self.flights.get_mut(&id).expect("it is in flight");
        if nonce & 1 == 0 && !flight.early_done {
            return self.move_bytes(id, true);
        }
        if is_write(flight.op.action) {
            self.move_bytes(id, false)
        } else {
            Ok(())
        }
    }

    fn keep(&mut self, from: Buf, to: Buf, len: u64) -> Check {
        for flight in self.flights.values().filter(|flight| has_buffer(flight.op.action)) {
            if overlap((to, len), (flight.op.buf, flight.op.range.len)) {
                return Err(format!("a payload is kept where {:?} works", flight.op));
            }
        }
        self.stats.kept += 1;
        self.arena.copy(from, to, len)
    }

    fn complete(&mut self, tag: Tag, result: Result<(), Errno>, buf: Buf, next: Buf) -> Check {
        let at = usize::from(tag.0);
        let pending = self.guest.pending[at]
            .take()
            .ok_or_else(|| format!("{tag:?} is answered twice, or never asked"))?;
        let request = pending.request;
        self.trace(|| format!("answer {} #{} {:?} {result:?}", tag.0, pending.write, request.operation));
        match (result, request.operation) {
            (Ok(()), Operation::Read) => self.read_answered(&pending, buf)?,
            (Ok(()), Operation::Flush) => {
                flush_acknowledged(
                    &self.oracle,
                    &self.disks,
                    self.store.possible(),
                    &self.places,
                    &pending.floor,
                )?;
                self.oracle.acknowledge_flush(pending.submitted, &pending.floor);
                self.faults.flush_succeeded(pending.submitted_at);
                self.stats.flushes += 1;
            }
            (Ok(()), Operation::Discard) => self.oracle.acknowledge(pending.write),
            (Ok(()), Operation::Write { .. } | Operation::WriteZeroes { .. }) => {
                write_acknowledged(
                    &self.oracle,
                    &self.disks,
                    self.store.possible(),
                    &self.places,
                    pending.write,
                )?;
                self.oracle.acknowledge(pending.write);
                self.stats.writes += 1;
            }
            (Err(error), _) => {
                let status = self.mirror.status();
                let secondary = status.primary.other();
                // Given up as well; the record may not say so yet.
                let given_up = status.legs[secondary.index()].is_some_and(|leg| leg.health != Health::InSync);
                // It does not serve a read where the legs differ; that may have been found since the primary failed it.
                let suspect = request.operation == Operation::Read && self.mirror.suspects().touch(request.range);
                if given_up || suspect || self.admin.awaits(Awaited::Detach) {
                    self.faults.note_demotion(secondary, self.now);
                }
                self.faults
                    .explains(&self.store, &pending, status.primary, self.now, self.admin.leg_timeout)
                    .map_err(|what| format!("{request:?} fails with {error:?}, but {what}"))?;
                self.stats.unrecorded_errors += u64::from(self.store.failing == u32::MAX || self.store.hangs);
                if pending.write != 0 {
                    self.oracle.fail(pending.write);
                }
                self.stats.guest_errors += 1;
            }
        }
        self.count_answer(&pending);
        self.give_next(at, next)?;
        let delay = self.guest.think(at, &mut self.rng);
        self.at(delay, Happening::Client { tag: tag.0 });
        Ok(())
    }

    fn read_answered(&mut self, pending: &Pending, buf: Buf) -> Check {
        let range = pending.request.range;
        let span = self.arena.check(buf, range.len)?;
        // A switch waits for reads of the old primary, but not beyond the budget: one that hangs longer may show a write
        // that is not on the new primary yet, and is not acknowledged.
        let outlived_switch = self.mirror.status().primary != pending.primary
            && self.now.since(pending.submitted_at).0 >= self.admin.stall_budget_least.0;
        for ((place, sector), floor) in span.zip(sectors(range)).zip(&pending.floor) {
            let token = self.arena.read(place);
            if !self.oracle.is_legal(sector, token) || !self.oracle.shows(sector, token, *floor) {
                return Err(format!(
                    "a read of {range:?} returned {token:?} at sector {sector}, at least write {floor} was due"
                ));
            }
            if !outlived_switch {
                self.oracle.saw(sector, token);
            }
        }
        self.stats.reads += 1;
        Ok(())
    }

    /// The kernel owns `next` from now on.
    fn give_next(&mut self, tag: usize, next: Buf) -> Check {
        let size = u64::from(self.plan.config.layout.max_io);
        self.arena.check(next, size)?;
        for flight in self.flights.values().filter(|flight| has_buffer(flight.op.action)) {
            if overlap((next, size), (flight.op.buf, flight.op.range.len)) {
                return Err(format!("tag {tag} is given {next:?}, where {:?} works", flight.op));
            }
        }
        for (other, buf) in self.guest.buffers.iter().enumerate() {
            if other != tag && overlap((next, size), (*buf, size)) {
                return Err(format!("tags {tag} and {other} are both given {next:?}"));
            }
        }
        self.guest.buffers[tag] = next;
        self.arena.poison(next, size)
    }

    fn populate(&mut self, start: u64, len: u64, wanted: bool) -> Check {
        if !wanted {
            let size = u64::from(self.plan.config.layout.max_io);
            for flight in self.flights.values().filter(|flight| has_buffer(flight.op.action)) {
                if overlap((Buf::at(start), len), (flight.op.buf, flight.op.range.len)) {
                    return Err(format!("memory is given back where {:?} works", flight.op));
                }
            }
            if let Some(buf) = self
                .guest
                .buffers
                .iter()
                .find(|buf| overlap((Buf::at(start), len), (**buf, size)))
            {
                return Err(format!("memory is given back that a tag owns: {buf:?}"));
            }
        }
        self.arena.populate(start, len, wanted)
    }
}
