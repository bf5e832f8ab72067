//! Which device a table has to be of, and why one is not to be believed.

use super::checked::Flaw;
use super::superblock::Superblock;
use crate::core::{Errno, Geometry};

/// The device that a table belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its uuid.
    pub uuid: [u8; 16],
    /// Its size and units.
    pub geometry: Geometry,
}

impl From<&Superblock> for Owner {
    fn from(superblock: &Superblock) -> Owner {
        Owner {
            uuid: superblock.uuid,
            geometry: superblock.geometry,
        }
    }
}

/// What a file should have said cannot be known. For marks and dirty bits that means that everything has to be
/// compared; for signatures, that none is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// There is no such file: an older version made the device, or somebody removed it.
    #[error("there is no such file")]
    Missing,
    /// The system cannot read it.
    #[error("it cannot be read: {0}")]
    Unreadable(Errno),
    /// It has another length than it was made with.
    #[error("it has {found} bytes instead of {expected}")]
    Length {
        /// What it has.
        found: u64,
        /// What it was made with.
        expected: u64,
    },
    /// Its bytes are not what was written.
    #[error("{0}")]
    Flawed(#[from] Flaw),
    /// It is of another device.
    #[error("it is of another device")]
    OtherDevice,
    /// It is of this device, when that had another size, or of another leg.
    #[error("it was made for another {0}")]
    Other(&'static str),
    /// What it says cannot be made durable again, so a power cut may take it away.
    #[error("it cannot be written: {0}")]
    Unwritable(Errno),
    /// Marks could not be written, so it was given up on purpose.
    #[error("it was given up, because marks could not be written")]
    Poisoned,
}
