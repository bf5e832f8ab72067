//! Why the driver did not do what it was told.

use libublk::UblkError;
use std::io;
use std::time::Duration;

/// A control command that failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no driver.
    #[error("the ublk driver is not there: /dev/ublk-control is missing")]
    NoDriver,
    /// The driver answered with an error.
    #[error("{what}: {source}")]
    Refused {
        /// What it was to do.
        what: &'static str,
        /// Its errno.
        source: io::Error,
    },
    /// The driver did not answer in time.
    #[error("{what}: the driver has not answered for {} s", waited.as_secs())]
    TimedOut {
        /// What it was to do.
        what: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// The kernel does not have what is needed.
    #[error("this kernel's ublk driver lacks {missing}")]
    Lacks {
        /// What.
        missing: String,
    },
}

impl ControlError {
    /// The driver's errno, if it answered with one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            ControlError::Refused { source, .. } => source.raw_os_error(),
            ControlError::NoDriver | ControlError::TimedOut { .. } | ControlError::Lacks { .. } => None,
        }
    }

    /// Whether the driver did not answer in time.
    pub fn is_timeout(&self) -> bool {
        matches!(self, ControlError::TimedOut { .. })
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ControlError::NoDriver => Some("load it (modprobe ublk_drv); Linux 6.12 or newer has it"),
            ControlError::TimedOut { .. } => Some(
                "look for an oops in the kernel's log: adding a device oopses on Linux 6.18.4, 6.18.5 and some \
                 vendor kernels of 6.17; a newer kernel mends it",
            ),
            ControlError::Lacks { .. } => Some("run Linux 6.12 or newer"),
            ControlError::Refused { source, .. } => match source.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => Some("run as root"),
                Some(libc::EEXIST) => Some("another device has this number: choose another one, or remove that device"),
                Some(libc::ENOSPC) => Some("too many ublk devices: raise the driver's parameter ublks_max"),
                _ => None,
            },
        }
    }

    pub(super) fn refused(what: &'static str, errno: i32) -> ControlError {
        ControlError::Refused {
            what,
            source: io::Error::from_raw_os_error(errno.abs()),
        }
    }

    pub(super) fn from_libublk(what: &'static str, error: UblkError) -> ControlError {
        let source = match error {
            UblkError::UringIOError(errno) | UblkError::OtherError(errno) => io::Error::from_raw_os_error(errno.abs()),
            UblkError::IOError(source) => source,
            UblkError::InvalidVal => io::Error::from_raw_os_error(libc::EINVAL),
            UblkError::UringTimeout => io::Error::from_raw_os_error(libc::ETIMEDOUT),
            error @ (UblkError::UringIoQueued | UblkError::JsonError(_) | UblkError::QueueIsDown) => {
                io::Error::other(error)
            }
        };
        ControlError::Refused { what, source }
    }
}
