//! The state directory: whole or not at all, locked, and readable beside a daemon.

use crate::lab::Dir;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use twinblk::core::{Geometry, Protocol, Record};
use twinblk::runtime::state_dir::{StateDir, StateError};
use twinblk::table::name::Text;
use twinblk::table::{LegIdentity, LegKind, Name, Settings, Superblock};

pub fn name(text: &str) -> Name {
    Name::new(text).expect("it is a name")
}

pub fn superblock(device: &str, number: u64) -> Superblock {
    Superblock {
        uuid: [1; 16],
        name: name(device),
        geometry: Geometry::new(1 << 30, 512),
        max_io: 512 << 10,
        depth: 128,
        ublk_id: 0,
        record: Record {
            number,
            tracked: false,
            clean: false,
            ..Record::first(Protocol::Flush)
        },
        settings: Settings::default(),
        footprints: [None; 2],
        since: [None; 2],
        sightings: [None; 2],
        legs: [
            Some(LegIdentity {
                kind: LegKind::Block,
                size: 1 << 30,
                block: 512,
                major: 8,
                minor: 0,
                inode: 0,
                partition: 0,
                serial: Text::default(),
                wwid: Text::default(),
                partition_uuid: Text::default(),
                stack_uuid: Text::default(),
                path: Text::cut("/dev/sda"),
                canonical: Text::cut("/dev/sda"),
            }),
            None,
        ],
    }
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("it can be listed")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn what_was_written_is_there_after_it_is_opened_again_and_can_be_peeked_at_meanwhile() {
    let dir = Dir::new();
    let root = dir.join("var/lib/twinblk");
    let mut state = StateDir::create(&root, &superblock("vm1", 1)).unwrap_or_else(|error| panic!("{error}"));
    for number in [2, 3, 7, 8] {
        state
            .write(&superblock("vm1", number))
            .unwrap_or_else(|error| panic!("{error}"));
        let picked = StateDir::peek(&root, &name("vm1")).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((picked.superblock, picked.doubt), (superblock("vm1", number), false));
    }
    assert!(StateDir::is_locked(&root, &name("vm1")).expect("it can be asked"));
    assert!(matches!(
        StateDir::open(&root, &name("vm1")),
        Err(StateError::Locked { .. })
    ));
    drop(state);
    assert!(!StateDir::is_locked(&root, &name("vm1")).expect("it can be asked"));
    let (mut state, picked) = StateDir::open(&root, &name("vm1")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((picked.superblock, picked.doubt), (superblock("vm1", 8), false));
    state
        .write(&superblock("vm1", 9))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        StateDir::peek(&root, &name("vm1"))
            .expect("it is there")
            .superblock
            .record
            .number,
        9
    );
}

#[test]
fn the_directory_is_for_its_owner_alone() {
    let dir = Dir::new();
    let root = dir.join("root");
    let state = StateDir::create(&root, &superblock("vm1", 1)).unwrap_or_else(|error| panic!("{error}"));
    for (path, mode) in [
        (root.clone(), 0o700),
        (state.path().to_path_buf(), 0o700),
        (state.path().join("superblock"), 0o600),
    ] {
        let found = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(found & 0o777, mode, "{}", path.display());
    }
}

#[test]
fn a_name_that_is_taken_is_refused_and_its_state_left_alone() {
    let dir = Dir::new();
    let first = StateDir::create(dir.path(), &superblock("vm1", 1)).unwrap_or_else(|error| panic!("{error}"));
    let mut other = superblock("vm1", 1);
    other.uuid = [2; 16];
    assert!(matches!(
        StateDir::create(dir.path(), &other),
        Err(StateError::Exists { .. })
    ));
    drop(first);
    assert!(matches!(
        StateDir::create(dir.path(), &other),
        Err(StateError::Exists { .. })
    ));
    assert_eq!(
        StateDir::peek(dir.path(), &name("vm1"))
            .expect("it is there")
            .superblock,
        superblock("vm1", 1)
    );
    fs::create_dir(dir.join("empty")).expect("a directory");
    assert!(matches!(
        StateDir::create(dir.path(), &superblock("empty", 1)),
        Err(StateError::Exists { .. })
    ));
    assert_eq!(names(dir.path()), ["empty", "vm1"], "nothing is left of the attempts");
}

#[test]
fn what_a_crash_left_of_making_and_removing_is_in_nobodys_way() {
    let dir = Dir::new();
    for leftover in [".new-vm1", ".gone-vm1", ".new-vm2"] {
        fs::create_dir(dir.join(leftover)).expect("a directory");
        fs::write(dir.join(leftover).join("superblock"), "torn").expect("a small file");
    }
    assert_eq!(StateDir::list(dir.path()).expect("it can be listed"), []);
    let state = StateDir::create(dir.path(), &superblock("vm1", 1)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(names(dir.path()), ["vm1"]);
    fs::create_dir(dir.join(".gone-vm1")).expect("a directory");
    state.remove().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn a_removed_device_is_missing_and_its_name_free() {
    let dir = Dir::new();
    let state = StateDir::create(dir.path(), &superblock("vm1", 1)).unwrap_or_else(|error| panic!("{error}"));
    state.remove().unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(
        StateDir::open(dir.path(), &name("vm1")),
        Err(StateError::Missing { .. })
    ));
    assert!(matches!(
        StateDir::peek(dir.path(), &name("vm1")),
        Err(StateError::Missing { .. })
    ));
    StateDir::create(dir.path(), &superblock("vm1", 1)).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn devices_are_listed_by_name_and_nothing_else_is() {
    let dir = Dir::new();
    assert_eq!(
        StateDir::list(&dir.join("missing")).expect("no directory, no devices"),
        []
    );
    for device in ["vm2", "vm10", "a"] {
        StateDir::create(dir.path(), &superblock(device, 1)).unwrap_or_else(|error| panic!("{error}"));
    }
    fs::create_dir(dir.join("lost+found")).expect("a directory");
    fs::create_dir(dir.join("empty")).expect("a directory");
    fs::write(dir.join("file"), "x").expect("a small file");
    let listed: Vec<String> = StateDir::list(dir.path())
        .expect("it can be listed")
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(listed, ["a", "vm10", "vm2"]);
}

#[test]
fn a_renamed_directory_and_a_damaged_one_are_refused_with_a_reason() {
    let dir = Dir::new();
    drop(StateDir::create(dir.path(), &superblock("vm1", 1)).unwrap_or_else(|error| panic!("{error}")));
    fs::rename(dir.join("vm1"), dir.join("vm2")).expect("a rename");
    assert!(matches!(
        StateDir::open(dir.path(), &name("vm2")),
        Err(StateError::Misplaced { .. })
    ));
    assert!(matches!(
        StateDir::peek(dir.path(), &name("vm2")),
        Err(StateError::Misplaced { .. })
    ));
    fs::rename(dir.join("vm2"), dir.join("vm1")).expect("a rename");

    let (mut state, _) = StateDir::open(dir.path(), &name("vm1")).unwrap_or_else(|error| panic!("{error}"));
    state
        .write(&superblock("vm1", 2))
        .unwrap_or_else(|error| panic!("{error}"));
    drop(state);
    let file = fs::File::options()
        .write(true)
        .open(dir.join("vm1/superblock"))
        .expect("it is there");
    file.write_all_at(&[0xff], 64 << 10).expect("a small write");
    let (state, picked) = StateDir::open(dir.path(), &name("vm1")).unwrap_or_else(|error| panic!("{error}"));
    assert!(
        picked.doubt && picked.superblock.record.number == 1,
        "the newer record was damaged"
    );
    drop(state);
    file.write_all_at(&[0xff], 0).expect("a small write");
    let error = StateDir::open(dir.path(), &name("vm1")).expect_err("nothing is intact");
    assert!(
        matches!(error, StateError::Unusable { .. }) && error.to_string().contains("vm1"),
        "{error}"
    );
    file.set_len(10).expect("a truncation");
    assert!(matches!(
        StateDir::peek(dir.path(), &name("vm1")),
        Err(StateError::Unusable { .. })
    ));
}
