//! Carries the core's effects out on real memory and real disks.
//!
//! [`arena`] is the one piece of memory that legs read from and write to; [`uring`] carries operations out on disks and
//! files, [`memory`] on a model of a disk, and [`faulty`] makes any of them misbehave as a seed says. [`disk`] opens,
//! claims and refuses disks. [`mapping`] has a file in memory that may be truncated under it. All that is `unsafe` in
//! the library lies here.

pub mod arena;
pub mod disk;
pub mod engine;
pub mod faulty;
pub mod mapping;
pub mod memory;
pub mod passing;
pub mod process;
pub mod seed;
pub mod uring;

pub use arena::Arena;
pub use engine::Engine;
pub use mapping::Mapping;
