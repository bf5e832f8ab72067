//! Where the buffers lie in the one arena that the legs and the kernel see.
//!
//! The core decides which bytes hold what; the arena itself belongs to whoever drives the core. In order: one buffer
//! of `max_io` bytes for each tag, two buffers of one extent for each copy slot, the pool of kept payloads. Buffers
//! of tags and whole blocks of the pool change places when a large payload is kept.

/// A place in the arena, in units of 512 bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Buf(pub u32);

impl Buf {
    /// Offset in the arena, in bytes.
    pub const fn offset(self) -> u64 {
        self.0 as u64 * 512
    }

    /// The place at `offset` bytes, which is a multiple of 512 below 2 TiB.
    pub const fn at(offset: u64) -> Buf {
        Buf((offset / 512) as u32)
    }

    /// The place `bytes` further on; `bytes` is a multiple of 512.
    pub const fn skip(self, bytes: u64) -> Buf {
        Buf(self.0 + (bytes / 512) as u32)
    }
}

/// Sizes of the arena's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How many requests can be in flight.
    pub depth: u16,
    /// The largest read or write, in bytes: a power of two, at least 4 KiB.
    pub max_io: u32,
    /// How many copies can be under way at once.
    pub copies: u16,
    /// Size of one of a copy's two buffers, in bytes: the extent.
    pub copy_bytes: u32,
    /// The largest pool that can ever be asked for, in bytes: a multiple of `max_io`.
    pub pool_max: u64,
}

impl Layout {
    /// The first buffer of `tag`, before any exchange.
    pub const fn tag(&self, tag: u16) -> Buf {
        Buf::at(tag as u64 * self.max_io as u64)
    }

    /// Bytes of all tags' buffers; they come first.
    pub const fn tags_bytes(&self) -> u64 {
        self.depth as u64 * self.max_io as u64
    }

    /// Buffer `side` (0 or 1) of copy slot `slot`.
    pub const fn copy(&self, slot: u16, side: u8) -> Buf {
        Buf::at(self.tags_bytes() + (slot as u64 * 2 + side as u64) * self.copy_bytes as u64)
    }

    /// Bytes of all copy buffers.
    pub const fn copies_bytes(&self) -> u64 {
        self.copies as u64 * 2 * self.copy_bytes as u64
    }

    /// Offset of the pool in bytes.
    pub const fn pool_start(&self) -> u64 {
        self.tags_bytes() + self.copies_bytes()
    }

    /// Bytes of address space that the arena needs. Memory is needed for the tags always, for copies and pool only
    /// while there is a second leg or a walk (see [`super::Effect::Populate`]).
    pub const fn arena_bytes(&self) -> u64 {
        self.pool_start() + self.pool_max
    }
}
