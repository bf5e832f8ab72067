//! The guest: as many clients as the device has tags, each with one request in flight, each with habits of its own.
//!
//! Faults of ordering show under load that overlaps, so most clients write to the same few blocks; some behave like
//! `fsync` and like a journal, because those are what barriers are for.

use crate::oracle::Tick;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::token::WriteId;
use twinblk::core::{Buf, Geometry, LegId, Operation, Range, Request, Time};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Anything.
    Mixed,
    /// Writes and never stops.
    Writer,
    /// Reads what the others write.
    Reader,
    /// Write, flush, repeat.
    Fsync,
    /// Data, flush, commit with FUA, checkpoint, repeat.
    Journal,
    /// Discards and zeroes among writes.
    Trimmer,
}

/// A request that the guest waits for.
#[derive(Clone, Debug)]
pub struct Pending {
    pub request: Request,
    pub submitted_at: Time,
    pub submitted: Tick,
    /// Which leg was the primary then.
    pub primary: LegId,
    /// How many mutations were answered before.
    pub answered_before: u64,
    /// A write's id; 0 for others.
    pub write: WriteId,
    /// For a read: what its sectors must hold at least. For a flush: the floor of the whole device.
    pub floor: Vec<WriteId>,
}

struct Client {
    habit: Habit,
    step: u32,
    /// Where a journal writes.
    home: u64,
}

pub struct Guest {
    clients: Vec<Client>,
    pub pending: Vec<Option<Pending>>,
    /// Where a tag's next payload goes.
    pub buffers: Vec<Buf>,
    geometry: Geometry,
    max_blocks: u64,
    hot_blocks: u64,
    hot_start: u64,
    thinks: bool,
    writes_rarely: bool,
}

impl Guest {
    pub fn new(plan: &Plan, rng: &mut Rng) -> Guest {
        let geometry = plan.config.geometry;
        let layout = plan.config.layout;
        let blocks = geometry.size / u64::from(geometry.block);
        let habits = [
            Habit::Mixed,
            Habit::Mixed,
            Habit::Writer,
            Habit::Reader,
            Habit::Fsync,
            Habit::Journal,
            Habit::Trimmer,
        ];
        Guest {
            clients: (0..layout.depth)
                .map(|tag| Client {
                    habit: match tag {
                        0 if plan.endless => Habit::Fsync,
                        1 if plan.endless => Habit::Journal,
                        _ if plan.endless => Habit::Writer,
                        _ => rng.pick(&habits),
                    },
                    step: 0,
                    home: rng.below(blocks),
                })
                .collect(),
            pending: vec![None; layout.depth.into()],
            buffers: (0..layout.depth).map(|tag| layout.tag(tag)).collect(),
            geometry,
            max_blocks: plan
                .max_blocks
                .min(u64::from(layout.max_io / geometry.block))
                .min(blocks),
            hot_blocks: plan.hot_blocks.min(blocks),
            hot_start: rng.below(blocks),
            thinks: plan.thinks,
            writes_rarely: rng.percent(10),
        }
    }

    pub fn outstanding(&self) -> impl Iterator<Item = &Pending> {
        self.pending.iter().flatten()
    }

    /// Nanoseconds until client `tag` asks again.
    pub fn think(&self, tag: usize, rng: &mut Rng) -> u64 {
        match self.clients[tag].habit {
            _ if !self.thinks => rng.below(2_000),
            Habit::Writer => 0,
            _ if rng.percent(5) => rng.below(20_000_000),
            _ => rng.below(300_000),
        }
    }

    fn place(&self, rng: &mut Rng) -> Range {
        let block = u64::from(self.geometry.block);
        let blocks = self.geometry.size / block;
        let count = if rng.percent(40) {
            1
        } else {
            rng.within(1, self.max_blocks)
        };
        let start = if rng.percent(70) {
            (self.hot_start + rng.below(self.hot_blocks)) % blocks
        } else {
            rng.below(blocks)
        };
        let count = count.min(blocks - start);
        Range::new(start * block, count * block)
    }

    fn mixed(&self, rng: &mut Rng) -> Operation {
        let weights = if self.writes_rarely {
            [70, 15, 5, 5, 2, 3]
        } else {
            [25, 45, 10, 10, 5, 5]
        };
        match rng.weighted(&weights) {
            0 => Operation::Read,
            1 => Operation::Write { fua: false },
            2 => Operation::Write { fua: true },
            3 => Operation::Flush,
            4 => Operation::Discard,
            _ => Operation::WriteZeroes {
                unmap: rng.percent(50),
                fua: rng.percent(30),
            },
        }
    }

    /// What client `tag` asks for next.
    pub fn next(&mut self, tag: usize, rng: &mut Rng) -> Request {
        let client = &mut self.clients[tag];
        let (habit, step, home) = (client.habit, client.step, client.home);
        client.step += 1;
        let block = u64::from(self.geometry.block);
        let mut place = self.place(rng);
        let operation = match habit {
            Habit::Mixed => self.mixed(rng),
            Habit::Writer => Operation::Write { fua: rng.percent(3) },
            Habit::Reader => Operation::Read,
            Habit::Fsync => match step % 3 {
                2 => Operation::Flush,
                _ => Operation::Write { fua: false },
            },
            Habit::Journal => match step % 5 {
                1 => Operation::Flush,
                2 => {
                    place = Range::new(home * block, block);
                    Operation::Write { fua: true }
                }
                _ => Operation::Write { fua: false },
            },
            Habit::Trimmer => match rng.below(4) {
                0 => Operation::Discard,
                1 => Operation::WriteZeroes {
                    unmap: rng.percent(50),
                    fua: rng.percent(30),
                },
                2 => Operation::Read,
                _ => Operation::Write { fua: false },
            },
        };
        Request {
            operation,
            range: if operation == Operation::Flush {
                Range::EMPTY
            } else {
                place
            },
        }
    }
}
