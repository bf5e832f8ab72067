//! What must be durable before the next step: one record after another, each with a higher number.
//!
//! *What must hold:* a step that depends on a record is taken when a record that says so is durable and no other may be in
//! force. A record whose write ended in an error may be on disk or not. Until one with a higher number is durable, both are
//! possible: a leg that either of them calls in-sync counts; and if they name different primaries, only what both legs
//! completed is acknowledged.

use super::Mirror;
use super::owed::Owed;
use crate::core::breaks::{self, Break};
use crate::core::effect::{Effect, Event};
use crate::core::leg::{Health, LegId};
use crate::core::record::{LegRecord, Protocol, Record};
use crate::core::request::Errno;
use crate::core::time::{Span, Time};

/// How long to wait before a record is written again after an error.
const RETRY: Span = Span::from_millis(200);

pub(super) struct Recorder {
    durable: Record,
    writing: Option<Record>,
    /// The newest record that was ever begun.
    last: Record,
    /// `last` may be on disk or not.
    uncertain: bool,
    /// What the records say whose write failed since the durable one.
    doubtful: Doubtful,
    /// A record is to be begun although it may say nothing new.
    renewed: bool,
    retry_at: Option<Time>,
    /// When `last` was begun.
    begun_at: Time,
    /// Since when there is something to record that is not durable.
    busy_since: Option<Time>,
    pub(super) owed: Owed,
    ceiling: u64,
    ceiling_low: u64,
    generations: u64,
    /// What the record should say, where the core has no other place for it.
    pub(super) primary: LegId,
    pub(super) protocol: Protocol,
    pub(super) clean: bool,
}

impl Recorder {
    pub(super) fn new(record: Record, generations: u64) -> Recorder {
        Recorder {
            durable: record,
            writing: None,
            last: record,
            uncertain: false,
            doubtful: Doubtful::NOTHING,
            renewed: false,
            retry_at: None,
            begun_at: Time(0),
            busy_since: None,
            owed: Owed::NOTHING,
            ceiling: record.generation_ceiling,
            ceiling_low: record.generation_ceiling - generations / 2,
            generations,
            primary: record.primary,
            protocol: record.protocol,
            clean: false,
        }
    }

    pub(super) fn durable(&self) -> &Record {
        &self.durable
    }

    /// A record may be in force that calls this leg in sync, or primary.
    pub(super) fn may_count(&self, leg: LegId) -> bool {
        self.may_be_primary(leg)
            || self.doubtful.in_sync[leg.index()]
            || self.in_force().any(|record| is_in_sync(record, leg))
    }

    /// A record may be in force by which this leg is the device as of some moment: in sync, or behind.
    pub(super) fn may_be_image(&self, leg: LegId) -> bool {
        self.may_count(leg) || self.doubtful.behind[leg.index()] || self.in_force().any(|record| is_behind(record, leg))
    }

    /// A record may be in force that calls this leg primary.
    pub(super) fn may_be_primary(&self, leg: LegId) -> bool {
        self.doubtful.primary[leg.index()] || self.in_force().any(|record| record.primary == leg)
    }

    /// A record may be in force under which a write is acknowledged by both legs.
    pub(super) fn may_be_sync(&self) -> bool {
        self.doubtful.protocol == Protocol::Sync || self.in_force().any(|record| record.protocol == Protocol::Sync)
    }

    /// A record may be in force under which a barrier is acknowledged by both legs.
    pub(super) fn may_be_stricter_than_async(&self) -> bool {
        self.doubtful.protocol != Protocol::Async || self.in_force().any(|record| record.protocol != Protocol::Async)
    }

    /// No record may be in force that says that something is tracked, or none could be written that says otherwise.
    pub(super) fn is_untracked(&self) -> bool {
        let tracked = self.doubtful.tracked || self.in_force().any(|record| record.tracked);
        !tracked || self.doubtful.untracked
    }

    /// The durable record and the one that is being written.
    fn in_force(&self) -> impl Iterator<Item = &Record> {
        std::iter::once(&self.durable).chain(self.writing.as_ref())
    }

    pub(super) fn is_uncertain(&self) -> bool {
        self.uncertain
    }

    /// Whether a record is being written, or must be written again.
    pub(super) fn is_busy(&self) -> bool {
        self.writing.is_some() || self.uncertain
    }

    /// Since when no record was durable that says all there is to say; `None` if one does.
    pub(super) fn busy_since(&self) -> Option<Time> {
        self.busy_since
    }

    /// Since when a record is under way, if one is.
    pub(super) fn writing_since(&self) -> Option<Time> {
        self.writing.is_some().then_some(self.begun_at)
    }

    /// Have a record begun, whatever it says. Returns the number of the next one that is: none that is under way will do,
    /// because what goes with it was taken when it was begun.
    pub(super) fn renew(&mut self) -> u64 {
        self.renewed = true;
        self.last.number + 1
    }

    pub(super) fn has_generations(&self, up_to: u64) -> bool {
        up_to < self.durable.generation_ceiling || breaks::on(Break::GenerationCeiling)
    }

    pub(super) fn note_generation(&mut self, generation: u64) {
        if generation >= self.ceiling_low {
            self.ceiling += self.generations;
            self.ceiling_low += self.generations;
        }
    }

    pub(super) fn wants_generations(&self) -> bool {
        self.ceiling > self.last.generation_ceiling
    }
}

impl Mirror {
    fn desired_record(&self) -> Record {
        Record {
            number: self.recorder.durable.number,
            era: self.recorder.durable.era,
            primary: self.recorder.primary,
            legs: LegId::ALL.map(|id| {
                let leg = self.leg(id);
                leg.known.then_some(LegRecord {
                    health: leg.health,
                    consistent_at: leg.consistent_at,
                    attached: leg.attached,
                    doubted: self.doubt.is_doubted(id),
                })
            }),
            protocol: self.recorder.protocol,
            generation_ceiling: self.recorder.ceiling,
            // Of one leg there is nothing to track; but what is known of it is saved before it says clean.
            tracked: self.tracking.tracked && (self.remembers() || self.recorder.clean),
            suspect: self.suspicion.is_recorded(&self.suspects),
            clean: self.recorder.clean,
        }
    }

    /// Write a record if it would say something else than the durable one or one is asked for, and none is being written.
    pub(super) fn pump_record(&mut self) {
        if self.is_stopped() {
            return;
        }
        let mut next = self.desired_record();
        let now = self.now;
        let recorder = &mut self.recorder;
        if recorder.writing.is_some() || recorder.retry_at.is_some() {
            return;
        }
        if next == recorder.durable && !recorder.uncertain && !recorder.renewed {
            return;
        }
        recorder.renewed = false;
        let last = &recorder.last;
        next.number = last.number + 1;
        let same_standing = next.primary == last.primary && standing(&next) == standing(last);
        next.era = last.era + u64::from(!same_standing);
        recorder.last = next;
        recorder.writing = Some(next);
        recorder.begun_at = now;
        recorder.busy_since = recorder.busy_since.or(Some(now));
        self.effects.push_back(Effect::Record(next));
        self.watch_drain_record();
    }

    pub(super) fn record_completed(&mut self, number: u64, result: Result<(), Errno>) {
        let record = self.recorder.writing.take().expect("a record is being written");
        assert_eq!(record.number, number, "records are answered in order");
        if self.is_stopped() {
            return;
        }
        if result.is_ok() {
            let recorder = &mut self.recorder;
            let before = std::mem::replace(&mut recorder.durable, record);
            recorder.uncertain = false;
            recorder.busy_since = None;
            recorder.doubtful = Doubtful::NOTHING;
            self.failover_waits = false;
            self.tell_health(&before, &record);
            self.drain_recorded();
            self.follow_recorded();
            self.review_owed();
            self.leg_is_quiet();
            self.pump_record();
            self.review_guests();
        } else {
            let recorder = &mut self.recorder;
            recorder.uncertain = true;
            recorder.doubtful.add(&record);
            let at = self.now + RETRY;
            recorder.retry_at = Some(at);
            self.arm(at);
            self.drain_record_failed();
        }
    }

    /// Tell what has become durable of the legs' health.
    fn tell_health(&mut self, before: &Record, after: &Record) {
        for leg in LegId::ALL {
            let [was, is] = [before, after].map(|record| record.legs[leg.index()].map(|leg| leg.health));
            if let Some(health) = is.filter(|_| was != is) {
                self.notify(Event::Health { leg, health });
            }
        }
    }

    pub(super) fn retry_record(&mut self) {
        if let Some(at) = self.recorder.retry_at {
            if at <= self.now {
                self.recorder.retry_at = None;
                self.pump_record();
            } else {
                self.arm(at);
            }
        }
    }
}

/// Whether this record calls the leg in sync.
fn is_in_sync(record: &Record, leg: LegId) -> bool {
    record.legs[leg.index()].is_some_and(|leg| leg.attached && leg.health == Health::InSync)
}

fn is_behind(record: &Record, leg: LegId) -> bool {
    record.legs[leg.index()].is_some_and(|leg| leg.attached && leg.health == Health::Behind)
}

/// What records say that may be on disk or not.
#[derive(Clone, Copy)]
struct Doubtful {
    /// By leg: one calls it primary.
    primary: [bool; 2],
    /// By leg: one calls it in sync.
    in_sync: [bool; 2],
    /// By leg: one calls it behind.
    behind: [bool; 2],
    /// The strictest protocol.
    protocol: Protocol,
    /// One says that something is tracked.
    tracked: bool,
    /// One says that nothing is.
    untracked: bool,
}

impl Doubtful {
    const NOTHING: Doubtful = Doubtful {
        primary: [false; 2],
        in_sync: [false; 2],
        behind: [false; 2],
        protocol: Protocol::Async,
        tracked: false,
        untracked: false,
    };

    fn add(&mut self, record: &Record) {
        for leg in LegId::ALL {
            self.primary[leg.index()] |= record.primary == leg;
            self.in_sync[leg.index()] |= is_in_sync(record, leg);
            self.behind[leg.index()] |= is_behind(record, leg);
        }
        self.tracked |= record.tracked;
        self.untracked |= !record.tracked;
        self.protocol = match (record.protocol, self.protocol) {
            (Protocol::Sync, _) | (_, Protocol::Sync) => Protocol::Sync,
            (Protocol::Flush, _) | (_, Protocol::Flush) => Protocol::Flush,
            (Protocol::Async, Protocol::Async) => Protocol::Async,
        };
    }
}

/// The set of legs and their health.
fn standing(record: &Record) -> [Option<(Health, bool)>; 2] {
    record.legs.map(|leg| leg.map(|leg| (leg.health, leg.attached)))
}
