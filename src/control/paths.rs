//! Where the files of a running device are.

use crate::table::Name;
use std::path::{Path, PathBuf};

/// Where state is kept unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/twinblk";

/// Where sockets and logs are unless told otherwise.
pub const RUN_DIR: &str = "/run/twinblk";

/// The admin socket of a device.
pub fn socket(run_dir: &Path, name: &Name) -> PathBuf {
    run_dir.join(format!("{name}.sock"))
}

/// The log of a device's daemon.
pub fn log(run_dir: &Path, name: &Name) -> PathBuf {
    run_dir.join(format!("{name}.log"))
}
