//! What is recorded of the device, and the thread's half that writes it.

use crate::tables::{StateTables, signatures, told};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};
use twinblk::core::{Errno, Health, LegId, Record, Tracked};
use twinblk::io::disk::{footprint, identity};
use twinblk::runtime::signature_tables::SignatureTables;
use twinblk::runtime::state_dir::{StateDir, StateError};
use twinblk::runtime::worker::Keep;
use twinblk::table::{Footprint, LegIdentity, Settings, Sighting, Superblock};

/// What the last record says of the legs that the core does not know, by [`LegId::index`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Noted {
    /// What they were like when they were let go.
    pub footprints: [Option<Footprint>; 2],
    /// Since when they have not been in sync, in seconds since 1970.
    pub since: [Option<u64>; 2],
}

/// The same, as it changes with the records.
pub type Notes = Arc<Mutex<Noted>>;

/// The state directory with what goes into its next record beside what the core decides.
pub struct Keeper {
    dir: StateDir,
    /// As written last, but for `settings`, which may be newer.
    superblock: Superblock,
    /// What the legs are known by. A leg is recorded when the core's record has it.
    identities: [Option<LegIdentity>; 2],
    /// Where they were when they were claimed last.
    sightings: [Option<Sighting>; 2],
    /// Their disks, as long as somebody else holds them.
    disks: [Weak<OwnedFd>; 2],
    notes: Notes,
    writes: Arc<AtomicU64>,
}

impl Keeper {
    /// Go on from `superblock`. `writes` counts durable writes.
    pub fn new(dir: StateDir, superblock: Superblock, writes: Arc<AtomicU64>) -> Keeper {
        let (identities, sightings) = (superblock.legs.clone(), superblock.sightings);
        let notes = Arc::new(Mutex::new(Noted {
            footprints: superblock.footprints,
            since: superblock.since,
        }));
        Keeper {
            dir,
            superblock,
            identities,
            sightings,
            disks: Default::default(),
            notes,
            writes,
        }
    }

    /// The other files of the state directory, and what they say.
    ///
    /// # Errors
    /// They cannot be opened.
    pub fn tables(&self) -> Result<(StateTables, Option<Tracked>), StateError> {
        StateTables::open(&self.dir, &self.superblock, Arc::clone(&self.writes))
    }

    /// The signature tables, with nothing in those that may not be believed.
    ///
    /// # Errors
    /// They cannot be opened.
    pub fn signatures(&self, believed: [bool; 2]) -> Result<SignatureTables, StateError> {
        signatures(&self.dir, &self.superblock, believed)
    }

    /// From the next record on, a leg is this disk. It is not kept open.
    pub fn set_disk(&mut self, leg: LegId, identity: LegIdentity, disk: &Arc<OwnedFd>) {
        let before = self.identities[leg.index()].as_ref();
        if before.is_none_or(|before| identity::mismatch(before, &identity).is_some()) {
            self.superblock.since[leg.index()] = None;
        }
        self.sightings[leg.index()] = footprint::sighting(&identity);
        self.identities[leg.index()] = Some(identity);
        self.disks[leg.index()] = Arc::downgrade(disk);
    }

    /// What the last record says of the legs; it changes with the records.
    pub fn notes(&self) -> Notes {
        Arc::clone(&self.notes)
    }

    /// What the record says of a leg that is let go with it: nothing is in flight on it then, or there is no proof later.
    fn footprint(&self, leg: LegId, record: &Record) -> Option<Footprint> {
        let at = leg.index();
        let is_followed = |record: &Record| record.legs[at].is_some_and(|leg| leg.attached);
        match (is_followed(record), is_followed(&self.superblock.record)) {
            (true, _) if !record.clean => None,
            (false, false) => self.superblock.footprints[at],
            (true, _) | (false, true) => {
                // Of a disk that is not ours now, nobody knows what it was like when it was.
                let disk = self.disks[at].upgrade()?;
                let identity = self.identities[at].as_ref()?;
                footprint::of(identity, disk.as_fd())
            }
        }
    }

    /// Since when a leg has not been in sync, as the record says it; of a disk that has never been, nobody knows.
    fn since(&self, leg: LegId, record: &Record) -> Option<u64> {
        let at = leg.index();
        let is_in_sync = |record: &Record| record.legs[at].is_some_and(|leg| leg.health == Health::InSync);
        match (is_in_sync(&self.superblock.record), is_in_sync(record)) {
            (_, true) => None,
            (true, false) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .ok()
                .map(|now| now.as_secs()),
            (false, false) => self.superblock.since[at],
        }
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
        let footprints = LegId::ALL.map(|leg| self.footprint(leg, record));
        self.superblock.since = LegId::ALL.map(|leg| self.since(leg, record));
        self.superblock.footprints = footprints;
        *self.notes.lock().expect("nobody panics while holding them") = Noted {
            footprints,
            since: self.superblock.since,
        };
        self.superblock.record = *record;
        for leg in LegId::ALL {
            let at = leg.index();
            self.superblock.legs[at] = record.legs[at].and(self.identities[at].clone());
            self.superblock.sightings[at] = record.legs[at].and(self.sightings[at]);
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
        self.write(record)
            .map_err(|error| told(&format!("record {} is not written", record.number), error))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::path::Path;
    use twinblk::core::{Geometry, Protocol};
    use twinblk::io::disk::{Disk, Wanted};
    use twinblk::table::Picked;

    /// A disk in `root`, and a device both of whose legs are on it.
    pub(crate) fn device(root: &Path) -> (Disk, Superblock) {
        let path = root.join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let disk = Disk::open(&path, &Wanted::ANY).unwrap();
        let mut record = Record::first(Protocol::Flush);
        record.legs[1] = record.legs[0];
        let superblock = Superblock {
            uuid: [1; 16],
            name: "vm1".parse().unwrap(),
            geometry: Geometry::new(1 << 20, 512),
            max_io: 128 << 10,
            depth: 8,
            ublk_id: 0,
            record,
            settings: Settings::default(),
            legs: [Some(disk.identity.clone()), Some(disk.identity.clone())],
            footprints: [None; 2],
            since: [None; 2],
            sightings: [None; 2],
        };
        (disk, superblock)
    }

    #[test]
    fn since_when_a_leg_is_not_in_sync_is_recorded_until_it_is_again() {
        let root = std::env::temp_dir().join(format!("twinblk-keeper-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let (disk, superblock) = device(&root);
        let identity = disk.identity.clone();
        let mut record = superblock.record;
        let dir = StateDir::create(&root, &superblock).unwrap();
        let mut keeper = Keeper::new(dir, superblock.clone(), Arc::default());
        let mut since = |keeper: &mut Keeper, health| {
            record.number += 1;
            record.legs[1].as_mut().unwrap().health = health;
            keeper.write(&record).unwrap();
            let Picked { superblock, .. } = StateDir::peek(&root, &superblock.name).unwrap();
            assert_eq!(superblock.since, keeper.notes().lock().unwrap().since);
            assert_eq!(superblock.since[0], None);
            superblock.since[1]
        };
        assert_eq!(since(&mut keeper, Health::InSync), None);
        let behind = since(&mut keeper, Health::Behind);
        assert!(behind.is_some());
        assert_eq!(since(&mut keeper, Health::Syncing), behind);
        // The same disk, and then another, of which nobody knows.
        keeper.set_disk(LegId::B, identity.clone(), &disk.descriptor);
        assert_eq!(since(&mut keeper, Health::Syncing), behind);
        let other = LegIdentity {
            inode: identity.inode + 1,
            ..identity
        };
        keeper.set_disk(LegId::B, other, &disk.descriptor);
        assert_eq!(since(&mut keeper, Health::Syncing), None);
        assert_eq!(since(&mut keeper, Health::InSync), None);
        fs::remove_dir_all(&root).unwrap();
    }
}
