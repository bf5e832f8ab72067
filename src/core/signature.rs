//! What the content of an extent is known by, and where that comes from, which decides what it can prove.

/// The hash of an extent, as the tables keep it: its BLAKE3 chaining value or, of a device of one extent, the hash itself. The
/// core compares it, and takes none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 32]);

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// Where the hash of an extent was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// From what was written or copied: it says what the extent is to hold.
    Payload,
    /// Read back equal from both legs.
    Both,
    /// Read back from this leg alone: if the leg had gone bad before, then so has this.
    One,
}
