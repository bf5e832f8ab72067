//! What lies where, and who uses what.

use crate::lab::{Dir, Loop, MIB, Mounted, Opener, open};
use twinblk::io::disk::location::holds;
use twinblk::io::disk::{User, users_of};

#[test]
fn a_path_lies_on_the_device_it_is_mounted_from_and_on_the_file_behind_that() {
    let dir = Dir::new();
    let (file, other_file) = (dir.file("file", 64 * MIB), dir.file("other", 16 * MIB));
    let (Some(device), Some(other)) = (Loop::new(&file, &[]), Loop::new(&other_file, &[])) else {
        return;
    };
    let Some(mounted) = Mounted::ext4(device.path(), dir.join("mnt")) else {
        return;
    };
    let state = mounted.path().join("not/yet/there");
    let lies_on = |disk| holds(&state, disk).unwrap_or_else(|error| panic!("{error}"));
    assert!(lies_on(device.path()) && lies_on(&file));
    assert!(!lies_on(other.path()) && !lies_on(&other_file));
    assert!(!holds(dir.path(), device.path()).unwrap_or_else(|error| panic!("{error}")));

    // A file system in a file on it.
    let inner_file = mounted.path().join("inner");
    std::fs::File::create(&inner_file)
        .and_then(|file| file.set_len(16 * MIB))
        .expect("a sparse file");
    let Some(inner) = Loop::new(&inner_file, &[]) else {
        return;
    };
    let Some(inner_mount) = Mounted::ext4(inner.path(), dir.join("inner-mnt")) else {
        return;
    };
    for disk in [inner.path(), &inner_file, device.path(), &file] {
        assert!(
            holds(inner_mount.path(), disk).unwrap_or_else(|error| panic!("{error}")),
            "{}",
            disk.display()
        );
    }
    assert!(!holds(inner_mount.path(), other.path()).unwrap_or_else(|error| panic!("{error}")));
}

#[test]
fn those_who_use_a_disk_are_named() {
    let dir = Dir::new();
    let file = dir.file("file", 16 * MIB);
    let Some(device) = Loop::new(&file, &[]) else { return };
    // Another test's `losetup` may look in, on its way to a free device.
    let passes_through = |user: &User| matches!(user, User::Process { name, .. } if name == "losetup");
    let users = |path| {
        let mut users = users_of(path).unwrap_or_else(|error| panic!("{error}"));
        users.retain(|user| !passes_through(user));
        users
    };
    assert_eq!(users(device.path()), []);
    assert_eq!(
        users(&file),
        [User::Holder {
            device: device.text().into()
        }]
    );

    let reader = Opener::new(device.path(), "<");
    assert_eq!(
        users(device.path()),
        [User::Process {
            pid: reader.pid(),
            name: "sh".into(),
            writes: false
        }]
    );
    drop(reader);

    let disk = open(device.path());
    assert_eq!(
        users(device.path()),
        [User::Unknown],
        "this process has it, and is not listed"
    );
    drop(disk);

    let Some(mounted) = Mounted::ext4(device.path(), dir.join("mnt")) else {
        return;
    };
    assert_eq!(
        users(device.path()),
        [User::Mount {
            device: device.text().into(),
            at: mounted.path().to_path_buf()
        }]
    );
    drop(mounted);
    assert_eq!(users(device.path()), []);
}
