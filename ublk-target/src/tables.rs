//! The files of the state directory beside the superblock: what they say at the start, and the thread's half that writes
//! them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use twinblk::core::{Bits, Errno, LegId, Record, Suspects, Tracked};
use twinblk::runtime::signature_tables::SignatureTables;
use twinblk::runtime::state_dir::{StateDir, StateError};
use twinblk::runtime::tables::Tables;
use twinblk::runtime::tracking::{Loaded, Tracking};
use twinblk::table::Superblock;
use twinblk::table::dirty::WORDS;

/// See the module.
pub struct StateTables {
    tracking: Tracking,
    regions: u64,
    /// What the dirty map's file says, but for `unsure`.
    saved: Bits,
    /// Blocks of that file whose last write failed.
    unsure: BTreeSet<u64>,
    writes: Arc<AtomicU64>,
}

impl StateTables {
    /// Open the files of a device, and read where its legs may differ. `writes` counts durable writes.
    ///
    /// # Errors
    /// They cannot be opened.
    pub fn open(
        dir: &StateDir,
        superblock: &Superblock,
        writes: Arc<AtomicU64>,
    ) -> Result<(StateTables, Option<Tracked>), StateError> {
        let (mut tracking, loaded) = dir.tracking(superblock)?;
        let mut known = known(&superblock.record, loaded);
        if let Some(tracked) = known.as_mut().filter(|_| superblock.record.clean) {
            leave_all(&mut tracking, &mut tracked.active, &writes);
        }
        let saved = match &known {
            Some(tracked) => tracked.dirty.clone(),
            None => Bits::none(superblock.geometry.grains()),
        };
        let tables = StateTables {
            tracking,
            regions: superblock.geometry.regions(),
            saved,
            unsure: BTreeSet::new(),
            writes,
        };
        Ok((tables, known))
    }

    /// The suspect places, where the record says that there are some.
    pub fn suspects(&self, superblock: &Superblock) -> Suspects {
        if !superblock.record.suspect {
            return Suspects::none();
        }
        let everything = |why| {
            log::warn!("all of the device is suspect ({why})");
            Suspects::of([superblock.geometry.whole()])
        };
        match self.tracking.suspects() {
            Ok(suspects) if suspects.is_empty() => everything("the list is empty".into()),
            Ok(suspects) => suspects,
            Err(lost) => everything(lost.to_string()),
        }
    }

    /// All of the device is suspect from the next record on that says that there are suspect places. That needs no space.
    ///
    /// # Errors
    /// A list that is there cannot be removed.
    pub fn suspect_all(&mut self) -> Result<(), StateError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.tracking.remove_suspects()
    }

    /// Nothing is known of where the legs may differ, and the record says so, durably: from here on it can be written anew.
    /// Where it cannot, everything goes on, and is compared after a crash.
    pub fn begin_anew(&mut self) {
        self.saved.clear();
        if let Err(error) = self.tracking.begin_anew(&Bits::none(self.regions), &self.saved) {
            log::warn!("after a crash everything is compared: {error}");
        }
    }
}

/// Open the signature tables of a device. Those that may not be believed (`believed`, by leg) are emptied, so that whatever is
/// found in one holds.
///
/// *Why one that is believed holds:* what no longer did was forgotten before the record said clean, and the disk is proven to be as it
/// was let go. After any other end nobody knows what was written last; and between a daemon's death and the next one's claim
/// anybody may have written to the disk.
///
/// # Errors
/// They cannot be opened.
pub fn signatures(dir: &StateDir, superblock: &Superblock, believed: [bool; 2]) -> Result<SignatureTables, StateError> {
    let (mut tables, found) = dir.signatures(superblock)?;
    for (leg, found) in LegId::ALL.into_iter().zip(found) {
        match found {
            Err(lost) => {
                log::warn!("the signatures of leg {leg} say nothing: {}", lost.why);
                if let Err(error) = lost.renewed {
                    log::warn!("none are kept: {error}");
                }
            }
            Ok(()) if believed[leg.index()] => {}
            // It is tried again before anything is recorded as clean.
            Ok(()) => {
                let _ = tables
                    .renew(leg)
                    .inspect_err(|error| log::warn!("no signatures are kept: {error}"));
            }
        }
    }
    Ok(tables)
}

/// What the files say, if the record says that they mean something. Of one leg there is nothing to track.
fn known(record: &Record, loaded: Loaded) -> Option<Tracked> {
    if !record.tracked || record.legs.iter().any(Option::is_none) {
        return None;
    }
    let lost = |what: &str, why: &dyn std::fmt::Display| {
        log::warn!("everything is compared: {what} of the state directory says nothing: {why}");
    };
    let active = loaded.active.inspect_err(|why| lost("`regions`", why)).ok()?;
    let dirty = loaded.dirty.inspect_err(|why| lost("`dirty`", why)).ok()?;
    if dirty.unverified > 0 {
        log::warn!(
            "{} blocks of `dirty` are damaged: what they are about is compared",
            dirty.unverified
        );
    }
    Some(Tracked {
        active,
        dirty: dirty.bits,
    })
}

/// After a clean end the legs may differ only where the map says so. Marks that it left must go before the record ceases to say
/// clean: a crash would have them compared, although nothing was written there.
fn leave_all(tracking: &mut Tracking, active: &mut Bits, writes: &AtomicU64) {
    if active.is_empty() {
        return;
    }
    active.clear();
    writes.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = tracking.mark(active) {
        log::warn!("after a crash more is compared than need be: {error}");
    }
}

/// Tell an error of the state directory.
pub fn told(what: &str, error: StateError) -> Errno {
    log::error!("{what}: {error}");
    error.errno()
}

impl Tables for StateTables {
    fn mark(&mut self, active: &Bits) -> Result<(), Errno> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let marked = self.tracking.mark(active);
        marked.map_err(|error| told("active regions are not marked", error))
    }

    fn suspect(&mut self, suspects: &Suspects) -> Result<(), Errno> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let written = self.tracking.suspect(suspects);
        written.map_err(|error| told("suspect places are not recorded", error))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::tests::device;
    use std::fs;

    #[test]
    fn marks_that_a_clean_end_left_are_gone_before_the_next_crash() {
        let root = std::env::temp_dir().join(format!("twinblk-tables-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let (_, mut superblock) = device(&root);
        superblock.record.tracked = true;
        let dir = StateDir::create(&root, &superblock).unwrap();
        let writes = Arc::new(AtomicU64::new(0));
        let regions = superblock.geometry.regions();
        let mut active = |clean, marked: Option<&Bits>| {
            superblock.record.clean = clean;
            let (mut tables, tracked) = StateTables::open(&dir, &superblock, Arc::clone(&writes)).unwrap();
            if let Some(marked) = marked {
                tables.mark(marked).unwrap();
            }
            tracked.unwrap().active.count()
        };
        active(false, Some(&Bits::all(regions)));
        assert_eq!(active(false, None), regions, "a crash has them compared");
        assert_eq!(active(true, None), 0);
        assert_eq!(
            active(false, None),
            0,
            "so does one after a clean end, and nothing was written"
        );
        // There is nothing more to leave.
        let before = writes.load(Ordering::Relaxed);
        active(true, None);
        assert_eq!(writes.load(Ordering::Relaxed), before);
        fs::remove_dir_all(&root).unwrap();
    }
}
