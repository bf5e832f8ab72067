//! Where the shard meets the kernel: one ring for the guest's requests, both legs, wake-ups and the timer.
//!
//! The thread waits for this ring and nothing else. What an effect starts is queued; the wait submits it all with one
//! call and returns with what has arrived.
//!
//! Invariants:
//! - A buffer named in a fetch belongs to the kernel until the request has arrived, and again from its commit.
//! - At most one timer is in the ring. It may be earlier than the deadline (then the wait ends early), never later.
//! - *Gone* is told once: when the driver has ended a fetch and has none left. Requests in service are then still to be
//!   answered by the core; the driver takes or refuses their commits as it likes.
//!
//! Not handled: a queue that the driver refuses from the start. It arrives as *Gone*, with the errno in [`Refused`].

use crate::ublk::ControlError;
use crate::ublk::queue::{ABORTED, Device, Fetched, Queue, with_ring};
use io_uring::{IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue, types};
use nix::sys::eventfd::EventFd;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use twinblk::core::{Buf, Errno, Layout, LegId, LegOp, Tag, Time};
use twinblk::io::Arena;
use twinblk::io::uring::UringLegs;
use twinblk::runtime::port::{Arrival, Port};

/// The most arrivals that one wait returns. What is left in the ring arrives with the next.
pub const BATCH: usize = 512;

/// How many operations on legs can be in flight beside one for each tag: those of the secondary, which the core bounds by
/// 128, once more as many of a following that was given up, copies, and flushes.
const OPERATIONS: u32 = 512;

/// The kernel's limit of one registered buffer.
const MAX_REGISTERED: u64 = 1 << 30;

/// Bit 63 alone: neither the driver's (which have a tag) nor a leg's.
const OURS: u64 = 1 << 63;
const WAKE: u64 = OURS | 1;
const TIMER: u64 = OURS | 2;
const TIMER_MOVED: u64 = OURS | 3;

/// The first errno with which the driver ended a fetch, other than that of a device that was stopped; 0: none.
pub type Refused = Arc<AtomicI32>;

/// The port; see the module.
pub struct UblkPort<'d> {
    queue: Queue<'d>,
    legs: UringLegs,
    disks: [Option<Arc<OwnedFd>>; 2],
    arena: Arc<Arena>,
    /// How many fetches the driver has.
    fetches: u32,
    /// Whether it has ended one.
    ended: bool,
    told_gone: bool,
    refused: Refused,
    /// What the timer in the ring is set to.
    timer: Option<Time>,
    /// Never freed: the ring lives as long as the thread, and with it the read of the eventfd.
    stable: &'static mut Stable,
    wake: Arc<EventFd>,
}

/// What entries point to.
struct Stable {
    /// Read when the timer's entry is submitted.
    timer: types::Timespec,
    /// Where the eventfd's count is put.
    count: u64,
}

impl<'d> UblkPort<'d> {
    /// Open the queue on this thread, and fetch for every tag. `wake` is what other threads write to.
    ///
    /// # Errors
    /// Fails when the ring cannot be had.
    pub fn open(
        device: &'d Device,
        arena: Arc<Arena>,
        layout: Layout,
        wake: Arc<EventFd>,
        refused: Refused,
    ) -> Result<UblkPort<'d>, ControlError> {
        let depth = u32::from(layout.depth);
        let operations = OPERATIONS + depth;
        // A full submission queue is emptied on the way. A full completion queue would need memory just when there is none:
        // it has room for all that can be in the ring.
        let completions = operations + depth + 8;
        let queue = Queue::open(device, (depth * 4).next_power_of_two(), completions.next_power_of_two())?;
        let mut port = UblkPort {
            queue,
            legs: UringLegs::new(Arc::clone(&arena), operations),
            disks: [None, None],
            arena,
            fetches: 0,
            ended: false,
            told_gone: false,
            refused,
            timer: None,
            stable: Box::leak(Box::new(Stable {
                timer: types::Timespec::new(),
                count: 0,
            })),
            wake,
        };
        port.register_buffers(layout);
        with_ring(|ring| {
            let (submitter, mut entries, _) = ring.split();
            for tag in 0..port.queue.depth() {
                let fetch = port.queue.fetch(Tag(tag), port.arena.ptr(layout.tag(tag)));
                push(&submitter, &mut entries, &fetch);
                port.fetches += 1;
            }
            let wake = port.wake_entry();
            push(&submitter, &mut entries, &wake);
            entries.sync();
            submitter.submit()
        })
        .map_err(|source| ControlError::Refused {
            what: "fetching requests",
            source,
        })?;
        port.queue.fetched_all();
        Ok(port)
    }

    /// Let the kernel hold the pages of the tags' buffers, instead of looking them up for each operation of a leg. Where
    /// it does not (a limit of locked memory), everything works without.
    fn register_buffers(&mut self, layout: Layout) {
        let bytes = layout.tags_bytes();
        if bytes > MAX_REGISTERED {
            return;
        }
        self.arena.hold(bytes);
        let buffer = libc::iovec {
            iov_base: self.arena.span(Buf(0), bytes).cast(),
            iov_len: bytes as usize,
        };
        // SAFETY: the bytes are the arena's, which outlives every operation on them (see `UringLegs`), and hold on to
        // their pages from here on.
        match with_ring(|ring| unsafe { ring.submitter().register_buffers(&[buffer]) }) {
            Ok(()) => self.legs.set_registered(bytes),
            Err(error) => log::warn!("I/O costs a little more: buffers cannot be registered: {error}"),
        }
    }

    fn wake_entry(&mut self) -> squeue::Entry {
        let count = (&raw mut self.stable.count).cast::<u8>();
        opcode::Read::new(types::Fd(self.wake.as_raw_fd()), count, 8)
            .build()
            .user_data(WAKE)
    }

    /// See to it that the ring has a timer that is not later than `deadline`.
    #[inline]
    fn arm(&mut self, deadline: Option<Time>) {
        let Some(deadline) = deadline else { return };
        match self.timer {
            Some(timer) if timer <= deadline => {}
            Some(_) => self.set_timer(deadline, true),
            None => self.set_timer(deadline, false),
        }
    }

    #[cold]
    fn set_timer(&mut self, deadline: Time, is_set: bool) {
        self.timer = Some(deadline);
        self.stable.timer = types::Timespec::new()
            .sec(deadline.0 / 1_000_000_000)
            .nsec((deadline.0 % 1_000_000_000) as u32);
        let flags = types::TimeoutFlags::ABS;
        let at = &raw const self.stable.timer;
        let entry = if is_set {
            // If it has just run out, this fails, and the timer's own end arrives: it is set anew then.
            opcode::TimeoutUpdate::new(TIMER, at)
                .flags(flags)
                .build()
                .user_data(TIMER_MOVED)
        } else {
            opcode::Timeout::new(at).flags(flags).build().user_data(TIMER)
        };
        with_ring(|ring| push_one(ring, &entry));
    }

    /// What one completion means. Entries that follow from it go to `push`.
    #[inline]
    fn take(&mut self, done: &cqueue::Entry, arrivals: &mut Vec<Arrival>, push: impl FnOnce(&squeue::Entry)) {
        let user_data = done.user_data();
        if UringLegs::owns(user_data) {
            if let Some((id, result)) = self.legs.finish(user_data, done.result(), push) {
                arrivals.push(Arrival::Completion(id, result));
            }
        } else if user_data & OURS == 0 {
            self.fetches -= 1;
            let tag = Tag(user_data as u16);
            if done.result() != 0 {
                return self.fetch_ended(done.result(), arrivals);
            }
            match self.queue.request(tag) {
                Fetched::Request(request) => arrivals.push(Arrival::Request(tag, request)),
                Fetched::Unknown => {
                    self.fetches += 1;
                    push(&self.queue.commit(tag, self.queue.buffer(tag), -libc::EOPNOTSUPP));
                }
            }
        } else {
            self.take_ours(user_data, arrivals, push);
        }
    }

    #[cold]
    fn fetch_ended(&mut self, result: i32, arrivals: &mut Vec<Arrival>) {
        self.ended = true;
        if result != ABORTED {
            // The first one tells what was wrong; the others follow from it. Only for a message: no order is needed.
            let _ = self
                .refused
                .compare_exchange(0, -result, Ordering::Relaxed, Ordering::Relaxed);
        }
        if self.fetches == 0 && !self.told_gone {
            self.told_gone = true;
            arrivals.push(Arrival::Gone);
        }
    }

    #[cold]
    fn take_ours(&mut self, user_data: u64, arrivals: &mut Vec<Arrival>, push: impl FnOnce(&squeue::Entry)) {
        match user_data {
            WAKE => {
                // Before the inbox is emptied, so that a message that comes after that wakes again.
                push(&self.wake_entry());
                arrivals.push(Arrival::Wake);
            }
            TIMER => self.timer = None,
            TIMER_MOVED => {}
            other => panic!("a completion {other:#x} of nothing that was submitted"),
        }
    }
}

impl Port for UblkPort<'_> {
    #[inline]
    fn submit(&mut self, op: LegOp) {
        with_ring(|ring| self.legs.start(op, |entry| push_one(ring, entry)));
    }

    #[inline]
    fn complete(&mut self, tag: Tag, result: Result<(), Errno>, buf: Buf, next: Buf) {
        let result = match result {
            Ok(()) => self.queue.success(tag),
            // Never a success by mistake, and never EAGAIN, which the driver would take for something else.
            Err(Errno(errno)) if errno <= 0 || errno == libc::EAGAIN => -libc::EIO,
            Err(Errno(errno)) => -errno,
        };
        debug_assert!(
            buf == next || !self.queue.is_read(tag),
            "a read's data is taken from where the next payload goes"
        );
        let commit = self.queue.commit(tag, self.arena.ptr(next), result);
        self.fetches += 1;
        with_ring(|ring| push_one(ring, &commit));
    }

    fn set_leg(&mut self, leg: LegId, disk: Option<Arc<OwnedFd>>) -> Option<Arc<OwnedFd>> {
        self.legs.set_leg(leg, disk.clone());
        // Kept here too, so that it is not this thread that closes it.
        std::mem::replace(&mut self.disks[leg.index()], disk)
    }

    fn wait(&mut self, deadline: Option<Time>, arrivals: &mut Vec<Arrival>) -> io::Result<()> {
        self.arm(deadline);
        with_ring(|ring| {
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                // A signal; no memory for a request just now, or completions to be taken first: what could not be
                // submitted is submitted with the next wait.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                Err(error) => return Err(error),
            }
            let (submitter, mut entries, completions) = ring.split();
            for done in completions.take(BATCH) {
                self.take(&done, arrivals, |entry| push(&submitter, &mut entries, entry));
            }
            Ok(())
        })
    }
}

#[inline]
fn push_one(ring: &mut IoUring, entry: &squeue::Entry) {
    let (submitter, mut entries, _) = ring.split();
    push(&submitter, &mut entries, entry);
}

/// Queue an entry. A full queue is submitted first, without waiting for anything.
#[inline]
fn push(submitter: &Submitter<'_>, entries: &mut SubmissionQueue<'_>, entry: &squeue::Entry) {
    // SAFETY: what the entry names outlives it: buffers lie in the arena, which the port holds and which `UringLegs`
    // leaks if operations are left; descriptors of legs likewise; the eventfd, its count and the timer's time are the
    // port's own, in places that do not move, and the thread's ring ends with the thread, after the port.
    while unsafe { entries.push(entry) }.is_err() {
        make_room(submitter, entries);
    }
}

#[cold]
#[inline(never)]
fn make_room(submitter: &Submitter<'_>, entries: &mut SubmissionQueue<'_>) {
    entries.sync();
    // An error is met again, and told, by the next wait. Until then there is nothing to be done but to try again.
    let _ = submitter.submit();
    entries.sync();
}
