//! Where a signature comes from, which decides what it can prove.

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
