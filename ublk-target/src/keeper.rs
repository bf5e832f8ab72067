//! What is recorded of the device, and the thread's half that writes it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use twinblk::core::{Bits, Errno, LegId, Record, Tracked};
use twinblk::runtime::state_dir::{StateDir, StateError};
use twinblk::runtime::tracking::{Loaded, Tracking};
use twinblk::runtime::worker::Keep;
use twinblk::table::dirty::WORDS;
use twinblk::table::{LegIdentity, Settings, Superblock};

/// The state directory with what goes into its next record beside what the core decides.
pub struct Keeper {
    dir: StateDir,
    /// As written last, but for `settings`, which may be newer.
    superblock: Superblock,
    /// What the legs are known by. A leg is recorded when the core's record has it.
    identities: [Option<LegIdentity>; 2],
    tracking: Tracking,
    /// What the dirty map's file says, but for `unsure`.
    saved: Bits,
    /// Blocks of that file whose last write failed.
    unsure: BTreeSet<u64>,
    writes: Arc<AtomicU64>,
}

impl Keeper {
    /// Go on from `superblock`. `writes` counts durable writes. Returns too what is known of where the legs may differ.
    ///
    /// # Errors
    /// The other files of the state directory cannot be opened.
    pub fn new(
        dir: StateDir,
        superblock: Superblock,
        writes: Arc<AtomicU64>,
    ) -> Result<(Keeper, Option<Tracked>), StateError> {
        let (tracking, loaded) = dir.tracking(&superblock)?;
        let identities = superblock.legs.clone();
        let known = known(&superblock.record, loaded);
        let saved = match &known {
            Some(tracked) => tracked.dirty.clone(),
            None => Bits::none(superblock.geometry.grains()),
        };
        let keeper = Keeper {
            dir,
            superblock,
            identities,
            tracking,
            saved,
            unsure: BTreeSet::new(),
            writes,
        };
        Ok((keeper, known))
    }

    /// Nothing is known of where the legs may differ, and the record says so, durably: from here on it can be written anew.
    /// Where it cannot, everything goes on, and is compared after a crash.
    pub fn forget_tracking(&mut self) {
        let regions = Bits::none(self.superblock.geometry.regions());
        self.saved.clear();
        if let Err(error) = self.tracking.begin_anew(&regions, &self.saved) {
            log::warn!("after a crash everything is compared: {error}");
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

/// What the files say, if the record says that they mean something.
fn known(record: &Record, loaded: Loaded) -> Option<Tracked> {
    if !record.tracked {
        return None;
    }
    let lost = |what: &str, why: &dyn std::fmt::Display| {
        log::warn!("everything is compared: {what} of the state directory says nothing: {why}");
    };
    let mut active = loaded.active.inspect_err(|why| lost("`regions`", why)).ok()?;
    let dirty = loaded.dirty.inspect_err(|why| lost("`dirty`", why)).ok()?;
    if dirty.unverified > 0 {
        log::warn!(
            "{} blocks of `dirty` are damaged: what they are about is compared",
            dirty.unverified
        );
    }
    if record.clean {
        active.clear();
    }
    Some(Tracked {
        active,
        dirty: dirty.bits,
    })
}

fn told(what: &str, error: StateError) -> Errno {
    log::error!("{what}: {error}");
    error.errno()
}

impl Keep for Keeper {
    fn keep(&mut self, record: &Record) -> Result<(), Errno> {
        self.write(record)
            .map_err(|error| told(&format!("record {} is not written", record.number), error))
    }

    fn mark(&mut self, active: &Bits) -> Result<(), Errno> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let marked = self.tracking.mark(active);
        marked.map_err(|error| told("active regions are not marked", error))
    }

    fn save(&mut self, dirty: &Bits) -> Result<(), Errno> {
        let pairs = dirty.words().chunks(WORDS).zip(self.saved.words().chunks(WORDS));
        let blocks: Vec<(u64, &[u64])> = (0..)
            .zip(pairs)
            .filter(|(index, (new, old))| new != old || self.unsure.contains(index))
            .map(|(index, (new, _))| (index, new))
            .collect();
        if blocks.is_empty() {
            return Ok(());
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        match self.tracking.save_dirty(&blocks) {
            Ok(()) => {
                self.saved.assign(dirty.words());
                self.unsure.clear();
                Ok(())
            }
            Err(error) => {
                self.unsure.extend(blocks.iter().map(|(index, _)| index));
                Err(told("the dirty map is not saved", error))
            }
        }
    }
}
