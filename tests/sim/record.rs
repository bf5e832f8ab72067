//! Where records are made durable: slowly, sometimes not, sometimes without anybody knowing.
//!
//! Verifies: one record under way at a time; numbers only rise; an era is raised with every change of legs, roles or
//! health; a generation ceiling never falls. Keeps which records a start might find now, so that each acknowledgement can be
//! held against all of them. Does not model slots: how a torn slot is survived is tested with the format.

use twinblk::core::{Health, LegId, Record, Time};

pub struct Store {
    /// The newest record that is surely durable.
    durable: Record,
    /// Newer ones of which a start may find any, or none: being written, or undetermined.
    doubtful: Vec<Record>,
    /// The one under way, and whether its writer will be told that it succeeded.
    writing: Option<(Record, bool)>,
    highest: u64,
    /// How many of the next writes end in an error. Whether such a record is durable all the same nobody knows.
    pub failing: u32,
    /// The next write does not end; and whether it should have.
    pub hangs: bool,
    pub kept: bool,
    /// When a record was durable last.
    pub durable_at: Time,
    /// How often more generations became durable.
    pub ceilings_raised: u64,
}

impl Store {
    pub fn new(record: Record, now: Time) -> Store {
        Store {
            durable: record,
            doubtful: Vec::new(),
            writing: None,
            highest: record.number,
            failing: 0,
            hangs: false,
            kept: false,
            durable_at: now,
            ceilings_raised: 0,
        }
    }

    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// The highest number that was begun.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// Every record that a start might find now.
    pub fn possible(&self) -> impl Iterator<Item = &Record> {
        std::iter::once(&self.durable).chain(&self.doubtful)
    }

    /// Records whose write has ended and of which nobody knows whether they are durable.
    pub fn undetermined(&self) -> impl Iterator<Item = &Record> {
        let writing = self.writing.map(|(record, _)| record.number);
        self.doubtful
            .iter()
            .filter(move |record| Some(record.number) != writing)
    }

    /// The core wants `record` durable.
    pub fn begin(&mut self, record: Record) -> Result<(), String> {
        if self.writing.is_some() {
            return Err("a record is written while another one is under way".into());
        }
        if record.number <= self.highest {
            return Err(format!("record {} comes after number {}", record.number, self.highest));
        }
        for before in self.possible() {
            check_successor(before, &record)?;
        }
        self.highest = record.number;
        self.writing = Some((record, self.failing == 0));
        self.failing = self.failing.saturating_sub(1);
        self.doubtful.push(record);
        Ok(())
    }

    /// The write ends: its number, and what the core is told.
    pub fn end(&mut self, now: Time) -> (u64, bool) {
        let (record, durable) = self.writing.take().expect("a record is under way");
        if durable {
            self.ceilings_raised += u64::from(record.generation_ceiling > self.durable.generation_ceiling);
            self.durable_at = now;
            self.durable = record;
            self.doubtful.clear();
        }
        (record.number, durable)
    }

    /// What a start finds after everything ended: one of the possible records.
    pub fn find(&mut self, choice: u64) -> Record {
        let possible: Vec<Record> = self.possible().copied().collect();
        self.durable = possible[(choice % possible.len() as u64) as usize];
        self.doubtful.clear();
        self.writing = None;
        self.failing = 0;
        (self.hangs, self.kept) = (false, false);
        // A number of which nothing is left was never used.
        self.highest = self.durable.number;
        self.durable
    }

    /// The daemon itself writes a record before there is a core.
    pub fn put(&mut self, record: Record, now: Time) {
        self.durable_at = now;
        assert!(record.number > self.highest);
        self.highest = record.number;
        self.durable = record;
        self.doubtful.clear();
    }
}

fn health(record: &Record, leg: LegId) -> Option<(Health, bool)> {
    record.legs[leg.index()].map(|leg| (leg.health, leg.attached))
}

fn check_successor(before: &Record, after: &Record) -> Result<(), String> {
    let legs_changed = LegId::ALL.iter().any(|leg| health(before, *leg) != health(after, *leg));
    if (legs_changed || before.primary != after.primary) && after.era <= before.era {
        return Err(format!("legs changed without a new era: {before:?} then {after:?}"));
    }
    if after.era < before.era || after.generation_ceiling < before.generation_ceiling {
        return Err(format!("era or ceiling fell: {before:?} then {after:?}"));
    }
    // It may be written again, if nobody knows what became of it.
    if before.clean && !after.clean {
        return Err(format!("a record follows the clean one: {after:?}"));
    }
    match after.legs[after.primary.index()] {
        None => Err(format!("the primary has no leg: {after:?}")),
        Some(_) => Ok(()),
    }
}
