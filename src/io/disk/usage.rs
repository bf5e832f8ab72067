//! Who uses a block device or a file.
//!
//! What refuses a disk is the claim; this says by whom it is used, and finds two kinds of use that a claim does not show:
//! a loop device over a file, and a process that writes to a device without having claimed it (as most virtual
//! machine monitors do). Processes can be seen as far as this process may look into `/proc`.

use super::claim;
use super::error::Error;
use super::location::Place;
use super::system::{BackingKind, BlockDir, DevNo, System, device_at, names, parse_mounts};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Somebody who uses a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// It, or a partition of it, is mounted.
    Mount {
        /// Device as in `/dev`.
        device: String,
        /// Where.
        at: PathBuf,
    },
    /// It, or a partition of it, is swap space.
    Swap {
        /// What.
        device: String,
    },
    /// Another block device stands on it: device mapper, md, loop.
    Holder {
        /// As in `/dev`.
        device: String,
    },
    /// A process has it open.
    Process {
        /// Process id.
        pid: i32,
        /// Name of the program.
        name: String,
        /// Whether it may write.
        writes: bool,
    },
    /// Somebody holds it exclusively, and nothing says who.
    Unknown,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Mount { device, at } => write!(f, "{device} is mounted on {}", at.display()),
            User::Swap { device } => write!(f, "{device} is swap space"),
            User::Holder { device } => write!(f, "{device} stands on it"),
            User::Process {
                pid,
                name,
                writes: true,
            } => write!(f, "{name} (pid {pid}) has it open for writing"),
            User::Process {
                pid,
                name,
                writes: false,
            } => write!(f, "{name} (pid {pid}) has it open"),
            User::Unknown => f.write_str("something holds it exclusively"),
        }
    }
}

/// Everybody who uses the block device or file at `path`, but this process. Empty means that nobody does, so far as can be
/// seen. Nothing is read from the disk.
///
/// # Errors
/// The path, sysfs or the mount table cannot be read.
pub fn users_of(path: &Path) -> Result<Vec<User>, Error> {
    let system = System::host();
    let meta = fs::metadata(path).map_err(Error::io("look at the disk", path))?;
    let is_block = meta.file_type().is_block_device();
    let place = if is_block {
        Place::Device(DevNo::from_raw(meta.rdev()))
    } else {
        Place::File(DevNo::from_raw(meta.dev()), meta.ino())
    };
    let mut users = kernel_users(&system, place)?;
    users.extend(openers(&system, place)?);
    if users.is_empty() && is_block && claim::is_held(path) == Ok(true) {
        users.push(User::Unknown);
    }
    Ok(users)
}

/// Mounts, swap spaces, stacked and loop devices that use a disk.
///
/// # Errors
/// sysfs or the mount table cannot be read.
pub fn kernel_users(system: &System, place: Place) -> Result<Vec<User>, Error> {
    let mut users = Vec::new();
    let family = match place {
        Place::Device(dev) => family(&system.block(dev)?),
        Place::File(..) => Vec::new(),
    };
    let numbers: BTreeSet<DevNo> = family.iter().map(|member| member.dev).collect();
    if !numbers.is_empty() {
        mounts(system, &family, &numbers, &mut users)?;
    }
    for swap in system.swaps()? {
        let is_it = match place {
            Place::Device(_) => device_at(&swap).is_some_and(|dev| numbers.contains(&dev)),
            Place::File(dev, inode) => {
                claim::target(&swap).is_ok_and(|it| (it.dev, it.inode) == ((dev.major, dev.minor), inode))
            }
        };
        if is_it {
            users.push(User::Swap {
                device: swap.to_string_lossy().into_owned(),
            });
        }
    }
    for member in &family {
        users.extend(
            member
                .holders()
                .iter()
                .map(|holder| User::Holder { device: holder.node() }),
        );
    }
    for block in system.blocks()? {
        let is_it = match (block.backing(system).map(|backing| backing.what), place) {
            (Some(BackingKind::Device(dev)), Place::Device(_)) => numbers.contains(&dev),
            (Some(BackingKind::File(dev, inode)), Place::File(this_dev, this_inode)) => {
                (dev, inode) == (this_dev, this_inode)
            }
            _ => false,
        };
        if is_it {
            users.push(User::Holder { device: block.node() });
        }
    }
    Ok(users)
}

/// The device, its partitions, and the disk that it is a partition of. Siblings do not count.
fn family(block: &BlockDir) -> Vec<BlockDir> {
    let whole = block.whole();
    let mut family = vec![block.clone()];
    if whole != *block {
        family.push(whole);
    } else {
        family.extend(block.partitions());
    }
    family
}

/// Mounts in any namespace that can be seen, each once.
fn mounts(system: &System, family: &[BlockDir], numbers: &BTreeSet<DevNo>, users: &mut Vec<User>) -> Result<(), Error> {
    let mut tables = vec![system.mounts()?];
    let mut seen: BTreeSet<PathBuf> = fs::read_link(system.proc.join("self/ns/mnt")).into_iter().collect();
    for pid in pids(system) {
        let process = system.proc.join(pid.to_string());
        if fs::read_link(process.join("ns/mnt")).is_ok_and(|namespace| seen.insert(namespace)) {
            tables.extend(fs::read(process.join("mountinfo")).map(|text| parse_mounts(&text)));
        }
    }
    for mount in tables.iter().flatten() {
        let mut devices = BTreeSet::from([mount.dev]);
        if mount.dev.major == 0 {
            // Only these: the source of a pseudo file system can be any word, also that of a file here.
            let on_disks = matches!(mount.kind.as_str(), "btrfs" | "bcachefs" | "zfs" | "fuseblk");
            if on_disks {
                devices.extend(system.btrfs_devices(&mount.source));
                devices.extend(device_at(&mount.source));
            }
        }
        if let Some(dev) = devices.iter().find(|dev| numbers.contains(dev)) {
            let node = family.iter().find(|member| member.dev == *dev).map(BlockDir::node);
            let user = User::Mount {
                device: node.unwrap_or_else(|| mount.source.to_string_lossy().into_owned()),
                at: mount.point.clone(),
            };
            if !users.contains(&user) {
                users.push(user);
            }
        }
    }
    Ok(())
}

/// Processes, other than this one, that have a disk (or a partition of it, or the disk it is a partition of) open.
///
/// # Errors
/// sysfs cannot be read.
pub fn openers(system: &System, place: Place) -> Result<Vec<User>, Error> {
    let numbers: BTreeSet<(u32, u32)> = match place {
        Place::Device(dev) => family(&system.block(dev)?)
            .iter()
            .map(|it| (it.dev.major, it.dev.minor))
            .collect(),
        Place::File(..) => BTreeSet::new(),
    };
    Ok(openers_where(system, |target| match place {
        Place::Device(_) => target.mode & libc::S_IFMT == libc::S_IFBLK && numbers.contains(&target.rdev),
        Place::File(dev, inode) => (target.dev, target.inode) == ((dev.major, dev.minor), inode),
    }))
}

/// Whether a daemon of ours serves the ublk device with this number: a program of its name has the character device open.
pub fn is_served_by_twinblk(system: &System, id: u32) -> bool {
    let node = system.dev.join(format!("ublkc{id}"));
    let Ok(meta) = fs::metadata(&node) else {
        return false;
    };
    let rdev = DevNo::from_raw(meta.rdev());
    openers_where(system, |target| {
        target.mode & libc::S_IFMT == libc::S_IFCHR && target.rdev == (rdev.major, rdev.minor)
    })
    .iter()
    .any(|user| matches!(user, User::Process { name, .. } if name == "twinblkd"))
}

fn openers_where(system: &System, is_it: impl Fn(&claim::Target) -> bool) -> Vec<User> {
    let this = std::process::id();
    let mut users = Vec::new();
    for pid in pids(system).into_iter().filter(|pid| *pid != this) {
        // A process may end, or close a descriptor, at any step of this: what is gone is no user.
        let process = system.proc.join(pid.to_string());
        let descriptors = names(&process.join("fd")).unwrap_or_default();
        let open: Vec<&String> = descriptors
            .iter()
            .filter(|number| {
                let link = process.join("fd").join(number);
                // Sockets, pipes and the like are not worth a second look.
                fs::read_link(&link).is_ok_and(|to| to.is_absolute()) && claim::target(&link).is_ok_and(|it| is_it(&it))
            })
            .collect();
        if !open.is_empty() {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            users.push(User::Process {
                pid: i32::try_from(pid).unwrap_or(i32::MAX),
                name: name.trim().to_owned(),
                writes: open
                    .iter()
                    .any(|number| may_write(&process.join("fdinfo").join(number))),
            });
        }
    }
    users
}

fn may_write(fdinfo: &Path) -> bool {
    let text = fs::read_to_string(fdinfo).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_RDONLY)
}

fn pids(system: &System) -> Vec<u32> {
    let names = names(&system.proc).unwrap_or_default();
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::system::fake::{Machine, dev};
    use super::*;

    fn users(machine: &Machine, dev: DevNo) -> Vec<String> {
        let users = kernel_users(&machine.system, Place::Device(dev)).expect("the machine can be read");
        users.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_disk_is_used_through_its_partitions_and_a_partition_through_its_disk_but_not_through_a_sibling() {
        let machine = Machine::new("2 1 8:1 / /a\\040b rw - ext4 /dev/sda1 rw\n");
        for (path, dev) in [
            ("sda", dev(8, 0)),
            ("sda/sda1", dev(8, 1)),
            ("sda/sda2", dev(8, 2)),
            ("md0", dev(9, 0)),
        ] {
            machine.add(path, dev);
        }
        assert_eq!(users(&machine, dev(8, 0)), ["/dev/sda1 is mounted on /a b"]);
        assert_eq!(users(&machine, dev(8, 1)), ["/dev/sda1 is mounted on /a b"]);
        assert_eq!(users(&machine, dev(8, 2)), Vec::<String>::new());
        machine.stack("md0", "sda");
        assert_eq!(users(&machine, dev(8, 2)), ["/dev/md0 stands on it"]);
    }

    #[test]
    fn a_holder_of_a_partition_holds_the_disk() {
        let machine = Machine::new("");
        for (path, dev) in [("sdb", dev(8, 16)), ("sdb/sdb1", dev(8, 17)), ("dm-3", dev(253, 3))] {
            machine.add(path, dev);
        }
        machine.stack("dm-3", "sdb/sdb1");
        assert_eq!(users(&machine, dev(8, 16)), ["/dev/dm-3 stands on it"]);
        assert_eq!(users(&machine, dev(253, 3)), Vec::<String>::new());
    }

    #[test]
    fn a_mount_in_another_namespace_is_seen() {
        let machine = Machine::new("1 0 8:16 / / rw - ext4 /dev/sdb rw\n");
        machine.add("sdc", dev(8, 32));
        let process = machine.system.proc.join("77");
        fs::create_dir_all(process.join("ns")).expect("a directory");
        std::os::unix::fs::symlink("mnt:[1]", process.join("ns/mnt")).expect("a link");
        fs::write(process.join("mountinfo"), "9 8 8:32 / /inside rw - xfs /dev/sdc rw\n").expect("a small file");
        assert_eq!(users(&machine, dev(8, 32)), ["/dev/sdc is mounted on /inside"]);
    }
}
