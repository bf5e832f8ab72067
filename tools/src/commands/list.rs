//! `list`: all devices, running or not.

use crate::context::Context;
use crate::exit::Exit;
use crate::{daemon, driver, output, size};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;
use twinblk::control::status::{DriverState, State, Status};
use twinblk::control::{Error, ErrorKind};
use twinblk::core::Protocol;
use twinblk::runtime::retired;
use twinblk::table::{Name, Picked, Superblock};

/// How long a daemon may take to say how it is, before it counts as hung.
const PROMPT: Duration = Duration::from_secs(5);

/// The status of a device, from its daemon or else from its record.
///
/// # Errors
/// There is no such device, its state cannot be used, or its daemon does not answer.
pub fn status_of(context: &Context, name: &Name) -> Result<Status, Error> {
    if let Some(client) = context.connect(name)? {
        let status = Context::status_of(&mut client.patience(PROMPT))?;
        return Ok(match context.peek(name) {
            Ok(picked) => with_retired(context, status, &picked.superblock),
            Err(_) => status,
        });
    }
    let picked = context.peek(name)?;
    if context.is_locked(name)? {
        // Between the lock and the socket; or a daemon that cannot end because the kernel keeps its operations.
        let message =
            format!("a daemon has the state of {name} but does not listen: it is starting, stopping or dying");
        return Err(Error::wrong_state(message).hint("try again in a moment"));
    }
    let superblock = &picked.superblock;
    let clean = superblock.record.clean && !picked.doubt;
    let driver_state = left_of(context, name, &picked)?;
    // One that was handed over, and nobody has taken, is no stopped one: its guest waits.
    let stopped = clean && driver_state == DriverState::Absent;
    let status = Status::of_record(superblock, stopped, driver_state);
    Ok(with_retired(context, status, superblock))
}

/// Which legs are retired: the daemon has no part in that.
fn with_retired(context: &Context, mut status: Status, superblock: &Superblock) -> Status {
    let dir = context.state_dir.join(&superblock.name);
    for leg in &mut status.legs {
        leg.retired = retired::is_leg_retired(&dir, superblock, leg.id).unwrap_or(false);
    }
    status
}

/// What the driver has of a device that nobody serves.
fn left_of(context: &Context, name: &Name, picked: &Picked) -> Result<DriverState, Error> {
    let superblock = &picked.superblock;
    let id = superblock.ublk_id;
    let state = driver::state(id);
    if state == DriverState::Absent || number_is_anothers(context, name, id)? {
        return Ok(DriverState::Absent);
    }
    if superblock.record.clean && !picked.doubt {
        // The number of a device that was stopped is free, and may be somebody else's by now. Where nobody can tell, it was
        // stopped: a hand-over is the rare case.
        return Ok(daemon::left(id, &superblock.uuid).unwrap_or(DriverState::Absent));
    }
    Ok(state)
}

fn number_is_anothers(context: &Context, name: &Name, id: u32) -> Result<bool, Error> {
    let others = context.names()?;
    Ok(others.iter().filter(|other| *other != name).any(|other| {
        let same = context.peek(other).is_ok_and(|picked| picked.superblock.ublk_id == id);
        same && context.is_locked(other).unwrap_or(false)
    }))
}

/// A device in one line. What is not known is null.
#[derive(Serialize)]
struct Line {
    name: Name,
    state: State,
    device: Option<PathBuf>,
    size_bytes: Option<u64>,
    protocol: Option<Protocol>,
    /// Why not more is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
}

#[derive(Serialize)]
struct Lines {
    devices: Vec<Line>,
}

/// List all devices.
///
/// # Errors
/// The state directory cannot be read. A device that cannot be read is listed, with the reason.
pub fn run(context: &Context) -> Result<Exit, Error> {
    let mut devices = Vec::new();
    for name in context.names()? {
        devices.push(match status_of(context, &name) {
            Ok(status) => Line {
                name,
                state: status.state,
                device: status.device,
                size_bytes: Some(status.size_bytes),
                protocol: Some(status.protocol),
                error: None,
            },
            // Removed since it was listed.
            Err(error) if error.kind == ErrorKind::NoSuchDevice => continue,
            Err(error) => {
                let (state, device, size_bytes, protocol) = (State::Failed, None, None, None);
                Line {
                    name,
                    state,
                    device,
                    size_bytes,
                    protocol,
                    error: Some(error),
                }
            }
        });
    }
    let lines = Lines { devices };
    context.print(&lines, || human(&lines))?;
    Ok(Exit::Done)
}

fn human(lines: &Lines) -> String {
    let dash = || "-".to_string();
    let row = |line: &Line| {
        vec![
            line.name.to_string(),
            line.state.word().to_string(),
            line.device
                .as_ref()
                .map_or_else(dash, |device| device.display().to_string()),
            line.size_bytes.map_or_else(dash, size::show),
            line.protocol.map_or_else(dash, |protocol| protocol.word().to_string()),
        ]
    };
    let rows: Vec<Vec<String>> = lines.devices.iter().map(row).collect();
    let mut text = output::table(&["NAME", "STATE", "DEVICE", "SIZE", "PROTOCOL"], &rows);
    for line in &lines.devices {
        if let Some(error) = &line.error {
            text.push_str(&format!("{}: {}\n", line.name, error.message));
        }
    }
    text
}
