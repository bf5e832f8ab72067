//! Has the host look at a disk anew when it has become a leg, or is one no more: see the rules in `tools/udev`.

use std::fs;
use std::path::Path;
use twinblk::io::disk::System;
use twinblk::io::disk::identity;
use twinblk::io::disk::location::Place;
use twinblk::table::LegIdentity;

/// Have udev apply its rules to a disk and its partitions. Where nobody does, or it cannot be done, nothing else depends on it: a
/// leg is claimed as long as it is served.
pub fn look_again(disk: &LegIdentity) {
    let Place::Device(device) = identity::place(disk) else {
        return;
    };
    let Ok(block) = System::host().block(device) else {
        return;
    };
    for block in std::iter::once(&block).chain(&block.partitions()) {
        let dev = block.dev;
        let uevent = format!("/sys/dev/block/{}:{}/uevent", dev.major, dev.minor);
        let _ = fs::write(Path::new(&uevent), "change");
    }
}
