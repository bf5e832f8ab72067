//! The signature table of a leg, mapped into memory: entries are read and written by any thread but the shard's, whose
//! memory is locked and never waits for a disk.
//!
//! # What may be believed
//! An entry that is read is whole, and of this place, leg and device; it may be one that a cut brought back. So it
//! counts only while its region is not active, and a region stays active until every entry in it that no longer holds
//! has been forgotten **and** [`SignatureTable::sync`] has returned without error. Then it does not matter when the
//! kernel writes a page.
//!
//! A table that is *lost* (see [`crate::io::mapping`]) knows nothing, keeps nothing and never syncs: so no mark is
//! taken from a region any more, and what the file may still say is believed by nobody, until the table is made anew
//! ([`super::signature_tables::SignatureTables::renew`]).
//!
//! Not handled: which of two threads that write one entry at once comes first. A mixture of the two is no entry.

use super::medium::{BLOCK, Medium};
use super::region_file::errno;
use super::signature_tables::windows;
use super::state_dir::{StateError, error};
use crate::core::{Bits, LegId, Signature};
use crate::io::Mapping;
use crate::io::disk::claim::magic_path;
use crate::table::checked::Unverified;
use crate::table::signatures::{BYTES, ENTRY, Entry, Seal, check_header, encode_header, entry_at, file_bytes};
use crate::table::{Lost, Owner};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const _: () = assert!(BYTES == BLOCK, "the header is one block");

const fn file_name(leg: LegId) -> &'static str {
    match leg {
        LegId::A => "signatures-a",
        LegId::B => "signatures-b",
    }
}

/// What is known of the extents of a leg.
#[derive(Debug)]
pub struct SignatureTable {
    owner: Owner,
    seal: Seal,
    /// `None`: the file could not be had at all.
    mapping: Option<Mapping>,
}

impl SignatureTable {
    /// The table of a leg in the directory `dir`.
    pub(super) fn open(dir: &File, owner: Owner, leg: LegId) -> Result<SignatureTable, Lost> {
        let path = magic_path(dir.as_fd()).join(file_name(leg));
        let unreadable = |error: io::Error| Lost::Unreadable(errno(&error));
        let file = match File::options().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Lost::Missing),
            Err(error) => return Err(unreadable(error)),
        };
        let expected = file_bytes(&owner.geometry);
        let found = file.metadata().map_err(unreadable)?.len();
        if found != expected {
            return Err(Lost::Length { found, expected });
        }
        let header = file.read(0).map_err(unreadable)?;
        check_header(Unverified::new(&header), &owner, leg)?;
        let mapping = Mapping::new(file, expected).map_err(unreadable)?;
        Ok(SignatureTable::of(owner, leg, Some(mapping)))
    }

    /// A table that knows nothing, in a new file that takes the place of the leg's old one in `dir`, durably. `shown`
    /// is where that is, for messages.
    ///
    /// No entry of the old file may come back after this: the new one is whole before it gets the name, and the name is
    /// durable before anything relies on it.
    pub(super) fn create(dir: &File, shown: &Path, owner: Owner, leg: LegId) -> Result<SignatureTable, StateError> {
        let shown = shown.join(file_name(leg));
        let path = magic_path(dir.as_fd()).join(file_name(leg));
        let new = path.with_extension("new");
        let made = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new);
        let file = made.map_err(error("make", &shown))?;
        let len = file_bytes(&owner.geometry);
        file.set_len(len)
            .and_then(|()| file.write_all_at(&encode_header(&owner, leg), 0))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| dir.sync_all())
            .map_err(error("write", &shown))?;
        let mapping = Mapping::new(file, len).map_err(error("map", &shown))?;
        Ok(SignatureTable::of(owner, leg, Some(mapping)))
    }

    /// A table that there is no file for: it knows nothing, keeps nothing and never syncs.
    pub(super) fn lost(owner: Owner, leg: LegId) -> SignatureTable {
        SignatureTable::of(owner, leg, None)
    }

    fn of(owner: Owner, leg: LegId, mapping: Option<Mapping>) -> SignatureTable {
        SignatureTable {
            owner,
            seal: Seal::new(&owner.uuid, leg),
            mapping,
        }
    }

    /// How many extents the device has.
    pub fn extents(&self) -> u64 {
        self.owner.geometry.extents()
    }

    /// Whether the table knows nothing and keeps nothing any more. It stays so.
    pub fn is_lost(&self) -> bool {
        self.mapping.as_ref().is_none_or(Mapping::is_lost)
    }

    /// What is known of an extent.
    ///
    /// # Panics
    /// If there is no such extent, as everywhere here.
    pub fn read(&self, extent: u64) -> Option<Entry> {
        self.check(&(extent..extent + 1));
        let mut words = [0; ENTRY / 8];
        self.mapping.as_ref()?.read(entry_at(extent), &mut words);
        let mut bytes = [0; ENTRY];
        for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_ne_bytes();
        }
        self.seal.decode(extent, &bytes)
    }

    /// Keep what is known of an extent.
    pub fn write(&self, extent: u64, entry: &Entry) {
        self.check(&(extent..extent + 1));
        let bytes = self.seal.encode(extent, entry);
        let mut words = [0; ENTRY / 8];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        if let Some(mapping) = &self.mapping {
            mapping.write(entry_at(extent), &words);
        }
    }

    /// Nothing is known of these extents from now on; durably so only after a [`SignatureTable::sync`] of them.
    pub fn forget(&self, extents: Range<u64>) {
        self.check(&extents);
        if let Some(mapping) = &self.mapping {
            // Also where nothing is known: what memory says may not be what is on disk.
            for extent in extents {
                mapping.write(entry_at(extent), &[0; ENTRY / 8]);
            }
        }
    }

    /// Make durable what was written and forgotten of these extents before this was called. May take as long as the
    /// disk likes.
    ///
    /// # Errors
    /// It may not be durable; the table is lost.
    pub fn sync(&self, extents: Range<u64>) -> io::Result<()> {
        self.check(&extents);
        let len = (extents.end - extents.start) * ENTRY as u64;
        match &self.mapping {
            Some(mapping) => mapping.sync(entry_at(extents.start), len),
            None => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    /// Undo what `mlockall` did to the table. To be called after it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn unlock(&self) -> io::Result<()> {
        self.mapping.as_ref().map_or(Ok(()), Mapping::unlock)
    }

    /// Tell the signature of each of `extents`, and take those out of which nothing is known.
    pub fn recall(&self, extents: &mut Bits, found: &mut dyn FnMut(u64, Signature)) {
        for window in windows(self.extents()) {
            for extent in window.clone() {
                if extents.contains(extent) {
                    match self.read(extent) {
                        Some(entry) => found(extent, Signature(entry.value)),
                        None => extents.remove(extent),
                    }
                }
            }
            self.let_go(window);
        }
    }

    /// Give back the memory of these entries: who goes through a whole table does not need it again soon.
    pub(super) fn let_go(&self, extents: Range<u64>) {
        if let Some(mapping) = &self.mapping {
            mapping.let_go(entry_at(extents.start), (extents.end - extents.start) * ENTRY as u64);
        }
    }

    fn check(&self, extents: &Range<u64>) {
        assert!(
            extents.start <= extents.end && extents.end <= self.extents(),
            "extents {extents:?} of {}",
            self.extents()
        );
    }
}
