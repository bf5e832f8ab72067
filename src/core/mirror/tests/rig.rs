//! A core, and what it asked for and was not given yet. A test gives it piece by piece.

use super::super::Mirror;
use crate::core::Suspects;
use crate::core::bits::Bits;
use crate::core::config::{Comes, Config, CopyMode, LINGER, LegTraits, RECORD_BUDGET};
use crate::core::effect::{Action, BlockMask, Consult, Effect, Event, Evidence, LegOp, WalkId};
use crate::core::geometry::{Geometry, Range};
use crate::core::layout::Layout;
use crate::core::leg::{Health, LegId};
use crate::core::record::{LegRecord, Protocol, Record};
use crate::core::request::{Errno, Operation, Request, Tag};
use crate::core::signature::Signature;
use crate::core::time::{Span, Time};

pub(super) const GRAIN: u64 = 4096;
pub(super) const WRITE: Action = Action::Write { fua: false };
/// What a full state directory answers.
pub(super) const NO_SPACE: Errno = Errno(28);

/// A leg that has everything.
const IN_SYNC: LegRecord = LegRecord {
    health: Health::InSync,
    consistent_at: 0,
    attached: true,
    doubted: false,
};

pub(super) struct Rig {
    pub mirror: Mirror,
    pub now: Time,
    pub ops: Vec<LegOp>,
    pub compares: Vec<WalkId>,
    pub record: Option<Record>,
    pub answers: Vec<(Tag, Result<(), Errno>)>,
    pub events: Vec<Event>,
    /// What the state directory answers to a write of its tables.
    pub tables: Result<(), Errno>,
    /// It does not answer to a write of the marks.
    pub marks_hang: bool,
    /// It fails writes of the marks, and no others.
    pub marks_fail: bool,
    /// What the tables are asked of places that differ, if they do not answer at once that they know nothing.
    pub consults_hang: bool,
    pub consults: Vec<Consult>,
    /// The tables do not answer which extents they know.
    pub matches_hang: bool,
    /// The list of suspect places is being written, if it does not become durable at once.
    pub suspects_hang: bool,
    pub writes_suspects: bool,
    /// Writes to the state directory that were wanted.
    pub metadata_writes: u64,
    /// The marks and the dirty map that are durable.
    pub marks: Vec<u64>,
    pub saved: Vec<u64>,
}

impl Rig {
    /// A device of 16 grains with both legs in sync.
    pub fn in_sync(protocol: Protocol) -> Rig {
        Rig::of_grains(16, protocol)
    }

    /// A device of 16 grains whose secondary is to be made equal after a restart; this leg failed a flush before. Nothing was tracked.
    pub fn restarted(doubted: LegId) -> Rig {
        let leg = |id| LegRecord {
            health: if id == LegId::A {
                Health::InSync
            } else {
                Health::Syncing
            },
            consistent_at: 0,
            attached: true,
            doubted: id == doubted,
        };
        Rig::on(16, Protocol::Flush, LegId::ALL.map(|id| Some(leg(id))))
    }

    /// A device of so many grains, four to a region, with both legs in sync.
    pub fn of_grains(grains: u64, protocol: Protocol) -> Rig {
        Rig::on(grains, protocol, [Some(IN_SYNC); 2])
    }

    /// A device of this size as one is served, with both legs in sync.
    pub fn as_served(size: u64, protocol: Protocol) -> Rig {
        let geometry = Geometry::new(size, 512);
        Rig::with(geometry, geometry.region(), LINGER, protocol, [Some(IN_SYNC); 2])
    }

    fn on(grains: u64, protocol: Protocol, legs: [Option<LegRecord>; 2]) -> Rig {
        let geometry = Geometry {
            size: grains * GRAIN,
            block: 512,
            grain: GRAIN as u32,
            extent: 4 * GRAIN as u32,
        };
        Rig::with(geometry, 4 * GRAIN, Span::from_secs(100), protocol, legs)
    }

    fn with(geometry: Geometry, region: u64, linger: Span, protocol: Protocol, legs: [Option<LegRecord>; 2]) -> Rig {
        let config = Config {
            geometry,
            region,
            linger,
            layout: Layout {
                depth: 8,
                max_io: 4096,
                copies: 8,
                copy_bytes: geometry.extent,
                pool_max: geometry.size.min(64 << 20),
            },
            pool_bytes: geometry.size.min(64 << 20),
            stall_budget: Span::from_secs(5),
            leg_timeout: Span::from_secs(20),
            catch_up: true,
            lag_bytes: 0,
            quiet: Span::from_secs(1_000_000),
            generations: Record::GENERATIONS,
        };
        let record = Record {
            legs,
            ..Record::first(protocol)
        };
        let now = Time(1_000_000);
        let traits = Some(LegTraits { punches: true });
        let record = record.opened([true; 2]);
        let mut rig = Rig {
            mirror: Mirror::new(
                config,
                record,
                [traits; 2],
                None,
                Suspects::none(),
                CopyMode::Compare,
                now,
            ),
            now,
            ops: Vec::new(),
            compares: Vec::new(),
            record: None,
            answers: Vec::new(),
            events: Vec::new(),
            tables: Ok(()),
            marks_hang: false,
            marks_fail: false,
            consults_hang: false,
            consults: Vec::new(),
            matches_hang: false,
            suspects_hang: false,
            writes_suspects: false,
            metadata_writes: 0,
            marks: Vec::new(),
            saved: Vec::new(),
        };
        rig.take_effects();
        rig
    }

    /// Note what the core wants.
    pub fn take_effects(&mut self) {
        while let Some(effect) = self.mirror.poll_effect() {
            let writes = matches!(
                effect,
                Effect::Record(_) | Effect::Mark | Effect::Save | Effect::Suspects
            );
            self.metadata_writes += u64::from(writes);
            match effect {
                Effect::Submit(op) => self.ops.push(op),
                Effect::Complete { tag, result, .. } => self.answers.push((tag, result)),
                Effect::Record(record) => assert!(self.record.replace(record).is_none(), "one record at a time"),
                Effect::Compare { walk, .. } => self.compares.push(walk),
                Effect::Notify(event) => self.events.push(event),
                Effect::Mark if self.marks_hang => {}
                Effect::Mark if self.marks_fail => self.mirror.handle_marked(self.now, Err(NO_SPACE)),
                Effect::Mark => {
                    if self.tables.is_ok() {
                        self.marks = self.mirror.marks().iter().collect();
                    }
                    self.mirror.handle_marked(self.now, self.tables);
                }
                Effect::Save => {
                    let mut grains = Bits::none(self.mirror.config.geometry.grains());
                    self.mirror.unsynced(&mut grains);
                    if self.tables.is_ok() {
                        self.saved = grains.iter().collect();
                    }
                    self.mirror.handle_saved(self.now, self.tables);
                }
                // Whatever is read is the same, and the tables keep nothing.
                Effect::Hash { walk, .. } => self.mirror.handle_hashed(self.now, walk, Signature([0; 32])),
                Effect::Note(note) => self.mirror.handle_noted(self.now, note.id),
                Effect::Forget(leg) => self.mirror.handle_emptied(self.now, leg),
                Effect::Recall(_) => self.mirror.handle_recalled(self.now, &self.no_extents()),
                Effect::Consult(consult) if self.consults_hang => self.consults.push(consult),
                Effect::Suspects if self.suspects_hang => self.writes_suspects = true,
                Effect::Consult(consult) => self.mirror.handle_consulted(self.now, consult.id, [None; 2]),
                Effect::Suspects => self.mirror.handle_suspected(self.now, self.tables),
                Effect::Match(_) if self.matches_hang => {}
                Effect::Match(_) => {
                    let none = self.no_extents();
                    self.mirror.handle_matched(self.now, &none, &none);
                }
                Effect::Keep { .. } | Effect::Populate { .. } | Effect::Release(_) => {}
            }
        }
    }

    /// The tables answer the question that was asked first.
    pub fn consulted(&mut self, evidence: [Option<Evidence>; 2]) {
        let consult = self.consults.remove(0);
        self.mirror.handle_consulted(self.now, consult.id, evidence);
        self.take_effects();
    }

    /// The write of the list of suspect places ends.
    pub fn suspected(&mut self, result: Result<(), Errno>) {
        assert!(std::mem::take(&mut self.writes_suspects), "it is being written");
        self.mirror.handle_suspected(self.now, result);
        self.take_effects();
    }

    fn no_extents(&self) -> Bits {
        Bits::none(self.mirror.config.geometry.extents())
    }

    pub fn ask(&mut self, tag: u16, operation: Operation, range: Range) {
        self.mirror
            .handle_request(self.now, Tag(tag), Request { operation, range });
        self.take_effects();
    }

    pub fn write(&mut self, tag: u16, grain: u64) {
        self.ask(tag, Operation::Write { fua: false }, Range::new(grain * GRAIN, GRAIN));
    }

    pub fn flush(&mut self, tag: u16) {
        self.ask(tag, Operation::Flush, Range::EMPTY);
    }

    /// End the oldest operation of this kind on the leg.
    pub fn end(&mut self, leg: LegId, action: Action, result: Result<(), Errno>) {
        let at = self.ops.iter().position(|op| op.leg == leg && op.action == action);
        self.end_at(
            at.unwrap_or_else(|| panic!("leg {leg} is not at {action:?}: {:?}", self.ops)),
            result,
        );
    }

    /// End, well, the read that begins at this grain.
    pub fn end_read(&mut self, leg: LegId, grain: u64) {
        let wanted = |op: &LegOp| op.leg == leg && op.action == Action::Read && op.range.start == grain * GRAIN;
        let at = self.ops.iter().position(wanted);
        self.end_at(at.expect("it is being read"), Ok(()));
    }

    pub fn end_at(&mut self, at: usize, result: Result<(), Errno>) {
        let op = self.ops.remove(at);
        self.mirror.handle_completion(self.now, op.id, result);
        self.take_effects();
    }

    /// End, well, whatever is under way on the leg, and what follows from it.
    pub fn end_all(&mut self, leg: LegId) {
        while let Some(at) = self.ops.iter().position(|op| op.leg == leg) {
            self.end_at(at, Ok(()));
        }
    }

    /// The comparison asked for first has found these blocks to differ.
    pub fn compared(&mut self, differing: &[usize]) {
        let mut mask = BlockMask::default();
        differing.iter().for_each(|&block| mask.insert(block));
        let walk = self.compares.remove(0);
        self.mirror.handle_compared(self.now, walk, mask);
        self.take_effects();
    }

    /// All comparisons end, and nothing differs.
    pub fn compare_all_equal(&mut self) {
        for walk in std::mem::take(&mut self.compares) {
            self.mirror.handle_compared(self.now, walk, BlockMask::default());
        }
        self.take_effects();
    }

    /// The write of the record under way ends.
    pub fn end_record(&mut self, result: Result<(), Errno>) -> Record {
        let record = self.record.take().expect("a record is under way");
        self.mirror.handle_record(self.now, record.number, result);
        self.take_effects();
        record
    }

    /// The guest is to be moved to the other leg, and the record that says so does not end in time, nor yet.
    pub fn fail_to_fail_over(&mut self) {
        assert!(self.mirror.is_failing_over());
        self.end_all(LegId::B);
        self.pass_time(RECORD_BUDGET);
        assert!(!self.mirror.is_failing_over() && self.record.is_some());
    }

    /// A leg that was detached comes back as it was let go.
    pub fn attach_again(&mut self, leg: LegId) {
        self.attach(leg, Comes::Known);
    }

    /// A leg is attached, and compared where it may differ.
    pub fn attach(&mut self, leg: LegId, comes: Comes) {
        let traits = LegTraits { punches: true };
        self.mirror
            .attach(self.now, leg, traits, CopyMode::Compare, comes)
            .expect("it is free");
        self.take_effects();
    }

    /// The secondary was away, and is being made equal: nothing of it is copied yet.
    pub fn be_syncing(&mut self) {
        self.mirror.pause_resync(self.now, true);
        self.mirror.detach(self.now, LegId::B).expect("it is the secondary");
        self.take_effects();
        self.end_all(LegId::B);
        self.end_record(Ok(()));
        self.attach_again(LegId::B);
        self.end_record(Ok(()));
    }

    /// The secondary becomes equal; what is compared is.
    pub fn become_in_sync(&mut self) {
        self.mirror.pause_resync(self.now, false);
        self.settle();
        assert!(self.mirror.status().counting && self.mirror.status().dirty_bytes == 0);
    }

    /// Whatever is under way ends well, and what follows from it; nothing differs.
    pub fn settle(&mut self) {
        self.take_effects();
        while self.record.is_some() || !self.ops.is_empty() || !self.compares.is_empty() {
            self.end_all(LegId::A);
            self.end_all(LegId::B);
            self.compare_all_equal();
            if self.record.is_some() {
                self.end_record(Ok(()));
            }
        }
    }

    /// Time passes, and every record that is begun meanwhile fails at once.
    pub fn pass_failing_records(&mut self, span: Span) {
        self.pass(span, true);
    }

    /// Time passes, and nothing else happens.
    pub fn pass_time(&mut self, span: Span) {
        self.pass(span, false);
    }

    fn pass(&mut self, span: Span, fail_records: bool) {
        let until = self.now + span;
        loop {
            if fail_records && self.record.is_some() {
                self.end_record(Err(NO_SPACE));
            }
            match self.mirror.next_timeout().filter(|due| *due <= until) {
                Some(due) => self.now = self.now.max(due),
                None => break,
            }
            self.mirror.handle_timeout(self.now);
            self.take_effects();
        }
        self.now = until;
    }

    /// The answer to this request, if it has come; the next one of the tag is told apart.
    pub fn answer(&mut self, tag: u16) -> Option<Result<(), Errno>> {
        let at = self.answers.iter().position(|(answered, _)| *answered == Tag(tag))?;
        Some(self.answers.remove(at).1)
    }

    pub fn health_told(&self) -> Vec<(LegId, Health)> {
        let told = self.events.iter().filter_map(|event| match event {
            Event::Health { leg, health } => Some((*leg, *health)),
            _ => None,
        });
        told.collect()
    }

    pub fn differences(&self) -> Vec<Range> {
        let differences = self.events.iter().filter_map(|event| match event {
            Event::Difference(suspect) => Some(suspect.range),
            _ => None,
        });
        differences.collect()
    }
}
