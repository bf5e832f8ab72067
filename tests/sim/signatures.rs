//! Where signatures are kept: one table for each leg, and the one thread that notes, forgets and looks up, one after the other,
//! slowly and sometimes in vain. What a start makes of them.
//!
//! Verifies: a note has a number of its own; no extent is noted twice at once; each table is asked for one thing at a time; no more
//! is under way than the thread's queue has room for. What must be true of entries is in `trust`.
//!
//! An entry is the content that was hashed, zeroes being zeroes, and a signature is the number of a content. So two are equal
//! exactly when the bytes are. Between two saves of the dirty map what a start would find of an entry is the one that was durable or
//! any that came since, by chance.

use crate::check::Check;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::token::Token;
use crate::world::{Happening, World};
use std::collections::{BTreeMap, VecDeque};
use twinblk::core::{Bits, Consult, Effect, Errno, Evidence, LegId, Note, Record, Signature, Source, signatures};

/// Errands that may be under way at once: all notes, an emptying of each leg, a save, a digest's and a resync's look, four questions of
/// a verify and one of what is quiet.
const ROOM: usize = signatures::NOTING + 10;

/// What an extent is known by.
#[derive(Clone, Debug)]
pub struct Entry {
    pub content: Vec<Token>,
    pub source: Source,
}

/// Whether the bytes are the same.
pub fn is_same(a: &[Token], b: &[Token]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.same_bytes(*b))
}

/// The table of one leg.
struct Table {
    /// What the thread sees.
    live: Vec<Option<Entry>>,
    /// By extent: what a start may find.
    possible: Vec<Vec<Option<Entry>>>,
    is_changed: bool,
    /// It should have been emptied and could not be: whatever a start finds is not to be believed.
    is_void: bool,
}

impl Table {
    fn new(extents: u64) -> Table {
        Table {
            live: vec![None; extents as usize],
            possible: vec![vec![None]; extents as usize],
            is_changed: false,
            is_void: false,
        }
    }

    fn put(&mut self, extent: u64, entry: Option<Entry>) {
        if !self.is_void {
            self.possible[extent as usize].push(entry.clone());
            self.live[extent as usize] = entry;
            self.is_changed = true;
        }
    }

    /// What the thread sees is durable.
    fn sync(&mut self) {
        for (possible, live) in self.possible.iter_mut().zip(&self.live) {
            *possible = vec![live.clone()];
        }
        self.is_changed = false;
    }

    /// A new file takes the place of the table, unless that fails: nothing is kept then, and nobody knows what a start finds.
    fn empty(&mut self, fails: bool) -> bool {
        self.live.fill(None);
        self.is_void = fails;
        match fails {
            true => self.possible.iter_mut().for_each(|possible| possible.push(None)),
            false => self.sync(),
        }
        !fails
    }

    /// A start finds of each entry one that may be there.
    fn find(&mut self, rng: &mut Rng) {
        for (possible, live) in self.possible.iter().zip(&mut self.live) {
            *live = possible[rng.below(possible.len() as u64) as usize].clone();
        }
        self.is_void = false;
        self.sync();
    }
}

/// What the thread is to do.
enum Errand {
    Note(Note, Vec<Token>),
    Forget(LegId),
    Save { grains: Bits, stale: [Bits; 2] },
    Recall(LegId, Bits),
    Match(LegId, [Bits; 2]),
    Consult(Consult, [Option<Vec<Token>>; 2]),
}

impl Errand {
    /// Whether `next` may not be asked for before this is answered.
    fn excludes(&self, next: &Errand) -> bool {
        match (self, next) {
            (Errand::Note(a, _), Errand::Note(b, _)) => a.id == b.id || a.extent == b.extent,
            (Errand::Forget(a), Errand::Forget(b)) => a == b,
            (Errand::Save { .. }, Errand::Save { .. })
            | (Errand::Recall(..), Errand::Recall(..))
            | (Errand::Match(..), Errand::Match(..)) => true,
            (Errand::Consult(a, _), Errand::Consult(b, _)) => a.id == b.id,
            _ => false,
        }
    }
}

pub struct Signatures {
    tables: [Table; 2],
    errands: VecDeque<Errand>,
    /// By number: the contents that have been hashed.
    contents: Vec<Vec<Token>>,
    numbers: BTreeMap<Vec<Token>, u64>,
    /// Of a hundred syncs so many fail, and a quarter of the attempts to put a new table in the place of one.
    failing: u64,
    /// A stream of its own, so that what came to be modelled later changes the worlds of earlier seeds as little as possible.
    pub rng: Rng,
}

impl Signatures {
    pub fn new(plan: &Plan) -> Signatures {
        let extents = plan.config.geometry.extents();
        Signatures {
            tables: [Table::new(extents), Table::new(extents)],
            errands: VecDeque::new(),
            contents: Vec::new(),
            numbers: BTreeMap::new(),
            failing: plan.table_failures,
            rng: Rng::new(plan.seed ^ 0x51_6a),
        }
    }

    /// What this content is known by.
    pub fn sign(&mut self, content: &[Token]) -> Signature {
        let content: Vec<Token> = content.iter().map(|token| token.bytes()).collect();
        let next = self.contents.len() as u64;
        let number = *self.numbers.entry(content.clone()).or_insert(next);
        if number == next {
            self.contents.push(content);
        }
        let mut signature = [0; 32];
        signature[..8].copy_from_slice(&number.to_le_bytes());
        Signature(signature)
    }

    fn content(&self, signature: Signature) -> Check<Vec<Token>> {
        let number = u64::from_le_bytes(signature.0[..8].try_into().expect("eight bytes"));
        let content = self.contents.get(number as usize).cloned();
        content.ok_or_else(|| format!("nothing has {signature:?}"))
    }

    pub fn is_idle(&self) -> bool {
        self.errands.is_empty()
    }

    /// Whether the table of a leg is about to be emptied.
    pub fn is_emptying(&self, leg: LegId) -> bool {
        self.errands
            .iter()
            .any(|errand| matches!(errand, Errand::Forget(of) if *of == leg))
    }

    fn live(&self, leg: LegId, extent: u64) -> Option<&Entry> {
        self.tables[leg.index()].live[extent as usize].as_ref()
    }

    /// Whether both tables know the extent, as the same.
    fn is_equal(&self, extent: u64) -> bool {
        let [a, b] = LegId::ALL.map(|leg| self.live(leg, extent).map(|entry| &entry.content));
        a.is_some() && a == b
    }

    /// The entries that there are in the table of a leg.
    pub fn entries(&self, leg: LegId) -> impl Iterator<Item = (u64, &Entry)> {
        let entries = (0..).zip(&self.tables[leg.index()].live);
        entries.filter_map(|(extent, entry)| Some((extent, entry.as_ref()?)))
    }

    /// The entries that a start may find in the table of a leg.
    pub fn possible(&self, leg: LegId) -> impl Iterator<Item = (u64, &Entry)> {
        let possible = (0..).zip(&self.tables[leg.index()].possible);
        possible.flat_map(|(extent, entries)| entries.iter().flatten().map(move |entry| (extent, entry)))
    }

    /// Forget what is stale and make the rest durable.
    fn save(&mut self, stale: &[Bits; 2]) -> Result<u64, u64> {
        let mut lost = 0;
        for (table, stale) in self.tables.iter_mut().zip(stale) {
            stale.iter().for_each(|extent| table.put(extent, None));
            if !table.is_changed && !table.is_void {
                continue;
            }
            if !table.is_void && self.rng.below(100) >= self.failing {
                table.sync();
                continue;
            }
            lost += 1;
            if !table.empty(self.rng.below(400) < self.failing) {
                return Err(lost);
            }
        }
        Ok(lost)
    }

    /// A start beside `record`, where `outside` says of each leg whether somebody else has written to it. A table that is not
    /// believed is emptied. Returns which are, by leg.
    pub fn find(&mut self, record: &Record, outside: [bool; 2]) -> [bool; 2] {
        self.errands.clear();
        let believed = outside.map(|outside| record.clean && record.tracked && !outside);
        for (table, believed) in self.tables.iter_mut().zip(believed) {
            table.find(&mut self.rng);
            if !believed {
                table.empty(self.rng.below(400) < self.failing);
            }
        }
        believed
    }
}

impl World {
    /// The core wants something of the tables.
    pub fn send(&mut self, effect: Effect) -> Check {
        self.trace(|| format!("{effect:?}"));
        let errand = match effect {
            Effect::Note(note) => Errand::Note(note, self.signatures.content(note.signature)?),
            Effect::Forget(leg) => Errand::Forget(leg),
            Effect::Save => {
                let mut grains = Bits::none(self.plan.config.geometry.grains());
                self.mirror.unsynced(&mut grains);
                let stale = LegId::ALL.map(|leg| self.mirror.forgetting(leg).clone());
                self.trace(|| format!("saves {:?}", grains.iter().collect::<Vec<_>>()));
                Errand::Save { grains, stale }
            }
            Effect::Recall(leg) => Errand::Recall(leg, self.mirror.recallable().clone()),
            Effect::Match(primary) => Errand::Match(primary, self.mirror.matchable().clone()),
            Effect::Consult(consult) => {
                let content = |read: Option<Signature>| read.map(|read| self.signatures.content(read)).transpose();
                let [a, b] = consult.read;
                Errand::Consult(consult, [content(a)?, content(b)?])
            }
            _ => return Err(format!("the tables have no part in {effect:?}")),
        };
        let errands = &self.signatures.errands;
        if errands.iter().any(|before| before.excludes(&errand)) || errands.len() == ROOM {
            return Err(format!("{effect:?} is asked for too early"));
        }
        self.signatures.errands.push_back(errand);
        if self.signatures.errands.len() == 1 {
            self.next_errand();
        }
        Ok(())
    }

    fn next_errand(&mut self) {
        let delay = self.signatures.rng.around(self.plan.errand_latency.0);
        self.at(delay, Happening::Errand);
    }

    /// The thread has done what it was at.
    pub fn errand_done(&mut self) -> Check {
        let errand = self.signatures.errands.pop_front().expect("it was at something");
        if !self.signatures.errands.is_empty() {
            self.next_errand();
        }
        match errand {
            Errand::Note(note, content) => self.noted(&note, content),
            Errand::Forget(leg) => {
                let fails = self.signatures.rng.below(400) < self.signatures.failing;
                self.signatures.tables[leg.index()].empty(fails);
                self.stats.forgets += 1;
                self.mirror.handle_emptied(self.now, leg);
            }
            Errand::Save { grains, stale } => match self.signatures.save(&stale) {
                Ok(lost) => {
                    self.stats.tables_lost += lost;
                    self.tables.save(grains, &mut self.rng)?;
                    let delay = self.around(self.plan.record_latency.0);
                    self.at(delay, Happening::Saved);
                }
                Err(lost) => {
                    self.stats.tables_lost += lost;
                    self.stats.tables_void += 1;
                    self.mirror.handle_saved(self.now, Err(Errno(28)));
                }
            },
            Errand::Recall(leg, mut extents) => {
                self.check_trusted()?;
                extents = self.there(&extents, |signatures, extent| signatures.live(leg, extent).is_some());
                for extent in extents.iter() {
                    let entry = self.signatures.live(leg, extent).expect("it is there");
                    let wants = self.mirror.recallable().len() > extent && self.mirror.recallable().contains(extent);
                    self.walks.recall(extent, entry.content.clone(), wants);
                }
                self.stats.recalls += u64::from(!extents.is_empty());
                self.mirror.handle_recalled(self.now, &extents);
            }
            Errand::Match(primary, extents) => {
                self.check_trusted()?;
                let [believed, others] = [primary, primary.other()].map(|leg| &extents[leg.index()]);
                let known = self.there(believed, |signatures, extent| {
                    signatures.live(primary, extent).is_some()
                });
                let other = self.there(others, |signatures, extent| {
                    signatures.live(primary.other(), extent).is_some()
                });
                let mut both = known.clone();
                both.intersect(&other);
                let equal = self.there(&both, Signatures::is_equal);
                let mut lone = known;
                lone.subtract(&other);
                if self.mirror.is_matching() {
                    let mut taken = equal.clone();
                    self.mirror.matchable().iter().for_each(|of| taken.intersect(of));
                    self.check_matched(&taken)?;
                    self.stats.matches += u64::from(!taken.is_empty());
                }
                self.rot_anew(&equal);
                self.mirror.handle_matched(self.now, &equal, &lone);
            }
            Errand::Consult(consult, read) => {
                self.check_trusted()?;
                let evidence = LegId::ALL.map(|leg| {
                    let entry = self.signatures.live(leg, consult.extent)?;
                    Some(Evidence {
                        source: entry.source,
                        equals: read.each_ref().map(|read| {
                            let read = read.as_ref();
                            read.is_some_and(|read| is_same(read, &entry.content))
                        }),
                    })
                });
                self.stats.consults += 1;
                if self.mirror.is_recognising(consult.id) {
                    let read = read.each_ref().map(Option::is_some);
                    self.check_recognised(consult.extent, read, evidence)?;
                }
                self.mirror.handle_consulted(self.now, consult.id, evidence);
            }
        }
        Ok(())
    }

    fn noted(&mut self, note: &Note, content: Vec<Token>) {
        for (table, source) in self.signatures.tables.iter_mut().zip(note.sources) {
            if let Some(source) = source {
                let content = content.clone();
                table.put(note.extent, Some(Entry { content, source }));
            }
        }
        self.stats.notes += 1;
        self.mirror.handle_noted(self.now, note.id);
        let mut legs = LegId::ALL.into_iter().filter(|leg| note.sources[leg.index()].is_some());
        self.stats.notes_spoiled += u64::from(legs.any(|leg| !self.mirror.is_trusted(leg, note.extent)));
    }

    /// Of these extents those of which the tables say `what`.
    fn there(&self, extents: &Bits, what: impl Fn(&Signatures, u64) -> bool) -> Bits {
        let mut there = Bits::none(extents.len());
        let fitting = extents.iter().filter(|&extent| what(&self.signatures, extent));
        fitting.for_each(|extent| there.insert(extent));
        there
    }
}
