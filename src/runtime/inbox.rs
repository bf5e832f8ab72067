//! How other threads reach a shard: a bounded queue, and an eventfd that its port waits for.
//!
//! A message is in the queue before the eventfd is written, and the shard empties the queue only after it has read the
//! eventfd: none is left lying. Senders wait while the queue is full. The shard never waits for a sender: what it hands
//! to others goes through queues that have room for everything that can be under way.

use crate::core::{Bits, BlockMask, ConsultId, Errno, Evidence, LegId, NoteId, Signature, WalkId};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// How many messages can lie in an inbox before senders wait.
const DEPTH: usize = 64;

/// Something for the shard. `C` is what administrators send.
pub enum Message<C> {
    /// A record's write has ended.
    Recorded {
        /// The record's number.
        number: u64,
        /// Whether it is durable.
        result: Result<(), Errno>,
    },
    /// A write of the marks has ended.
    Marked(Result<(), Errno>),
    /// A save of the dirty map has ended.
    Saved(Result<(), Errno>),
    /// Two buffers were compared.
    Compared {
        /// For which walk slot.
        walk: WalkId,
        /// What differs.
        differing: BlockMask,
    },
    /// An extent's hash was taken.
    Hashed {
        /// For which walk slot.
        walk: WalkId,
        /// The hash.
        signature: Signature,
    },
    /// A write of the suspect places has ended.
    Suspected(Result<(), Errno>),
    /// What the tables say of an extent that differs, by leg.
    Consulted(ConsultId, [Option<Evidence>; 2]),
    /// A signature is noted.
    Noted(NoteId),
    /// What was known of a leg is forgotten.
    Emptied(LegId),
    /// Of these extents the table had the hash that a digest looked for.
    Recalled(Bits),
    /// What the tables know of what a resync is to compare.
    Matched {
        /// These extents have the same signature on both legs.
        equal: Bits,
        /// These have one on the primary alone.
        lone: Bits,
    },
    /// An administrator's.
    Command(C),
}

/// The shard's end.
pub struct Inbox<C> {
    messages: Receiver<Message<C>>,
    wake: Arc<EventFd>,
}

/// The other threads' end.
pub struct Outbox<C> {
    messages: SyncSender<Message<C>>,
    wake: Arc<EventFd>,
}

/// The shard is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device has ended")]
pub struct Ended;

/// A new queue.
///
/// # Errors
/// Fails when the process has no descriptor left.
pub fn inbox<C>() -> io::Result<(Outbox<C>, Inbox<C>)> {
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
    let (sender, receiver) = sync_channel(DEPTH);
    let outbox = Outbox {
        messages: sender,
        wake: Arc::clone(&wake),
    };
    Ok((
        outbox,
        Inbox {
            messages: receiver,
            wake,
        },
    ))
}

impl<C> Inbox<C> {
    /// What becomes readable when there is a message; to be read before the inbox is emptied.
    pub fn wake(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    /// Take the next message, if there is one.
    pub fn take(&mut self) -> Option<Message<C>> {
        self.messages.try_recv().ok()
    }
}

impl<C> Outbox<C> {
    /// Send; waits while the queue is full.
    ///
    /// # Errors
    /// Fails when the shard has ended.
    pub fn send(&self, message: Message<C>) -> Result<(), Ended> {
        self.messages.send(message).map_err(|_| Ended)?;
        // It fails only when the counter is full, and then the shard is awake.
        let _ = self.wake.write(1);
        Ok(())
    }
}

impl<C> Clone for Outbox<C> {
    fn clone(&self) -> Outbox<C> {
        Outbox {
            messages: self.messages.clone(),
            wake: Arc::clone(&self.wake),
        }
    }
}
