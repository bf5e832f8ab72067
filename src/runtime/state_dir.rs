//! The state directory of a device: `ROOT/NAME/`, of mode 0700, with the file `superblock` in it, and those of
//! [`super::tracking`].
//!
//! The directory is made whole or not at all and removed by one rename, so a name is either taken by a device or free. Names
//! that begin with a dot are work in progress: what a crash leaves of them is cleared by the next `create`.
//!
//! Whoever serves a device has a lock on its superblock file for as long as it does (of the open file description, so it
//! outlives nobody and can be asked for without being taken); only the holder writes. Everything after `open` or `create` goes
//! by descriptors, because the daemon moves to a root of its own.
//!
//! Does not handle two hosts that share the directory over a network.

use super::signature_tables::{LostTable, SignatureTables};
use super::slots::{self, Slots};
use super::tracking::{self, Loaded, Tracking};
use crate::core::Errno;
use crate::io::disk::claim;
use crate::table::{Name, Owner, Picked, Superblock, Unpickable};
use nix::fcntl::{Flock, FlockArg, RenameFlags, renameat2};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file that makes a directory that of a device.
const SUPERBLOCK: &str = "superblock";
/// Beginning of the names of directories that are being made.
const NEW: &str = ".new-";
/// Beginning of the names of directories that are being removed.
const GONE: &str = ".gone-";
/// How often `peek` reads again when it may have met a write half way.
const PEEKS: usize = 5;

/// The state of a device could not be created, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is such a device already. Exit code 3.
    #[error("there is a device {name} already, in {root}; choose another name, or remove it first", root = root.display())]
    Exists {
        /// Its name.
        name: Name,
        /// Where.
        root: PathBuf,
    },
    /// There is no such device. Exit code 4.
    #[error("there is no device {name} in {root}; `twinblk list` shows those that there are", root = root.display())]
    Missing {
        /// Its name.
        name: Name,
        /// Where.
        root: PathBuf,
    },
    /// A daemon has it open. Exit code 5 or 3, as the command sees it.
    #[error("device {name} is being served: its state is locked by a daemon")]
    Locked {
        /// Its name.
        name: Name,
    },
    /// Its superblock cannot be used. Exit code 1.
    #[error("{path}: the state of device {name} cannot be used: {source}", path = path.display())]
    Unusable {
        /// Its name.
        name: Name,
        /// The file.
        path: PathBuf,
        /// Why.
        source: Unpickable,
    },
    /// It is the superblock of another device: the directory was renamed or copied. Exit code 1.
    #[error("{path}: this is the state of device {found}, not of {name}; rename the directory back", path = path.display())]
    Misplaced {
        /// The name of the directory.
        name: Name,
        /// The name in the superblock.
        found: Name,
        /// The file.
        path: PathBuf,
    },
    /// There is no room for what has to be there before the device is served. Exit code 1.
    #[error(
        "there is no room for the state of the device: {path} needs {bytes} bytes: {source}; make room, or use another place \
         (--state-dir)", path = path.display()
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What it needs.
        bytes: u64,
        /// The system's error, with the errno.
        source: io::Error,
    },
    /// The system failed. Exit code 1.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Its error, with the errno.
        source: io::Error,
    },
}

impl StateError {
    /// What the system said; EIO where it said nothing.
    pub fn errno(&self) -> Errno {
        match self {
            StateError::Io { source, .. } | StateError::NoSpace { source, .. } => {
                source.raw_os_error().map_or(Errno::IO, Errno)
            }
            StateError::Exists { .. }
            | StateError::Missing { .. }
            | StateError::Locked { .. }
            | StateError::Unusable { .. }
            | StateError::Misplaced { .. } => Errno::IO,
        }
    }
}

/// The open and locked state directory of one device.
#[derive(Debug)]
pub struct StateDir {
    name: Name,
    path: PathBuf,
    root: File,
    slots: Slots<File>,
}

impl StateDir {
    /// Make the directory `root/NAME` with `superblock` (whose record has [`Superblock::FIRST_NUMBER`]) in it, durably
    /// and whole or not at all; locked.
    ///
    /// # Errors
    /// The name is taken, or the file system fails.
    pub fn create(root: &Path, superblock: &Superblock) -> Result<StateDir, StateError> {
        assert_eq!(
            superblock.record.number,
            Superblock::FIRST_NUMBER,
            "an empty slot beside a later record means that one was lost"
        );
        let name = &superblock.name;
        let path = root.join(name);
        make_root(root)?;
        let root_dir = open_dir(root)?;
        // Held while this runs: two that create at once do not clear each other's work away.
        let duplicate = root_dir.try_clone().map_err(error("share the descriptor of", root))?;
        let _making =
            Flock::lock(duplicate, FlockArg::LockExclusive).map_err(|(_, errno)| error("lock", root)(errno.into()))?;
        let exists = || StateError::Exists {
            name: name.clone(),
            root: root.to_path_buf(),
        };
        if path.symlink_metadata().is_ok() {
            return Err(exists());
        }
        clear_leftovers(root);

        let new = format!("{NEW}{name}");
        let new_path = root.join(&new);
        let made = fill(&new_path, superblock).and_then(|slots| {
            match renameat2(
                &root_dir,
                new.as_str(),
                &root_dir,
                &**name,
                RenameFlags::RENAME_NOREPLACE,
            ) {
                Ok(()) => {}
                Err(nix::errno::Errno::EEXIST) => return Err(exists()),
                Err(errno) => return Err(error("name", &path)(errno.into())),
            }
            // Durable before anybody serves the device: a disk that is served has state.
            if let Err(failed) = root_dir.sync_all() {
                // Whether the name is durable is not known; a device that could not be created must not come up later.
                let _ = fs::rename(&path, &new_path);
                return Err(error("make its name durable in", root)(failed));
            }
            Ok(slots)
        });
        match made {
            Ok(slots) => Ok(StateDir {
                name: name.clone(),
                path,
                root: root_dir,
                slots,
            }),
            Err(failed) => {
                let _ = fs::remove_dir_all(&new_path);
                Err(failed)
            }
        }
    }

    /// Lock the device's state, and read it. The record returned is durable.
    ///
    /// # Errors
    /// There is none, a daemon has it, or it cannot be used.
    pub fn open(root: &Path, name: &Name) -> Result<(StateDir, Picked), StateError> {
        let path = root.join(name);
        let file_path = path.join(SUPERBLOCK);
        let file = open_superblock(root, name, true)?;
        if !claim::lock(file.as_fd()).map_err(|errno| error("lock", &file_path)(errno.into()))? {
            return Err(StateError::Locked { name: name.clone() });
        }
        // Removed, and perhaps made again, between opening and locking: then this is the lock of a device that is gone.
        let inode = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let locked = file.metadata().map_err(error("look at", &file_path))?;
        if fs::metadata(&file_path).map(inode).ok() != Some(inode(locked)) {
            return Err(missing(root, name));
        }
        let root_dir = open_dir(root)?;
        let (slots, picked) = Slots::open(file).map_err(|failed| match failed {
            slots::OpenError::Io(source) => error("read and renew the record in", &file_path)(source),
            slots::OpenError::Unpickable(source) => unusable(name, &file_path, source),
        })?;
        check_name(name, &file_path, &picked)?;
        let dir = StateDir {
            name: name.clone(),
            path,
            root: root_dir,
            slots,
        };
        Ok((dir, picked))
    }

    /// Read the device's state without a lock: it may be old when this returns.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn peek(root: &Path, name: &Name) -> Result<Picked, StateError> {
        let path = root.join(name).join(SUPERBLOCK);
        let file = open_superblock(root, name, false)?;
        let mut outcome = slots::read(&file);
        for _ in 1..PEEKS {
            match &outcome {
                Ok(picked) if !picked.doubt => break,
                // A write may be under way: it takes a moment, and a torn slot stays torn.
                Ok(_) | Err(slots::OpenError::Unpickable(_)) => outcome = slots::read(&file),
                Err(slots::OpenError::Io(_)) => break,
            }
        }
        let picked = outcome.map_err(|failed| match failed {
            slots::OpenError::Io(source) => error("read", &path)(source),
            slots::OpenError::Unpickable(source) => unusable(name, &path, source),
        })?;
        check_name(name, &path, &picked)?;
        Ok(picked)
    }

    /// Whether somebody (a daemon) has the device's state locked. Takes no lock itself.
    ///
    /// # Errors
    /// There is none, or the file system fails.
    pub fn is_locked(root: &Path, name: &Name) -> Result<bool, StateError> {
        let path = root.join(name).join(SUPERBLOCK);
        let file = open_superblock(root, name, false)?;
        claim::is_locked(file.as_fd()).map_err(|errno| error("ask for the lock of", &path)(errno.into()))
    }

    /// The names of all devices, in order.
    ///
    /// # Errors
    /// The directory cannot be read. That there is none is no error.
    pub fn list(root: &Path) -> Result<Vec<Name>, StateError> {
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(failed) if failed.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(failed) => return Err(error("list", root)(failed)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(error("list", root))?;
            let is_device = entry.path().join(SUPERBLOCK).symlink_metadata().is_ok();
            names.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| Name::new(name).ok())
                    .filter(|_| is_device),
            );
        }
        names.sort();
        Ok(names)
    }

    /// Make `superblock` durable. Its record's number is higher than any given before, whether that was written or not.
    /// After an error it is not known which record is in force; write another, with a higher number.
    ///
    /// # Errors
    /// The file system fails.
    ///
    /// # Panics
    /// If the number is not higher, or the superblock is that of another device.
    pub fn write(&mut self, superblock: &Superblock) -> Result<(), StateError> {
        assert_eq!(superblock.name, self.name, "the state of another device");
        let path = self.path.join(SUPERBLOCK);
        self.slots.write(superblock).map_err(error("write a record to", &path))
    }

    /// What is tracked of the device that `superblock` says, and what was found of it. To be asked for once: whoever has it
    /// writes it. It goes on by descriptors, and on threads of its own.
    ///
    /// # Errors
    /// The files cannot be opened, or not be made where there are none. That they say nothing is no error.
    pub fn tracking(&self, superblock: &Superblock) -> Result<(Tracking, Loaded), StateError> {
        assert_eq!(superblock.name, self.name, "the state of another device");
        // By descriptor: the path may mean nothing in the daemon's own root.
        let dir = open_dir(&claim::magic_path(self.root.as_fd()).join(&self.name))?;
        Tracking::open(dir, &self.path, Owner::from(superblock))
    }

    /// The signature tables of the device that `superblock` says, and why one says nothing. To be asked for once, as above.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn signatures(
        &self,
        superblock: &Superblock,
    ) -> Result<(SignatureTables, [Result<(), LostTable>; 2]), StateError> {
        assert_eq!(superblock.name, self.name, "the state of another device");
        let dir = open_dir(&claim::magic_path(self.root.as_fd()).join(&self.name))?;
        Ok(SignatureTables::open(dir, &self.path, Owner::from(superblock)))
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Forget the device: its name is free when this returns.
    ///
    /// # Errors
    /// The file system fails; the device may be half forgotten then, and can be removed again.
    pub fn remove(self) -> Result<(), StateError> {
        // By descriptor: the path may mean nothing in the daemon's own root.
        let root = claim::magic_path(self.root.as_fd());
        let gone = root.join(format!("{GONE}{}", self.name));
        if gone.symlink_metadata().is_ok() {
            fs::remove_dir_all(&gone).map_err(error("clear a half removed device beside", &self.path))?;
        }
        // From here on there is no device of this name; what is left of it is of no use to anybody.
        fs::rename(root.join(&self.name), &gone).map_err(error("remove", &self.path))?;
        self.root
            .sync_all()
            .map_err(error("make durable that there is no more", &self.path))?;
        fs::remove_dir_all(&gone).map_err(error("delete what is left of", &self.path))
    }
}

/// An empty file that nobody else has.
pub(super) fn new_file(path: &Path) -> Result<File, StateError> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(error("make", path))
}

/// The directory with all its files in it, durable but for its own name.
fn fill(dir: &Path, superblock: &Superblock) -> Result<Slots<File>, StateError> {
    DirBuilder::new().mode(0o700).create(dir).map_err(error("make", dir))?;
    let path = dir.join(SUPERBLOCK);
    let file = new_file(&path)?;
    let locked = claim::lock(file.as_fd()).map_err(|errno| error("lock", &path)(errno.into()))?;
    assert!(locked, "nobody else knows of a file that was made just now");
    let slots = Slots::create(file, superblock).map_err(error("write the first record to", &path))?;
    tracking::create(dir, &Owner::from(superblock))?;
    open_dir(dir)?.sync_all().map_err(error("make durable", dir))?;
    Ok(slots)
}

fn make_root(root: &Path) -> Result<(), StateError> {
    if root.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .map_err(error("make", root))?;
    // A name that is not durable takes everything in it along.
    match root.parent() {
        Some(parent) if parent != Path::new("") => open_dir(parent)?.sync_all().map_err(error("make durable", parent)),
        _ => Ok(()),
    }
}

/// What a crash has left of directories being made or removed. A failure is no reason not to go on: they are in nobody's way
/// but that of a device of the same name, which will say so.
fn clear_leftovers(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(NEW) || name.starts_with(GONE) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn open_dir(path: &Path) -> Result<File, StateError> {
    File::open(path).map_err(error("open", path))
}

fn open_superblock(root: &Path, name: &Name, write: bool) -> Result<File, StateError> {
    let path = root.join(name).join(SUPERBLOCK);
    match File::options().read(true).write(write).open(&path) {
        Ok(file) => Ok(file),
        Err(failed) if failed.kind() == io::ErrorKind::NotFound => Err(missing(root, name)),
        Err(failed) => Err(error("open", &path)(failed)),
    }
}

fn check_name(name: &Name, path: &Path, picked: &Picked) -> Result<(), StateError> {
    if picked.superblock.name == *name {
        Ok(())
    } else {
        Err(StateError::Misplaced {
            name: name.clone(),
            found: picked.superblock.name.clone(),
            path: path.to_path_buf(),
        })
    }
}

fn missing(root: &Path, name: &Name) -> StateError {
    StateError::Missing {
        name: name.clone(),
        root: root.to_path_buf(),
    }
}

fn unusable(name: &Name, path: &Path, source: Unpickable) -> StateError {
    StateError::Unusable {
        name: name.clone(),
        path: path.to_path_buf(),
        source,
    }
}

pub(super) fn error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError + use<> {
    let path = path.to_path_buf();
    move |source| StateError::Io { what, path, source }
}
