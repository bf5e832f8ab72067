//! What the tool prints: one JSON object, or text for people; errors as text on standard error, always.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use twinblk::control::Error;

/// Write to standard output. A reader that has gone away (`| head`) is no failure.
///
/// # Errors
/// Standard output cannot be written (a full disk, say).
pub fn text(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::failed(format!("standard output cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// Wait so long, or until whoever reads standard output has gone away, and say whether he has. A file has no such reader.
pub fn reader_leaves_within(time: Duration) -> bool {
    let until = Instant::now() + time;
    let out = io::stdout();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // What is not asked for is reported all the same: that the other end is closed.
        let mut ends = [PollFd::new(out.as_fd(), PollFlags::empty())];
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut ends, left) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::EINTR) => {}
            Err(_) => {
                std::thread::sleep(time);
                return false;
            }
        }
    }
}

/// Print a value as one line of JSON.
///
/// # Errors
/// See [`text`].
pub fn json(value: &impl Serialize) -> Result<(), Error> {
    let mut line = serde_json::to_string(value).expect("the messages have string keys only");
    line.push('\n');
    text(&line)
}

/// Say what failed, why, and what to do next.
pub fn error(error: &Error, as_json: bool) {
    let mut text = format!("twinblk: {}\n", error.message);
    if let Some(hint) = &error.hint {
        text.push_str(&format!("  what to do: {hint}\n"));
    }
    // Nobody to tell if this fails.
    let _ = io::stderr().write_all(text.as_bytes());
    if as_json {
        json_error(error);
    }
}

/// `{"error":{…}}` on standard output.
pub fn json_error(error: &Error) {
    #[derive(Serialize)]
    struct Wrapped<'a> {
        error: &'a Error,
    }
    // The exit code says it as well.
    let _ = json(&Wrapped { error });
}

/// Something that an administrator should know, on standard error.
pub fn note(text: &str) {
    let _ = io::stderr().write_all(format!("twinblk: {text}\n").as_bytes());
}

/// Rows under a header, in columns; the last column is not padded.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(&mut header.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["vm1".into(), "x".into()], vec!["a".into(), "longer".into()]];
        assert_eq!(table(&["N", "STATE"], &rows), "N    STATE\nvm1  x\na    longer\n");
        assert_eq!(table(&["N"], &[]), "N\n");
    }
}
