//! One world: a core, two disks, a guest, an administrator, and a queue of what happens when.
//!
//! Verifies progress: every request is answered within a bound while the primary answers and records can be written; no
//! timer fires without end; no effect storm. The bound holds while other clients go on writing, so it is also the test
//! that a barrier waits for the set frozen when it arrived and not for a quiet moment. What is done with effects is in
//! `effects`, what happens between lives in `life`.

use crate::admin::AdminState;
use crate::arena::Arena;
use crate::check::Check;
use crate::counters::Counters;
use crate::disk::Disk;
use crate::effects::Flight;
use crate::faults::FaultState;
use crate::guest::{Guest, Pending};
use crate::oracle::{Kind, Oracle, sectors};
use crate::plan::{Lasting, Plan};
use crate::record::Store;
use crate::rng::Rng;
use crate::rot::Rot;
use crate::signatures::Signatures;
use crate::stats::Stats;
use crate::suspects::Places;
use crate::tables::Tables;
use crate::token::Token;
use crate::walk::Walks;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use twinblk::core::time::Span;
use twinblk::core::{BlockMask, Errno, LegId, Mirror, OpId, Operation, Range, Request, Tag, Time};

/// What happens at a moment. The order of variants only makes simultaneous things happen in a fixed order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Happening {
    /// Some blocks of an operation are taken from memory, or put there, before its completion.
    Early {
        op: u64,
        nonce: u64,
    },
    Completion {
        op: u64,
        nonce: u64,
    },
    Recorded,
    Marked,
    Saved,
    /// A write of the suspect places has ended.
    Suspected,
    /// The thread that keeps the signature tables has done something.
    Errand,
    /// Half of a compare's or hash's bytes are looked at.
    WalkEarly {
        walk: u16,
    },
    WalkDone {
        walk: u16,
    },
    Client {
        tag: u16,
    },
    Admin,
    Renew,
    /// Sectors change by themselves.
    Rot,
    Fault,
    Heal {
        leg: u8,
    },
    HealRecords,
}

pub struct World {
    pub plan: Plan,
    pub rng: Rng,
    pub now: Time,
    pub mirror: Mirror,
    pub arena: Arena,
    pub disks: [Disk; 2],
    pub store: Store,
    pub tables: Tables,
    pub signatures: Signatures,
    pub places: Places,
    pub rot: Rot,
    pub guest: Guest,
    pub oracle: Oracle,
    pub counters: Counters,
    pub flights: BTreeMap<u64, Flight>,
    pub walks: Walks,
    pub admin: AdminState,
    pub faults: FaultState,
    pub stats: Stats,
    pub trace: bool,
    queue: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    sequence: u64,
    /// Timers fired in a row without anything else happening.
    idle_timers: u32,
    /// Requests issued in this life; clients ask while this is below their budget.
    pub issued: u64,
    pub budget: u64,
    /// Mutations answered in all, and the most of them while one barrier waited.
    pub answered: u64,
    pub most_while_waiting: u64,
    pub barriers: u64,
    /// The largest generation seen.
    pub generation: u64,
}

/// Answers are due within this beyond what budgets and faults allow: many times what the longest queue of the largest
/// plan needs, far less than a guest that never stops would make a starving request wait.
const PATIENCE: Span = Span(2_000_000_000);
const MOST_IDLE_TIMERS: u32 = 10_000;

impl World {
    pub fn at(&mut self, delay: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now.0 + delay, self.sequence, happening)));
    }

    /// Forget everything that was going to happen.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.flights.clear();
    }

    pub fn trace(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>12.3} us  {}", self.now.0 as f64 / 1e3, what());
        }
    }

    /// Let one thing happen. False: nothing ever will.
    pub fn step(&mut self) -> Check<bool> {
        let next = self.queue.peek().map(|Reverse((time, _, _))| *time);
        let timer = self
            .mirror
            .next_timeout()
            .map(|due| (due.0 + self.plan.timer_lateness.0).max(self.now.0));
        match (timer, next) {
            (None, None) => return Ok(false),
            (Some(due), next) if next.is_none_or(|next| due <= next) => {
                self.now = Time(due);
                self.idle_timers += 1;
                if self.idle_timers > MOST_IDLE_TIMERS {
                    return Err("timers fire without end and nothing happens".into());
                }
                self.mirror.handle_timeout(self.now);
            }
            (_, _) => {
                let Some(Reverse((time, _, happening))) = self.queue.pop() else {
                    return Ok(false);
                };
                self.now = Time(time);
                self.idle_timers = 0;
                self.happen(happening)?;
            }
        }
        self.settle_effects()?;
        self.check_trusted_perhaps()?;
        self.answers_in_time()?;
        self.look_ahead()?;
        Ok(true)
    }

    fn happen(&mut self, happening: Happening) -> Check {
        match happening {
            Happening::Early { op, nonce } => self.op_early(op, nonce),
            Happening::Completion { op, nonce } => self.op_done(op, nonce),
            Happening::Recorded => {
                if self.store.hangs {
                    self.store.kept = true;
                    return Ok(());
                }
                let (number, durable) = self.store.end(self.now);
                self.trace(|| format!("record {number} {}", if durable { "durable" } else { "undetermined" }));
                let result = if durable { Ok(()) } else { Err(Errno(28)) };
                self.mirror.handle_record(self.now, number, result);
                if durable {
                    self.renewed(number);
                }
                Ok(())
            }
            Happening::Marked => {
                let result = if self.tables.marked() { Ok(()) } else { Err(Errno(28)) };
                self.mirror.handle_marked(self.now, result);
                Ok(())
            }
            Happening::Saved => {
                let result = if self.tables.saved() { Ok(()) } else { Err(Errno(28)) };
                self.mirror.handle_saved(self.now, result);
                Ok(())
            }
            Happening::Suspected => {
                self.suspected();
                Ok(())
            }
            Happening::Errand => self.errand_done(),
            Happening::WalkEarly { walk } => self.walk_look(walk, true),
            Happening::WalkDone { walk } => self.walk_done(walk),
            Happening::Client { tag } => self.client_asks(tag),
            Happening::Admin => self.administrate(),
            Happening::Renew => self.renew(),
            Happening::Rot => {
                self.rots();
                Ok(())
            }
            Happening::Fault => self.inject(),
            Happening::Heal { leg } if self.hangs_on(usize::from(leg)) => Ok(()),
            Happening::Heal { leg } => self.heal_leg(LegId::ALL[usize::from(leg)]),
            Happening::HealRecords => {
                if self.faults.lasting() != Some(Lasting::RecordsFail) {
                    self.store.failing = 0;
                }
                Ok(())
            }
        }
    }

    /// How long an operation on `leg` takes.
    pub fn latency(&mut self, leg: usize) -> u64 {
        let mean = self.plan.latency[leg].0;
        self.around(mean)
    }

    /// A delay around `mean`, with a long tail.
    pub fn around(&mut self, mean: u64) -> u64 {
        self.rng.around(mean)
    }

    fn client_asks(&mut self, tag: u16) -> Check {
        // A client woken twice asks once.
        if self.issued >= self.budget || self.guest.pending[usize::from(tag)].is_some() {
            return Ok(());
        }
        let mut request = self.guest.next(tag.into(), &mut self.rng);
        // What has rotted is read by nobody; now and then written instead.
        if request.operation == Operation::Read && self.is_rotten(request.range) && self.rot.rng.percent(5) {
            request.operation = Operation::Write { fua: false };
        }
        if request.operation == Operation::Read && self.is_rotten(request.range) {
            self.at(10_000, Happening::Client { tag });
            return Ok(());
        }
        self.issued += 1;
        self.ask(tag, request)
    }

    /// Hand a request of the guest to the core; a write's payload goes to the tag's buffer first.
    pub fn ask(&mut self, tag: u16, request: Request) -> Check {
        let at = usize::from(tag);
        let range = request.range;
        let buf = self.guest.buffers[at];
        let mut pending = Pending {
            request,
            submitted_at: self.now,
            submitted: 0,
            primary: self.mirror.status().primary,
            answered_before: self.answered,
            write: 0,
            floor: Vec::new(),
        };
        if !matches!(request.operation, Operation::Read | Operation::Flush) {
            // Of a block that is written in part, the rest is the primary's, where the secondary misses the write.
            let (block, size) = (BlockMask::BLOCK, self.plan.config.geometry.size);
            let start = range.start / block * block;
            let end = range.end().next_multiple_of(block).min(size);
            self.rot.decided.extend(sectors(Range::new(start, end - start)));
        }
        match request.operation {
            Operation::Read => {
                pending.submitted = self.oracle.now();
                pending.floor = self.oracle.seen(range).to_vec();
            }
            Operation::Flush => {
                pending.submitted = self.oracle.now();
                pending.floor = self.oracle.floor().to_vec();
            }
            Operation::Write { fua } => {
                pending.write = self.oracle.submit(range, Kind::Data, fua);
                let span = self.arena.check(buf, range.len)?;
                for (place, sector) in span.zip(sectors(range)) {
                    self.arena.write(place, Token::written(pending.write, sector as u64));
                }
            }
            Operation::WriteZeroes { fua, .. } => pending.write = self.oracle.submit(range, Kind::Zeroes, fua),
            Operation::Discard => pending.write = self.oracle.submit(range, Kind::Discard, false),
        }
        self.trace(|| format!("guest {tag}: #{} {:?} {range:?}", pending.write, request.operation));
        if self.guest.pending[at].replace(pending).is_some() {
            return Err(format!("tag {tag} is in use"));
        }
        self.mirror.handle_request(self.now, Tag(tag), request);
        Ok(())
    }

    /// Carry out what the core wants, then look at what it says of itself.
    pub fn settle_effects(&mut self) -> Check {
        self.carry_out()?;
        let status = self.mirror.status();
        self.generation = self.generation.max(status.source_generation);
        let ceiling = self.store.possible().map(|record| record.generation_ceiling).min();
        let ceiling = ceiling.expect("there is always a record");
        self.watch_suspects()?;
        let suspected = self.suspected_now();
        self.counters
            .look(&status, ceiling, &self.oracle, &self.disks, &suspected)?;
        self.watch_health(&status)
    }

    fn answers_in_time(&mut self) -> Check {
        // A leg that hangs for good can cost a request its budget twice: a switch is held by it first, and gives up after as long.
        let budgets = if self.faults.lasting() == Some(Lasting::SecondaryHangs) {
            2
        } else {
            1
        };
        let allowed = self
            .admin
            .stall_budget
            .0
            .saturating_mul(budgets)
            .saturating_add(PATIENCE.0);
        self.watch_failover()?;
        let excused = self.faults.excused_until(self.now, &self.store);
        for (tag, pending) in self.guest.pending.iter().enumerate() {
            let Some(pending) = pending else { continue };
            let since = pending.submitted_at.max(excused);
            let held = self.faults.held_for_records(pending.submitted_at);
            if self.now.since(since).0 > allowed.saturating_add(held.0) {
                return Err(format!(
                    "request {tag} {:?} was not answered for {} ms",
                    pending.request,
                    self.now.since(pending.submitted_at).0 / 1_000_000
                ));
            }
        }
        Ok(())
    }

    pub fn is_quiet(&self) -> bool {
        self.guest.outstanding().next().is_none()
            && self.flights.is_empty()
            && !self.store.is_writing()
            && !self.tables.is_writing()
            && !self.places.is_writing()
            && self.signatures.is_idle()
            && self.walks.is_idle()
    }

    /// Which generation the core gave the write that `op` completed on the primary, if it took exactly one.
    pub fn count_generation(&mut self, before: u64, id: u64) {
        let after = self.mirror.status().source_generation;
        if after != before + 1 {
            return;
        }
        if let Some(write) = self.oracle.write_mut(id)
            && write.generation.is_none()
        {
            write.generation = Some(after);
            self.counters.number(after, id);
        }
    }

    /// A world in which nothing has happened yet.
    #[allow(clippy::too_many_arguments)]
    pub fn assemble(
        plan: Plan,
        rng: Rng,
        mirror: Mirror,
        disks: [Disk; 2],
        store: Store,
        base: u64,
        trace: bool,
    ) -> World {
        let mut rng = rng;
        let primary = store
            .possible()
            .next()
            .expect("there is always a record")
            .primary
            .index();
        World {
            guest: Guest::new(&plan, &mut rng),
            oracle: Oracle::new(disks[primary].live(), disks[primary].durable(), base),
            tables: Tables::new(
                plan.config.geometry.size.div_ceil(plan.config.region),
                plan.config.geometry.grains(),
                plan.table_failures,
            ),
            signatures: Signatures::new(&plan),
            places: Places::new(&plan),
            rot: Rot::new(plan.seed),
            arena: Arena::new(&plan.config.layout),
            admin: AdminState::new(&plan),
            faults: FaultState::default(),
            counters: Counters::default(),
            flights: BTreeMap::new(),
            walks: Walks::default(),
            stats: Stats::default(),
            queue: BinaryHeap::new(),
            now: Time(1_000_000),
            sequence: 0,
            idle_timers: 0,
            issued: 0,
            budget: 0,
            answered: 0,
            most_while_waiting: 0,
            barriers: 0,
            generation: 0,
            plan,
            rng,
            mirror,
            disks,
            store,
            trace,
        }
    }
}

/// The core's name of an operation.
pub fn op_id(id: u64) -> OpId {
    OpId(id)
}
