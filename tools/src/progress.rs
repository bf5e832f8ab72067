//! Shows how far something is: a bar on a terminal, a line now and then otherwise.

use crate::size;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};
use twinblk::control::Progress;
use twinblk::control::status::Walk;

/// How often a line is written where there is no terminal.
const EVERY: Duration = Duration::from_secs(5);

/// The bar's own width.
const BAR: usize = 24;

/// Writes to standard error, so that standard output holds the result alone.
pub struct Meter {
    terminal: bool,
    quiet: bool,
    drawn: bool,
    last: Option<Instant>,
}

impl Meter {
    /// A meter that says nothing when the output is for a program.
    pub fn new(quiet: bool) -> Meter {
        Meter {
            terminal: io::stderr().is_terminal(),
            quiet,
            drawn: false,
            last: None,
        }
    }

    /// Show what came.
    pub fn show(&mut self, progress: &Progress) {
        match progress {
            Progress::Walk(walk) => self.draw(&line(walk)),
            Progress::State { state } => self.draw(state.word()),
            Progress::Health { leg, health } => self.say(&format!("leg {leg} is {}", health.word())),
            Progress::Protocol { protocol } => self.say(&format!("the protocol is {}", protocol.word())),
            Progress::Difference(_) | Progress::Unknown => {}
        }
    }

    fn draw(&mut self, text: &str) {
        if self.quiet {
            return;
        }
        if self.terminal {
            // Back to the first column, and clear what a longer line has left.
            self.write(&format!("\r{text}\x1b[K"));
            self.drawn = true;
        } else if self.last.is_none_or(|last| last.elapsed() >= EVERY) {
            self.last = Some(Instant::now());
            self.write(&format!("{text}\n"));
        }
    }

    /// A line of its own.
    fn say(&mut self, text: &str) {
        if !self.quiet {
            self.clear();
            self.write(&format!("{text}\n"));
        }
    }

    fn clear(&mut self) {
        if self.drawn {
            self.write("\r\x1b[K");
            self.drawn = false;
        }
    }

    fn write(&self, text: &str) {
        // Progress that cannot be shown is no failure.
        let mut out = io::stderr().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `full  [######------]  50%  512.00 MiB of 1.00 GiB  100.00 MiB/s  eta 5 s`
pub fn line(walk: &Walk) -> String {
    let done = walk.bytes_done.min(walk.bytes_total);
    let of = |whole: u64| match walk.bytes_total {
        0 => whole,
        total => u64::try_from(u128::from(done) * u128::from(whole) / u128::from(total)).unwrap_or(whole),
    };
    let filled = of(BAR as u64) as usize;
    format!(
        "{} [{}{}] {:3}%  {} of {}  {}/s  eta {}",
        walk.kind.word(),
        "#".repeat(filled),
        "-".repeat(BAR - filled),
        of(100),
        size::show(done),
        size::show(walk.bytes_total),
        size::show(walk.rate_bytes_per_s),
        walk.eta_s.map_or_else(|| "unknown".into(), seconds),
    )
}

/// A span of time for people: `5 s`, `2 min 5 s`, `3 h 2 min`.
pub fn seconds(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinblk::control::status::WalkKind;

    fn walk(done: u64, total: u64) -> Walk {
        Walk {
            kind: WalkKind::Full,
            bytes_total: total,
            bytes_done: done,
            bytes_read: 0,
            bytes_written: 0,
            bytes_matched: 0,
            rate_bytes_per_s: 1 << 20,
            eta_s: Some(65),
            elapsed_s: 0,
        }
    }

    #[test]
    fn a_bar_shows_how_far_it_is() {
        let half = format!(
            "full [{}{}]  50%  512.00 MiB of 1.00 GiB  1.00 MiB/s  eta 1 min 5 s",
            "#".repeat(12),
            "-".repeat(12)
        );
        assert_eq!(line(&walk(512 << 20, 1 << 30)), half);
    }

    #[test]
    fn nothing_to_do_and_more_than_all_are_a_full_bar() {
        for (done, total) in [(0, 0), (2, 1), (u64::MAX, u64::MAX)] {
            let text = line(&walk(done, total));
            assert!(text.contains("100%") && text.contains(&"#".repeat(BAR)), "{text}");
        }
        assert!(line(&walk(u64::MAX - 1, u64::MAX)).contains(" 99%"));
    }
}
