//! What one request costs in user space: a real shard, core and table of leg operations, before a kernel that completes
//! everything at once and costs nothing.
//!
//! For a counter of instructions, which sees nothing but this process:
//! `valgrind --tool=callgrind cost PROTOCOL OPERATION DEPTH REQUESTS`; what one request costs is the difference
//! between two runs, divided by that of their numbers of requests. The driver's own entries (fetch and commit) are not part of it.

use std::hint::black_box;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use twinblk::core::config::{Config, LINGER};
use twinblk::core::time::Span;
use twinblk::core::{
    Bits, Buf, CopyMode, Errno, Geometry, Health, Layout, LegId, LegOp, LegRecord, LegTraits, Mirror, Operation,
    Protocol, Range, Record, Request, Suspects, Tag, Time,
};
use twinblk::io::uring::UringLegs;
use twinblk::runtime::clock;
use twinblk::runtime::port::{Arrival, Port};
use twinblk::runtime::shard::Shard;
use twinblk::runtime::signer::{self, signer};
use twinblk::runtime::surroundings::Surroundings;
use twinblk::runtime::tables::{Tables, clerk};
use twinblk::runtime::worker::{Keep, recorder};

/// A kernel that does at once what it is asked for, and a guest that asks again as soon as it is answered.
struct Immediate {
    legs: UringLegs,
    /// What was given to the kernel: its name and the result it will have.
    started: Vec<(u64, i32)>,
    answered: Vec<Tag>,
    operation: Operation,
    depth: usize,
    left: usize,
    state: u64,
}

const BLOCKS: u64 = 1 << 14;
const LEN: u64 = 4096;

impl Port for Immediate {
    #[inline]
    fn submit(&mut self, op: LegOp) {
        let len = op.range.len as i32;
        let started = &mut self.started;
        self.legs.start(op, |entry| started.push((entry.get_user_data(), len)));
    }

    #[inline]
    fn complete(&mut self, tag: Tag, result: Result<(), Errno>, _buf: Buf, next: Buf) {
        assert_eq!(result, Ok(()));
        black_box(next);
        self.answered.push(tag);
    }

    fn set_leg(&mut self, _leg: LegId, _disk: Option<Arc<OwnedFd>>) -> Option<Arc<OwnedFd>> {
        None
    }

    fn wait(&mut self, _deadline: Option<Time>, arrivals: &mut Vec<Arrival>) -> io::Result<()> {
        for (user_data, result) in self.started.drain(..) {
            if let Some((id, result)) = self
                .legs
                .finish(user_data, result, |_| unreachable!("all of it was done"))
            {
                arrivals.push(Arrival::Completion(id, result));
            }
        }
        if !arrivals.is_empty() {
            return Ok(());
        }
        if self.left < self.depth {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= self.answered.len();
        for tag in self.answered.drain(..) {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let range = Range::new((self.state >> 40) % BLOCKS * LEN, LEN);
            let operation = self.operation;
            arrivals.push(Arrival::Request(tag, Request { operation, range }));
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Forgotten;

impl Keep for Forgotten {
    fn keep(&mut self, _record: &Record) -> Result<(), Errno> {
        Ok(())
    }
}

impl Tables for Forgotten {
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

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [protocol, operation, depth, requests] = &arguments[..] else {
        panic!("which protocol (single, sync, flush, async), operation (read, write), depth, number of requests?");
    };
    let mirrored = protocol != "single";
    let protocol = match protocol.as_str() {
        "sync" => Protocol::Sync,
        "async" => Protocol::Async,
        _ => Protocol::Flush,
    };
    let operation = match operation.as_str() {
        "read" => Operation::Read,
        _ => Operation::Write { fua: false },
    };
    let depth: usize = depth.parse().expect("a depth");
    let requests: usize = requests.parse().expect("a number of requests");

    let geometry = Geometry::new(BLOCKS * LEN, 512);
    let layout = Layout {
        depth: 64,
        max_io: 128 << 10,
        copies: 4,
        copy_bytes: geometry.extent,
        pool_max: 64 << 20,
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
    let mirror = Mirror::new(
        config,
        record.opened([true, mirrored]),
        [Some(traits), mirrored.then_some(traits)],
        None,
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
        answered: (0..depth as u16).map(Tag).collect(),
        operation,
        depth,
        left: requests,
        state: 1,
    };
    let (records, _) = recorder(Forgotten, surroundings.outbox.clone()).expect("a thread");
    let (tables, _) =
        clerk(Forgotten, Arc::clone(&surroundings.ledger), surroundings.outbox.clone()).expect("a thread");
    let (ledger, outbox) = (Arc::clone(&surroundings.ledger), surroundings.outbox.clone());
    let (errands, _) = signer(signer::Nothing, ledger, tables.clone(), outbox).expect("a thread");
    let ended = Shard::new(mirror, port, surroundings, records, tables, errands, 1024).run();
    assert!(ended.is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof));
}
