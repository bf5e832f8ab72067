//! What is tracked of a device: there from the beginning, in full; and never believed when it is not what was written.

use crate::lab::{Dir, Mounted};
use crate::state_dir::{name, superblock};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use twinblk::core::{Bits, Errno, Geometry, LegId, Note, NoteId, Signature, Source};
use twinblk::runtime::signature_tables::{LostTable, SignatureTables};
use twinblk::runtime::signer::Signatures;
use twinblk::runtime::state_dir::{StateDir, StateError};
use twinblk::runtime::tracking::{DirtyLoaded, Tracking};
use twinblk::table::checked::Flaw;
use twinblk::table::dirty::{GRAINS, WORDS};
use twinblk::table::signatures::Entry;
use twinblk::table::{Lost, Superblock};

/// More than one block of the dirty map, and no unit comes out even.
const SIZE: u64 = (5 << 30) + 512;

fn device() -> Superblock {
    let mut superblock = superblock("vm1", 1);
    superblock.geometry = Geometry::new(SIZE, 512);
    superblock
}

fn geometry() -> Geometry {
    device().geometry
}

fn create(dir: &Dir) -> StateDir {
    StateDir::create(dir.path(), &device()).unwrap_or_else(|error| panic!("{error}"))
}

/// What all files said.
#[derive(Debug)]
struct Loaded {
    active: Result<Bits, Lost>,
    dirty: Result<DirtyLoaded, Lost>,
    signatures: [Result<(), LostTable>; 2],
}

fn track(state: &StateDir) -> (Tracking, Loaded) {
    let (tracking, loaded) = ok(state.tracking(&device()));
    let (_, signatures) = ok(state.signatures(&device()));
    let loaded = Loaded {
        active: loaded.active,
        dirty: loaded.dirty,
        signatures,
    };
    (tracking, loaded)
}

fn tables(state: &StateDir) -> SignatureTables {
    ok(state.signatures(&device())).0
}

/// Closes the state and opens it again.
fn again(state: StateDir, tracking: Tracking, dir: &Dir) -> (StateDir, Tracking, Loaded) {
    drop((state, tracking));
    let (state, _) = StateDir::open(dir.path(), &name("vm1")).unwrap_or_else(|error| panic!("{error}"));
    let (tracking, loaded) = track(&state);
    (state, tracking, loaded)
}

fn none_active() -> Bits {
    Bits::none(geometry().regions())
}

fn none_dirty() -> Bits {
    Bits::none(geometry().grains())
}

fn dirty(bits: &Bits) -> DirtyLoaded {
    DirtyLoaded {
        bits: bits.clone(),
        unverified: 0,
    }
}

fn assert_nothing_lost(loaded: &Loaded) {
    let Loaded {
        active,
        dirty,
        signatures,
    } = loaded;
    assert!(
        active.is_ok() && dirty.is_ok() && signatures.iter().all(Result::is_ok),
        "{loaded:?}"
    );
}

fn ok<T>(result: Result<T, StateError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

fn file(dir: &Dir, name: &str) -> PathBuf {
    dir.join("vm1").join(name)
}

fn edit(path: &Path) -> File {
    File::options().read(true).write(true).open(path).expect("it is there")
}

#[test]
fn a_new_device_has_all_its_files_with_all_the_space_that_marks_and_bits_will_ever_need() {
    let dir = Dir::new();
    let state = create(&dir);
    for (name, bytes) in [("regions", 3 << 16), ("dirty", 4096 * 4)] {
        let metadata = fs::metadata(file(&dir, name)).expect("it is there");
        assert_eq!(metadata.len(), bytes, "{name}");
        assert!(metadata.blocks() * 512 >= bytes, "{name} has no space of its own");
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }
    for name in ["signatures-a", "signatures-b"] {
        let metadata = fs::metadata(file(&dir, name)).expect("it is there");
        assert_eq!(metadata.len(), 4096 + 5121 * 64, "{name}");
        assert!(metadata.blocks() * 512 <= 64 << 10, "{name} is not sparse");
    }
    let (_tracking, loaded) = track(&state);
    assert_nothing_lost(&loaded);
    assert_eq!(loaded.active, Ok(none_active()));
    assert_eq!(loaded.dirty, Ok(dirty(&none_dirty())));
}

#[test]
fn marks_bits_and_signatures_are_there_after_the_state_is_opened_again() {
    let dir = Dir::new();
    let state = create(&dir);
    let (mut tracking, _) = track(&state);
    let (mut active, mut bits) = (none_active(), none_dirty());
    for region in [0, 5, geometry().regions() - 1] {
        active.insert(region);
        ok(tracking.mark(&active));
    }
    active.remove(5);
    ok(tracking.mark(&active));
    bits.insert_run(GRAINS - 3, GRAINS + 3);
    bits.insert(geometry().grains() - 1);
    ok(tracking.save_dirty(&[(0, &bits.words()[..WORDS]), (1, &bits.words()[WORDS..2 * WORDS])]));
    let last = geometry().grains() / GRAINS;
    ok(tracking.save_dirty(&[(last, &bits.words()[last as usize * WORDS..])]));
    let entry = Entry {
        value: [9; 32],
        generation: 77,
        source: Source::Both,
    };
    let signatures = tables(&state);
    signatures.table(LegId::B).write(5120, &entry);
    signatures.table(LegId::B).sync(5000..5121).expect("a file");
    drop(signatures);

    let (state, tracking, loaded) = again(state, tracking, &dir);
    assert_nothing_lost(&loaded);
    assert_eq!(loaded.active, Ok(active));
    assert_eq!(loaded.dirty, Ok(dirty(&bits)));
    let signatures = tables(&state);
    assert_eq!(signatures.table(LegId::B).read(5120), Some(entry));
    assert_eq!(signatures.table(LegId::A).read(5120), None, "that of the other leg");
    drop((tracking, signatures));
    state.remove().unwrap_or_else(|error| panic!("{error}"));
    assert!(!dir.join("vm1").exists());
}

/// What is to be done to the files, and what must be said of active regions, of dirty grains, and of the tables.
type Harm = (fn(&Dir), fn(&Loaded) -> bool);

fn are_missing(loaded: &Loaded) -> bool {
    let tables_missing = |table: &Result<(), _>| match table {
        Err(lost) => {
            let lost: &LostTable = lost;
            lost.why == Lost::Missing && lost.renewed.is_ok()
        }
        Ok(()) => false,
    };
    loaded.active == Err(Lost::Missing)
        && loaded.dirty == Err(Lost::Missing)
        && loaded.signatures.iter().all(tables_missing)
}

#[test]
fn what_is_not_what_was_written_is_lost_and_stays_so_until_it_begins_anew() {
    let harms: [Harm; 9] = [
        // Made by a version that had the superblock alone.
        (
            |dir| {
                for name in ["regions", "dirty", "signatures-a", "signatures-b"] {
                    fs::remove_file(file(dir, name)).expect("it is there");
                }
            },
            are_missing,
        ),
        (
            |dir| edit(&file(dir, "regions")).set_len(100).expect("a truncation"),
            |loaded| matches!(loaded.active, Err(Lost::Length { found: 100, .. })) && loaded.dirty.is_ok(),
        ),
        (
            |dir| edit(&file(dir, "dirty")).set_len(4096 * 3).expect("a truncation"),
            |loaded| matches!(loaded.dirty, Err(Lost::Length { .. })) && loaded.active.is_ok(),
        ),
        (
            |dir| edit(&file(dir, "regions")).write_all_at(b"x", 4000).expect("a write"),
            |loaded| loaded.active == Err(Lost::Flawed(Flaw::Damaged)),
        ),
        (
            |dir| {
                edit(&file(dir, "regions"))
                    .write_all_at(b"x", 64 << 10)
                    .expect("a write");
            },
            |loaded| loaded.active == Err(Lost::Flawed(Flaw::Foreign)),
        ),
        (
            |dir| {
                edit(&file(dir, "regions"))
                    .write_all_at(b"x", 128 << 10)
                    .expect("a write");
            },
            |loaded| loaded.active == Err(Lost::Poisoned),
        ),
        (
            |dir| {
                edit(&file(dir, "dirty")).write_all_at(b"x", 4000).expect("a write");
            },
            |loaded| loaded.dirty == Err(Lost::Flawed(Flaw::Damaged)),
        ),
        // Of another device of the same size.
        (
            |dir| {
                let mut other = device();
                other.name = name("other");
                other.uuid = [2; 16];
                drop(StateDir::create(dir.path(), &other).unwrap_or_else(|error| panic!("{error}")));
                for name in ["regions", "dirty", "signatures-a"] {
                    fs::copy(dir.join("other").join(name), file(dir, name)).expect("a copy");
                }
            },
            |loaded| {
                loaded.active == Err(Lost::OtherDevice)
                    && loaded.dirty == Err(Lost::OtherDevice)
                    && loaded.signatures[0]
                        .as_ref()
                        .is_err_and(|lost| lost.why == Lost::OtherDevice)
                    && loaded.signatures[1].is_ok()
            },
        ),
        (
            |dir| {
                fs::copy(file(dir, "signatures-a"), file(dir, "signatures-b")).expect("a copy");
            },
            |loaded| {
                loaded.signatures[1]
                    .as_ref()
                    .is_err_and(|lost| lost.why == Lost::Other("leg") && lost.renewed.is_ok())
                    && loaded.active.is_ok()
            },
        ),
    ];
    for (index, (harm, is_told)) in harms.into_iter().enumerate() {
        let dir = Dir::new();
        let state = create(&dir);
        drop(state);
        harm(&dir);
        let (state, _) = StateDir::open(dir.path(), &name("vm1")).unwrap_or_else(|error| panic!("{error}"));
        let (tracking, loaded) = track(&state);
        assert!(is_told(&loaded), "harm {index}: {loaded:?}");
        // A daemon that dies now has not mended anything but the tables.
        let (state, mut tracking, second) = again(state, tracking, &dir);
        assert_eq!(
            (&second.active, &second.dirty),
            (&loaded.active, &loaded.dirty),
            "harm {index}"
        );
        assert!(second.signatures.iter().all(Result::is_ok), "harm {index}");
        if second.active.is_err() {
            assert!(tracking.mark(&none_active()).is_err(), "harm {index}");
        }
        let (active, bits) = (Bits::all(geometry().regions()), Bits::all(geometry().grains()));
        ok(tracking.begin_anew(&active, &bits));
        ok(tracking.mark(&none_active()));
        let (_state, _tracking, loaded) = again(state, tracking, &dir);
        assert_nothing_lost(&loaded);
        assert_eq!(loaded.active, Ok(none_active()), "harm {index}");
        assert_eq!(loaded.dirty, Ok(dirty(&bits)), "harm {index}");
    }
}

#[test]
fn a_damaged_block_of_the_map_makes_its_own_grains_dirty_and_no_others() {
    let dir = Dir::new();
    let state = create(&dir);
    drop(state);
    edit(&file(&dir, "dirty"))
        .write_all_at(b"x", 2 * 4096 + 99)
        .expect("a write");
    let (state, _) = StateDir::open(dir.path(), &name("vm1")).unwrap_or_else(|error| panic!("{error}"));
    let (_, loaded) = track(&state);
    let mut expected = none_dirty();
    expected.insert_run(GRAINS, 2 * GRAINS);
    let expected = DirtyLoaded {
        bits: expected,
        unverified: 1,
    };
    assert_eq!(loaded.dirty, Ok(expected));
    assert!(loaded.active.is_ok());
}

#[test]
fn poisoned_marks_are_lost_after_a_kill_and_begin_anew_in_place() {
    let dir = Dir::new();
    let state = create(&dir);
    let (mut tracking, _) = track(&state);
    ok(tracking.mark(&none_active()));
    ok(tracking.poison());
    assert!(tracking.mark(&none_active()).is_err());
    let (state, mut tracking, loaded) = again(state, tracking, &dir);
    assert_eq!(loaded.active, Err(Lost::Poisoned));
    assert_eq!(loaded.dirty, Ok(dirty(&none_dirty())));
    ok(tracking.begin_anew(&none_active(), &none_dirty()));
    let (_, _, loaded) = again(state, tracking, &dir);
    assert_nothing_lost(&loaded);
}

#[test]
fn a_table_that_is_truncated_or_removed_is_lost_and_can_be_made_anew() {
    let harms: [fn(&Path); 2] = [
        |path| edit(path).set_len(4096).expect("a truncation"),
        |path| fs::remove_file(path).expect("it is there"),
    ];
    for harm in harms {
        let dir = Dir::new();
        let state = create(&dir);
        let mut signatures = tables(&state);
        let entry = Entry {
            value: [1; 32],
            generation: 1,
            source: Source::One,
        };
        let old = signatures.table(LegId::A);
        old.write(100, &entry);
        old.sync(0..5121).expect("a file");
        harm(&file(&dir, "signatures-a"));
        old.write(101, &entry);
        old.sync(0..5121)
            .expect_err("there is nothing that it could be durable in");
        assert!(old.is_lost());
        assert_eq!((old.read(100), old.read(101)), (None, None));
        // It is made anew when something is to be forgotten: that has forgotten everything.
        let mut stale = Bits::none(geometry().extents());
        stale.insert(7);
        assert_eq!(signatures.forget(LegId::A, &stale), Ok(()));
        let new = signatures.table(LegId::A);
        assert!(!new.is_lost() && new.read(100).is_none());
        new.write(100, &entry);
        new.sync(100..101).expect("a file");
        drop(signatures);
        let (tracking, _) = track(&state);
        let (state, _tracking, loaded) = again(state, tracking, &dir);
        assert_nothing_lost(&loaded);
        assert_eq!(tables(&state).table(LegId::A).read(100), Some(entry));
    }
}

#[test]
fn a_table_that_could_not_be_emptied_lets_nothing_be_forgotten_until_it_is() {
    let dir = Dir::new();
    let state = create(&dir);
    let mut signatures = tables(&state);
    let note = |extent| Note {
        id: NoteId(0),
        extent,
        signature: Signature([3; 32]),
        generation: 1,
        sources: [Some(Source::Payload), None],
    };
    signatures.note(&note(5));
    let nothing = Bits::none(geometry().extents());
    assert_eq!(
        signatures.forget(LegId::A, &nothing),
        Ok(()),
        "what was noted is durable"
    );
    // A directory where the new file is to be made.
    fs::create_dir(file(&dir, "signatures-a.new")).expect("a directory");
    signatures.empty(LegId::A).expect_err("it cannot be made");
    signatures.note(&note(6));
    signatures
        .forget(LegId::A, &nothing)
        .expect_err("the old file says something");
    assert_eq!(signatures.forget(LegId::B, &nothing), Ok(()));
    fs::remove_dir(file(&dir, "signatures-a.new")).expect("it is there");
    assert_eq!(signatures.forget(LegId::A, &nothing), Ok(()));
    drop(signatures);
    let table = tables(&state);
    assert_eq!(
        (table.table(LegId::A).read(5), table.table(LegId::A).read(6)),
        (None, None)
    );
}

#[test]
fn a_device_is_not_created_where_its_state_has_no_room_and_nothing_is_left_of_it() {
    let dir = Dir::new();
    let Some(small) = Mounted::tmpfs(dir.join("small"), "1m") else {
        return;
    };
    let mut large = device();
    large.geometry = Geometry::new(1 << 40, 512);
    let refused = StateDir::create(small.path(), &large).expect_err("the dirty map alone has 2 MiB");
    assert!(matches!(refused, StateError::NoSpace { .. }), "{refused:?}");
    assert_eq!(refused.errno(), Errno(libc::ENOSPC));
    let text = refused.to_string();
    assert!(
        text.contains("no room") && text.contains("dirty") && text.contains("--state-dir"),
        "{text}"
    );
    assert_eq!(fs::read_dir(small.path()).expect("it can be listed").count(), 0);
    drop(StateDir::create(small.path(), &device()).unwrap_or_else(|error| panic!("{error}")));
}

#[test]
fn without_room_the_files_of_an_older_device_stay_lost_and_its_tables_know_nothing() {
    let dir = Dir::new();
    let Some(small) = Mounted::tmpfs(dir.join("small"), "1m") else {
        return;
    };
    drop(StateDir::create(small.path(), &device()).unwrap_or_else(|error| panic!("{error}")));
    let at = small.path().join("vm1");
    for name in ["regions", "dirty", "signatures-a", "signatures-b"] {
        fs::remove_file(at.join(name)).expect("it is there");
    }
    let filler = fs::write(small.path().join("filler"), vec![1; 2 << 20]);
    assert!(filler.is_err(), "the file system must be full now");
    let (state, _) = StateDir::open(small.path(), &name("vm1")).unwrap_or_else(|error| panic!("{error}"));
    let (mut tracking, loaded) = track(&state);
    assert_eq!(loaded.active, Err(Lost::Missing));
    let signatures = tables(&state);
    for (leg, lost) in LegId::ALL.into_iter().zip(&loaded.signatures) {
        assert!(lost.as_ref().is_err_and(|lost| lost.renewed.is_err()), "{lost:?}");
        let table = signatures.table(leg);
        assert!(table.is_lost() && table.read(0).is_none());
        table.forget(0..10);
        table.sync(0..10).expect_err("there is no file");
        assert!(table.unlock().is_ok());
    }
    let refused = tracking
        .begin_anew(&none_active(), &none_dirty())
        .expect_err("there is no room");
    assert!(matches!(refused, StateError::NoSpace { .. }), "{refused:?}");
    drop((state, tracking, signatures));
    let (state, _) = StateDir::open(small.path(), &name("vm1")).unwrap_or_else(|error| panic!("{error}"));
    assert!(track(&state).1.active.is_err());
}
