//! What goes wrong in the daemon, in the words of the admin socket.

use crate::process::ProcessError;
use crate::ublk::ControlError;
use twinblk::control::{Error, ErrorKind};
use twinblk::io::disk;
use twinblk::runtime::inbox::Ended;
use twinblk::runtime::state_dir::StateError;

/// Anything that can be told to an administrator.
pub trait Told {
    /// As an error of the admin socket; `doing` says what failed, in the words "cannot …".
    fn told(self, doing: &str) -> Error;
}

impl Told for ControlError {
    fn told(self, doing: &str) -> Error {
        let kind = match &self {
            ControlError::TimedOut { .. } => ErrorKind::TimedOut,
            ControlError::NoDriver | ControlError::Lacks { .. } | ControlError::Refused { .. } => ErrorKind::Failed,
        };
        let error = Error::new(kind, format!("cannot {doing}: {self}"));
        match self.hint() {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl Told for StateError {
    fn told(self, doing: &str) -> Error {
        let kind = match &self {
            StateError::Exists { .. } => ErrorKind::Refused,
            StateError::Missing { .. } => ErrorKind::NoSuchDevice,
            StateError::Locked { .. } => ErrorKind::WrongState,
            StateError::Unusable { .. }
            | StateError::Misplaced { .. }
            | StateError::NoSpace { .. }
            | StateError::Io { .. } => ErrorKind::Failed,
        };
        Error::new(kind, format!("cannot {doing}: {self}"))
    }
}

impl Told for disk::Error {
    fn told(self, doing: &str) -> Error {
        let kind = match &self {
            disk::Error::Refused(_) => ErrorKind::Refused,
            disk::Error::Io { .. } => ErrorKind::Failed,
        };
        let (hint, error) = (self.hint(), Error::new(kind, format!("cannot {doing}: {self}")));
        if hint.is_empty() { error } else { error.hint(hint) }
    }
}

impl Told for ProcessError {
    fn told(self, doing: &str) -> Error {
        Error::failed(format!("cannot {doing}: {self}"))
    }
}

impl Told for std::io::Error {
    fn told(self, doing: &str) -> Error {
        Error::failed(format!("cannot {doing}: {self}"))
    }
}

impl Told for Ended {
    fn told(self, doing: &str) -> Error {
        Error::wrong_state(format!("cannot {doing}: {self}"))
    }
}
