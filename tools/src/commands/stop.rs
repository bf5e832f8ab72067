//! `stop` and `remove`.

use super::retire;
use crate::args::{Remove, Stop};
use crate::context::{Context, state_error};
use crate::exit::Exit;
use crate::{daemon, disks, driver, output, udev};
use serde::Serialize;
use std::ops::ControlFlow;
use std::time::Duration;
use twinblk::control::message::Done;
use twinblk::control::status::DriverState;
use twinblk::control::{Error, ErrorKind, Request};
use twinblk::io::process::Process;
use twinblk::runtime::retired::RetiredDir;
use twinblk::runtime::state_dir::StateDir;
use twinblk::table::{Name, Picked};

/// How long a daemon that has stopped its device may take to be gone.
const GONE: Duration = Duration::from_secs(30);

/// What became of a device.
#[derive(Serialize)]
struct Became<'a> {
    name: &'a Name,
    state: &'static str,
}

/// Stop a device cleanly.
///
/// # Errors
/// Open: refused. Not running: wrong state.
pub fn run(context: &Context, args: &Stop) -> Result<Exit, Error> {
    stop(context, &args.name, args.force)?;
    let name = &args.name;
    context.print(&Became { name, state: "stopped" }, || format!("{name} is stopped\n"))?;
    Ok(Exit::Done)
}

fn stop(context: &Context, name: &Name, force: bool) -> Result<(), Error> {
    let mut client = context.running(name)?;
    let picked = context.peek(name)?;
    let id = picked.superblock.ublk_id;
    if !force {
        let users = disks::users_of_device(id)?;
        if !users.is_empty() {
            let device = driver::block_device(id);
            let message = format!("{name} ({}) is in use: {}", device.display(), users.join("; "));
            return Err(Error::refused(message).hint("end that first, or --force: whoever has it open gets errors"));
        }
    }
    // None where it is in a namespace of its own: then the lock on its state tells.
    let daemon = Context::status_of(&mut client)?.daemon;
    let process = daemon.and_then(|daemon| Process::open(daemon.pid).ok());
    let Done {} = client.call(&Request::Stop { force }, None, |_| ControlFlow::Continue(()))?;
    drop(client);
    // Recorded as clean from here on; but it is done only when its disks and its number are free again, and the daemon gone.
    let mut failure = None;
    let has_ended = || {
        process
            .as_ref()
            .is_none_or(|process| process.ends_within(Duration::ZERO).unwrap_or(true))
    };
    let gone = driver::until(GONE, || match context.is_locked(name) {
        Ok(locked) => !locked && driver::state(id) == DriverState::Absent && has_ended(),
        Err(error) => {
            failure = Some(error);
            true
        }
    });
    match (failure, gone) {
        (Some(error), _) => Err(error),
        (None, true) => Ok(()),
        (None, false) => {
            let message = format!(
                "{name} is stopped, but its daemon or its device is still there after {} s",
                GONE.as_secs()
            );
            Err(Error::timed_out(message).hint("see the daemon's log, and the kernel's"))
        }
    }
}

/// Stop a device and forget it.
///
/// # Errors
/// As [`run`]; a device that died and is still in the driver is refused without force.
pub fn remove(context: &Context, args: &Remove) -> Result<Exit, Error> {
    let name = &args.name;
    let _nobody_retires = keep_retired(context, name, args.force)?;
    if context.connect(name)?.is_some() {
        stop(context, name, args.force)?;
    }
    let picked = match context.peek(name) {
        Ok(picked) => Some(picked),
        Err(error) if error.kind == ErrorKind::NoSuchDevice => return Err(error),
        Err(error) if args.force => {
            output::note(&format!("{}; removed all the same", error.message));
            None
        }
        Err(error) => {
            let hint = format!("twinblk remove {name} --force forgets it all the same");
            return Err(Error {
                hint: Some(hint),
                ..error
            });
        }
    };
    if let Some(picked) = &picked {
        bury_orphan(name, picked, args.force)?;
    }
    forget(context, name, picked.is_some())?;
    let legs = picked.iter().flat_map(|picked| picked.superblock.legs.iter().flatten());
    legs.for_each(udev::look_again);
    // Both may be missing.
    let _ = std::fs::remove_file(twinblk::control::paths::socket(&context.run_dir, name));
    let _ = std::fs::remove_file(twinblk::control::paths::log(&context.run_dir, name));
    context.print(&Became { name, state: "removed" }, || {
        format!("{name} is removed; its disks keep their content\n")
    })?;
    Ok(Exit::Done)
}

/// What was wiped on a retired disk is nowhere but in the state that is to be forgotten. Nobody retires one until the lock that
/// is returned is dropped.
fn keep_retired(context: &Context, name: &Name, force: bool) -> Result<Option<RetiredDir>, Error> {
    let dir = match retire::lock(context, name) {
        Ok(dir) => dir,
        Err(error) if error.kind == ErrorKind::WrongState => return Err(error),
        // What is wrong with the state is told by whoever goes on with it.
        Err(_) => return Ok(None),
    };
    if force {
        return Ok(Some(dir));
    }
    let kept = retire::kept(&dir)?;
    let Some(path) = kept.first() else {
        return Ok(Some(dir));
    };
    let message = format!(
        "{} is retired, and what was wiped on it is saved in the state of {name} alone",
        kept.join(", ")
    );
    Err(Error::refused(message).hint(format!(
        "put it back (twinblk unretire {name} {path}), or give it up: twinblk remove {name} --force"
    )))
}

/// A device whose daemon died, or has handed it over, is still in the driver: the next start deletes it there, and without one it would stay for ever.
fn bury_orphan(name: &Name, picked: &Picked, force: bool) -> Result<(), Error> {
    let clean = picked.superblock.record.clean && !picked.doubt;
    let id = picked.superblock.ublk_id;
    if driver::state(id) == DriverState::Absent {
        return Ok(());
    }
    // The number of one that was stopped may be somebody else's by now; of one that was handed over, it is not.
    if clean && daemon::left(id, &picked.superblock.uuid)? == DriverState::Absent {
        return Ok(());
    }
    if force {
        return daemon::bury(id, &picked.superblock.uuid);
    }
    let message = format!("no daemon serves {name} and its device, number {id}, is still in the driver");
    let hint = format!("twinblk start {name}, then remove it; or --force: the device is deleted as it is");
    Err(Error::refused(message).hint(hint))
}

/// Forget the state, under its lock.
fn forget(context: &Context, name: &Name, usable: bool) -> Result<(), Error> {
    if usable {
        let (state, _) = StateDir::open(&context.state_dir, name).map_err(|error| state_error(&error))?;
        return state.remove().map_err(|error| state_error(&error));
    }
    if context.is_locked(name)? {
        return Err(Error::wrong_state(format!("a daemon has the state of {name}")));
    }
    let path = context.state_dir.join(name);
    std::fs::remove_dir_all(&path).map_err(|error| Error::failed(format!("{}: {error}", path.display())))
}
