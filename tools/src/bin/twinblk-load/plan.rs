//! What a writer does: a function of the parameters, so that `check` can do it again in its head.
//!
//! The disk begins with a range that all writers share (their writes overlap in flight), then comes a range for each. Both
//! have a hot beginning.

use crate::block::splitmix;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The longest write, in bytes.
pub const MAX_BYTES: u32 = 128 << 10;
/// The range that all share, in bytes.
const SHARED_BYTES: u64 = 1 << 20;
/// The hot part of a range, in bytes: what one write can cover.
const HOT_BYTES: u64 = MAX_BYTES as u64;
/// Of a hundred writes, how many go to the range that all share.
const TO_SHARED: u64 = 10;
/// Of a hundred writes, how many go to the hot part of their range.
const TO_HOT: u64 = 40;

/// All that decides what is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// Decides everything else.
    pub seed: u64,
    /// Bytes of the disk that are used.
    pub size: u64,
    /// Bytes of a block.
    pub block: u32,
    /// How many writers.
    pub writers: u16,
    /// Writes between two fsyncs, on average.
    pub sync_every: u32,
    /// Percent of the writes that are forced.
    pub forced: u32,
    /// Percent of the operations that are reads.
    pub reads: u32,
}

impl Params {
    /// Whether they can be worked with.
    ///
    /// # Errors
    /// Why not.
    pub fn validate(&self) -> Result<(), String> {
        let least = SHARED_BYTES + u64::from(self.writers) * HOT_BYTES;
        if self.size < least {
            return Err(format!(
                "{} bytes are too few: {} writers need {least}",
                self.size, self.writers
            ));
        }
        if self.sync_every == 0 || self.forced > 100 || self.reads >= 100 {
            return Err("sync-every must not be 0, forced at most 100 and reads less than 100".into());
        }
        if !matches!(self.block, 512 | 4096)
            || usize::from(self.writers) > crate::block::MAX_WRITERS
            || self.writers == 0
        {
            return Err("blocks must have 512 or 4096 bytes, and there is a limit to the writers".into());
        }
        Ok(())
    }

    /// All blocks that may be written.
    pub fn blocks(&self) -> u64 {
        self.private(self.writers - 1).end
    }

    /// The blocks that all writers share.
    pub fn shared(&self) -> Range<u64> {
        0..SHARED_BYTES / u64::from(self.block)
    }

    /// The blocks that only `writer` writes.
    pub fn private(&self, writer: u16) -> Range<u64> {
        let begin = self.shared().end;
        let each = (self.size / u64::from(self.block) - begin) / u64::from(self.writers);
        begin + u64::from(writer) * each..begin + (u64::from(writer) + 1) * each
    }

    /// The place of a block or of a number of blocks, in bytes.
    pub fn bytes(&self, blocks: u64) -> u64 {
        blocks * u64::from(self.block)
    }
}

/// What a writer does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes blocks; `number` counts its writes from 1.
    Write {
        /// Which of its writes.
        number: u32,
        /// Which blocks.
        blocks: Range<u64>,
        /// Whether it is durable when it is acknowledged.
        forced: bool,
    },
    /// Makes all that it has written durable.
    Sync,
    /// Reads blocks of its own range back.
    Read {
        /// Which blocks.
        blocks: Range<u64>,
    },
}

/// The operations of one writer, without end.
pub struct Plan<'a> {
    params: &'a Params,
    writer: u16,
    random: u64,
    number: u32,
    /// A barrier with nothing new before it proves nothing.
    synced: bool,
}

impl<'a> Plan<'a> {
    /// From the beginning.
    pub fn new(params: &'a Params, writer: u16) -> Plan<'a> {
        let mut random = params.seed;
        let random = splitmix(&mut random) ^ u64::from(writer);
        Plan {
            params,
            writer,
            random,
            number: 0,
            synced: true,
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        // The bias does not matter here.
        splitmix(&mut self.random) % end
    }

    fn place(&mut self, range: Range<u64>) -> Range<u64> {
        let block = u64::from(self.params.block);
        let hot = self.below(100) < TO_HOT;
        let length = range.end - range.start;
        let length = if hot { length.min(HOT_BYTES / block) } else { length };
        // All orders of magnitude alike.
        let magnitudes = u64::from((u64::from(MAX_BYTES) / block).ilog2()) + 1;
        let largest = 1 << self.below(magnitudes);
        let count = (1 + self.below(largest)).min(length);
        let begin = range.start + self.below(length - count + 1);
        begin..begin + count
    }
}

impl Iterator for Plan<'_> {
    type Item = Op;

    fn next(&mut self) -> Option<Op> {
        if !self.synced && self.below(u64::from(self.params.sync_every)) == 0 {
            self.synced = true;
            return Some(Op::Sync);
        }
        if self.below(100) < u64::from(self.params.reads) {
            let range = self.params.private(self.writer);
            let blocks = self.place(range);
            return Some(Op::Read { blocks });
        }
        let range = if self.below(100) < TO_SHARED {
            self.params.shared()
        } else {
            self.params.private(self.writer)
        };
        let blocks = self.place(range);
        let forced = self.below(100) < u64::from(self.params.forced);
        self.number += 1;
        self.synced = false;
        Some(Op::Write {
            number: self.number,
            blocks,
            forced,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(block: u32) -> Params {
        Params {
            seed: 5,
            size: 64 << 20,
            block,
            writers: 5,
            sync_every: 10,
            forced: 5,
            reads: 10,
        }
    }

    #[test]
    fn writers_keep_to_the_shared_range_and_their_own() {
        for block in [512, 4096] {
            let params = params(block);
            params.validate().unwrap();
            assert!(params.bytes(params.blocks()) <= params.size);
            for writer in 0..params.writers {
                let own = params.private(writer);
                let (mut shared, mut longest) = (0, 0);
                for op in Plan::new(&params, writer).take(20_000) {
                    let (blocks, may_share) = match op {
                        Op::Write { blocks, .. } => (blocks, true),
                        Op::Read { blocks } => (blocks, false),
                        Op::Sync => continue,
                    };
                    let is_own = own.start <= blocks.start && blocks.end <= own.end;
                    assert!(is_own || may_share && blocks.end <= params.shared().end, "{blocks:?}");
                    assert!(!blocks.is_empty() && params.bytes(blocks.end - blocks.start) <= u64::from(MAX_BYTES));
                    shared += u32::from(!is_own);
                    longest = longest.max(blocks.end - blocks.start);
                }
                assert!(shared > 0 && params.bytes(longest) > u64::from(MAX_BYTES) / 2);
            }
        }
    }

    #[test]
    fn a_plan_is_the_same_each_time_and_another_for_each_writer_and_seed() {
        let begin = |params: &Params, writer| Plan::new(params, writer).take(50).collect::<Vec<Op>>();
        let one = params(512);
        let two = Params { seed: 6, ..one.clone() };
        assert_eq!(begin(&one, 1), begin(&one, 1));
        assert_ne!(begin(&one, 1), begin(&one, 2));
        assert_ne!(begin(&one, 1), begin(&two, 1));
    }
}
