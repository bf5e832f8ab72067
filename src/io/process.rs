//! Starts a process that lives on when its parent ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

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
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

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
