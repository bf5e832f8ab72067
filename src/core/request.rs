//! What a guest asks for.

use super::geometry::Range;
use std::fmt;

/// The kernel's number for a request in flight: below the queue depth, used again when the request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u16);

/// What a guest wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read the range into the request's buffer.
    Read,
    /// Write the request's buffer to the range; with `fua`, durably before the answer.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Make every write that was answered before durable. Has no range.
    Flush,
    /// The guest has no more use for the content of the range.
    Discard,
    /// Make the range read as zeroes; space may be given back only with `unmap`.
    WriteZeroes {
        /// Whether the range may be unmapped.
        unmap: bool,
        /// Force unit access.
        fua: bool,
    },
}

/// A guest's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// Where; [`Range::EMPTY`] for [`Operation::Flush`].
    pub range: Range,
}

/// A device error by its positive errno.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// EIO: the device failed.
    pub const IO: Errno = Errno(5);
    /// EINVAL: a request outside the device or not aligned to it.
    pub const INVALID: Errno = Errno(22);
    /// EOPNOTSUPP: the leg cannot do this.
    pub const NOT_SUPPORTED: Errno = Errno(95);
    /// ETIMEDOUT: the leg did not answer in time.
    pub const TIMED_OUT: Errno = Errno(110);
    /// ENOMEM: the host had no memory for it.
    pub const NO_MEMORY: Errno = Errno(12);

    /// Whether it is the host that could not do the operation, and not the disk: nobody is demoted for it, and nothing that was
    /// done before is in doubt.
    ///
    /// The kernel tells an error of a disk by one of few numbers (`block/blk-core.c`, `blk_errors`), and what does not get as far as a
    /// disk by others:
    ///
    /// | errno | whose | where it comes from |
    /// |---|---|---|
    /// | `EINTR` 4 | host | a signal came while the operation waited for its turn (a lock of a file, a worker of the ring) |
    /// | `EAGAIN` 11 | host | `BLK_STS_AGAIN`, or the ring: it could not be begun without waiting |
    /// | `ENOMEM` 12 | host | `BLK_STS_RESOURCE`, or the ring: no memory for a request |
    /// | `EBUSY` 16 | host | `BLK_STS_DEV_RESOURCE`: what the driver shares between devices is in use |
    /// | `ENOBUFS` 105 | host | a network disk's socket had no memory |
    /// | `EIO`, `ENOSPC`, `ETIMEDOUT`, `ENOLINK`, `EREMOTEIO`, `EBADE`, `ENODATA`, `EILSEQ`, `ENODEV`, `ENXIO`, `ETIME`, `EROFS`, `EDQUOT`, … | disk | the other `BLK_STS_*`: medium, target, transport, reservation, time-out, protection, offline; a thin pool or file system that is full or read-only |
    /// | `EINVAL`, `EOPNOTSUPP` | disk | `BLK_STS_INVAL`, `BLK_STS_NOTSUPP`: what it took before it does not take any more |
    /// | `ECANCELED`, `EFAULT`, `EBADF` | disk | of a ring that works these are mistakes of this program; a leg that gets them is not written to any more |
    ///
    /// The engine has tried it again for a while when the core is told (see `io::uring`).
    pub const fn is_of_host(self) -> bool {
        matches!(self.0, 4 | 11 | 12 | 16 | 105)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({})", self.0)
    }
}
