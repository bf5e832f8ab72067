//! What a disk is known by: found in sysfs and by the inode, without udev. Compared in two ways: within one boot, to
//! find out whether two are the same disk ([`same`]); across boots, whether the disk that was found is the one that was
//! recorded ([`mismatch`]).

use super::error::{Error, Reason, Refusal};
use super::location::{self, Place};
use super::system::{BlockDir, DevNo, System, names};
use crate::table::LegKind;
use crate::table::name::Text;
use std::fs;
use std::path::Path;

/// What a disk is known by: that which is recorded of it.
pub type Identity = crate::table::LegIdentity;

/// Where a disk is, in this boot.
pub fn place(identity: &Identity) -> Place {
    let dev = DevNo {
        major: identity.major,
        minor: identity.minor,
    };
    match identity.kind {
        LegKind::Block => Place::Device(dev),
        LegKind::File => Place::File(dev, identity.inode),
    }
}

/// Whether both are the same disk: the same inode or device in this boot, or one unit reached in two ways (the same
/// world-wide id, partition and size). A serial number alone proves nothing: there are disks that share one.
pub fn same(left: &Identity, right: &Identity) -> bool {
    let one_unit = left.kind == LegKind::Block
        && right.kind == LegKind::Block
        && !left.wwid.is_empty()
        && left.wwid == right.wwid
        && (left.partition == right.partition || left.partition == 0 || right.partition == 0);
    place(left) == place(right) || one_unit
}

/// Whether two disks share bytes: they are the same, or one is a partition of the other, or stands on it.
///
/// # Errors
/// sysfs or the mount table cannot be read.
pub fn share_bytes(system: &System, left: &Identity, right: &Identity) -> Result<bool, Error> {
    let stands_on = |upper: &Identity, lower: &Identity| -> Result<bool, Error> {
        let below = location::below(system, place(upper), Some(Path::new(&*upper.canonical)))?;
        Ok(below.touches(system, place(lower)))
    };
    Ok(same(left, right) || stands_on(left, right)? || stands_on(right, left)?)
}

/// Why a disk that was found is not the one that was recorded; `None` when nothing speaks against it. To be used across
/// boots, so numbers of devices do not count; a property that was not recorded does not, either.
///
/// A disk that has grown since is the recorded one if it has something of its own to be known by: of those that have nothing, the
/// size is all that tells them apart. One that has shrunk is not: whatever did that, the end of the device may be gone.
pub fn mismatch(recorded: &Identity, found: &Identity) -> Option<String> {
    let differs = |what: &str, recorded: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
        Some(format!("its {what} is {found}, and {recorded} was recorded"))
    };
    if recorded.kind != found.kind {
        let word = |kind| match kind {
            LegKind::Block => "a block device",
            LegKind::File => "a file",
        };
        return Some(format!(
            "it is {}, and {} was recorded",
            word(found.kind),
            word(recorded.kind)
        ));
    }
    if found.size < recorded.size || (found.size > recorded.size && !is_known_by_itself(recorded)) {
        return differs("size", &recorded.size, &found.size);
    }
    if recorded.kind == LegKind::File && recorded.inode != found.inode {
        return differs("inode (the file was replaced)", &recorded.inode, &found.inode);
    }
    if recorded.partition != found.partition {
        return differs("partition number", &recorded.partition, &found.partition);
    }
    let texts: [(&str, &str, &str); 4] = [
        ("world-wide id", &recorded.wwid, &found.wwid),
        ("serial number", &recorded.serial, &found.serial),
        ("partition uuid", &recorded.partition_uuid, &found.partition_uuid),
        ("uuid", &recorded.stack_uuid, &found.stack_uuid),
    ];
    let (what, recorded, found) = texts
        .into_iter()
        .find(|(_, recorded, found)| !recorded.is_empty() && recorded != found)?;
    differs(what, &recorded, &if found.is_empty() { "unknown" } else { found })
}

/// Whether a disk was recorded with anything that tells it from another of its size: a file with its inode, a block device with a
/// serial number or an id.
fn is_known_by_itself(recorded: &Identity) -> bool {
    let own = [
        &*recorded.wwid,
        &*recorded.serial,
        &*recorded.stack_uuid,
        &*recorded.partition_uuid,
    ];
    recorded.kind == LegKind::File || own.iter().any(|text| !text.is_empty())
}

/// Whether two are one disk in this boot as far as can be told, whatever its size was and by which path it was opened.
pub fn is_unmoved(left: &Identity, right: &Identity) -> bool {
    let (mut left, right) = (left.clone(), right.clone());
    (left.size, left.path, left.canonical) = (right.size, right.path.clone(), right.canonical.clone());
    left == right
}

/// Whether a block device, as sysfs has it, is surely the recorded one: for hiding it from those who would mount it. Found without
/// opening it, and before udev has given it its names; sizes are as sysfs has them. `is_there` says that the recorded disk has
/// been at this number all the time since it was claimed, in this boot.
///
/// That nothing speaks against it ([`mismatch`]) is not enough: another disk would be missing from the host. It takes an id of its
/// own, a serial number at the recorded place, or that it has never been away. The uuid of a partition is often known to udev
/// alone: then that of its disk, its number and its size have to do.
pub fn is_proven(recorded: &Identity, found: &Identity, is_there: bool) -> bool {
    let size = found.size - found.size % u64::from(recorded.block);
    let is_of_shape = recorded.kind == found.kind && recorded.size <= size && recorded.partition == found.partition;
    let parted = found.partition_uuid.is_empty() || recorded.partition_uuid == found.partition_uuid;
    let ids: [(&str, &str); 2] = [(&recorded.wwid, &found.wwid), (&recorded.stack_uuid, &found.stack_uuid)];
    let is_other = ids
        .into_iter()
        .chain([(&*recorded.serial, &*found.serial)])
        .any(|(recorded, found)| !recorded.is_empty() && recorded != found);
    let is_known = ids.into_iter().any(|(recorded, _)| !recorded.is_empty())
        || !(recorded.partition_uuid.is_empty() || found.partition_uuid.is_empty());
    let is_at_place = place(recorded) == place(found);
    let by_place = is_at_place && (is_there || !recorded.serial.is_empty());
    is_of_shape && parted && !is_other && (is_known || by_place)
}

/// What sysfs says of a block device; sizes are for whoever has it open to add.
pub fn of_block(system: &System, block: &BlockDir, path: &Path) -> Result<Identity, Error> {
    let whole = block.whole();
    let first = |names: &[&str]| names.iter().find_map(|name| whole.attribute(name)).unwrap_or_default();
    let serial = first(&["serial", "device/serial"]);
    let serial = if serial.is_empty() { page_80(&whole) } else { serial };
    let stack_uuid = match block.backing(system) {
        // A loop device has no identity of its own: it is the file behind it.
        Some(backing) => loop_uuid(&backing.path),
        None => first(&["dm/uuid", "md/uuid"]),
    };
    Ok(Identity {
        kind: LegKind::Block,
        size: 0,
        block: 0,
        major: block.dev.major,
        minor: block.dev.minor,
        inode: 0,
        partition: block.partition().unwrap_or(0),
        serial: Text::cut(&serial),
        wwid: Text::cut(&first(&["wwid", "device/wwid", "device/cid"])),
        partition_uuid: Text::cut(&partition_uuid(system, block)),
        stack_uuid: Text::cut(&stack_uuid),
        ..named(path)?
    })
}

/// What is known of a file; sizes are for whoever has it open to add.
pub fn of_file(dev: DevNo, inode: u64, path: &Path) -> Result<Identity, Error> {
    Ok(Identity {
        kind: LegKind::File,
        major: dev.major,
        minor: dev.minor,
        inode,
        ..named(path)?
    })
}

/// An identity that knows its paths alone.
fn named(path: &Path) -> Result<Identity, Error> {
    let canonical = fs::canonicalize(path).map_err(Error::io("resolve the path", path))?;
    let given = std::path::absolute(path).map_err(Error::io("make the path absolute", path))?;
    let text = |of: &Path| of.to_str().and_then(|text| Text::new(text).ok());
    let (Some(given), Some(canonical)) = (text(&given), text(&canonical)) else {
        return Err(Refusal::new(path, Reason::PathNotRecordable).into());
    };
    Ok(Identity {
        kind: LegKind::File,
        size: 0,
        block: 0,
        major: 0,
        minor: 0,
        inode: 0,
        partition: 0,
        serial: Text::default(),
        wwid: Text::default(),
        partition_uuid: Text::default(),
        stack_uuid: Text::default(),
        path: given,
        canonical,
    })
}

/// SCSI vital product data page 80h: four bytes of header, then the serial number.
fn page_80(whole: &BlockDir) -> String {
    let page = whole.raw_attribute("device/vpd_pg80").unwrap_or_default();
    let text = String::from_utf8_lossy(page.get(4..).unwrap_or_default());
    text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()
}

fn loop_uuid(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = format!("loop:{path}");
    if Text::<190>::new(&plain).is_ok() {
        plain
    } else {
        format!("loop-path-hash:{}", blake3::hash(path.as_bytes()))
    }
}

/// From the kernel where it says so (older ones do not), else from the links that udev keeps, else empty.
fn partition_uuid(system: &System, block: &BlockDir) -> String {
    if block.partition().is_none() {
        return String::new();
    }
    let uevent = block.attribute("uevent").unwrap_or_default();
    if let Some(uuid) = uevent.lines().find_map(|line| line.strip_prefix("PARTUUID=")) {
        return uuid.to_lowercase();
    }
    let links = system.dev.join("disk/by-partuuid");
    names(&links)
        .unwrap_or_default()
        .into_iter()
        .find(|name| super::system::device_at(&links.join(name)) == Some(block.dev))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::system::fake::{Machine, dev};
    use super::*;

    fn disk(minor: u32) -> Identity {
        Identity {
            kind: LegKind::Block,
            size: 1 << 30,
            block: 512,
            major: 8,
            minor,
            inode: 0,
            partition: 0,
            serial: Text::cut("S1"),
            wwid: Text::default(),
            partition_uuid: Text::default(),
            stack_uuid: Text::default(),
            path: Text::cut("/dev/x"),
            canonical: Text::cut("/dev/x"),
        }
    }

    #[test]
    fn one_unit_by_two_ways_is_one_disk_and_a_shared_serial_number_is_not() {
        let (one, mut other) = (disk(0), disk(16));
        assert!(same(&one, &one.clone()));
        assert!(!same(&one, &other), "the serial number alone");
        let mut one = one;
        (one.wwid, other.wwid) = (Text::cut("naa.5"), Text::cut("naa.5"));
        assert!(same(&one, &other));
        other.partition = 1;
        assert!(same(&one, &other), "a partition of it");
        one.partition = 2;
        assert!(!same(&one, &other), "two partitions of it");
        other.wwid = Text::cut("naa.6");
        other.partition = 2;
        assert!(!same(&one, &other));
    }

    #[test]
    fn a_disk_shares_bytes_with_its_partition_and_with_what_stands_on_it() {
        let machine = Machine::new("");
        for (path, dev) in [
            ("sda", dev(8, 0)),
            ("sda/sda1", dev(8, 1)),
            ("sda/sda2", dev(8, 2)),
            ("dm-0", dev(253, 0)),
        ] {
            machine.add(path, dev);
        }
        machine.stack("dm-0", "sda/sda1");
        let mapped = Identity { major: 253, ..disk(0) };
        let shares = |left: &Identity, right: &Identity| {
            let both = [
                share_bytes(&machine.system, left, right),
                share_bytes(&machine.system, right, left),
            ];
            let [left, right] = both.map(|answer| answer.expect("the machine can be read"));
            assert_eq!(left, right);
            left
        };
        assert!(shares(&disk(0), &disk(1)) && shares(&mapped, &disk(1)) && shares(&mapped, &disk(0)));
        assert!(!shares(&disk(1), &disk(2)) && !shares(&mapped, &disk(2)));
    }

    #[test]
    fn what_speaks_against_a_disk_is_what_was_recorded_and_differs() {
        let recorded = disk(0);
        assert_eq!(
            mismatch(
                &recorded,
                &Identity {
                    minor: 48,
                    path: Text::cut("/dev/y"),
                    ..disk(0)
                }
            ),
            None
        );
        assert_eq!(
            mismatch(
                &recorded,
                &Identity {
                    wwid: Text::cut("naa.5"),
                    ..disk(0)
                }
            ),
            None
        );
        type Change = fn(&mut Identity);
        let changes: [(&str, Change); 5] = [
            ("size", |it| it.size -= 512),
            ("serial", |it| it.serial = Text::default()),
            ("serial", |it| it.serial = Text::cut("S2")),
            ("partition", |it| it.partition = 1),
            ("a file", |it| it.kind = LegKind::File),
        ];
        for (word, change) in changes {
            let mut found = disk(0);
            change(&mut found);
            let reason = mismatch(&recorded, &found).expect(word);
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn a_disk_that_has_grown_is_the_recorded_one_if_it_is_known_by_more_than_its_size() {
        let grown = |recorded: &Identity| Identity {
            size: recorded.size + 4096,
            ..recorded.clone()
        };
        let known = disk(0);
        assert_eq!(mismatch(&known, &grown(&known)), None);
        // Nor is it the same disk that comes back as it was.
        assert!(mismatch(&grown(&known), &known).is_some_and(|why| why.contains("size")));
        let nameless = Identity {
            serial: Text::default(),
            ..disk(0)
        };
        assert!(mismatch(&nameless, &grown(&nameless)).is_some_and(|why| why.contains("size")));
        let file = Identity {
            kind: LegKind::File,
            inode: 7,
            ..nameless
        };
        assert_eq!(mismatch(&file, &grown(&file)), None);
        assert!(
            mismatch(
                &file,
                &Identity {
                    inode: 8,
                    ..grown(&file)
                }
            )
            .is_some()
        );
    }

    #[test]
    fn a_disk_is_hidden_only_if_it_is_surely_the_leg() {
        type Change = fn(&mut Identity);
        let is_hidden = |recorded: &Identity, is_there, change: Change| {
            let mut found = recorded.clone();
            change(&mut found);
            is_proven(recorded, &found, is_there)
        };
        let moved: Change = |it| it.minor = 48;
        let mut known = disk(0);
        known.wwid = Text::cut("naa.5");
        assert!(is_hidden(&known, false, moved));
        assert!(is_hidden(&known, false, |it| it.size += 4096), "it has grown");
        let others: [Change; 4] = [
            |it| it.wwid = Text::cut("naa.6"),
            |it| it.serial = Text::cut("S2"),
            |it| it.partition = 1,
            |it| it.size -= 4096,
        ];
        for other in others {
            assert!(!is_hidden(&known, true, other));
        }
        // There are disks that share a serial number.
        assert!(!is_hidden(&disk(0), false, moved) && is_hidden(&disk(0), false, |_| ()));
        let mut nameless = disk(0);
        nameless.serial = Text::default();
        assert!(!is_hidden(&nameless, false, |_| ()), "the next disk at that name");
        assert!(is_hidden(&nameless, true, |_| ()) && !is_hidden(&nameless, true, moved));
        // A disk of larger blocks than sysfs counts in, and a partition before udev knows its uuid.
        let mut partition = known;
        (partition.block, partition.partition_uuid) = (4096, Text::cut("abcd-02"));
        assert!(is_hidden(&partition, false, |it| it.size += 512));
        assert!(is_hidden(&partition, false, |it| it.partition_uuid = Text::default()));
        assert!(!is_hidden(&partition, false, |it| it.partition_uuid = Text::cut("abcd-03")));
    }

    #[test]
    fn a_disk_is_known_by_what_sysfs_says_of_it() {
        let machine = Machine::new("");
        machine.add("nvme0n1", dev(259, 0));
        machine.add("nvme0n1/nvme0n1p2", dev(259, 2));
        machine.set("nvme0n1/nvme0n1p2", "partition", "2");
        machine.set("nvme0n1", "wwid", "eui.0025");
        machine.set("nvme0n1", "device/serial", "  S4EW  ");
        machine.set("nvme0n1/nvme0n1p2", "uevent", "MAJOR=259\nPARTUUID=ABCD-02\nPARTN=2");
        let block = machine.system.block(dev(259, 2)).expect("it was added");
        let identity = of_block(&machine.system, &block, Path::new("/dev/null")).expect("it can be read");
        let texts = [&*identity.wwid, &*identity.serial, &*identity.partition_uuid];
        assert_eq!(texts, ["eui.0025", "S4EW", "abcd-02"]);
        assert_eq!((identity.partition, identity.major, identity.minor), (2, 259, 2));
    }
}
