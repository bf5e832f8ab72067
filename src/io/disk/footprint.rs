//! What a disk was like when it was let go, and whether anybody may have written to it since.
//!
//! People mount a detached disk, or run fsck on one of a stopped device. A disk is *proven unchanged* when it is the same
//! one in the same boot and the kernel's counts say that nothing was written: for a block device its sequence number (a new one for every
//! disk that appears) and the sectors written and discarded on the whole disk; for a file its inode, size and change time.
//! A loop device proves nothing: its file can be written to beside it. Nor does anything across a boot.
//!
//! Taken while the disk is still claimed and nothing is in flight. Not handled: writes below a device-mapper device that go
//! around it, commands that are passed through to the disk, and what another host or the storage does to a shared disk.

use super::identity::Identity;
use super::system::{BlockDir, DevNo, System};
use crate::table::{Footprint, LegKind, Sighting};
use nix::sys::stat::fstat;
use std::fs;
use std::os::fd::BorrowedFd;

/// The footprint of a disk that is open and claimed as `descriptor`; `None` if there is nothing that could prove anything.
pub fn of(identity: &Identity, descriptor: BorrowedFd<'_>) -> Option<Footprint> {
    let boot = boot_id()?;
    let (sequence, written) = match identity.kind {
        LegKind::Block => {
            let system = System::host();
            let dev = DevNo {
                major: identity.major,
                minor: identity.minor,
            };
            let block = system.block(dev).ok()?;
            if block.backing(&system).is_some() {
                return None;
            }
            counts(&block.whole())?
        }
        LegKind::File => {
            let stat = fstat(descriptor).ok()?;
            if (stat.st_ino, stat.st_size as u64) != (identity.inode, identity.size) {
                return None;
            }
            (
                stat.st_ino,
                (stat.st_ctime as u64)
                    .wrapping_mul(1_000_000_000)
                    .wrapping_add(stat.st_ctime_nsec as u64),
            )
        }
    };
    Some(Footprint {
        boot,
        sequence,
        written,
    })
}

/// Where a block device is in this boot; `None` for a file, and where the kernel does not number disks.
pub fn sighting(identity: &Identity) -> Option<Sighting> {
    if identity.kind == LegKind::File {
        return None;
    }
    let dev = DevNo {
        major: identity.major,
        minor: identity.minor,
    };
    let sequence = sequence(&System::host().block(dev).ok()?.whole())?;
    let boot = boot_id()?;
    Some(Sighting { boot, sequence })
}

fn sequence(whole: &BlockDir) -> Option<u64> {
    whole.attribute("diskseq")?.trim().parse().ok()
}

/// Sequence number and sectors written and discarded.
fn counts(whole: &BlockDir) -> Option<(u64, u64)> {
    // A disk that is not counted stands still whatever happens to it.
    if whole.attribute("queue/iostats")?.trim() != "1" {
        return None;
    }
    let sequence = sequence(whole)?;
    let stat = whole.attribute("stat")?;
    let fields: Vec<u64> = stat
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    // See the kernel's Documentation/block/stat.rst; discards are there since 4.18.
    let written = fields.get(6)?.wrapping_add(*fields.get(13).unwrap_or(&0));
    Some((sequence, written))
}

fn boot_id() -> Option<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits = text.trim().replace('-', "");
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

/// Why a disk is not proven unchanged since `recorded` was taken; `None` if it is.
pub fn doubt(recorded: Option<&Footprint>, now: Option<&Footprint>) -> Option<&'static str> {
    let (Some(recorded), Some(now)) = (recorded, now) else {
        return Some("nothing that was recorded could prove it");
    };
    if recorded.boot != now.boot {
        Some("the machine has been booted since")
    } else if recorded.sequence != now.sequence {
        Some("it was taken away and came back since")
    } else if recorded.written != now.written {
        Some("somebody has written to it since")
    } else {
        None
    }
}

/// Whether both are of one disk that has been there all the time, whoever has written to it.
pub fn is_of_one_disk(recorded: Option<&Footprint>, now: Option<&Footprint>) -> bool {
    recorded
        .zip(now)
        .is_some_and(|(recorded, now)| recorded.boot == now.boot && recorded.sequence == now.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::disk::{Disk, Wanted};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn only_the_same_disk_in_the_same_boot_without_a_write_is_unchanged() {
        let footprint = Footprint {
            boot: [1; 16],
            sequence: 2,
            written: 3,
        };
        let changed = [
            Footprint {
                boot: [2; 16],
                ..footprint
            },
            Footprint {
                sequence: 3,
                ..footprint
            },
            Footprint {
                written: 4,
                ..footprint
            },
        ];
        assert_eq!(doubt(Some(&footprint), Some(&footprint)), None);
        for now in &changed {
            assert!(doubt(Some(&footprint), Some(now)).is_some(), "{now:?}");
        }
        assert!(doubt(None, Some(&footprint)).is_some() && doubt(Some(&footprint), None).is_some());
        let [rebooted, another, written] = &changed;
        let is_same = |now| is_of_one_disk(Some(&footprint), Some(now));
        assert!(is_same(written) && !is_same(rebooted) && !is_same(another) && !is_of_one_disk(None, Some(written)));
    }

    #[test]
    fn a_write_to_a_file_shows() {
        let path = std::env::temp_dir().join(format!("twinblk-footprint-{}", std::process::id()));
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        let disk = Disk::open(&path, &Wanted::ANY).unwrap();
        let take = || of(&disk.identity, disk.descriptor.as_fd());
        let before = take();
        assert!(before.is_some());
        assert_eq!(doubt(before.as_ref(), take().as_ref()), None);
        let file = fs::File::options().write(true).open(&path).unwrap();
        // The clock of a file system ticks a few hundred times a second: as often as it takes.
        while doubt(before.as_ref(), take().as_ref()).is_none() {
            file.write_all_at(b"somebody", 4096).unwrap();
        }
        fs::remove_file(&path).unwrap();
    }
}
