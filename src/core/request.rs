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
