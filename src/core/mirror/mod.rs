//! The core of a device: composes everything else of this module.
//!
//! Four families of methods. `handle_*` take what happened; the administrator's verbs (`attach`, `switch`, …) start
//! something and refuse what the state does not allow; `poll_effect` is to be called after each of those until it
//! yields nothing; getters change nothing. Time is an argument; `handle_timeout` is due at `next_timeout`.
//!
//! A mutation (guest write, zeroing, discard, or a piece of a copy) takes its place in the order of both legs when it is
//! admitted, and from then on waits for nothing but earlier mutations. See `admit`, `settle`, `barrier` for its way
//! through, `failover` and `rewrite` for a primary that fails, `follow` for what the secondary is worth meanwhile, `walk`
//! for copies, `drain` for what needs a quiet device, `recorder` for what must be durable first.

mod admit;
mod barrier;
mod check;
mod clock;
mod doubt;
mod drain;
mod failover;
mod follow;
mod hand_over;
mod matching;
mod memory;
mod owed;
mod recheck;
mod recorder;
mod repair;
mod rewrite;
mod settle;
mod signing;
mod table;
#[cfg(test)]
mod tests;
mod tracking;
mod verbs;
mod view;
mod walk;

use super::bits::Bits;
use super::config::{Config, CopyMode, LegTraits};
use super::counters::Counters;
use super::dirty::DirtyMap;
use super::effect::{Action, BlockMask, Effect, Event, LegOp, OpId, WalkId};
use super::epochs::Epochs;
use super::geometry::Range;
use super::layout::Buf;
use super::leg::{Health, LegId};
use super::order::RangeOrder;
use super::pool::Pool;
use super::record::{Protocol, Record};
use super::regions::{Regions, Tracked};
use super::request::{Errno, Request, Tag};
use super::signature::Signature;
use super::signatures::Signatures;
use super::status::{IoCounts, WalkKind};
use super::suspects::Suspects;
use super::time::Time;
use super::unflushed::Unflushed;
use admit::Guest;
use barrier::SecondaryFlush;
use check::Check;
use doubt::Doubt;
use drain::{Drain, DrainFlush};
use follow::{CatchUp, Follow};
use recorder::Recorder;
use repair::Suspicion;
use signing::Quiet;
use std::collections::VecDeque;
use table::Table;
use tracking::Tracking;
use walk::{Resync, Slot};

/// Operations under way on the secondary at once; further ones wait in the core, where a barrier or a failure can
/// still deal with them.
const SECONDARY_IN_FLIGHT: u32 = 128;

/// Mutations that can be under way at once, beside those of the queue's depth.
const PENDING: usize = 16 * 1024;

/// What is known of one leg beside the record.
#[derive(Clone, Copy, Debug)]
struct Leg {
    /// What it can do, while it is there and claimed.
    traits: Option<LegTraits>,
    health: Health,
    attached: bool,
    consistent_at: u64,
    /// There is or was such a leg.
    known: bool,
    /// Let it go as soon as nothing of it is under way.
    detaching: bool,
}

/// What an operation on a leg belongs to, as told by its [`OpId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpKind {
    Entry(LegId, u32),
    GuestRead(Tag),
    GuestFlush(Tag),
    SecondaryFlush,
    DrainFlush(LegId),
    CheckpointFlush(LegId),
    MendFlush(LegId),
}

impl OpKind {
    fn id(self) -> OpId {
        OpId(match self {
            OpKind::Entry(leg, index) => (index as u64) << 3 | leg.index() as u64,
            OpKind::GuestRead(tag) => (tag.0 as u64) << 3 | 2,
            OpKind::GuestFlush(tag) => (tag.0 as u64) << 3 | 3,
            OpKind::SecondaryFlush => 4,
            OpKind::DrainFlush(leg) => 5 + leg.index() as u64,
            OpKind::CheckpointFlush(leg) => (leg.index() as u64) << 3 | 7,
            OpKind::MendFlush(leg) => (leg.index() as u64 + 2) << 3 | 7,
        })
    }

    fn of(id: OpId) -> OpKind {
        let index = id.0 >> 3;
        match id.0 & 7 {
            0 => OpKind::Entry(LegId::A, index as u32),
            1 => OpKind::Entry(LegId::B, index as u32),
            2 => OpKind::GuestRead(Tag(index as u16)),
            3 => OpKind::GuestFlush(Tag(index as u16)),
            4 => OpKind::SecondaryFlush,
            5 => OpKind::DrainFlush(LegId::A),
            6 => OpKind::DrainFlush(LegId::B),
            _ => match index {
                0 => OpKind::CheckpointFlush(LegId::A),
                1 => OpKind::CheckpointFlush(LegId::B),
                2 => OpKind::MendFlush(LegId::A),
                _ => OpKind::MendFlush(LegId::B),
            },
        }
    }
}

/// The core of one device.
pub struct Mirror {
    config: Config,
    now: Time,
    alarm: Option<Time>,
    effects: VecDeque<Effect>,

    primary: LegId,
    protocol: Protocol,
    legs: [Leg; 2],
    follow: Follow,
    catch_up: CatchUp,
    copy_mode: CopyMode,
    /// What a copy of what is dirty now is called.
    copy_kind: WalkKind,
    recorder: Recorder,

    guests: Vec<Guest>,
    /// Requests other than reads that are admitted and not answered.
    admitted: u32,
    /// By leg: guest reads under way.
    reads: [u32; 2],
    /// Reads that the primary failed and that are not answered yet.
    failed_reads: u32,
    /// Requests that wait for admission, in order of arrival.
    waiting: VecDeque<Tag>,
    /// Reasons to admit nothing but reads, or nothing at all; see [`drain`] and [`check`].
    holds: u8,

    table: Table,
    order: [RangeOrder; 2],
    epochs: Epochs,
    counters: Counters,
    dirty: DirtyMap,
    unflushed: [Unflushed; 2],
    tracking: Tracking,
    pool: Pool,
    memory: memory::Memory,
    /// Mutations that may start on the secondary.
    ready: VecDeque<u32>,
    /// Mutations of later epochs, in order of arrival.
    later: VecDeque<u32>,
    in_flight: u32,
    /// Operations on a secondary that nobody counts on any more.
    abandoned: u32,
    lag_bytes: u64,

    /// Flushes of the primary that failed.
    flush_failures: u64,
    /// One of them was asked for by no guest: the next barrier of a guest's is to say so.
    flush_failure_untold: bool,
    doubt: Doubt,
    /// The primary has failed something, and the guest is to be moved to the secondary as soon as that can be done.
    failover_due: bool,
    /// It was tried in vain, and no record has become durable since: it waits for one.
    failover_waits: bool,
    /// When one is written for it, if none comes before.
    failover_at: Option<Time>,
    flush: Option<SecondaryFlush>,
    flushes_issued: u64,
    flushes_completed: u64,
    flush_wanted: u64,

    slots: Vec<Slot>,
    /// Slots that are not free.
    pieces: usize,
    resync: Resync,
    check: Check,
    signatures: Signatures,
    quiet: Quiet,
    suspects: Suspects,
    suspicion: Suspicion,
    drain: Option<Drain>,
    /// By leg.
    drain_flushes: [Option<DrainFlush>; 2],
    io: IoCounts,
    /// Slots that an order has just let go; kept to be used again.
    released: Vec<u32>,
}

impl Mirror {
    /// A core that goes on from `record`, which is durable and not clean (see [`Record::opened`]). `legs` says, by
    /// [`LegId::index`], what those legs can do that are there and claimed; the primary must be. A secondary that is
    /// there, attached and recorded as syncing is made equal by `resync`, where `tracked` says that the legs may differ;
    /// `None`: they may differ anywhere, and the record does not say otherwise. `suspects` are the places that the record calls
    /// suspect.
    pub fn new(
        config: Config,
        record: Record,
        legs: [Option<LegTraits>; 2],
        tracked: Option<Tracked>,
        suspects: Suspects,
        resync: CopyMode,
        now: Time,
    ) -> Mirror {
        assert_eq!(
            record.suspect,
            !suspects.is_empty(),
            "the record says whether there are any"
        );
        assert!(
            tracked.is_some() || !record.tracked,
            "the record says where the legs may differ"
        );
        let depth = config.layout.depth as usize;
        let capacity = PENDING + depth + config.layout.copies as usize;
        assert!(
            config.generations >= 4 * depth as u64,
            "what is in flight leaves generations"
        );
        let generation = record.generation_ceiling - config.generations;
        let longest = config.layout.max_io as u64;
        let active = match &tracked {
            Some(tracked) => tracked.active.clone(),
            None => Bits::none(config.geometry.size.div_ceil(config.region)),
        };
        let mut mirror = Mirror {
            config,
            now,
            alarm: None,
            effects: VecDeque::with_capacity(4 * depth + 64),
            primary: record.primary,
            protocol: record.protocol,
            legs: LegId::ALL.map(|leg| Leg::new(&record, leg, legs[leg.index()])),
            follow: Follow::Not,
            catch_up: CatchUp::new(),
            copy_mode: resync,
            copy_kind: WalkKind::Full,
            recorder: Recorder::new(record, config.generations),
            guests: (0..depth as u16)
                .map(|tag| Guest::idle(config.layout.tag(tag)))
                .collect(),
            admitted: 0,
            reads: [0; 2],
            failed_reads: 0,
            waiting: VecDeque::with_capacity(depth),
            holds: 0,
            table: Table::new(capacity),
            order: std::array::from_fn(|_| RangeOrder::new(capacity, longest)),
            epochs: Epochs::new(capacity),
            counters: Counters::new(generation),
            dirty: DirtyMap::new(config.geometry),
            unflushed: legs.map(|leg| leg.map_or_else(Unflushed::nothing, |_| Unflushed::new())),
            tracking: Tracking::new(
                Regions::new(config.geometry.size, config.region, active, now),
                record.tracked,
            ),
            pool: Pool::new(&config.layout),
            memory: memory::Memory::new(&config.layout),
            ready: VecDeque::with_capacity(capacity),
            later: VecDeque::with_capacity(capacity),
            in_flight: 0,
            abandoned: 0,
            lag_bytes: 0,
            // See `doubt`: nothing is tracked either if it failed one in an earlier life.
            flush_failures: u64::from(record.legs[record.primary.index()].is_some_and(|leg| leg.doubted)),
            flush_failure_untold: false,
            doubt: Doubt::new(config.geometry, &record),
            failover_due: false,
            failover_waits: false,
            failover_at: None,
            flush: None,
            flushes_issued: 0,
            flushes_completed: 0,
            flush_wanted: 0,
            slots: vec![Slot::FREE; config.layout.copies as usize],
            pieces: 0,
            resync: Resync::new(),
            check: Check::new(),
            signatures: Signatures::new(&config.geometry),
            quiet: Quiet::new(),
            suspicion: Suspicion::new(record.suspect),
            suspects,
            drain: None,
            drain_flushes: [None; 2],
            io: IoCounts::default(),
            released: Vec::with_capacity(capacity),
        };
        assert!(mirror.leg(mirror.primary).traits.is_some(), "the primary is there");
        mirror.populate(0, config.layout.tags_bytes(), true);
        for leg in LegId::ALL.into_iter().filter(|&leg| mirror.doubt.is_doubted(leg)) {
            mirror.signatures.touch_all(leg);
        }
        mirror.resume_following(tracked);
        mirror.pump();
        mirror
    }

    /// The guest asks for something. A write's payload lies in the tag's buffer.
    pub fn handle_request(&mut self, now: Time, tag: Tag, request: Request) {
        self.now = now;
        self.arrive(tag, request);
        self.pump();
    }

    /// An operation on a leg has ended.
    pub fn handle_completion(&mut self, now: Time, id: OpId, result: Result<(), Errno>) {
        self.now = now;
        match OpKind::of(id) {
            OpKind::Entry(leg, index) => self.entry_completed(index, leg, result),
            OpKind::GuestRead(tag) => self.read_completed(tag, result),
            OpKind::GuestFlush(tag) => self.primary_flush_completed(tag, result),
            OpKind::SecondaryFlush => self.secondary_flush_completed(result),
            OpKind::DrainFlush(leg) => self.drain_flush_completed(leg, result),
            OpKind::CheckpointFlush(leg) => self.checkpoint_flush_completed(leg, result),
            OpKind::MendFlush(leg) => self.mend_flush_completed(leg, result),
        }
        self.pump();
    }

    /// The write of the record with this number has ended; an error says nothing of what is on disk now.
    pub fn handle_record(&mut self, now: Time, number: u64, result: Result<(), Errno>) {
        self.now = now;
        self.record_completed(number, result);
        self.pump();
    }

    /// A comparison has ended: which blocks differ.
    pub fn handle_compared(&mut self, now: Time, walk: WalkId, differing: BlockMask) {
        self.now = now;
        self.compared(walk, differing);
        self.pump();
    }

    /// A hash has been taken.
    pub fn handle_hashed(&mut self, now: Time, walk: WalkId, signature: Signature) {
        self.now = now;
        self.hashed(walk, signature);
        self.pump();
    }

    /// What to do next, until there is nothing.
    #[inline]
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Everything that may have become possible by what just happened: a test of a few flags when there is nothing to do.
    #[inline(always)]
    fn pump(&mut self) {
        let held = self.drain.is_some() || !self.waiting.is_empty() || self.failed_reads > 0;
        if held || self.resync.active || self.wants_check() || self.failover_due {
            self.pump_all();
        }
    }

    fn pump_all(&mut self) {
        if self.failover_due {
            self.try_failover();
        }
        if self.drain.is_some() {
            self.pump_drain();
            if self.is_stopped() {
                return;
            }
        }
        if self.failed_reads > 0 {
            self.pump_failed_reads();
        }
        if !self.waiting.is_empty() {
            self.admit_waiting();
        }
        if self.resync.active || self.wants_check() {
            self.pump_walks();
        }
    }

    fn leg(&self, leg: LegId) -> &Leg {
        &self.legs[leg.index()]
    }

    fn leg_mut(&mut self, leg: LegId) -> &mut Leg {
        &mut self.legs[leg.index()]
    }

    fn secondary(&self) -> LegId {
        self.primary.other()
    }

    /// Whether there is a second leg that must be told later what it misses now.
    fn remembers(&self) -> bool {
        self.leg(self.secondary()).known
    }

    fn submit(&mut self, kind: OpKind, leg: LegId, action: Action, range: Range, buf: Buf) {
        self.effects.push_back(Effect::Submit(LegOp {
            id: kind.id(),
            leg,
            action,
            range,
            buf,
        }));
    }

    fn tell_leg_error(&mut self, leg: LegId, action: Action, range: Range, error: Errno) {
        self.notify(Event::LegError {
            leg,
            action,
            range,
            error,
        });
    }

    fn notify(&mut self, event: Event) {
        self.effects.push_back(Effect::Notify(event));
    }
}

impl Leg {
    fn new(record: &Record, leg: LegId, traits: Option<LegTraits>) -> Leg {
        let recorded = record.legs[leg.index()];
        Leg {
            traits,
            health: recorded.map_or(Health::Absent, |leg| leg.health),
            attached: recorded.is_some_and(|leg| leg.attached),
            consistent_at: recorded.map_or(0, |leg| leg.consistent_at),
            known: recorded.is_some(),
            detaching: false,
        }
    }
}
