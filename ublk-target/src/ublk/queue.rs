//! The one queue of a device: which request a tag stands for, and the entries that fetch and commit.
//!
//! In copy mode each fetch names the buffer for the tag's next request; a commit is also the next fetch. A write's payload
//! lies in that buffer when the request arrives. A read's data is taken, at its commit, from the buffer named by that very
//! commit. So a write's payload can be kept without copying by naming another buffer at its commit, a read's cannot.

use super::ControlError;
use super::control::Added;
use io_uring::{IoUring, opcode, squeue, types};
use libublk::io::{UblkDev, UblkQueue};
use libublk::{UblkError, sys};
use std::cell::RefCell;
use std::sync::Arc;
use twinblk::core::{Operation, Range, Request, Tag};

/// The errno with which the driver ends a fetch when the device is stopped.
pub const ABORTED: i32 = sys::UBLK_IO_RES_ABORT;

/// The entry that asks the character device, the ring's file 0, for the tag's first request.
pub(super) fn fetch(tag: Tag, buffer: *mut u8) -> squeue::Entry {
    entry(sys::UBLK_U_IO_FETCH_REQ, tag, buffer, -1)
}

#[inline]
fn entry(operation: u32, tag: Tag, buffer: *mut u8, result: i32) -> squeue::Entry {
    let mut command = [0; 16];
    // struct ublksrv_io_cmd: queue, tag, result, address; queue 0.
    command[2..4].copy_from_slice(&tag.0.to_ne_bytes());
    command[4..8].copy_from_slice(&result.to_ne_bytes());
    command[8..16].copy_from_slice(&(buffer as u64).to_ne_bytes());
    opcode::UringCmd16::new(types::Fixed(0), operation)
        .cmd(command)
        .build()
        .user_data(u64::from(tag.0))
}

/// A thread's queue. It must be dropped by the thread that opened it: the ring is that thread's.
pub struct Queue<'d> {
    queue: UblkQueue<'d>,
    depth: u16,
}

/// What keeps the character device open for a [`Queue`].
pub struct Device(Arc<UblkDev>);

impl Device {
    /// The device that was added.
    pub fn new(added: &Added) -> Device {
        Device(Arc::clone(&added.device))
    }
}

/// What arrived for a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// A request.
    Request(Request),
    /// Something that we do not offer (zones), and never asked for.
    Unknown,
}

impl<'d> Queue<'d> {
    /// Open the queue on this thread, with a ring of `entries` submissions and `completions` completions.
    ///
    /// # Errors
    /// Fails when the ring cannot be had, or the thread has one already.
    pub fn open(device: &'d Device, entries: u32, completions: u32) -> Result<Queue<'d>, ControlError> {
        let what = "opening the queue";
        let failed = |error| ControlError::from_libublk(what, error);
        libublk::ublk_init_task_ring(|cell| {
            // Completions are worked off by this thread alone, when it asks for them: no interrupts between.
            let ring = IoUring::builder()
                .setup_cqsize(completions)
                .setup_single_issuer()
                .setup_defer_taskrun()
                .build(entries)?;
            cell.set(RefCell::new(ring))
                .map_err(|_| UblkError::OtherError(-libc::EEXIST))
        })
        .map_err(failed)?;
        let queue = UblkQueue::new(0, &device.0).map_err(failed)?;
        Ok(Queue {
            queue,
            depth: device.0.dev_info.queue_depth,
        })
    }

    /// How many tags there are.
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// To be called when every tag's first fetch is submitted: starting the device waits for it.
    pub fn fetched_all(&self) {
        self.queue.dev.notify_buffer_registration_complete(false);
    }

    /// The entry that asks for the tag's first request, with its payload to be put at `buffer`. The completion's
    /// `user_data` is the tag.
    pub fn fetch(&self, tag: Tag, buffer: *mut u8) -> squeue::Entry {
        fetch(tag, buffer)
    }

    /// The entry that answers the tag's request and asks for the next.
    #[inline]
    pub fn commit(&self, tag: Tag, buffer: *mut u8, result: i32) -> squeue::Entry {
        entry(sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag, buffer, result)
    }

    /// The request that a tag stands for, from its arrival to its answer.
    #[inline]
    pub fn request(&self, tag: Tag) -> Fetched {
        translate(self.queue.get_iod(tag.0))
    }

    /// Whether the tag's request is a read.
    #[inline]
    pub fn is_read(&self, tag: Tag) -> bool {
        self.queue.get_iod(tag.0).op_flags & 0xff == sys::UBLK_IO_OP_READ
    }

    /// The buffer that was named when the tag's request was fetched.
    pub fn buffer(&self, tag: Tag) -> *mut u8 {
        self.queue.get_iod(tag.0).addr as *mut u8
    }

    /// What the driver takes for a success of the tag's request: bytes, where there are any.
    #[inline]
    pub fn success(&self, tag: Tag) -> i32 {
        let described = self.queue.get_iod(tag.0);
        match described.op_flags & 0xff {
            sys::UBLK_IO_OP_READ | sys::UBLK_IO_OP_WRITE => (described.nr_sectors * 512) as i32,
            _ => 0,
        }
    }
}

/// Use the ring of this thread's queue. Not to be nested.
#[inline]
pub fn with_ring<R>(work: impl FnOnce(&mut IoUring) -> R) -> R {
    libublk::with_task_io_ring_mut(work)
}

#[inline]
fn translate(described: &sys::ublksrv_io_desc) -> Fetched {
    // A flush has no range: its first sector is all ones.
    let range = || Range::new(described.start_sector * 512, u64::from(described.nr_sectors) * 512);
    let has = |flag| described.op_flags & flag != 0;
    // The flags are in the raw value; only its low byte says what is to be done.
    let (operation, range) = match described.op_flags & 0xff {
        sys::UBLK_IO_OP_READ => (Operation::Read, range()),
        sys::UBLK_IO_OP_WRITE => (
            Operation::Write {
                fua: has(sys::UBLK_IO_F_FUA),
            },
            range(),
        ),
        sys::UBLK_IO_OP_FLUSH => (Operation::Flush, Range::EMPTY),
        sys::UBLK_IO_OP_DISCARD => (Operation::Discard, range()),
        sys::UBLK_IO_OP_WRITE_ZEROES => {
            let operation = Operation::WriteZeroes {
                unmap: !has(sys::UBLK_IO_F_NOUNMAP),
                fua: has(sys::UBLK_IO_F_FUA),
            };
            (operation, range())
        }
        _ => return Fetched::Unknown,
    };
    Fetched::Request(Request { operation, range })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(op_flags: u32) -> Fetched {
        translate(&sys::ublksrv_io_desc {
            op_flags,
            nr_sectors: 8,
            start_sector: 16,
            addr: 0,
        })
    }

    fn request(operation: Operation) -> Fetched {
        Fetched::Request(Request {
            operation,
            range: Range::new(8192, 4096),
        })
    }

    #[test]
    fn every_operation_and_flag_arrives() {
        assert_eq!(described(0), request(Operation::Read));
        assert_eq!(described(1), request(Operation::Write { fua: false }));
        assert_eq!(described(1 | 1 << 13), request(Operation::Write { fua: true }));
        assert_eq!(
            described(1 | 1 << 8 | 1 << 11),
            request(Operation::Write { fua: false })
        );
        assert_eq!(described(3), request(Operation::Discard));
        assert_eq!(
            described(5),
            request(Operation::WriteZeroes {
                unmap: true,
                fua: false
            })
        );
        assert_eq!(
            described(5 | 1 << 15),
            request(Operation::WriteZeroes {
                unmap: false,
                fua: false
            })
        );
        assert_eq!(
            described(5 | 1 << 13),
            request(Operation::WriteZeroes { unmap: true, fua: true })
        );
        let flush = Request {
            operation: Operation::Flush,
            range: Range::EMPTY,
        };
        assert_eq!(described(2), Fetched::Request(flush));
        for zones in [4, 10, 13, 15, 18] {
            assert_eq!(described(zones), Fetched::Unknown);
        }
    }

    #[test]
    fn a_range_beyond_two_tebibytes_keeps_its_bits() {
        let far = sys::ublksrv_io_desc {
            op_flags: 0,
            nr_sectors: u32::MAX,
            start_sector: 1 << 40,
            addr: 0,
        };
        let range = Range::new(1 << 49, u64::from(u32::MAX) * 512);
        assert_eq!(
            translate(&far),
            Fetched::Request(Request {
                operation: Operation::Read,
                range
            })
        );
    }
}
