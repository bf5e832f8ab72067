//! What is tracked of a device beside its superblock: active regions, dirty grains, and a signature table for each leg.
//!
//! The files `regions`, `dirty`, `signatures-a` and `signatures-b` lie in the state directory. The first two are
//! written in full when they are made, so that no mark and no bit ever needs space; the tables are sparse, and one that
//! finds no space is lost, which costs time and nothing else.
//!
//! # Doubt widens
//! A file that is missing, of another length, torn, foreign or newer says nothing. Without marks any region may differ;
//! without the map any grain may be missing. Nothing here decides what follows from that, and nothing is mended by
//! itself: the files stay as they are, and say nothing again the next time, until the caller knows what to write there
//! ([`Tracking::begin_anew`]). Signatures are the exception: a table that says nothing is made anew at once, because an
//! empty one says the same.
//!
//! # Order
//! The rules that the caller keeps (promises 2 and 3): a write to a leg starts after [`Tracking::mark`] has returned
//! with its region in the set. A region is taken out of the set after each leg that is followed has flushed, the grains
//! that some other leg misses are saved ([`Tracking::save_dirty`]), and what no longer holds is forgotten and synced in
//! both tables.

use super::dirty_file::{self, DirtyFile};
use super::region_file::{FILE_BYTES, RegionFile};
use super::signature_table::SignatureTable;
use super::state_dir::{StateError, error, new_file};
use crate::core::{Bits, LegId, Suspects};
use crate::io::disk::claim::magic_path;
use crate::table::checked::Unverified;
use crate::table::{Lost, Owner, suspects};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use super::dirty_file::DirtyLoaded;

const REGIONS: &str = "regions";
const DIRTY: &str = "dirty";
const SUSPECTS: &str = "suspects";

/// Zeroes written at a time.
const PIECE: usize = 1 << 20;

/// What the files said. Everything in it is durable.
#[derive(Debug)]
pub struct Loaded {
    /// The active regions, or why they are not known: then any may be.
    pub active: Result<Bits, Lost>,
    /// The dirty grains, or why they are not known: then any may be.
    pub dirty: Result<DirtyLoaded, Lost>,
}

/// The files, open, but for the signature tables.
#[derive(Debug)]
pub struct Tracking {
    owner: Owner,
    dir: File,
    /// For messages: it may mean nothing in the daemon's own root.
    path: PathBuf,
    regions: RegionFile<File>,
    dirty: DirtyFile<File>,
}

impl Tracking {
    /// Open the files in `dir`, and read them.
    pub(super) fn open(dir: File, path: &Path, owner: Owner) -> Result<(Tracking, Loaded), StateError> {
        let at = magic_path(dir.as_fd());
        let open = |name| {
            let options = &mut File::options();
            let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
            options.open(at.join(name)).map_err(error("open", &path.join(name)))
        };
        let (regions_file, dirty_file) = (open(REGIONS)?, open(DIRTY)?);
        let lengths = [
            check_len(&regions_file, FILE_BYTES),
            check_len(&dirty_file, dirty_file::file_bytes(&owner)),
        ];
        let mut regions = RegionFile::new(regions_file, owner);
        let mut dirty = DirtyFile::new(dirty_file, owner);
        let [regions_len, dirty_len] = lengths;
        let active = regions_len.and_then(|()| regions.load());
        let dirty_bits = dirty_len.and_then(|()| dirty.load());

        let tracking = Tracking {
            owner,
            dir,
            path: path.to_path_buf(),
            regions,
            dirty,
        };
        let loaded = Loaded {
            active,
            dirty: dirty_bits,
        };
        Ok((tracking, loaded))
    }

    /// Make durable that exactly `active` are active. One call serves all who wait for a mark.
    ///
    /// # Errors
    /// It is not known whether this set or the one before is in force: a region counts as marked only if it is in both.
    /// Call again with what is needed then; it is written whole each time. Always fails where marks are not known,
    /// until they have begun anew.
    pub fn mark(&mut self, active: &Bits) -> Result<(), StateError> {
        let failed = error("write marks to", &self.path.join(REGIONS));
        self.regions.mark(active).map_err(failed)
    }

    /// Make durable that marks say nothing, which means that every region may be active: for when marks cannot be
    /// written. No mark is taken until they have begun anew.
    ///
    /// # Errors
    /// It may not be durable.
    pub fn poison(&mut self) -> Result<(), StateError> {
        let failed = error("give up the marks in", &self.path.join(REGIONS));
        self.regions.poison().map_err(failed)
    }

    /// Make durable what blocks of the dirty map say: block `i` has the words from `i` ·
    /// [`WORDS`](crate::table::dirty::WORDS) on, and as many of them, or what is left. One flush for all of them.
    ///
    /// # Errors
    /// None of the blocks counts as saved; they must be among the blocks of the next call.
    ///
    /// # Panics
    /// If they are not, or a block has another number of words.
    pub fn save_dirty(&mut self, blocks: &[(u64, &[u64])]) -> Result<(), StateError> {
        let failed = error("write dirty bits to", &self.path.join(DIRTY));
        self.dirty.save(blocks).map_err(failed)
    }

    /// Make durable that exactly these places are suspect.
    ///
    /// The list is whole before it gets its name, so that there is one at every moment, this or the one before.
    ///
    /// # Errors
    /// There is none any more, if that could be done: then everything is suspect.
    pub fn suspect(&mut self, suspects: &Suspects) -> Result<(), StateError> {
        let path = magic_path(self.dir.as_fd()).join(SUSPECTS);
        let new = path.with_extension("new");
        let options = &mut File::options();
        let made = options.write(true).create(true).truncate(true).mode(0o600).open(&new);
        let written = made
            .and_then(|file| {
                file.write_all_at(&suspects::encode(&self.owner, suspects), 0)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| self.dir.sync_all());
        if written.is_err() {
            // Where there is no space there is enough for this.
            let _ = fs::remove_file(&new);
            let _ = fs::remove_file(&path).and_then(|()| self.dir.sync_all());
        }
        written.map_err(error("write suspect places to", &self.path.join(SUSPECTS)))
    }

    /// Make durable that nobody knows which places are suspect: all are, while the record says that there are some.
    ///
    /// # Errors
    /// The file system fails.
    pub fn remove_suspects(&mut self) -> Result<(), StateError> {
        let path = magic_path(self.dir.as_fd()).join(SUSPECTS);
        let removed = match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        let durable = removed.and_then(|()| self.dir.sync_all());
        durable.map_err(error("remove", &self.path.join(SUSPECTS)))
    }

    /// The suspect places; only of use while the record says that there are some.
    ///
    /// # Errors
    /// Why they are not known: then everything is suspect.
    pub fn suspects(&self) -> Result<Suspects, Lost> {
        let path = magic_path(self.dir.as_fd()).join(SUSPECTS);
        let bytes = fs::read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Lost::Missing,
            _ => Lost::Unreadable(super::region_file::errno(&error)),
        })?;
        suspects::decode(Unverified::new(&bytes), &self.owner)
    }

    /// Make durable that exactly these regions are active and these grains dirty, whatever the files said, or if there
    /// were none. To be called before anything is written to a leg, where one of them said nothing.
    ///
    /// Marks say nothing from the first moment on until all is durable, so a cut in between costs a comparison of
    /// everything.
    ///
    /// # Errors
    /// There is no space, or the file system fails. Marks say nothing then.
    pub fn begin_anew(&mut self, active: &Bits, dirty: &Bits) -> Result<(), StateError> {
        // A file of the wrong length says nothing, and so do the zeroes in one of the right length: the old content is
        // gone by the time that the first new byte could be believed.
        let (regions_path, dirty_path) = (self.path.join(REGIONS), self.path.join(DIRTY));
        if check_len(self.regions.medium(), FILE_BYTES).is_err() {
            allocate(self.regions.medium(), FILE_BYTES, &regions_path)?;
        }
        self.poison()?;
        let dirty_bytes = dirty_file::file_bytes(&self.owner);
        if check_len(self.dirty.medium(), dirty_bytes).is_err() {
            allocate(self.dirty.medium(), dirty_bytes, &dirty_path)?;
        }
        self.dirty
            .begin_anew(dirty)
            .map_err(error("write the dirty map to", &dirty_path))?;
        self.regions
            .begin_anew(active)
            .map_err(error("write the first marks to", &regions_path))?;
        // The names may be new too.
        self.dir.sync_all().map_err(error("make durable", &self.path))
    }
}

/// Make the files of a new device in `dir`, of which nothing is active, dirty or known: all of it durable but for the
/// names.
pub(super) fn create(dir: &Path, owner: &Owner) -> Result<(), StateError> {
    let make = |name, bytes| {
        let path = dir.join(name);
        let file = new_file(&path)?;
        allocate(&file, bytes, &path).map(|()| file)
    };
    let geometry = &owner.geometry;
    let mut dirty = DirtyFile::new(make(DIRTY, dirty_file::file_bytes(owner))?, *owner);
    dirty
        .begin_anew(&Bits::none(geometry.grains()))
        .map_err(error("write the dirty map to", &dir.join(DIRTY)))?;
    let mut regions = RegionFile::new(make(REGIONS, FILE_BYTES)?, *owner);
    regions
        .begin_anew(&Bits::none(geometry.regions()))
        .map_err(error("write the first marks to", &dir.join(REGIONS)))?;
    let dir_file = File::open(dir).map_err(error("open", dir))?;
    for leg in LegId::ALL {
        SignatureTable::create(&dir_file, dir, *owner, leg)?;
    }
    Ok(())
}

fn check_len(file: &File, expected: u64) -> Result<(), Lost> {
    match file.metadata() {
        Ok(metadata) if metadata.len() == expected => Ok(()),
        // It was made when it was opened.
        Ok(metadata) if metadata.len() == 0 => Err(Lost::Missing),
        Ok(metadata) => Err(Lost::Length {
            found: metadata.len(),
            expected,
        }),
        Err(error) => Err(Lost::Unreadable(super::region_file::errno(&error))),
    }
}

/// Give `file` exactly `bytes` bytes of zeroes, all of which have their place on the disk: nothing that is written
/// there later needs space.
fn allocate(file: &File, bytes: u64, path: &Path) -> Result<(), StateError> {
    let failed = |source: io::Error| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => StateError::NoSpace {
            path: path.to_path_buf(),
            bytes,
            source,
        },
        _ => error("allocate", path)(source),
    };
    file.set_len(0).map_err(failed)?;
    let len = i64::try_from(bytes).map_err(|_| failed(io::Error::from(Errno::EFBIG)))?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        // What cannot reserve allocates when it is written to.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    // Reserved is not yet written: the first write to each place would have to say so in the file system's own log.
    let zeroes = vec![0; PIECE];
    for at in (0..bytes).step_by(PIECE) {
        let piece = &zeroes[..(bytes - at).min(PIECE as u64) as usize];
        file.write_all_at(piece, at).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}
