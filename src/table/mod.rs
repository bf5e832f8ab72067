//! What is on disk, as checked views over bytes: unverified bytes and verified values are different types.

pub mod checked;
pub mod name;
pub mod pick;
pub mod superblock;

pub use name::Name;
pub use pick::{Picked, Unpickable, pick};
pub use superblock::{LegIdentity, LegKind, Settings, Superblock};
