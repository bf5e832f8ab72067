//! The server and the client against each other, with a handler that does as it is told, and against clients that mean
//! harm.

use super::server::{MAX_CONNECTIONS, Server, Socket};
use super::{Client, Handler};
use crate::control::frame::LINE_LIMIT;
use crate::control::message::Done;
use crate::control::{Error, ErrorKind, Progress, Reply, Request, Verify};
use crate::io::passing;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longer than anything takes; only a failing test waits for it.
const LONG: Duration = Duration::from_secs(20);

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only the numbers must differ.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("twinblk-admin-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("run/vm1.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the handler tells the test.
#[derive(Debug, PartialEq)]
enum Seen {
    Began(&'static str),
    Descriptor(bool),
    ClientGone,
}

/// `wait` sends progress until the client is gone or the test says go; everything else is done at once.
struct Fake {
    seen: Mutex<Sender<Seen>>,
    go: Mutex<Receiver<()>>,
}

impl Fake {
    fn tell(&self, seen: Seen) {
        // The test may have ended.
        let _ = self.seen.lock().unwrap().send(seen);
    }
}

impl Handler for Fake {
    fn handle(
        &self,
        request: Request,
        descriptor: Option<OwnedFd>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Reply, Error> {
        self.tell(Seen::Began(request.command()));
        match request {
            Request::Attach(_) => self.tell(Seen::Descriptor(descriptor.is_some())),
            Request::Wait { .. } => loop {
                if progress(&Progress::Unknown).is_break() {
                    self.tell(Seen::ClientGone);
                    break;
                }
                if self.go.lock().unwrap().recv_timeout(Duration::from_micros(50)).is_ok() {
                    break;
                }
            },
            Request::Verify(_) => return Err(Error::wrong_state("no second leg").hint("attach one")),
            _ => assert!(descriptor.is_none(), "only an attach has one"),
        }
        Ok(Reply::DONE)
    }
}

struct Bench {
    scratch: Scratch,
    server: Option<Server>,
    seen: Receiver<Seen>,
    go: Sender<()>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(LONG, LONG)
    }

    fn with(write_patience: Duration, idle: Duration) -> Bench {
        let scratch = Scratch::new();
        let (tell, seen) = mpsc::channel();
        let (go, wait) = mpsc::channel();
        let fake = Fake {
            seen: Mutex::new(tell),
            go: Mutex::new(wait),
        };
        let socket = Socket::bind(&scratch.socket()).unwrap();
        let server = Server::start_with(socket, Arc::new(fake), write_patience, idle).unwrap();
        Bench {
            scratch,
            server: Some(server),
            seen,
            go,
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.scratch.socket())
            .unwrap()
            .expect("a server listens")
            .patience(LONG)
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.scratch.socket()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream
    }

    fn seen(&self) -> Seen {
        self.seen.recv_timeout(LONG).expect("the handler is called")
    }

    /// That the server still does its work.
    fn assert_serves(&self) {
        let answer: Result<Done, Error> = self.client().call(&Request::Status {}, None, no_progress);
        assert_eq!(answer, Ok(Done {}));
    }
}

fn no_progress(progress: Progress) -> ControlFlow<()> {
    panic!("unexpected {progress:?}")
}

/// The next line; none at the end of the connection.
fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    match reader.read_line(&mut line) {
        Ok(0) => None,
        Ok(_) => Some(line),
        // A server that closes with bytes unread resets.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn one_connection_carries_many_requests_and_their_errors() {
    let bench = Bench::new();
    let mut client = bench.client();
    for _ in 0..3 {
        assert_eq!(client.call(&Request::Status {}, None, no_progress), Ok(Done {}));
        let error = client
            .call::<Done>(&Request::Verify(Verify::default()), None, no_progress)
            .unwrap_err();
        assert_eq!(error, Error::wrong_state("no second leg").hint("attach one"));
    }
}

#[test]
fn a_shell_can_speak_it() {
    let bench = Bench::new();
    let mut stream = bench.raw();
    stream.write_all(b"{\"command\":\"status\"}\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "{\"ok\":{}}\n");
}

#[test]
fn nobody_else_can_reach_the_socket() {
    let bench = Bench::new();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bench.scratch.socket()), 0o600);
    assert_eq!(mode(bench.scratch.socket().parent().unwrap()), 0o700);
}

#[test]
fn a_socket_left_by_a_dead_daemon_is_replaced() {
    let scratch = Scratch::new();
    drop(Socket::bind(&scratch.socket()).unwrap());
    assert!(scratch.socket().exists());
    assert!(Client::connect(&scratch.socket()).unwrap().is_none(), "nobody listens");
    let _socket = Socket::bind(&scratch.socket()).unwrap();
    assert!(Client::connect(&scratch.socket()).unwrap().is_some());
    let left: Vec<_> = std::fs::read_dir(scratch.0.join("run")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_path_too_long_for_a_socket_is_an_error() {
    let scratch = Scratch::new();
    let error = Socket::bind(&scratch.0.join("x".repeat(100)).join("vm1.sock")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn garbage_gets_one_error_and_the_connection_goes_on() {
    let bench = Bench::new();
    let stream = bench.raw();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let deep = "[".repeat(LINE_LIMIT - 1);
    for garbage in ["nonsense", "", "{}", "\0\u{ff}", "{\"command\":\"status\"", &deep] {
        (&stream).write_all(garbage.as_bytes()).unwrap();
        (&stream).write_all(b"\n").unwrap();
        let answer = line(&mut reader).unwrap();
        assert!(
            answer.starts_with("{\"error\":{\"kind\":\"usage\""),
            "{garbage:.20}: {answer}"
        );
    }
    (&stream).write_all(b"{\"command\":\"status\"}\n").unwrap();
    assert_eq!(line(&mut reader).unwrap(), "{\"ok\":{}}\n");
}

#[test]
fn a_line_without_end_is_cut_off() {
    let bench = Bench::new();
    let stream = bench.raw();
    let piece = vec![b'x'; 1 << 20];
    // The server stops reading after the limit, so this ends in an error and not after 64 MiB.
    let result = (0..64).try_for_each(|_| (&stream).write_all(&piece));
    assert!(result.is_err(), "the server has read 64 MiB of one line");
    let mut reader = BufReader::new(&stream);
    let answer = line(&mut reader);
    assert!(answer.is_none_or(|line| line.contains("longer than")));
    bench.assert_serves();
}

#[test]
fn a_flood_of_requests_is_answered_in_order_and_harms_nobody() {
    let bench = Bench::new();
    let stream = bench.raw();
    let writer = stream.try_clone().unwrap();
    let count = 20_000;
    let flood = std::thread::spawn(move || {
        for _ in 0..count / 100 {
            (&writer).write_all(&b"{\"command\":\"status\"}\n".repeat(100)).unwrap();
        }
    });
    bench.assert_serves();
    let mut reader = BufReader::new(stream);
    for _ in 0..count {
        assert_eq!(line(&mut reader).unwrap(), "{\"ok\":{}}\n");
    }
    flood.join().unwrap();
}

#[test]
fn a_client_that_does_not_read_is_dropped() {
    let bench = Bench::with(Duration::from_millis(50), LONG);
    let stream = bench.raw();
    (&stream).write_all(b"{\"command\":\"wait\"}\n").unwrap();
    assert_eq!(bench.seen(), Seen::Began("wait"));
    // Nothing is read here: progress fills the socket, then the handler is told to break off.
    assert_eq!(bench.seen(), Seen::ClientGone);
    bench.assert_serves();
}

#[test]
fn a_client_that_sends_nothing_is_dropped() {
    let bench = Bench::with(LONG, Duration::from_millis(50));
    let stream = bench.raw();
    (&stream).write_all(b"{\"command\"").unwrap();
    let mut reader = BufReader::new(stream);
    assert!(line(&mut reader).unwrap().contains("timed-out"));
    assert_eq!(line(&mut reader), None);
}

#[test]
fn a_client_that_goes_away_breaks_off_its_request() {
    let bench = Bench::new();
    let result = bench
        .client()
        .call::<Done>(&Request::Wait { timeout_ms: None }, None, |_| ControlFlow::Break(()));
    assert_eq!(result.unwrap_err().kind, ErrorKind::Failed);
    assert_eq!(bench.seen(), Seen::Began("wait"));
    assert_eq!(bench.seen(), Seen::ClientGone);
}

#[test]
fn progress_comes_before_the_answer() {
    let bench = Bench::new();
    let mut events = 0;
    let go = bench.go.clone();
    let answer = bench.client().call(&Request::Wait { timeout_ms: None }, None, |event| {
        assert_eq!(event, Progress::Unknown);
        events += 1;
        if events == 3 {
            go.send(()).unwrap();
        }
        ControlFlow::Continue(())
    });
    assert_eq!(answer, Ok(Done {}));
    assert!(events >= 3);
}

#[test]
fn clients_beyond_the_limit_are_told_so() {
    let bench = Bench::new();
    let mut clients: Vec<Client> = (0..MAX_CONNECTIONS).map(|_| bench.client()).collect();
    for client in &mut clients {
        // Each has its thread when it has been answered.
        assert_eq!(client.call(&Request::Status {}, None, no_progress), Ok(Done {}));
    }
    for _ in 0..100 {
        let mut reader = BufReader::new(bench.raw());
        assert!(line(&mut reader).unwrap().contains("connected already"));
        assert_eq!(line(&mut reader), None);
    }
    drop(clients);
    // A thread notices the end of its client in its own time.
    let served = (0..10_000).any(|_| {
        std::thread::yield_now();
        bench
            .client()
            .call::<Done>(&Request::Status {}, None, no_progress)
            .is_ok()
    });
    assert!(served, "a place becomes free again");
}

fn attach() -> Request {
    let json = concat!(
        r#"{"command":"attach","content":"blank","identity":{"kind":"block","size":4096,"block":512,"major":8,"minor":0,"#,
        r#""inode":0,"partition":0,"serial":"","wwid":"","partition_uuid":"","stack_uuid":"","path":"/dev/x","#,
        r#""canonical":"/dev/x"}}"#
    );
    serde_json::from_str(json).unwrap()
}

#[test]
fn an_attach_brings_its_descriptor_and_nothing_else_does() {
    let bench = Bench::new();
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut client = bench.client();
    for expected in [true, false] {
        let descriptor = expected.then(|| null.as_fd());
        client.call::<Done>(&Request::Status {}, None, no_progress).unwrap();
        client.call::<Done>(&attach(), descriptor, no_progress).unwrap();
        assert_eq!(bench.seen(), Seen::Began("status"));
        assert_eq!(bench.seen(), Seen::Began("attach"));
        assert_eq!(bench.seen(), Seen::Descriptor(expected));
    }
}

#[test]
fn a_descriptor_reaches_its_attach_behind_requests_sent_before() {
    let bench = Bench::new();
    let null = std::fs::File::open("/dev/null").unwrap();
    let stream = bench.raw();
    passing::send(&stream, b"{\"command\":\"status\"}\n", &[]).unwrap();
    let line = crate::control::frame::encode(&attach());
    assert_eq!(passing::send(&stream, &line, &[null.as_fd()]).unwrap(), line.len());
    assert_eq!(bench.seen(), Seen::Began("status"));
    assert_eq!(bench.seen(), Seen::Began("attach"));
    assert_eq!(bench.seen(), Seen::Descriptor(true));
}

#[test]
fn a_flood_of_descriptors_ends_the_connection() {
    let bench = Bench::new();
    let null = std::fs::File::open("/dev/null").unwrap();
    let stream = bench.raw();
    let result = (0..1000).try_for_each(|_| passing::send(&stream, b" ", &[null.as_fd()]).map(drop));
    drop(result);
    let mut reader = BufReader::new(stream);
    let answer = line(&mut reader);
    assert!(answer.is_none_or(|line| line.contains("more descriptors")));
    assert_eq!(line(&mut reader), None);
    bench.assert_serves();
}

#[test]
fn the_end_waits_for_the_answer_to_a_request_under_way() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let waiting = std::thread::spawn(move || {
        client.call::<Done>(&Request::Wait { timeout_ms: None }, None, |_| ControlFlow::Continue(()))
    });
    assert_eq!(bench.seen(), Seen::Began("wait"));
    let idle = bench.raw();
    let server = bench.server.take().unwrap();
    let finished = std::thread::spawn(move || server.finish(LONG));
    // Only when the name is gone has the end begun.
    while bench.scratch.socket().exists() {
        std::thread::yield_now();
    }
    bench.go.send(()).unwrap();
    assert_eq!(waiting.join().unwrap(), Ok(Done {}));
    finished.join().unwrap();
    assert_eq!(line(&mut BufReader::new(idle)), None, "an idle client is closed");
}
