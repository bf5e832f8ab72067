//! The daemon's side of the admin socket.
//!
//! Invariants: at most [`MAX_CONNECTIONS`] threads; each holds at most one line of the client's and one descriptor;
//! nothing is queued for a client. A client has [`WRITE_PATIENCE`] to take an answer and [`IDLE`] to send a request.

use super::handler::Handler;
use super::wire::{Broken, Wire};
use crate::control::{Answer, Error, ErrorKind, Progress, Reply, Request, frame};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Clients served at once; more get an error and are closed.
pub const MAX_CONNECTIONS: usize = 16;

/// How long a client may take to read one message.
pub const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a client may take to send its next request.
pub const IDLE: Duration = Duration::from_secs(600);

/// Stack of a connection's thread: the JSON reader goes 128 levels deep at most.
const STACK: usize = 512 << 10;

/// A listening admin socket that nobody serves yet: clients wait.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Make the socket at `path`, mode 0600, in place of any that is there; make its directory with mode 0700 if there
    /// is none. The caller holds the lock of the device's state directory, so a socket that is there belongs to nobody.
    ///
    /// # Errors
    /// Fails as the system calls do; a path that is too long for a socket (107 bytes) is `InvalidInput`.
    pub fn bind(path: &Path) -> io::Result<Socket> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        if !directory.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        // Bound under another name and renamed, so that there is never a moment with nothing at the path.
        let new = path.with_extension("sock.new");
        let address = UnixAddr::new(&new).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path is too long for a socket (107 bytes)",
            )
        })?;
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // The mode that the file gets when it is bound: there is no moment at which anybody else can connect.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(fd.as_raw_fd(), &address)?;
        listen(&fd, Backlog::new(MAX_CONNECTIONS as i32)?)?;
        fs::rename(&new, path)?;
        Ok(Socket {
            listener: UnixListener::from(fd),
            path: path.to_owned(),
        })
    }
}

/// The running server.
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    path: PathBuf,
}

struct Shared {
    listener: UnixListener,
    handler: Arc<dyn Handler>,
    write_patience: Duration,
    idle: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Connections by their number, to be shut down at the end.
    connections: BTreeMap<u64, UnixStream>,
    next: u64,
    /// Requests whose answer is not written yet.
    busy: usize,
    finishing: bool,
}

impl Server {
    /// Serve `socket`.
    ///
    /// # Errors
    /// Fails when no thread can be made.
    pub fn start(socket: Socket, handler: Arc<dyn Handler>) -> io::Result<Server> {
        Server::start_with(socket, handler, WRITE_PATIENCE, IDLE)
    }

    pub(super) fn start_with(
        socket: Socket,
        handler: Arc<dyn Handler>,
        write_patience: Duration,
        idle: Duration,
    ) -> io::Result<Server> {
        let shared = Arc::new(Shared {
            listener: socket.listener,
            handler,
            write_patience,
            idle,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = thread::Builder::new()
            .name("admin".into())
            .stack_size(STACK)
            .spawn(move || accepting.accept())?;
        Ok(Server {
            shared,
            acceptor: Some(acceptor),
            path: socket.path,
        })
    }

    /// Take no new request, let those under way be answered, close everything and remove the socket; all within
    /// `patience`. For the end of the daemon: a client must have the answer to its `stop` before the process is gone.
    pub fn finish(mut self, patience: Duration) {
        self.close(patience);
    }

    fn close(&mut self, patience: Duration) {
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        let deadline = Instant::now() + patience;
        self.shared.lock().finishing = true;
        // Ignored: the daemon goes whether the name is there or not, and the next one replaces it.
        let _ = fs::remove_file(&self.path);
        // Ends the accept(2) that the thread waits in. Fails only on a socket that is shut down.
        let _ = nix::sys::socket::shutdown(self.shared.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        // A panic in it was reported when it happened.
        let _ = acceptor.join();
        self.shared.wait_until(deadline, |state| state.busy == 0);
        for stream in self.shared.lock().connections.values() {
            // A client that is gone already is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.shared.wait_until(deadline, |state| state.connections.is_empty());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single step, so a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until(&self, deadline: Instant, holds: impl Fn(&State) -> bool) {
        let left = deadline.saturating_duration_since(Instant::now());
        let state = self.lock();
        drop(self.changed.wait_timeout_while(state, left, |state| !holds(state)));
    }

    fn accept(self: Arc<Shared>) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.clone().admit(stream),
                Err(_) if self.lock().finishing => return,
                Err(error) => {
                    log::warn!("admin socket: a connection could not be accepted: {error}");
                    // Out of descriptors, say: it would fail again at once.
                    thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }

    /// Give a connection its thread, if there is room.
    fn admit(self: Arc<Shared>, stream: UnixStream) {
        let number = {
            let mut state = self.lock();
            if state.finishing {
                return;
            }
            if state.connections.len() >= MAX_CONNECTIONS {
                drop(state);
                return turn_away(stream);
            }
            let Ok(handle) = stream.try_clone() else {
                return turn_away(stream);
            };
            let number = state.next;
            state.next += 1;
            state.connections.insert(number, handle);
            number
        };
        let served = Arc::clone(&self);
        let spawned = thread::Builder::new()
            .name(format!("admin-{number}"))
            .stack_size(STACK)
            .spawn(move || {
                let _leave = Leave {
                    shared: &served,
                    number,
                };
                served.serve(stream);
            });
        if let Err(error) = spawned {
            log::warn!("admin socket: no thread for a connection: {error}");
            self.leave(number);
        }
    }

    fn leave(&self, number: u64) {
        self.lock().connections.remove(&number);
        self.changed.notify_all();
    }

    fn serve(&self, stream: UnixStream) {
        // One descriptor: that of an attach.
        let mut wire = Wire::new(stream, 1);
        loop {
            let line = match wire.read_line(self.idle) {
                Ok(line) => line,
                Err(broken) => {
                    if let Some(error) = blame(&broken) {
                        // The connection ends either way.
                        let _ = wire.write(&Answer::<Reply>::Error(error), &[], self.write_patience);
                    }
                    return;
                }
            };
            let _busy = {
                let mut state = self.lock();
                if state.finishing {
                    return;
                }
                state.busy += 1;
                Busy { shared: self }
            };
            let result = frame::decode::<Request>(&line).and_then(|request| self.carry_out(&mut wire, request));
            drop(line);
            let answer = match result {
                Ok(reply) => Answer::Ok(reply),
                Err(error) => Answer::Error(error),
            };
            if let Err(broken) = wire.write(&answer, &[], self.write_patience) {
                log::debug!("admin socket: an answer was not taken: {broken}");
                return;
            }
        }
    }

    fn carry_out(&self, wire: &mut Wire, request: Request) -> Result<Reply, Error> {
        let descriptor = match &request {
            Request::Attach(_) => wire.take_descriptor(),
            _ => None,
        };
        let mut gone = false;
        self.handler.handle(request, descriptor, &mut |progress: &Progress| {
            // After a write that failed the stream may end in half a line: nothing can follow.
            gone = gone
                || wire
                    .write(&Answer::<&Reply>::Progress(progress.clone()), &[], self.write_patience)
                    .is_err();
            if gone {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
    }
}

/// What to tell a client whose connection ends; nothing to one that is gone.
fn blame(broken: &Broken) -> Option<Error> {
    match broken {
        Broken::TooLong(_) | Broken::TooManyDescriptors => Some(Error::usage(broken.to_string())),
        Broken::TimedOut => Some(Error::timed_out("no request came for a long time; connect again")),
        Broken::Closed { .. } | Broken::Io(_) => None,
    }
}

/// Say that there is no room, and close. The kernel's buffer of a new connection takes the line without waiting.
fn turn_away(stream: UnixStream) {
    let error = Error::new(
        ErrorKind::Failed,
        format!("{MAX_CONNECTIONS} clients are connected already"),
    )
    .hint("close one of them, or try again");
    let _ = Wire::new(stream, 0).write(&Answer::<Reply>::Error(error), &[], Duration::from_millis(100));
}

struct Leave<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.shared.leave(self.number);
    }
}

struct Busy<'a> {
    shared: &'a Shared,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.shared.lock().busy -= 1;
        self.shared.changed.notify_all();
    }
}
