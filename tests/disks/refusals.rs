//! Every refusal, on the real thing.

use crate::lab::{BLANK, Dir, Loop, MIB, Mounted, Opener, open, partition, refusal, tool};
use std::fs;
use std::path::Path;
use twinblk::io::disk::error::Reason;
use twinblk::io::disk::{Disk, User, Wanted};

#[test]
fn what_is_neither_a_block_device_nor_a_file_is_refused_without_being_opened() {
    let dir = Dir::new();
    let pipe = dir.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    for (path, is) in [
        (dir.path(), "a directory"),
        (Path::new("/dev/null"), "a character device"),
        (&pipe, "a pipe"),
    ] {
        assert_eq!(refusal(path, &Wanted::ANY), Reason::NotADisk { is });
    }
    let missing = Disk::open(&dir.join("missing"), &Wanted::ANY).expect_err("there is nothing");
    assert!(missing.is_missing(), "{missing}");
}

#[test]
fn an_empty_file_is_too_small_for_anything() {
    let dir = Dir::new();
    assert!(matches!(
        refusal(&dir.file("file", 0), &Wanted::ANY),
        Reason::TooSmall { size: 0, .. }
    ));
    assert!(matches!(
        refusal(&dir.file("file", 100), &BLANK),
        Reason::TooSmall { size: 0, .. }
    ));
}

#[test]
fn a_mounted_disk_is_refused_with_its_mount_point() {
    let dir = Dir::new();
    let file = dir.file("file", 16 * MIB);
    let Some(device) = Loop::new(&file, &[]) else { return };
    let Some(mounted) = Mounted::ext4(device.path(), dir.join("mnt")) else {
        return;
    };
    let user = User::Mount {
        device: device.text().into(),
        at: mounted.path().to_path_buf(),
    };
    assert_eq!(refusal(device.path(), &Wanted::ANY), Reason::Used(vec![user]));
    assert!(
        matches!(refusal(&file, &Wanted::ANY), Reason::Used(_)),
        "the file behind it"
    );
    drop(mounted);
    open(device.path());
}

#[test]
fn a_disk_with_a_mounted_partition_is_refused_and_so_is_the_partition() {
    let dir = Dir::new();
    let file = dir.file("file", 16 * MIB);
    partition(&file, 16 * MIB);
    let Some(device) = Loop::new(&file, &["--partscan"]) else {
        return;
    };
    let part = device.first_partition();
    if !part.exists() {
        return println!("skipped: no node {} for a partition", part.display());
    }
    let Some(mounted) = Mounted::ext4(&part, dir.join("mnt")) else {
        return;
    };
    let user = User::Mount {
        device: part.to_string_lossy().into(),
        at: mounted.path().to_path_buf(),
    };
    for path in [device.path(), &part] {
        assert_eq!(refusal(path, &Wanted::ANY), Reason::Used(vec![user.clone()]));
    }
}

#[test]
fn swap_space_is_refused() {
    let dir = Dir::new();
    let file = dir.file("file", 16 * MIB);
    let Some(device) = Loop::new(&file, &[]) else { return };
    if tool("/usr/sbin/mkswap", &[device.text()]).is_none() || tool("/usr/sbin/swapon", &[device.text()]).is_none() {
        return;
    }
    let reason = refusal(device.path(), &Wanted::ANY);
    tool("/usr/sbin/swapoff", &[device.text()]).expect("it was turned on");
    assert_eq!(
        reason,
        Reason::Used(vec![User::Swap {
            device: device.text().into()
        }])
    );
}

#[test]
fn a_disk_that_a_process_writes_without_a_claim_is_refused_and_one_that_is_read_is_not() {
    let dir = Dir::new();
    let mut paths = vec![dir.file("file", MIB)];
    let behind = dir.file("behind", MIB);
    let device = Loop::new(&behind, &[]);
    paths.extend(device.as_ref().map(|device| device.path().to_path_buf()));
    for path in paths {
        let writer = Opener::new(&path, "<>");
        match refusal(&path, &Wanted::ANY) {
            Reason::Used(users) => {
                assert_eq!(
                    users,
                    [User::Process {
                        pid: writer.pid(),
                        name: "sh".into(),
                        writes: true
                    }]
                );
            }
            other => panic!("{other:?}"),
        }
        drop(writer);
        let reader = Opener::new(&path, "<");
        open(&path);
        drop(reader);
    }
}

#[test]
fn a_read_only_disk_is_refused() {
    let dir = Dir::new();
    let file = dir.file("file", MIB);
    let Some(device) = Loop::new(&file, &["--read-only"]) else {
        return;
    };
    assert_eq!(refusal(device.path(), &Wanted::ANY), Reason::ReadOnly);
}

#[test]
fn logical_blocks_larger_than_the_devices_are_refused_and_smaller_ones_are_not() {
    let dir = Dir::new();
    let file = dir.file("file", MIB);
    let Some(device) = Loop::new(&file, &["--sector-size", "4096"]) else {
        return;
    };
    let wanted = Wanted {
        max_block: 512,
        ..Wanted::ANY
    };
    assert_eq!(
        refusal(device.path(), &wanted),
        Reason::LargerBlocks { block: 4096, max: 512 }
    );
    assert_eq!(open(device.path()).block(), 4096);
    let file = dir.file("small", MIB);
    let Some(device) = Loop::new(&file, &["--sector-size", "512"]) else {
        return;
    };
    assert_eq!(open(device.path()).block(), 512);
}

#[test]
fn a_disk_smaller_than_the_device_is_refused_and_a_larger_one_is_not() {
    let dir = Dir::new();
    let path = dir.file("file", MIB);
    for (min_size, fits) in [(MIB - 4096, true), (MIB, true), (MIB + 1, false)] {
        let wanted = Wanted {
            min_size,
            ..Wanted::ANY
        };
        assert_eq!(Disk::open(&path, &wanted).is_ok(), fits, "{min_size}");
    }
}

#[test]
fn the_same_disk_is_refused_by_whatever_path_it_comes() {
    let dir = Dir::new();
    let file = dir.file("file", 16 * MIB);
    partition(&file, 16 * MIB);
    let first = open(&file);
    let apart_from = [first.identity.clone()];
    let wanted = Wanted {
        apart_from: &apart_from,
        ..Wanted::ANY
    };
    std::os::unix::fs::symlink(&file, dir.join("link")).expect("a link");
    fs::hard_link(&file, dir.join("hard")).expect("a link");
    let same = Reason::SameDisk {
        other: file.to_string_lossy().into(),
    };
    for name in ["file", "link", "hard"] {
        assert_eq!(refusal(&dir.join(name), &wanted), same, "{name}");
    }
    Disk::open(&dir.file("other", MIB), &wanted).unwrap_or_else(|error| panic!("{error}"));

    let Some(device) = Loop::new(&file, &["--partscan"]) else {
        return;
    };
    assert_eq!(refusal(device.path(), &wanted), same, "a loop device over it");
    let part = device.first_partition();
    if !part.exists() {
        return println!("skipped: no node {} for a partition", part.display());
    }
    assert_eq!(refusal(&part, &wanted), same, "a partition of a loop device over it");
    drop(first);
    for (one, other) in [(device.path(), part.as_path()), (&part, device.path())] {
        let apart_from = [open(one).identity];
        let wanted = Wanted {
            apart_from: &apart_from,
            ..Wanted::ANY
        };
        assert_eq!(
            refusal(other, &wanted),
            Reason::SameDisk {
                other: one.to_string_lossy().into()
            }
        );
    }
}

#[test]
fn a_disk_with_a_file_system_is_not_blank_and_is_left_as_it_is() {
    let dir = Dir::new();
    let file = dir.file("file", 16 * MIB);
    if tool(
        "/usr/sbin/mkfs.ext4",
        &["-q", "-F", "-L", "keepme", file.to_str().expect("plain")],
    )
    .is_none()
    {
        return;
    }
    let before = fs::read(&file).expect("it can be read");
    match refusal(&file, &BLANK) {
        Reason::NotBlank { found } => assert!(found[0].starts_with("ext"), "{found:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(&file).expect("it can be read"), before);
    open(&file);
    Disk::open(&dir.file("blank", 16 * MIB), &BLANK).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_path_that_cannot_be_recorded_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = Dir::new();
    let path = dir.path().join(std::ffi::OsStr::from_bytes(b"a\xff"));
    fs::write(&path, vec![0; 8192]).expect("a small file");
    assert_eq!(refusal(&path, &Wanted::ANY), Reason::PathNotRecordable);
}
