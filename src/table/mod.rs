//! What is on disk, as checked views over bytes: unverified bytes and verified values are different types.

pub mod checked;
pub mod dirty;
pub mod lost;
pub mod name;
pub mod pick;
pub mod regions;
pub mod retired;
pub mod signatures;
pub mod superblock;
pub mod suspects;
mod words;

pub use lost::{Lost, Owner};
pub use name::Name;
pub use pick::{Picked, Unpickable, pick};
pub use retired::Retired;
pub use superblock::{Footprint, LegIdentity, LegKind, Settings, Sighting, Superblock};
