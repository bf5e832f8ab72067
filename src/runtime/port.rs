//! The one place where a shard meets the kernel: guest requests and completions of legs come in through it,
//! operations and answers go out.

use crate::core::{Buf, Errno, LegId, LegOp, OpId, Request, Tag, Time};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A guest's request; a write's payload lies in the tag's buffer.
    Request(Tag, Request),
    /// An operation on a leg has ended.
    Completion(OpId, Result<(), Errno>),
    /// Another thread has something to say.
    Wake,
    /// The kernel has ended the device: no request will come any more.
    Gone,
}

/// Where a shard's operations go and its arrivals come from. All methods are called by the shard's thread.
pub trait Port {
    /// Queue an operation for a leg.
    fn submit(&mut self, op: LegOp);

    /// Queue the answer to a request; see [`crate::core::Effect::Complete`].
    fn complete(&mut self, tag: Tag, result: Result<(), Errno>, buf: Buf, next: Buf);

    /// Give a leg its disk, or take it away (when no operation on it is in flight); returns what it had.
    fn set_leg(&mut self, leg: LegId, disk: Option<Arc<OwnedFd>>) -> Option<Arc<OwnedFd>>;

    /// Start what is queued, wait until something has arrived or `deadline` has come, and append what arrived.
    ///
    /// # Errors
    /// Fails when the ring itself fails; the port is of no use afterwards.
    fn wait(&mut self, deadline: Option<Time>, arrivals: &mut Vec<Arrival>) -> io::Result<()>;
}
