//! What only io_uring can show.

use crate::engines::{Directory, open, uring_on};
use crate::rig::{MIB, Rig, UNMAP, WRITE, WRITE_FUA, ZERO, assert_same, pattern};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use twinblk::core::{Action, Buf, Errno, LegId, Range};
use twinblk::io::Engine;
use twinblk::io::uring::UringEngine;

#[test]
fn a_transfer_that_comes_in_pieces_ends_whole() {
    let (reader, mut writer) = io::pipe().unwrap();
    let [null, _] = nulls();
    let mut rig = uring_on([File::from(OwnedFd::from(reader)), null], MIB, 512);
    let bytes = pattern(1, 8192);
    rig.submit(LegId::A, Action::Read, Range::new(0, 8192), Buf::at(4096));
    let mut ended = Vec::new();
    for piece in bytes.chunks(1024) {
        // The operation is waiting for more: each wait takes what is there and goes on with the rest.
        rig.engine.wait(0, &mut ended).unwrap();
        assert_eq!(ended, [], "ended before its last byte was there");
        io::Write::write_all(&mut writer, piece).unwrap();
    }
    assert!(rig.wait_all()[0].1.is_ok());
    let mut read = vec![0; 8192];
    rig.arena.read(Buf::at(4096), &mut read);
    assert_same(&read, &bytes, "put together from pieces");
}

#[test]
fn a_disk_that_ends_in_the_middle_of_a_read_is_an_error() {
    let (reader, mut writer) = io::pipe().unwrap();
    let [null, _] = nulls();
    let mut rig = uring_on([File::from(OwnedFd::from(reader)), null], MIB, 512);
    io::Write::write_all(&mut writer, &[1; 1024]).unwrap();
    drop(writer);
    assert_eq!(
        rig.run(LegId::A, Action::Read, Range::new(0, 4096), Buf(0)),
        Err(Errno::IO)
    );
}

fn nulls() -> [File; 2] {
    ["/dev/null", "/dev/null"].map(|path| open(Path::new(path), 0).unwrap())
}

#[test]
fn an_error_of_the_disk_comes_with_its_number() {
    let full = || open(Path::new("/dev/full"), 0).unwrap();
    let mut rig = uring_on([full(), full()], MIB, 512);
    for action in [WRITE, WRITE_FUA] {
        let result = rig.run(LegId::B, action, Range::new(0, 4096), Buf(0));
        assert_eq!(result, Err(Errno(libc::ENOSPC)));
    }
    // A device that cannot be zeroed by any other means is written to in the end, and that fails, too.
    for action in [ZERO, UNMAP] {
        let result = rig.run(LegId::A, action, Range::new(0, 4096), Buf(0));
        assert_eq!(result, Err(Errno(libc::ENOSPC)));
    }
    assert!(
        rig.run(LegId::A, Action::Flush, Range::EMPTY, Buf(0)).is_err(),
        "cannot be flushed"
    );
    rig.run(LegId::A, Action::Read, Range::new(0, 4096), Buf(0)).unwrap();
}

#[test]
fn zeroing_gives_space_back_only_when_it_may() {
    use std::os::unix::fs::MetadataExt;
    let directory = Directory::on_disk();
    let paths = ["a", "b"].map(|name| directory.0.join(name));
    let files = [0, 1].map(|i| open(&paths[i], 0).unwrap());
    let bytes = pattern(1, 2 * MIB);
    files[0].write_all_at(&bytes, 0).unwrap();
    files[0].sync_all().unwrap();
    let mut rig = uring_on(files, 2 * MIB, 512);
    let used = || fs::metadata(&paths[0]).unwrap().blocks();
    let before = used();
    rig.run(LegId::A, ZERO, Range::new(0, MIB), Buf(0)).unwrap();
    assert!(used() >= before, "space was given back");
    rig.run(LegId::A, UNMAP, Range::new(0, MIB), Buf(0)).unwrap();
    if used() >= before {
        println!("skipped: the file system of {} punches no holes", directory.0.display());
    }
    assert!(rig.read(LegId::A, 0, MIB).iter().all(|&byte| byte == 0));
    assert_eq!(fs::metadata(&paths[0]).unwrap().len(), 2 * MIB);
}

/// An engine with one read in flight that ends only when something is written into the pipe.
fn hanging_read() -> (Rig<UringEngine>, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let [null, _] = nulls();
    let mut rig = uring_on([File::from(OwnedFd::from(reader)), null], MIB, 512);
    rig.submit(LegId::A, Action::Read, Range::new(0, 4096), Buf::at(8192));
    rig.engine.wait(0, &mut Vec::new()).unwrap();
    assert_eq!(rig.engine.in_flight(), 1);
    (rig, writer)
}

#[test]
fn memory_and_descriptor_of_an_operation_that_does_not_end_outlive_the_engine() {
    let (rig, mut writer) = hanging_read();
    let Rig { mut engine, arena, .. } = rig;
    engine.set_drain(Duration::ZERO);
    let weak = Arc::downgrade(&arena);
    drop(engine);
    assert!(
        Arc::strong_count(&arena) > 1,
        "the arena would be unmapped under the kernel"
    );
    // The late completion lands where it was meant to, and the descriptor is open still: no SIGPIPE, no EPIPE.
    io::Write::write_all(&mut writer, &[0x5A; 4096]).unwrap();
    let mut bytes = [0; 4096];
    let landed = (0..2000).any(|_| {
        // Completions of a ring nobody enters any more are carried out when this thread enters the kernel.
        std::thread::sleep(Duration::from_millis(1));
        arena.read(Buf::at(8192), &mut bytes);
        bytes == [0x5A; 4096]
    });
    assert!(landed, "the operation had ended, or its buffer is gone");
    drop(arena);
    assert!(weak.upgrade().is_some());
}

#[test]
fn what_can_be_cancelled_is_cancelled_when_the_engine_is_dropped() {
    let (rig, mut writer) = hanging_read();
    let Rig { mut engine, arena, .. } = rig;
    // Nothing but the cancelling ends it, however long that takes on a machine that has much to do.
    engine.set_drain(Duration::from_secs(10));
    drop(engine);
    assert_eq!(Arc::strong_count(&arena), 1, "leaked although it could be cancelled");
    let closed = io::Write::write_all(&mut writer, &[1]).unwrap_err();
    assert_eq!(closed.kind(), io::ErrorKind::BrokenPipe, "the disk is still held");
    assert!(arena.is_zero(Buf::at(8192), 4096));
}

#[test]
fn an_operation_that_ends_late_but_in_time_is_waited_for() {
    let (rig, mut writer) = hanging_read();
    let Rig { mut engine, arena, .. } = rig;
    engine.set_drain(Duration::from_secs(10));
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        // Part of it only: a drained engine does not go on with the rest.
        io::Write::write_all(&mut writer, &[7; 512]).unwrap();
        writer
    });
    drop(engine);
    assert_eq!(Arc::strong_count(&arena), 1);
    let mut bytes = [0; 512];
    arena.read(Buf::at(8192), &mut bytes);
    assert_eq!(bytes, [7; 512]);
    late.join().unwrap();
}

#[test]
#[should_panic(expected = "operations in flight")]
fn a_leg_with_operations_in_flight_cannot_be_exchanged() {
    let (mut rig, _writer) = hanging_read();
    rig.engine.set_drain(Duration::ZERO);
    rig.engine.set_leg(LegId::A, None);
}

#[test]
fn the_other_leg_can_be_exchanged_and_the_old_one_is_let_go() {
    let (mut rig, mut writer) = hanging_read();
    let (reader, mut other) = io::pipe().unwrap();
    rig.engine.set_leg(LegId::B, Some(Arc::new(OwnedFd::from(reader))));
    rig.engine.set_leg(LegId::B, None);
    let closed = io::Write::write_all(&mut other, &[1]).unwrap_err();
    assert_eq!(closed.kind(), io::ErrorKind::BrokenPipe);
    io::Write::write_all(&mut writer, &[3; 4096]).unwrap();
    assert!(rig.wait_all()[0].1.is_ok());
}

#[test]
fn a_drained_engine_keeps_no_ring_open() {
    let rings = || {
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        targets
            .filter(|target| target.to_string_lossy().contains("io_uring"))
            .count()
    };
    let before = rings();
    for _ in 0..200 {
        let mut rig = uring_on(nulls(), MIB, 512);
        rig.run(LegId::A, WRITE, Range::new(0, 512), Buf(0)).unwrap();
    }
    // Tests beside this one may have some open.
    assert!(
        rings() < before + 100,
        "{before} rings were open before, {} after",
        rings()
    );
}
