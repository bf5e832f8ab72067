//! The memory that legs, kernel and core share, one token per sector.
//!
//! Verifies: nothing outside populated memory is touched; memory given back loses its content. Does not verify who
//! may use a buffer when: that shows in the content, because `effects` poisons what is free to be overwritten.

use crate::token::{SECTOR, Token};
use twinblk::core::{Buf, Layout};

pub struct Arena {
    tokens: Vec<Token>,
    populated: Vec<bool>,
}

/// Places in the arena, as sector indices.
pub fn span(buf: Buf, bytes: u64) -> std::ops::Range<usize> {
    let start = buf.0 as usize;
    start..start + bytes.div_ceil(SECTOR) as usize
}

impl Arena {
    /// Memory for `layout`: the tags' buffers are there, everything else is asked for.
    pub fn new(layout: &Layout) -> Arena {
        let sectors = (layout.arena_bytes() / SECTOR) as usize;
        let mut populated = vec![false; sectors];
        populated[..(layout.tags_bytes() / SECTOR) as usize].fill(true);
        Arena {
            tokens: vec![Token::POISON; sectors],
            populated,
        }
    }

    /// `bytes` at `buf`, if they may be touched.
    pub fn check(&self, buf: Buf, bytes: u64) -> Result<std::ops::Range<usize>, String> {
        let span = span(buf, bytes);
        match self.populated.get(span.clone()) {
            None => Err(format!("{buf:?}+{bytes} lies outside the arena")),
            Some(there) if there.contains(&false) => Err(format!("{buf:?}+{bytes} touches memory not populated")),
            Some(_) => Ok(span),
        }
    }

    pub fn read(&self, at: usize) -> Token {
        self.tokens[at]
    }

    pub fn write(&mut self, at: usize, token: Token) {
        self.tokens[at] = token;
    }

    pub fn poison(&mut self, buf: Buf, bytes: u64) -> Result<(), String> {
        let span = self.check(buf, bytes)?;
        self.tokens[span].fill(Token::POISON);
        Ok(())
    }

    pub fn copy(&mut self, from: Buf, to: Buf, bytes: u64) -> Result<(), String> {
        let from = self.check(from, bytes)?;
        let to = self.check(to, bytes)?;
        if from.start < to.end && to.start < from.end {
            return Err(format!("a copy of {from:?} to {to:?} overlaps itself"));
        }
        self.tokens.copy_within(from, to.start);
        Ok(())
    }

    /// Make memory available, or give it back.
    pub fn populate(&mut self, start: u64, len: u64, wanted: bool) -> Result<(), String> {
        let span = (start / SECTOR) as usize..((start + len) / SECTOR) as usize;
        if !start.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) || span.end > self.tokens.len() {
            return Err(format!("populate {start}+{len} lies outside the arena"));
        }
        for at in span {
            if self.populated[at] != wanted {
                self.tokens[at] = Token::POISON;
                self.populated[at] = wanted;
            }
        }
        Ok(())
    }
}
