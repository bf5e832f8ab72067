//! The ublk driver, and the only place that names libublk.
//!
//! [`control`] adds, starts, stops and deletes devices, every command within a bound of time; [`queue`] fetches requests
//! and commits results on the ring of the thread that owns it; [`features`] and [`sysfs`] say what there is.
//!
//! What is used of libublk 0.4.8, and what not:
//! - used: adding and starting a device, the character device and its mapped request descriptors, the thread-local ring
//!   with the character device as its fixed file 0, the driver's constants and structures;
//! - not its way of fetching and committing: the first fetch takes only buffers that libublk allocated (ours lie in the
//!   arena, and change places), its count of commands makes the queue unusable once the device is stopped (our disks
//!   still have to be drained and flushed then, on the same ring), and it looks at thread-local state for each
//!   completion. The two commands are one ring entry each, made in [`queue`];
//! - not its stopping and deleting: they wait without bound, swallow EBUSY, and hide the driver's error behind that of
//!   a second try with another encoding;
//! - not its file in `/run/ublksrvd`, which it writes only after `configure_queue`, never called here.

pub mod control;
pub mod error;
pub mod features;
mod half_taken;
pub mod queue;
pub mod sysfs;

pub use error::ControlError;
