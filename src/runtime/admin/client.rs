//! The tool's side of the admin socket.

use super::wire::{Broken, Wire};
use crate::control::{Answer, Error, Progress, Request, frame};
use serde::de::DeserializeOwned;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long to wait for the next line of a daemon that sends one at least every second while it works.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a daemon. After an error of the connection itself make a new one.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
    patience: Duration,
}

impl Client {
    /// Connect to the socket at `path`; none if no daemon listens there.
    ///
    /// # Errors
    /// Fails when the socket cannot be used for another reason, such as a lack of rights.
    pub fn connect(path: &Path) -> io::Result<Option<Client>> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Some(Client {
                wire: Wire::new(stream, 0),
                patience: PATIENCE,
            })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Wait so long for each line of the daemon's.
    pub fn patience(mut self, patience: Duration) -> Client {
        self.patience = patience;
        self
    }

    /// Ask for `request` and wait for the answer; `progress` sees what comes before it, and with
    /// [`ControlFlow::Break`] gives up the request.
    ///
    /// # Errors
    /// What the daemon says; or that it did not answer in time, or not in a way that can be understood.
    pub fn call<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<T, Error> {
        let command = request.command();
        let descriptors = descriptor.as_slice();
        self.wire
            .write(request, descriptors, self.patience)
            .map_err(|broken| lost(command, &broken))?;
        loop {
            let line = self
                .wire
                .read_line(self.patience)
                .map_err(|broken| lost(command, &broken))?;
            let answer = frame::decode(&line)
                .map_err(|error| Error::failed(format!("{command}: the daemon's answer is not understood: {error}")))?;
            match answer {
                Answer::Ok(reply) => return Ok(reply),
                Answer::Error(error) => return Err(error),
                Answer::Progress(event) => {
                    if progress(event).is_break() {
                        return Err(Error::failed(format!("{command}: given up")));
                    }
                }
            }
        }
    }
}

fn lost(command: &str, broken: &Broken) -> Error {
    let error = match broken {
        Broken::TimedOut => Error::timed_out(format!("{command}: the daemon did not answer in time")),
        Broken::Closed { .. } | Broken::TooLong(_) | Broken::TooManyDescriptors | Broken::Io(_) => {
            Error::failed(format!("{command}: {broken}"))
        }
    };
    error.hint("see what the daemon does with twinblk status, and its log beside the admin socket")
}
