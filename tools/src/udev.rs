//! Has the host look at a disk anew when it has become a leg, or is one no more: see the rules in `tools/udev`.

use std::fs;
use std::path::Path;
use twinblk::io::disk::System;
use twinblk::io::disk::identity;
use twinblk::io::disk::location::Place;
use twinblk::io::disk::system::{BlockDir, device_at};
use twinblk::table::LegIdentity;

/// Have udev apply its rules to a disk and its partitions. Where nobody does, or it cannot be done, nothing else depends on it: a
/// leg is claimed as long as it is served.
pub fn look_again(disk: &LegIdentity) {
    let system = System::host();
    // By its path too: its number may be that of an earlier boot, and to look once too often does no harm.
    let recorded = match identity::place(disk) {
        Place::Device(device) => Some(device),
        Place::File(..) => return,
    };
    let mut devices: Vec<_> = recorded.into_iter().chain(device_at(Path::new(&*disk.path))).collect();
    devices.dedup();
    for block in devices.into_iter().filter_map(|device| system.block(device).ok()) {
        let partitions = block.partitions();
        for block in std::iter::once(&block).chain(&partitions) {
            change(block);
            block
                .holders()
                .iter()
                .filter(|upper| is_mapped_partition(upper))
                .for_each(change);
        }
    }
}

/// Have udev apply its rules to one block device.
pub fn change(block: &BlockDir) {
    let _ = fs::write(format!("/sys/dev/block/{}/uevent", block.dev), "change");
}

/// Whether it is a partition that device mapper makes of a disk (kpartx).
pub fn is_mapped_partition(block: &BlockDir) -> bool {
    let uuid = block.attribute("dm/uuid").unwrap_or_default();
    let number = uuid.strip_prefix("part").and_then(|rest| rest.split_once('-'));
    number.is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}
