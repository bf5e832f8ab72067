//! The file of active regions: which slot is written, and what is known to be durable.
//!
//! # Crash order
//! What must never happen: that a region is taken for quiet while a write in it may have reached one leg and not the
//! other.
//!
//! *Mark.* A set is acknowledged when its bytes were written and `fdatasync` then succeeded. It goes to **the slot that
//! does not hold the newest set known to be durable**, under the next sequence number that belongs to that slot. After
//! an error the same slot is written again, whole, under a number that is higher by two: were the other one written
//! next, the slot that the error may have left torn would stay so, and a cut would find nothing to believe although the
//! last mark was acknowledged. After an error it is not known which of the two sets is in force: a region counts as
//! marked only if it is in both, and as quiet only if it is in neither.
//!
//! *Load.* What is read may be in the page cache alone, left by a daemon that died between write and `fdatasync`:
//! writes to the legs would rely on marks that a cut takes away. So the slot that decides is written again, with the
//! same bytes, and flushed, before anything else. A cut in the middle either tears bytes into the same bytes, or leaves
//! the slot damaged: nothing is believed.
//!
//! *Poison.* It is written over, whole, and flushed; one byte of it is enough. It is in a place of its own, so that a
//! bad sector under a slot does not keep it from being written.
//!
//! *Begin anew.* Poison first, durable; then both slots, durable; then the poison is taken away, durable. A cut at any
//! moment leaves what there was before, poison, or the new set, whatever numbers the old ones had; and where nothing
//! was believed before, nothing is until the new set is whole.
//!
//! *Place.* Each block has 64 KiB of the file to itself, so that they share no block of a file system and no page of
//! any architecture. The file is written once in full when it is made: no mark allocates anything.

use super::medium::{BLOCK, Medium};
use crate::core::{Bits, Errno};
use crate::table::checked::Unverified;
use crate::table::regions::{self, Regions, pick, slot_of};
use crate::table::{Lost, Owner};
use std::io;

/// Bytes of the file that belong to one block.
const STRIDE: u64 = 64 << 10;
/// Bytes of the file.
pub(super) const FILE_BYTES: u64 = 3 * STRIDE;
/// Where the poison is.
const POISON: u64 = 2 * STRIDE;

const _: () = assert!(regions::BYTES == BLOCK, "a slot is one block");

/// The slots, and what is known of them.
#[derive(Debug)]
pub(super) struct RegionFile<M> {
    medium: M,
    owner: Owner,
    /// The slot of the newest set known to be durable; `None` as long as nothing is believed.
    durable: Option<usize>,
    /// The highest sequence number that was ever tried.
    highest: u64,
}

impl<M: Medium> RegionFile<M> {
    /// Nothing is known of the medium yet.
    pub(super) fn new(medium: M, owner: Owner) -> RegionFile<M> {
        RegionFile {
            medium,
            owner,
            durable: None,
            highest: 0,
        }
    }

    /// What it is kept on.
    pub(super) fn medium(&self) -> &M {
        &self.medium
    }

    /// The set in force, which is durable when this returns.
    pub(super) fn load(&mut self) -> Result<Bits, Lost> {
        self.durable = None;
        let regions = self.read()?;
        let slot = slot_of(regions.sequence);
        self.highest = regions.sequence;
        self.put(slot, regions.sequence, &regions.active)
            .and_then(|()| self.medium.sync())
            .map_err(|error| Lost::Unwritable(errno(&error)))?;
        self.durable = Some(slot);
        Ok(regions.active)
    }

    fn read(&self) -> Result<Regions, Lost> {
        let read = |offset| {
            self.medium
                .read(offset)
                .map_err(|error| Lost::Unreadable(errno(&error)))
        };
        let (even, odd, poison) = (read(offset(0))?, read(offset(1))?, read(POISON)?);
        pick([Unverified::new(&even), Unverified::new(&odd)], &poison, &self.owner)
    }

    /// Make durable that exactly `active` are active. After an error, either this set or the one before is in force.
    pub(super) fn mark(&mut self, active: &Bits) -> io::Result<()> {
        let Some(durable) = self.durable else {
            return Err(io::Error::other(
                "which regions are active is not known: marks have to begin anew",
            ));
        };
        let slot = 1 - durable;
        let sequence = self.next_for(slot);
        self.put(slot, sequence, active)?;
        self.medium.sync()?;
        self.durable = Some(slot);
        Ok(())
    }

    /// Make durable that nothing is known, which means that everything is active.
    pub(super) fn poison(&mut self) -> io::Result<()> {
        self.durable = None;
        self.medium.write(POISON, &[0xff; BLOCK])?;
        self.medium.sync()
    }

    /// Make durable that exactly `active` are active, whatever there was before.
    pub(super) fn begin_anew(&mut self, active: &Bits) -> io::Result<()> {
        self.poison()?;
        for slot in [0, 1] {
            let sequence = self.next_for(slot);
            self.put(slot, sequence, active)?;
        }
        self.medium.sync()?;
        self.medium.write(POISON, &[0; BLOCK])?;
        self.medium.sync()?;
        self.durable = Some(slot_of(self.highest));
        Ok(())
    }

    /// The lowest number above all tried ones that belongs to `slot`.
    fn next_for(&mut self, slot: usize) -> u64 {
        let next = self.highest + 1;
        next + u64::from(slot_of(next) != slot)
    }

    fn put(&mut self, slot: usize, sequence: u64, active: &Bits) -> io::Result<()> {
        self.highest = sequence;
        self.medium
            .write(offset(slot), &Regions::encode(&self.owner, sequence, active))
    }
}

const fn offset(slot: usize) -> u64 {
    slot as u64 * STRIDE
}

/// The errno of a failed call.
pub(super) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno)
}

#[cfg(test)]
mod tests {
    use super::super::medium::model::{End, Model, Random};
    use super::*;
    use crate::core::Geometry;

    fn owner() -> Owner {
        Owner {
            uuid: [7; 16],
            geometry: Geometry::new(1 << 40, 512),
        }
    }

    fn set(random: &mut Random) -> Bits {
        let mut bits = Bits::none(owner().geometry.regions());
        for _ in 0..random.below(50) {
            bits.insert(random.below(bits.len()));
        }
        bits
    }

    fn made(seed: u64, active: &Bits) -> RegionFile<Model> {
        let mut file = RegionFile::new(Model::new(FILE_BYTES as usize, seed), owner());
        assert!(file.load().is_err(), "zeroes are no set");
        file.begin_anew(active).expect("no fault yet");
        file
    }

    fn again(model: Model) -> RegionFile<Model> {
        RegionFile::new(model, owner())
    }

    #[test]
    fn an_acknowledged_set_is_loaded_after_a_kill_and_after_a_cut() {
        for seed in 0..50 {
            let mut random = Random(seed);
            let mut current = set(&mut random);
            let mut file = made(seed, &current);
            for _ in 0..20 {
                let model = match random.below(4) {
                    0 => Some(file.medium.clone().cut()),
                    1 => Some(file.medium.clone().killed()),
                    _ => None,
                };
                if let Some(model) = model {
                    file = again(model);
                    assert_eq!(file.load().as_ref(), Ok(&current), "seed {seed}");
                }
                current = set(&mut random);
                file.mark(&current).expect("no fault");
            }
        }
    }

    /// Whatever fails: what is loaded later is the set acknowledged last or one that was tried after it, or nothing is
    /// believed; and what has been loaded stays in force. Nothing is believed only where the last write failed.
    #[test]
    fn no_set_older_than_the_acknowledged_one_is_ever_loaded() {
        let (mut lost, mut loaded) = (0, 0);
        for seed in 0..3000 {
            let mut random = Random(seed);
            let mut possible = vec![set(&mut random)];
            let mut file = made(seed, &possible[0]);
            for _ in 0..12 {
                let end = match random.below(3) {
                    0 => Some((random.below(3), End::Error)),
                    1 => Some((random.below(3), End::Death)),
                    _ => None,
                };
                file.medium.end = end;
                for _ in 0..=random.below(3) {
                    let new = set(&mut random);
                    match file.mark(&new) {
                        Ok(()) => possible = vec![new],
                        Err(_) => possible.push(new),
                    }
                }
                let is_cut = random.below(2) == 0;
                let model = match (is_cut, random.below(3)) {
                    (true, _) => file.medium.clone().cut(),
                    (false, 0) => file.medium.clone().killed(),
                    (false, _) => continue,
                };
                file = again(model);
                // The load may be cut short as well.
                let end = (random.below(4) == 0).then(|| (random.below(2), End::Death));
                file.medium.end = end;
                match file.load() {
                    Ok(set) => {
                        assert!(possible.contains(&set), "seed {seed}: an old set");
                        possible = vec![set];
                        loaded += 1;
                    }
                    Err(_) => {
                        assert!(
                            possible.len() > 1 || end.is_some(),
                            "seed {seed}: the newest set was acknowledged"
                        );
                        lost += 1;
                        break;
                    }
                }
            }
        }
        assert!(
            lost > 100 && loaded > 1000,
            "the test must reach both: {lost} lost, {loaded} loaded"
        );
    }

    #[test]
    fn a_damaged_slot_is_not_made_good_by_the_other() {
        for slot in [0, 1] {
            let mut file = made(1, &Bits::all(owner().geometry.regions()));
            file.mark(&Bits::none(owner().geometry.regions())).expect("no fault");
            let mut model = file.medium.clone().killed();
            model.damage(offset(slot) as usize + 100);
            let mut file = again(model);
            assert!(file.load().is_err());
            assert!(
                file.mark(&Bits::none(owner().geometry.regions())).is_err(),
                "a mark beside what is not believed says nothing"
            );
        }
    }

    #[test]
    fn once_poisoned_nothing_is_believed_until_marks_have_begun_anew() {
        for seed in 0..200 {
            let mut random = Random(seed);
            let mut file = made(seed, &set(&mut random));
            file.mark(&set(&mut random)).expect("no fault");
            file.poison().expect("no fault");
            assert!(file.mark(&set(&mut random)).is_err());
            let new = set(&mut random);
            // Cut at every step of beginning anew, again and again.
            for call in 0.. {
                let mut file = again(file.medium.clone().cut());
                assert_eq!(file.load(), Err(Lost::Poisoned));
                file.medium.end = Some((call, End::Death));
                let done = file.begin_anew(&new);
                let is_done = done.is_ok();
                let mut file = again(file.medium.clone().cut());
                match file.load() {
                    Ok(set) => assert_eq!(set, new),
                    Err(lost) => assert!(!is_done && lost == Lost::Poisoned, "seed {seed}, call {call}: {lost}"),
                }
                if is_done {
                    break;
                }
            }
        }
    }

    #[test]
    fn beginning_anew_over_damage_leaves_nothing_old_at_any_step() {
        for seed in 0..200 {
            let mut random = Random(seed);
            let mut file = made(seed, &set(&mut random));
            for _ in 0..random.below(4) {
                file.mark(&set(&mut random)).expect("no fault");
            }
            file.medium.damage(offset(random.below(2) as usize) as usize + 40);
            let new = set(&mut random);
            for call in 0.. {
                let mut file = again(file.medium.clone().killed());
                assert!(file.load().is_err());
                file.medium.end = Some((call, End::Death));
                let is_done = file.begin_anew(&new).is_ok();
                let mut file = again(file.medium.clone().cut());
                match file.load() {
                    Ok(set) => assert_eq!(set, new, "seed {seed}, call {call}"),
                    Err(_) => assert!(!is_done, "seed {seed}, call {call}"),
                }
                if is_done {
                    break;
                }
            }
        }
    }
}
