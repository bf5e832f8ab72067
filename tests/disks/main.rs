//! Disks as they really are: files, and loop devices where this machine has them. Every test cleans up after itself, also
//! when it fails.

mod claims;
mod lab;
mod refusals;
mod signatures;
mod state_dir;
mod tracking;
mod where_and_who;
