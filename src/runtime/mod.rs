//! Drives a core with an engine.

pub mod admin;
pub mod bulletin;
pub mod clock;
pub mod digest;
pub mod inbox;
pub mod port;
pub mod residence;
pub mod shard;
mod slots;
pub mod state_dir;
pub mod surroundings;
pub mod worker;
