//! The data path allocates nothing after the start: a daemon that a disk full of dirty pages waits for must not wait for memory
//! that only writing those pages would give.
//!
//! A real shard, core and table of leg operations run on the test's thread, before a kernel that completes everything at
//! once. The start may allocate; so a long run must allocate exactly as often as a short one.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use twinblk::core::config::{Config, LINGER};
use twinblk::core::time::Span;
use twinblk::core::{
    Action, Bits, Buf, CopyMode, Errno, Geometry, Health, Layout, LegId, LegOp, LegRecord, LegTraits, Mirror,
    Operation, Protocol, Range, Record, Request, Suspects, Tag, Time, Tracked,
};
use twinblk::io::uring::UringLegs;
use twinblk::runtime::clock;
use twinblk::runtime::port::{Arrival, Port};
use twinblk::runtime::shard::Shard;
use twinblk::runtime::signer::{self, signer};
use twinblk::runtime::surroundings::Surroundings;
use twinblk::runtime::tables::{Tables, clerk};
use twinblk::runtime::worker::{Keep, recorder};

const SIZE: u64 = 256 << 20;
const DEPTH: u16 = 64;

/// A kernel that does at once what it is asked for, and a guest that asks again as soon as it is answered.
struct Immediate {
    legs: UringLegs,
    /// What was given to the kernel: its name and the result it will have.
    started: Vec<(u64, i32)>,
    idle: Vec<Tag>,
    left: usize,
    state: u64,
}

impl Immediate {
    /// One of everything that a guest can ask for, anywhere, up to the longest.
    fn next(&mut self) -> Request {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let random = self.state >> 33;
        let fua = random & 8 != 0;
        let operation = match random % 8 {
            0 | 1 => Operation::Read,
            2 => Operation::Flush,
            3 => Operation::Discard,
            4 => Operation::WriteZeroes { unmap: fua, fua },
            _ => Operation::Write { fua },
        };
        let len = 4096 << ((random >> 4) % 6);
        let range = match operation {
            Operation::Flush => Range::EMPTY,
            _ => Range::new((random >> 7) % (SIZE / len) * len, len),
        };
        Request { operation, range }
    }
}

impl Port for Immediate {
    fn submit(&mut self, op: LegOp) {
        let len = match op.action {
            Action::Read | Action::Write { .. } => op.range.len as i32,
            Action::Flush | Action::Zero { .. } => 0,
        };
        let started = &mut self.started;
        self.legs.start(op, |entry| started.push((entry.get_user_data(), len)));
    }

    fn complete(&mut self, tag: Tag, result: Result<(), Errno>, _buf: Buf, _next: Buf) {
        assert_eq!(result, Ok(()));
        self.idle.push(tag);
    }

    fn set_leg(&mut self, _leg: LegId, _disk: Option<Arc<OwnedFd>>) -> Option<Arc<OwnedFd>> {
        None
    }

    fn wait(&mut self, _deadline: Option<Time>, arrivals: &mut Vec<Arrival>) -> io::Result<()> {
        for (user_data, result) in self.started.drain(..) {
            let ended = self
                .legs
                .finish(user_data, result, |_| unreachable!("all of it was done"));
            if let Some((id, result)) = ended {
                arrivals.push(Arrival::Completion(id, result));
            }
        }
        // Answers of the threads that write marks and records.
        arrivals.push(Arrival::Wake);
        if self.left < self.idle.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= self.idle.len();
        while let Some(tag) = self.idle.pop() {
            arrivals.push(Arrival::Request(tag, self.next()));
        }
        Ok(())
    }
}

/// A state directory that costs nothing.
struct AtOnce;

impl Keep for AtOnce {
    fn keep(&mut self, _: &Record) -> Result<(), Errno> {
        Ok(())
    }
}

impl Tables for AtOnce {
    fn mark(&mut self, _: &Bits) -> Result<(), Errno> {
        Ok(())
    }

    fn save(&mut self, _: &Bits) -> Result<(), Errno> {
        Ok(())
    }

    fn suspect(&mut self, _: &Suspects) -> Result<(), Errno> {
        Ok(())
    }
}

/// How often this thread allocates while a shard starts and serves so many requests.
fn allocations(protocol: Protocol, mirrored: bool, requests: usize) -> u64 {
    let geometry = Geometry::new(SIZE, 512);
    let layout = Layout {
        depth: DEPTH,
        max_io: 128 << 10,
        copies: 4,
        copy_bytes: geometry.extent,
        pool_max: 16 << 20,
    };
    let config = Config {
        geometry,
        region: geometry.region(),
        linger: LINGER,
        layout,
        pool_bytes: 16 << 20,
        stall_budget: Span::from_secs(5),
        leg_timeout: Span::from_secs(20),
        catch_up: true,
        lag_bytes: 0,
        quiet: Span::from_secs(2),
        generations: Record::GENERATIONS,
    };
    let traits = LegTraits { punches: true };
    let mut record = Record::first(protocol);
    record.legs[1] = mirrored.then_some(LegRecord {
        health: Health::InSync,
        consistent_at: 0,
        attached: true,
        doubted: false,
    });
    let record = Record {
        tracked: true,
        ..record.opened([true, mirrored])
    };
    let tracked = Tracked {
        active: Bits::none(geometry.regions()),
        dirty: Bits::none(geometry.grains()),
    };
    let legs = [Some(traits), mirrored.then_some(traits)];
    let mirror = Mirror::new(
        config,
        record,
        legs,
        Some(tracked),
        Suspects::none(),
        CopyMode::Dirty,
        clock::now(),
    );
    let surroundings = Surroundings::new(&layout, &geometry, geometry.region(), 1).expect("memory and threads");
    let mut legs = UringLegs::new(Arc::clone(&surroundings.arena), 512);
    for leg in LegId::ALL {
        let disk = std::fs::File::open("/dev/null").expect("a descriptor");
        legs.set_leg(leg, Some(Arc::new(disk.into())));
    }
    let port = Immediate {
        legs,
        started: Vec::with_capacity(1024),
        idle: (0..DEPTH).map(Tag).collect(),
        left: requests,
        state: 1,
    };
    let outbox = &surroundings.outbox;
    let (records, _) = recorder(AtOnce, outbox.clone()).expect("a thread");
    let (tables, _) = clerk(AtOnce, Arc::clone(&surroundings.ledger), outbox.clone()).expect("a thread");
    let ledger = Arc::clone(&surroundings.ledger);
    let (errands, _) = signer(signer::Nothing, ledger, tables.clone(), outbox.clone()).expect("a thread");
    let shard = Shard::new(mirror, port, surroundings, records, tables, errands, 1024);
    let counted = allocation_counter::measure(move || {
        let ended = shard.run();
        assert!(ended.is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof));
    });
    counted.count_total
}

#[test]
fn the_data_path_allocates_nothing_after_the_start() {
    for (protocol, mirrored) in [
        (Protocol::Flush, false),
        (Protocol::Sync, true),
        (Protocol::Flush, true),
        (Protocol::Async, true),
    ] {
        let few = allocations(protocol, mirrored, 20_000);
        let many = allocations(protocol, mirrored, 200_000);
        assert_eq!(few, many, "{protocol:?}, mirrored: {mirrored}");
    }
}
