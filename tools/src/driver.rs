//! What can be seen of the ublk driver without talking to it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use twinblk::control::Error;
use twinblk::control::status::DriverState;

/// The driver's control device.
pub const CONTROL: &str = "/dev/ublk-control";

/// The driver's module.
pub const MODULE: &str = "ublk_drv";

/// How long udev may take to make a device node.
const NODE: Duration = Duration::from_secs(3);

/// The driver's control device is there, or the module was loaded and it is there now.
///
/// # Errors
/// There is no driver.
pub fn ensure() -> Result<(), Error> {
    if Path::new(CONTROL).exists() {
        return Ok(());
    }
    // What it says itself is of less use than what doctor says.
    let loaded = Command::new("modprobe")
        .arg(MODULE)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let loaded = loaded.is_ok_and(|status| status.success());
    if loaded && until(NODE, || Path::new(CONTROL).exists()) {
        return Ok(());
    }
    let why = if loaded {
        "is not there although the module is loaded"
    } else {
        "is not there and modprobe ublk_drv failed"
    };
    Err(Error::failed(format!("the ublk driver: {CONTROL} {why}")).hint("twinblk doctor says what is missing"))
}

/// The block device number `id`.
pub fn block_device(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// What is left of device `id` when nobody of ours serves it. The driver's own word for it is not in sysfs: a device
/// that still has its disk waits for a daemon; one without answers with errors.
pub fn state(id: u32) -> DriverState {
    let there = |path: String| Path::new(&path).exists();
    if !there(format!("/sys/class/ublk-char/ublkc{id}")) {
        DriverState::Absent
    } else if there(format!("/sys/class/block/ublkb{id}")) {
        DriverState::Quiesced
    } else {
        DriverState::Dead
    }
}

/// Wait until `holds`, at most for `patience`; whether it came to hold.
pub fn until(patience: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
