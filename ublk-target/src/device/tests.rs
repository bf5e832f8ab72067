//! A device with a real core, shard and record, on files; its disks' operations succeed and do nothing.

use super::*;
use crate::running;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use twinblk::control::status::WalkKind;
use twinblk::control::{Attach, Content, ErrorKind, LegName};
use twinblk::core::config::{Config, LINGER};
use twinblk::core::{Action, Buf, CopyMode, Errno, LegId, LegOp, LegTraits, Record, Suspects, Tag};
use twinblk::io::disk::{Disk, Wanted};
use twinblk::runtime::clock;
use twinblk::runtime::port::{Arrival, Port};
use twinblk::runtime::shard::Shard;
use twinblk::runtime::signer::{self, signer};
use twinblk::runtime::state_dir::StateDir;
use twinblk::runtime::surroundings::Surroundings;
use twinblk::runtime::tables::clerk;
use twinblk::runtime::worker::recorder;
use twinblk::table::retired::Saved;
use twinblk::table::{Retired, Superblock};

const SIZE: u64 = 1 << 20;

/// Disks that do nothing, and no guest.
struct Idle {
    wake: Arc<EventFd>,
    disks: [Option<Arc<OwnedFd>>; 2],
    done: Vec<LegOp>,
    /// Whether flushes of the secondary stay unanswered; looked at when something arrives.
    holds_flushes: Arc<AtomicBool>,
}

impl Port for Idle {
    fn submit(&mut self, op: LegOp) {
        assert!(self.disks[op.leg.index()].is_some(), "{op:?} for a leg without a disk");
        self.done.push(op);
    }

    fn complete(&mut self, _: Tag, _: Result<(), Errno>, _: Buf, _: Buf) {
        unreachable!("there is no guest");
    }

    fn set_leg(&mut self, leg: LegId, disk: Option<Arc<OwnedFd>>) -> Option<Arc<OwnedFd>> {
        std::mem::replace(&mut self.disks[leg.index()], disk)
    }

    fn wait(&mut self, deadline: Option<Time>, arrivals: &mut Vec<Arrival>) -> io::Result<()> {
        let holds = self.holds_flushes.load(Ordering::SeqCst);
        self.done.retain(|op| {
            let is_held = holds && op.action == Action::Flush && op.leg == LegId::B;
            if !is_held {
                arrivals.push(Arrival::Completion(op.id, Ok(())));
            }
            is_held
        });
        let timeout = match deadline {
            _ if !arrivals.is_empty() => PollTimeout::ZERO,
            None => PollTimeout::NONE,
            Some(deadline) => {
                PollTimeout::try_from(deadline.since(clock::now()).0.div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut ready = [PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, timeout)?;
        if ready[0].any() == Some(true) {
            self.wake.read()?;
            arrivals.push(Arrival::Wake);
        }
        Ok(())
    }
}

/// A device whose secondary, `b.img`, is attached and was held by somebody else when it was started.
struct World {
    root: PathBuf,
    device: Arc<Device>,
    holds_flushes: Arc<AtomicBool>,
    shard: Option<JoinHandle<io::Result<Idle>>>,
}

impl World {
    fn new(test: &str) -> World {
        let root = std::env::temp_dir().join(format!("twinblk-device-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        for file in ["a.img", "b.img", "c.img"] {
            File::create(root.join(file)).unwrap().set_len(SIZE).unwrap();
        }
        let a = open(&root, "a.img");
        let identity_of_b = open(&root, "b.img").identity;
        let mut record = Record::first(Protocol::Flush);
        record.legs[1] = record.legs[0];
        let superblock = Superblock {
            uuid: [7; 16],
            name: "vm1".parse().unwrap(),
            geometry: Geometry::new(SIZE, a.identity.block.max(512)),
            max_io: 128 << 10,
            depth: 8,
            ublk_id: 0,
            record,
            settings: table::Settings {
                pool_bytes: 2 << 20,
                ..table::Settings::default()
            },
            legs: [Some(a.identity.clone()), Some(identity_of_b)],
            footprints: [None; 2],
            since: [None; 2],
            sightings: [None; 2],
        };
        let layout = running::layout(&superblock);
        let surroundings = Surroundings::new(&layout, &superblock.geometry, superblock.geometry.region(), 1).unwrap();
        let client = surroundings.client();
        let (residence, bulletin) = (Arc::clone(&surroundings.residence), Arc::clone(&surroundings.bulletin));
        let state = StateDir::create(&root, &superblock).unwrap();
        let writes = Arc::new(AtomicU64::new(0));
        let mut keeper = Keeper::new(state, superblock.clone(), Arc::clone(&writes));
        let (tables, _) = keeper.tables().unwrap();
        let record = superblock.record.opened([true, false]);
        keeper.write(&record).unwrap();
        let (tables, _) = clerk(tables, Arc::clone(&surroundings.ledger), surroundings.outbox.clone()).unwrap();
        let ledger = Arc::clone(&surroundings.ledger);
        let (errands, _) = signer(signer::Nothing, ledger, tables.clone(), surroundings.outbox.clone()).unwrap();
        let (records, _) = recorder(keeper, surroundings.outbox.clone()).unwrap();
        let config = Config {
            geometry: superblock.geometry,
            region: superblock.geometry.region(),
            linger: LINGER,
            layout,
            pool_bytes: superblock.settings.pool_bytes,
            stall_budget: Span::from_secs(3600),
            leg_timeout: Span::from_secs(3600),
            catch_up: true,
            lag_bytes: 0,
            quiet: Span::from_secs(2),
            generations: Record::GENERATIONS,
        };
        let traits = [Some(LegTraits { punches: true }), None];
        let mirror = Mirror::new(
            config,
            record,
            traits,
            None,
            Suspects::none(),
            CopyMode::Compare,
            clock::now(),
        );
        let holds_flushes = Arc::new(AtomicBool::new(false));
        let port = Idle {
            wake: surroundings.wake(),
            disks: [Some(a.descriptor), None],
            done: Vec::new(),
            holds_flushes: Arc::clone(&holds_flushes),
        };
        let shard = thread::spawn(move || Shard::new(mirror, port, surroundings, records, tables, errands, 64).run());
        let device = Arc::new(Device {
            constants: Constants {
                name: superblock.name.to_string(),
                uuid: String::new(),
                path: "/dev/ublkb0".into(),
                geometry: superblock.geometry,
                layout,
                daemon: Daemon {
                    pid: 1,
                    version: String::new(),
                    started: String::new(),
                },
            },
            client,
            bulletin: Arc::clone(&bulletin),
            residence,
            notes: Default::default(),
            ending: Arc::new(Ending::new(bulletin)),
            metadata_writes: writes,
            state_dir: root.join("vm1"),
            shared: Mutex::new(Shared {
                legs: legs::facts(&superblock.legs, [false, true]),
                held_since: [Some(0), None],
                settings: superblock.settings,
            }),
            legs_change: Mutex::new(()),
        });
        World {
            root,
            device,
            holds_flushes,
            shard: Some(shard),
        }
    }

    fn disk(&self, file: &str) -> Disk {
        open(&self.root, file)
    }

    /// Wait for a disk as the daemon does at its start.
    fn take_when_free(&self, file: &str, identity: &table::LegIdentity) -> JoinHandle<Result<(), Error>> {
        let descriptor = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(self.root.join(file))
            .unwrap();
        let (device, identity) = (Arc::clone(&self.device), identity.clone());
        thread::spawn(move || device.take_when_free(LegId::B, &descriptor.into(), &identity))
    }

    fn attach(&self, file: &str) -> Result<Reply, Error> {
        let disk = self.disk(file);
        let attach = Attach {
            identity: disk.identity.clone(),
            content: Content::Overwrite,
            unchanged: false,
        };
        let descriptor = disk.descriptor.try_clone().unwrap();
        drop(disk);
        self.ask(Request::Attach(attach), Some(descriptor))
    }

    fn ask(&self, request: Request, descriptor: Option<OwnedFd>) -> Result<Reply, Error> {
        self.device
            .handle(request, descriptor, &mut |_| ControlFlow::Continue(()))
    }

    /// What the state directory says at this moment, whatever the daemon knows.
    fn recorded(&self) -> table::Settings {
        let picked = StateDir::peek(&self.root, &"vm1".parse().unwrap());
        picked.unwrap().superblock.settings
    }

    fn detach() -> Request {
        Request::Detach {
            leg: LegName::Id(LegId::B),
        }
    }

    fn secondary(&self) -> (String, bool) {
        let status = self.device.status().unwrap();
        let leg = status.secondary().unwrap();
        (leg.path.file_name().unwrap().to_str().unwrap().into(), leg.attached)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.device.client.call(|desk| desk.end());
        let ended = self.shard.take().unwrap().join();
        let _ = fs::remove_dir_all(&self.root);
        assert!(ended.is_ok_and(|ended| ended.is_ok()) || thread::panicking());
    }
}

fn open(root: &Path, file: &str) -> Disk {
    Disk::open(&root.join(file), &Wanted::ANY).unwrap()
}

#[test]
fn a_disk_that_is_waited_for_is_taken_when_it_is_free() {
    let world = World::new("taken");
    let somebody = world.disk("b.img");
    let taking = world.take_when_free("b.img", &somebody.identity);
    drop(somebody);
    assert_eq!(taking.join().unwrap(), Ok(()));
    world.ask(Request::Wait { timeout_ms: None }, None).unwrap();
    assert_eq!(world.secondary(), ("b.img".into(), true));
    assert!(
        Disk::open(&world.root.join("b.img"), &Wanted::ANY).is_err(),
        "it is claimed"
    );
}

#[test]
fn a_disk_that_was_detached_while_it_was_waited_for_is_never_taken() {
    let world = World::new("detached");
    let somebody = world.disk("b.img");
    let taking = world.take_when_free("b.img", &somebody.identity);
    world.ask(World::detach(), None).unwrap();
    drop(somebody);
    assert_eq!(taking.join().unwrap(), Ok(()));
    assert_eq!(world.secondary(), ("b.img".into(), false));
    let _free = world.disk("b.img");
}

#[test]
fn a_disk_that_is_waited_for_does_not_replace_one_that_was_attached_meanwhile() {
    let world = World::new("replaced");
    let somebody = world.disk("b.img");
    let taking = world.take_when_free("b.img", &somebody.identity);
    world.attach("c.img").unwrap();
    drop(somebody);
    assert_eq!(taking.join().unwrap(), Ok(()));
    world.ask(Request::Wait { timeout_ms: None }, None).unwrap();
    assert_eq!(world.secondary(), ("c.img".into(), true));
    let _free = world.disk("b.img");
}

/// Detach leg b, and let it come back with the administrator's word that nobody else wrote to it.
fn comes_back(world: &World, meanwhile: impl FnOnce(&Disk)) -> WalkKind {
    world.attach("b.img").unwrap();
    world.ask(Request::Wait { timeout_ms: None }, None).unwrap();
    world.ask(World::detach(), None).unwrap();
    let disk = world.disk("b.img");
    meanwhile(&disk);
    let attach = Attach {
        identity: disk.identity.clone(),
        content: Content::Returning,
        unchanged: true,
    };
    let descriptor = disk.descriptor.try_clone().unwrap();
    drop(disk);
    world.ask(Request::Attach(attach), Some(descriptor)).unwrap();
    world.ask(Request::Wait { timeout_ms: None }, None).unwrap();
    // In sync is recorded a moment before the walk is over.
    let status = world.device.status().unwrap();
    status.resync.or(status.last_resync).unwrap().kind
}

/// The state directory as it is when the disk of leg b was retired. Nothing is looked for on it, by a program of its own: that would
/// have, for a moment, the claims of all tests.
fn saved(disk: &Disk) -> Vec<u8> {
    let saved = Saved {
        start: 0,
        content: vec![1; 4096],
    };
    Retired {
        uuid: [7; 16],
        leg: LegId::B,
        wiped: true,
        detached: None,
        identity: disk.identity.clone(),
        saved: vec![saved],
    }
    .encode()
}

#[test]
fn a_retired_disk_is_compared_whole_whoever_vouches_for_it_and_forgotten_then() {
    let world = World::new("retired");
    world.ask(World::detach(), None).unwrap();
    let file = world.root.join("vm1/retired-1");
    assert_eq!(
        comes_back(&world, |disk| fs::write(&file, saved(disk)).unwrap()),
        WalkKind::Full
    );
    assert!(!file.exists());
    world.ask(World::detach(), None).unwrap();
    // What cannot be read may be about this disk, and is nobody's to forget.
    assert_eq!(comes_back(&world, |_| fs::write(&file, "?").unwrap()), WalkKind::Full);
    fs::remove_file(&file).unwrap();
    world.ask(World::detach(), None).unwrap();
    assert_eq!(comes_back(&world, |_| ()), WalkKind::Dirty);
}

#[test]
fn what_was_saved_of_a_disk_is_forgotten_before_it_is_let_go_again() {
    let world = World::new("stale");
    world.ask(World::detach(), None).unwrap();
    let mut of_disk = Vec::new();
    comes_back(&world, |disk| of_disk = saved(disk));
    // As if the daemon had died between recording the leg and forgetting what was saved of it.
    let file = world.root.join("vm1/retired-1");
    fs::write(&file, of_disk).unwrap();
    world.ask(World::detach(), None).unwrap();
    assert!(!file.exists());
}

#[test]
fn a_leg_whose_detach_nobody_waited_for_can_be_attached_again() {
    let world = World::new("interrupted");
    world.ask(World::detach(), None).unwrap();
    world.attach("b.img").unwrap();
    world.ask(Request::Wait { timeout_ms: None }, None).unwrap();
    world.holds_flushes.store(true, Ordering::SeqCst);
    let interrupted = world
        .device
        .handle(World::detach(), None, &mut |_| ControlFlow::Break(()));
    assert!(interrupted.is_err());
    let taken = world.attach("c.img");
    assert!(taken.is_err(), "the disk is still being written: {taken:?}");

    let newest = world.device.bulletin.board().newest;
    world.holds_flushes.store(false, Ordering::SeqCst);
    world.device.status().unwrap();
    let released = |board: &mut Board| (board.released[1] > newest).then_some(());
    world.device.bulletin.wait(None, released).unwrap();
    world.attach("c.img").unwrap();
    world.ask(Request::Wait { timeout_ms: None }, None).unwrap();
    assert_eq!(world.secondary(), ("c.img".into(), true));
    let _free = world.disk("b.img");
}

/// Every setting that is not a part of the core's record, each with another value than it has.
fn other_settings() -> Vec<(Request, table::Settings)> {
    let before = table::Settings {
        pool_bytes: 2 << 20,
        ..table::Settings::default()
    };
    let mut settings = before;
    let mut all = Vec::new();
    let mut then = |request, change: &dyn Fn(&mut table::Settings)| {
        change(&mut settings);
        all.push((request, settings));
    };
    then(Request::Set(Setting::StallBudget(7)), &|to| to.stall_budget_ms = 7);
    then(Request::Set(Setting::LegTimeout(8)), &|to| to.leg_timeout_ms = 8_000);
    then(Request::Set(Setting::PoolBytes(4 << 20)), &|to| to.pool_bytes = 4 << 20);
    then(Request::Set(Setting::LagBytes(9)), &|to| to.lag_bytes = 9);
    then(Request::Set(Setting::Quiet(10)), &|to| to.quiet_ms = 10_000);
    then(Request::Set(Setting::CatchUp(CatchUp::Manual)), &|to| {
        to.catch_up = false
    });
    let rate = |bytes_per_s| Request::Resync(Resync::Rate { bytes_per_s });
    then(rate(Some(11)), &|to| to.rate = 11);
    then(rate(None), &|to| to.rate = 0);
    all
}

#[test]
fn a_setting_is_durable_when_it_is_acknowledged_and_shown_as_recorded() {
    let world = World::new("settings");
    for (request, settings) in other_settings() {
        assert_eq!(world.ask(request.clone(), None), Ok(Reply::DONE), "{request:?}");
        assert_eq!(world.recorded(), settings, "{request:?}");
        let status = world.device.status().unwrap();
        assert_eq!(status.settings, Some(Settings::from(&settings)));
        assert_eq!(
            status.rate_limit_bytes_per_s,
            (settings.rate != 0).then_some(settings.rate)
        );
    }
}

/// Has the thread that writes records wait, before it writes the next one, until the sender says so or is gone.
fn hold_records(world: &World) -> Sender<()> {
    let (go_on, held) = channel::<()>();
    let amended = world.device.client.call(|desk| {
        desk.amend(Subject::Leg(LegId::A), move |_: &mut Keeper| {
            let _ = held.recv();
        });
    });
    amended.unwrap();
    go_on
}

/// Have a setting changed while records are held; `meanwhile` runs when whoever asked was told that it goes on.
fn set_while_held(world: &World, meanwhile: impl FnOnce()) -> Result<Reply, Error> {
    let request = Request::Set(Setting::LagBytes(1 << 20));
    let (told, progress) = channel();
    thread::scope(|scope| {
        let setting = scope.spawn(move || {
            world.device.handle(request, None, &mut |progress| {
                let _ = told.send(progress.clone());
                ControlFlow::Continue(())
            })
        });
        progress.recv().unwrap();
        assert!(!setting.is_finished());
        meanwhile();
        setting.join().unwrap()
    })
}

#[test]
fn a_setting_is_not_acknowledged_while_its_record_cannot_be_written_and_nobody_waits_with_it() {
    let world = World::new("held");
    let before = world.recorded();
    let go_on = hold_records(&world);
    let answer = set_while_held(&world, || {
        assert_eq!(world.recorded(), before);
        let status = world.device.status().unwrap();
        assert_eq!(status.settings.unwrap().lag_bytes, 1 << 20);
        go_on.send(()).unwrap();
    });
    assert_eq!(answer, Ok(Reply::DONE));
    assert_eq!(world.recorded().lag_bytes, 1 << 20);
}

#[test]
fn a_setting_that_could_not_be_recorded_is_told_so_and_stays_in_force() {
    let world = World::new("unrecorded");
    let go_on = hold_records(&world);
    let answer = set_while_held(&world, || {
        let under_way = world.device.status().unwrap().record_number + 1;
        world.device.bulletin.tell_recorded(under_way, Err(Errno(libc::ENOSPC)));
    });
    let error = answer.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Failed);
    assert!(
        error.message.contains("in force") && error.message.contains("No space"),
        "{error}"
    );
    assert_eq!(world.device.status().unwrap().settings.unwrap().lag_bytes, 1 << 20);
    drop(go_on);
}
