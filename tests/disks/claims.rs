//! What an open disk is, and how long it is claimed.

use crate::lab::{BLANK, Dir, Loop, MIB, open, refusal};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use twinblk::io::disk::error::Reason;
use twinblk::io::disk::{Disk, Error, User, Wanted};

fn copy(disk: &Disk) -> OwnedFd {
    disk.descriptor.as_fd().try_clone_to_owned().expect("a descriptor")
}

fn flags(disk: &Disk) -> OFlag {
    OFlag::from_bits_retain(fcntl(&disk.descriptor, FcntlArg::F_GETFL).expect("it is open"))
}

/// A file and, where there are loop devices, a block device.
fn both(dir: &Dir, test: impl Fn(&Path)) {
    test(&dir.file("file", 8 * MIB));
    let file = dir.file("behind", 8 * MIB);
    if let Some(device) = Loop::new(&file, &[]) {
        test(device.path());
    }
}

#[test]
fn a_disk_is_open_for_direct_reading_and_writing() {
    both(&Dir::new(), |path| {
        let disk = open(path);
        assert!(
            flags(&disk).contains(OFlag::O_DIRECT | OFlag::O_RDWR),
            "{:?}",
            flags(&disk)
        );
        assert_eq!((disk.size(), disk.block()), (8 * MIB, disk.block().clamp(512, 4096)));
        assert!(disk.physical_block >= disk.block());
        assert_eq!(disk.path(), path);
    });
}

#[test]
fn a_size_is_rounded_down_to_whole_blocks() {
    let dir = Dir::new();
    let disk = open(&dir.file("file", MIB + 513));
    assert_eq!(
        disk.size(),
        (MIB + 513) / u64::from(disk.block()) * u64::from(disk.block())
    );
    let needed = disk.size() + 1;
    drop(disk);
    let wanted = Wanted {
        min_size: needed,
        ..Wanted::ANY
    };
    assert!(matches!(refusal(&dir.join("file"), &wanted), Reason::TooSmall { .. }));
}

#[test]
fn a_disk_is_claimed_until_its_last_descriptor_is_closed() {
    both(&Dir::new(), |path| {
        let disk = open(path);
        let kept = Arc::clone(&disk.descriptor);
        let duplicate = copy(&disk);
        for held in [Some(disk), None] {
            let error = Disk::open(path, &Wanted::ANY).expect_err("it is claimed");
            assert!(error.is_claimed(), "{error}");
            drop(held);
        }
        drop(kept);
        assert!(
            matches!(refusal(path, &Wanted::ANY), Reason::Claimed(_)),
            "a duplicate is left"
        );
        drop(duplicate);
        open(path);
    });
}

#[test]
fn a_claim_is_not_lost_when_another_descriptor_of_the_file_is_closed() {
    let dir = Dir::new();
    let path = dir.file("file", MIB);
    let disk = open(&path);
    drop(
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("a file can always be opened"),
    );
    assert!(matches!(refusal(&path, &Wanted::ANY), Reason::Claimed(_)));
    drop(disk);
}

#[test]
fn a_refused_disk_is_not_left_claimed_and_not_changed() {
    both(&Dir::new(), |path| {
        std::os::unix::fs::FileExt::write_all_at(
            &File::options().write(true).open(path).expect("open"),
            b"data",
            70_000,
        )
        .expect("a small write");
        let before = std::fs::read(path).expect("it can be read");
        assert_eq!(
            refusal(path, &BLANK),
            Reason::NotBlank {
                found: vec!["data at byte 70000".into()]
            }
        );
        assert_eq!(std::fs::read(path).expect("it can be read"), before);
        open(path);
    });
}

#[test]
fn a_descriptor_that_is_handed_over_is_the_same_disk_and_keeps_the_claim() {
    both(&Dir::new(), |path| {
        let disk = open(path);
        let taken = Disk::from_descriptor(copy(&disk), disk.identity.clone()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((&taken.identity, taken.punches), (&disk.identity, disk.punches));
        drop(disk);
        assert!(matches!(refusal(path, &Wanted::ANY), Reason::Claimed(_)));
    });
}

#[test]
fn a_descriptor_that_is_not_the_disk_named_or_not_claimed_is_refused() {
    let dir = Dir::new();
    let other = open(&dir.file("other", MIB));
    both(&dir, |path| {
        let identity = open(path).identity;
        let refused = |descriptor: OwnedFd, identity: &_| match Disk::from_descriptor(
            descriptor,
            twinblk::io::disk::Identity::clone(identity),
        ) {
            Err(Error::Refused(refusal)) => refusal.to_string(),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it was taken"),
        };
        assert!(refused(copy(&other), &identity).contains("another disk"));
        let buffered = File::options().read(true).write(true).open(path).expect("open");
        assert!(refused(buffered.into(), &identity).contains("direct"));
        let mut larger = open(path);
        larger.identity.size += 4096;
        assert!(refused(copy(&larger), &larger.identity).contains("size"));
    });
    let file = dir.file("behind", MIB);
    if let Some(device) = Loop::new(&file, &[]) {
        let identity = open(device.path()).identity;
        let unclaimed = nix::fcntl::open(
            device.path(),
            OFlag::O_RDWR | OFlag::O_DIRECT,
            nix::sys::stat::Mode::empty(),
        );
        let error = Disk::from_descriptor(unclaimed.expect("open"), identity).expect_err("it is not claimed");
        assert!(error.to_string().contains("not claimed"), "{error}");
    }
}

#[test]
fn a_file_behind_a_loop_device_and_the_loop_device_are_not_both_claimed() {
    let dir = Dir::new();
    let path = dir.file("file", MIB);
    let disk = open(&path);
    let Some(device) = Loop::new(&path, &[]) else { return };
    assert_eq!(
        refusal(device.path(), &Wanted::ANY),
        Reason::Used(vec![User::Unknown]),
        "a claimed file is behind it"
    );
    drop(disk);
    let holder = User::Holder {
        device: device.text().into(),
    };
    assert_eq!(refusal(&path, &Wanted::ANY), Reason::Used(vec![holder]));
    open(device.path());
}

#[test]
fn an_identity_survives_json_and_the_record() {
    both(&Dir::new(), |path| {
        let identity = open(path).identity;
        let text = serde_json::to_string(&identity).expect("it is plain data");
        assert_eq!(
            serde_json::from_str::<twinblk::io::disk::Identity>(&text).expect("it was written just now"),
            identity
        );
        assert_eq!(
            twinblk::io::disk::identity::mismatch(&identity, &open(path).identity),
            None
        );
    });
}

#[test]
fn a_file_on_a_file_system_without_stored_blocks_can_be_a_disk_if_it_takes_direct_io() {
    let _dir = Dir::new();
    let path = Path::new("/dev/shm").join(format!("twinblk-test-{}", std::process::id()));
    let file = match File::create(&path) {
        Ok(file) => file,
        Err(error) => return println!("skipped: no tmpfs in /dev/shm: {error}"),
    };
    file.set_len(MIB).expect("a sparse file");
    let outcome = Disk::open(&path, &BLANK);
    std::fs::remove_file(&path).expect("it was made here");
    match outcome {
        Ok(disk) => assert!(disk.punches && disk.block() == 512),
        // tmpfs takes O_DIRECT since Linux 6.6.
        Err(Error::Refused(refusal)) => assert_eq!(refusal.reason, Reason::NotDirect),
        Err(error) => panic!("{error}"),
    }
}
