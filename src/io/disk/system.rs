//! What the kernel says about block devices and mounts, read from sysfs and procfs. Their places are values, so that tests
//! can show trees of machines that they do not run on. Nothing here opens a disk.

use super::error::Error;
use nix::sys::stat::{major, minor};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The number of a device; meaningful until the next boot at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevNo {
    /// Major number. 0 is no device, but a file system that lies on none, or on several.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl DevNo {
    /// From the kernel's encoding, as in `st_dev` and `st_rdev`.
    pub fn from_raw(raw: u64) -> DevNo {
        DevNo {
            major: u32::try_from(major(raw)).expect("major numbers have 32 bits"),
            minor: u32::try_from(minor(raw)).expect("minor numbers have 32 bits"),
        }
    }

    fn parse(text: &str) -> Option<DevNo> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(DevNo {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

impl fmt::Display for DevNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The number of the file system.
    pub dev: DevNo,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its type.
    pub kind: String,
    /// What it was mounted from: a path for file systems on a disk.
    pub source: PathBuf,
    /// The file system's own options.
    pub options: String,
}

/// What a loop device shows the content of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its path, as far as the kernel remembers it.
    pub path: PathBuf,
    /// What it is.
    pub what: BackingKind,
}

/// What lies behind a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingKind {
    /// A file, by its file system and inode.
    File(DevNo, u64),
    /// A block device.
    Device(DevNo),
    /// Something that cannot be found: deleted, or out of sight.
    Unknown,
}

/// A block device, by its directory in sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDir {
    /// Its number.
    pub dev: DevNo,
    dir: PathBuf,
}

/// Where the kernel's views are mounted.
#[derive(Clone, Debug)]
pub struct System {
    /// sysfs.
    pub sys: PathBuf,
    /// procfs.
    pub proc: PathBuf,
    /// Device nodes.
    pub dev: PathBuf,
}

impl System {
    /// This host.
    pub fn host() -> System {
        System {
            sys: "/sys".into(),
            proc: "/proc".into(),
            dev: "/dev".into(),
        }
    }

    /// The block device with this number.
    ///
    /// # Errors
    /// It is gone, or sysfs is not there.
    pub fn block(&self, dev: DevNo) -> Result<BlockDir, Error> {
        let link = self.sys.join("dev/block").join(dev.to_string());
        let dir = fs::canonicalize(&link).map_err(Error::io("look up the block device in sysfs", &link))?;
        Ok(BlockDir { dev, dir })
    }

    /// All block devices, partitions too.
    ///
    /// # Errors
    /// sysfs is not there.
    pub fn blocks(&self) -> Result<Vec<BlockDir>, Error> {
        let list = self.sys.join("dev/block");
        let names = names(&list).map_err(Error::io("list block devices", &list))?;
        // A device that is gone between the listing and the look-up is none.
        Ok(names
            .iter()
            .filter_map(|name| self.block(DevNo::parse(name)?).ok())
            .collect())
    }

    /// The mount table of this process.
    ///
    /// # Errors
    /// procfs is not there.
    pub fn mounts(&self) -> Result<Vec<Mount>, Error> {
        let path = self.proc.join("self/mountinfo");
        let text = fs::read(&path).map_err(Error::io("read the mount table", &path))?;
        Ok(parse_mounts(&text))
    }

    /// Devices and files used as swap space, by path.
    ///
    /// # Errors
    /// procfs is not there.
    pub fn swaps(&self) -> Result<Vec<PathBuf>, Error> {
        let path = self.proc.join("swaps");
        match fs::read(&path) {
            Ok(text) => Ok(text
                .split(|&byte| byte == b'\n')
                .skip(1)
                .filter_map(|line| line.split(|byte| byte.is_ascii_whitespace()).next())
                .filter(|field| !field.is_empty())
                .map(unescape)
                .collect()),
            // A kernel without swap has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(Error::io("read the list of swap spaces", &path)(error)),
        }
    }

    /// The devices of the btrfs file system that `source` is one device of; empty when there is none.
    pub fn btrfs_devices(&self, source: &Path) -> Vec<DevNo> {
        let Ok(file_systems) = names(&self.sys.join("fs/btrfs")) else {
            return Vec::new();
        };
        let source_dev = device_at(source);
        for file_system in file_systems {
            let list = self.sys.join("fs/btrfs").join(file_system).join("devices");
            let devices: Vec<(String, DevNo)> = names(&list)
                .unwrap_or_default()
                .into_iter()
                .filter_map(|name| {
                    let dev = DevNo::parse(&fs::read_to_string(list.join(&name).join("dev")).ok()?)?;
                    Some((name, dev))
                })
                .collect();
            let is_it = devices.iter().any(|(name, dev)| match source_dev {
                Some(source) => source == *dev,
                None => source.file_name().is_some_and(|last| last == name.as_str()),
            });
            if is_it {
                return devices.into_iter().map(|(_, dev)| dev).collect();
            }
        }
        Vec::new()
    }
}

impl BlockDir {
    /// The kernel's name, as in `/dev`.
    pub fn name(&self) -> String {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        name.replace('!', "/")
    }

    /// `/dev/NAME`, for messages.
    pub fn node(&self) -> String {
        format!("/dev/{}", self.name())
    }

    /// An attribute, trimmed; `None` where the device has none of this name, or an empty one.
    pub fn attribute(&self, name: &str) -> Option<String> {
        let text = fs::read(self.dir.join(name)).ok()?;
        let text = String::from_utf8_lossy(&text);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// An attribute as it is.
    pub fn raw_attribute(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.dir.join(name)).ok()
    }

    /// The number of the partition, if it is one.
    pub fn partition(&self) -> Option<u32> {
        self.attribute("partition")?.parse().ok()
    }

    /// The disk that this is a partition of, else itself.
    pub fn whole(&self) -> BlockDir {
        let parent = || {
            let dir = self.dir.parent()?.to_path_buf();
            let dev = DevNo::parse(&fs::read_to_string(dir.join("dev")).ok()?)?;
            Some(BlockDir { dev, dir })
        };
        match self.partition() {
            Some(_) => parent().unwrap_or_else(|| self.clone()),
            None => self.clone(),
        }
    }

    /// Its partitions.
    pub fn partitions(&self) -> Vec<BlockDir> {
        self.children("")
            .into_iter()
            .filter(|child| child.partition().is_some())
            .collect()
    }

    /// What it stands on (device mapper, md).
    pub fn slaves(&self) -> Vec<BlockDir> {
        self.children("slaves")
    }

    /// What stands on it (device mapper, md, bcache; not file systems or loop devices).
    pub fn holders(&self) -> Vec<BlockDir> {
        self.children("holders")
    }

    fn children(&self, list: &str) -> Vec<BlockDir> {
        let list = self.dir.join(list);
        names(&list)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|name| {
                let dir = fs::canonicalize(list.join(name)).ok()?;
                let dev = DevNo::parse(&fs::read_to_string(dir.join("dev")).ok()?)?;
                Some(BlockDir { dev, dir })
            })
            .collect()
    }

    /// What lies behind a loop device; `None` for anything else, and for one that is free.
    pub fn backing(&self, system: &System) -> Option<Backing> {
        let path = PathBuf::from(self.attribute("loop/backing_file")?);
        let by_path = fs::metadata(&path).ok();
        // The kernel knows the inode; the path may have come to mean something else since, or be that of another namespace.
        let by_kernel = super::claim::loop_backing(&system.dev.join(self.name()));
        let what = match (by_path, by_kernel) {
            (Some(meta), Some((dev, inode))) if (meta.dev(), meta.ino()) != (dev, inode) => {
                BackingKind::File(DevNo::from_raw(dev), inode)
            }
            (Some(meta), _) if meta.file_type().is_block_device() => BackingKind::Device(DevNo::from_raw(meta.rdev())),
            (Some(meta), _) => BackingKind::File(DevNo::from_raw(meta.dev()), meta.ino()),
            (None, Some((dev, inode))) => BackingKind::File(DevNo::from_raw(dev), inode),
            (None, None) => BackingKind::Unknown,
        };
        Some(Backing { path, what })
    }
}

/// The number of the block device that `path` is the node of.
pub fn device_at(path: &Path) -> Option<DevNo> {
    let meta = fs::metadata(path).ok()?;
    meta.file_type().is_block_device().then(|| DevNo::from_raw(meta.rdev()))
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Read a `mountinfo`: `id parent major:minor root point options [optional…] - type source super-options`. A line that cannot be
/// read is left out.
pub fn parse_mounts(text: &[u8]) -> Vec<Mount> {
    let parse = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let separator = fields.iter().skip(6).position(|&field| field == b"-")? + 6;
        Some(Mount {
            dev: DevNo::parse(std::str::from_utf8(fields.get(2)?).ok()?)?,
            point: unescape(fields.get(4)?),
            kind: String::from_utf8_lossy(fields.get(separator + 1)?).into_owned(),
            source: unescape(fields.get(separator + 2)?),
            options: fields
                .get(separator + 3)
                .map(|field| unescape(field).to_string_lossy().into_owned())
                .unwrap_or_default(),
        })
    };
    text.split(|&byte| byte == b'\n').filter_map(parse).collect()
}

/// The kernel writes blanks and backslashes in paths as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            digits.iter().try_fold(0u32, |sum, digit| {
                matches!(digit, b'0'..=b'7').then(|| sum * 8 + u32::from(digit - b'0'))
            })
        };
        match (first, behind.get(..3).and_then(octal)) {
            (b'\\', Some(value @ 0..=255)) => {
                bytes.push(value as u8);
                rest = &behind[3..];
            }
            _ => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Machines that tests do not run on.
#[cfg(test)]
pub(super) mod fake {
    use super::{DevNo, System};
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A tree with a sysfs and a procfs in it; goes away with the value.
    pub struct Machine {
        root: PathBuf,
        pub system: System,
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    impl Machine {
        /// Without any disk, and with one mount table.
        pub fn new(mounts: &str) -> Machine {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            // Relaxed: the number only has to be another one each time.
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let root = std::env::temp_dir().join(format!("twinblk-machine-{}-{count}", std::process::id()));
            let system = System {
                sys: root.join("sys"),
                proc: root.join("proc"),
                dev: root.join("dev"),
            };
            for dir in [
                system.sys.join("dev/block"),
                system.proc.join("self"),
                system.dev.clone(),
            ] {
                fs::create_dir_all(dir).expect("a directory below the temporary one");
            }
            fs::write(system.proc.join("self/mountinfo"), mounts).expect("a small file");
            Machine { root, system }
        }

        pub fn root(&self) -> &Path {
            &self.root
        }

        /// A disk, or (`sda/sda1`) a partition.
        pub fn add(&self, path: &str, dev: DevNo) {
            let dir = self.system.sys.join("devices").join(path);
            fs::create_dir_all(dir.join("holders")).expect("a directory");
            fs::create_dir_all(dir.join("slaves")).expect("a directory");
            fs::write(dir.join("dev"), format!("{dev}\n")).expect("a small file");
            if let Some((disk, name)) = path.split_once('/') {
                self.set(path, "partition", name.trim_start_matches(disk));
            }
            symlink(&dir, self.system.sys.join("dev/block").join(dev.to_string())).expect("a link");
        }

        pub fn set(&self, path: &str, attribute: &str, value: &str) {
            let file = self.system.sys.join("devices").join(path).join(attribute);
            fs::create_dir_all(file.parent().expect("it has one")).expect("a directory");
            fs::write(file, format!("{value}\n")).expect("a small file");
        }

        /// `upper` (as device mapper, md) stands on `lower`.
        pub fn stack(&self, upper: &str, lower: &str) {
            let devices = self.system.sys.join("devices");
            let name = |path: &str| PathBuf::from(Path::new(path).file_name().expect("it has a name"));
            symlink(
                devices.join(lower),
                devices.join(upper).join("slaves").join(name(lower)),
            )
            .expect("a link");
            symlink(
                devices.join(upper),
                devices.join(lower).join("holders").join(name(upper)),
            )
            .expect("a link");
        }
    }

    pub const fn dev(major: u32, minor: u32) -> DevNo {
        DevNo { major, minor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table_is_read_with_blanks_in_paths_and_any_number_of_optional_fields() {
        let text = b"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
            36 27 0:41 /sub /a\\040b rw shared:5 master:2 - btrfs /dev/mapper/x\\134y rw,subvol=/sub\n\
            garbage\n\
            37 27 8:17 / /mnt rw - xfs /dev/sdb1 rw\n";
        let mounts = parse_mounts(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].dev, DevNo { major: 254, minor: 0 });
        assert_eq!(mounts[1].point, Path::new("/a b"));
        assert_eq!(mounts[1].source, Path::new("/dev/mapper/x\\y"));
        assert_eq!(mounts[1].kind, "btrfs");
        assert_eq!(mounts[2].options, "rw");
    }

    #[test]
    fn an_escape_that_is_none_stays_as_it_is() {
        for (field, path) in [
            ("a\\", "a\\"),
            ("a\\04", "a\\04"),
            ("\\789", "\\789"),
            ("\\777x", "\\777x"),
        ] {
            assert_eq!(unescape(field.as_bytes()), Path::new(path));
        }
    }

    #[test]
    fn the_hosts_root_is_in_its_mount_table() {
        let mounts = System::host().mounts().expect("every Linux has a mount table");
        assert!(mounts.iter().any(|mount| mount.point == Path::new("/")));
    }
}
