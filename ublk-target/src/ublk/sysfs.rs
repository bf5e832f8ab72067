//! The devices that the driver has, whoever made them.

use std::path::PathBuf;

/// The driver's class in sysfs.
const CLASS: &str = "/sys/class/ublk-char";

/// Whether the driver has a device with this number, alive or dead.
pub fn exists(id: u32) -> bool {
    PathBuf::from(format!("{CLASS}/ublkc{id}")).exists()
}

/// The block device with this number.
pub fn block_device(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}
