//! `status`: what is served, how far, how healthy.

use super::list::status_of;
use crate::args;
use crate::context::Context;
use crate::exit::Exit;
use crate::{output, progress, size};
use serde::Serialize;
use std::io::{self, IsTerminal};
use std::time::Duration;
use twinblk::control::status::{LegStatus, Place, State, Status, WalkKind};
use twinblk::control::{Error, ErrorKind};
use twinblk::core::Health;

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct All {
    devices: Vec<Status>,
}

/// Show the status of one device, or of all; with `--watch` until interrupted, or until nobody reads it any more.
///
/// # Errors
/// There is no such device, or its daemon does not answer.
pub fn run(context: &Context, args: &args::Status) -> Result<Exit, Error> {
    if !args.watch {
        show(context, args, "")?;
        return Ok(Exit::Done);
    }
    // Home, and clear the screen; scripts get one report after another.
    let before = if io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    loop {
        match show(context, args, before) {
            // A daemon that is just being started, say: it may answer the next time.
            Err(error) if matches!(error.kind, ErrorKind::WrongState | ErrorKind::TimedOut) => {
                output::note(&error.message);
            }
            shown => shown?,
        }
        if output::reader_leaves_within(EVERY) {
            return Ok(Exit::Done);
        }
    }
}

fn show(context: &Context, args: &args::Status, before: &str) -> Result<(), Error> {
    if let Some(name) = &args.name {
        let status = status_of(context, name)?;
        return context.print(&status, || format!("{before}{}", human(&status)));
    }
    let mut all = All { devices: Vec::new() };
    for name in context.names()? {
        match status_of(context, &name) {
            Ok(status) => all.devices.push(status),
            Err(error) if error.kind == ErrorKind::NoSuchDevice => {}
            // The others are worth showing.
            Err(error) => output::note(&format!("{name}: {}", error.message)),
        }
    }
    context.print(&all, || {
        let texts: Vec<String> = all.devices.iter().map(human).collect();
        format!("{before}{}", texts.join("\n"))
    })
}

/// A device for people.
pub fn human(status: &Status) -> String {
    let device = status
        .device
        .as_ref()
        .map_or_else(|| "-".into(), |device| device.display().to_string());
    let mut text = format!(
        "{}  {}  {}  {}  protocol {}  era {}\n",
        status.name,
        status.state.word(),
        device,
        size::show(status.size_bytes),
        status.protocol.word(),
        status.era
    );
    let rows: Vec<Vec<String>> = status.legs.iter().map(|it| leg(status, it)).collect();
    text.push_str(&indent(&output::table(
        &["LEG", "ROLE", "HEALTH", "LAG", "CONSISTENT AT", "PATH"],
        &rows,
    )));
    if let Some(walk) = &status.resync {
        text.push_str(&format!(
            "  {}{}\n",
            progress::line(walk),
            if status.paused { "  paused" } else { "" }
        ));
    } else if status.paused {
        text.push_str("  background work is paused\n");
    }
    if status.dirty_bytes != 0 {
        text.push_str(&format!("  {} may differ\n", size::show(status.dirty_bytes)));
    }
    let rechecked = status.resync.is_some_and(|walk| walk.kind == WalkKind::Verify) && status.state == State::Syncing;
    for Place { offset, length } in suspect(status) {
        let what = match rechecked {
            true => format!("{} at {offset} may differ, and are being compared", size::show(length)),
            false => format!(
                "the legs differ in {} at {offset}; twinblk verify {} --repair",
                size::show(length),
                status.name
            ),
        };
        text.push_str(&format!("  SUSPECT: {what}\n"));
    }
    if let Some(unsigned) = status
        .signatures
        .map(|known| known.unsigned_bytes)
        .filter(|&bytes| bytes != 0)
    {
        text.push_str(&format!(
            "  {} were written and not hashed since\n",
            size::show(unsigned)
        ));
    }
    if let Some(counters) = &status.counters {
        text.push_str(&format!(
            "  generation {}, mirrored {}, barrier asked {}, flushed {}; {} wait for the secondary\n",
            counters.source_generation,
            counters.writes_mirrored,
            counters.flush_request,
            counters.writes_flushed,
            size::show(status.pool_used_bytes)
        ));
    }
    if let Some(io) = status.io.map(|io| io.guest) {
        text.push_str(&format!(
            "  {} reads ({}), {} writes ({}), {} flushes, {} discards, {} errors\n",
            io.reads,
            size::show(io.read_bytes),
            io.writes,
            size::show(io.written_bytes),
            io.flushes,
            io.discards,
            io.errors
        ));
    }
    if status.record_failing {
        text.push_str("  WARNING: the state directory cannot be written; changes of legs and roles are held\n");
    }
    text.push_str(&match &status.daemon {
        Some(daemon) => format!(
            "  daemon {} (version {}) since {}; driver: {}\n",
            daemon.pid,
            daemon.version,
            daemon.started,
            status.driver_state.word()
        ),
        None => format!(
            "  no daemon; driver: {}; twinblk start {}\n",
            status.driver_state.word(),
            status.name
        ),
    });
    text
}

/// Where the legs differ, each place once.
fn suspect(status: &Status) -> Vec<Place> {
    let mut places: Vec<Place> = status.legs.iter().flat_map(|leg| leg.suspect.iter().copied()).collect();
    places.sort_by_key(|place| place.offset);
    places.dedup();
    places
}

fn leg(status: &Status, leg: &LegStatus) -> Vec<String> {
    let mut health = leg.health.word().to_string();
    if !leg.attached {
        health.push_str(", detached");
    }
    if leg.retired {
        health.push_str(", retired");
    }
    if leg.awaited {
        health.push_str(", waited for");
    }
    if !leg.suspect.is_empty() {
        health.push_str(&format!(", {} places suspect", leg.suspect.len()));
    }
    vec![
        leg.id.to_string(),
        leg.role.word().to_string(),
        health,
        lag(status, leg),
        leg.consistent_at_generation
            .map_or_else(|| "-".into(), |generation| generation.to_string()),
        leg.path.display().to_string(),
    ]
}

/// What a leg lacks, and for how long; what one that is not in sync lacks is remembered as dirty.
fn lag(status: &Status, leg: &LegStatus) -> String {
    let dirty = match leg.health {
        Health::InSync => 0,
        Health::Behind | Health::Syncing | Health::Failed | Health::Absent => status.dirty_bytes,
    };
    let bytes = size::show(leg.lag_bytes.max(dirty));
    match leg.lag_ms {
        None | Some(0) => bytes,
        Some(ms @ ..10_000) => format!("{bytes}, {}.{} s", ms / 1000, ms % 1000 / 100),
        Some(ms) => format!("{bytes}, {}", progress::seconds(ms / 1000)),
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        serde_json::from_value(serde_json::json!({
            "name":"vm1","uuid":"u","device":"/dev/ublkb0","size_bytes":1u64 << 30,"protocol":"flush","era":3,
            "state":"syncing",
            "legs":[
                {"id":"a","path":"/dev/sda","role":"primary","health":"in-sync","consistent":true,
                 "consistent_at_generation":9,"lag_bytes":0,"suspect":[],"attached":true},
                {"id":"b","path":"/dev/sdb","role":"secondary","health":"syncing","consistent":false,
                 "consistent_at_generation":null,"lag_bytes":4096,"suspect":[],"attached":true}
            ],
            "counters":{"source_generation":9,"writes_mirrored":8,"flush_request":7,"writes_flushed":6},
            "dirty_bytes":65536,
            "resync":{"kind":"full","bytes_total":1u64 << 30,"bytes_done":1u64 << 29,"bytes_read":0,"bytes_written":0,
                      "bytes_matched":0,"rate_bytes_per_s":1u64 << 20,"eta_s":512},
            "last_resync":null,
            "daemon":{"pid":42,"version":"0.1.0","started":"2026-01-01T00:00:00Z"},"driver_state":"live",
            "io":{"reads":1,"writes":2,"flushes":3,"discards":4,"read_bytes":4096,"written_bytes":8192,"errors":0,
                  "metadata_writes":0}
        }))
        .unwrap()
    }

    #[test]
    fn a_running_device_shows_its_legs_and_how_far_it_is() {
        assert_eq!(
            human(&status()),
            concat!(
                "vm1  syncing  /dev/ublkb0  1.00 GiB  protocol flush  era 3\n",
                "  LEG  ROLE       HEALTH   LAG        CONSISTENT AT  PATH\n",
                "  a    primary    in-sync  0 B        9              /dev/sda\n",
                "  b    secondary  syncing  64.00 KiB  -              /dev/sdb\n",
                "  full [############------------]  50%  512.00 MiB of 1.00 GiB  1.00 MiB/s  eta 8 min 32 s\n",
                "  64.00 KiB may differ\n",
                "  generation 9, mirrored 8, barrier asked 7, flushed 6; 0 B wait for the secondary\n",
                "  1 reads (4.00 KiB), 2 writes (8.00 KiB), 3 flushes, 4 discards, 0 errors\n",
                "  daemon 42 (version 0.1.0) since 2026-01-01T00:00:00Z; driver: live\n",
            )
        );
    }

    #[test]
    fn a_stopped_device_says_how_to_start_it() {
        let mut stopped = status();
        (
            stopped.daemon,
            stopped.device,
            stopped.counters,
            stopped.io,
            stopped.resync,
        ) = (None, None, None, None, None);
        let text = human(&stopped);
        assert!(
            text.contains("twinblk start vm1") && !text.contains("generation 9,"),
            "{text}"
        );
    }

    #[test]
    fn a_slow_secondary_shows_how_much_it_lacks_and_for_how_long() {
        let mut slow = status();
        let shown = |slow: &Status| human(slow).lines().nth(3).expect("leg b").to_string();
        slow.legs[1].health = Health::InSync;
        slow.legs[1].lag_ms = Some(3210);
        assert!(shown(&slow).contains("4.00 KiB, 3.2 s"), "{}", shown(&slow));
        slow.legs[1].health = Health::Behind;
        slow.legs[1].lag_ms = Some(125_000);
        assert!(shown(&slow).contains("64.00 KiB, 2 min 5 s"), "{}", shown(&slow));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut bad = status();
        bad.record_failing = true;
        bad.paused = true;
        bad.legs[1].awaited = true;
        bad.legs[1].attached = false;
        bad.legs[1].retired = true;
        let text = human(&bad);
        for word in ["WARNING", "paused", "waited for", "detached", "retired"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
