//! What the guest did and was told, and what follows from it for the content of each sector.
//!
//! Independent of the core and slow on purpose: every write has an id in order of arrival, and overlapping writes take
//! effect in that order, so what a sector may hold is a matter of comparing ids:
//!
//! - `floor`: the newest write that was acknowledged. A leg that is authoritative shows this or something newer.
//! - `seen`: `floor`, or something newer that a read has returned: what a later read must return at least.
//! - `flushed`: what a power cut must not take: the `floor` as it was when an acknowledged FLUSH was submitted, and
//!   every acknowledged FUA write.
//!
//! A write that failed, and a discard, may be seen or not, but raise nothing.

use crate::disk::Disk;
use crate::token::{SECTOR, Token, WriteId};
use twinblk::core::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Data,
    Zeroes,
    Discard,
}

/// A point in the order of everything the guest submitted and was told.
pub type Tick = u64;

#[derive(Clone, Debug)]
pub struct Write {
    pub range: Range,
    pub kind: Kind,
    pub fua: bool,
    pub submitted: Tick,
    /// When the guest was told that it succeeded.
    pub acknowledged: Option<Tick>,
    pub failed: bool,
    /// The number under which the core counted it when the primary had completed it.
    pub generation: Option<u64>,
    /// By leg: whether its zeroing was sent there (see [`Oracle::source_of_zeroes`]).
    pub zeroed: [bool; 2],
}

/// An acknowledged FLUSH or FUA write.
#[derive(Clone, Copy, Debug)]
pub enum Barrier {
    Flush { submitted: Tick, acknowledged: Tick },
    Fua { write: WriteId, acknowledged: Tick },
}

pub struct Oracle {
    /// Ids up to and including this one belong to an earlier life, or are the content the device began with.
    base: WriteId,
    /// What the device showed when this life began, and what it would have kept.
    initial: [Vec<Token>; 2],
    writes: Vec<Write>,
    floor: Vec<WriteId>,
    seen: Vec<WriteId>,
    /// By sector: what a read returned last of those that raised `seen` was zeroes.
    seen_zeroes: Vec<bool>,
    flushed: Vec<WriteId>,
    /// A write of it failed on some leg: its order on the legs says nothing.
    tainted: Vec<bool>,
    barriers: Vec<Barrier>,
    tick: Tick,
}

/// The sectors of a range.
pub fn sectors(range: Range) -> std::ops::Range<usize> {
    (range.start / SECTOR) as usize..(range.end() / SECTOR) as usize
}

impl Oracle {
    /// An oracle of a device whose authoritative leg shows `content` and would keep `durable`, after writes up to `base`.
    pub fn new(content: &[Token], durable: &[Token], base: WriteId) -> Oracle {
        let ids: Vec<WriteId> = content.iter().map(|token| token.id()).collect();
        Oracle {
            base,
            initial: [content.to_vec(), durable.to_vec()],
            writes: Vec::new(),
            floor: ids.clone(),
            seen_zeroes: vec![false; content.len()],
            // Where somebody has decided for what is older, that may not be durable yet.
            flushed: durable
                .iter()
                .zip(&ids)
                .map(|(token, id)| token.id().min(*id))
                .collect(),
            seen: ids,
            tainted: vec![false; content.len()],
            barriers: Vec::new(),
            tick: 1,
        }
    }

    pub fn now(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    pub fn base(&self) -> WriteId {
        self.base
    }

    pub fn newest(&self) -> WriteId {
        self.base + self.writes.len() as u64
    }

    /// A write of this life.
    pub fn write(&self, id: WriteId) -> Option<&Write> {
        id.checked_sub(self.base + 1)
            .and_then(|index| self.writes.get(index as usize))
    }

    pub fn write_mut(&mut self, id: WriteId) -> Option<&mut Write> {
        id.checked_sub(self.base + 1)
            .and_then(|index| self.writes.get_mut(index as usize))
    }

    /// All writes of this life, with their ids.
    pub fn writes(&self) -> impl DoubleEndedIterator<Item = (WriteId, &Write)> {
        let base = self.base;
        self.writes
            .iter()
            .enumerate()
            .map(move |(index, write)| (base + 1 + index as u64, write))
    }

    pub fn floor(&self) -> &[WriteId] {
        &self.floor
    }

    pub fn flushed(&self) -> &[WriteId] {
        &self.flushed
    }

    pub fn barriers(&self) -> &[Barrier] {
        &self.barriers
    }

    pub fn seen(&self, range: Range) -> &[WriteId] {
        &self.seen[sectors(range)]
    }

    pub fn is_tainted(&self, sector: usize) -> bool {
        self.tainted[sector]
    }

    pub fn taint(&mut self, range: Range) {
        self.tainted[sectors(range)].fill(true);
    }

    pub fn submit(&mut self, range: Range, kind: Kind, fua: bool) -> WriteId {
        let submitted = self.now();
        self.writes.push(Write {
            range,
            kind,
            fua,
            submitted,
            acknowledged: None,
            failed: false,
            generation: None,
            zeroed: [false; 2],
        });
        self.newest()
    }

    /// The guest is told that a write succeeded.
    pub fn acknowledge(&mut self, id: WriteId) {
        let tick = self.now();
        let write = self.write_mut(id).expect("only writes of this life are acknowledged");
        write.acknowledged = Some(tick);
        if write.kind == Kind::Discard {
            return;
        }
        let (range, fua) = (write.range, write.fua);
        for sector in sectors(range) {
            self.floor[sector] = self.floor[sector].max(id);
            self.seen[sector] = self.seen[sector].max(id);
            if fua {
                self.flushed[sector] = self.flushed[sector].max(id);
            }
        }
        if fua {
            self.barriers.push(Barrier::Fua {
                write: id,
                acknowledged: tick,
            });
        }
    }

    pub fn fail(&mut self, id: WriteId) {
        let write = self.write_mut(id).expect("only writes of this life fail");
        write.failed = true;
        let range = write.range;
        self.taint(range);
    }

    /// The guest is told that a FLUSH succeeded that was submitted at `submitted`, when the floor was `floor`.
    pub fn acknowledge_flush(&mut self, submitted: Tick, floor: &[WriteId]) {
        for (flushed, floor) in self.flushed.iter_mut().zip(floor) {
            *flushed = (*flushed).max(*floor);
        }
        let acknowledged = self.now();
        self.barriers.push(Barrier::Flush {
            submitted,
            acknowledged,
        });
    }

    /// Somebody has decided that the sector holds what `id` wrote, or nothing that is known.
    pub fn give_up(&mut self, sector: usize, id: WriteId) {
        self.tainted[sector] = true;
        for floor in [&mut self.floor, &mut self.seen, &mut self.flushed] {
            floor[sector] = floor[sector].min(id);
        }
    }

    /// A read returned this.
    pub fn saw(&mut self, sector: usize, token: Token) {
        if token.id() > self.seen[sector] {
            self.seen[sector] = token.id();
            self.seen_zeroes[sector] = token.is_zero();
        }
    }

    /// A token that may lie at `sector` at all: meant for it, and written by the guest or there from the beginning.
    pub fn is_legal(&self, sector: usize, token: Token) -> bool {
        !token.is_junk() && token.sector() == sector as u64 && token.id() <= self.newest() && token.id() > 0
    }

    /// Whether a sector that holds `token` shows what write `id` put there, or something newer. Zeroes are zeroes,
    /// whichever request made them: a comparison rightly leaves older ones in place.
    pub fn shows(&self, sector: usize, token: Token, id: WriteId) -> bool {
        token.id() >= id || token.is_zero() && self.makes_zeroes(sector, id)
    }

    fn makes_zeroes(&self, sector: usize, id: WriteId) -> bool {
        match self.write(id) {
            Some(write) => write.kind != Kind::Data,
            None => {
                let initially = |content: &Vec<Token>| content[sector].id() == id && content[sector].is_zero();
                self.initial.iter().any(initially) || self.seen[sector] == id && self.seen_zeroes[sector]
            }
        }
    }

    /// Which request a zeroing on `leg` belongs to: the oldest that covers it, has not been sent to this leg, is newer
    /// than what the leg shows, and is either unanswered or went to the other leg.
    pub fn source_of_zeroes(&mut self, leg: usize, range: Range, disk: &Disk) -> Option<WriteId> {
        let newest_shown = sectors(range).map(|sector| disk.newest(sector)).max()?;
        let base = self.base;
        let fits = |write: &Write, id: WriteId, exact: bool| {
            write.kind != Kind::Data
                && (if exact {
                    write.range == range
                } else {
                    write.range.contains(range)
                })
                && (!write.zeroed[leg] || !exact)
                && id > newest_shown
                && (write.acknowledged.is_none() && !write.failed || write.zeroed[1 - leg])
        };
        for exact in [true, false] {
            for (index, write) in self.writes.iter_mut().enumerate() {
                let id = base + 1 + index as u64;
                if fits(write, id, exact) {
                    write.zeroed[leg] = true;
                    return Some(id);
                }
            }
        }
        None
    }

    /// Content of `sector` when all writes up to `generation` had taken effect and none after: the id it must show and
    /// whether that is zeroes, or `None` when it cannot be told (a write failed, or was never counted). Discards may be
    /// seen or not.
    pub fn expected_at(&self, generation: u64, sector: usize) -> Option<(WriteId, bool)> {
        if self.tainted[sector] {
            return None;
        }
        let at = sector as u64 * SECTOR;
        for (id, write) in self.writes().rev() {
            if !write.range.overlaps(Range::new(at, SECTOR)) {
                continue;
            }
            match write.generation {
                _ if write.kind == Kind::Discard => return None,
                Some(number) if number > generation => {}
                Some(_) => return Some((id, write.kind == Kind::Zeroes)),
                None if write.acknowledged.is_some() => return None,
                None => {}
            }
        }
        let token = self.initial[0][sector];
        if token.is_rotten() {
            return None;
        }
        Some((token.id(), token.is_zero()))
    }
}
