//! The bounded pool in which payloads wait for the secondary after the guest was answered.
//!
//! Memory comes in *blocks* of the largest request's size. A small payload is copied into a *piece*: a block is cut into
//! pieces of one size. A large payload is not copied: the block it lies in changes hands with a free one. Blocks are
//! therefore interchangeable and may lie anywhere in the arena. What is counted is what is held: whole pieces, whole blocks.

use super::layout::{Buf, Layout};

/// The smallest piece, in bytes.
pub const PIECE: u64 = 4096;
/// Payloads up to this are copied into a piece, larger ones exchange blocks.
pub const COPIED: u64 = 32 << 10;

const CLASSES: usize = 4;

#[derive(Clone, Copy, Default)]
struct Cut {
    /// Size class of the pieces; meaningful while `pieces` is not 0.
    class: u8,
    pieces: u8,
    /// Bit set: free.
    free: u64,
}

/// Free memory of the pool.
pub struct Pool {
    block_bytes: u64,
    whole: Vec<Buf>,
    /// By block number in the arena.
    cuts: Vec<Cut>,
    /// By class: blocks with a free piece.
    partial: [Vec<u32>; CLASSES],
    /// Blocks that belong to the pool, free or not.
    blocks: u64,
    wanted: u64,
    used: u64,
}

impl Pool {
    /// An empty pool for an arena of this layout.
    pub fn new(layout: &Layout) -> Pool {
        let block_bytes = layout.max_io as u64;
        assert!(
            block_bytes.is_power_of_two() && (PIECE..=64 * PIECE).contains(&block_bytes),
            "the largest request is a power of two from 4 KiB to 256 KiB"
        );
        assert!(
            layout.pool_start().is_multiple_of(block_bytes),
            "copy buffers are whole blocks"
        );
        let total = (layout.arena_bytes() / block_bytes) as usize;
        let blocks = (layout.pool_max / block_bytes) as usize + layout.depth as usize;
        Pool {
            block_bytes,
            whole: Vec::with_capacity(blocks),
            cuts: vec![Cut::default(); total],
            partial: std::array::from_fn(|_| Vec::with_capacity(blocks)),
            blocks: 0,
            wanted: 0,
            used: 0,
        }
    }

    /// Bytes in use by payloads.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes that belong to the pool.
    pub fn bytes(&self) -> u64 {
        self.blocks * self.block_bytes
    }

    /// Say how large the pool should be. Blocks beyond it leave as they become free.
    pub fn set_wanted(&mut self, bytes: u64) {
        self.wanted = bytes / self.block_bytes;
    }

    /// How many blocks are missing from what is wanted.
    pub fn missing(&self) -> u64 {
        self.wanted.saturating_sub(self.blocks)
    }

    /// Give the pool a block.
    pub fn add(&mut self, block: Buf) {
        self.blocks += 1;
        self.whole.push(block);
    }

    /// A free block that is more than what is wanted.
    pub fn take_excess(&mut self) -> Option<Buf> {
        if self.blocks <= self.wanted {
            return None;
        }
        let block = self.whole.pop()?;
        self.blocks -= 1;
        Some(block)
    }

    /// Bytes that a payload of `len` bytes would hold.
    pub fn held(&self, len: u64) -> u64 {
        if len <= COPIED.min(self.block_bytes / 2) {
            len.next_power_of_two().max(PIECE)
        } else {
            self.block_bytes
        }
    }

    /// Whether a payload of `len` bytes is copied into a piece (otherwise blocks are exchanged).
    pub fn copies(&self, len: u64) -> bool {
        self.held(len) < self.block_bytes
    }

    /// Memory for a payload of `len` bytes, unless the pool has no more.
    pub fn take(&mut self, len: u64) -> Option<Buf> {
        let held = self.held(len);
        if held == self.block_bytes {
            return self.take_block();
        }
        let class = (held / PIECE).trailing_zeros() as usize;
        let number = match self.partial[class].last() {
            Some(&number) => number,
            None => {
                let number = (self.whole.pop()?.offset() / self.block_bytes) as u32;
                let pieces = (self.block_bytes / held) as u8;
                self.cuts[number as usize] = Cut {
                    class: class as u8,
                    pieces,
                    free: u64::MAX >> (64 - pieces),
                };
                self.partial[class].push(number);
                number
            }
        };
        let cut = &mut self.cuts[number as usize];
        let piece = cut.free.trailing_zeros();
        cut.free &= cut.free - 1;
        if cut.free == 0 {
            self.partial[class].pop();
        }
        self.used += held;
        Some(Buf::at(number as u64 * self.block_bytes + piece as u64 * held))
    }

    /// A whole block.
    pub fn take_block(&mut self) -> Option<Buf> {
        let block = self.whole.pop()?;
        self.used += self.block_bytes;
        Some(block)
    }

    /// Give back what [`Pool::take`] or [`Pool::take_block`] gave, or the block that was exchanged for it.
    pub fn give(&mut self, buf: Buf) {
        let number = (buf.offset() / self.block_bytes) as u32;
        let cut = &mut self.cuts[number as usize];
        if cut.pieces == 0 {
            debug_assert!(buf.offset().is_multiple_of(self.block_bytes));
            self.used -= self.block_bytes;
            self.whole.push(buf);
            return;
        }
        let class = cut.class as usize;
        let held = PIECE << class;
        let bit = 1 << (buf.offset() % self.block_bytes / held);
        assert!(cut.free & bit == 0, "a piece is given back once");
        if cut.free == 0 {
            self.partial[class].push(number);
        }
        cut.free |= bit;
        self.used -= held;
        if cut.free == u64::MAX >> (64 - cut.pieces) {
            cut.pieces = 0;
            let at = self.partial[class].iter().rposition(|&other| other == number);
            self.partial[class].swap_remove(at.expect("a block with a free piece is listed"));
            self.whole.push(Buf::at(number as u64 * self.block_bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        depth: 4,
        max_io: 128 << 10,
        copies: 1,
        copy_bytes: 1 << 20,
        pool_max: 2 << 20,
    };

    #[test]
    fn never_hands_out_a_byte_twice_and_gets_everything_back() {
        let mut state = 88172645463325252u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut pool = Pool::new(&LAYOUT);
        pool.set_wanted(2 << 20);
        for i in 0..pool.missing() {
            pool.add(Buf::at(LAYOUT.pool_start() + i * LAYOUT.max_io as u64));
        }
        let mut held: Vec<(Buf, u64)> = Vec::new();
        for _ in 0..20_000 {
            if next() % 100 < 52 {
                let len = (1 + next() % 256) * 512;
                if let Some(buf) = pool.take(len) {
                    let bytes = pool.held(len);
                    for (other, other_bytes) in &held {
                        assert!(
                            buf.offset() + bytes <= other.offset() || other.offset() + other_bytes <= buf.offset(),
                            "memory is handed out twice"
                        );
                    }
                    held.push((buf, bytes));
                }
            } else if !held.is_empty() {
                let (buf, _) = held.swap_remove((next() % held.len() as u64) as usize);
                pool.give(buf);
            }
            assert_eq!(pool.used(), held.iter().map(|(_, bytes)| bytes).sum::<u64>());
        }
        held.drain(..).for_each(|(buf, _)| pool.give(buf));
        pool.set_wanted(0);
        assert_eq!(std::iter::from_fn(|| pool.take_excess()).count(), 16);
    }
}
