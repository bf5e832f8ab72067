//! Where the list of suspect places is made durable: slowly, sometimes not, and what a start makes of it.
//!
//! Verifies: one write of the list under way at a time. Does not verify that what is on the list is right: see `rot`.
//!
//! A list is there whole or as it was before; one that is lost, or empty, says that everything is suspect. After a write that failed either may be there. It does not say which leg is wrong.

use crate::check::Check;
use crate::oracle::sectors;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::world::{Happening, World};
use twinblk::core::{Errno, Range, Record, Suspects};

/// How much slower than a record.
const SLOWER: u64 = 3;

pub struct Places {
    /// What is surely on disk, or was before writes of which nobody knows whether they are.
    durable: Suspects,
    /// What may be there instead: being written, or undetermined.
    doubtful: Vec<Suspects>,
    writing: Option<(Suspects, bool)>,
    /// The write that ended last failed.
    pub failed: bool,
    /// Of a hundred writes so many fail; of lists that are looked for half as many, and a few at least, are lost.
    failing: u64,
    size: u64,
    rng: Rng,
}

/// The list as it is kept.
fn kept(suspects: &Suspects) -> Suspects {
    Suspects::of(suspects.iter().map(|suspect| suspect.range))
}

impl Places {
    pub fn new(plan: &Plan) -> Places {
        Places {
            durable: Suspects::none(),
            doubtful: Vec::new(),
            writing: None,
            failed: false,
            failing: plan.table_failures,
            size: plan.config.geometry.size,
            rng: Rng::new(plan.seed ^ 0x50_5b),
        }
    }

    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    fn begin(&mut self, suspects: &Suspects) -> Check {
        if self.writing.is_some() {
            return Err("the suspect places are written while another write of them is under way".into());
        }
        let fails = self.rng.below(100) < self.failing;
        self.doubtful.push(kept(suspects));
        self.writing = Some((kept(suspects), !fails));
        Ok(())
    }

    fn end(&mut self) -> bool {
        let (suspects, done) = self.writing.take().expect("they are being written");
        self.failed = !done;
        if done {
            self.durable = suspects;
            self.doubtful.clear();
        }
        done
    }

    /// What a start beside `record` finds.
    pub fn find(&mut self, record: &Record) -> Suspects {
        let choice = self.rng.below(self.doubtful.len() as u64 + 1) as usize;
        if choice > 0 {
            self.durable = self.doubtful[choice - 1].clone();
        }
        self.doubtful.clear();
        self.writing = None;
        self.failed = false;
        if self.rng.below(200) < self.failing.max(5) {
            self.durable = Suspects::none();
        }
        match record.suspect {
            false => Suspects::none(),
            true if self.durable.is_empty() => Suspects::of([Range::new(0, self.size)]),
            true => self.durable.clone(),
        }
    }

    /// Everything is suspect from this start on, durably.
    pub fn take_all(&mut self) -> Suspects {
        self.durable = Suspects::of([Range::new(0, self.size)]);
        self.durable.clone()
    }

    /// By sector: whether a start beside `record` takes it for suspect, whichever list it finds; nothing if none is.
    pub fn surely(&self, record: &Record) -> Vec<bool> {
        if !record.suspect {
            return Vec::new();
        }
        let mut surely = vec![true; sectors(Range::new(0, self.size)).len()];
        for list in std::iter::once(&self.durable).chain(&self.doubtful) {
            if list.is_empty() {
                continue;
            }
            let mut listed = vec![false; surely.len()];
            list.iter()
                .for_each(|suspect| listed[sectors(suspect.range)].fill(true));
            surely
                .iter_mut()
                .zip(listed)
                .for_each(|(surely, listed)| *surely &= listed);
        }
        surely
    }
}

impl World {
    /// The core wants it durable which places are suspect.
    pub fn keep_suspects(&mut self) -> Check {
        self.trace(|| format!("suspect {:?}", self.mirror.suspects()));
        self.places.begin(self.mirror.suspects())?;
        let delay = self.places.rng.around(SLOWER * self.plan.record_latency.0);
        self.at(delay, Happening::Suspected);
        Ok(())
    }

    pub fn suspected(&mut self) {
        let result = if self.places.end() { Ok(()) } else { Err(Errno(28)) };
        self.mirror.handle_suspected(self.now, result);
    }
}
