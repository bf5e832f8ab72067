//! twinblk puts a block device in front of a disk and keeps a second disk identical to it.
//!
//! Decisions are made in [`core`], which does no I/O; [`io`] carries its effects out on real disks, [`table`] says
//! what is on disk, [`runtime`] drives a core with an engine, and [`control`] holds the messages of the admin socket.
//! Imports run one way: `core` ← `table` ← `io` ← `runtime`.

pub mod control;
pub mod core;
pub mod io;
pub mod runtime;
pub mod table;
