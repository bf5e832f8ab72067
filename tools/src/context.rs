//! What every command needs: where things are, and how to reach a daemon.

use crate::args::Common;
use crate::output;
use serde::Serialize;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use twinblk::control::{Error, ErrorKind, Status, paths};
use twinblk::core::LegId;
use twinblk::runtime::admin::Client;
use twinblk::runtime::state_dir::{StateDir, StateError};
use twinblk::table::{LegIdentity, Name, Picked};

/// Where things are, and how to print.
pub struct Context {
    /// Whether standard output is for a program.
    pub json: bool,
    /// The directory with all devices' state; absolute.
    pub state_dir: PathBuf,
    /// The directory of sockets and logs; absolute.
    pub run_dir: PathBuf,
}

impl Context {
    /// From the command line.
    ///
    /// # Errors
    /// A relative directory, and no current one.
    pub fn new(common: &Common) -> Result<Context, Error> {
        Ok(Context {
            json: common.json,
            state_dir: absolute(&common.state_dir)?,
            run_dir: absolute(&common.run_dir)?,
        })
    }

    /// Print a result: `value` for a program, `human` for people.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn print(&self, value: &impl Serialize, human: impl FnOnce() -> String) -> Result<(), Error> {
        if self.json {
            output::json(value)
        } else {
            output::text(&human())
        }
    }

    /// Make the run directory, for its owner alone, if it is not there. (The state directory is the daemon's: it must be
    /// durable.)
    ///
    /// # Errors
    /// The file system's.
    pub fn make_run_dir(&self) -> Result<(), Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.run_dir)
            .map_err(|error| Error::failed(format!("{}: cannot be made: {error}", self.run_dir.display())))
    }

    /// A connection to the device's daemon; none if none listens.
    ///
    /// # Errors
    /// The socket is there and cannot be used.
    pub fn connect(&self, name: &Name) -> Result<Option<Client>, Error> {
        let path = paths::socket(&self.run_dir, name);
        Client::connect(&path).map_err(|error| {
            let failed = Error::failed(format!("{}: {error}", path.display()));
            match error.kind() {
                io::ErrorKind::PermissionDenied => failed.hint("run it as root"),
                io::ErrorKind::InvalidInput => failed.hint("use a run directory with a shorter path"),
                _ => failed,
            }
        })
    }

    /// A connection to the device's daemon, which must run.
    ///
    /// # Errors
    /// There is no such device, or nobody serves it.
    pub fn running(&self, name: &Name) -> Result<Client, Error> {
        if let Some(client) = self.connect(name)? {
            return Ok(client);
        }
        self.peek(name)?;
        if self.is_locked(name)? {
            let message = format!("{name} is just being started or stopped");
            return Err(Error::wrong_state(message).hint("try again in a moment"));
        }
        Err(Error::wrong_state(format!("{name} is not running")).hint(format!("twinblk start {name}")))
    }

    /// The device's record, whoever serves it.
    ///
    /// # Errors
    /// There is no such device, or its state cannot be used.
    pub fn peek(&self, name: &Name) -> Result<Picked, Error> {
        StateDir::peek(&self.state_dir, name).map_err(|error| state_error(&error))
    }

    /// Whether a daemon has the device's state.
    ///
    /// # Errors
    /// There is no such device.
    pub fn is_locked(&self, name: &Name) -> Result<bool, Error> {
        StateDir::is_locked(&self.state_dir, name).map_err(|error| state_error(&error))
    }

    /// All devices with state, in order.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn names(&self) -> Result<Vec<Name>, Error> {
        StateDir::list(&self.state_dir).map_err(|error| state_error(&error))
    }

    /// Every leg of every device. One whose state cannot be read has none.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn legs(&self) -> Result<Vec<(Name, LegId, LegIdentity)>, Error> {
        let mut legs = Vec::new();
        for name in self.names()? {
            let Ok(picked) = self.peek(&name) else { continue };
            for leg in LegId::ALL {
                let disk = picked.superblock.legs[leg.index()].clone();
                legs.extend(disk.map(|disk| (name.clone(), leg, disk)));
            }
        }
        Ok(legs)
    }

    /// What the daemon says of its device.
    ///
    /// # Errors
    /// As the daemon's; see [`Client::call`].
    pub fn status_of(client: &mut Client) -> Result<Status, Error> {
        client.call(&twinblk::control::Request::Status {}, None, |_| {
            std::ops::ControlFlow::Continue(())
        })
    }
}

/// The path from the root, with its links as they are.
///
/// # Errors
/// A relative or empty path, and no current directory.
pub fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|error| Error::usage(format!("{}: {error}", path.display())))
}

/// What a failure of the state directory means for the tool.
pub fn state_error(error: &StateError) -> Error {
    let kind = match error {
        StateError::Exists { .. } => ErrorKind::Refused,
        StateError::Missing { .. } => ErrorKind::NoSuchDevice,
        StateError::Locked { .. } => ErrorKind::WrongState,
        StateError::Unusable { .. }
        | StateError::Misplaced { .. }
        | StateError::NoSpace { .. }
        | StateError::Io { .. } => ErrorKind::Failed,
    };
    let denied = matches!(error, StateError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied);
    let error = Error::new(kind, error.to_string());
    if denied { error.hint("run it as root") } else { error }
}
