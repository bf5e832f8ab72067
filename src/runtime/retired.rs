//! Disks that were retired: the blocks that say what they hold are saved in the device's state directory, and wiped on the
//! disk, so that nobody takes the old disk for the one that is in use. Each disk has a file `retired-N` of its own there,
//! which outlives the leg: another disk may take the leg's place.
//!
//! # Crash order
//! What must never happen: that the content of a block is neither on the disk nor saved.
//!
//! *Retire.* The file is durable, with its name, before the first block is wiped; its name means a whole file, because it is
//! given by a rename. When wiped blocks let a probe see a label that lay behind them, the file is written anew with that
//! one too, under the same rule; what is in it already is taken over from the file, never from the disk, where it may be
//! wiped. A cut leaves every sector of the saved ranges as it was, or wiped.
//!
//! *Unretire.* First every sector of every range is looked at: one that is neither as saved nor wiped was written by somebody
//! since, and nothing is touched. Then the content is put back, flushed, and read again from the disk, and only then the file
//! goes. A cut leaves every sector as saved or wiped, and the file.
//!
//! So at every step both can be begun anew, and either ends whole. Whoever retires or unretires holds the disk's claim, and
//! the lock of [`RetiredDir`], which whoever forgets the device takes too.
//!
//! *Which retire it was.* A file says with which detach it began (the footprint that the record has of a leg that was let go). When
//! the disk was a leg again since, the file is none of a later retire: its blocks are older than what the disk held then. It is neither
//! gone on with nor put back.
//!
//! *Whether it is wiped* is in the file: it says so when everything is and that is durable, and no more before anything is put
//! back.
//!
//! *When the leg comes back*, the wiped blocks differ from what its dirty map says. A disk with a file here is
//! therefore compared whole, whoever vouches for it; its file goes when the record says that it is attached, or at the
//! latest before it is detached again: until then nobody but the daemon writes to it.
//!
//! Does not handle what is wrong with a probe (see [`crate::io::disk::labels`]), nor a disk that somebody wrote to without
//! changing any of these blocks.

use super::medium::{BLOCK, Medium};
use super::state_dir::{StateDir, StateError, error};
use crate::core::{LegId, Range};
use crate::io::disk::{self, Direct, Disk, claim, identity, labels};
use crate::table::checked::Flaw;
use crate::table::retired::{MOST_CONTENT, MOST_RANGES, Saved};
use crate::table::{LegIdentity, LegKind, Name, Retired, Superblock};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Beginning of the names of the files.
const PREFIX: &str = "retired-";
/// A file that is being written.
const NEW: &str = ".retired-new";
/// What is compared, and what a disk never tears.
const SECTOR: usize = 512;
/// How often a label behind a label is looked for.
const ROUNDS: usize = 16;

/// A disk could not be retired, or not be put back.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// The state directory failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// Another command is at it. Exit code 5.
    #[error("another command retires or unretires a disk of device {name}, or removes the device")]
    Busy {
        /// The device.
        name: Name,
    },
    /// A file cannot be used. Exit code 1.
    #[error("{path}: what was saved of a retired disk cannot be used: {source}", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Flaw,
    },
    /// Somebody has written to the disk since. Exit code 3.
    #[error("{path} has been written to since it was retired (at byte {at}, for one)")]
    Changed {
        /// The disk.
        path: String,
        /// The first sector that is neither as saved nor wiped.
        at: u64,
    },
    /// There is more to be wiped than can be saved, or it comes back. Exit code 1.
    #[error("{path} still shows a label at byte {at} after everything known was wiped")]
    Remains {
        /// The disk.
        path: String,
        /// Where.
        at: u64,
    },
    /// The disk does not hold what was written to it. Exit code 1.
    #[error("{path} does not hold what was written to it at byte {at}")]
    NotHeld {
        /// The disk.
        path: String,
        /// Where.
        at: u64,
    },
    /// The disk failed. Exit code 1.
    #[error("cannot {what} {path}: {source}")]
    Disk {
        /// What was attempted.
        what: &'static str,
        /// On which.
        path: String,
        /// Its error, with the errno.
        source: io::Error,
    },
    /// The disk could not be searched. Exit code 1.
    #[error(transparent)]
    Search(#[from] disk::Error),
}

/// A retired disk, and its file.
#[derive(Clone, Debug)]
pub struct Entry {
    path: PathBuf,
    /// What the file says.
    pub retired: Retired,
}

/// The retired disks of a device, for whoever retires, unretires or forgets.
#[derive(Debug)]
pub struct RetiredDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl RetiredDir {
    /// Lock out all others.
    ///
    /// # Errors
    /// There is no such device, or another command has it locked.
    pub fn lock(root: &Path, name: &Name) -> Result<RetiredDir, RetireError> {
        StateDir::peek(root, name)?;
        let path = root.join(name);
        let dir = File::open(&path).map_err(error("open", &path))?;
        let lock = match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(RetireError::Busy { name: name.clone() }),
            Err((_, errno)) => return Err(error("lock", &path)(errno.into()).into()),
        };
        // Removed, and perhaps made again, between opening and locking: then this is the lock of a device that is gone.
        let inode = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let locked = lock.metadata().map_err(error("look at", &path))?;
        if fs::metadata(&path).map(inode).ok() != Some(inode(locked)) {
            StateDir::peek(root, name)?;
            return Err(RetireError::Busy { name: name.clone() });
        }
        Ok(RetiredDir { path, _lock: lock })
    }

    /// All of them.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn all(&self) -> Result<Vec<Entry>, RetireError> {
        all(&self.path)
    }

    /// Save and wipe what says what is on a disk, which was leg `leg` of this device and is claimed. Goes on where an earlier
    /// call was interrupted. Returns what is wiped.
    ///
    /// # Errors
    /// The disk may be wiped in part then; what was wiped is saved.
    pub fn retire(&self, superblock: &Superblock, leg: LegId, disk: &Disk) -> Result<Entry, RetireError> {
        let mut direct = Direct::new(disk).map_err(failed(&disk.identity, "share the descriptor of"))?;
        let mut entry = match self.begun(superblock, leg, &disk.identity, &direct)? {
            // It is done; or somebody else has begun to use the disk.
            Some(entry) if entry.retired.wiped => {
                return match labels::signatures(disk)?.first() {
                    None => Ok(entry),
                    Some(label) => Err(changed(&entry.retired, label.start)),
                };
            }
            Some(entry) => entry,
            None => Entry {
                path: PathBuf::new(),
                retired: Retired {
                    uuid: superblock.uuid,
                    leg,
                    wiped: false,
                    detached: superblock.footprints[leg.index()],
                    identity: disk.identity.clone(),
                    saved: Vec::new(),
                },
            },
        };
        let ends = labels::ends(disk.size(), superblock.geometry.size);
        let save = |entry: &mut Entry| self.save(entry);
        wipe(&mut entry, &mut direct, ends, save, || Ok(labels::signatures(disk)?))?;
        entry.retired.wiped = true;
        self.save(&mut entry)?;
        look_again(disk);
        Ok(entry)
    }

    /// Whether an earlier call has saved what is, or was, on this disk since it was detached.
    ///
    /// # Errors
    /// It cannot be found out.
    pub fn is_begun(&self, superblock: &Superblock, leg: LegId, disk: &Disk) -> Result<bool, RetireError> {
        let direct = Direct::new(disk).map_err(failed(&disk.identity, "share the descriptor of"))?;
        Ok(self.begun(superblock, leg, &disk.identity, &direct)?.is_some())
    }

    /// What an earlier call saved of this disk since it was detached. One that merely looks like it is passed over when it holds
    /// something else.
    fn begun(
        &self,
        superblock: &Superblock,
        leg: LegId,
        disk: &LegIdentity,
        direct: &Direct,
    ) -> Result<Option<Entry>, RetireError> {
        let is_current = |entry: &Entry| is_current(entry, superblock, leg, disk);
        for entry in self.all()?.into_iter().filter(is_current) {
            let checked = match entry.retired.wiped {
                true => check_wiped(&entry.retired, direct),
                false => check_untouched(&entry.retired, direct),
            };
            match checked {
                Ok(()) => return Ok(Some(entry)),
                Err(RetireError::Changed { .. }) if !is_of(&entry, disk) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Put back what was saved of a disk, which is claimed. Forget it, if it is `proven` to be that disk: else this may be the only
    /// copy.
    ///
    /// # Errors
    /// [`RetireError::Changed`] with nothing written. Else the disk may be restored in part, and can be again.
    pub fn unretire(&self, entry: &Entry, disk: &Disk, proven: bool) -> Result<(), RetireError> {
        let mut direct = Direct::new(disk).map_err(failed(&disk.identity, "share the descriptor of"))?;
        check_untouched(&entry.retired, &direct)?;
        let mut entry = entry.clone();
        if entry.retired.wiped {
            entry.retired.wiped = false;
            self.save(&mut entry)?;
        }
        put_back(&entry.retired, &mut direct)?;
        if proven {
            remove(&self.path, &entry)?;
        }
        look_again(disk);
        Ok(())
    }

    /// Make what is known of a disk durable, under the name that it has or a new one.
    fn save(&self, entry: &mut Entry) -> Result<(), RetireError> {
        if entry.path.as_os_str().is_empty() {
            let paths = (1..).map(|number: u32| self.path.join(format!("{PREFIX}{number}")));
            entry.path = paths
                .into_iter()
                .find(|path| path.symlink_metadata().is_err())
                .expect("there are more numbers than files");
        }
        let new = self.path.join(NEW);
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(error("make", &new))?;
        file.write_all(&entry.retired.encode())
            .and_then(|()| file.sync_all())
            .map_err(error("save what is on the disk in", &new))?;
        fs::rename(&new, &entry.path).map_err(error("name", &entry.path))?;
        sync_dir(&self.path).map_err(error("make durable", &self.path))?;
        Ok(())
    }
}

/// Whether what was wiped on a disk is saved in this state directory; it takes no lock, but whoever asks holds the disk's
/// claim.
///
/// # Errors
/// It cannot be found out.
pub fn is_retired(dir: &Path, disk: &LegIdentity) -> Result<bool, RetireError> {
    Ok(all(dir)?.iter().any(|entry| may_be_of(entry, disk)))
}

/// Whether a leg's disk is retired: let go, saved and wiped, and no leg since. It takes no lock, so it may be old.
///
/// # Errors
/// It cannot be found out.
pub fn is_leg_retired(dir: &Path, superblock: &Superblock, leg: LegId) -> Result<bool, RetireError> {
    let is_free = superblock.record.legs[leg.index()].is_some_and(|leg| !leg.attached);
    let Some(disk) = superblock.legs[leg.index()].as_ref().filter(|_| is_free) else {
        return Ok(false);
    };
    let is_it = |entry: &Entry| entry.retired.wiped && is_current(entry, superblock, leg, disk);
    Ok(all(dir)?.iter().any(is_it))
}

/// A disk is a leg again: what was saved of it is of no use to anybody. Whoever asks holds the disk's claim. What was saved of
/// one that merely looks like it stays: it may be the only copy.
///
/// # Errors
/// It cannot be forgotten.
pub fn forget(dir: &Path, disk: &LegIdentity) -> Result<(), RetireError> {
    for entry in all(dir)?.iter().filter(|entry| is_of(entry, disk)) {
        remove(dir, entry)?;
    }
    Ok(())
}

/// Whether an entry is of the disk of a leg as the record has it, and was made since that was detached. Where nothing was recorded of
/// the detach, a disk has to be known by something of its own: the entry of such a disk goes when it is a leg again.
fn is_current(entry: &Entry, superblock: &Superblock, leg: LegId, disk: &LegIdentity) -> bool {
    let detached = superblock.footprints[leg.index()];
    let is_since = entry.retired.leg == leg && entry.retired.detached == detached;
    may_be_of(entry, disk) && is_since && (detached.is_some() || is_of(entry, disk))
}

/// Whether an entry may be that of a disk. Disks without serial number and id look alike.
fn may_be_of(entry: &Entry, disk: &LegIdentity) -> bool {
    identity::mismatch(&entry.retired.identity, disk).is_none()
}

/// Whether an entry is that of a disk: it has something that no other has, or none that anybody is likely to put in its place.
fn is_of(entry: &Entry, disk: &LegIdentity) -> bool {
    let recorded = &entry.retired.identity;
    // Equal where they are recorded, because nothing mismatches.
    let own = [&*disk.wwid, &*disk.stack_uuid, &*disk.partition_uuid, &*disk.serial];
    let is_known = match disk.kind {
        LegKind::Block => own.iter().any(|id| !id.is_empty()),
        LegKind::File => recorded.canonical == disk.canonical,
    };
    may_be_of(entry, disk) && is_known
}

fn all(dir: &Path) -> Result<Vec<Entry>, RetireError> {
    let list = |failed| error("list", dir)(failed);
    let mut entries = Vec::new();
    for found in fs::read_dir(dir).map_err(list)? {
        let name = found.map_err(list)?.file_name();
        if !name.to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = dir.join(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            // Forgotten just now.
            Err(failed) if failed.kind() == io::ErrorKind::NotFound => continue,
            Err(failed) => return Err(error("read", &path)(failed).into()),
        };
        match Retired::decode(&bytes) {
            Ok(retired) => entries.push(Entry { path, retired }),
            Err(source) => return Err(RetireError::Unusable { path, source }),
        }
    }
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(entries)
}

fn remove(dir: &Path, entry: &Entry) -> Result<(), RetireError> {
    match fs::remove_file(&entry.path) {
        Err(failed) if failed.kind() != io::ErrorKind::NotFound => Err(error("remove", &entry.path)(failed))?,
        _ => Ok(sync_dir(dir).map_err(error("make durable", dir))?),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The kernel's partitions are those of the table that is there now. A disk without partitions does not mind.
fn look_again(disk: &Disk) {
    let _ = claim::reread_partitions(disk.descriptor.as_fd());
}

fn failed(disk: &LegIdentity, what: &'static str) -> impl FnOnce(io::Error) -> RetireError + use<> {
    let path = disk.path.to_string();
    move |source| RetireError::Disk { what, path, source }
}

/// Save and wipe `first` and whatever `search` finds, until it finds nothing any more.
fn wipe(
    entry: &mut Entry,
    disk: &mut impl Medium,
    first: Vec<Range>,
    mut save: impl FnMut(&mut Entry) -> Result<(), RetireError>,
    mut search: impl FnMut() -> Result<Vec<Range>, RetireError>,
) -> Result<(), RetireError> {
    let mut wanted = first;
    wanted.extend(search()?);
    for _ in 0..ROUNDS {
        let missing = apart_from(labels::merged(wanted.clone()), &entry.retired.saved);
        if !missing.is_empty() {
            add(&mut entry.retired, disk, &missing)?;
            save(entry)?;
        }
        // Saved and durable: from here on it may go. What an earlier call saved may have been wiped by it, or not.
        check_untouched(&entry.retired, disk)?;
        for saved in &entry.retired.saved {
            let is_left = read(&entry.retired, disk, saved)?.iter().any(|&byte| byte != 0);
            if is_left {
                let zeroes = vec![0; saved.content.len()];
                disk.write(saved.start, &zeroes)
                    .map_err(failed(&entry.retired.identity, "wipe"))?;
            }
        }
        disk.sync().map_err(failed(&entry.retired.identity, "flush"))?;
        check_holds(&entry.retired, disk, |saved| vec![0; saved.content.len()])?;
        let found = search()?;
        let Some(label) = found.first() else {
            return Ok(());
        };
        if apart_from(found.clone(), &entry.retired.saved).is_empty() {
            let path = entry.retired.identity.path.to_string();
            return Err(RetireError::Remains { path, at: label.start });
        }
        wanted = found;
    }
    let path = entry.retired.identity.path.to_string();
    Err(RetireError::Remains { path, at: 0 })
}

/// Put everything back, durably.
fn put_back(retired: &Retired, disk: &mut impl Medium) -> Result<(), RetireError> {
    check_untouched(retired, disk)?;
    for saved in &retired.saved {
        if read(retired, disk, saved)? != saved.content {
            disk.write(saved.start, &saved.content)
                .map_err(failed(&retired.identity, "put back what was saved of"))?;
        }
    }
    disk.sync().map_err(failed(&retired.identity, "flush"))?;
    check_holds(retired, disk, |saved| saved.content.clone())
}

/// Have more ranges saved.
fn add(retired: &mut Retired, disk: &impl Medium, ranges: &[Range]) -> Result<(), RetireError> {
    let saved: u64 = retired.saved.iter().map(|saved| saved.content.len() as u64).sum();
    let more: u64 = ranges.iter().map(|range| range.len).sum();
    if saved + more > MOST_CONTENT || retired.saved.len() + ranges.len() > MOST_RANGES {
        let (path, at) = (retired.identity.path.to_string(), ranges[0].start);
        return Err(RetireError::Remains { path, at });
    }
    for range in ranges {
        let mut saved = Saved {
            start: range.start,
            content: vec![0; range.len as usize],
        };
        saved.content = read(retired, disk, &saved)?;
        retired.saved.push(saved);
    }
    retired.saved.sort_by_key(|saved| saved.start);
    Ok(())
}

/// Every sector is as it was saved, or wiped.
fn check_untouched(retired: &Retired, disk: &impl Medium) -> Result<(), RetireError> {
    for saved in &retired.saved {
        let now = read(retired, disk, saved)?;
        let sectors = now.chunks(SECTOR).zip(saved.content.chunks(SECTOR));
        let changed = sectors
            .enumerate()
            .find(|(_, (now, saved))| now != saved && now.iter().any(|&byte| byte != 0));
        if let Some((sector, _)) = changed {
            return Err(self::changed(retired, saved.start + (sector * SECTOR) as u64));
        }
    }
    Ok(())
}

/// Every sector is wiped.
fn check_wiped(retired: &Retired, disk: &impl Medium) -> Result<(), RetireError> {
    for saved in &retired.saved {
        if let Some(at) = read(retired, disk, saved)?.iter().position(|&byte| byte != 0) {
            return Err(changed(retired, saved.start + (at - at % SECTOR) as u64));
        }
    }
    Ok(())
}

fn changed(retired: &Retired, at: u64) -> RetireError {
    let path = retired.identity.path.to_string();
    RetireError::Changed { path, at }
}

/// Every range has what was written to it.
fn check_holds(retired: &Retired, disk: &impl Medium, expected: impl Fn(&Saved) -> Vec<u8>) -> Result<(), RetireError> {
    let wrong = |saved: &&Saved| match read(retired, disk, saved) {
        Ok(now) => now != expected(saved),
        Err(_) => true,
    };
    match retired.saved.iter().find(wrong) {
        None => Ok(()),
        Some(saved) => Err(RetireError::NotHeld {
            path: retired.identity.path.to_string(),
            at: saved.start,
        }),
    }
}

/// What is in a range now.
fn read(retired: &Retired, disk: &impl Medium, range: &Saved) -> Result<Vec<u8>, RetireError> {
    let path = &retired.identity;
    let mut content = Vec::with_capacity(range.content.len());
    for at in (range.start..range.end()).step_by(BLOCK) {
        content.extend(disk.read(at).map_err(failed(path, "read"))?);
    }
    // The last block may hang over the range's end.
    if content.len() < range.content.len() {
        return Err(failed(path, "read all of")(io::ErrorKind::UnexpectedEof.into()));
    }
    content.truncate(range.content.len());
    Ok(content)
}

/// The parts of ranges that are not saved.
fn apart_from(ranges: Vec<Range>, saved: &[Saved]) -> Vec<Range> {
    let mut parts = Vec::new();
    for range in ranges {
        let (mut start, end) = (range.start, range.start + range.len);
        for saved in saved {
            if saved.end() <= start || saved.start >= end {
                continue;
            }
            if saved.start > start {
                parts.push(Range::new(start, saved.start - start));
            }
            start = saved.end().min(end);
        }
        if start < end {
            parts.push(Range::new(start, end - start));
        }
    }
    parts
}

impl Medium for Direct {
    fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        Direct::read(self, offset, BLOCK)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Direct::write(self, offset, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        Direct::sync(self)
    }
}

#[cfg(test)]
mod tests;
