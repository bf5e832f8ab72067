//! `restart`: replace the running daemon under the guest.
//!
//! Everything that can be found out before is found out before: that the new program runs, that the disks are there. Then the old
//! daemon hands over and ends, and the new one takes the device, as after a crash, but with nothing to compare. From the hand-over
//! on the guest waits: whatever goes wrong, somebody is to serve, so the old program is kept at hand.

use crate::args::Device;
use crate::context::Context;
use crate::disks::{self, CLAIM_PATIENCE, Leg};
use crate::exit::Exit;
use crate::{daemon, driver, output};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use twinblk::control::launch::{self, Action, Ready};
use twinblk::control::message::{Done, Resync};
use twinblk::control::status::Status;
use twinblk::control::{Error, HandedOver, Request};
use twinblk::core::{Health, LegId};
use twinblk::io::process::Process;
use twinblk::runtime::clock;
use twinblk::table::{Name, Superblock};

/// How long a daemon that has handed over may take to be gone.
const GONE: Duration = Duration::from_secs(60);

/// What is printed.
#[derive(Serialize)]
struct Restarted<'a> {
    /// How long the guest's requests were held.
    stall_ms: u64,
    from_version: &'a str,
    to_version: &'a str,
    name: &'a Name,
    device: &'a Path,
    pid: Option<u32>,
}

/// Replace the running daemon.
///
/// # Errors
/// Not running, busy or with a leg that hangs: wrong state, or timed out; the old daemon serves on. If the new one does not start,
/// the old one is started again; the error says who serves.
pub fn run(context: &Context, args: &Device) -> Result<Exit, Error> {
    let name = &args.name;
    let mut client = context.running(name)?;
    let status = Context::status_of(&mut client)?;
    let new = daemon::program()?;
    let to_version = daemon::version(&new)?;
    look_for_disks(&context.peek(name)?.superblock, &status)?;
    let old = Old::of(&status)?;
    driver::ensure()?;
    context.make_run_dir()?;

    // From here on an end of this tool would leave the guest waiting.
    hold_signals();
    let handed_over: HandedOver = client.call(&Request::HandOver {}, None, |_| ControlFlow::Continue(()))?;
    drop(client);
    let waits = |error: Error| {
        let message = format!(
            "{name} was handed over and nobody serves it, its guest waits: {}",
            error.message
        );
        let hint = format!("twinblk start {name}");
        Error { message, ..error }.hint(hint)
    };
    let after = take(context, name, &old, &new).map_err(waits)?;
    let stall_ms = clock::now().0.saturating_sub(handed_over.since_ns) / 1_000_000;
    if status.paused {
        pause_again(context, name);
    }
    let ready = match after {
        After::New(ready) => ready,
        After::Old(error) => {
            let from = &old.version;
            let message = format!(
                "the new daemon, version {to_version}, did not start: {}; {name} is served by the old one again, version \
                 {from}; requests were held for {stall_ms} ms",
                error.message
            );
            return Err(Error { message, ..error });
        }
    };
    let restarted = Restarted {
        stall_ms,
        from_version: &old.version,
        to_version: &to_version,
        name,
        device: &ready.device,
        pid: ready.pid,
    };
    context.print(&restarted, || {
        let from = &old.version;
        format!("{name}: daemon replaced, version {from} by {to_version}; requests were held for {stall_ms} ms\n")
    })?;
    Ok(Exit::Done)
}

/// The daemon that is to be replaced.
struct Old {
    process: Process,
    /// Its program, whatever became of the path that it was started by.
    executable: File,
    path: PathBuf,
    version: String,
}

impl Old {
    fn of(status: &Status) -> Result<Old, Error> {
        let Some(daemon) = &status.daemon else {
            return Err(Error::failed("the daemon does not say which process it is"));
        };
        let pid = daemon.pid;
        let failed = |error| Error::failed(format!("the daemon (pid {pid}) cannot be looked at: {error}"));
        let link = format!("/proc/{pid}/exe");
        Ok(Old {
            process: Process::open(pid).map_err(failed)?,
            executable: File::open(&link).map_err(failed)?,
            path: fs::read_link(&link).map_err(failed)?,
            version: daemon.version.clone(),
        })
    }

    /// A path by which its program can be started: the one it has, or ours to the file that is not there any more.
    fn program(&self) -> PathBuf {
        let is_there = match (fs::metadata(&self.path), self.executable.metadata()) {
            (Ok(found), Ok(ours)) => (found.dev(), found.ino()) == (ours.dev(), ours.ino()),
            _ => false,
        };
        if is_there {
            self.path.clone()
        } else {
            format!("/proc/{}/fd/{}", std::process::id(), self.executable.as_raw_fd()).into()
        }
    }
}

/// Who serves now.
enum After {
    New(Ready),
    /// The old program, and why the new one does not.
    Old(Error),
}

/// Have the device taken by the new program, or else by the old one.
fn take(context: &Context, name: &Name, old: &Old, new: &Path) -> Result<After, Error> {
    let gone = old.process.ends_within(GONE);
    if !gone.map_err(|error| Error::failed(format!("the old daemon cannot be waited for: {error}")))? {
        let message = format!("the old daemon has not ended after {} s", GONE.as_secs());
        return Err(Error::timed_out(message));
    }
    let superblock = context.peek(name)?.superblock;
    // A secondary that was there a moment ago is no reason to leave the guest waiting.
    let degraded = true;
    let primary = disks::open_primary(context, &superblock, CLAIM_PATIENCE)?;
    let secondary = disks::open_secondary(context, &superblock, &primary.told.identity, degraded)?;
    let legs: Vec<Leg> = [Some(primary), secondary].into_iter().flatten().collect();
    let action = || {
        Action::Start(launch::Start {
            degraded,
            ..launch::Start::default()
        })
    };
    let error = match daemon::launch_program(new, context, name, action(), &legs) {
        Ok(ready) => return Ok(After::New(ready)),
        Err(error) => error,
    };
    output::note(&format!(
        "the new daemon did not start: {}; starting the old one again",
        error.message
    ));
    match daemon::launch_program(&old.program(), context, name, action(), &legs) {
        Ok(_) => Ok(After::Old(error)),
        Err(second) => {
            let message = format!(
                "the new daemon did not start ({}), and the old one did not start again ({})",
                error.message, second.message
            );
            Err(Error { message, ..error })
        }
    }
}

/// The legs' disks are where the next daemon will look for them; but for that of a secondary that the running one does without.
fn look_for_disks(superblock: &Superblock, status: &Status) -> Result<(), Error> {
    let primary = superblock.record.primary;
    for leg in LegId::ALL {
        let is_followed = superblock.record.legs[leg.index()].is_some_and(|leg| leg.attached);
        if leg == primary || (is_followed && is_used(status, leg)) {
            disks::look_for(superblock, leg)?;
        }
    }
    Ok(())
}

/// Whether the running daemon has use for the leg's disk.
fn is_used(status: &Status, leg: LegId) -> bool {
    let leg = status.legs.iter().find(|status| status.id == leg);
    leg.is_some_and(|leg| match leg.health {
        Health::InSync | Health::Behind | Health::Syncing => true,
        Health::Failed | Health::Absent => false,
    })
}

/// Have what asks this process to end wait until it has.
fn hold_signals() {
    let mut asking = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        asking.add(signal);
    }
    if let Err(errno) = asking.thread_block() {
        output::note(&format!("do not interrupt this: signals cannot be held ({errno})"));
    }
}

/// That background work is paused is nothing that is recorded.
fn pause_again(context: &Context, name: &Name) {
    let paused = context.running(name).and_then(|mut client| {
        client.call::<Done>(&Request::Resync(Resync::Pause {}), None, |_| ControlFlow::Continue(()))
    });
    if let Err(error) = paused {
        output::note(&format!(
            "background work goes on, and was paused before: {}",
            error.message
        ));
    }
}
