//! Operations as ring entries, and what becomes of their results.

use crate::core::{Action, Buf, Errno, LegId, LegOp, OpId};
use crate::io::arena::{Arena, ZEROES};
use io_uring::{opcode, squeue, types};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;

/// Bits 63 and 61 of `user_data`. The first is libublk's mark of an entry that is not its own; the second tells our
/// entries from others with that mark. Bit 62 means something to libublk and stays clear.
const MARK: u64 = 1 << 63 | 1 << 61;
const MARK_BITS: u64 = 0b111 << 61;
/// How many bits of `user_data` say the place in the table. The rest, up to the mark, are low bits of the [`OpId`].
const PLACE_BITS: u32 = 20;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;

/// The most bytes in one entry; the kernel would stop a little below 2 GiB.
const MAX_TRANSFER: u64 = 1 << 30;
/// How often an operation that the host could not do is tried again without any progress, before that is its error.
const MAX_RETRIES: u16 = 1000;
/// How long it is left alone before that, but for the first time: in all about as long as guests wait for a record.
static PAUSE: types::Timespec = types::Timespec::new().nsec(10_000_000);

/// An [`Place::expected`] that no result equals.
const NONE_EXPECTED: i32 = i32::MIN;
/// A [`Place::id`] that no operation has: they are below 2^48.
const FREE: u64 = u64::MAX;
const END_OF_LIST: usize = usize::MAX;

/// What the entry in flight does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read,
    Write,
    WriteDurably,
    Flush,
    /// Zero without fallback, giving space back.
    Punch,
    /// Zero, keeping space.
    ZeroRange,
    WriteZeroes,
}

/// One operation in flight, or a free place.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The core's name for it, or [`FREE`].
    id: u64,
    /// Where what is left of it begins, on the leg.
    start: u64,
    /// Bytes left, those in flight included.
    left: u64,
    /// The address of what is left of it in the arena, checked to be inside. In a free place: the next free one. Only
    /// the kernel goes there, so a number will do.
    address: usize,
    /// The one result that ends it well, if one entry may do so.
    expected: i32,
    retries: u16,
    /// The entry in flight is a [`PAUSE`].
    pauses: bool,
    leg: LegId,
    step: Step,
}

#[derive(Debug)]
struct Leg {
    /// Of `disk`, or -1.
    descriptor: RawFd,
    in_flight: u32,
    /// The disk has answered that it cannot; it is not asked again.
    cannot_punch: bool,
    cannot_zero_range: bool,
    disk: Option<Arc<OwnedFd>>,
}

impl Leg {
    const fn none() -> Leg {
        Leg {
            descriptor: -1,
            in_flight: 0,
            cannot_punch: false,
            cannot_zero_range: false,
            disk: None,
        }
    }
}

/// Drives both legs on a ring that it does not own.
///
/// # The caller's part
/// Every entry given to `push` goes, as it is, into one ring, and every completion on that ring whose `user_data`
/// [belongs here](UringLegs::owns) goes to [`finish`](UringLegs::finish) once. Pushing into a ring is `unsafe`; these
/// two promises, and nothing more, are what makes it right for these entries: bytes and descriptors that they name stay
/// alive until the result of the last of them was handed back, even if this value is dropped before.
#[derive(Debug)]
pub struct UringLegs {
    arena: Arc<Arena>,
    legs: [Leg; 2],
    places: Box<[Place]>,
    first_free: usize,
    /// The address behind the last byte of the ring's registered buffer; 0: there is none.
    registered: usize,
}

impl UringLegs {
    /// Room for `capacity` operations in flight, on legs that are not there yet, with buffers in `arena`.
    ///
    /// # Panics
    /// If `capacity` is 0 or above 2^20.
    pub fn new(arena: Arc<Arena>, capacity: u32) -> UringLegs {
        assert!(
            capacity > 0 && u64::from(capacity) <= PLACE_MASK + 1,
            "no table for {capacity} operations"
        );
        let free = |place| Place {
            id: FREE,
            start: 0,
            left: 0,
            address: if place + 1 < capacity {
                place as usize + 1
            } else {
                END_OF_LIST
            },
            expected: NONE_EXPECTED,
            retries: 0,
            pauses: false,
            leg: LegId::A,
            step: Step::Flush,
        };
        UringLegs {
            arena,
            legs: [Leg::none(), Leg::none()],
            places: (0..capacity).map(free).collect(),
            first_free: 0,
            registered: 0,
        }
    }

    /// From now on the first `bytes` of the arena are buffer 0 of the ring that entries go to, so that the kernel need
    /// not look their pages up for each operation. They must be [held](Arena::hold), and stay registered as long as
    /// this value lives.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn set_registered(&mut self, bytes: u64) {
        self.registered = self.arena.span(Buf(0), bytes).addr() + bytes as usize;
    }

    /// From now on `leg` is this disk, or none; the one before is let go.
    ///
    /// # Panics
    /// If an operation is in flight on the leg: its entries name the descriptor.
    pub fn set_leg(&mut self, leg: LegId, disk: Option<Arc<OwnedFd>>) {
        let in_flight = self.in_flight(leg);
        assert!(
            in_flight == 0,
            "leg {leg} is exchanged with {in_flight} operations in flight"
        );
        self.legs[leg.index()] = match disk {
            Some(disk) => Leg {
                descriptor: disk.as_raw_fd(),
                disk: Some(disk),
                ..Leg::none()
            },
            None => Leg::none(),
        };
    }

    /// How many operations are in flight on `leg`.
    pub fn in_flight(&self, leg: LegId) -> usize {
        self.legs[leg.index()].in_flight as usize
    }

    /// Whether nothing is in flight on either leg.
    pub fn is_idle(&self) -> bool {
        LegId::ALL.iter().all(|&leg| self.in_flight(leg) == 0)
    }

    /// How many operations can be in flight.
    pub fn capacity(&self) -> usize {
        self.places.len()
    }

    /// The arena that the operations' buffers lie in.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Whether a completion with this `user_data` is for [`finish`](UringLegs::finish).
    #[inline]
    pub const fn owns(user_data: u64) -> bool {
        user_data & MARK_BITS == MARK
    }

    /// Begin an operation: exactly one entry goes to `push`.
    ///
    /// # Panics
    /// If the table is full, the leg is not there, the buffer is not in the arena, or a range of an operation that
    /// needs one is empty: the core has promised otherwise.
    #[inline]
    pub fn start(&mut self, op: LegOp, push: impl FnOnce(&squeue::Entry)) {
        let index = self.first_free;
        let place = match self.places.get_mut(index) {
            Some(place) => place,
            None => panic!("more than {} operations in flight", self.places.len()),
        };
        let leg = &mut self.legs[op.leg.index()];
        assert!(leg.descriptor >= 0, "{op:?} for a leg that is not there");
        assert!(
            op.range.len > 0 || matches!(op.action, Action::Flush),
            "{op:?} has nothing to do"
        );
        let step = match op.action {
            Action::Read => Step::Read,
            Action::Write { fua: false } => Step::Write,
            Action::Write { fua: true } => Step::WriteDurably,
            Action::Flush => Step::Flush,
            Action::Zero { unmap } => {
                if unmap && !leg.cannot_punch {
                    Step::Punch
                } else if !leg.cannot_zero_range {
                    Step::ZeroRange
                } else {
                    Step::WriteZeroes
                }
            }
        };
        let address = match step {
            Step::Read | Step::Write | Step::WriteDurably => self.arena.span(op.buf, op.range.len).expose_provenance(),
            Step::Flush | Step::Punch | Step::ZeroRange | Step::WriteZeroes => 0,
        };
        leg.in_flight += 1;
        self.first_free = place.address;
        *place = Place {
            id: op.id.0,
            start: op.range.start,
            left: op.range.len,
            address,
            expected: NONE_EXPECTED,
            retries: 0,
            pauses: false,
            leg: op.leg,
            step,
        };
        push(&place.next_entry(index, leg.descriptor, self.registered, &self.arena));
    }

    /// Take the result of one of our entries. An operation that has ended is returned with its result; `None` means
    /// that it goes on, and that its next entry went to `push`.
    ///
    /// # Panics
    /// If no such entry is in flight.
    #[inline]
    pub fn finish(
        &mut self,
        user_data: u64,
        result: i32,
        push: impl FnOnce(&squeue::Entry),
    ) -> Option<(OpId, Result<(), Errno>)> {
        let index = (user_data & PLACE_MASK) as usize;
        let place = &self.places[index];
        assert!(
            place.id != FREE && place.user_data(index) == user_data,
            "a completion {user_data:#x} of no operation in flight"
        );
        let ended = if result == place.expected {
            Ok(())
        } else {
            match self.go_on(index, result) {
                Ok(entry) => {
                    push(&entry);
                    return None;
                }
                Err(ended) => ended,
            }
        };
        Some((self.release(index), ended))
    }

    /// Take the result of one of our entries when nobody cares for it any more: the operation ends here, done or not,
    /// and has then no entry in flight. For whoever drains a ring that is to be closed.
    ///
    /// # Panics
    /// If no such entry is in flight.
    pub fn abandon(&mut self, user_data: u64) -> OpId {
        let index = (user_data & PLACE_MASK) as usize;
        let place = &self.places[index];
        assert!(
            place.id != FREE && place.user_data(index) == user_data,
            "a completion {user_data:#x} of no operation in flight"
        );
        self.release(index)
    }

    /// What follows a result other than the one that ends the operation well: the next entry, or how it ended.
    #[cold]
    #[inline(never)]
    fn go_on(&mut self, index: usize, result: i32) -> Result<squeue::Entry, Result<(), Errno>> {
        let place = &mut self.places[index];
        let leg = &mut self.legs[place.leg.index()];
        let mut again = false;
        if std::mem::take(&mut place.pauses) {
            // However that ended: a pause that there was no memory for is over too.
            again = true;
        } else if result < 0 {
            let error = -result;
            match place.step {
                // A flush too: nothing was asked of the disk, and what it holds in its cache it holds still. (Of the page cache,
                // where an error is told once, nothing of ours is waited for: all is read and written directly.)
                _ if Errno(error).is_of_host() => {
                    if place.retries == MAX_RETRIES {
                        return Err(Err(Errno(error)));
                    }
                    place.retries += 1;
                    if place.retries > 1 {
                        place.pauses = true;
                        place.expected = NONE_EXPECTED;
                        let pause = opcode::Timeout::new(&raw const PAUSE).build();
                        return Ok(pause.user_data(place.user_data(index)));
                    }
                    again = true;
                }
                Step::Punch if cannot_zero(error) => {
                    leg.cannot_punch |= error == libc::EOPNOTSUPP;
                    place.step = if leg.cannot_zero_range {
                        Step::WriteZeroes
                    } else {
                        Step::ZeroRange
                    };
                }
                Step::ZeroRange if cannot_zero(error) => {
                    leg.cannot_zero_range |= error == libc::EOPNOTSUPP;
                    place.step = Step::WriteZeroes;
                }
                Step::Read
                | Step::Write
                | Step::WriteDurably
                | Step::Flush
                | Step::Punch
                | Step::ZeroRange
                | Step::WriteZeroes => return Err(Err(Errno(error))),
            }
        } else {
            match place.step {
                // Whatever says how much of it was done is not what we asked for.
                Step::Flush | Step::Punch | Step::ZeroRange => return Err(Err(Errno::IO)),
                Step::Read | Step::Write | Step::WriteDurably | Step::WriteZeroes => {
                    // Whole sectors only: going on from within one would not be aligned. None at all is the end of the
                    // disk, or a disk that does not get on.
                    let done = u64::from(result.unsigned_abs()) & !511;
                    if done == 0 || done > place.left {
                        return Err(Err(Errno::IO));
                    }
                    place.left -= done;
                    if place.left == 0 {
                        return Err(Ok(()));
                    }
                    place.start += done;
                    place.retries = 0;
                    if place.step != Step::WriteZeroes {
                        place.address += done as usize;
                    }
                }
            }
        }
        let entry = place.next_entry(index, leg.descriptor, self.registered, &self.arena);
        // What could not be done without waiting is done where waiting is allowed.
        Ok(if again {
            entry.flags(squeue::Flags::ASYNC)
        } else {
            entry
        })
    }

    #[inline]
    fn release(&mut self, index: usize) -> OpId {
        let place = &mut self.places[index];
        let id = OpId(place.id);
        self.legs[place.leg.index()].in_flight -= 1;
        place.id = FREE;
        place.address = self.first_free;
        self.first_free = index;
        id
    }
}

impl Place {
    #[inline]
    fn user_data(&self, index: usize) -> u64 {
        (self.id << PLACE_BITS | index as u64) & !MARK_BITS | MARK
    }

    /// The entry for what is left, and what result will mean that nothing is.
    #[inline]
    fn next_entry(&mut self, index: usize, descriptor: RawFd, registered: usize, arena: &Arena) -> squeue::Entry {
        let fd = types::Fd(descriptor);
        let len = self.left.min(MAX_TRANSFER) as u32;
        let entry = match self.step {
            Step::Read => {
                self.expected = self.whole(len);
                let to = ptr::with_exposed_provenance_mut(self.address);
                if self.address + len as usize <= registered {
                    opcode::ReadFixed::new(fd, to, len, 0).offset(self.start).build()
                } else {
                    opcode::Read::new(fd, to, len).offset(self.start).build()
                }
            }
            Step::Write | Step::WriteDurably => {
                self.expected = self.whole(len);
                let flags = if self.step == Step::WriteDurably {
                    libc::RWF_DSYNC
                } else {
                    0
                };
                let from = ptr::with_exposed_provenance(self.address);
                if self.address + len as usize <= registered {
                    opcode::WriteFixed::new(fd, from, len, 0)
                        .offset(self.start)
                        .rw_flags(flags)
                        .build()
                } else {
                    opcode::Write::new(fd, from, len)
                        .offset(self.start)
                        .rw_flags(flags)
                        .build()
                }
            }
            Step::WriteZeroes => {
                let len = len.min(ZEROES);
                self.expected = self.whole(len);
                opcode::Write::new(fd, arena.zeroes(), len).offset(self.start).build()
            }
            Step::Flush => {
                self.expected = 0;
                opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()
            }
            Step::Punch => {
                self.expected = 0;
                self.fallocate(fd, libc::FALLOC_FL_PUNCH_HOLE)
            }
            Step::ZeroRange => {
                self.expected = 0;
                self.fallocate(fd, libc::FALLOC_FL_ZERO_RANGE)
            }
        };
        entry.user_data(self.user_data(index))
    }

    /// The result that ends the operation well, if an entry of `len` bytes can.
    #[inline]
    fn whole(&self, len: u32) -> i32 {
        if u64::from(len) == self.left {
            len as i32
        } else {
            NONE_EXPECTED
        }
    }

    fn fallocate(&self, fd: types::Fd, how: i32) -> squeue::Entry {
        opcode::Fallocate::new(fd, self.left)
            .offset(self.start)
            .mode(how | libc::FALLOC_FL_KEEP_SIZE)
            .build()
    }
}

/// Whether the error of a zeroing means that this way of doing it does not work here, and another may: unknown to the
/// file system or disk, not for this range, or claimed by a disk that then rejects the command (EREMOTEIO).
fn cannot_zero(error: i32) -> bool {
    matches!(error, libc::EOPNOTSUPP | libc::EINVAL | libc::ENODEV | libc::EREMOTEIO)
}

impl Drop for UringLegs {
    fn drop(&mut self) {
        let in_flight: usize = LegId::ALL.iter().map(|&leg| self.in_flight(leg)).sum();
        if in_flight == 0 {
            return;
        }
        log::error!(
            "{in_flight} operations on disks have not ended; their {} bytes of buffers and the disks' claims are kept \
             until this process ends",
            self.arena.len()
        );
        // The kernel may write these bytes at any time from now on, and an entry that was not submitted yet names the
        // descriptor by its number.
        std::mem::forget(Arc::clone(&self.arena));
        for leg in &mut self.legs {
            std::mem::forget(leg.disk.take());
        }
    }
}

#[cfg(test)]
mod tests;
