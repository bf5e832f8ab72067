//! Carries operations out on disks and files with io_uring.
//!
//! [`UringLegs`] turns operations into ring entries and their results into completions; the ring may be somebody
//! else's (the daemon's ublk queue has one ring for everything). [`UringEngine`] is a ring with nothing else in it.
//!
//! # Invariants
//! - **Memory.** The kernel sees only bytes of the arena, checked to be inside, and the legs' descriptors. `UringLegs`
//!   keeps both alive while an operation is in flight, and leaks both on purpose when it is dropped before: memory that
//!   the kernel may still write is never reused, and a descriptor's number in an entry never comes to mean another file.
//! - **Once.** An operation ends exactly once, when nothing of it is in the kernel any more; the place in the table is
//!   used again only then, and a result that belongs to no operation in flight is a programmer's error.
//! - **Whole.** A completion without an error means every byte. Short transfers go on where they stopped; a transfer
//!   that gets nowhere is EIO. An error after part of the bytes is an error of the whole, whose range holds any mixture.
//! - **Patient.** What the host cannot do (see [`Errno::is_of_host`](crate::core::Errno::is_of_host)) is tried again, for about
//!   ten seconds if nothing of it gets done.
//! - **No allocation** after construction, and nothing that grows with the number of operations.
//! - Legs are plain descriptors, not fixed files: up to Linux 6.12 a fixed file leaves its ring only after all older
//!   operations on fixed files, and a fetch on an idle ublk device never ends.
//!
//! Not handled: order of overlapping operations (the core's), alignment (the core's and the disk's), deadlines (the
//! core's; an operation that the disk never answers stays in flight).

mod engine;
mod legs;

pub use engine::UringEngine;
pub use legs::UringLegs;
