//! Drives a core with an engine.

pub mod admin;
pub mod bulletin;
pub mod clock;
pub mod digest;
mod dirty_file;
pub mod inbox;
mod medium;
pub mod port;
mod region_file;
pub mod residence;
pub mod retired;
pub mod shard;
pub mod signature_table;
pub mod signature_tables;
pub mod signer;
mod slots;
pub mod state_dir;
pub mod surroundings;
pub mod tables;
pub mod tracking;
pub mod worker;
