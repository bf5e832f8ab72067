//! What the process is to the rest of the machine: not killed, not swapped out, and without a hold on its mounts.
//!
//! - **I/O flusher.** Memory that the kernel allocates for this process must not be got by writing to a disk, which may
//!   be the one that we serve. Threads inherit the mark, and so do the kernel's own workers for our rings.
//! - **Minimal root.** A mount namespace that has a copy of a mount on our own device keeps its file system alive; when
//!   we die, it is we who write it back, to ourselves, for ever. So the process moves, before it has threads, to a root
//!   of its own: `/dev`, the state and run directories, `/sys` and `/proc` (read-only), each without what is mounted
//!   below it. No mount of the host is kept.
//! - **Locked memory.** What is mapped at the end of the start is locked as it is touched, and nothing that comes later:
//!   locking all of the future would populate every table and stack.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, signal};
use nix::unistd::{chdir, pivot_root};
use std::io;
use std::path::{Path, PathBuf};
use std::{fs, thread};

/// What could not be done to the process.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct ProcessError {
    what: String,
    source: io::Error,
}

trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, ProcessError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, ProcessError> {
        self.map_err(|source| ProcessError {
            what: what(),
            source: source.into(),
        })
    }
}

/// The first thing to be done, while there is one thread: how the kernel is to treat this process. What fails is
/// logged; the device can be served all the same.
pub fn settle() {
    /// From linux/prctl.h.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: sets a flag of this thread.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } != 0 {
        let error = io::Error::last_os_error();
        log::warn!("cannot be an I/O flusher ({error}): under memory pressure the device may wait for itself");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        log::warn!("cannot be kept from the out-of-memory killer: {error}");
    }
    // A huge page under a table of which a few entries are used is 2 MiB that nobody asked for.
    // SAFETY: sets a flag of this process.
    if unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } != 0 {
        log::warn!("huge pages stay on: {}", io::Error::last_os_error());
    }
    // Few threads that allocate little: one heap for all of them.
    // SAFETY: sets a parameter of the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Lock what is mapped now, each page as it is first touched.
pub fn lock_memory() {
    // SAFETY: locking changes no content.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_ONFAULT) } != 0 {
        let error = io::Error::last_os_error();
        log::warn!(
            "cannot lock memory ({error}): raise the limit of locked memory, or keep swap off this device \
             (LimitMEMLOCK= of the unit)"
        );
    }
}

/// The signals that ask the process to end.
fn asking() -> SigSet {
    let mut asking = SigSet::empty();
    asking.add(Signal::SIGTERM);
    asking.add(Signal::SIGINT);
    asking
}

/// Keep signals from killing the process: what asks it to end waits until [`on_termination`], the rest is ignored. To be
/// called while there is one thread: threads inherit what is blocked, and one that does not block it would die of it,
/// and all others with it.
///
/// # Errors
/// The system does not allow it.
pub fn hold_signals() -> Result<(), ProcessError> {
    // SAFETY: ignoring a signal installs no handler.
    let ignored =
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn).and(signal(Signal::SIGHUP, SigHandler::SigIgn)) };
    ignored.context(|| "ignoring SIGHUP and SIGPIPE".into())?;
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&asking()), None).context(|| "blocking signals".into())
}

/// Have `ask` called with each signal that asks the process to end.
///
/// # Errors
/// Fails when no thread can be had.
pub fn on_termination(mut ask: impl FnMut(Signal) + Send + 'static) -> Result<(), ProcessError> {
    let wait = move || {
        while let Ok(signal) = asking().wait() {
            ask(signal);
        }
    };
    let thread = thread::Builder::new()
        .name("signals".into())
        .stack_size(128 << 10)
        .spawn(wait);
    thread.map(drop).context(|| "starting a thread for signals".into())
}

/// Move to a root with nothing in it but what a daemon needs; `kept` (absolute) are the directories that stay, at
/// the same paths. Returns them with their symbolic links resolved, which is how they are to be called from now on.
/// Must be called while there is one thread.
///
/// # Errors
/// Fails when it cannot be done; the process is of no use then.
pub fn enter_minimal_root<const N: usize>(kept: [&Path; N]) -> Result<[PathBuf; N], ProcessError> {
    let mut resolved = kept.map(Path::to_path_buf);
    for path in &mut resolved {
        *path = fs::canonicalize(&*path).context(|| format!("resolving {}", path.display()))?;
    }
    unshare(CloneFlags::CLONE_NEWNS).context(|| "leaving the host's mount namespace".into())?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context(|| "keeping our mounts from the host".into())?;

    // Any directory will do to put the new root on; this one is gone from our sight with the old root.
    let root = Path::new("/proc");
    let proc = open_tree(Path::new("/proc"))?;
    mount(
        Some("tmpfs"),
        root,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("size=1m,mode=755"),
    )
    .context(|| "mounting the new root".into())?;
    // A directory that lies in another kept one is mounted after it.
    let mut trees: Vec<&Path> = resolved.iter().map(PathBuf::as_path).collect();
    trees.extend([Path::new("/dev"), Path::new("/sys")]);
    trees.sort();
    trees.dedup();
    for tree in trees {
        bind(&open_tree(tree)?, root, tree)?;
    }
    bind(&proc, root, Path::new("/proc"))?;
    for read_only in ["/sys", "/proc"] {
        let at = under(root, Path::new(read_only));
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
        mount(none, &at, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags, none)
            .context(|| format!("making {read_only} read-only"))?;
    }
    chdir(root).context(|| "entering the new root".into())?;
    // The old root is stacked upon the new one, and taken off it.
    pivot_root(".", ".").context(|| "moving to the new root".into())?;
    umount2(".", MntFlags::MNT_DETACH).context(|| "letting go of the host's mounts".into())?;
    chdir("/").context(|| "entering the new root".into())?;
    mount(
        none,
        "/",
        none,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
        none,
    )
    .context(|| "making the new root read-only".into())?;
    Ok(resolved)
}

fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// A detached copy of the mount at `path`, or of the part of it that is below `path`, without mounts below.
fn open_tree(path: &Path) -> Result<std::os::fd::OwnedFd, ProcessError> {
    use std::os::fd::FromRawFd;
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(io::Error::from)
        .context(|| format!("naming {}", path.display()))?;
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: `name` is a string that ends with a zero byte and lives across the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            name.as_ptr(),
            OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context(|| format!("copying the mount of {}", path.display()));
    }
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd as i32) })
}

/// Mount a detached tree at `path` below `root`.
fn bind(tree: &std::os::fd::OwnedFd, root: &Path, path: &Path) -> Result<(), ProcessError> {
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    let at = under(root, path);
    fs::create_dir_all(&at).context(|| format!("making {} in the new root", path.display()))?;
    let name = std::ffi::CString::new(at.as_os_str().as_bytes())
        .map_err(io::Error::from)
        .context(|| format!("naming {}", path.display()))?;
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    // SAFETY: both names end with a zero byte and live across the call.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            name.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    match moved {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context(|| format!("mounting {} in the new root", path.display())),
    }
}
