//! What one sector of 512 bytes holds: not the bytes but who wrote them, and for which place.
//!
//! The core never looks at bytes and addresses the arena in units of 512, so one number per sector says everything that
//! 512 bytes could, at a hundredth of the cost. A token tells the guest's write, the place it was meant for, and whether
//! it reads as zeroes; a sector that lands in the wrong place or comes out of a buffer used for something else shows.

use std::fmt;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

const SECTOR_BITS: u32 = 20;
const ID_BITS: u32 = 40;
const ZERO: u64 = 1 << 63;
const JUNK: u64 = 1 << 62;
const ROTTEN: u64 = 1 << 61;
const SERIAL_BITS: u32 = 8;

/// A write of the guest (or the content a device began with): higher was submitted later. 0 is no write.
pub type WriteId = u64;

/// The content of one sector.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(u64);

impl Token {
    /// Content of memory that nobody has filled, or that was given away.
    pub const POISON: Token = Token(u64::MAX);

    /// Written by `id` for `sector`.
    pub fn written(id: WriteId, sector: u64) -> Token {
        assert!(id < 1 << ID_BITS && sector < 1 << SECTOR_BITS);
        Token(id << SECTOR_BITS | sector)
    }

    /// Made to read as zeroes by `id` at `sector`.
    pub fn zeroed(id: WriteId, sector: u64) -> Token {
        Token(Token::written(id, sector).0 | ZERO)
    }

    /// Somebody else's data.
    pub fn junk(nonce: u64, sector: u64) -> Token {
        Token(Token::written(nonce, sector).0 | JUNK)
    }

    /// What a sector holds that has changed by itself when `newest` was the newest write.
    pub fn rotten(newest: WriteId, serial: u64, sector: u64) -> Token {
        let serial = serial % (1 << SERIAL_BITS);
        Token(Token::junk(newest << SERIAL_BITS | serial, sector).0 | ROTTEN)
    }

    pub fn is_rotten(self) -> bool {
        self.0 & ROTTEN != 0 && self != Token::POISON
    }

    /// The newest write when it changed by itself.
    pub fn rotted_at(self) -> WriteId {
        self.0 >> SECTOR_BITS >> SERIAL_BITS & ((1 << (ID_BITS - SERIAL_BITS)) - 1)
    }

    /// No write above this can have been replaced by it.
    pub fn newness(self) -> WriteId {
        if self.is_rotten() { self.rotted_at() } else { self.id() }
    }

    /// Which write it is of; 0 for junk and poison.
    pub fn id(self) -> WriteId {
        if self.is_junk() {
            0
        } else {
            self.0 >> SECTOR_BITS & ((1 << ID_BITS) - 1)
        }
    }

    /// Which place it was meant for.
    pub fn sector(self) -> u64 {
        self.0 & ((1 << SECTOR_BITS) - 1)
    }

    pub fn is_zero(self) -> bool {
        self.0 & ZERO != 0 && !self.is_junk()
    }

    /// Junk, rotten, or poison.
    pub fn is_junk(self) -> bool {
        self.0 & JUNK != 0
    }

    /// The bytes alone, whoever made them.
    pub fn bytes(self) -> Token {
        if self.is_zero() { Token(ZERO) } else { self }
    }

    /// Whether the bytes are the same: zeroes are zeroes, whoever made them.
    pub fn same_bytes(self, other: Token) -> bool {
        self == other || self.is_zero() && other.is_zero()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Token::POISON {
            return f.write_str("poison");
        }
        let kind = if self.is_rotten() {
            "rotten"
        } else if self.is_junk() {
            "junk"
        } else if self.is_zero() {
            "zero"
        } else {
            "write"
        };
        let id = self.0 >> SECTOR_BITS & ((1 << ID_BITS) - 1);
        write!(f, "{kind}#{id}@{}", self.sector())
    }
}
