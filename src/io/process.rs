//! Starts a process that lives on when its parent ends, and waits for one that is no child.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Start `program` in a session of its own, in `/`, with `socket` as descriptor `number`, standard output and error to
/// `log` and no other descriptor of ours: none that this process inherited (a lock, a pipe's end) lives on in it.
///
/// # Errors
/// The program cannot be started.
///
/// # Panics
/// Panics if `number` is one of the standard descriptors.
pub fn spawn_detached(program: &Path, socket: OwnedFd, number: RawFd, log: File) -> io::Result<Child> {
    assert!(number > 2, "standard descriptors have their own use");
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/");
    let from = socket.as_raw_fd();
    // SAFETY: the closure runs between fork and exec and makes system calls only; it neither allocates nor locks. `from`
    // is open: `socket` is kept until the child is made.
    unsafe {
        command.pre_exec(move || {
            check(libc::setsid())?;
            // Everything closes on exec, also what std itself opened (its own pipe already does), but for the three
            // standard descriptors; then `number` alone is made to stay.
            let everything = libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
            check(everything as libc::c_int)?;
            if from == number {
                check(libc::fcntl(number, libc::F_SETFD, 0))
            } else {
                check(libc::dup2(from, number))
            }
        });
    }
    let child = command.spawn();
    drop(socket);
    child
}

/// A process, whoever's child it is. It is never mistaken for a later one of the same number.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// The process with this number.
    ///
    /// # Errors
    /// There is none.
    pub fn open(pid: u32) -> io::Result<Process> {
        // SAFETY: takes numbers alone.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        check(fd as libc::c_int)?;
        // SAFETY: the call has just made this descriptor for us.
        Ok(Process(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// Wait until it has ended, at most so long; whether it has. What it had open is closed then.
    ///
    /// # Errors
    /// The system call's.
    pub fn ends_within(&self, patience: Duration) -> io::Result<bool> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up: a rest of less than a millisecond is waited for, not spun through.
            let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let mut ended = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ended, left) {
                Ok(0) if Instant::now() >= until => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_process_is_waited_for_until_it_has_ended() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.ends_within(Duration::from_millis(1)).unwrap());
        drop(child.stdin.take());
        assert!(process.ends_within(Duration::from_secs(60)).unwrap());
        child.wait().unwrap();
        assert!(Process::open(u32::MAX >> 1).is_err());
    }

    #[test]
    fn the_child_has_the_socket_and_a_session_of_its_own_and_nothing_else_of_ours() {
        let directory = std::env::temp_dir().join(format!("twinblk-process-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (script, log) = (directory.join("child"), directory.join("log"));
        std::fs::write(
            &script,
            "#!/bin/sh\necho on the log\nls /proc/$$/fd >&3\ncut -d' ' -f1,6 /proc/$$/stat >&3\npwd >&3\n",
        )
        .unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).unwrap();
        // A descriptor that would be inherited, at a number that the shell does not use for itself.
        let null = File::open("/dev/null").unwrap();
        let raw = nix::fcntl::fcntl(&null, nix::fcntl::FcntlArg::F_DUPFD(100)).unwrap();
        // SAFETY: the call has just made this descriptor for us.
        let _inherited = unsafe { OwnedFd::from_raw_fd(raw) };

        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut child = spawn_detached(&script, theirs.into(), 3, File::create(&log).unwrap()).unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        child.wait().unwrap();
        let lines: Vec<&str> = said.lines().collect();
        let (descriptors, rest) = lines.split_at(lines.len() - 2);
        // The shell keeps files of its own at 10 and above.
        let ours_or_standard = |fd: &&u32| **fd < 10 || **fd >= 100;
        let descriptors: Vec<u32> = descriptors.iter().map(|fd| fd.parse().unwrap()).collect();
        let kept: Vec<u32> = descriptors.iter().filter(ours_or_standard).copied().collect();
        assert_eq!(kept, [0, 1, 2, 3], "{said}");
        let (pid, session) = rest[0].split_once(' ').unwrap();
        assert_eq!(pid, session, "it leads its own session");
        assert_eq!(rest[1], "/");
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "on the log\n");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
