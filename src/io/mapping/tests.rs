use super::*;
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::atomic::AtomicU32;

/// A file that goes away with the value. Not in the temporary directory, which may be a tmpfs.
struct Scratch(PathBuf);

impl Scratch {
    fn new(len: u64) -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: the number only has to be another one each time.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let exe = std::env::current_exe().unwrap();
        let path = exe.with_file_name(format!("mapping-{}-{count}", std::process::id()));
        File::create(&path).and_then(|file| file.set_len(len)).unwrap();
        Scratch(path)
    }

    fn open(&self) -> File {
        File::options().read(true).write(true).open(&self.0).unwrap()
    }

    fn map(&self) -> Mapping {
        let file = self.open();
        let len = file.metadata().unwrap().len();
        Mapping::new(file, len).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn word(mapping: &Mapping, at: u64) -> u64 {
    let mut words = [u64::MAX];
    mapping.read(at, &mut words);
    words[0]
}

#[test]
fn what_is_written_and_synced_is_in_the_file() {
    let scratch = Scratch::new(3 * page_size() + 64);
    let mapping = scratch.map();
    assert_eq!(word(&mapping, 8), 0);
    let last = mapping.len() - 16;
    mapping.write(8, &[1]);
    mapping.write(last, &[2, 3]);
    mapping.sync(0, mapping.len()).unwrap();
    mapping.sync(last, 16).unwrap();
    mapping.sync(page_size() + 24, 0).unwrap();
    let mut bytes = [0; 16];
    scratch.open().read_exact_at(&mut bytes, last).unwrap();
    assert_eq!(bytes[..8], 2_u64.to_ne_bytes());
    assert_eq!(bytes[8..], 3_u64.to_ne_bytes());
    mapping.let_go(0, mapping.len());
    mapping.let_go(16, 24);
    assert_eq!((word(&mapping, 8), word(&mapping, last)), (1, 2), "nothing is lost");
    assert!(!mapping.is_lost());
}

#[test]
#[should_panic(expected = "of a mapping of 64")]
fn nothing_is_read_outside() {
    word(&Scratch::new(64).map(), 64);
}

#[test]
fn a_file_that_is_too_short_is_not_mapped() {
    let scratch = Scratch::new(64);
    assert!(Mapping::new(scratch.open(), 72).is_err());
}

/// Everything that can be done to a lost mapping.
fn assert_lost(mapping: &Mapping) {
    assert!(mapping.is_lost());
    mapping.write(0, &[7]);
    assert_eq!((word(mapping, 0), word(mapping, mapping.len() - 8)), (0, 0));
    mapping.sync(0, 8).unwrap_err();
    mapping.sync(0, mapping.len()).unwrap_err();
    mapping.let_go(0, mapping.len());
}

#[test]
fn reading_a_truncated_mapping_finds_zeroes_and_loses_it() {
    let scratch = Scratch::new(8 * page_size());
    let mapping = scratch.map();
    mapping.write(6 * page_size(), &[1]);
    scratch.open().set_len(page_size()).unwrap();
    assert!(!mapping.is_lost());
    assert_eq!(word(&mapping, 6 * page_size()), 0);
    assert_lost(&mapping);
}

#[test]
fn writing_to_a_truncated_mapping_loses_it_and_touches_no_other() {
    let (scratch, other) = (Scratch::new(8 * page_size()), Scratch::new(8 * page_size()));
    let (mapping, other) = (scratch.map(), other.map());
    other.write(page_size(), &[5]);
    scratch.open().set_len(0).unwrap();
    mapping.write(page_size(), &[1]);
    assert_lost(&mapping);
    assert_eq!(word(&other, page_size()), 5);
    other.sync(0, other.len()).unwrap();
    assert_eq!(scratch.open().metadata().unwrap().len(), 0, "nothing was written back");
}

#[test]
fn a_mapping_that_takes_the_place_of_a_lost_one_is_not_lost() {
    for _ in 0..2 * 64 {
        let scratch = Scratch::new(page_size());
        let mapping = scratch.map();
        mapping.write(0, &[1]);
        mapping.sync(0, 8).unwrap();
        scratch.open().set_len(0).unwrap();
        assert_eq!(word(&mapping, 0), 0);
        assert!(mapping.is_lost());
    }
}

/// Nobody has touched what is gone, so nobody was told.
#[test]
fn a_sync_says_that_the_file_was_truncated_or_removed() {
    let scratch = Scratch::new(8 * page_size());
    let mapping = scratch.map();
    mapping.write(6 * page_size(), &[1]);
    scratch.open().set_len(page_size()).unwrap();
    mapping.sync(0, 8).unwrap_err();
    assert_lost(&mapping);

    let scratch = Scratch::new(page_size());
    let mapping = scratch.map();
    mapping.write(0, &[1]);
    fs::remove_file(&scratch.0).unwrap();
    mapping.sync(0, 8).unwrap_err();
    assert_lost(&mapping);
}

#[test]
fn threads_that_meet_a_truncation_all_go_on() {
    let scratch = Scratch::new(64 * page_size());
    let mapping = scratch.map();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (mapping, scratch) = (&mapping, &scratch);
            scope.spawn(move || {
                for round in 0..200 {
                    let at = (thread * 37 + round * 11) % 64 * page_size();
                    mapping.write(at, &[round]);
                    word(mapping, at);
                    if thread == 0 && round == 50 {
                        scratch.open().set_len(0).unwrap();
                    }
                }
            });
        }
    });
    // By now somebody has touched a page that is gone, unless all were through before: then this does.
    word(&mapping, 0);
    assert_lost(&mapping);
}

/// Runs one of the tests below in a process of its own.
fn child(test: &str) -> (ExitStatus, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .arg(format!("io::mapping::tests::{test}"))
        .env("MAPPING_CHILD", "1")
        .output()
        .unwrap();
    (output.status, String::from_utf8_lossy(&output.stdout).into_owned())
}

fn is_child() -> bool {
    std::env::var_os("MAPPING_CHILD").is_some()
}

#[test]
fn a_process_outlives_the_truncation_of_what_it_has_mapped() {
    let (status, output) = child("child_truncated");
    assert!(status.success() && output.contains("went on"), "{status}: {output}");
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_truncated() {
    if is_child() {
        let scratch = Scratch::new(1024 * page_size());
        let mapping = scratch.map();
        fs::write(&scratch.0, "short").unwrap();
        for page in 1..1024 {
            assert_eq!(word(&mapping, page * page_size()), 0);
        }
        assert_lost(&mapping);
        println!("went on");
    }
}

#[test]
fn a_bus_error_anywhere_else_still_ends_the_process() {
    for test in ["child_foreign_fault", "child_sent_signal"] {
        let (status, output) = child(test);
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{test}: {status}: {output}");
    }
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_foreign_fault() {
    if is_child() {
        // What the parent cannot clear away any more must not be left behind.
        let scratch = Scratch::new(page_size());
        let _ours = scratch.map();
        let file = scratch.open();
        fs::remove_file(&scratch.0).unwrap();
        // SAFETY: a new mapping, which is never unmapped.
        let foreign = unsafe {
            libc::mmap(
                ptr::null_mut(),
                4096,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(foreign, libc::MAP_FAILED);
        file.set_len(0).unwrap();
        // SAFETY: mapped above, and aligned to a page; the read ends the process, which is what is tested.
        unsafe { foreign.cast::<u64>().read_volatile() };
    }
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_sent_signal() {
    if is_child() {
        let scratch = Scratch::new(page_size());
        let _ours = scratch.map();
        fs::remove_file(&scratch.0).unwrap();
        // SAFETY: sends a signal to this process.
        unsafe { libc::kill(libc::getpid(), libc::SIGBUS) };
        std::thread::park();
    }
}

#[test]
fn a_file_system_without_space_for_a_page_loses_the_mapping_and_not_the_process() {
    let (status, output) = child("child_no_space");
    assert!(status.success(), "{status}: {output}");
    print!(
        "{}",
        output
            .lines()
            .filter(|line| line.contains("skipped"))
            .collect::<String>()
    );
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_no_space() {
    use nix::mount::{MsFlags, mount};
    if is_child() {
        let none: Option<&str> = None;
        let at = std::env::temp_dir();
        let mounted = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .and_then(|()| mount(none, &at, Some("tmpfs"), MsFlags::empty(), Some("size=64k")));
        if let Err(errno) = mounted {
            println!("skipped: a small file system cannot be mounted: {errno}");
            return;
        }
        let scratch = Scratch(at.join("sparse"));
        File::create(&scratch.0).and_then(|file| file.set_len(1 << 20)).unwrap();
        let mapping = scratch.map();
        mapping.write(0, &[1]);
        mapping.sync(0, 8).unwrap();
        for page in 0..(1 << 20) / page_size() {
            mapping.write(page * page_size(), &[1]);
        }
        assert_lost(&mapping);
    }
}

#[test]
fn an_unlocked_mapping_is_not_kept_in_memory() {
    let (status, output) = child("child_locked");
    assert!(status.success(), "{status}: {output}");
    print!(
        "{}",
        output
            .lines()
            .filter(|line| line.contains("skipped"))
            .collect::<String>()
    );
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_locked() {
    if is_child() {
        let scratch = Scratch::new(64 * page_size());
        let mapping = scratch.map();
        // SAFETY: locking changes no content.
        if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_ONFAULT) } != 0 {
            println!("skipped: memory cannot be locked: {}", io::Error::last_os_error());
            return;
        }
        assert!(
            flags(&mapping).contains(&"lo".to_owned()),
            "what is mapped now is locked"
        );
        mapping.unlock().unwrap();
        mapping.write(0, &[1]);
        assert!(!flags(&mapping).contains(&"lo".to_owned()));
        let later = Scratch::new(page_size());
        assert!(
            !flags(&later.map()).contains(&"lo".to_owned()),
            "nor what is mapped later"
        );
    }
}

/// The flags of the kernel's area that the mapping is.
fn flags(mapping: &Mapping) -> Vec<String> {
    let start = format!("{:x}-", mapping.base.as_ptr().addr());
    let areas = fs::read_to_string("/proc/self/smaps").unwrap();
    let area = areas.lines().skip_while(|line| !line.starts_with(&start));
    let flags = area.skip(1).find_map(|line| line.strip_prefix("VmFlags:"));
    flags.unwrap().split_whitespace().map(str::to_owned).collect()
}
