//! What the kernel is told, and what follows its answers; the kernel is the test.

use super::*;
use crate::core::{Buf, Range};
use std::cell::RefCell;
use std::fs::File;

const READ: u8 = opcode::Read::CODE;
const WRITE: u8 = opcode::Write::CODE;
const FSYNC: u8 = opcode::Fsync::CODE;
const FALLOCATE: u8 = opcode::Fallocate::CODE;
const PUNCH: u64 = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u64;
const ZERO_RANGE: u64 = (libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE) as u64;

/// What the kernel would see of an entry (struct io_uring_sqe in its uapi).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    code: u8,
    flags: u8,
    offset: u64,
    address: u64,
    len: u64,
    operation_flags: u64,
    user_data: u64,
}

fn see(entry: &squeue::Entry) -> Seen {
    // SAFETY: an entry is the kernel's struct of 64 bytes, of plain integers without padding.
    let words: [u64; 8] = unsafe { std::mem::transmute_copy(entry) };
    Seen {
        code: words[0] as u8,
        flags: (words[0] >> 8) as u8,
        offset: words[1],
        address: words[2],
        len: words[3] & 0xFFFF_FFFF,
        operation_flags: words[3] >> 32,
        user_data: words[4],
    }
}

/// Legs whose kernel is the test.
struct Bench {
    legs: UringLegs,
    pushed: RefCell<Vec<Seen>>,
    next: u64,
}

impl Bench {
    fn new(capacity: u32) -> Bench {
        Bench::with_arena(capacity, 8 << 20)
    }

    fn with_arena(capacity: u32, bytes: u64) -> Bench {
        let arena = Arc::new(Arena::reserve(bytes).unwrap());
        let mut legs = UringLegs::new(arena, capacity);
        for leg in LegId::ALL {
            legs.set_leg(leg, Some(Arc::new(File::open("/dev/null").unwrap().into())));
        }
        Bench {
            legs,
            pushed: RefCell::new(Vec::new()),
            next: 1 << 47,
        }
    }

    fn start(&mut self, action: Action, start: u64, len: u64) -> Seen {
        self.next += 1;
        let op = LegOp {
            id: OpId(self.next),
            leg: LegId::A,
            action,
            range: Range::new(start, len),
            buf: Buf::at(4096),
        };
        self.legs.start(op, |entry| self.pushed.borrow_mut().push(see(entry)));
        self.pushed.get_mut().pop().unwrap()
    }

    /// Hand the result of an entry in: what follows it, or how the operation ended.
    fn finish(&mut self, seen: Seen, result: i32) -> Result<Seen, Result<(), Errno>> {
        let in_flight = self.legs.in_flight(LegId::A);
        let ended = self.legs.finish(seen.user_data, result, |entry| {
            self.pushed.borrow_mut().push(see(entry))
        });
        let next = self.pushed.get_mut().pop();
        match (ended, next) {
            (Some((id, result)), None) => {
                assert_eq!(id.0 & 0xFFFF, seen.user_data >> PLACE_BITS & 0xFFFF);
                assert!(id.0 > 1 << 47, "high bits of the id are gone");
                assert_eq!(self.legs.in_flight(LegId::A), in_flight - 1);
                Err(result)
            }
            (None, Some(next)) => {
                assert_eq!(next.user_data, seen.user_data);
                assert_eq!(self.legs.in_flight(LegId::A), in_flight);
                Ok(next)
            }
            both => panic!("ended and goes on, or neither: {both:?}"),
        }
    }
}

const DONE: Result<Seen, Result<(), Errno>> = Err(Ok(()));

fn failed(error: i32) -> Result<Seen, Result<(), Errno>> {
    Err(Err(Errno(error)))
}

#[test]
fn entries_say_what_the_operation_asks() {
    let mut bench = Bench::new(8);
    let buffer = bench.legs.arena().ptr(Buf::at(4096)) as u64;
    let read = bench.start(Action::Read, 8192, 4096);
    assert_eq!(
        (read.code, read.offset, read.len, read.address),
        (READ, 8192, 4096, buffer)
    );
    let write = bench.start(Action::Write { fua: false }, 512, 1024);
    assert_eq!(
        (write.code, write.offset, write.len, write.address),
        (WRITE, 512, 1024, buffer)
    );
    assert_eq!(write.operation_flags, 0);
    let durable = bench.start(Action::Write { fua: true }, 512, 1024);
    assert_eq!((durable.code, durable.operation_flags), (WRITE, libc::RWF_DSYNC as u64));
    let flush = bench.start(Action::Flush, 0, 0);
    assert_eq!(
        (flush.code, flush.offset, flush.len, flush.operation_flags),
        (FSYNC, 0, 0, 1)
    );
    for (unmap, mode) in [(true, PUNCH), (false, ZERO_RANGE)] {
        let zero = bench.start(Action::Zero { unmap }, 4096, 8 << 30);
        // An fallocate has its length in the address and its mode in the length.
        assert_eq!(
            (zero.code, zero.offset, zero.address, zero.len),
            (FALLOCATE, 4096, 8 << 30, mode)
        );
        assert_eq!(bench.finish(zero, 0), DONE);
    }
    for (entry, result) in [(read, 4096), (write, 1024), (durable, 1024), (flush, 0)] {
        assert!(UringLegs::owns(entry.user_data));
        assert_eq!(bench.finish(entry, result), DONE);
    }
    assert!(bench.legs.is_idle());
}

#[test]
fn only_what_lies_in_the_registered_buffer_whole_names_it() {
    let mut bench = Bench::new(8);
    // The operations' buffer lies at 4096.
    bench.legs.set_registered(12288);
    let (read_fixed, write_fixed) = (opcode::ReadFixed::CODE, opcode::WriteFixed::CODE);
    assert_eq!(bench.start(Action::Read, 0, 8192).code, read_fixed);
    let durable = bench.start(Action::Write { fua: true }, 512, 8192);
    assert_eq!(
        (durable.code, durable.offset, durable.operation_flags),
        (write_fixed, 512, libc::RWF_DSYNC as u64)
    );
    assert_eq!(bench.start(Action::Read, 0, 8704).code, READ);
    assert_eq!(bench.start(Action::Write { fua: false }, 0, 8704).code, WRITE);
    let rest = bench.finish(durable, 512).unwrap();
    assert_eq!((rest.code, rest.address), (write_fixed, durable.address + 512));
    assert_eq!(
        (rest.len, rest.operation_flags),
        (7680, libc::RWF_DSYNC as u64),
        "what goes on is as durable as what it goes on from"
    );
}

#[test]
fn our_user_data_is_libublks_target_io_and_nothing_else_is_ours() {
    let mut bench = Bench::new(1);
    let entry = bench.start(Action::Flush, 0, 0);
    assert_eq!(entry.user_data >> 62, 0b10, "target I/O, and not of libublk's executor");
    for other in [
        0,
        1,
        1 << 63,
        3 << 62,
        3 << 62 | 1 << 61,
        1 << 61,
        u64::MAX,
        1 << 63 | 0xFFFF_FFFF,
    ] {
        assert!(!UringLegs::owns(other), "{other:#x}");
    }
    assert_eq!(bench.finish(entry, 0), DONE);
}

#[test]
fn a_short_transfer_goes_on_where_it_stopped_and_keeps_its_flags() {
    let mut bench = Bench::new(2);
    let first = bench.start(Action::Write { fua: true }, 1 << 40, 8192);
    let second = bench.finish(first, 4096 + 512).unwrap();
    assert_eq!(second.offset, (1 << 40) + 4608);
    assert_eq!(second.address, first.address + 4608);
    assert_eq!(
        (second.len, second.code, second.operation_flags),
        (3584, WRITE, first.operation_flags)
    );
    // Part of a sector is done again.
    let third = bench.finish(second, 1000).unwrap();
    assert_eq!((third.offset, third.len), ((1 << 40) + 5120, 3072));
    assert_eq!(bench.finish(third, 3072), DONE);
}

#[test]
fn a_transfer_too_large_for_one_entry_takes_several() {
    for action in [Action::Read, Action::Write { fua: false }] {
        let mut bench = Bench::with_arena(1, 4 << 30);
        let first = bench.start(action, 512, (2 << 30) + 512);
        assert_eq!((first.offset, first.len), (512, 1 << 30));
        let second = bench.finish(first, 1 << 30).unwrap();
        assert_eq!((second.offset, second.len), ((1 << 30) + 512, 1 << 30));
        let third = bench.finish(second, 1 << 30).unwrap();
        assert_eq!((third.address, third.len), (first.address + (2 << 30), 512));
        assert_eq!(bench.finish(third, 512), DONE);
    }
}

#[test]
fn a_transfer_that_gets_nowhere_or_too_far_is_an_error() {
    for result in [0, 100, 511, 4608, 1 << 20] {
        for action in [Action::Read, Action::Write { fua: false }] {
            let mut bench = Bench::new(2);
            let entry = bench.start(action, 0, 4096);
            assert_eq!(bench.finish(entry, result), failed(libc::EIO), "{action:?}: {result}");
        }
    }
    let mut bench = Bench::new(2);
    let flush = bench.start(Action::Flush, 0, 0);
    assert_eq!(bench.finish(flush, 1), failed(libc::EIO));
}

#[test]
fn an_error_after_a_part_is_an_error_of_the_whole() {
    let mut bench = Bench::new(2);
    let first = bench.start(Action::Write { fua: false }, 0, 8192);
    let second = bench.finish(first, 4096).unwrap();
    assert_eq!(bench.finish(second, -libc::ENOSPC), failed(libc::ENOSPC));
}

#[test]
fn what_the_host_cannot_do_is_tried_again_where_it_may_wait_and_not_for_ever() {
    let mut bench = Bench::new(2);
    let errors = [libc::EAGAIN, libc::EINTR, libc::ENOMEM, libc::EBUSY, libc::ENOBUFS];
    for (action, len) in [
        (Action::Read, 512),
        (Action::Write { fua: true }, 512),
        (Action::Flush, 0),
        (Action::Zero { unmap: true }, 512),
    ] {
        let first = bench.start(action, 0, len);
        let again = Seen {
            flags: squeue::Flags::ASYNC.bits(),
            ..first
        };
        // At once, then after a pause, however that ends.
        let mut entry = bench.finish(first, -libc::ENOMEM).unwrap();
        assert_eq!(entry, again);
        for i in 1..usize::from(MAX_RETRIES) {
            let pause = bench.finish(entry, -errors[i % errors.len()]).unwrap();
            assert_eq!((pause.code, pause.len, pause.offset), (opcode::Timeout::CODE, 1, 0));
            assert_eq!(pause.address, (&raw const PAUSE) as u64);
            entry = bench.finish(pause, [-libc::ETIME, -libc::ENOMEM, 0][i % 3]).unwrap();
            assert_eq!(entry, again);
        }
        assert_eq!(bench.finish(entry, -libc::ENOMEM), failed(libc::ENOMEM), "as such");
    }
    // Progress starts the count again.
    let mut entry = bench.start(Action::Read, 0, 1024);
    for i in 0..MAX_RETRIES {
        entry = bench.finish(entry, -libc::EINTR).unwrap();
        if i > 0 {
            entry = bench.finish(entry, -libc::ETIME).unwrap();
        }
    }
    entry = bench.finish(entry, 512).unwrap();
    assert_eq!(entry.flags, 0);
    entry = bench.finish(entry, -libc::EINTR).unwrap();
    assert_eq!(bench.finish(entry, 512), DONE);
}

#[test]
fn what_a_disk_fails_is_not_tried_again() {
    let mut bench = Bench::new(2);
    let of_disk = [
        libc::EIO,
        libc::ENOSPC,
        libc::ETIMEDOUT,
        libc::ENOLINK,
        libc::EREMOTEIO,
        libc::EBADE,
        libc::ENODATA,
        libc::EILSEQ,
        libc::ENODEV,
        libc::ENXIO,
        libc::ETIME,
        libc::EROFS,
        libc::EINVAL,
    ];
    for error in of_disk {
        for (action, len) in [
            (Action::Read, 512),
            (Action::Write { fua: false }, 512),
            (Action::Flush, 0),
        ] {
            let entry = bench.start(action, 0, len);
            assert_eq!(bench.finish(entry, -error), failed(error), "{action:?}");
        }
    }
}

#[test]
fn zeroing_falls_back_step_by_step_and_ends_in_writing_zeroes() {
    let mut bench = Bench::new(2);
    let len = 2 * u64::from(ZEROES) + 1536;
    let punch = bench.start(Action::Zero { unmap: true }, 512, len);
    let zero_range = bench.finish(punch, -libc::EOPNOTSUPP).unwrap();
    assert_eq!((zero_range.code, zero_range.len), (FALLOCATE, ZERO_RANGE));
    let mut write = bench.finish(zero_range, -libc::EINVAL).unwrap();
    let zeroes = bench.legs.arena().zeroes() as u64;
    let mut at = 512;
    for chunk in [ZEROES, ZEROES, 1536] {
        assert_eq!((write.code, write.offset, write.len), (WRITE, at, u64::from(chunk)));
        assert_eq!(write.address, zeroes, "written from somewhere else");
        at += u64::from(chunk);
        match bench.finish(write, chunk as i32) {
            Ok(next) => write = next,
            Err(ended) => assert_eq!(ended, Ok(())),
        }
    }
    assert_eq!(at, 512 + len);
    assert!(bench.legs.is_idle());
}

#[test]
fn short_writes_of_zeroes_never_leave_the_zeroes() {
    let mut bench = Bench::new(2);
    let mut write = bench.start(Action::Zero { unmap: false }, 0, 4096);
    write = bench.finish(write, -libc::EOPNOTSUPP).unwrap();
    write = bench.finish(write, 1024).unwrap();
    assert_eq!((write.offset, write.len), (1024, 3072));
    assert_eq!(write.address, bench.legs.arena().zeroes() as u64);
    assert_eq!(bench.finish(write, -libc::EIO), failed(libc::EIO));
}

#[test]
fn what_a_disk_cannot_do_is_not_asked_of_it_again_but_of_the_next_disk() {
    let mut bench = Bench::new(2);
    let first = |bench: &mut Bench, unmap| {
        let entry = bench.start(Action::Zero { unmap }, 0, 4096);
        bench.legs.abandon(entry.user_data);
        (entry.code, entry.len)
    };
    // EINVAL may be about this range alone.
    let punch = bench.start(Action::Zero { unmap: true }, 0, 4096);
    let next = bench.finish(punch, -libc::EINVAL).unwrap();
    bench.legs.abandon(next.user_data);
    assert_eq!(first(&mut bench, true), (FALLOCATE, PUNCH));

    let punch = bench.start(Action::Zero { unmap: true }, 0, 4096);
    let next = bench.finish(punch, -libc::EOPNOTSUPP).unwrap();
    assert_eq!(first(&mut bench, true), (FALLOCATE, ZERO_RANGE));
    let next = bench.finish(next, -libc::EOPNOTSUPP).unwrap();
    bench.legs.abandon(next.user_data);
    assert_eq!(first(&mut bench, true), (WRITE, 4096));
    assert_eq!(first(&mut bench, false), (WRITE, 4096));

    bench
        .legs
        .set_leg(LegId::A, Some(Arc::new(File::open("/dev/null").unwrap().into())));
    assert_eq!(first(&mut bench, true), (FALLOCATE, PUNCH));
}

#[test]
fn any_other_error_of_a_zeroing_is_its_error() {
    for error in [libc::EIO, libc::ENOSPC, libc::ECANCELED, libc::EBADF] {
        let mut bench = Bench::new(2);
        let punch = bench.start(Action::Zero { unmap: true }, 0, 4096);
        assert_eq!(bench.finish(punch, -error), failed(error));
    }
}

#[test]
fn a_place_is_used_again_only_after_its_operation_has_ended() {
    let mut bench = Bench::new(3);
    let mut in_flight: Vec<_> = (0..3).map(|_| bench.start(Action::Flush, 0, 0)).collect();
    for i in 0..100 {
        let ending = in_flight.remove(i * 7 % 3);
        assert_eq!(bench.finish(ending, 0), DONE);
        let begun = bench.start(Action::Flush, 0, 0);
        assert!(
            in_flight
                .iter()
                .all(|other| other.user_data & PLACE_MASK != begun.user_data & PLACE_MASK)
        );
        assert_ne!(begun.user_data, ending.user_data);
        in_flight.push(begun);
    }
    for entry in in_flight {
        assert_eq!(bench.finish(entry, 0), DONE);
    }
}

#[test]
#[should_panic(expected = "more than 2 operations")]
fn the_table_has_a_bound() {
    let mut bench = Bench::new(2);
    for _ in 0..3 {
        bench.start(Action::Flush, 0, 0);
    }
}

#[test]
#[should_panic(expected = "of no operation in flight")]
fn an_entry_ends_once() {
    let mut bench = Bench::new(2);
    let entry = bench.start(Action::Flush, 0, 0);
    assert_eq!(bench.finish(entry, 0), DONE);
    let _ = bench.finish(entry, 0);
}

#[test]
#[should_panic(expected = "of no operation in flight")]
fn a_late_result_does_not_end_the_operation_that_took_the_place() {
    let mut bench = Bench::new(1);
    let old = bench.start(Action::Flush, 0, 0);
    assert_eq!(bench.finish(old, 0), DONE);
    bench.start(Action::Flush, 0, 0);
    let _ = bench.finish(old, 0);
}

#[test]
#[should_panic(expected = "lie outside")]
fn a_buffer_outside_the_arena_never_reaches_the_kernel() {
    Bench::new(1).start(Action::Read, 0, (8 << 20) - 4096 + 512);
}

#[test]
#[should_panic(expected = "a leg that is not there")]
fn a_leg_that_was_let_go_takes_nothing() {
    let mut bench = Bench::new(1);
    bench.legs.set_leg(LegId::A, None);
    bench.start(Action::Flush, 0, 0);
}

#[test]
fn dropped_with_nothing_in_flight_everything_is_let_go_and_with_an_operation_it_is_kept() {
    for in_flight in [false, true] {
        let mut bench = Bench::new(1);
        let arena = Arc::downgrade(bench.legs.arena());
        let disk: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
        bench.legs.set_leg(LegId::B, Some(disk.clone()));
        if in_flight {
            bench.start(Action::Read, 0, 512);
        }
        drop(bench);
        assert_eq!(arena.upgrade().is_some(), in_flight);
        assert_eq!(Arc::strong_count(&disk), 1 + usize::from(in_flight));
    }
}
