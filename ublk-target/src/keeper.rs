//! What is recorded of the device, and the thread's half that writes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use twinblk::core::{Errno, LegId, Record};
use twinblk::runtime::state_dir::{StateDir, StateError};
use twinblk::runtime::worker::Keep;
use twinblk::table::{LegIdentity, Settings, Superblock};

/// The state directory with what goes into its next record beside what the core decides.
pub struct Keeper {
    dir: StateDir,
    /// As written last, but for `settings`, which may be newer.
    superblock: Superblock,
    /// What the legs are known by. A leg is recorded when the core's record has it.
    identities: [Option<LegIdentity>; 2],
    writes: Arc<AtomicU64>,
}

impl Keeper {
    /// Go on from `superblock`. `writes` counts durable writes.
    pub fn new(dir: StateDir, superblock: Superblock, writes: Arc<AtomicU64>) -> Keeper {
        let identities = superblock.legs.clone();
        Keeper {
            dir,
            superblock,
            identities,
            writes,
        }
    }

    /// From the next record on, a leg is this disk.
    pub fn set_identity(&mut self, leg: LegId, identity: LegIdentity) {
        self.identities[leg.index()] = Some(identity);
    }

    /// What the next record says of the settings.
    pub fn set_settings(&mut self, settings: Settings) {
        self.superblock.settings = settings;
    }

    /// Make a record durable.
    ///
    /// # Errors
    /// It may not be durable.
    pub fn write(&mut self, record: &Record) -> Result<(), StateError> {
        self.superblock.record = *record;
        for leg in LegId::ALL {
            let at = leg.index();
            self.superblock.legs[at] = record.legs[at].and(self.identities[at].clone());
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.dir.write(&self.superblock)
    }

    /// Forget the device.
    ///
    /// # Errors
    /// The file system fails.
    pub fn remove(self) -> Result<(), StateError> {
        self.dir.remove()
    }
}

impl Keep for Keeper {
    fn keep(&mut self, record: &Record) -> Result<(), Errno> {
        self.write(record).map_err(|error| {
            log::error!("record {} is not written: {error}", record.number);
            match error {
                StateError::Io { source, .. } => Errno(source.raw_os_error().unwrap_or(libc::EIO)),
                _ => Errno::IO,
            }
        })
    }
}
