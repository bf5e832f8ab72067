//! The signature tables of both legs, as the thread that keeps them has them.
//!
//! *What must hold:* after [`forget`](Signatures::forget) has returned without error, no start finds an entry that was forgotten, or
//! an older one where something was noted since. *How:* a table is synced whole, notes included. One that cannot be is lost (see
//! [`SignatureTable`]), and a new and empty one takes its place, durably, before anything goes on: that has forgotten
//! everything. One that should be emptied and could not be is tried again each time, and until then nothing succeeds.

use super::signature_table::SignatureTable;
use super::signer::Signatures;
use super::state_dir::StateError;
use crate::core::{Bits, Errno, LegId, Note, Signature, Source};
use crate::table::signatures::Entry;
use crate::table::{Lost, Owner};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A table that said nothing.
#[derive(Debug)]
pub struct LostTable {
    /// Why.
    pub why: Lost,
    /// Whether there is a new one in its place. If not, the table is lost ([`SignatureTable::is_lost`]).
    pub renewed: Result<(), StateError>,
}

/// See the module.
#[derive(Debug)]
pub struct SignatureTables {
    owner: Owner,
    dir: File,
    /// For messages: it may mean nothing in the daemon's own root.
    path: PathBuf,
    /// By [`LegId::index`].
    legs: [Kept; 2],
}

/// One of them.
#[derive(Debug)]
struct Kept {
    table: SignatureTable,
    /// Something was noted or forgotten since it was synced.
    is_changed: bool,
    /// Whatever its file says is not to be believed.
    is_void: bool,
}

impl SignatureTables {
    /// Open the tables in `dir`; one that says nothing is made anew, and why is told.
    pub(super) fn open(dir: File, path: &Path, owner: Owner) -> (SignatureTables, [Result<(), LostTable>; 2]) {
        let mut found = [Ok(()), Ok(())];
        let legs = LegId::ALL.map(|leg| {
            let (table, is_void) = match SignatureTable::open(&dir, owner, leg) {
                Ok(table) => (table, false),
                Err(why) => {
                    let (table, renewed) = match SignatureTable::create(&dir, path, owner, leg) {
                        Ok(table) => (table, Ok(())),
                        Err(error) => (SignatureTable::lost(owner, leg), Err(error)),
                    };
                    let is_void = renewed.is_err();
                    found[leg.index()] = Err(LostTable { why, renewed });
                    (table, is_void)
                }
            };
            Kept {
                table,
                is_changed: false,
                is_void,
            }
        });
        let tables = SignatureTables {
            owner,
            dir,
            path: path.to_path_buf(),
            legs,
        };
        (tables, found)
    }

    /// What is known of a leg.
    pub fn table(&self, leg: LegId) -> &SignatureTable {
        &self.legs[leg.index()].table
    }

    /// Forget everything that is known of a leg, durably, in a new file: for a table that is lost, or for another disk.
    ///
    /// # Errors
    /// The file system fails. Nothing is kept of the leg then, and what the file says is void: [`Signatures::forget`] fails until a
    /// new one could be made.
    pub fn renew(&mut self, leg: LegId) -> Result<(), StateError> {
        let kept = &mut self.legs[leg.index()];
        kept.is_void = true;
        kept.table = SignatureTable::lost(self.owner, leg);
        kept.table = SignatureTable::create(&self.dir, &self.path, self.owner, leg)?;
        kept.is_changed = false;
        kept.is_void = false;
        Ok(())
    }
}

impl Signatures for SignatureTables {
    fn note(&mut self, note: &Note) {
        for (kept, source) in self.legs.iter_mut().zip(note.sources) {
            if let Some(source) = source {
                let entry = Entry {
                    value: note.signature.0,
                    generation: note.generation,
                    source,
                };
                kept.table.write(note.extent, &entry);
                kept.is_changed = true;
            }
        }
    }

    fn forget(&mut self, leg: LegId, extents: &Bits) -> Result<(), Errno> {
        let kept = &mut self.legs[leg.index()];
        for extent in extents.iter() {
            kept.table.forget(extent..extent + 1);
            kept.is_changed = true;
        }
        if !kept.is_changed && !kept.is_void {
            return Ok(());
        }
        let synced = kept.table.sync(0..self.owner.geometry.extents());
        match synced {
            Ok(()) if !kept.is_void => {
                kept.is_changed = false;
                Ok(())
            }
            Ok(()) => self.empty(leg),
            Err(error) => {
                log::warn!("what is known of leg {leg} by signatures is lost: {error}");
                self.empty(leg)
            }
        }
    }

    fn empty(&mut self, leg: LegId) -> Result<(), Errno> {
        self.renew(leg).map_err(|error| {
            log::error!("{error}");
            error.errno()
        })
    }

    fn look_up(&mut self, leg: LegId, extent: u64) -> Option<(Signature, Source)> {
        let entry = self.table(leg).read(extent)?;
        Some((Signature(entry.value), entry.source))
    }

    fn recall(&mut self, leg: LegId, extents: &mut Bits, found: &mut dyn FnMut(u64, Signature)) {
        self.legs[leg.index()].table.recall(extents, found);
    }

    fn unlock(&mut self) {
        for kept in &self.legs {
            if let Err(error) = kept.table.unlock() {
                log::warn!("a signature table stays in memory where it was used: {error}");
            }
        }
    }

    fn compare(&mut self, primary: LegId, extents: [Bits; 2]) -> [Bits; 2] {
        let known = |leg: LegId, extent| {
            let is_believed = extents[leg.index()].contains(extent);
            let entry = is_believed.then(|| self.table(leg).read(extent)).flatten();
            entry.map(|entry| entry.value)
        };
        let len = extents[primary.index()].len();
        let [mut equal, mut lone] = [Bits::none(len), Bits::none(len)];
        // One table after the other, as far as one goes at a time.
        let mut values = Vec::new();
        for window in windows(len) {
            values.clear();
            values.extend(window.clone().map(|extent| known(primary, extent)));
            for (extent, value) in window.clone().zip(&values).filter(|(_, value)| value.is_some()) {
                match known(primary.other(), extent) {
                    None => lone.insert(extent),
                    other if other == *value => equal.insert(extent),
                    Some(_) => {}
                }
            }
            self.legs.iter().for_each(|kept| kept.table.let_go(window.clone()));
        }
        [equal, lone]
    }
}

/// All extents, as many at a time as one goes through at once.
pub(super) fn windows(extents: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    /// Entries read at a time by who goes through all of them: 4 MiB.
    const WINDOW: u64 = 64 << 10;
    (0..extents)
        .step_by(WINDOW as usize)
        .map(move |start| start..extents.min(start + WINDOW))
}
