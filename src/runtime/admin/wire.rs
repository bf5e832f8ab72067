//! Lines and descriptors over a unix socket, each read and write within a time.

use crate::control::frame::{self, Lines};
use crate::io::passing;
use serde::Serialize;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes read at once.
const PIECE: usize = 8 << 10;

/// One end of a connection. After an error it is of no use: a line may be half read or half written.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    lines: Lines,
    descriptors: Vec<OwnedFd>,
    /// How many descriptors may wait to be taken.
    most_descriptors: usize,
}

/// Why nothing more comes from a peer.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The peer has closed the connection; `mid_line` when it did so within a line.
    #[error("the other side has closed the connection")]
    Closed {
        /// Whether part of a line had arrived.
        mid_line: bool,
    },
    /// Nothing complete came, or was taken, in time.
    #[error("the other side did not answer in time")]
    TimedOut,
    /// See [`frame::TooLong`].
    #[error(transparent)]
    TooLong(#[from] frame::TooLong),
    /// More descriptors than anything asks for.
    #[error("more descriptors came than any message has")]
    TooManyDescriptors,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        match error.kind() {
            // A socket's own time-out.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Broken::TimedOut,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Broken::Closed { mid_line: false },
            _ => Broken::Io(error),
        }
    }
}

impl Wire {
    /// A connection on which at most `most_descriptors` descriptors may wait to be taken.
    pub fn new(stream: UnixStream, most_descriptors: usize) -> Wire {
        Wire {
            stream,
            lines: Lines::default(),
            descriptors: Vec::new(),
            most_descriptors,
        }
    }

    /// The next line, without its line feed. It must be complete within `patience`, however it trickles in.
    ///
    /// # Errors
    /// See [`Broken`].
    pub fn read_line(&mut self, patience: Duration) -> Result<Vec<u8>, Broken> {
        let deadline = Instant::now() + patience;
        let mut piece = [0; PIECE];
        loop {
            if let Some(line) = self.lines.next_line()? {
                return Ok(line);
            }
            self.stream.set_read_timeout(Some(left(deadline)?))?;
            let read = passing::receive(&self.stream, &mut piece, &mut self.descriptors)?;
            if self.descriptors.len() > self.most_descriptors {
                return Err(Broken::TooManyDescriptors);
            }
            if read == 0 {
                let mid_line = !self.lines.is_empty();
                return Err(Broken::Closed { mid_line });
            }
            self.lines.push(&piece[..read]);
        }
    }

    /// Write a message, all of it within `patience`; `descriptors` travel with its first byte.
    ///
    /// # Errors
    /// See [`Broken`].
    pub fn write<T: Serialize>(
        &mut self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<(), Broken> {
        let deadline = Instant::now() + patience;
        let line = frame::encode(message);
        debug_assert!(line.len() <= frame::LINE_LIMIT, "a message that its reader refuses");
        let mut rest = line.as_slice();
        let mut descriptors = descriptors;
        while !rest.is_empty() {
            self.stream.set_write_timeout(Some(left(deadline)?))?;
            let sent = passing::send(&self.stream, rest, descriptors)?;
            rest = &rest[sent..];
            descriptors = &[];
        }
        Ok(())
    }

    /// The oldest descriptor that came and was not taken yet.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        (!self.descriptors.is_empty()).then(|| self.descriptors.remove(0))
    }

    /// The socket itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

/// The time left; a time-out of zero would mean none at all to the kernel.
fn left(deadline: Instant) -> Result<Duration, Broken> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(Broken::TimedOut)
    } else {
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SOON: Duration = Duration::from_millis(50);

    #[test]
    fn a_peer_that_sends_nothing_or_half_a_line_times_out() {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours, 0);
        assert!(matches!(wire.read_line(SOON), Err(Broken::TimedOut)));
        peer.write_all(b"half").unwrap();
        assert!(matches!(wire.read_line(SOON), Err(Broken::TimedOut)));
        drop(peer);
        assert!(matches!(wire.read_line(SOON), Err(Broken::Closed { mid_line: true })));
    }

    #[test]
    fn a_peer_that_reads_nothing_times_out() {
        let (_peer, ours) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours, 0);
        let message = "x".repeat(1 << 10);
        let broken = (0..1 << 16).find_map(|_| wire.write(&message, &[], SOON).err());
        assert!(matches!(broken, Some(Broken::TimedOut)), "{broken:?}");
    }

    #[test]
    fn a_peer_that_is_gone_is_noticed_without_a_signal() {
        let (peer, ours) = UnixStream::pair().unwrap();
        drop(peer);
        let mut wire = Wire::new(ours, 0);
        assert!(matches!(wire.write(&1, &[], SOON), Err(Broken::Closed { .. })));
    }
}
