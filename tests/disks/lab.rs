//! Files, loop devices, mounts and processes that go away with their values.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use twinblk::io::disk::{Content, Disk, Error, Wanted, error::Reason};

pub const MIB: u64 = 1 << 20;

/// One test at a time: a process that one test starts has, between fork and exec, every descriptor that the others have
/// open, and keeps their claims.
static ALONE: Mutex<()> = Mutex::new(());

/// A directory of its own for each test, which has the machine to itself as long as it lives.
pub struct Dir(
    PathBuf,
    #[expect(dead_code, reason = "held, not looked at")] MutexGuard<'static, ()>,
);

impl Dir {
    pub fn new() -> Dir {
        // A test that failed has left nothing behind: everything in here cleans up when it is dropped.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: the number only has to be another one each time.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Not the temporary directory, which may be a tmpfs.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("disks-{}-{count}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory in the target directory");
        Dir(dir, alone)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A sparse file.
    pub fn file(&self, name: &str, size: u64) -> PathBuf {
        let path = self.join(name);
        File::create(&path)
            .and_then(|file| file.set_len(size))
            .expect("a sparse file");
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Ok(output) => Err(format!(
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// Runs a program, or says what is missing.
pub fn tool(program: &str, args: &[&str]) -> Option<String> {
    run(program, args)
        .map_err(|missing| println!("skipped: {missing}"))
        .ok()
}

/// A loop device.
pub struct Loop(PathBuf);

impl Loop {
    /// `None`, and says why, where this machine has none.
    pub fn new(file: &Path, options: &[&str]) -> Option<Loop> {
        let file = file.to_str().expect("its name is plain");
        let mut args = vec!["--find", "--show"];
        args.extend(options);
        args.push(file);
        tool("/usr/sbin/losetup", &args).map(|node| Loop(node.into()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn text(&self) -> &str {
        self.0.to_str().expect("its name is plain")
    }

    /// The node of its first partition, when the kernel has read the table.
    pub fn first_partition(&self) -> PathBuf {
        PathBuf::from(format!("{}p1", self.text()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("/usr/sbin/losetup", &["--detach", self.text()]);
    }
}

/// A mounted file system.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn ext4(device: &Path, at: PathBuf) -> Option<Mounted> {
        let device = device.to_str().expect("its name is plain");
        tool("/usr/sbin/mkfs.ext4", &["-q", "-F", device])?;
        fs::create_dir_all(&at).expect("a directory");
        tool(
            "/usr/bin/mount",
            &["-t", "ext4", device, at.to_str().expect("its name is plain")],
        )?;
        Some(Mounted(at))
    }

    /// One with so little space. `None`, and says why, where this process may not mount.
    pub fn tmpfs(at: PathBuf, size: &str) -> Option<Mounted> {
        fs::create_dir_all(&at).expect("a directory");
        let options = format!("size={size}");
        let at_text = at.to_str().expect("its name is plain");
        tool("/usr/bin/mount", &["-t", "tmpfs", "-o", &options, "tmpfs", at_text])?;
        Some(Mounted(at))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("/usr/bin/umount", &[self.0.to_str().expect("its name is plain")]);
    }
}

/// Another process that has a file open until it is dropped.
pub struct Opener(Child);

impl Opener {
    /// `redirection` as a shell has it: `<>` for reading and writing, `<` for reading.
    pub fn new(path: &Path, redirection: &str) -> Opener {
        let script = format!("exec 3{redirection}'{}'; echo open; read line", path.display());
        let mut child = Command::new("/bin/sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("every Linux has a shell");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("it is a pipe");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
        assert_eq!(line, "open\n");
        Opener(child)
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

pub const BLANK: Wanted<'static> = Wanted {
    content: Content::Blank,
    ..Wanted::ANY
};

pub fn open(path: &Path) -> Disk {
    Disk::open(path, &Wanted::ANY).unwrap_or_else(|error| panic!("{error}"))
}

/// Why it is refused; panics when it is not.
pub fn refusal(path: &Path, wanted: &Wanted<'_>) -> Reason {
    match Disk::open(path, wanted) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(Error::Refused(refusal)) => refusal.reason,
        Err(error) => panic!("{error}"),
    }
}

/// A partition table with one partition from the first MiB to the end.
pub fn partition(file: &Path, size: u64) {
    let mut sector = [0u8; 512];
    let entry = &mut sector[446..462];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048u32.to_le_bytes());
    entry[12..16].copy_from_slice(&u32::try_from(size / 512 - 2048).expect("a small disk").to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let file = File::options().write(true).open(file).expect("it is there");
    file.write_all_at(&sector, 0).expect("a small write");
}
