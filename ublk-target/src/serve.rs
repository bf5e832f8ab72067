//! Brings a device up, stands by while it is served, and takes it down.
//!
//! The order of the start: the device is added in the driver, or taken over from a dead daemon with its guest; the record
//! that says "in use", and what the secondary is worth from now on, is durable, behind whatever it relies on; the threads are there and every tag is
//! fetched; the device is started, and with that the first request can come; the admin socket listens; the tool is told.
//!
//! The order of the end: the device is stopped in the driver, which waits for what is in flight; the core drains both
//! legs, flushes them, and records the device as clean; the threads end; the device is deleted; whoever asked is told.
//! Another end leaves the device to the next daemon: see `hand_over`.

use crate::VERSION;
use crate::dead::{self, Left};
use crate::device::{self, Constants, Device, Shared};
use crate::ending::{Ended, Ending, Wanted};
use crate::errors::Told;
use crate::hand_over;
use crate::herald::Herald;
use crate::keeper::Keeper;
use crate::plan::{self, Awaited, Guest, Plan};
use crate::process;
use crate::running::{self, Failed, Running};
use crate::ublk::control::{self, Added, Shape};
use crate::ublk::features::Features;
use crate::ublk::sysfs;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use twinblk::control::launch::{Action, Launched, Ready};
use twinblk::control::status::{Daemon, rfc3339, uuid_text};
use twinblk::control::{Error, paths};
use twinblk::core::{CopyMode, LegId, Record};
use twinblk::io::disk::{Disk, users_of};
use twinblk::runtime::admin::{Launchee, Server, Socket};
use twinblk::runtime::state_dir::StateDir;
use twinblk::table::Superblock;

/// Largest discard and zeroing, in bytes: one request enters few regions.
const MAX_DISCARD: u32 = 8 << 20;
/// What the device says of its physical blocks, in bytes: the same whatever the disks say, so that it never changes.
const PHYSICAL_BLOCK: u32 = 4096;
/// How long the disks may take to answer at a stop, before whoever asked for it is told that they have not.
const DRAINING: Duration = Duration::from_secs(30);
/// How long the driver may take to let go of a dead daemon.
const TAKING_OVER: Duration = Duration::from_secs(15);
/// How long the driver may take to let go of a device that nobody has open.
const DELETING: Duration = Duration::from_secs(15);
/// And how long that is waited for when somebody may have it open.
const DELETING_USED: Duration = Duration::from_secs(1);
/// How long clients may take at the end.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serve what the launch asks for, until it is stopped.
///
/// # Errors
/// It could not be served at all; the tool was told.
pub fn serve(mut launchee: Launchee) -> Result<(), Error> {
    let brought_up = launchee.launch().and_then(|(mut launch, descriptors)| {
        if matches!(launch.action, Action::Create(_)) {
            // The first device on this machine.
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&launch.state_dir);
            made.map_err(|error| error.told(&format!("make {}", launch.state_dir.display())))?;
        }
        let dirs = process::enter_minimal_root([&launch.state_dir, &launch.run_dir]);
        [launch.state_dir, launch.run_dir] = dirs.map_err(|error| error.told("move to a minimal root"))?;
        let state_dir = launch.state_dir.clone();
        let socket = paths::socket(&launch.run_dir, &launch.name);
        let plan = Plan::new(launch, descriptors)?;
        bring_up(plan, &state_dir, &socket)
    });
    match brought_up {
        Ok(up) => {
            let id = up.running.added.id();
            log::info!(
                "serving {} as {}",
                up.device.constants.name,
                sysfs::block_device(id).display()
            );
            let ready = Ready {
                device: sysfs::block_device(id),
                id,
                pid: Some(std::process::id()),
            };
            launchee.answer(&Launched::Ready(ready));
            up.stand_by();
            Ok(())
        }
        Err(error) => {
            launchee.answer(&Launched::Failed(error.clone()));
            Err(error)
        }
    }
}

/// A device that is served and administered.
struct Up {
    running: Running,
    device: Arc<Device>,
    server: Server,
}

fn bring_up(plan: Plan, state_dir: &Path, socket: &Path) -> Result<Up, Error> {
    let Plan {
        superblock,
        state,
        id,
        disks,
        awaited,
        resync,
        believed,
        suspect,
        guest,
    } = plan;
    let (added, came) = have(id, &superblock, state.is_some(), guest)?;
    let id = added.id();
    let is_new = state.is_none();
    let metadata_writes = Arc::new(AtomicU64::new(0));
    let given = Given {
        state,
        disks,
        resync,
        believed,
        suspect,
    };
    let begun = begin(added, superblock.clone(), given, state_dir, &metadata_writes);
    let mut running = match begun {
        Ok(running) => running,
        Err(Failed { error, keeper }) => {
            if came == Came::New {
                running::delete(id, DELETING);
                forget(keeper.filter(|_| is_new));
            }
            return Err(error);
        }
    };
    process::lock_memory();
    running.unlock_unused(&superblock);
    let opened = running.start().and_then(|()| {
        let state_dir = state_dir.join(&superblock.name);
        open(
            &running,
            &superblock,
            awaited.as_ref(),
            metadata_writes,
            state_dir,
            socket,
        )
    });
    match opened {
        Ok((device, server)) => {
            if let Some(awaited) = awaited {
                take_when_free(&device, awaited);
            }
            Ok(Up {
                running,
                device,
                server,
            })
        }
        // The process ends, and the guest waits for the next one.
        Err(error) if came == Came::TakenOver => Err(error),
        Err(error) => {
            if let Err(error) = control::stop(id) {
                log::error!("{error}");
            }
            let keeper = running.end();
            running::delete(id, DELETING);
            forget(keeper.filter(|_| is_new));
            Err(error)
        }
    }
}

/// How the device came to be ours in the driver.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Came {
    /// Nobody has it open yet: it can be deleted again.
    New,
    /// With its guest, which must not see it end.
    TakenOver,
}

/// Have the device in the driver: as the dead daemon left it, with its guest, or a new one.
///
/// *Why the guest may go on:* the recorded primary is served, or a leg that has every write that was acknowledged as well. Where
/// the record may not be the newest, another leg may have been primary since, and a leg that stands in for the primary may
/// lack writes: then the guest must see the device end.
fn have(id: Option<u32>, superblock: &Superblock, is_ours: bool, guest: Guest) -> Result<(Added, Came), Error> {
    let shape = shape(id, superblock);
    let left = match id {
        Some(id) if is_ours => dead::look(id, shape.mark)?,
        Some(id) if sysfs::exists(id) => {
            let path = sysfs::block_device(id);
            return Err(Error::refused(format!("{} is there already", path.display())).hint("choose another --id"));
        }
        Some(_) | None => Left::Nothing,
    };
    match (left, id) {
        (Left::Waiting, Some(id)) if guest != Guest::Ends => {
            if let Guest::Refused(why) = guest {
                let path = sysfs::block_device(id);
                let message = format!(
                    "the guest of {} waits for its device, and may not go on with it: {why}",
                    path.display()
                );
                return Err(Error::refused(message).hint(
                    "with --force too, it is served all the same; whoever still has the device open gets errors first",
                ));
            }
            log::info!("taking over {} from a dead daemon", sysfs::block_device(id).display());
            let taken = control::take_over(shape, TAKING_OVER);
            let added = taken.map_err(|error| match error.is_timeout() {
                true => dead::held(id, control::info(id).map_or(0, |info| info.pid)),
                false => error
                    .told("take the block device over")
                    .hint("start it with --force: whoever still has it open gets errors, and it is served anew"),
            })?;
            return Ok((added, Came::TakenOver));
        }
        (Left::Held(pid), Some(id)) if guest != Guest::Ends => return Err(dead::held(id, pid)),
        (Left::Waiting | Left::Remains | Left::Held(_), Some(id)) => dead::bury(id, shape.mark)?,
        (Left::Nothing, _) | (_, None) => {}
    }
    let added = control::add(shape).map_err(|error| match (id, error.errno()) {
        (Some(id), Some(libc::EEXIST)) if is_ours => dead::number_kept(id),
        _ => error.told("add a block device"),
    })?;
    Ok((added, Came::New))
}

fn shape(id: Option<u32>, superblock: &Superblock) -> Shape {
    Shape {
        id,
        depth: superblock.depth,
        max_io: superblock.max_io,
        size: superblock.geometry.size,
        logical_block: superblock.geometry.block,
        physical_block: PHYSICAL_BLOCK,
        max_discard: MAX_DISCARD,
        mark: plan::mark(&superblock.uuid),
    }
}

/// What a device begins with; see [`Plan`].
struct Given {
    state: Option<StateDir>,
    disks: [Option<Disk>; 2],
    resync: CopyMode,
    believed: [bool; 2],
    suspect: bool,
}

/// Make the record durable, and start the threads.
fn begin(
    added: Added,
    mut superblock: Superblock,
    given: Given,
    state_dir: &Path,
    metadata_writes: &Arc<AtomicU64>,
) -> Result<Running, Failed> {
    let Given {
        state,
        disks,
        resync,
        believed,
        suspect,
    } = given;
    superblock.ublk_id = added.id();
    let state = match state {
        Some(state) => state,
        None => StateDir::create(state_dir, &superblock).map_err(|error| Failed {
            error: error.told("make the device's state directory"),
            keeper: None,
        })?,
    };
    let mut keeper = Box::new(Keeper::new(state, superblock.clone(), Arc::clone(metadata_writes)));
    let opened = keeper
        .tables()
        .and_then(|both| Ok((both, keeper.signatures(believed)?)));
    let ((mut tables, tracked), signatures) = match opened {
        Ok(all) => all,
        Err(error) => {
            return Err(Failed {
                error: error.told("read the device's state"),
                keeper: Some(keeper),
            });
        }
    };
    for leg in LegId::ALL {
        if let Some(disk) = &disks[leg.index()] {
            keeper.set_disk(leg, disk.identity.clone(), &disk.descriptor);
        }
    }
    // Before the record that says that there are suspect places.
    if suspect && let Err(error) = tables.suspect_all() {
        return Err(Failed {
            error: error.told("record that the legs may differ"),
            keeper: Some(keeper),
        });
    }
    let record = Record {
        tracked: tracked.is_some(),
        ..superblock.record.opened(disks.each_ref().map(Option::is_some))
    };
    if let Err(error) = keeper.write(&record) {
        let error = error.told("record that the device is in use");
        return Err(Failed {
            error,
            keeper: Some(keeper),
        });
    }
    if tracked.is_none() {
        tables.begin_anew();
    }
    let suspects = tables.suspects(&superblock);
    let state = running::State {
        keeper,
        tables,
        signatures,
        believed,
        suspects,
        tracked,
    };
    running::begin(added, &superblock, record, disks, resync, state)
}

/// Listen for administrators.
fn open(
    running: &Running,
    superblock: &Superblock,
    awaited: Option<&Awaited>,
    metadata_writes: Arc<AtomicU64>,
    state_dir: PathBuf,
    socket: &Path,
) -> Result<(Arc<Device>, Server), Error> {
    let settings = superblock.settings;
    let core = running
        .client
        .call(|desk| desk.mirror.status())
        .map_err(|ended| ended.told("serve"))?;
    let ending = Arc::new(Ending::new(Arc::clone(&running.bulletin)));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    let awaited = plan::awaited_flags(awaited);
    let device = Arc::new(Device {
        constants: Constants {
            name: superblock.name.to_string(),
            uuid: uuid_text(&superblock.uuid),
            path: sysfs::block_device(running.added.id()),
            geometry: superblock.geometry,
            layout: running.layout,
            daemon: Daemon {
                pid: std::process::id(),
                version: VERSION.into(),
                started: rfc3339(now),
            },
        },
        client: running.client.clone(),
        bulletin: Arc::clone(&running.bulletin),
        residence: Arc::clone(&running.residence),
        notes: Arc::clone(&running.notes),
        ending: Arc::clone(&ending),
        metadata_writes,
        state_dir,
        shared: Mutex::new(Shared {
            legs: device::legs::facts(&superblock.legs, awaited),
            // What the core calls absent has no disk here; a leg that is not followed was let go.
            held_since: core.legs.map(|leg| {
                leg.filter(|leg| leg.attached && leg.health != twinblk::core::Health::Absent)
                    .map(|_| 0)
            }),
            settings,
        }),
        legs_change: Mutex::new(()),
    });
    let listen = || -> std::io::Result<Server> { Server::start(Socket::bind(socket)?, Arc::clone(&device) as _) };
    let server = listen().map_err(|error| error.told(&format!("listen at {}", socket.display())))?;
    let stop = move |signal| {
        log::info!("{signal}: stopping");
        if let Err(error) = ending.ask(Wanted::Stop { force: false }) {
            log::warn!("not stopped: {error}");
        }
    };
    process::on_termination(stop).map_err(|error| error.told("wait for signals"))?;
    Ok((device, server))
}

fn forget(keeper: Option<Box<Keeper>>) {
    if let Some(keeper) = keeper
        && let Err(error) = keeper.remove()
    {
        log::error!("the state of a device that could not be started is left: {error}");
    }
}

/// Take a leg as soon as nobody else holds it.
fn take_when_free(device: &Arc<Device>, awaited: Awaited) {
    let device = Arc::clone(device);
    let (leg, identity) = (awaited.leg.leg, awaited.leg.identity.clone());
    log::warn!(
        "leg {leg}, {}, is still held by somebody; it is taken when it is free",
        identity.path
    );
    let wait = move || {
        if let Err(error) = device.take_when_free(leg, &awaited.descriptor, &identity) {
            log::error!("leg {leg} is not taken: {error}");
        }
    };
    if let Err(error) = thread::Builder::new()
        .name("claim".into())
        .stack_size(256 << 10)
        .spawn(wait)
    {
        log::error!("leg {leg} is not waited for: {error}");
    }
}

impl Up {
    /// Tell the log what happens, and carry out what the end asks for, until there is nothing left to serve.
    fn stand_by(self) {
        let Up {
            running,
            device,
            server,
        } = self;
        let bulletin = Arc::clone(&running.bulletin);
        let mut herald = Herald::default();
        let mut stopped_by = None;
        loop {
            let told = herald.newest();
            bulletin.wait(None, |board| {
                (board.newest > told || board.gone || device.ending.wanted().is_some()).then_some(())
            });
            herald.tell(&bulletin);
            if bulletin.board().ended {
                // The kernel treats it as a daemon that died: nothing acknowledged is lost, nothing is recorded as clean.
                log::error!("the device cannot be served any more; start it again");
                let _ = running.end();
                std::process::exit(1);
            }
            match device.ending.wanted() {
                Some(Wanted::HandOver) => match hand_over::hand_over(&running, &device) {
                    Ok(handed_over) => {
                        herald.tell(&bulletin);
                        hand_over::end(server, &device, handed_over);
                    }
                    Err(error) => device.ending.answer(Err(error)),
                },
                Some(Wanted::Stop { force }) => match stop(&running, force) {
                    Ok(in_time) => {
                        if !in_time {
                            device.ending.answer(Err(late(&device)));
                        }
                        stopped_by = Some((force, !in_time));
                        break;
                    }
                    Err(error) => device.ending.answer(Err(error)),
                },
                None if bulletin.board().gone => {
                    log::warn!("somebody else has ended the block device");
                    break;
                }
                None => {}
            }
        }
        if let Err(error) = is_drained(&running, None) {
            log::error!("{error}");
        }
        let id = running.added.id();
        herald.tell(&bulletin);
        let keeper = running.end();
        // Whoever has it open all the same keeps the number until he closes it.
        let is_forced = stopped_by.is_some_and(|(force, _)| force);
        running::delete(id, if is_forced { DELETING_USED } else { DELETING });
        // The lock on the state goes before whoever asked is told, so that the device can be started again at once.
        drop(keeper);
        if let Some((_, false)) = stopped_by {
            device.ending.answer(Ok(Ended::Stopped));
        }
        server.finish(FAREWELL);
        log::info!("stopped");
    }
}

/// Stop the device; `false` when a disk does not answer in time.
fn stop(running: &Running, force: bool) -> Result<bool, Error> {
    end_in_driver(running, force)?;
    is_drained(running, Some(Instant::now() + DRAINING))
}

/// Have the driver send no more requests.
fn end_in_driver(running: &Running, force: bool) -> Result<(), Error> {
    let id = running.added.id();
    let path = sysfs::block_device(id);
    let refused = |by: String| {
        Error::refused(format!("{} is in use: {by}", path.display()))
            .hint("close it first; --force ends it all the same, and whoever has it open gets errors")
    };
    if !force {
        let users = users_of(&path).map_err(|error| error.told("see who uses the device"))?;
        if !users.is_empty() {
            return Err(refused(
                users.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            ));
        }
    }
    // Where the kernel can, it looks once more itself, so that nobody slips in between.
    let can = Features::of_driver().is_ok_and(Features::can_stop_unused);
    let stopped = if can && !force {
        control::stop_unused(id)
    } else {
        control::stop(id)
    };
    match stopped {
        Err(error) if error.errno() == Some(libc::EBUSY) => return Err(refused("somebody has it open".into())),
        stopped => stopped.map_err(|error| error.told("stop the block device"))?,
    }
    running.bulletin.wait(None, |board| board.gone.then_some(()));
    Ok(())
}

/// Bring everything to the disks, and record that; `false` when it is not done in time.
fn is_drained(running: &Running, until: Option<Instant>) -> Result<bool, Error> {
    let clean = running.client.drain(&running.bulletin, until);
    let clean = clean.map_err(|ended| ended.told("bring everything to the disks"))?;
    if clean == Some(false) {
        log::warn!("the device is stopped, but not recorded as clean: a start compares the legs");
    }
    Ok(clean.is_some())
}

fn late(device: &Device) -> Error {
    let name = &device.constants.name;
    Error::timed_out(format!(
        "the block device of {name} is ended, but a disk has not answered for {DRAINING:?}"
    ))
    .hint("the daemon ends when the disk answers, or the kernel gives it up: see its log, and that of the kernel")
}
