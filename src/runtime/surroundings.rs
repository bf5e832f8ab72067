//! What stands around a shard: the memory of its buffers, the board, the inbox, and the threads that work for it.
//!
//! One place makes it for everything that runs a shard, so that what is tested is put together as what is shipped is.

use super::bulletin::Bulletin;
use super::inbox::{Inbox, Outbox, inbox};
use super::residence::Residence;
use super::shard::{Client, Command};
use super::tables::Ledger;
use super::worker::{Bench, Job, workers};
use crate::core::{Geometry, Layout};
use crate::io::Arena;
use nix::sys::eventfd::EventFd;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

/// Jobs that can be under way beside one for each copy: legs to close, memory to give back.
const OTHER_JOBS: usize = 8;

/// See the module. `S` is what records are written to.
pub struct Surroundings<S> {
    /// The buffers. Nothing of them is backed by memory yet.
    pub arena: Arc<Arena>,
    /// Their memory.
    pub residence: Arc<Residence>,
    /// Where events go.
    pub bulletin: Arc<Bulletin>,
    /// Where other threads' messages are sent.
    pub outbox: Outbox<Command<S>>,
    /// The tables that are handed over to be written.
    pub ledger: Arc<Ledger>,
    pub(super) inbox: Inbox<Command<S>>,
    pub(super) workers: SyncSender<Job>,
}

impl<S: 'static> Surroundings<S> {
    /// Buffers that lie as `layout` says, tables for a device of this geometry with regions of `region` bytes, and so many threads that
    /// compare and hash.
    ///
    /// # Errors
    /// No address space, descriptor or thread is to be had.
    pub fn new(layout: &Layout, geometry: &Geometry, region: u64, threads: usize) -> io::Result<Surroundings<S>> {
        let arena = Arc::new(Arena::reserve(layout.arena_bytes())?);
        let residence = Arc::new(Residence::new(Arc::clone(&arena)));
        let bulletin = Arc::new(Bulletin::default());
        let (outbox, inbox) = inbox()?;
        let bench = Bench {
            geometry: *geometry,
            arena: Arc::clone(&arena),
            residence: Arc::clone(&residence),
            bulletin: Arc::clone(&bulletin),
        };
        let workers = workers(threads, usize::from(layout.copies) + OTHER_JOBS, &bench, &outbox)?;
        Ok(Surroundings {
            arena,
            residence,
            bulletin,
            outbox,
            ledger: Arc::new(Ledger::new(geometry, region)),
            inbox,
            workers,
        })
    }

    /// A handle to the shard that will run in them.
    pub fn client(&self) -> Client<S> {
        Client::new(self.outbox.clone())
    }

    /// What becomes readable when there is a message for the shard; its port waits for it and answers
    /// [`Wake`](super::port::Arrival::Wake).
    pub fn wake(&self) -> Arc<EventFd> {
        self.inbox.wake()
    }
}
