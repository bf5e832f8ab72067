//! Claims, and the few system calls about disks that need `unsafe`.
//!
//! A block device is claimed by opening it with O_EXCL; the kernel then refuses mounts, stacked devices, swap and other
//! exclusive openers of it, of its partitions and of its whole disk. A file is claimed by a write lock over all of it that
//! belongs to the open file description: unlike a process lock it is not lost when some other descriptor of the
//! file is closed, and it is handed over with the descriptor. Both end when the last reference to the description
//! ends, and an operation in flight is such a reference.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
/// From linux/fs.h.
const BLKRRPART: libc::Ioctl = 0x125f;

/// The way to the very inode that a descriptor refers to, whatever its path means by now.
pub fn magic_path(descriptor: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd()).into()
}

/// Open what an (O_PATH) descriptor refers to, for serving.
pub fn reopen(descriptor: BorrowedFd<'_>, flags: OFlag) -> Result<OwnedFd, Errno> {
    open(&magic_path(descriptor), flags | OFlag::O_CLOEXEC, Mode::empty())
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Claim a file. False: somebody else has a lock on some part of it.
pub fn lock(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether another open file description, or a process, has a lock on the file.
pub fn is_locked(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut lock = whole_file(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Whether somebody holds the block device exclusively (a mount, swap, a stacked device, another daemon).
pub fn is_held(device: &Path) -> Result<bool, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match open(device, flags, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(Errno::EBUSY) => Ok(true),
        Err(errno) => Err(errno),
    }
}

mod ioctl {
    nix::ioctl_read_bad!(block_size, libc::BLKSSZGET, libc::c_int);
    nix::ioctl_read_bad!(physical_block_size, libc::BLKPBSZGET, libc::c_uint);
    nix::ioctl_read!(size_bytes, 0x12, 114, u64);
    nix::ioctl_read_bad!(loop_status, super::LOOP_GET_STATUS64, [u64; 29]);
    nix::ioctl_none_bad!(reread_partitions, super::BLKRRPART);
}

/// Have the kernel look at the partition table of a claimed disk anew. What has no partitions says EINVAL or ENOTTY.
pub fn reread_partitions(device: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: BLKRRPART has no argument.
    unsafe { ioctl::reread_partitions(device.as_raw_fd()) }.map(drop)
}

/// Size, logical and physical block size of a block device, in bytes.
pub fn block_sizes(device: BorrowedFd<'_>) -> Result<(u64, u32, u32), Errno> {
    let fd = device.as_raw_fd();
    let (mut size, mut block, mut physical) = (0u64, 0, 0);
    // SAFETY: BLKGETSIZE64 writes one u64, and `size` is one that outlives the call.
    unsafe { ioctl::size_bytes(fd, &mut size) }?;
    // SAFETY: BLKSSZGET writes one int, and `block` is one that outlives the call.
    unsafe { ioctl::block_size(fd, &mut block) }?;
    // SAFETY: BLKPBSZGET writes one unsigned int, and `physical` is one that outlives the call.
    unsafe { ioctl::physical_block_size(fd, &mut physical) }?;
    let block = u32::try_from(block).map_err(|_| Errno::EINVAL)?;
    Ok((size, block, physical.max(block)))
}

/// File system and inode behind a loop device; `None` when it cannot be asked.
pub fn loop_backing(node: &Path) -> Option<(u64, u64)> {
    let device = open(
        node,
        OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    // struct loop_info64 has 232 bytes and begins with the device and the inode, as eight bytes each.
    let mut status = [0u64; 29];
    // SAFETY: LOOP_GET_STATUS64 writes one struct loop_info64 of 232 bytes, which is what `status` has; it outlives the
    // call and any bytes are valid in it. On a device of another driver the call fails and writes nothing.
    unsafe { ioctl::loop_status(device.as_raw_fd(), &mut status) }.ok()?;
    Some((status[0], status[1]))
}

/// The alignment that direct I/O to an open file needs: of offsets, and of memory. `None`: the file system does not say;
/// zeroes: it cannot.
pub fn direct_alignment(file: BorrowedFd<'_>) -> Result<Option<(u32, u32)>, Errno> {
    let facts = statx(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN)?;
    let known = facts.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(known.then_some((facts.stx_dio_offset_align, facts.stx_dio_mem_align)))
}

/// What a path refers to, without asking a server or another daemon for news of it.
pub struct Target {
    /// Mode with the type of the file.
    pub mode: u32,
    /// The file system's number.
    pub dev: (u32, u32),
    /// Inode.
    pub inode: u64,
    /// The number of the device that it is the node of.
    pub rdev: (u32, u32),
}

/// Look at what a path refers to, as far as that is known already: a dead network file system cannot hold this up.
pub fn target(path: &Path) -> io::Result<Target> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let facts = statx(
        libc::AT_FDCWD,
        &path,
        libc::AT_STATX_DONT_SYNC,
        libc::STATX_TYPE | libc::STATX_INO,
    )?;
    Ok(Target {
        mode: facts.stx_mode.into(),
        dev: (facts.stx_dev_major, facts.stx_dev_minor),
        inode: facts.stx_ino,
        rdev: (facts.stx_rdev_major, facts.stx_rdev_minor),
    })
}

fn statx(
    dir: libc::c_int,
    path: &std::ffi::CStr,
    flags: libc::c_int,
    mask: libc::c_uint,
) -> Result<libc::statx, Errno> {
    let mut facts = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `path` ends with NUL, `facts` is a struct statx, and both outlive the call.
    let result = unsafe { libc::statx(dir, path.as_ptr(), flags, mask, facts.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: the struct was zeroed, and zeroes (or what the kernel wrote over them) are valid for its integers.
    Ok(unsafe { facts.assume_init() })
}

/// Whether the descriptor is open for reading, writing and direct I/O.
pub fn is_direct(descriptor: impl AsFd) -> Result<bool, Errno> {
    let flags = OFlag::from_bits_retain(fcntl(descriptor.as_fd(), FcntlArg::F_GETFL)?);
    Ok(flags.contains(OFlag::O_DIRECT) && flags & OFlag::O_ACCMODE == OFlag::O_RDWR)
}
