//! An engine under test, and what is done with it.

use std::sync::Arc;
use twinblk::core::{Action, Buf, Errno, LegId, LegOp, OpId, Range};
use twinblk::io::seed::Chance;
use twinblk::io::{Arena, Engine};

pub const WRITE: Action = Action::Write { fua: false };
pub const WRITE_FUA: Action = Action::Write { fua: true };
pub const ZERO: Action = Action::Zero { unmap: false };
pub const UNMAP: Action = Action::Zero { unmap: true };

/// How many operations the suite has in flight at most.
pub const CAPACITY: u32 = 512;
pub const ARENA_BYTES: u64 = 32 << 20;
pub const MIB: u64 = 1 << 20;

/// An engine with two legs of `size` bytes full of zeroes, the last 4 KiB of which are not whole.
pub struct Rig<E = Box<dyn Engine>> {
    pub engine: E,
    pub arena: Arc<Arena>,
    pub size: u64,
    pub block: u64,
    pub next: u64,
    /// What has to stay until the engine is gone.
    pub _keep: Vec<Box<dyn std::any::Any>>,
}

impl<E: Engine> Rig<E> {
    pub fn new(engine: E, arena: Arc<Arena>, size: u64, block: u64) -> Rig<E> {
        Rig {
            engine,
            arena,
            size,
            block,
            next: 0,
            _keep: Vec::new(),
        }
    }

    pub fn submit(&mut self, leg: LegId, action: Action, range: Range, buf: Buf) -> OpId {
        self.next += 1;
        // High bits set: an engine must return the whole of it.
        let id = OpId((1 << 47) + self.next);
        self.engine.submit(LegOp {
            id,
            leg,
            action,
            range,
            buf,
        });
        id
    }

    pub fn run(&mut self, leg: LegId, action: Action, range: Range, buf: Buf) -> Result<(), Errno> {
        let id = self.submit(leg, action, range, buf);
        let mut ended = Vec::new();
        self.engine.wait(1, &mut ended).unwrap();
        assert_eq!(ended.len(), 1, "one operation was in flight");
        assert_eq!(ended[0].0, id);
        ended[0].1
    }

    pub fn wait_all(&mut self) -> Vec<(OpId, Result<(), Errno>)> {
        let mut ended = Vec::new();
        let in_flight = self.engine.in_flight();
        self.engine.wait(in_flight, &mut ended).unwrap();
        assert_eq!(ended.len(), in_flight);
        assert_eq!(self.engine.in_flight(), 0);
        ended
    }

    pub fn write(&mut self, leg: LegId, action: Action, start: u64, bytes: &[u8]) {
        self.arena.write(Buf(0), bytes);
        let range = Range::new(start, bytes.len() as u64);
        self.run(leg, action, range, Buf(0)).unwrap();
    }

    pub fn read(&mut self, leg: LegId, start: u64, len: u64) -> Vec<u8> {
        let buf = Buf::at(ARENA_BYTES / 2);
        // So that bytes which are not read do not look as if they were zero, or what they were before.
        self.arena.write(buf, &vec![0xEE; len as usize]);
        self.run(leg, Action::Read, Range::new(start, len), buf).unwrap();
        let mut bytes = vec![0; len as usize];
        self.arena.read(buf, &mut bytes);
        bytes
    }
}

/// Bytes that differ from place to place and from seed to seed, and are never zero.
pub fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut chance = Chance::new(seed);
    let mut bytes = vec![0; len as usize];
    for sector in bytes.chunks_mut(512) {
        // One sector repeats a word: enough to tell sectors apart, and quick without optimisation.
        let word = (chance.next() | 0x0101_0101_0101_0101).to_le_bytes();
        sector[..8].copy_from_slice(&word);
        let (word, rest) = sector.split_at_mut(8);
        for place in rest.chunks_mut(8) {
            place.copy_from_slice(word);
        }
    }
    bytes
}

pub fn assert_same(left: &[u8], right: &[u8], what: &str) {
    assert_eq!(left.len(), right.len(), "{what}");
    if left != right {
        let differing = left.iter().zip(right).position(|(left, right)| left != right);
        panic!("{what}: first byte that differs: {differing:?}");
    }
}
