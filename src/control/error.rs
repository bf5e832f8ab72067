//! Why something was not done.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What sort of failure it is; one to one with the exit codes of `twinblk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// `"failed"`, exit code 1: it was tried and did not work.
    Failed,
    /// `"usage"`, exit code 2: the request makes no sense.
    Usage,
    /// `"refused"`, exit code 3: a safety check; nothing has changed.
    Refused,
    /// `"no-such-device"`, exit code 4.
    NoSuchDevice,
    /// `"wrong-state"`, exit code 5: the device is not in the needed state.
    WrongState,
    /// `"timed-out"`, exit code 6.
    TimedOut,
}

impl ErrorKind {
    /// All kinds, in order of their exit codes.
    pub const ALL: [ErrorKind; 6] = [
        ErrorKind::Failed,
        ErrorKind::Usage,
        ErrorKind::Refused,
        ErrorKind::NoSuchDevice,
        ErrorKind::WrongState,
        ErrorKind::TimedOut,
    ];

    /// The exit code of a tool that ends with this.
    pub const fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Refused => 3,
            ErrorKind::NoSuchDevice => 4,
            ErrorKind::WrongState => 5,
            ErrorKind::TimedOut => 6,
        }
    }
}

/// `{"kind":"refused","message":"/dev/sdb is mounted on /srv","hint":"unmount it"}`: what failed and why, and what to
/// do next (absent when there is nothing to say).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What sort of failure.
    pub kind: ErrorKind,
    /// What failed, and why.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Error {
    /// An error without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// The same error, saying what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// It was tried and did not work.
    pub fn failed(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Failed, message)
    }

    /// The request makes no sense.
    pub fn usage(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Usage, message)
    }

    /// A safety check; nothing has changed.
    pub fn refused(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Refused, message)
    }

    /// The device is not in the needed state.
    pub fn wrong_state(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::WrongState, message)
    }

    /// It took too long.
    pub fn timed_out(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::TimedOut, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<crate::core::Refusal> for Error {
    /// A verb that the core refused: nothing has changed.
    fn from(refusal: crate::core::Refusal) -> Error {
        use crate::core::Refusal;
        let error = |kind| Error::new(kind, refusal.to_string());
        match refusal {
            Refusal::AlreadyAttached => error(ErrorKind::WrongState).hint("detach one of them first"),
            Refusal::NoSuchLeg => error(ErrorKind::WrongState),
            Refusal::IsPrimary => error(ErrorKind::Refused),
            Refusal::NotInSync => error(ErrorKind::WrongState).hint("wait until it is (twinblk wait)"),
            Refusal::Suspect => error(ErrorKind::Refused).hint(
                "see where with twinblk status, and decide with twinblk verify --repair or --repair-from; or --force",
            ),
            Refusal::Busy => error(ErrorKind::WrongState).hint("see what it is with twinblk status, and try again"),
            Refusal::Stopping => error(ErrorKind::WrongState),
            Refusal::Unanswered(_) => error(ErrorKind::WrongState)
                .hint("an operation on its disk hangs: see the kernel's log, and wait for it to end"),
            Refusal::Invalid => error(ErrorKind::Usage),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_map_one_to_one_to_exit_codes() {
        let codes: Vec<u8> = ErrorKind::ALL.iter().map(|kind| kind.exit_code()).collect();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn an_error_without_hint_has_no_hint_field() {
        let json = serde_json::to_string(&Error::refused("no")).unwrap();
        assert_eq!(json, r#"{"kind":"refused","message":"no"}"#);
        let parsed: Error = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed, Error::refused("no"));
    }
}
