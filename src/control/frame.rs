//! One JSON value per line, within a bound.

use super::error::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest line, its line feed included, in bytes. It bounds what either side holds in memory for a peer, whatever
/// the peer sends; every message of this version is far shorter (see [`MAX_DIFFERENCES`](super::message::MAX_DIFFERENCES)).
pub const LINE_LIMIT: usize = 64 << 10;

/// A line is longer than [`LINE_LIMIT`]; where the next one begins is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {LINE_LIMIT} bytes")]
pub struct TooLong;

/// The value as a line.
///
/// # Panics
/// Panics if the value cannot be JSON (a map whose keys are no strings): no message of this module is such.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("messages have string keys only and no failing serializer");
    line.push(b'\n');
    line
}

/// The value of a line, with or without its line feed.
///
/// # Errors
/// A line that is not the JSON of such a value is a `usage` error that says where and what.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(line).map_err(|error| Error::usage(format!("not understood: {error}")))
}

/// Bytes that have arrived, cut into lines. Never holds more than [`LINE_LIMIT`] and the piece pushed last.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// Bytes known to hold no line feed, so that a line that trickles in is not searched again for each byte.
    searched: usize,
}

impl Lines {
    /// Add what has arrived. Take the complete lines with [`Lines::next_line`] before adding more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete line without its line feed, or none yet.
    ///
    /// # Errors
    /// Fails when the line is too long; nothing can be read from this peer any more.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        match self.bytes[self.searched..].iter().position(|&byte| byte == b'\n') {
            Some(at) if self.searched + at < LINE_LIMIT => {
                let end = self.searched + at;
                let rest = self.bytes.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.bytes, rest);
                line.pop();
                self.searched = 0;
                Ok(Some(line))
            }
            None if self.bytes.len() < LINE_LIMIT => {
                self.searched = self.bytes.len();
                Ok(None)
            }
            _ => Err(TooLong),
        }
    }

    /// Whether nothing has arrived since the last complete line.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_do_not_depend_on_how_the_bytes_arrive() {
        let text = b"one\n\ntwo\nthree";
        for piece in 1..=text.len() {
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            for bytes in text.chunks(piece) {
                lines.push(bytes);
                while let Some(line) = lines.next_line().unwrap() {
                    seen.push(line);
                }
            }
            assert_eq!(seen, [&b"one"[..], b"", b"two"], "in pieces of {piece}");
            assert!(!lines.is_empty());
        }
    }

    #[test]
    fn a_line_of_the_limit_passes_and_one_byte_more_does_not() {
        let mut longest = vec![b'x'; LINE_LIMIT - 1];
        longest.push(b'\n');
        let mut lines = Lines::default();
        lines.push(&longest);
        assert_eq!(lines.next_line().unwrap().unwrap().len(), LINE_LIMIT - 1);
        assert!(lines.is_empty());

        let mut lines = Lines::default();
        lines.push(&vec![b'x'; LINE_LIMIT - 1]);
        assert_eq!(lines.next_line(), Ok(None));
        lines.push(b"x");
        assert_eq!(lines.next_line(), Err(TooLong));
        lines.push(b"\n");
        assert_eq!(
            lines.next_line(),
            Err(TooLong),
            "a late line feed does not make it right"
        );
    }
}
