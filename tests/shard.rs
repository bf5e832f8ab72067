//! The shard's wiring: a real core, real threads, a model of the disks, and a guest that a test plays.
//!
//! What the core decides is tested elsewhere. Here it is shown that what arrives reaches it, that what it wants is
//! carried out by the right thread, and that what administrators ask for comes back.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use twinblk::core::config::{Config, LINGER};
use twinblk::core::time::Span;
use twinblk::core::{
    Bits, Buf, Comes, CopyMode, Errno, Event, Geometry, Health, Layout, LegId, LegOp, LegTraits, Mirror, Operation,
    Protocol, Range, Record, Refusal, Repair, Request, Suspects, Tag, Time,
};
use twinblk::io::memory::{MemoryEngine, Order};
use twinblk::io::{Arena, Engine};
use twinblk::runtime::bulletin::Bulletin;
use twinblk::runtime::clock;
use twinblk::runtime::digest::DigestTable;
use twinblk::runtime::port::{Arrival, Port};
use twinblk::runtime::residence::Residence;
use twinblk::runtime::shard::{Client, Shard};
use twinblk::runtime::signer::{self, signer};
use twinblk::runtime::surroundings::Surroundings;
use twinblk::runtime::tables::{Tables, clerk};
use twinblk::runtime::worker::{Keep, Subject, recorder};

const TRAITS: LegTraits = LegTraits { punches: true };

/// What the guest sends: a request, and the payload of a write.
type Sent = (Tag, Request, Vec<u8>);
/// What it gets: the result, and the data of a read.
type Answered = (Tag, Result<(), Errno>, Vec<u8>);

/// Disks in memory, and a guest at the other end of two channels.
struct TestPort {
    engine: MemoryEngine,
    size: u64,
    arena: Arc<Arena>,
    disks: [Option<Arc<OwnedFd>>; 2],
    wake: Arc<EventFd>,
    guest: Arc<EventFd>,
    sent: Receiver<Sent>,
    answers: Sender<Answered>,
    /// Where each tag's payload goes, and what it asked for.
    tags: Vec<(Buf, Option<Request>)>,
    /// What went to disks, for the test to look at.
    log: Arc<Mutex<VecDeque<LegOp>>>,
}

impl Port for TestPort {
    fn submit(&mut self, op: LegOp) {
        assert!(
            self.disks[op.leg.index()].is_some(),
            "{op:?} for a leg that has no disk"
        );
        self.log.lock().unwrap().push_back(op);
        self.engine.submit(op);
    }

    fn complete(&mut self, tag: Tag, result: Result<(), Errno>, buf: Buf, next: Buf) {
        let place = &mut self.tags[usize::from(tag.0)];
        let request = place.1.take().expect("only a request that is there is answered");
        place.0 = next;
        let mut data = Vec::new();
        if request.operation == Operation::Read {
            data.resize(request.range.len as usize, 0);
            self.arena.read(buf, &mut data);
        }
        let _ = self.answers.send((tag, result, data));
    }

    fn set_leg(&mut self, leg: LegId, disk: Option<Arc<OwnedFd>>) -> Option<Arc<OwnedFd>> {
        self.engine.set_leg(leg, disk.is_some().then_some(self.size));
        std::mem::replace(&mut self.disks[leg.index()], disk)
    }

    fn wait(&mut self, deadline: Option<Time>, arrivals: &mut Vec<Arrival>) -> io::Result<()> {
        let mut done = Vec::new();
        self.engine.wait(usize::from(self.engine.in_flight() > 0), &mut done)?;
        arrivals.extend(done.into_iter().map(|(id, result)| Arrival::Completion(id, result)));
        let timeout = match deadline {
            _ if !arrivals.is_empty() => PollTimeout::ZERO,
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.since(clock::now()).0.div_ceil(1_000_000);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut ready = [self.wake.as_fd(), self.guest.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut ready, timeout)?;
        let [woken, asked] = ready.map(|fd| fd.any() == Some(true));
        if woken {
            self.wake.read()?;
            arrivals.push(Arrival::Wake);
        }
        if asked {
            self.guest.read()?;
            while let Ok((tag, request, payload)) = self.sent.try_recv() {
                let place = &mut self.tags[usize::from(tag.0)];
                assert!(place.1.replace(request).is_none(), "a tag is used once at a time");
                self.arena.write(place.0, &payload);
                arrivals.push(Arrival::Request(tag, request));
            }
        }
        Ok(())
    }
}

/// Records, as they became durable; what was amended; how many of the next ones fail.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<Vec<Record>>>, Amended, Arc<AtomicU32>);

/// What was amended before each of them.
type Amended = Arc<Mutex<Vec<(usize, usize)>>>;

impl Keep for Records {
    fn keep(&mut self, record: &Record) -> Result<(), Errno> {
        let left = |failing: u32| failing.checked_sub(1);
        if self.2.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
            return Err(Errno(28));
        }
        self.0.lock().unwrap().push(*record);
        Ok(())
    }
}

/// Tables that are durable at once.
struct AtOnce;

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

/// Bytes of a region.
const REGION: u64 = 4 << 20;

/// A running shard with its guest.
struct World {
    client: Client<Records>,
    bulletin: Arc<Bulletin>,
    residence: Arc<Residence>,
    records: Records,
    geometry: Geometry,
    layout: Layout,
    log: Arc<Mutex<VecDeque<LegOp>>>,
    guest: Arc<EventFd>,
    send: Sender<Sent>,
    answers: Receiver<Answered>,
    shard: JoinHandle<io::Result<TestPort>>,
}

fn disk() -> Arc<OwnedFd> {
    Arc::new(File::open("/dev/null").unwrap().into())
}

impl World {
    /// A device of `size` bytes with one leg.
    fn new(size: u64) -> World {
        let geometry = Geometry {
            size,
            block: 512,
            grain: 16 << 10,
            extent: 128 << 10,
        };
        let layout = Layout {
            depth: 8,
            max_io: 64 << 10,
            copies: 2,
            copy_bytes: geometry.extent,
            pool_max: 4 << 20,
        };
        let config = Config {
            geometry,
            region: REGION,
            linger: LINGER,
            layout,
            pool_bytes: 2 << 20,
            stall_budget: Span::from_secs(3600),
            leg_timeout: Span::from_secs(3600),
            catch_up: true,
            lag_bytes: 0,
            quiet: Span::from_secs(2),
            generations: Record::GENERATIONS,
        };
        let surroundings = Surroundings::new(&layout, &geometry, REGION, 2).unwrap();
        let client = surroundings.client();
        let (arena, residence, bulletin) = (
            Arc::clone(&surroundings.arena),
            Arc::clone(&surroundings.residence),
            Arc::clone(&surroundings.bulletin),
        );
        let records = Records::default();
        let (recorder, _) = recorder(records.clone(), surroundings.outbox.clone()).unwrap();
        let (clerk, _) = clerk(AtOnce, Arc::clone(&surroundings.ledger), surroundings.outbox.clone()).unwrap();
        let ledger = Arc::clone(&surroundings.ledger);
        let (errands, _) = signer(signer::Nothing, ledger, clerk.clone(), surroundings.outbox.clone()).unwrap();
        let (send, sent) = channel();
        let (answer, answers) = channel();
        let guest = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
        let log = Arc::new(Mutex::default());
        let mut port = TestPort {
            engine: MemoryEngine::new(Arc::clone(&arena), Order::Shuffled(7)),
            size,
            arena,
            disks: [None, None],
            wake: surroundings.wake(),
            guest: Arc::clone(&guest),
            sent,
            answers: answer,
            tags: (0..layout.depth).map(|tag| (layout.tag(tag), None)).collect(),
            log: Arc::clone(&log),
        };
        port.set_leg(LegId::A, Some(disk()));
        let record = Record::first(Protocol::Flush).opened([true, false]);
        let mirror = Mirror::new(
            config,
            record,
            [Some(TRAITS), None],
            None,
            Suspects::none(),
            CopyMode::Compare,
            clock::now(),
        );
        let shard =
            std::thread::spawn(move || Shard::new(mirror, port, surroundings, recorder, clerk, errands, 64).run());
        World {
            client,
            bulletin,
            residence,
            records,
            geometry,
            layout,
            log,
            guest,
            send,
            answers,
            shard,
        }
    }

    fn ask(&self, tag: u16, operation: Operation, range: Range, payload: &[u8]) {
        self.send
            .send((Tag(tag), Request { operation, range }, payload.to_vec()))
            .unwrap();
        self.guest.write(1).unwrap();
    }

    fn answer(&self) -> Answered {
        self.answers.recv().unwrap()
    }

    /// Write everywhere, a few requests at a time, and return what the device holds then.
    fn fill(&self, salt: u64) -> Vec<u8> {
        let mut content = vec![0; self.geometry.size as usize];
        let mut state = salt;
        for byte in &mut content {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            *byte = (state >> 56) as u8;
        }
        let (mut at, mut free) = (0, (0..self.layout.depth).collect::<Vec<u16>>());
        while at < content.len() || free.len() < usize::from(self.layout.depth) {
            match free.pop() {
                Some(tag) if at < content.len() => {
                    let piece = &content[at..content.len().min(at + 40 * 1024)];
                    let range = Range::new(at as u64, piece.len() as u64);
                    self.ask(tag, Operation::Write { fua: at % 3 == 0 }, range, piece);
                    at += piece.len();
                }
                spare => {
                    free.extend(spare);
                    let (tag, result, _) = self.answer();
                    assert_eq!(result, Ok(()));
                    free.push(tag.0);
                }
            }
        }
        content
    }

    fn attach(&self) {
        let attached = self.client.call(|desk| {
            desk.mirror
                .attach(desk.now, LegId::B, TRAITS, CopyMode::Blind, Comes::Another)?;
            assert!(desk.set_leg(LegId::B, disk()).is_none());
            Ok::<_, twinblk::core::Refusal>(())
        });
        attached.unwrap().unwrap();
    }

    fn wait_in_sync(&self) {
        let in_sync = self.bulletin.wait(None, |board| {
            board.health[LegId::B.index()].filter(|(_, health)| *health == Health::InSync)
        });
        assert!(in_sync.is_some());
    }

    /// Stop, and return the port as it was left.
    fn stop(self) -> (TestPort, Vec<Record>) {
        self.client.call(|desk| desk.mirror.stop(desk.now)).unwrap().unwrap();
        assert_eq!(self.bulletin.wait(None, |board| board.stopped), Some(true));
        self.client.call(|desk| desk.end()).unwrap();
        let port = self.shard.join().unwrap().unwrap();
        assert!(self.client.call(|_| ()).is_err(), "nobody is there any more");
        let records = self.records.0.lock().unwrap().clone();
        (port, records)
    }
}

#[test]
fn what_the_guest_writes_it_reads_and_finds_on_the_disk_after_a_clean_stop() {
    let world = World::new((1 << 20) + 512);
    let content = world.fill(1);
    for (tag, start, len) in [(0, 0, 65536), (1, 1 << 20, 512), (2, 123 * 512, 4096)] {
        world.ask(tag, Operation::Read, Range::new(start, len), &[]);
        let (answered, result, data) = world.answer();
        assert_eq!((answered, result), (Tag(tag), Ok(())));
        assert!(
            data == content[start as usize..][..len as usize],
            "{len} bytes at {start}"
        );
    }
    world.ask(3, Operation::Flush, Range::EMPTY, &[]);
    assert_eq!(world.answer().1, Ok(()));
    let (port, records) = world.stop();
    assert!(port.engine.content(LegId::A) == content);
    assert_eq!(port.engine.volatile_bytes(LegId::A), 0);
    assert!(records.last().unwrap().clean);
}

#[test]
fn an_attached_leg_becomes_equal_while_the_guest_writes() {
    let world = World::new((1 << 20) + 4096);
    world.fill(1);
    world.attach();
    let content = world.fill(2);
    world.wait_in_sync();
    let (port, records) = world.stop();
    assert!(port.engine.content(LegId::A) == content);
    assert!(port.engine.content(LegId::B) == content);
    let healths: Vec<Health> = records
        .iter()
        .filter_map(|record| Some(record.legs[1]?.health))
        .collect();
    assert_eq!(healths.first(), Some(&Health::Syncing));
    assert_eq!(healths.last(), Some(&Health::InSync));
}

#[test]
fn nothing_is_written_to_a_leg_before_the_record_says_that_it_is_syncing() {
    let world = World::new(1 << 20);
    world.fill(1);
    // A record that cannot be written yet: the recorder waits for the lock that the test holds.
    let records = world.records.0.lock().unwrap();
    world.attach();
    world.ask(0, Operation::Write { fua: false }, Range::new(0, 512), &[1; 512]);
    assert_eq!(
        world.answer().1,
        Ok(()),
        "the guest does not wait for the record of another leg"
    );
    assert!(world.log.lock().unwrap().iter().all(|op| op.leg == LegId::A));
    drop(records);
    world.wait_in_sync();
    world.stop();
}

#[test]
fn amendments_do_not_wait_for_a_record_and_the_newest_goes_with_the_next() {
    let world = World::new(1 << 20);
    let amend = |value: usize| {
        let amended = world.client.call(move |desk| {
            desk.amend(Subject::Settings, move |records: &mut Records| {
                let written = records.0.lock().unwrap().len();
                records.1.lock().unwrap().push((written, value));
            });
        });
        amended.unwrap();
    };
    amend(1);
    // A record that cannot be written: the recorder waits for the lock that the test holds.
    let records = world.records.0.lock().unwrap();
    world.attach();
    for value in 2..=100 {
        amend(value);
    }
    world.ask(0, Operation::Write { fua: false }, Range::new(0, 512), &[1; 512]);
    assert_eq!(world.answer().1, Ok(()), "the guest is served meanwhile");
    drop(records);
    world.wait_in_sync();
    let amended = Arc::clone(&world.records.1);
    let (_, records) = world.stop();
    assert!(records.len() >= 2);
    assert_eq!(*amended.lock().unwrap(), [(0, 1), (1, 100)]);
}

#[test]
fn what_is_recorded_along_with_a_renewed_record_is_told_to_be_durable_or_not() {
    let world = World::new(1 << 20);
    let renew = |value: usize| {
        let number = world.client.call(move |desk| {
            desk.amend(Subject::Settings, move |records: &mut Records| {
                records.1.lock().unwrap().push((0, value));
            });
            desk.mirror.renew_record(desk.now)
        });
        number.unwrap().unwrap()
    };
    let recorded = |number| {
        world.bulletin.wait(None, |board| {
            let failed = board.not_recorded.filter(|(failed, _)| *failed >= number);
            (board.recorded >= number || failed.is_some()).then_some((board.recorded, failed))
        })
    };
    let first = renew(1);
    assert_eq!(recorded(first), Some((first, None)));
    assert_eq!(*world.records.1.lock().unwrap(), [(0, 1)], "it went along");
    assert_eq!(world.records.0.lock().unwrap().last().unwrap().number, first);

    world.records.2.store(1, Ordering::SeqCst);
    let second = renew(2);
    let (_, failed) = recorded(second).unwrap();
    assert_eq!(failed, Some((second, Errno(28))));
    // And it is tried again by itself: what went along then is there still.
    let again = world
        .bulletin
        .wait(None, |board| (board.recorded > second).then_some(()));
    assert!(again.is_some());
    assert_eq!(*world.records.1.lock().unwrap(), [(0, 1), (0, 2)]);
    world.stop();
}

#[test]
fn a_digest_equals_the_hash_of_the_content_whatever_the_size() {
    for size in [512, 128 << 10, (128 << 10) + 512, (640 << 10) - 512, (1 << 20) + 70_144] {
        let world = World::new(size);
        let content = world.fill(size);
        let table = Arc::new(DigestTable::new(world.geometry));
        let filled = Arc::clone(&table);
        let begun = world.client.call(move |desk| {
            desk.mirror.digest(desk.now, LegId::A, Span::from_secs(1), false)?;
            desk.set_digest(Some(filled));
            Ok::<_, twinblk::core::Refusal>(())
        });
        begun.unwrap().unwrap();
        let ended = world.bulletin.wait(None, |board| board.digested);
        assert!(
            matches!(ended, Some((_, Event::Digested { complete: true, .. }))),
            "{ended:?}"
        );
        assert_eq!(table.root(), Some(blake3::hash(&content)), "{size} bytes");
        world.stop();
    }
}

#[test]
fn a_verify_reads_both_legs_and_finds_them_equal() {
    let world = World::new((1 << 20) + 512);
    world.attach();
    world.fill(3);
    world.wait_in_sync();
    world
        .client
        .call(|desk| desk.mirror.verify(desk.now, Repair::No))
        .unwrap()
        .unwrap();
    let ended = world.bulletin.wait(None, |board| board.verified);
    let size = world.geometry.size;
    assert!(
        matches!(ended, Some((_, Event::Verified { bytes_compared, complete: true, .. })) if bytes_compared == size),
        "{ended:?}"
    );
    assert_eq!(world.bulletin.board().differences.count, 0);
    world.stop();
}

#[test]
fn a_detached_leg_is_closed_and_its_memory_given_back() {
    let world = World::new(1 << 20);
    world.attach();
    world.wait_in_sync();
    let with_two = world.residence.bytes();
    let newest = world.client.call(|desk| {
        let newest = desk.newest();
        desk.mirror.detach(desk.now, LegId::B).map(|()| newest)
    });
    let newest = newest.unwrap().unwrap();
    let closed = world
        .bulletin
        .wait(None, |board| (board.released[1] > newest).then_some(()));
    assert!(closed.is_some());
    assert!(world.residence.bytes() < with_two);
    let content = world.fill(4);
    let (port, _) = world.stop();
    assert!(port.disks[1].is_none());
    assert!(port.engine.content(LegId::A) == content);
}

#[test]
fn a_stop_during_a_change_of_the_protocol_waits_for_it_and_ends() {
    let world = World::new(1 << 20);
    // The change waits for its record, and the recorder for the lock that the test holds.
    let records = world.records.0.lock().unwrap();
    let begun = world
        .client
        .call(|desk| desk.mirror.set_protocol(desk.now, Protocol::Sync));
    begun.unwrap().unwrap();
    let refused = world.client.call(|desk| desk.mirror.stop(desk.now)).unwrap();
    assert_eq!(refused, Err(Refusal::Busy));
    let past = Some(std::time::Instant::now());
    assert_eq!(world.client.drain(&world.bulletin, past), Ok(None));
    let draining = {
        let (client, bulletin) = (world.client.clone(), Arc::clone(&world.bulletin));
        std::thread::spawn(move || client.drain(&bulletin, None))
    };
    drop(records);
    assert_eq!(draining.join().unwrap(), Ok(Some(true)));
    assert!(matches!(
        world.bulletin.board().protocol,
        Some((_, Event::ProtocolSet { done: true }))
    ));
    assert_eq!(
        world.client.drain(&world.bulletin, None),
        Ok(Some(true)),
        "once more does no harm"
    );
    world.client.call(|desk| desk.end()).unwrap();
    world.shard.join().unwrap().unwrap();
}

#[test]
fn a_shard_that_has_handed_over_ends_by_itself_and_answers_nothing_more() {
    let world = World::new(1 << 20);
    world.attach();
    let content = world.fill(5);
    world.wait_in_sync();
    let handed_over = world
        .client
        .call(|desk| desk.mirror.hand_over(desk.now, Span::from_secs(3600)));
    handed_over.unwrap().unwrap();
    // It may come before the hold, and is answered then, or after.
    world.ask(0, Operation::Flush, Range::EMPTY, &[]);
    let ended = world.bulletin.wait(None, |board| board.hand_over);
    assert!(
        matches!(ended, Some((_, Event::HandedOver { clean: true, .. }))),
        "{ended:?}"
    );
    let port = world.shard.join().unwrap().unwrap();
    for leg in LegId::ALL {
        assert!(port.engine.content(leg) == content);
        assert_eq!(port.engine.volatile_bytes(leg), 0);
    }
    assert!(world.records.0.lock().unwrap().last().unwrap().clean);
    assert!(world.client.call(|_| ()).is_err(), "nobody is there any more");
}

#[test]
fn a_command_of_a_shard_that_ends_is_answered_or_refused() {
    let world = World::new(1 << 20);
    let client = world.client.clone();
    let asking = std::thread::spawn(move || (0..).take_while(|_| client.call(|desk| desk.newest()).is_ok()).count());
    world.stop();
    asking.join().unwrap();
}
