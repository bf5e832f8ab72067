//! Disks as they really are: files, and loop devices where this machine has them. Every test cleans up after itself, also
//! when it fails.

mod claims;
mod lab;
mod refusals;
mod state_dir;
mod where_and_who;
