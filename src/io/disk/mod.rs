//! Disks: opened, identified, claimed, and refused when serving or overwriting them could harm somebody.
//!
//! [`Disk::open`] is the only way in. Its invariants: nothing is written to a disk before it is returned; what it returns
//! is claimed, and stays claimed exactly as long as somebody holds its one open file description (an operation in flight
//! does); all checks were made on that description or on the numbers of the very inode it refers to, never on a path that
//! could have come to mean something else.
//!
//! It does not watch what happens later: a disk that is taken away shows as errors of its operations.

pub mod blank;
pub mod claim;
pub mod direct;
pub mod error;
pub mod footprint;
pub mod identity;
pub mod labels;
pub mod location;
pub mod open;
pub mod system;
pub mod usage;

pub use direct::Direct;
pub use error::{Error, Refusal};
pub use identity::Identity;
pub use open::{Content, Disk, Wanted};
pub use system::{DevNo, System};
pub use usage::{User, users_of};
