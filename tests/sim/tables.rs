//! Where marks of active regions and the dirty map are made durable: slowly, sometimes not, and what a start makes of them.
//!
//! Verifies: one write of each table under way at a time; no write of a leg is submitted whose regions are not marked, while the
//! record says that marks mean something and could be written. That what is marked or dirty is enough is verified at many moments
//! (`what_if`): where the legs would differ after a kill or a cut, a start would compare, whatever of the writes under way it
//! finds. And by what follows a start: the legs are equal at rest although nothing else was compared.

use crate::rng::Rng;
use twinblk::core::{Bits, Record, Tracked};

/// One table.
struct Table {
    /// What is surely on disk, or was before writes of which nobody knows whether they are.
    durable: Bits,
    /// What may be there instead: being written, or undetermined.
    doubtful: Vec<Bits>,
    writing: Option<(Bits, bool)>,
}

impl Table {
    fn new(bits: Bits) -> Table {
        Table {
            durable: bits,
            doubtful: Vec::new(),
            writing: None,
        }
    }

    fn begin(&mut self, bits: Bits, fails: bool) -> Result<(), String> {
        if self.writing.is_some() {
            return Err("a table is written while another write of it is under way".into());
        }
        self.doubtful.push(bits.clone());
        self.writing = Some((bits, !fails));
        Ok(())
    }

    fn end(&mut self) -> bool {
        let (bits, done) = self.writing.take().expect("a table is being written");
        if done {
            self.durable = bits;
            self.doubtful.clear();
        }
        done
    }

    fn surely_has(&self, number: u64) -> bool {
        self.durable.contains(number) && self.doubtful.iter().all(|bits| bits.contains(number))
    }

    /// One of those that may be there, whole: what a table of one block is.
    fn find(&mut self, rng: &mut Rng) -> Bits {
        let choice = rng.below(self.doubtful.len() as u64 + 1) as usize;
        if choice > 0 {
            self.durable = self.doubtful[choice - 1].clone();
        }
        self.settle()
    }

    /// Of each place one of those that may be there: what a table of many blocks is.
    fn find_mixed(&mut self, rng: &mut Rng) -> Bits {
        for doubtful in &self.doubtful {
            for number in 0..doubtful.len() {
                if rng.percent(50) {
                    match doubtful.contains(number) {
                        true => self.durable.insert(number),
                        false => self.durable.remove(number),
                    }
                }
            }
        }
        self.settle()
    }

    fn settle(&mut self) -> Bits {
        self.doubtful.clear();
        self.writing = None;
        self.durable.clone()
    }
}

pub struct Tables {
    marks: Table,
    grains: Table,
    /// Of a hundred writes so many fail.
    pub failing: u64,
    /// The guest went on although neither a mark nor a record could be written.
    pub outrun: bool,
}

impl Tables {
    pub fn new(regions: u64, grains: u64, failing: u64) -> Tables {
        Tables {
            marks: Table::new(Bits::none(regions)),
            grains: Table::new(Bits::none(grains)),
            failing,
            outrun: false,
        }
    }

    pub fn mark(&mut self, bits: Bits, rng: &mut Rng) -> Result<(), String> {
        let fails = rng.below(100) < self.failing;
        self.marks.begin(bits, fails)
    }

    pub fn save(&mut self, bits: Bits, rng: &mut Rng) -> Result<(), String> {
        let fails = rng.below(100) < self.failing;
        self.grains.begin(bits, fails)
    }

    /// The write of the marks ends; whether it is durable.
    pub fn marked(&mut self) -> bool {
        self.marks.end()
    }

    /// The save of the dirty map ends; whether it is durable.
    pub fn saved(&mut self) -> bool {
        self.grains.end()
    }

    pub fn is_writing(&self) -> bool {
        self.marks.writing.is_some() || self.grains.writing.is_some()
    }

    /// Whether a region is marked, whatever a start would find.
    pub fn is_marked(&self, region: u64) -> bool {
        self.marks.surely_has(region)
    }

    /// Whether a start that trusts the tables beside `record` compares this grain of this region, whatever it finds of what
    /// is being written.
    pub fn surely_compares(&self, record: &Record, region: u64, grain: u64) -> bool {
        self.outrun || self.grains.surely_has(grain) || !record.clean && self.marks.surely_has(region)
    }

    /// What a start finds beside `record`; `None` if that means nothing, or if it is lost.
    pub fn find(&mut self, record: &Record, rng: &mut Rng) -> Option<Tracked> {
        let mut active = self.marks.find(rng);
        let dirty = self.grains.find_mixed(rng);
        if record.clean {
            active.clear();
        }
        let lost = rng.percent(5) | std::mem::take(&mut self.outrun);
        (record.tracked && !lost).then_some(Tracked { active, dirty })
    }
}
