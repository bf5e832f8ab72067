//! The tool as its users see it, against a daemon that answers as each test says: arguments in, requests out, answers in,
//! output and exit code out. What needs the driver is tested where there is one.

use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use twinblk::control::message::{Attached, Detached, Done, InSync, MAX_DIFFERENCES, Resync};
use twinblk::control::status::{Counters, Daemon, DriverState, Io, State};
use twinblk::control::{
    Content, Difference, Digested, Error, ErrorKind, Known, LegName, Progress, Reply, Request, Setting, Status,
    Switched, Verified, paths,
};
use twinblk::core::{Geometry, Health, LegId, LegRecord, Protocol, Record};
use twinblk::io::disk::{Disk, System, Wanted, footprint, identity};
use twinblk::runtime::admin::{Handler, Server, Socket};
use twinblk::runtime::state_dir::StateDir;
use twinblk::table::{LegIdentity, Settings, Superblock};

const SIZE: u64 = 4 << 20;

type Answers =
    dyn Fn(&Request, &mut dyn FnMut(&Progress) -> ControlFlow<()>) -> Option<Result<Reply, Error>> + Send + Sync;

/// Held by whoever starts a process, and by whoever has a lock that must be gone when it is dropped: a child has copies of
/// all descriptors between fork and exec, and a lock of a file lives as long as any copy.
static FORK: Mutex<()> = Mutex::new(());

fn fork_or_lock() -> MutexGuard<'static, ()> {
    FORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers `status` itself, the rest as it is told; notes everything.
struct Fake {
    status: Status,
    answers: Box<Answers>,
    /// What came, and whether a descriptor came with it.
    seen: Mutex<Vec<(Request, bool)>>,
}

impl Handler for Fake {
    fn handle(
        &self,
        request: Request,
        descriptor: Option<OwnedFd>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Reply, Error> {
        self.seen.lock().unwrap().push((request.clone(), descriptor.is_some()));
        match (self.answers)(&request, progress) {
            Some(answer) => answer,
            None if request == (Request::Status {}) => Ok(Reply::Status(Box::new(self.status.clone()))),
            None => Ok(Reply::DONE),
        }
    }
}

/// Two disks, a state directory and a run directory, in a directory that goes away with the test.
struct Host {
    root: PathBuf,
}

impl Host {
    fn new() -> Host {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only the numbers must differ.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("twinblk-cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let host = Host { root };
        for name in ["a", "b", "c"] {
            File::create(host.disk(name)).unwrap().set_len(SIZE).unwrap();
        }
        host
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.root.join(format!("disk-{name}"))
    }

    fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }

    fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    fn identity(&self, name: &str) -> LegIdentity {
        let _alone = fork_or_lock();
        Disk::open(&self.disk(name), &Wanted::ANY)
            .expect("the temporary directory can do direct I/O")
            .identity
    }

    /// The record of a device `vm1` on disk `a`, with disk `b` as its secondary in the given health.
    fn superblock(&self, secondary: Option<(Health, bool)>, clean: bool) -> Superblock {
        let leg = |health, attached| LegRecord {
            health,
            consistent_at: 0,
            attached,
            doubted: false,
        };
        Superblock {
            uuid: [7; 16],
            name: "vm1".parse().unwrap(),
            geometry: Geometry::new(SIZE, 512),
            max_io: 512 << 10,
            depth: 64,
            ublk_id: 4242,
            record: Record {
                number: Superblock::FIRST_NUMBER,
                era: 1,
                primary: LegId::A,
                legs: [
                    Some(leg(Health::InSync, true)),
                    secondary.map(|(health, attached)| leg(health, attached)),
                ],
                protocol: Protocol::Flush,
                generation_ceiling: 0,
                tracked: false,
                suspect: false,
                clean,
            },
            settings: Settings::default(),
            legs: [Some(self.identity("a")), secondary.map(|_| self.identity("b"))],
            footprints: [None; 2],
            since: [None; 2],
            sightings: [None; 2],
        }
    }

    /// A device that nobody serves.
    fn recorded(&self, superblock: &Superblock) {
        let _alone = fork_or_lock();
        StateDir::create(&self.state_dir(), superblock).unwrap();
    }

    /// A device that is served, by a daemon with these answers.
    fn serving(
        &self,
        superblock: &Superblock,
        answers: impl Fn(&Request, &mut dyn FnMut(&Progress) -> ControlFlow<()>) -> Option<Result<Reply, Error>>
        + Send
        + Sync
        + 'static,
    ) -> Serving {
        let lock = StateDir::create(&self.state_dir(), superblock).unwrap();
        let mut status = Status::of_record(superblock, true, DriverState::Live);
        let health = superblock.record.legs[1]
            .filter(|leg| leg.attached)
            .map(|leg| leg.health);
        status.state = match health {
            None => State::Single,
            Some(Health::InSync) => State::Mirrored,
            Some(Health::Syncing) => State::Syncing,
            Some(Health::Behind | Health::Failed | Health::Absent) => State::Degraded,
        };
        status.device = Some("/dev/ublkb4242".into());
        status.counters = Some(Counters::default());
        status.io = Some(Io::default());
        status.daemon = Some(Daemon {
            // None that there is.
            pid: u32::MAX >> 1,
            version: "0".into(),
            started: "1970-01-01T00:00:00Z".into(),
        });
        let fake = Arc::new(Fake {
            status,
            answers: Box::new(answers),
            seen: Mutex::default(),
        });
        let socket = Socket::bind(&paths::socket(&self.run_dir(), &superblock.name)).unwrap();
        let server = Server::start(socket, Arc::clone(&fake) as Arc<dyn Handler>).unwrap();
        Serving {
            server: Some(server),
            lock: Some(lock),
            fake,
        }
    }

    fn mirrored(&self) -> Superblock {
        self.superblock(Some((Health::InSync, true)), false)
    }

    fn single(&self) -> Superblock {
        self.superblock(None, false)
    }

    fn tool(&self, line: &str) -> Ended {
        let output = self.start(line).wait_with_output().unwrap();
        Ended {
            line: line.into(),
            output,
        }
    }

    /// The tool, with a shell script in the place of the daemon's program.
    fn tool_with_daemon(&self, line: &str, script: &str) -> Ended {
        let program = self.root.join("daemon");
        // A child of another test that has a copy of this descriptor would keep the script from being run.
        let alone = fork_or_lock();
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
        drop(alone);
        let output = self.start_with(line, Some(&program)).wait_with_output().unwrap();
        Ended {
            line: line.into(),
            output,
        }
    }

    fn start(&self, line: &str) -> Child {
        self.start_with(line, None)
    }

    fn start_with(&self, line: &str, daemon: Option<&Path>) -> Child {
        let mut command = self.command(line, daemon);
        let _alone = fork_or_lock();
        command.spawn().unwrap()
    }

    fn command(&self, line: &str, daemon: Option<&Path>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinblk"));
        command
            .args(line.split_whitespace())
            .env("TWINBLK_STATE_DIR", self.state_dir())
            .env("TWINBLK_RUN_DIR", self.run_dir())
            .envs(daemon.map(|daemon| ("TWINBLK_DAEMON", daemon)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

struct Serving {
    server: Option<Server>,
    lock: Option<StateDir>,
    fake: Arc<Fake>,
}

impl Serving {
    /// The requests that came, but for `status`.
    fn seen(&self) -> Vec<(Request, bool)> {
        let seen = self.fake.seen.lock().unwrap();
        seen.iter()
            .filter(|(request, _)| *request != Request::Status {})
            .cloned()
            .collect()
    }

    fn end(&mut self) {
        if let Some(server) = self.server.take() {
            server.finish(Duration::from_secs(10));
        }
        self.lock = None;
    }
}

struct Ended {
    line: String,
    output: Output,
}

impl Ended {
    fn stdout(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }

    fn stderr(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }

    #[track_caller]
    fn code(self, code: i32) -> Ended {
        let (out, err) = (self.stdout(), self.stderr());
        assert_eq!(self.output.status.code(), Some(code), "{}\n{out}\n{err}", self.line);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        let out = self.stdout();
        assert_eq!(out.lines().count(), 1, "one object: {out}");
        serde_json::from_str(&out).unwrap()
    }

    /// An error is said on standard error and, in JSON, on standard output.
    #[track_caller]
    fn says(self, word: &str) -> Ended {
        let err = self.stderr();
        assert!(err.contains(word), "{}: {word:?} in {err}", self.line);
        self
    }
}

fn nothing(_: &Request, _: &mut dyn FnMut(&Progress) -> ControlFlow<()>) -> Option<Result<Reply, Error>> {
    None
}

/// The same answer to everything but `status`.
fn always(reply: Result<Reply, Error>) -> Box<Answers> {
    Box::new(move |request, _| (*request != Request::Status {}).then(|| reply.clone()))
}

#[test]
fn what_the_daemon_refuses_is_the_exit_code() {
    for kind in ErrorKind::ALL {
        let host = Host::new();
        let error = Error::new(kind, "a reason").hint("a way out");
        let _serving = host.serving(&host.mirrored(), always(Err(error.clone())));
        let ended = host
            .tool("switch vm1 --json")
            .code(kind.exit_code().into())
            .says("a reason")
            .says("a way out");
        assert_eq!(ended.json(), json!({ "error": error }));
    }
}

#[test]
fn a_device_that_is_not_there_is_4_and_one_not_running_5() {
    let host = Host::new();
    for line in [
        "status vm1",
        "switch vm1",
        "stop vm1",
        "start vm1",
        "remove vm1",
        "wait vm1",
        "detach vm1 b",
    ] {
        host.tool(line).code(4).says("no device vm1");
    }
    host.recorded(&host.superblock(None, true));
    for line in [
        "switch vm1",
        "stop vm1",
        "wait vm1",
        "detach vm1 b",
        "verify vm1",
        "set vm1 quiet 1",
    ] {
        host.tool(line).code(5).says("twinblk start vm1");
    }
}

#[test]
fn a_restart_that_could_not_succeed_asks_for_nothing() {
    let host = Host::new();
    let serving = host.serving(&host.mirrored(), nothing);
    for script in ["exit 127", "echo another", "echo twinblkd 9; exit 1"] {
        host.tool_with_daemon("restart vm1", script)
            .code(1)
            .says("cannot be run")
            .says("TWINBLK_DAEMON");
    }
    fs::rename(host.disk("b"), host.disk("elsewhere")).unwrap();
    host.tool_with_daemon("restart vm1", "echo twinblkd 9")
        .code(3)
        .says("leg b of vm1");
    File::create(host.disk("b")).unwrap().set_len(SIZE).unwrap();
    host.tool_with_daemon("restart vm1", "echo twinblkd 9")
        .code(3)
        .says("another disk");
    let asked = serving
        .seen()
        .into_iter()
        .filter(|(request, _)| *request != (Request::Status {}));
    assert_eq!(asked.count(), 0);
}

#[test]
fn a_usage_error_is_2_also_in_json() {
    let host = Host::new();
    assert_eq!(host.tool("switch --json").code(2).json()["error"]["kind"], "usage");
    host.tool("set vm1 protocol raid").code(2);
    host.tool("nonsense").code(2);
    assert!(host.tool("--help").code(0).stdout().contains("Exit codes"));
}

#[test]
fn a_watch_shows_the_status_again_and_ends_when_nobody_reads_it_any_more() {
    let host = Host::new();
    let serving = host.serving(&host.mirrored(), nothing);
    let mut child = host.start("status vm1 --watch --json");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let one: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(one, serde_json::to_value(&serving.fake.status).unwrap());
    }
    drop(lines);
    let until = Instant::now() + Duration::from_secs(60);
    let ended = loop {
        match child.try_wait().unwrap() {
            Some(ended) => break ended,
            None if Instant::now() > until => {
                child.kill().unwrap();
                panic!("it goes on: {:?}", child.wait());
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn status_is_the_object_of_the_daemon() {
    let host = Host::new();
    let serving = host.serving(&host.mirrored(), nothing);
    let one = host.tool("status vm1 --json").code(0).json();
    assert_eq!(one, serde_json::to_value(&serving.fake.status).unwrap());
    assert_eq!(host.tool("status --json").code(0).json(), json!({ "devices": [one] }));
    let text = host.tool("status vm1").code(0).stdout();
    assert!(text.starts_with("vm1  mirrored  /dev/ublkb4242  4.00 MiB"), "{text}");
}

#[test]
fn a_device_that_nobody_serves_is_stopped_or_failed_by_its_record() {
    for (clean, state) in [(true, "stopped"), (false, "failed")] {
        let host = Host::new();
        host.recorded(&host.superblock(Some((Health::Behind, true)), clean));
        let status = host.tool("status vm1 --json").code(0).json();
        assert_eq!(status["state"], state);
        assert_eq!(status["daemon"], Value::Null);
        assert_eq!(status["driver_state"], "absent");
        assert_eq!(status["legs"][1]["health"], "behind");
        let list = host.tool("list --json").code(0).json();
        assert_eq!(list["devices"][0]["name"], "vm1");
        assert_eq!(list["devices"][0]["state"], state);
        assert_eq!(list["devices"][0]["device"], Value::Null);
    }
}

#[test]
fn a_list_goes_on_past_a_device_that_cannot_be_read() {
    let host = Host::new();
    let _serving = host.serving(&host.mirrored(), nothing);
    let broken = host.state_dir().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("superblock"), b"nonsense").unwrap();
    let list = host.tool("list --json").code(0).json();
    assert_eq!(list["devices"][0]["name"], "broken");
    assert_eq!(list["devices"][0]["error"]["kind"], "failed");
    assert_eq!(
        (&list["devices"][1]["name"], &list["devices"][1]["state"]),
        (&json!("vm1"), &json!("mirrored"))
    );
    assert_eq!(Host::new().tool("list --json").code(0).json(), json!({ "devices": [] }));
}

#[test]
fn a_state_that_cannot_be_used_is_forgotten_with_force_only() {
    let host = Host::new();
    let broken = host.state_dir().join("broken");
    fs::create_dir_all(&broken).unwrap();
    fs::write(broken.join("superblock"), b"nonsense").unwrap();
    host.tool("status broken").code(1);
    host.tool("remove broken").code(1).says("--force");
    host.tool("remove broken --force").code(0);
    host.tool("status broken").code(4);
}

#[test]
fn wait_hands_its_timeout_on_and_shows_progress_on_stderr_only() {
    let host = Host::new();
    let serving = host.serving(&host.mirrored(), |request, progress| {
        matches!(request, Request::Wait { .. }).then(|| {
            let _ = progress(&Progress::State { state: State::Syncing });
            Ok(Reply::InSync(InSync { state: State::Mirrored }))
        })
    });
    let ended = host.tool("wait vm1 --timeout 1.5").code(0).says("syncing");
    assert_eq!(ended.stdout(), "vm1 is mirrored\n");
    let quiet = host.tool("wait vm1 --json").code(0);
    assert_eq!(
        (quiet.json(), quiet.stderr().as_str()),
        (json!({"name":"vm1","state":"mirrored"}), "")
    );
    let asked = [
        Request::Wait { timeout_ms: Some(1500) },
        Request::Wait { timeout_ms: None },
    ];
    assert_eq!(serving.seen(), asked.map(|request| (request, false)));
}

#[test]
fn switch_prints_the_documented_object() {
    let host = Host::new();
    let switched = Switched {
        from: LegId::A,
        to: LegId::B,
        pause_us: 1234,
        generation: 5,
        era: 6,
    };
    let serving = host.serving(&host.mirrored(), always(Ok(Reply::Switched(switched))));
    let json = host.tool("switch vm1 --max-pause 10 --json").code(0).json();
    assert_eq!(
        json,
        json!({"from":"a","to":"b","pause_us":1234,"generation":5,"era":6})
    );
    assert!(
        host.tool("switch vm1 --force")
            .code(0)
            .stdout()
            .contains("pause 1.234 ms")
    );
    let switch = |max_pause_ms, force| (Request::Switch { max_pause_ms, force }, false);
    assert_eq!(serving.seen(), [switch(Some(10), false), switch(None, true)]);
}

#[test]
fn a_leg_is_found_by_its_letter_its_path_and_a_link_to_it() {
    let host = Host::new();
    let detached = Detached {
        leg: LegId::B,
        path: host.disk("b"),
    };
    let serving = host.serving(&host.mirrored(), always(Ok(Reply::Detached(detached))));
    let link = host.root.join("link");
    std::os::unix::fs::symlink(host.disk("b"), &link).unwrap();
    for leg in ["b", host.disk("b").to_str().unwrap(), link.to_str().unwrap()] {
        host.tool(&format!("detach vm1 {leg}")).code(0);
    }
    let asked = (
        Request::Detach {
            leg: LegName::Id(LegId::B),
        },
        false,
    );
    assert_eq!(serving.seen(), [asked.clone(), asked.clone(), asked]);
    host.tool("detach vm1 /dev/null").code(5).says("has no leg");
}

#[test]
fn verify_lists_every_difference_however_many_and_ends_with_7() {
    let host = Host::new();
    let count = 2 * MAX_DIFFERENCES as u64;
    let difference = |i: u64| Difference {
        offset: i * 8192,
        length: 4096,
        wrong_leg: None,
    };
    let _serving = host.serving(&host.mirrored(), move |request, progress| {
        matches!(request, Request::Verify(_)).then(|| {
            for i in 0..count {
                let _ = progress(&Progress::Difference(difference(i)));
            }
            Ok(Reply::Verified(Verified {
                equal: false,
                bytes_compared: SIZE,
                differences: (0..MAX_DIFFERENCES as u64).map(difference).collect(),
                difference_count: count,
                repaired_bytes: 0,
            }))
        })
    });
    let json = host.tool("verify vm1 --json").code(7).json();
    assert_eq!(json["equal"], false);
    assert_eq!(json["differences"].as_array().unwrap().len() as u64, count);
    assert_eq!(
        json["differences"][1],
        json!({"offset":8192,"length":4096,"wrong_leg":null})
    );
}

#[test]
fn digest_prints_the_hash_first_as_b3sum_does() {
    let host = Host::new();
    let digested = Digested {
        blake3: "ab".repeat(32),
        leg: LegId::B,
        generation: 3,
        known: Known::ReadBack,
    };
    let serving = host.serving(&host.mirrored(), always(Ok(Reply::Digested(digested))));
    let text = host
        .tool("digest vm1 --leg b --read-back --max-pause 0")
        .code(0)
        .stdout();
    assert_eq!(text, format!("{}  vm1\n", "ab".repeat(32)));
    assert_eq!(host.tool("digest vm1 --json").code(0).json()["known"], "read-back");
    let seen = serving.seen();
    let Request::Digest(first) = &seen[0].0 else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (first.leg.clone(), first.read_back, first.max_pause_ms),
        (Some(LegName::Id(LegId::B)), true, Some(0))
    );
    let Request::Digest(second) = &seen[1].0 else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (second.leg.clone(), second.read_back, second.max_pause_ms),
        (None, false, Some(10))
    );
}

#[test]
fn small_changes_arrive_as_they_were_meant() {
    let host = Host::new();
    let serving = host.serving(&host.mirrored(), always(Ok(Reply::Done(Done {}))));
    for line in [
        "resync vm1 pause",
        "resync vm1 resume",
        "resync vm1 rate 1M",
        "resync vm1 rate unlimited",
    ] {
        host.tool(line).code(0);
    }
    let json = host.tool("set vm1 pool-bytes 32M --json").code(0).json();
    assert_eq!(json, json!({"name":"vm1","key":"pool-bytes","value":32 << 20}));
    let asked = [
        Request::Resync(Resync::Pause {}),
        Request::Resync(Resync::Resume {}),
        Request::Resync(Resync::Rate {
            bytes_per_s: Some(1 << 20),
        }),
        Request::Resync(Resync::Rate { bytes_per_s: None }),
        Request::Set(Setting::PoolBytes(32 << 20)),
    ];
    assert_eq!(serving.seen(), asked.map(|request| (request, false)));
}

#[test]
fn stop_returns_when_the_daemon_is_gone_and_remove_forgets() {
    let host = Host::new();
    let serving = Arc::new(Mutex::new(host.serving(&host.single(), nothing)));
    let ending = Arc::clone(&serving);
    let fake = Arc::clone(&serving.lock().unwrap().fake);
    let daemon = std::thread::spawn(move || {
        while !fake
            .seen
            .lock()
            .unwrap()
            .iter()
            .any(|(request, _)| matches!(request, Request::Stop { .. }))
        {
            std::thread::yield_now();
        }
        ending.lock().unwrap().end();
    });
    host.tool("stop vm1").code(0);
    daemon.join().unwrap();
    assert_eq!(
        serving.lock().unwrap().seen(),
        [(Request::Stop { force: false }, false)]
    );

    // The fake's record is not clean, but there is no device left in the driver either.
    assert_eq!(
        host.tool("remove vm1 --json").code(0).json(),
        json!({"name":"vm1","state":"removed"})
    );
    host.tool("status vm1").code(4);
    assert!(!host.state_dir().join("vm1").exists());
}

#[test]
fn a_running_device_is_not_started_again() {
    let host = Host::new();
    let _serving = host.serving(&host.mirrored(), nothing);
    host.tool("start vm1").code(5).says("running already");
}

/// Have a service manager start a device that is served, and its daemon end; the record says whether it was stopped.
fn stays(clean: bool) -> Ended {
    let host = Host::new();
    let mut serving = host.serving(&host.superblock(None, clean), nothing);
    let path = host.root.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let line = "start vm1 --stay";
    let mut command = host.command(line, None);
    command.env("NOTIFY_SOCKET", &path);
    let alone = fork_or_lock();
    let child = command.spawn().unwrap();
    drop(alone);
    let mut told = [0; 16];
    let len = socket.recv(&mut told).unwrap();
    assert_eq!(&told[..len], b"READY=1");
    serving.end();
    let output = child.wait_with_output().unwrap();
    Ended {
        line: line.into(),
        output,
    }
}

#[test]
fn a_service_ends_well_with_a_stop_and_badly_with_a_dead_daemon() {
    stays(true).code(0);
    stays(false).code(1).says("has ended without stopping");
}

#[test]
fn a_name_is_not_used_twice() {
    let host = Host::new();
    host.recorded(&host.single());
    let disk = host.disk("c");
    host.tool(&format!("create vm1 {}", disk.display()))
        .code(3)
        .says("already");
}

#[test]
fn a_missing_primary_is_refused_and_a_missing_secondary_asks_for_degraded() {
    let host = Host::new();
    host.recorded(&host.superblock(Some((Health::InSync, true)), true));
    fs::rename(host.disk("b"), host.disk("b-away")).unwrap();
    host.tool("start vm1").code(3).says("is not there").says("--degraded");
    fs::rename(host.disk("b-away"), host.disk("b")).unwrap();
    fs::rename(host.disk("a"), host.disk("a-away")).unwrap();
    host.tool("start vm1").code(3).says("is not there").says("--degraded");
}

#[test]
fn what_a_missing_primary_would_cost_is_said_and_has_to_be_accepted() {
    let host = Host::new();
    let mut superblock = host.superblock(Some((Health::Behind, true)), true);
    superblock.record.legs[1].as_mut().unwrap().consistent_at = 41;
    superblock.since[1] = Some(1_767_225_599);
    host.recorded(&superblock);
    fs::rename(host.disk("a"), host.disk("a-away")).unwrap();
    for line in ["start vm1", "start vm1 --degraded", "start vm1 --force"] {
        host.tool(line)
            .code(3)
            .says("is not there")
            .says("generation 41 (at 2025-12-31T23:59:59Z)")
            .says("start vm1 --accept-stale");
    }
    fs::rename(host.disk("b"), host.disk("b-away")).unwrap();
    host.tool("start vm1 --accept-stale")
        .code(3)
        .says("disk-a is not there")
        .says("disk-b is not there");
}

#[test]
fn a_mixture_is_not_served_whatever_is_accepted() {
    for health in [Health::Syncing, Health::Failed, Health::Absent] {
        let host = Host::new();
        host.recorded(&host.superblock(Some((health, true)), true));
        fs::rename(host.disk("a"), host.disk("a-away")).unwrap();
        host.tool("start vm1 --accept-stale --degraded --force")
            .code(3)
            .says(health.word());
    }
}

#[test]
fn another_disk_at_the_primarys_path_is_refused() {
    let host = Host::new();
    host.recorded(&host.superblock(None, true));
    fs::rename(host.disk("a"), host.disk("a-away")).unwrap();
    File::create(host.disk("a")).unwrap().set_len(2 * SIZE).unwrap();
    host.tool("start vm1").code(3).says("another disk");
}

#[test]
fn a_disk_that_has_grown_comes_back_and_one_that_has_shrunk_does_not() {
    let host = Host::new();
    let serving = host.serving(
        &host.superblock(Some((Health::Behind, false)), true),
        always(Ok(Reply::Attached(Attached { leg: LegId::B }))),
    );
    let resize = |size| {
        File::options()
            .write(true)
            .open(host.disk("b"))
            .unwrap()
            .set_len(size)
            .unwrap()
    };
    let attach = format!("attach vm1 {}", host.disk("b").display());
    resize(2 * SIZE);
    host.tool(&attach).code(0);
    assert!(matches!(&serving.seen()[..], [(Request::Attach(attach), true)]
            if attach.content == Content::Returning && attach.identity.size == 2 * SIZE));
    resize(SIZE - 4096);
    host.tool(&attach).code(3);
}

#[test]
fn a_blank_disk_is_attached_with_its_descriptor() {
    let host = Host::new();
    let serving = host.serving(&host.single(), always(Ok(Reply::Attached(Attached { leg: LegId::B }))));
    let json = host
        .tool(&format!("attach vm1 {} --json", host.disk("c").display()))
        .code(0)
        .json();
    assert_eq!((&json["leg"], &json["content"]), (&json!("b"), &json!("blank")));
    let seen = serving.seen();
    let [(Request::Attach(attach), true)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(attach.content, Content::Blank);
    assert_eq!(Path::new(&*attach.identity.path), host.disk("c"));
}

#[test]
fn a_disk_that_is_not_blank_asks_for_overwrite() {
    let host = Host::new();
    let serving = host.serving(&host.single(), always(Ok(Reply::Attached(Attached { leg: LegId::B }))));
    let disk = host.disk("c");
    File::options()
        .write(true)
        .open(&disk)
        .unwrap()
        .write_all(b"somebody's data")
        .unwrap();
    host.tool(&format!("attach vm1 {}", disk.display()))
        .code(3)
        .says("--overwrite");
    assert_eq!(serving.seen(), []);
    assert!(fs::read(&disk).unwrap().starts_with(b"somebody's data"));
    host.tool(&format!("attach vm1 {} --overwrite", disk.display())).code(0);
    let seen = serving.seen();
    assert!(
        matches!(&seen[..], [(Request::Attach(attach), true)] if attach.content == Content::Overwrite),
        "{seen:?}"
    );
}

#[test]
fn a_leg_that_comes_back_needs_not_be_blank() {
    let host = Host::new();
    let detached = host.superblock(Some((Health::Behind, false)), false);
    let serving = host.serving(&detached, always(Ok(Reply::Attached(Attached { leg: LegId::B }))));
    File::options()
        .write(true)
        .open(host.disk("b"))
        .unwrap()
        .write_all(b"an old image")
        .unwrap();
    host.tool(&format!("attach vm1 {} --unchanged", host.disk("b").display()))
        .code(0);
    let seen = serving.seen();
    let [(Request::Attach(attach), true)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!((attach.content, attach.unchanged), (Content::Returning, true));
    host.tool(&format!("attach vm1 {} --unchanged", host.disk("c").display()))
        .code(3)
        .says("no leg of vm1");
}

/// A device with a detached leg b that holds something at both ends, and what that is.
fn detached(host: &Host) -> (Superblock, Vec<u8>) {
    let mut image = vec![0; SIZE as usize];
    for (at, text) in [
        (3, "a boot record"),
        (512, "EFI PART"),
        (SIZE as usize - 512, "EFI PART"),
    ] {
        image[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    // What lies between is nobody's label.
    image[SIZE as usize / 2] = 1;
    fs::write(host.disk("b"), &image).unwrap();
    let mut superblock = host.superblock(Some((Health::Behind, false)), true);
    let _alone = fork_or_lock();
    let disk = Disk::open(&host.disk("b"), &Wanted::ANY).unwrap();
    superblock.footprints[1] = footprint::of(&disk.identity, disk.descriptor.as_fd());
    (superblock, image)
}

#[test]
fn a_retired_disk_shows_nothing_and_is_put_back_byte_for_byte() {
    let host = Host::new();
    let (superblock, image) = detached(&host);
    host.recorded(&superblock);
    let content = || fs::read(host.disk("b")).unwrap();
    let retired = host.tool("detach vm1 b --retire --json").code(0).json();
    let path = host.disk("b");
    let places = json!([{"offset":0,"length":1 << 20},{"offset":SIZE - (1 << 20),"length":1 << 20}]);
    assert_eq!(retired, json!({"leg":"b","path":path,"retired":places}));
    let mut wiped = vec![0; SIZE as usize];
    wiped[SIZE as usize / 2] = 1;
    assert!(content() == wiped);
    // What the state directory alone has is not forgotten by the way.
    host.tool("remove vm1").code(3).says("unretire vm1");
    // Again: nothing left to do.
    host.tool("detach vm1 b --retire").code(0);
    assert!(content() == wiped);
    let restored = host.tool("unretire vm1 b --json").code(0).json();
    assert_eq!(restored, json!({"leg":"b","path":path,"restored":places}));
    assert!(content() == image);
    host.tool("unretire vm1 b").code(5).says("no retired disk");
    host.tool("remove vm1").code(0);
}

#[test]
fn a_retired_disk_that_somebody_wrote_to_is_left_as_it_is() {
    let host = Host::new();
    let (superblock, _) = detached(&host);
    host.recorded(&superblock);
    host.tool("detach vm1 b --retire").code(0);
    let mut image = vec![0; SIZE as usize];
    image[4096..4100].copy_from_slice(b"mine");
    fs::write(host.disk("b"), &image).unwrap();
    for line in ["unretire vm1 b", "detach vm1 b --retire"] {
        host.tool(line).code(3).says("at byte 4096");
        assert!(fs::read(host.disk("b")).unwrap() == image);
    }
    host.tool("remove vm1 --force").code(0);
}

#[test]
fn a_disk_that_may_have_been_used_since_is_retired_by_force_only() {
    let host = Host::new();
    let (mut superblock, image) = detached(&host);
    // It was let go before the machine was booted, say.
    superblock.footprints[1] = None;
    host.recorded(&superblock);
    host.tool("detach vm1 b --retire")
        .code(3)
        .says("another use")
        .says("--force");
    assert!(fs::read(host.disk("b")).unwrap() == image);
    host.tool("detach vm1 b --force").code(2);
    host.tool("detach vm1 b --retire --force").code(0);
    let status = host.tool("status vm1 --json").code(0).json();
    assert_eq!(
        (&status["legs"][0]["retired"], &status["legs"][1]["retired"]),
        (&json!(false), &json!(true))
    );
    host.tool("unretire vm1 b").code(0);
    assert!(fs::read(host.disk("b")).unwrap() == image);
}

#[test]
fn only_a_disk_that_the_device_has_let_go_of_is_retired() {
    let host = Host::new();
    host.recorded(&host.superblock(Some((Health::Behind, true)), true));
    for line in ["detach vm1 a --retire", "detach vm1 b --retire"] {
        host.tool(line).code(5).says("not running");
    }
    host.tool("unretire vm1 b").code(5).says("no retired disk");
    // Where it has not, it is asked to; what it refuses is not retired.
    let host = Host::new();
    let serving = host.serving(
        &host.mirrored(),
        always(Err(Error::wrong_state("leg a is the primary"))),
    );
    host.tool("detach vm1 a --retire").code(5).says("is the primary");
    let detach = |leg| Request::Detach { leg: LegName::Id(leg) };
    assert_eq!(serving.seen(), [(detach(LegId::A), false)]);
}

#[test]
fn a_disk_that_another_has_taken_the_place_of_is_not_wiped() {
    let host = Host::new();
    let (superblock, _) = detached(&host);
    host.recorded(&superblock);
    fs::remove_file(host.disk("b")).unwrap();
    // Held, so that the next file cannot get the number of the old one.
    let _other = File::create(host.root.join("between")).unwrap();
    fs::write(host.disk("b"), vec![1; SIZE as usize]).unwrap();
    host.tool("detach vm1 b --retire").code(3).says("another disk");
    assert!(fs::read(host.disk("b")).unwrap() == vec![1; SIZE as usize]);
}

#[test]
fn disks_that_cannot_be_mirrored_to_are_refused() {
    let host = Host::new();
    let serving = host.serving(&host.single(), nothing);
    let small = host.root.join("small");
    File::create(&small).unwrap().set_len(SIZE - 4096).unwrap();
    let link = host.root.join("the-same");
    std::os::unix::fs::symlink(host.disk("a"), &link).unwrap();
    for refused in [&small, &host.disk("a"), &link, &host.root, &PathBuf::from("/dev/null")] {
        host.tool(&format!("attach vm1 {} --overwrite", refused.display()))
            .code(3);
    }
    host.tool("attach vm1 /nonexistent/disk").code(1);
    assert_eq!(serving.seen(), []);
}

#[test]
fn a_disk_that_somebody_has_claimed_is_refused() {
    let host = Host::new();
    let serving = host.serving(&host.single(), nothing);
    let _claim = Disk::open(&host.disk("c"), &Wanted::ANY).unwrap();
    host.tool(&format!("attach vm1 {} --overwrite", host.disk("c").display()))
        .code(3)
        .says("claimed");
    assert_eq!(serving.seen(), []);
}

#[test]
fn a_block_device_that_is_no_leg_is_not_hidden() {
    let host = Host::new();
    // Legs that are files.
    host.recorded(&host.mirrored());
    // Some block device that this machine has; none in a sandbox without any.
    let Some(number) = fs::read_dir("/sys/dev/block").ok().and_then(|mut all| all.next()) else {
        return println!("skipped: there is no block device");
    };
    let number = number.unwrap().file_name().into_string().unwrap();
    let ended = host.tool(&format!("leg-at {number}")).code(0);
    assert_eq!(ended.stdout() + &ended.stderr(), "");
    host.tool("leg-at sda").code(2);
    host.tool("leg-at").code(2);
}

#[test]
fn a_block_device_that_is_a_leg_is_told_to_udev() {
    let host = Host::new();
    let blocks = System::host().blocks().unwrap();
    // What is recorded of a disk is what can be seen of it.
    let found = blocks.iter().find_map(|block| {
        let sectors: u64 = block.attribute("size")?.trim().parse().ok()?;
        let mut disk = identity::of_block(&System::host(), block, Path::new(&block.node())).ok()?;
        (disk.size, disk.block) = (sectors * 512, 512);
        (sectors > 0).then_some((block.dev, disk))
    });
    let Some((dev, disk)) = found else {
        return println!("skipped: there is no block device with a node");
    };
    let mut superblock = host.single();
    superblock.legs[0] = Some(disk);
    host.recorded(&superblock);
    let told = host
        .tool(&format!("leg-at {}:{}", dev.major, dev.minor))
        .code(0)
        .stdout();
    assert_eq!(told, "TWINBLK_LEG=vm1/a\nTWINBLK_PARTITION=0\nTWINBLK_LINKS=0\n");
}

#[test]
fn doctor_says_what_to_do_and_whether_it_can_serve() {
    let host = Host::new();
    let ended = host.tool("doctor --json");
    let json = ended.json();
    let missing = json["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["verdict"] == "missing");
    let missing: Vec<&Value> = missing.collect();
    assert!(missing.iter().all(|check| check["hint"].is_string()), "{missing:?}");
    assert_eq!(json["can_serve"], missing.is_empty());
    ended.code(if missing.is_empty() { 0 } else { 1 });
}
