//! Carries operations out on a model of a disk with a volatile cache.
//!
//! A write or zeroing lands in the cache when it is carried out, and becomes durable with the next flush (or at once,
//! with `fua`). [`MemoryEngine::cut`] is a power cut: each sector that is not durable keeps, independently of all
//! others, any of the contents that it had since it last was. An operation takes effect when its completion is
//! returned, all of it at once; only a cut can leave part of it.
//!
//! Not handled: time, errors and torn or lost writes (see [`super::faulty`]), disks whose sectors are not 512 bytes, and
//! whatever needs a whole device at work: the simulation has a model of its own.

use super::arena::Arena;
use super::engine::{Completion, Engine};
use super::seed::Chance;
use crate::core::geometry::SECTOR;
use crate::core::{Action, Errno, LegId, LegOp, Range};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

type Sector = [u8; SECTOR as usize];

/// In which order operations in flight are carried out.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// As submitted, all of them by the next wait.
    Submission,
    /// In an order that this seed gives, and some of them later than they could.
    Shuffled(u64),
}

/// One disk.
#[derive(Clone, Debug)]
struct Disk {
    /// What a read sees.
    live: Vec<u8>,
    /// For each sector that is not durable: what it held when it last was, then everything it has held since.
    unsettled: BTreeMap<u64, Vec<Sector>>,
}

/// Both legs in memory.
#[derive(Debug)]
pub struct MemoryEngine {
    arena: Arc<Arena>,
    disks: [Option<Disk>; 2],
    queued: Vec<LegOp>,
    shuffle: Option<Chance>,
}

impl MemoryEngine {
    /// An engine whose legs are not there yet, with buffers in `arena`.
    pub fn new(arena: Arc<Arena>, order: Order) -> MemoryEngine {
        let shuffle = match order {
            Order::Submission => None,
            Order::Shuffled(seed) => Some(Chance::new(seed)),
        };
        MemoryEngine {
            arena,
            disks: [None, None],
            queued: Vec::new(),
            shuffle,
        }
    }

    /// From now on `leg` is a disk of this many zeroes, or none.
    ///
    /// # Panics
    /// If an operation is in flight on the leg, or the size is no multiple of a sector.
    pub fn set_leg(&mut self, leg: LegId, bytes: Option<u64>) {
        assert!(
            self.queued.iter().all(|op| op.leg != leg),
            "leg {leg} is exchanged with operations in flight"
        );
        self.disks[leg.index()] = bytes.map(|bytes| {
            assert!(bytes.is_multiple_of(SECTOR), "a disk of {bytes} bytes");
            Disk {
                live: vec![0; bytes as usize],
                unsettled: BTreeMap::new(),
            }
        });
    }

    /// What a read of `leg` would see.
    ///
    /// # Panics
    /// If the leg is not there.
    pub fn content(&self, leg: LegId) -> &[u8] {
        &self.disks[leg.index()]
            .as_ref()
            .expect("the caller has set the leg")
            .live
    }

    /// How many bytes of `leg` a power cut could change.
    ///
    /// # Panics
    /// If the leg is not there.
    pub fn volatile_bytes(&self, leg: LegId) -> u64 {
        let disk = self.disks[leg.index()].as_ref().expect("the caller has set the leg");
        disk.unsettled.len() as u64 * SECTOR
    }

    /// Cut the power: what is not durable is kept or lost as `seed` says, and operations in flight have happened in
    /// part or not at all and will never be answered.
    pub fn cut(&mut self, seed: u64) {
        let mut chance = Chance::new(seed);
        for op in std::mem::take(&mut self.queued) {
            let disk = self.disks[op.leg.index()]
                .as_mut()
                .expect("checked when it was submitted");
            if disk.holds(op.range) {
                match op.action {
                    Action::Read | Action::Flush => {}
                    Action::Write { .. } => disk.store(op.range, &payload(&self.arena, &op), false),
                    Action::Zero { .. } => disk.store(op.range, &vec![0; op.range.len as usize], false),
                }
            }
        }
        for disk in self.disks.iter_mut().flatten() {
            for (sector, contents) in std::mem::take(&mut disk.unsettled) {
                let kept = contents[chance.below(contents.len() as u64) as usize];
                disk.sector_mut(sector).copy_from_slice(&kept);
            }
        }
    }

    fn carry_out(&mut self, op: &LegOp) -> Result<(), Errno> {
        let disk = self.disks[op.leg.index()]
            .as_mut()
            .expect("checked when it was submitted");
        if !disk.holds(op.range) {
            return Err(Errno::IO);
        }
        let bytes = op.range.start as usize..op.range.end() as usize;
        match op.action {
            Action::Read => self.arena.write(op.buf, &disk.live[bytes]),
            Action::Write { fua } => disk.store(op.range, &payload(&self.arena, op), fua),
            Action::Zero { .. } => disk.store(op.range, &vec![0; bytes.len()], false),
            Action::Flush => disk.unsettled.clear(),
        }
        Ok(())
    }
}

fn payload(arena: &Arena, op: &LegOp) -> Vec<u8> {
    let mut bytes = vec![0; op.range.len as usize];
    arena.read(op.buf, &mut bytes);
    bytes
}

impl Disk {
    fn holds(&self, range: Range) -> bool {
        range
            .start
            .checked_add(range.len)
            .is_some_and(|end| end <= self.live.len() as u64)
    }

    fn sector_mut(&mut self, sector: u64) -> &mut Sector {
        let (sectors, rest) = self.live.as_chunks_mut();
        debug_assert!(rest.is_empty());
        &mut sectors[sector as usize]
    }

    fn store(&mut self, range: Range, bytes: &[u8], durably: bool) {
        let (sectors, rest) = bytes.as_chunks();
        assert!(
            rest.is_empty() && range.start.is_multiple_of(SECTOR),
            "{range:?} is not in whole sectors"
        );
        for (sector, new) in (range.start / SECTOR..).zip(sectors) {
            let old = std::mem::replace(self.sector_mut(sector), *new);
            if durably {
                self.unsettled.remove(&sector);
            } else {
                self.unsettled.entry(sector).or_insert_with(|| vec![old]).push(*new);
            }
        }
    }
}

impl Engine for MemoryEngine {
    fn submit(&mut self, op: LegOp) {
        assert!(
            self.disks[op.leg.index()].is_some(),
            "{op:?} for a leg that is not there"
        );
        if matches!(op.action, Action::Read | Action::Write { .. }) {
            self.arena.span(op.buf, op.range.len);
        }
        self.queued.push(op);
    }

    fn wait(&mut self, at_least: usize, out: &mut Vec<Completion>) -> io::Result<()> {
        let mut queued = std::mem::take(&mut self.queued);
        let now = match &mut self.shuffle {
            None => queued.len(),
            Some(chance) => {
                for i in (1..queued.len()).rev() {
                    queued.swap(i, chance.below(i as u64 + 1) as usize);
                }
                let least = at_least.min(queued.len());
                least + chance.below((queued.len() - least) as u64 + 1) as usize
            }
        };
        out.extend(queued.drain(..now).map(|op| (op.id, self.carry_out(&op))));
        self.queued = queued;
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.queued.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Buf, OpId};

    const SIZE: u64 = 64 * 1024;

    fn engine() -> MemoryEngine {
        let arena = Arc::new(Arena::reserve(1 << 20).unwrap());
        let mut engine = MemoryEngine::new(arena, Order::Submission);
        engine.set_leg(LegId::A, Some(SIZE));
        engine
    }

    fn run(engine: &mut MemoryEngine, action: Action, start: u64, len: u64, fill: u8) {
        engine.arena.write(Buf(0), &vec![fill; len as usize]);
        engine.submit(LegOp {
            id: OpId(1),
            leg: LegId::A,
            action,
            range: Range::new(start, len),
            buf: Buf(0),
        });
        let mut ended = Vec::new();
        engine.wait(1, &mut ended).unwrap();
        assert_eq!(ended, [(OpId(1), Ok(()))]);
    }

    const WRITE: Action = Action::Write { fua: false };
    const DURABLY: Action = Action::Write { fua: true };

    #[test]
    fn a_cut_takes_nothing_that_was_flushed() {
        for seed in 0..50 {
            let mut engine = engine();
            run(&mut engine, WRITE, 0, SIZE, 1);
            run(&mut engine, Action::Flush, 0, 0, 0);
            assert_eq!(engine.volatile_bytes(LegId::A), 0);
            engine.cut(seed);
            assert!(engine.content(LegId::A).iter().all(|&byte| byte == 1));
        }
    }

    #[test]
    fn a_cut_takes_nothing_that_was_written_durably_and_leaves_older_writes_under_it_no_chance() {
        for seed in 0..50 {
            let mut engine = engine();
            run(&mut engine, WRITE, 0, 8192, 1);
            run(&mut engine, DURABLY, 512, 512, 2);
            engine.cut(seed);
            assert!(engine.content(LegId::A)[512..1024].iter().all(|&byte| byte == 2));
        }
    }

    #[test]
    fn a_cut_leaves_each_sector_one_of_its_contents_and_mixes_them() {
        let mut seen = [false; 3];
        let mut engine = engine();
        run(&mut engine, WRITE, 0, SIZE, 1);
        run(&mut engine, Action::Flush, 0, 0, 0);
        run(&mut engine, WRITE, 0, SIZE, 2);
        run(&mut engine, Action::Zero { unmap: true }, 0, SIZE, 9);
        engine.cut(3);
        for sector in engine.content(LegId::A).chunks(512) {
            assert!(sector.iter().all(|&byte| byte == sector[0]), "a sector was torn");
            seen[usize::from(sector[0])] = true;
        }
        assert_eq!(seen, [true; 3]);
    }

    #[test]
    fn a_write_in_flight_at_a_cut_lands_in_part_and_is_never_answered() {
        let mut engine = engine();
        engine.arena.write(Buf(0), &[5; 32768]);
        engine.submit(LegOp {
            id: OpId(1),
            leg: LegId::A,
            action: DURABLY,
            range: Range::new(0, 32768),
            buf: Buf(0),
        });
        engine.cut(1);
        let landed = engine.content(LegId::A).iter().filter(|&&byte| byte == 5).count();
        assert!(landed > 0 && landed < 32768, "{landed}");
        assert_eq!(engine.in_flight(), 0);
    }
}
