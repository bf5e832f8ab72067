//! Threads that do for a shard what takes too long for it: comparing, hashing, writing records, and the rest.
//!
//! Every queue to them has room for all that the core can have under way, so that the shard never waits for them.

use super::bulletin::Bulletin;
use super::digest::{DigestTable, hash_extent};
use super::inbox::{Message, Outbox};
use super::residence::Residence;
use crate::core::{Buf, Errno, Geometry, LegId, Range, Record, WalkId};
use crate::io::Arena;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// Stack of a worker, in bytes. Only what is used of it takes memory.
pub const STACK: usize = 256 << 10;

/// Work on buffers that the core has set aside for it.
pub enum Job {
    /// Compare two buffers.
    Compare {
        /// For which walk slot.
        walk: WalkId,
        /// Bytes of one leg.
        left: Buf,
        /// Bytes of the other.
        right: Buf,
        /// How many.
        len: u32,
    },
    /// Hash an extent.
    Hash {
        /// For which walk slot.
        walk: WalkId,
        /// Which bytes of the device.
        range: Range,
        /// Where they are.
        buf: Buf,
        /// Where the hash goes beside the answer.
        digest: Option<Arc<DigestTable>>,
    },
    /// Give back the memory that was noted as leaving.
    GiveBack,
    /// Have a leg's disk closed, which may take as long as the disk likes, and that told. No worker waits for it.
    Close {
        /// Which leg.
        leg: LegId,
        /// Its disk, if it had one.
        disk: Option<Arc<OwnedFd>>,
    },
}

/// What workers work on.
#[derive(Clone)]
pub struct Bench {
    /// Size and units of the device.
    pub geometry: Geometry,
    /// The buffers.
    pub arena: Arc<Arena>,
    /// Their memory.
    pub residence: Arc<Residence>,
    /// Where it is told that a disk is closed.
    pub bulletin: Arc<Bulletin>,
}

/// Start `threads` workers and return the queue to them, with room for `room` jobs. They end when it is dropped.
///
/// # Errors
/// Fails when no thread can be had.
pub fn workers<C: Send + 'static>(
    threads: usize,
    room: usize,
    bench: &Bench,
    outbox: &Outbox<C>,
) -> io::Result<SyncSender<Job>> {
    let (sender, jobs) = sync_channel(room);
    let jobs = Arc::new(Mutex::new(jobs));
    for _ in 0..threads {
        let (jobs, bench, outbox) = (Arc::clone(&jobs), bench.clone(), outbox.clone());
        thread::Builder::new()
            .name("worker".into())
            .stack_size(STACK)
            .spawn(move || work(&jobs, &bench, &outbox))?;
    }
    Ok(sender)
}

fn work<C>(jobs: &Mutex<Receiver<Job>>, bench: &Bench, outbox: &Outbox<C>) {
    let mut scratch = Vec::new();
    loop {
        // Held while waiting: whoever has it takes the next job, the others wait for the lock.
        let Ok(job) = jobs.lock().expect("no worker panics while taking a job").recv() else {
            return;
        };
        let done = match job {
            Job::Compare { walk, left, right, len } => Message::Compared {
                walk,
                differing: bench.arena.compare(left, right, len),
            },
            Job::Hash {
                walk,
                range,
                buf,
                digest,
            } => {
                let signature = hash_extent(&bench.geometry, &bench.arena, range, buf, &mut scratch);
                if let Some(digest) = digest {
                    digest.put(range, signature);
                }
                Message::Hashed { walk, signature }
            }
            Job::GiveBack => {
                bench.residence.give_back();
                continue;
            }
            Job::Close { leg, disk } => {
                close(leg, disk, &bench.bulletin);
                continue;
            }
        };
        if outbox.send(done).is_err() {
            return;
        }
    }
}

/// Close a disk on a thread of its own: one that does not answer keeps it as long as it likes, and a worker would be missed
/// by the walks of the next leg.
fn close(leg: LegId, disk: Option<Arc<OwnedFd>>, bulletin: &Arc<Bulletin>) {
    let told = Arc::clone(bulletin);
    let close = move || {
        drop(disk);
        told.tell_released(leg);
    };
    if thread::Builder::new()
        .name("close".into())
        .stack_size(STACK)
        .spawn(close)
        .is_err()
    {
        // Without a thread it was closed right here.
        bulletin.tell_released(leg);
    }
}

/// What an amendment is about. Of several before one record the newest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// What administrators have set.
    Settings,
    /// What a leg is known by.
    Leg(LegId),
}

/// Changes of what goes with the records, from the next one on; `S` is what they are written to. They take the same room
/// however many there are.
pub struct Amendments<S>([Option<Amend<S>>; 3]);

type Amend<S> = Box<dyn FnOnce(&mut S) + Send>;

impl<S> Default for Amendments<S> {
    fn default() -> Amendments<S> {
        Amendments([None, None, None])
    }
}

impl<S> Amendments<S> {
    /// Add one. It takes the place of an earlier one about the same.
    pub fn add(&mut self, subject: Subject, change: impl FnOnce(&mut S) + Send + 'static) {
        let at = match subject {
            Subject::Settings => 0,
            Subject::Leg(leg) => 1 + leg.index(),
        };
        self.0[at] = Some(Box::new(change));
    }

    fn apply(self, to: &mut S) {
        for change in self.0.into_iter().flatten() {
            change(to);
        }
    }
}

/// Make the record durable with what has been amended before it, and answer with [`Message::Recorded`].
pub struct RecordJob<S> {
    /// The record.
    pub record: Record,
    /// What has been amended since the one before.
    pub amendments: Amendments<S>,
}

/// What records are written to.
pub trait Keep: Send + 'static {
    /// Make the record durable: it decides from now on. After an error it is not known whether it does.
    ///
    /// # Errors
    /// Fails when the record may not be durable.
    fn keep(&mut self, record: &Record) -> Result<(), Errno>;
}

/// Start the thread that writes records; it ends when the queue to it is dropped, and gives back what it wrote to.
///
/// # Errors
/// Fails when no thread can be had.
pub fn recorder<S: Keep, C: Send + 'static>(
    mut keeper: S,
    outbox: Outbox<C>,
) -> io::Result<(SyncSender<RecordJob<S>>, thread::JoinHandle<S>)> {
    // One record is under way at most.
    let (sender, jobs) = sync_channel::<RecordJob<S>>(1);
    let thread = thread::Builder::new()
        .name("record".into())
        .stack_size(STACK)
        .spawn(move || {
            while let Ok(RecordJob { record, amendments }) = jobs.recv() {
                amendments.apply(&mut keeper);
                let recorded = Message::Recorded {
                    number: record.number,
                    result: keeper.keep(&record),
                };
                if outbox.send(recorded).is_err() {
                    break;
                }
            }
            keeper
        })?;
    Ok((sender, thread))
}
