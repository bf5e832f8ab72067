//! Opening a disk: every check in its order, then the claim, then what needs the claim.

use super::blank;
use super::claim;
use super::error::{Error, Reason, Refusal};
use super::identity::{self, Identity};
use super::location::{self, Below, Place};
use super::system::{DevNo, System};
use super::usage::{self, User};
use crate::table::LegKind;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::fstatfs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Smallest and largest logical block size that a device can have.
const BLOCKS: std::ops::RangeInclusive<u32> = 512..=4096;

/// File systems whose files can be punched: `statfs` magic numbers of ext2/3/4, xfs, btrfs, tmpfs, f2fs. A wrong guess
/// costs time, not data: engines fall back to writing zeroes.
const PUNCHING: [u64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010];

/// How often a process that writes must be seen to count, and the time between.
const WRITER_LOOKS: usize = 4;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// What a disk's content may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Anything: it is served as it is, or may be overwritten.
    Any,
    /// Blank, or the disk is refused: it will be overwritten.
    Blank,
}

/// What a disk must be and must not be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Smallest size in bytes.
    pub min_size: u64,
    /// Largest logical block size in bytes: that of the device.
    pub max_block: u32,
    /// What may be on it.
    pub content: Content,
    /// Disks it must have nothing in common with: the other legs of the device.
    pub apart_from: &'a [Identity],
    /// Paths that must not lie on it: the state directory.
    pub must_not_hold: &'a [&'a Path],
    /// Numbers N of `/dev/ublkbN` that are devices of ours: no leg may be one, or lie on one.
    pub own_devices: &'a [u32],
}

impl Wanted<'_> {
    /// Any disk with any content.
    pub const ANY: Wanted<'static> = Wanted {
        min_size: 0,
        max_block: 4096,
        content: Content::Any,
        apart_from: &[],
        must_not_hold: &[],
        own_devices: &[],
    };
}

/// An open and claimed disk. The claim ends when the last copy of the descriptor is closed and no operation is in flight.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The one open file description: read-write, direct, exclusive.
    pub descriptor: Arc<OwnedFd>,
    /// What it is known by, with size, logical block size and path.
    pub identity: Identity,
    /// Physical block size in bytes; at least the logical one.
    pub physical_block: u32,
    /// Whether a range can be made to read as zeroes without writing it.
    pub punches: bool,
}

impl Disk {
    /// Open and claim the disk at `path`, if it is as wanted.
    ///
    /// # Errors
    /// [`Error::Refused`] says which check failed; nothing was written then, and nothing is claimed.
    pub fn open(path: &Path, wanted: &Wanted<'_>) -> Result<Disk, Error> {
        let system = System::host();
        // Everything from here on is about this inode, and opening it so has no effect on whatever it is.
        let inode = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(Error::io("open", path))?;
        let stat = fstat(&inode).map_err(Error::io("look at it", path))?;
        let mut identity = identify(&system, &stat, path)?;
        check_before_open(&system, &identity, path, wanted)?;
        let descriptor = claimed(&system, &inode, &identity, path)?;
        check_writers(&system, &identity, path)?;

        let physical_block = measure(descriptor.as_fd(), &stat, &mut identity, path)?;
        let refused = |reason| Err(Refusal::new(path, reason).into());
        if identity.block > wanted.max_block {
            return refused(Reason::LargerBlocks {
                block: identity.block,
                max: wanted.max_block,
            });
        }
        let needed = wanted.min_size.max(identity.block.into());
        if identity.size < needed {
            return refused(Reason::TooSmall {
                size: identity.size,
                needed,
            });
        }
        if wanted.content == Content::Blank {
            let found = blank::findings(descriptor.as_fd(), identity.size, identity.block, path)?;
            if !found.is_empty() {
                return refused(Reason::NotBlank { found });
            }
        }
        Ok(Disk {
            punches: punches(&system, descriptor.as_fd(), &identity),
            descriptor: Arc::new(descriptor),
            identity,
            physical_block,
        })
    }

    /// What is at `path`: nothing is claimed, and a claim of somebody else is no obstacle.
    ///
    /// # Errors
    /// There is nothing, or no disk.
    pub fn look(path: &Path) -> Result<Identity, Error> {
        let system = System::host();
        let inode = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(Error::io("open", path))?;
        let stat = fstat(&inode).map_err(Error::io("look at it", path))?;
        let mut identity = identify(&system, &stat, path)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let descriptor = claim::reopen(inode.as_fd(), flags).map_err(Error::io("open it for reading", path))?;
        measure(descriptor.as_fd(), &stat, &mut identity, path)?;
        Ok(identity)
    }

    /// Take over a disk that another process opened with [`Disk::open`] and handed over with its identity, because this
    /// process may not see the path any more. The descriptor itself is looked at again, and must fit the identity.
    ///
    /// # Errors
    /// The descriptor is not that of the disk named, is not open as it must be, or is not claimed.
    pub fn from_descriptor(descriptor: OwnedFd, identity: Identity) -> Result<Disk, Error> {
        let system = System::host();
        let path = Path::new(&*identity.path).to_path_buf();
        let other = |what| Err(Refusal::new(&path, Reason::OtherDescriptor { what }).into());
        let stat = fstat(&descriptor).map_err(Error::io("look at the descriptor", &path))?;
        match place_of(&stat) {
            Ok(place) if place == identity::place(&identity) => {}
            Ok(_) => return other("it is another disk"),
            Err(_) => return other("it is no disk"),
        }
        if !claim::is_direct(&descriptor).map_err(Error::io("look at the descriptor", &path))? {
            return other("it is not open for direct reading and writing");
        }
        let is_claimed = match identity.kind {
            // Nobody, this process included, can open a second time what the descriptor holds.
            LegKind::Block => claim::is_held(&claim::magic_path(descriptor.as_fd())),
            // The lock belongs to the open file description: to take it again is to have it.
            LegKind::File => claim::lock(descriptor.as_fd()),
        };
        if !is_claimed.map_err(Error::io("look at the claim", &path))? {
            return other("it is not claimed");
        }
        let mut found = identity.clone();
        let physical_block = measure(descriptor.as_fd(), &stat, &mut found, &path)?;
        if found != identity {
            return other("its size or block size is another");
        }
        Ok(Disk {
            punches: punches(&system, descriptor.as_fd(), &identity),
            descriptor: Arc::new(descriptor),
            identity,
            physical_block,
        })
    }

    /// Size in bytes, a multiple of the logical block size.
    pub fn size(&self) -> u64 {
        self.identity.size
    }

    /// Logical block size in bytes.
    pub fn block(&self) -> u32 {
        self.identity.block
    }

    /// The path as it was given, made absolute.
    pub fn path(&self) -> &Path {
        Path::new(&*self.identity.path)
    }
}

/// What an inode is, if it can be a disk; else a word for what it is.
fn place_of(stat: &FileStat) -> Result<Place, &'static str> {
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    match kind {
        SFlag::S_IFBLK => Ok(Place::Device(DevNo::from_raw(stat.st_rdev))),
        SFlag::S_IFREG => Ok(Place::File(DevNo::from_raw(stat.st_dev), stat.st_ino)),
        SFlag::S_IFDIR => Err("a directory"),
        SFlag::S_IFCHR => Err("a character device"),
        SFlag::S_IFIFO => Err("a pipe"),
        SFlag::S_IFSOCK => Err("a socket"),
        _ => Err("something else"),
    }
}

fn identify(system: &System, stat: &FileStat, path: &Path) -> Result<Identity, Error> {
    match place_of(stat) {
        Ok(Place::Device(dev)) => identity::of_block(system, &system.block(dev)?, path),
        Ok(Place::File(dev, inode)) => identity::of_file(dev, inode, path),
        Err(is) => Err(Refusal::new(path, Reason::NotADisk { is }).into()),
    }
}

/// What can be seen without opening the disk. The order matters for the message alone: a leg of this device is also
/// claimed, and a mounted disk is also held.
fn check_before_open(system: &System, identity: &Identity, path: &Path, wanted: &Wanted<'_>) -> Result<(), Error> {
    let refused = |reason| Err(Refusal::new(path, reason).into());
    let place = identity::place(identity);
    for other in wanted.apart_from {
        if identity::share_bytes(system, identity, other)? {
            return refused(Reason::SameDisk {
                other: other.path.to_string(),
            });
        }
    }
    let below = location::below(system, place, Some(Path::new(&*identity.canonical)))?;
    if let Some(device) = ours(system, &below, wanted.own_devices) {
        return refused(Reason::Ours { device });
    }
    if let Place::Device(dev) = place {
        let block = system.block(dev)?;
        let whole = block.whole();
        if let Some(model) = whole.attribute("queue/zoned").filter(|model| model != "none") {
            return refused(Reason::Zoned { model });
        }
        if block.attribute("ro").is_some_and(|ro| ro != "0") {
            return refused(Reason::ReadOnly);
        }
    }
    let mut users = usage::kernel_users(system, place)?;
    users.extend(users_behind_loops(system, &below, place)?);
    if !users.is_empty() {
        return refused(Reason::Used(users));
    }
    for path_to_keep_off in wanted.must_not_hold {
        if location::holds_on(system, path_to_keep_off, place)? {
            return refused(Reason::Holds {
                path: path_to_keep_off.to_path_buf(),
            });
        }
    }
    Ok(())
}

/// The first device of ours that a disk is or lies on.
fn ours(system: &System, below: &Below, own: &[u32]) -> Option<String> {
    below.devices.iter().find_map(|dev| {
        let whole = system.block(*dev).ok()?.whole();
        let id: u32 = whole.name().strip_prefix("ublkb")?.parse().ok()?;
        (own.contains(&id) || usage::is_served_by_twinblk(system, id)).then(|| whole.node())
    })
}

/// A loop device does not claim what is behind it, so its own claim keeps nobody off that: ask there as well.
fn users_behind_loops(system: &System, below: &Below, this: Place) -> Result<Vec<User>, Error> {
    let mut users = Vec::new();
    for dev in &below.behind_loops {
        let others = usage::kernel_users(system, Place::Device(*dev))?;
        users.extend(others.into_iter().filter(|user| !is_loop(user)));
        let node = system.dev.join(system.block(*dev)?.name());
        if users.is_empty() && claim::is_held(&node) == Ok(true) {
            users.push(User::Unknown);
        }
    }
    if let Place::Device(_) = this {
        for path in below.files.values() {
            // Out of sight, or gone: a lock on it cannot be seen.
            let Ok(file) = open(
                path,
                OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
                Mode::empty(),
            ) else {
                continue;
            };
            if claim::is_locked(file.as_fd()) == Ok(true) {
                users.push(User::Unknown);
            }
        }
    }
    Ok(users)
}

fn is_loop(user: &User) -> bool {
    matches!(user, User::Holder { device } if device.starts_with("/dev/loop"))
}

/// Open for serving, and claim.
fn claimed(system: &System, inode: &OwnedFd, identity: &Identity, path: &Path) -> Result<OwnedFd, Error> {
    let place = identity::place(identity);
    let refused = |reason| Err(Refusal::new(path, reason).into());
    let by = || {
        let mut users = usage::openers(system, place).unwrap_or_default();
        users.retain(|user| matches!(user, User::Process { writes: true, .. }));
        users
    };
    let flags = match identity.kind {
        LegKind::Block => OFlag::O_RDWR | OFlag::O_DIRECT | OFlag::O_EXCL,
        // O_EXCL means nothing on a file.
        LegKind::File => OFlag::O_RDWR | OFlag::O_DIRECT,
    };
    let descriptor = match claim::reopen(inode.as_fd(), flags) {
        Ok(descriptor) => descriptor,
        Err(Errno::EBUSY) => return refused(Reason::Claimed(by())),
        Err(Errno::EROFS | Errno::EACCES | Errno::EPERM) => return refused(Reason::ReadOnly),
        Err(Errno::ETXTBSY) => {
            return refused(Reason::Used(vec![User::Unknown]));
        }
        Err(Errno::EINVAL) if identity.kind == LegKind::File => return refused(Reason::NotDirect),
        Err(errno) => return Err(Error::io("open it for direct reading and writing", path)(errno)),
    };
    if identity.kind == LegKind::File && !claim::lock(descriptor.as_fd()).map_err(Error::io("claim", path))? {
        return refused(Reason::Claimed(by()));
    }
    Ok(descriptor)
}

/// Somebody who writes without a claim is not kept off by ours. Who is gone at the next look only passed through (as
/// `losetup` does on its way to a free device) and is no reason to refuse: what opens it from now on sees the claim.
fn check_writers(system: &System, identity: &Identity, path: &Path) -> Result<(), Error> {
    let mut users = Vec::new();
    for look in 0..WRITER_LOOKS {
        if look > 0 {
            std::thread::sleep(BETWEEN_LOOKS);
        }
        users = usage::openers(system, identity::place(identity))?;
        users.retain(|user| matches!(user, User::Process { writes: true, .. }));
        if users.is_empty() {
            return Ok(());
        }
    }
    Err(Refusal::new(path, Reason::Used(users)).into())
}

/// Fill in size and logical block size; returns the physical block size.
fn measure(descriptor: BorrowedFd<'_>, stat: &FileStat, identity: &mut Identity, path: &Path) -> Result<u32, Error> {
    let (size, block, physical) = match identity.kind {
        LegKind::Block => claim::block_sizes(descriptor).map_err(Error::io("ask for its size", path))?,
        LegKind::File => {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let block = file_block(descriptor, path)?;
            let preferred = u32::try_from(stat.st_blksize).unwrap_or(0).min(*BLOCKS.end());
            (
                size,
                block,
                if preferred.is_power_of_two() {
                    preferred.max(block)
                } else {
                    block
                },
            )
        }
    };
    if !block.is_power_of_two() || block < *BLOCKS.start() {
        return Err(Refusal::new(path, Reason::NotDirect).into());
    }
    if block > *BLOCKS.end() {
        let max = *BLOCKS.end();
        return Err(Refusal::new(path, Reason::LargerBlocks { block, max }).into());
    }
    identity.block = block;
    identity.size = size - size % u64::from(block);
    Ok(physical)
}

/// The logical block size of a file: the alignment that direct I/O to it needs, of offsets and of memory.
fn file_block(file: BorrowedFd<'_>, path: &Path) -> Result<u32, Error> {
    match claim::direct_alignment(file).map_err(Error::io("ask for its alignment", path))? {
        // The file system says that this file cannot.
        Some((0, _)) => Err(Refusal::new(path, Reason::NotDirect).into()),
        Some((offset, memory)) => Ok(offset.max(memory).max(*BLOCKS.start())),
        // A file system that does not say: what a read takes, a write takes as well.
        None => {
            let file = std::fs::File::from(
                file.try_clone_to_owned()
                    .map_err(Error::io("share the descriptor", path))?,
            );
            let buffer = &mut vec![0; 8192];
            // At an address that is a multiple of 512 and not of 1024.
            let skip = buffer.as_ptr().align_offset(4096) + 512;
            Ok(if file.read_at(&mut buffer[skip..skip + 512], 512).is_ok() {
                512
            } else {
                4096
            })
        }
    }
}

fn punches(system: &System, descriptor: BorrowedFd<'_>, identity: &Identity) -> bool {
    match identity::place(identity) {
        Place::Device(dev) => {
            let limit = system
                .block(dev)
                .ok()
                .and_then(|block| block.whole().attribute("queue/write_zeroes_max_bytes"));
            limit
                .and_then(|limit| limit.parse::<u64>().ok())
                .is_some_and(|limit| limit > 0)
        }
        Place::File(..) => {
            fstatfs(descriptor).is_ok_and(|facts| PUNCHING.contains(&(facts.filesystem_type().0 as u64)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::system::fake::{Machine, dev};
    use super::*;
    use crate::table::name::Text;

    fn refusal(machine: &Machine, dev: DevNo, wanted: &Wanted<'_>) -> Option<Reason> {
        let path = Path::new("/dev/null");
        let block = machine.system.block(dev).expect("it was added");
        let mut identity = identity::of_block(&machine.system, &block, path).expect("it can be read");
        identity.canonical = Text::cut(&block.node());
        match check_before_open(&machine.system, &identity, path, wanted) {
            Ok(()) => None,
            Err(Error::Refused(refusal)) => Some(refusal.reason),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn zoned_and_read_only_disks_are_refused_and_so_are_their_partitions() {
        let machine = Machine::new("");
        for (path, number) in [("sda", dev(8, 0)), ("sda/sda1", dev(8, 1)), ("sdb", dev(8, 16))] {
            machine.add(path, number);
        }
        machine.set("sdb", "queue/zoned", "none");
        machine.set("sda", "queue/zoned", "host-managed");
        for disk in [dev(8, 0), dev(8, 1)] {
            assert!(
                matches!(refusal(&machine, disk, &Wanted::ANY), Some(Reason::Zoned { model }) if model == "host-managed")
            );
        }
        assert_eq!(refusal(&machine, dev(8, 16), &Wanted::ANY), None);
        machine.set("sdb", "ro", "1");
        assert_eq!(refusal(&machine, dev(8, 16), &Wanted::ANY), Some(Reason::ReadOnly));
    }

    #[test]
    fn a_device_of_ours_and_what_stands_on_it_are_refused_and_other_ublk_devices_are_not() {
        let machine = Machine::new("");
        for (path, number) in [
            ("ublkb2", dev(259, 2)),
            ("ublkb2/ublkb2p1", dev(259, 3)),
            ("ublkb5", dev(259, 5)),
            ("dm-0", dev(253, 0)),
        ] {
            machine.add(path, number);
        }
        machine.set("ublkb2/ublkb2p1", "partition", "1");
        machine.stack("dm-0", "ublkb2/ublkb2p1");
        let wanted = Wanted {
            own_devices: &[2],
            ..Wanted::ANY
        };
        for number in [dev(259, 2), dev(259, 3), dev(253, 0)] {
            assert_eq!(
                refusal(&machine, number, &wanted),
                Some(Reason::Ours {
                    device: "/dev/ublkb2".into()
                })
            );
        }
        assert_eq!(refusal(&machine, dev(259, 5), &wanted), None);
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let reasons = [
            Reason::NotADisk { is: "a pipe" },
            Reason::ReadOnly,
            Reason::Zoned {
                model: "host-aware".into(),
            },
            Reason::Used(vec![User::Swap {
                device: "/dev/x".into(),
            }]),
            Reason::Claimed(vec![]),
            Reason::Claimed(vec![User::Process {
                pid: 1,
                name: "x".into(),
                writes: true,
            }]),
            Reason::Ours {
                device: "/dev/ublkb0".into(),
            },
            Reason::SameDisk { other: "/dev/x".into() },
            Reason::TooSmall { size: 1, needed: 2 },
            Reason::LargerBlocks { block: 4096, max: 512 },
            Reason::NotDirect,
            Reason::NotBlank {
                found: vec!["ext4".into()],
            },
            Reason::Holds { path: "/var".into() },
            Reason::PathNotRecordable,
            Reason::OtherDescriptor { what: "it is no disk" },
        ];
        for reason in reasons {
            let refusal = Refusal::new(Path::new("/dev/x"), reason);
            assert!(refusal.to_string().starts_with("/dev/x is refused: ") && refusal.to_string().len() > 30);
            assert!(!refusal.hint().is_empty(), "{refusal}");
        }
    }
}
