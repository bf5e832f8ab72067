//! Why a disk was not opened: what, why, what to do.

use super::usage::User;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A disk could not be opened, or something about it could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A safety check refused it; nothing was written. Exit code 3.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Something failed. Exit code 1.
    #[error("{path}: cannot {what}: {source}", path = path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error, with its errno.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn io<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io {
            what,
            path,
            source: source.into(),
        }
    }

    /// What to do next; empty when only the error itself can say.
    pub fn hint(&self) -> String {
        match self {
            Error::Refused(refusal) => refusal.hint(),
            Error::Io { .. } => String::new(),
        }
    }

    /// Whether the disk is refused only because somebody has claimed it, which may pass by waiting: an operation of a dead
    /// daemon keeps its claim until it ends.
    pub fn is_claimed(&self) -> bool {
        matches!(
            self,
            Error::Refused(Refusal {
                reason: Reason::Claimed(_),
                ..
            })
        )
    }

    /// Whether the disk is not there at all.
    pub fn is_missing(&self) -> bool {
        matches!(self, Error::Io { source, .. }
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM)))
    }
}

/// Which safety check refused a disk; nothing was written to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The path as given.
    pub path: PathBuf,
    /// The reason.
    pub reason: Reason,
}

/// Why a disk is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Neither a block device nor a regular file.
    NotADisk {
        /// What it is.
        is: &'static str,
    },
    /// It cannot be written.
    ReadOnly,
    /// A zoned disk takes writes only in order.
    Zoned {
        /// The kernel's word for the model.
        model: String,
    },
    /// It is used by somebody.
    Used(Vec<User>),
    /// Somebody holds it exclusively: another daemon, or an operation of a dead one that is still in flight. The only
    /// reason that can pass by waiting.
    Claimed(Vec<User>),
    /// It is a device of ours, or lies on one.
    Ours {
        /// Which.
        device: String,
    },
    /// It is, contains, or is contained in a disk that the device has already.
    SameDisk {
        /// That disk's path.
        other: String,
    },
    /// Too small.
    TooSmall {
        /// Its size in bytes, rounded down to its logical block size.
        size: u64,
        /// What is needed.
        needed: u64,
    },
    /// Its logical block size is larger than that of the device.
    LargerBlocks {
        /// Its logical block size.
        block: u32,
        /// The largest that fits.
        max: u32,
    },
    /// The file cannot be read and written directly.
    NotDirect,
    /// It is not blank.
    NotBlank {
        /// What was found.
        found: Vec<String>,
    },
    /// A path that must not lie on it does.
    Holds {
        /// The path: the state directory.
        path: PathBuf,
    },
    /// Its path is too long, or not UTF-8.
    PathNotRecordable,
    /// A descriptor was handed over that is not that of the disk named with it.
    OtherDescriptor {
        /// What does not fit.
        what: &'static str,
    },
}

impl Refusal {
    pub(super) fn new(path: &Path, reason: Reason) -> Refusal {
        Refusal {
            path: path.to_path_buf(),
            reason,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match &self.reason {
            Reason::NotADisk { .. } => "name a block device or a regular file".into(),
            Reason::ReadOnly => {
                "name a disk that can be written, or make it writable (`blockdev --setrw`, file permissions)".into()
            }
            Reason::Zoned { .. } => "name a conventional disk".into(),
            Reason::Used(users) => users.first().map(way_out).unwrap_or_default().into(),
            Reason::Claimed(users) => match users.first() {
                Some(User::Unknown) | None => {
                    "if a daemon has just died, an operation of it may still be in flight: try again; else find the holder with `lsof` and `lsblk`".into()
                }
                Some(user) => way_out(user).into(),
            },
            Reason::Ours { .. } => "name the disk itself, not a device that is served from it".into(),
            Reason::SameDisk { .. } => "a mirror needs two different disks: name another one".into(),
            Reason::TooSmall { needed, .. } => format!("name a disk of at least {needed} bytes"),
            Reason::LargerBlocks { block, .. } => format!(
                "name a disk with smaller logical blocks, or create the device anew with `--logical-block-size {block}`"
            ),
            Reason::NotDirect => "put the file on a file system with direct I/O and blocks of 512 to 4096 bytes, such as ext4 or xfs".into(),
            Reason::NotBlank { .. } => {
                "make sure that it is the right disk; `--overwrite` gives up what is on it".into()
            }
            Reason::Holds { .. } => "choose a state directory on another disk with `--state-dir`".into(),
            Reason::PathNotRecordable => "give it a shorter path, in UTF-8, for example by a link".into(),
            Reason::OtherDescriptor { .. } => "send the descriptor and the identity that `Disk::open` returned".into(),
        }
    }
}

fn way_out(user: &User) -> &'static str {
    match user {
        User::Mount { .. } => "unmount it first",
        User::Swap { .. } => "turn it off first (`swapoff`)",
        User::Holder { .. } => {
            "take that device away first (`dmsetup remove`, `mdadm --stop`, `losetup --detach`), or serve that device instead"
        }
        User::Process { .. } => "end that process, or make it close the disk",
        User::Unknown => "find the holder with `lsof` and `lsblk`",
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is refused: ", self.path.display())?;
        match &self.reason {
            Reason::NotADisk { is } => write!(f, "it is {is}, neither a block device nor a regular file"),
            Reason::ReadOnly => f.write_str("it is read-only, or cannot be opened for writing by this user"),
            Reason::Zoned { model } => write!(f, "it is a zoned disk ({model}), which takes writes only in order"),
            Reason::Used(users) => write!(f, "it is in use: {}", listed(users)),
            Reason::Claimed(users) if users.is_empty() => f.write_str("it is claimed by somebody else"),
            Reason::Claimed(users) => write!(f, "it is claimed by somebody else: {}", listed(users)),
            Reason::Ours { device } => write!(f, "it is, or lies on, the twinblk device {device}"),
            Reason::SameDisk { other } => {
                write!(f, "it has bytes in common with {other}, which is a leg of the device")
            }
            Reason::TooSmall { size, needed } => {
                write!(
                    f,
                    "it has {size} bytes (in whole logical blocks), and {needed} are needed"
                )
            }
            Reason::LargerBlocks { block, max } => {
                write!(
                    f,
                    "its logical block size is {block}, and the device's is {max}: its requests would not fit"
                )
            }
            Reason::NotDirect => f.write_str("it cannot be read and written past the page cache (O_DIRECT)"),
            Reason::NotBlank { found } => write!(f, "it is not blank: {}", found.join("; ")),
            Reason::Holds { path } => {
                write!(
                    f,
                    "{} lies on it, and the daemon would wait for itself there",
                    path.display()
                )
            }
            Reason::PathNotRecordable => {
                f.write_str("its path has more than 510 bytes or is not UTF-8, and cannot be recorded")
            }
            Reason::OtherDescriptor { what } => {
                write!(
                    f,
                    "the descriptor that was handed over is not that of this disk, open and claimed: {what}"
                )
            }
        }
    }
}

fn listed<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
