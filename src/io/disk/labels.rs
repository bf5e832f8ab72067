//! Where a disk says what it holds: partition tables, the labels of file systems, volume managers and encryption.
//!
//! These lie in the first and the last MiB, nearly all of them: there is no boot record, partition table of either kind (its
//! backup included) or label of a common format elsewhere. A leg may be larger than the device, whose own last MiB counts
//! then as well. What lies deeper (second headers, say) is found by its signature.
//!
//! Not found: what no probe knows, and labels inside of partitions, which nobody finds without their table.

use super::blank;
use super::error::Error;
use super::open::Disk;
use crate::core::Range;
use std::os::fd::AsFd;

/// Bytes at each end.
const END: u64 = 1 << 20;
/// What is taken around a signature: a multiple of every logical block, and more than any magic number.
const AROUND: u64 = 4096;

/// The ends of a disk that was a leg of a device of `device` bytes, whatever is in them.
pub fn ends(disk: u64, device: u64) -> Vec<Range> {
    let last = |size: u64| aligned(size.saturating_sub(END), size, disk);
    merged(vec![aligned(0, END, disk), last(device.min(disk)), last(disk)])
}

/// The blocks around every signature that is found on an open disk.
///
/// # Errors
/// The disk cannot be read.
pub fn signatures(disk: &Disk) -> Result<Vec<Range>, Error> {
    let (size, block) = (disk.size(), disk.block());
    let found = blank::signatures(disk.descriptor.as_fd(), size, block, disk.path())?;
    // A magic number that crosses the end of a block has its rest in the next.
    let around = |found: &blank::Signature| aligned(found.at, found.at.saturating_add(AROUND), size);
    Ok(merged(
        found.iter().filter(|found| found.at < size).map(around).collect(),
    ))
}

/// From `start` to `end` in whole pieces, but for the end of the disk.
fn aligned(start: u64, end: u64, disk: u64) -> Range {
    let end = end.next_multiple_of(AROUND).min(disk);
    let start = start - start % AROUND;
    Range::new(start, end - start)
}

/// The same bytes in as few ranges as possible, in ascending order.
pub fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.start + last.len => {
                last.len = last.len.max(range.start + range.len - last.start);
            }
            _ => merged.push(range),
        }
    }
    merged.retain(|range| range.len > 0);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_device_and_of_a_larger_disk_are_taken() {
        let both = |disk, device| -> Vec<(u64, u64)> {
            ends(disk, device)
                .iter()
                .map(|range| (range.start, range.start + range.len))
                .collect()
        };
        assert_eq!(both(8 * END, 8 * END), [(0, END), (7 * END, 8 * END)]);
        assert_eq!(
            both(8 * END, 4 * END),
            [(0, END), (3 * END, 4 * END), (7 * END, 8 * END)]
        );
        // The whole of a small one, and blocks of 512 bytes at an odd end.
        assert_eq!(both(END, END), [(0, END)]);
        assert_eq!(both(512, 512), [(0, 512)]);
        let odd = 8 * END + 512;
        assert_eq!(both(odd, odd), [(0, END), (7 * END, odd)]);
    }
}
