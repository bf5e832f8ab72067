//! Where things lie: what is below a block device or a file, and whether a path lies on a disk.
//!
//! Downwards go: a partition to its disk, a stacked device to its slaves, a loop device to the file or device behind it,
//! a file to the devices of its file system (from the mount's source, because btrfs and overlay hide them from `st_dev`).
//!
//! A path is resolved component by component, and no component is looked up in a directory that is on the disk in question:
//! that disk may be a device of ours which waits, and the look-up would wait with it.
//!
//! Not seen: file systems that do not name their devices (zfs pools), and anything behind a network.

use super::error::Error;
use super::system::{BackingKind, BlockDir, DevNo, Mount, System, device_at};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// Links followed before a path is given up, as in the kernel.
const MAX_LINKS: usize = 40;
/// Stacked overlays followed.
const MAX_OVERLAYS: usize = 4;

/// A disk as a place: a block device, or a file by file system and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A block device.
    Device(DevNo),
    /// A file.
    File(DevNo, u64),
}

/// Everything that a disk consists of, itself included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Below {
    /// Block devices.
    pub devices: BTreeSet<DevNo>,
    /// Files, with their paths as far as they are known.
    pub files: BTreeMap<(DevNo, u64), PathBuf>,
    /// The devices right behind loop devices: nothing in the kernel keeps others off them.
    pub behind_loops: BTreeSet<DevNo>,
}

impl Below {
    /// Whether a disk is among these, or shares bytes with one of them as a partition does with its disk.
    pub fn touches(&self, system: &System, place: Place) -> bool {
        match place {
            Place::File(dev, inode) => self.files.contains_key(&(dev, inode)),
            Place::Device(dev) => self.devices.iter().any(|device| overlap(system, *device, dev)),
        }
    }
}

/// Whether two block devices share bytes: they are the same, or one is a partition of the other.
pub fn overlap(system: &System, left: DevNo, right: DevNo) -> bool {
    let whole = |dev| system.block(dev).map(|block| block.whole().dev).ok();
    left == right || whole(left) == Some(right) || whole(right) == Some(left)
}

/// Everything below a disk. `path` is a file's path; what is below a file whose path is not known cannot be told.
///
/// # Errors
/// sysfs or the mount table cannot be read.
pub fn below(system: &System, place: Place, path: Option<&Path>) -> Result<Below, Error> {
    let mut walk = Walk::new(system)?;
    match place {
        Place::Device(dev) => walk.device(dev),
        Place::File(dev, inode) => walk.file(dev, inode, path.unwrap_or(Path::new("")))?,
    }
    Ok(walk.below)
}

/// Whether `path` lies on the block device or file `disk` (also by partitions, stacked devices and loop devices). Nothing
/// on the disk itself is looked at, so this cannot hang on it; `path` need not exist.
///
/// # Errors
/// The mount table or sysfs cannot be read, or `disk` does not exist.
pub fn holds(path: &Path, disk: &Path) -> Result<bool, Error> {
    let meta = fs::metadata(disk).map_err(Error::io("look at the disk", disk))?;
    let place = if meta.file_type().is_block_device() {
        Place::Device(DevNo::from_raw(meta.rdev()))
    } else {
        Place::File(DevNo::from_raw(meta.dev()), meta.ino())
    };
    holds_on(&System::host(), path, place)
}

/// As [`holds`], for a disk that is known by its place.
///
/// # Errors
/// The mount table or sysfs cannot be read.
pub fn holds_on(system: &System, path: &Path, disk: Place) -> Result<bool, Error> {
    let path = std::path::absolute(path).map_err(Error::io("make the path absolute", path))?;
    let mut walk = Walk::new(system)?;
    walk.path(&path, Some(disk), 0)?;
    Ok(walk.met)
}

struct Walk<'a> {
    system: &'a System,
    mounts: Vec<Mount>,
    below: Below,
    /// Whether the place that is looked for was met on the way of a path.
    met: bool,
}

impl<'a> Walk<'a> {
    fn new(system: &'a System) -> Result<Walk<'a>, Error> {
        Ok(Walk {
            system,
            mounts: system.mounts()?,
            below: Below::default(),
            met: false,
        })
    }

    /// Takes a device that is gone for one that stands on nothing: there is nothing left to know of it.
    fn device(&mut self, dev: DevNo) {
        if !self.below.devices.insert(dev) {
            return;
        }
        if let Ok(block) = self.system.block(dev) {
            // A partition stands on what its disk stands on, but it is not its disk: a sibling lies on that, too.
            let whole = block.whole();
            for slave in whole.slaves() {
                self.device(slave.dev);
            }
            self.behind_loop(&whole);
        }
    }

    fn behind_loop(&mut self, block: &BlockDir) {
        let Some(backing) = block.backing(self.system) else {
            return;
        };
        match backing.what {
            BackingKind::Device(dev) => {
                self.below.behind_loops.insert(dev);
                self.device(dev);
            }
            // A path of another namespace may not resolve; the file itself is noted before that.
            BackingKind::File(dev, inode) => drop(self.file(dev, inode, &backing.path)),
            BackingKind::Unknown => {}
        }
    }

    fn file(&mut self, dev: DevNo, inode: u64, path: &Path) -> Result<(), Error> {
        if self.below.files.insert((dev, inode), path.to_path_buf()).is_some() {
            return Ok(());
        }
        if dev.major != 0 {
            self.device(dev);
            Ok(())
        } else if path.is_absolute() {
            self.path(path, None, 0)
        } else {
            Ok(())
        }
    }

    /// Adds what the file system at `path` lies on. With a disk that is looked for: stops as soon as a directory lies on it.
    fn path(&mut self, path: &Path, looked_for: Option<Place>, overlays: usize) -> Result<(), Error> {
        let mut done = PathBuf::from("/");
        let mut todo: Vec<PathBuf> = reversed(path);
        let mut links = 0;
        while let Some(next) = todo.pop() {
            if next == Path::new("..") {
                done.pop();
                continue;
            }
            let candidate = done.join(&next);
            // A mount point and the directories above it are kept in memory by the mount, and are no links: to pass
            // through them touches no disk.
            if self.mounts.iter().any(|mount| mount.point.starts_with(&candidate)) {
                done = candidate;
                continue;
            }
            if self.meets(&done, looked_for, overlays)? {
                return Ok(());
            }
            // What is not a link, or not there (yet), ends in the same file system.
            let Ok(target) = fs::read_link(&candidate) else {
                done = candidate;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::io("follow links", path)(nix::errno::Errno::ELOOP));
            }
            if target.is_absolute() {
                done = PathBuf::from("/");
            }
            todo.extend(reversed(&target));
        }
        if self.meets(&done, looked_for, overlays)? {
            return Ok(());
        }
        match self.mount_of(&done) {
            Some(mount) => self.mount(&mount, looked_for, overlays),
            None => Ok(()),
        }
    }

    /// Whether a resolved directory lies on the disk that is looked for.
    fn meets(&mut self, dir: &Path, looked_for: Option<Place>, overlays: usize) -> Result<bool, Error> {
        if let (Some(mount), Some(disk)) = (self.mount_of(dir), looked_for) {
            self.met |= self.lies_on(&mount, disk, overlays)?;
        }
        Ok(self.met)
    }

    /// The mount that a resolved path lies in: the longest prefix; of several on one point, the last.
    fn mount_of(&self, path: &Path) -> Option<Mount> {
        let mut best: Option<&Mount> = None;
        for mount in self.mounts.iter().filter(|mount| path.starts_with(&mount.point)) {
            if best.is_none_or(|best| mount.point.components().count() >= best.point.components().count()) {
                best = Some(mount);
            }
        }
        best.cloned()
    }

    fn lies_on(&mut self, mount: &Mount, disk: Place, overlays: usize) -> Result<bool, Error> {
        let mut walk = Walk {
            system: self.system,
            mounts: self.mounts.clone(),
            below: Below::default(),
            met: false,
        };
        walk.mount(mount, Some(disk), overlays)?;
        Ok(walk.met || walk.below.touches(self.system, disk))
    }

    fn mount(&mut self, mount: &Mount, looked_for: Option<Place>, overlays: usize) -> Result<(), Error> {
        if mount.dev.major != 0 {
            self.device(mount.dev);
        }
        match mount.kind.as_str() {
            "btrfs" => {
                for dev in self.system.btrfs_devices(&mount.source) {
                    self.device(dev);
                }
            }
            "overlay" if overlays < MAX_OVERLAYS => {
                for layer in layers(&mount.options) {
                    self.path(&layer, looked_for, overlays + 1)?;
                }
            }
            _ => {}
        }
        // One source, or (bcachefs) several with colons between; whatever is no device node is none.
        for source in mount.source.to_string_lossy().split(':') {
            if let Some(dev) = Some(Path::new(source))
                .filter(|path| path.is_absolute())
                .and_then(device_at)
            {
                self.device(dev);
            }
        }
        Ok(())
    }
}

/// The components of a path that mean something, last first.
fn reversed(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(PathBuf::from(name)),
            Component::ParentDir => Some(PathBuf::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// The directories that an overlay consists of.
fn layers(options: &str) -> Vec<PathBuf> {
    options
        .split(',')
        .filter_map(|option| option.split_once('='))
        .filter(|(key, _)| matches!(*key, "upperdir" | "workdir" | "lowerdir" | "lowerdir+" | "datadir+"))
        .flat_map(|(_, value)| value.split(':').map(PathBuf::from).collect::<Vec<_>>())
        .filter(|path| path.is_absolute())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::system::fake::{Machine, dev};
    use super::*;

    const SDA: DevNo = dev(8, 0);
    const SDA1: DevNo = dev(8, 1);
    const SDA2: DevNo = dev(8, 2);
    const SDB: DevNo = dev(8, 16);
    const DM: DevNo = dev(253, 0);
    const UBLK: DevNo = dev(259, 3);

    /// sda with two partitions, sdb, a device-mapper device, a ublk device.
    fn machine(mounts: &str) -> Machine {
        let machine = Machine::new(mounts);
        for (path, dev) in [
            ("sda", SDA),
            ("sda/sda1", SDA1),
            ("sda/sda2", SDA2),
            ("sdb", SDB),
            ("dm-0", DM),
            ("ublkb0", UBLK),
        ] {
            machine.add(path, dev);
        }
        machine
    }

    fn on(machine: &Machine, path: &str, dev: DevNo) -> bool {
        holds_on(&machine.system, Path::new(path), Place::Device(dev)).expect("the machine can be read")
    }

    #[test]
    fn a_path_lies_on_its_partition_and_its_disk_and_on_no_sibling() {
        let machine = machine("1 0 8:16 / / rw - ext4 /dev/sdb rw\n2 1 8:1 / /state rw - ext4 /dev/sda1 rw\n");
        assert!(on(&machine, "/state/vm1", SDA1) && on(&machine, "/state", SDA));
        assert!(!on(&machine, "/state/vm1", SDA2) && !on(&machine, "/state/vm1", SDB));
        assert!(
            on(&machine, "/statement", SDB),
            "a mount point is a directory, not a prefix of letters"
        );
        assert!(!on(&machine, "/statement", SDA));
    }

    #[test]
    fn a_path_lies_on_everything_below_a_stacked_device() {
        let machine = machine("1 0 8:16 / / rw - ext4 /dev/sdb rw\n2 1 253:0 / /state rw - xfs /dev/mapper/x rw\n");
        machine.stack("dm-0", "sda/sda2");
        assert!(on(&machine, "/state", DM) && on(&machine, "/state", SDA2) && on(&machine, "/state", SDA));
        assert!(!on(&machine, "/state", SDA1) && !on(&machine, "/state", SDB));
    }

    #[test]
    fn btrfs_hides_its_devices_and_they_are_found() {
        let machine = machine(
            "1 0 8:16 / / rw - ext4 /dev/sdb rw\n2 1 0:55 /sub /state rw - btrfs /dev/none/sda1 rw,subvol=/sub\n",
        );
        for (name, dev) in [("sda1", SDA1), ("ublkb0", UBLK)] {
            let dir = machine.system.sys.join("fs/btrfs/0a1b/devices").join(name);
            fs::create_dir_all(&dir).expect("a directory");
            fs::write(dir.join("dev"), dev.to_string()).expect("a small file");
        }
        assert!(on(&machine, "/state/x", SDA) && on(&machine, "/state/x", UBLK));
        assert!(!on(&machine, "/state/x", SDB));
    }

    #[test]
    fn an_overlay_lies_where_its_layers_lie() {
        let machine = machine(
            "1 0 8:16 / / rw - ext4 /dev/sdb rw\n2 1 259:3 / /guest rw - ext4 /dev/ublkb0 rw\n\
             3 1 0:60 / /state rw - overlay overlay rw,lowerdir=/nowhere:/else,upperdir=/guest/up,workdir=/guest/work\n",
        );
        assert!(on(&machine, "/state/vm1", UBLK));
        assert!(on(&machine, "/state/vm1", SDB), "a lower layer lies in the root");
        assert!(!on(&machine, "/state/vm1", SDA));
    }

    #[test]
    fn a_path_that_leads_through_the_disk_counts_wherever_it_ends() {
        let machine = Machine::new("");
        let root = machine.root().to_string_lossy().into_owned();
        // The name `guest` is a mount point on the device; behind it a link would lead away, but nothing is looked up there.
        let table = format!("1 0 8:16 / / rw - ext4 /dev/sdb rw\n2 1 259:3 / {root}/guest rw - ext4 /dev/ublkb0 rw\n");
        fs::write(machine.system.proc.join("self/mountinfo"), table).expect("a small file");
        machine.add("sdb", SDB);
        machine.add("ublkb0", UBLK);
        fs::create_dir(machine.root().join("guest")).expect("a directory");
        std::os::unix::fs::symlink("/", machine.root().join("guest/away")).expect("a link");
        std::os::unix::fs::symlink("guest/deep", machine.root().join("link")).expect("a link");
        std::os::unix::fs::symlink("circle", machine.root().join("circle")).expect("a link");
        assert!(on(&machine, &format!("{root}/guest/away/srv"), UBLK));
        assert!(
            on(&machine, &format!("{root}/link"), UBLK),
            "a relative link into the disk"
        );
        assert!(!on(&machine, &format!("{root}/other/../x"), UBLK));
        let circle = Path::new(&root).join("circle/x");
        assert!(holds_on(&machine.system, &circle, Place::Device(UBLK)).is_err());
    }

    #[test]
    fn what_is_below_a_loop_device_is_the_file_and_what_it_lies_on() {
        let machine = machine("1 0 8:16 / / rw - ext4 /dev/sdb rw\n");
        let file = machine.root().join("image");
        fs::write(&file, "x").expect("a small file");
        machine.add("loop9", dev(7, 9));
        machine.set("loop9", "loop/backing_file", &file.to_string_lossy());
        let meta = fs::metadata(&file).expect("it is there");
        let place = Place::File(DevNo::from_raw(meta.dev()), meta.ino());
        let below = below(&machine.system, Place::Device(dev(7, 9)), None).expect("the machine can be read");
        assert!(below.touches(&machine.system, place));
        assert_eq!(below.files.len(), 1);
    }

    #[test]
    fn two_volumes_on_one_disk_do_not_lie_on_each_other() {
        let machine = machine("");
        machine.add("dm-1", dev(253, 1));
        machine.stack("dm-0", "sda");
        machine.stack("dm-1", "sda");
        let below = below(&machine.system, Place::Device(DM), None).expect("the machine can be read");
        assert!(below.touches(&machine.system, Place::Device(SDA)));
        assert!(
            below.touches(&machine.system, Place::Device(SDA1)),
            "the disk's partitions are the disk's bytes"
        );
        assert!(!below.touches(&machine.system, Place::Device(dev(253, 1))));
    }
}
