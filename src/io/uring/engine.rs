//! A ring of its own for both legs.

use super::UringLegs;
use crate::core::{LegId, LegOp};
use crate::io::arena::Arena;
use crate::io::engine::{Completion, Engine};
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The `user_data` of the entry that cancels everything; no operation has it, they carry a mark.
const CANCEL: u64 = 0;
/// The most entries of the submission queue: it only has to hold what is submitted between two system calls.
const MAX_ENTRIES: u32 = 256;

/// A ring with both legs on it. Belongs to the thread that made it: the kernel takes submissions from no other.
///
/// Dropping it with operations in flight waits for them for a bounded time, cancelling what can be cancelled in the
/// second half of it, and then leaks ring, buffers and descriptors on purpose.
pub struct UringEngine {
    ring: ManuallyDrop<IoUring>,
    legs: ManuallyDrop<UringLegs>,
    drain: Duration,
    of_one_thread: PhantomData<*mut ()>,
}

impl UringEngine {
    /// How long a drop waits for operations, without another choice.
    pub const DRAIN: Duration = Duration::from_secs(5);

    /// A ring for `capacity` operations in flight, on legs that are not there yet, with buffers in `arena`.
    ///
    /// # Errors
    /// Fails when the kernel gives no ring: io_uring is switched off (`sysctl kernel.io_uring_disabled`), filtered, or
    /// there is no memory.
    ///
    /// # Panics
    /// If `capacity` is 0 or above 2^20.
    pub fn new(arena: Arc<Arena>, capacity: u32) -> io::Result<UringEngine> {
        let legs = UringLegs::new(arena, capacity);
        let entries = capacity.min(MAX_ENTRIES);
        // One more for the cancellation. Never smaller than the submission queue.
        let completions = (capacity + 1).max(entries);
        let mut plain = IoUring::builder();
        plain.setup_cqsize(completions).setup_clamp().dontfork();
        let mut tuned = plain.clone();
        tuned.setup_submit_all().setup_coop_taskrun().setup_single_issuer();
        // A kernel that does not know one of the flags says EINVAL.
        let ring = tuned.build(entries).or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => plain.build(entries),
            _ => Err(error),
        })?;
        Ok(UringEngine {
            ring: ManuallyDrop::new(ring),
            legs: ManuallyDrop::new(legs),
            drain: Self::DRAIN,
            of_one_thread: PhantomData,
        })
    }

    /// From now on `leg` is this disk, or none.
    ///
    /// # Panics
    /// If an operation is in flight on the leg.
    pub fn set_leg(&mut self, leg: LegId, disk: Option<Arc<OwnedFd>>) {
        self.legs.set_leg(leg, disk);
    }

    /// How long a drop waits for operations in flight before it leaks them; zero leaks at once.
    pub fn set_drain(&mut self, drain: Duration) {
        self.drain = drain;
    }

    /// How many operations are in flight on `leg`.
    pub fn in_flight_on(&self, leg: LegId) -> usize {
        self.legs.in_flight(leg)
    }

    /// End every operation whose entry has completed, without going on with any.
    fn abandon_completed(&mut self) {
        for entry in self.ring.completion() {
            if UringLegs::owns(entry.user_data()) {
                self.legs.abandon(entry.user_data());
            }
        }
    }

    /// Wait for operations until `end`; whether none is left.
    fn drain_until(&mut self, end: Instant) -> bool {
        loop {
            self.abandon_completed();
            if self.legs.is_idle() {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let timeout = types::Timespec::from(left);
            let arguments = types::SubmitArgs::new().timespec(&timeout);
            match self.ring.submitter().submit_with_args(1, &arguments) {
                Ok(_) => {}
                Err(error) if is_transient(&error) || error.raw_os_error() == Some(libc::ETIME) => {}
                Err(_) => return false,
            }
        }
    }
}

impl Engine for UringEngine {
    fn submit(&mut self, op: LegOp) {
        let UringEngine { ring, legs, .. } = self;
        legs.start(op, |entry| push(ring, entry));
    }

    fn wait(&mut self, at_least: usize, out: &mut Vec<Completion>) -> io::Result<()> {
        let wanted = out.len() + at_least.min(self.in_flight());
        let UringEngine { ring, legs, .. } = self;
        loop {
            match ring.submit_and_wait(wanted.saturating_sub(out.len()).min(1)) {
                Ok(_) => {}
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
            // Taken one by one, as going on with an operation needs the ring.
            while let Some(entry) = { ring.completion().next() } {
                if UringLegs::owns(entry.user_data())
                    && let Some(completion) = legs.finish(entry.user_data(), entry.result(), |entry| push(ring, entry))
                {
                    out.push(completion);
                }
            }
            if out.len() >= wanted && ring.submission().is_empty() {
                return Ok(());
            }
        }
    }

    fn in_flight(&self) -> usize {
        LegId::ALL.iter().map(|&leg| self.legs.in_flight(leg)).sum()
    }
}

/// Interrupted, or the kernel wants completions taken (or memory) before it takes more: try again after taking them.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// Put an entry of [`UringLegs`] into the ring, making room by submitting what is there.
fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    loop {
        // SAFETY: an entry of `UringLegs` goes in as it is and once; every completion of this ring that belongs to it
        // is handed back to it by `wait` or by the drop, which leaks the ring if it has to leave entries in it.
        if unsafe { ring.submission().push(entry) }.is_ok() {
            return;
        }
        if let Err(error) = ring.submit() {
            assert!(is_transient(&error), "the ring takes no entries: {error}");
        }
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        let mut drained = self.legs.is_idle();
        if !drained && !self.drain.is_zero() {
            let begin = Instant::now();
            drained = self.drain_until(begin + self.drain / 2);
            if !drained {
                // What has not begun, or waits in a way that can be broken off, ends now with ECANCELED.
                let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any())
                    .build()
                    .user_data(CANCEL);
                push(&mut self.ring, &cancel);
                drained = self.drain_until(begin + self.drain);
            }
        }
        if drained {
            // SAFETY: neither is used again. The ring goes first: with nothing in flight it has no use for the memory.
            unsafe {
                ManuallyDrop::drop(&mut self.ring);
                ManuallyDrop::drop(&mut self.legs);
            }
        } else {
            // Not dropping the ring keeps its queues, and dropping the legs keeps (and reports) what entries name.
            // SAFETY: not used again.
            unsafe { ManuallyDrop::drop(&mut self.legs) };
        }
    }
}
