//! The log: lines on standard error, which whoever starts the daemon leads to its log file.
//!
//! Not for the thread that serves the device: a log that blocks would block the guest.

use log::{LevelFilter, Log, Metadata, Record};
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};
use twinblk::control::status::rfc3339;

/// Which lines are written: `error`, `warn`, `info` (the default), `debug` or `off`.
pub const VARIABLE: &str = "TWINBLK_LOG";

struct Stderr;

/// Begin to log.
pub fn start() {
    let level = std::env::var(VARIABLE)
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(LevelFilter::Info);
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // libublk tells of every device and queue what we tell better.
        let least = if metadata.target().starts_with("libublk") {
            LevelFilter::Warn
        } else {
            log::max_level()
        };
        metadata.level() <= least && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| now.as_secs());
            let line = format!("{} {:5} {}\n", rfc3339(now), record.level(), record.args());
            // There is nowhere to tell that the log cannot be written.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}
