//! Which parts of the arena are backed by memory: the tags' buffers always, pool and copy buffers while there is use.

use super::Mirror;
use crate::core::effect::Effect;
use crate::core::layout::{Buf, Layout};

/// Blocks of the pool's part of the arena that are in nobody's hands.
pub(super) struct Memory {
    /// Blocks from here on were never used.
    top: u64,
    spare: Vec<Buf>,
    copies: bool,
}

impl Memory {
    pub(super) fn new(layout: &Layout) -> Memory {
        Memory {
            top: layout.pool_start(),
            spare: Vec::new(),
            copies: false,
        }
    }
}

impl Mirror {
    pub(super) fn populate(&mut self, start: u64, len: u64, wanted: bool) {
        self.effects.push_back(Effect::Populate { start, len, wanted });
    }

    /// Make the pool as large as it should be, as far as that is possible now.
    pub(super) fn size_pool(&mut self, bytes: u64) {
        let block = self.config.layout.max_io as u64;
        self.pool.set_wanted(bytes);
        let missing = self.pool.missing();
        for _ in 0..missing.min(self.memory.spare.len() as u64) {
            if let Some(buf) = self.memory.spare.pop() {
                self.populate(buf.offset(), block, true);
                self.pool.add(buf);
            }
        }
        let fresh = self.pool.missing();
        if fresh > 0 {
            let start = self.memory.top;
            self.memory.top += fresh * block;
            assert!(
                self.memory.top <= self.config.layout.arena_bytes(),
                "the pool stays within its maximum"
            );
            self.populate(start, fresh * block, true);
            (0..fresh).for_each(|i| self.pool.add(Buf::at(start + i * block)));
        }
        self.shrink_pool();
    }

    /// Give back what the pool has too much of.
    pub(super) fn shrink_pool(&mut self) {
        let block = self.config.layout.max_io as u64;
        while let Some(buf) = self.pool.take_excess() {
            self.populate(buf.offset(), block, false);
            self.memory.spare.push(buf);
        }
    }

    /// Give a payload's memory back.
    pub(super) fn give_back(&mut self, buf: Buf) {
        self.pool.give(buf);
        self.shrink_pool();
    }

    /// Back the copy buffers with memory, or no longer.
    pub(super) fn want_copies(&mut self, wanted: bool) {
        if self.memory.copies != wanted {
            self.memory.copies = wanted;
            self.populate(
                self.config.layout.tags_bytes(),
                self.config.layout.copies_bytes(),
                wanted,
            );
        }
    }
}
