//! The two slots of a superblock file: which one is written, and what is known to be durable.
//!
//! # Crash order
//! Three things must never happen: that both slots are lost at once; that a record which was acted on is forgotten; that a
//! record is acted on which a crash could still take away.
//!
//! *Write.* A record goes to **the slot that does not hold the newest record known to be durable**, and only that. The
//! slot is not chosen by the record's number: say 4 is durable in slot 0, and the write of 5 to slot 1 ends in an error.
//! Slot 1 may now hold 3, 5, or anything between. If 6 went to slot 0, as its number would have it, a power cut in the
//! middle of that write could leave neither slot intact. So 6 goes to slot 1 again, and again until a write succeeds; 4
//! stays whole. A record is durable when its bytes were written and `fdatasync` then succeeded, and not before. An
//! `fdatasync` that succeeds after one that failed proves nothing about the pages of the failed one (the kernel marks
//! them clean), which is why a retry writes its bytes again, whole.
//!
//! *Numbers.* After an error it is not known whether the record is on disk. Its number is not used again while the
//! instance lives: two different records of one number could not be told apart.
//!
//! *Open.* What is read may come from the page cache: a daemon killed between write and `fdatasync`, or after an
//! `fdatasync` that failed, leaves a record there that is on no disk. Acting on it, and writing the next record to the other slot (the one that
//! *is* on disk), could lose both. So the chosen slot is written again with the very same bytes and flushed
//! before anything else. Should a cut tear that write: either the slot held these bytes already, and the same bytes over the same bytes tear
//! into the same bytes, or it did not, and then the other slot is the durable one, and untouched.
//!
//! *Place.* Each slot has 64 KiB of the file to itself, so that they share no block of a file system and no page of any
//! architecture, and no write of one rewrites the other. The file is written once in full when it is made: no write
//! of a record allocates anything.

use super::medium::Medium;
use crate::table::checked::Unverified;
use crate::table::superblock;
use crate::table::{Picked, Superblock, Unpickable, pick};
use std::io;

const _: () = assert!(superblock::BYTES == super::medium::BLOCK, "a slot is one block");

/// Bytes of the file that belong to one slot.
const STRIDE: u64 = 64 << 10;

/// The state cannot be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The medium fails.
    Io(io::Error),
    /// No record is in force.
    Unpickable(Unpickable),
}

/// The slots, and what is known of them.
#[derive(Debug)]
pub(super) struct Slots<M> {
    medium: M,
    /// The slot of the newest record known to be durable.
    durable: usize,
    /// The highest number that was ever tried.
    highest: u64,
}

impl<M: Medium> Slots<M> {
    /// A new medium with its first record, durable.
    pub(super) fn create(mut medium: M, superblock: &Superblock) -> io::Result<Slots<M>> {
        medium.write(0, &vec![0; 2 * STRIDE as usize])?;
        medium.write(offset(0), &superblock.encode())?;
        medium.sync()?;
        Ok(Slots {
            medium,
            durable: 0,
            highest: superblock.record.number,
        })
    }

    /// The record in force, which is durable when this returns.
    pub(super) fn open(mut medium: M) -> Result<(Slots<M>, Picked), OpenError> {
        let picked = read(&medium)?;
        medium
            .write(offset(picked.slot), &picked.superblock.encode())
            .and_then(|()| medium.sync())
            .map_err(OpenError::Io)?;
        let slots = Slots {
            medium,
            durable: picked.slot,
            highest: picked.superblock.record.number,
        };
        Ok((slots, picked))
    }

    /// Make a record durable. After an error nothing is known of it.
    pub(super) fn write(&mut self, superblock: &Superblock) -> io::Result<()> {
        let number = superblock.record.number;
        assert!(number > self.highest, "record number {number} after {}", self.highest);
        self.highest = number;
        let slot = 1 - self.durable;
        self.medium.write(offset(slot), &superblock.encode())?;
        self.medium.sync()?;
        self.durable = slot;
        Ok(())
    }
}

/// The record in force, as it is read.
pub(super) fn read(medium: &impl Medium) -> Result<Picked, OpenError> {
    let slot = |slot| medium.read(offset(slot)).map_err(OpenError::Io);
    let (first, second) = (slot(0)?, slot(1)?);
    pick([Unverified::new(&first), Unverified::new(&second)]).map_err(OpenError::Unpickable)
}

const fn offset(slot: usize) -> u64 {
    slot as u64 * STRIDE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::superblock::{BYTES, example};

    /// What is to happen to the next write or flush.
    #[derive(Clone, Copy, Debug)]
    enum Fault {
        /// So many bytes reach the page cache, then the write fails.
        ShortWrite(usize),
        /// The flush fails; so many bytes of the last write have reached the disk, and the page is clean.
        Sync(usize),
    }

    /// Where the model keeps a slot: without the room between them, which would only have to be copied.
    fn place(offset: u64) -> usize {
        (offset / STRIDE) as usize * BYTES
    }

    /// A disk behind a page cache.
    #[derive(Clone, Debug, Default)]
    struct Model {
        cache: Vec<u8>,
        disk: Vec<u8>,
        /// The last write that was not flushed.
        dirty: Option<(usize, usize)>,
        fault: Option<Fault>,
        /// The slot that must not be written: it holds the newest record that was acknowledged.
        protected: Option<u64>,
    }

    impl Model {
        fn land(&mut self, bytes: usize) {
            if let Some((start, len)) = self.dirty.take() {
                let end = start + len.min(bytes);
                self.disk.resize(self.disk.len().max(self.cache.len()), 0);
                self.disk[start..end].copy_from_slice(&self.cache[start..end]);
            }
        }

        /// What is left after a power cut, when so many bytes of the last write had reached the disk.
        fn after_cut(&self, bytes: usize) -> Model {
            let mut model = self.clone();
            model.land(bytes);
            Model {
                cache: model.disk.clone(),
                disk: model.disk,
                ..Model::default()
            }
        }

        /// What is left after the process died.
        fn after_kill(&self) -> Model {
            Model {
                fault: None,
                protected: None,
                ..self.clone()
            }
        }
    }

    impl Medium for Model {
        fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
            Ok(self.cache[place(offset)..][..BYTES].to_vec())
        }

        fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            assert_ne!(
                self.protected,
                Some(offset),
                "the newest durable record is being overwritten"
            );
            let start = place(offset);
            // The file as it is made: the model keeps of it what the slots use.
            let bytes = &bytes[..bytes.len().min(2 * BYTES)];
            let (len, failed) = match self.fault {
                Some(Fault::ShortWrite(len)) => (len.min(bytes.len()), true),
                Some(Fault::Sync(_)) | None => (bytes.len(), false),
            };
            self.cache.resize(self.cache.len().max(start + bytes.len()), 0);
            self.cache[start..start + len].copy_from_slice(&bytes[..len]);
            self.dirty = Some((start, len));
            if failed {
                Err(io::Error::from_raw_os_error(5))
            } else {
                Ok(())
            }
        }

        fn sync(&mut self) -> io::Result<()> {
            match self.fault {
                Some(Fault::Sync(bytes)) => {
                    self.land(bytes);
                    Err(io::Error::from_raw_os_error(5))
                }
                Some(Fault::ShortWrite(_)) | None => {
                    self.land(usize::MAX);
                    Ok(())
                }
            }
        }
    }

    fn numbered(number: u64) -> Superblock {
        let mut superblock = example();
        superblock.record.number = number;
        // Something that changes along, all over the record.
        superblock.record.era = number * 0x0101_0101;
        superblock.record.generation_ceiling = !number;
        superblock
    }

    /// Slots with `last` as the newest of as many durable records.
    fn slots_at(last: u64) -> Slots<Model> {
        let mut slots = Slots::create(Model::default(), &numbered(1)).expect("no fault yet");
        for number in 2..=last {
            slots.write(&numbered(number)).expect("no fault yet");
        }
        slots.medium.protected = Some(offset(slots.durable));
        slots
    }

    fn number_in(model: &Model) -> u64 {
        let picked = read(model).unwrap_or_else(|error| panic!("no record is left: {error:?}"));
        assert_eq!(
            picked.superblock,
            numbered(picked.superblock.record.number),
            "a mixture was taken for a record"
        );
        picked.superblock.record.number
    }

    #[test]
    fn records_alternate_between_the_slots_and_the_newest_is_found() {
        for last in 1..8 {
            let slots = slots_at(last);
            assert_eq!(number_in(&slots.medium.after_cut(0)), last);
            assert_eq!(slots.durable as u64, (last - 1) % 2);
        }
    }

    #[test]
    fn a_cut_at_any_byte_of_a_write_leaves_the_old_or_the_new_record() {
        for last in [1, 2, 3] {
            let mut slots = slots_at(last);
            slots.medium.fault = Some(Fault::Sync(0));
            let before = slots.medium.clone();
            let _ = slots.write(&numbered(last + 1));
            for landed in 0..=BYTES {
                let mut cut = before.clone();
                cut.cache = slots.medium.cache.clone();
                cut.dirty = Some((place(offset(1 - slots.durable)), BYTES));
                let found = number_in(&cut.after_cut(landed));
                assert!(
                    found == last || found == last + 1,
                    "{found} after {landed} bytes of {}",
                    last + 1
                );
                assert!(landed < BYTES || found == last + 1);
            }
        }
    }

    #[test]
    fn no_failed_write_followed_by_a_cut_in_the_retry_loses_the_newest_durable_record() {
        let steps = [0, 132, 2048, 4095, BYTES];
        for last in [1, 2] {
            for fault in (0..=BYTES)
                .step_by(if last == 1 { 1 } else { 37 })
                .flat_map(|len| [Fault::ShortWrite(len), Fault::Sync(len)])
            {
                let mut slots = slots_at(last);
                slots.medium.fault = Some(fault);
                slots.write(&numbered(last + 1)).expect_err("the fault strikes");
                for landed in steps {
                    let mut again = Slots {
                        medium: slots.medium.clone(),
                        ..slots
                    };
                    // The retry is cut when so many bytes of it had landed.
                    again.medium.fault = Some(Fault::Sync(landed));
                    let _ = again.write(&numbered(last + 2));
                    let found = number_in(&again.medium.after_cut(0));
                    assert!(
                        (last..=last + 2).contains(&found),
                        "{found}: {fault:?}, then {landed} bytes of the retry"
                    );
                }
            }
        }
    }

    #[test]
    fn a_retry_that_succeeds_is_what_a_cut_leaves() {
        for fault in [
            Fault::ShortWrite(0),
            Fault::ShortWrite(100),
            Fault::Sync(0),
            Fault::Sync(100),
            Fault::Sync(BYTES),
        ] {
            let mut slots = slots_at(4);
            for number in 5..9 {
                slots.medium.fault = Some(fault);
                slots.write(&numbered(number)).expect_err("the fault strikes");
            }
            slots.medium.fault = None;
            slots.write(&numbered(9)).expect("no fault any more");
            assert_eq!(number_in(&slots.medium.after_cut(0)), 9, "{fault:?}");
        }
    }

    #[test]
    fn a_record_that_only_the_page_cache_holds_is_made_durable_before_it_is_acted_on() {
        for landed in [0, 1, 100, 2048, BYTES] {
            let mut slots = slots_at(4);
            slots.medium.fault = Some(Fault::Sync(landed));
            slots.write(&numbered(5)).expect_err("the fault strikes");

            let (mut slots, picked) = Slots::open(slots.medium.after_kill()).expect("the cache has record 5");
            assert_eq!(picked.superblock.record.number, 5);
            assert_eq!(
                number_in(&slots.medium.after_cut(0)),
                5,
                "it was acted on, and is not on disk"
            );

            slots.medium.fault = Some(Fault::Sync(100));
            slots.write(&numbered(6)).expect_err("the fault strikes");
            assert_eq!(number_in(&slots.medium.after_cut(0)), 5, "{landed}");
        }
    }

    #[test]
    fn a_cut_while_a_record_is_renewed_at_open_loses_nothing() {
        for landed in (0..BYTES).step_by(64).chain([BYTES - 1, BYTES]) {
            for renewed in [0, 1, 100, 4095, BYTES] {
                let mut slots = slots_at(4);
                slots.medium.fault = Some(Fault::Sync(landed));
                slots.write(&numbered(5)).expect_err("the fault strikes");
                let mut medium = slots.medium.after_kill();
                medium.fault = Some(Fault::Sync(renewed));
                let mut left = medium.clone();
                left.write(offset(0), &numbered(5).encode())
                    .expect("it fails at the flush");
                let _ = left.sync();
                Slots::open(medium).expect_err("the fault strikes");
                assert!(number_in(&left.after_cut(0)) >= 4, "{landed}, {renewed}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "record number 5 after 5")]
    fn a_number_is_not_used_again_after_its_write_failed() {
        let mut slots = slots_at(4);
        slots.medium.fault = Some(Fault::Sync(0));
        let _ = slots.write(&numbered(5));
        let _ = slots.write(&numbered(5));
    }
}
