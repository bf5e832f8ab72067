//! The file of the dirty map: blocks that are written in place.
//!
//! # Crash order
//! What must never happen: that a grain is taken for clean which is missing on a leg.
//!
//! *Save.* All blocks are written, then one `fdatasync` makes them durable; the caller takes no mark from a region
//! before that. A cut in the middle leaves each block as it was, as it is to be, or torn, and then all its grains are
//! dirty. After an error none of the blocks counts as saved, nor did the kernel keep them for a later flush (it takes
//! the pages for clean): they have to be given again, and until they were, no save is one ([`DirtyFile::save`]
//! insists).
//!
//! *Load.* What is read may be in the page cache alone. A bit that is set there and not on disk would be lost by a cut,
//! and nobody would write it again; so every block with a dirty grain is written again, and flushed. A block without
//! one need not be: what the disk has instead says the same, or more. A block that says nothing is written as all
//! dirty.
//!
//! *Begin anew.* In place: blocks, then the header. Of a cut in the middle some blocks are old. It must not be believed
//! then, which is for [`super::tracking`] to see to: it poisons the marks first.

use super::medium::{BLOCK, Medium};
use super::region_file::errno;
use crate::core::Bits;
use crate::table::checked::Unverified;
use crate::table::dirty::{BYTES, WORDS, blocks, check_header, decode_block, encode_block, encode_header, words_of};
use crate::table::{Lost, Owner};
use std::collections::BTreeSet;
use std::io;

const _: () = assert!(BYTES == BLOCK, "a table is one block");

/// What the map says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyLoaded {
    /// The dirty grains.
    pub bits: Bits,
    /// How many blocks said nothing, so that all their grains are dirty.
    pub unverified: u64,
}

/// The map, and what is known of it.
#[derive(Debug)]
pub(super) struct DirtyFile<M> {
    medium: M,
    owner: Owner,
    /// Blocks that may have reached the disk, and may not.
    unsaved: BTreeSet<u64>,
}

/// Bytes of the file.
pub(super) const fn file_bytes(owner: &Owner) -> u64 {
    (1 + blocks(&owner.geometry)) * BYTES as u64
}

impl<M: Medium> DirtyFile<M> {
    /// Nothing is known of the medium yet.
    pub(super) fn new(medium: M, owner: Owner) -> DirtyFile<M> {
        DirtyFile {
            medium,
            owner,
            unsaved: BTreeSet::new(),
        }
    }

    /// What it is kept on.
    pub(super) fn medium(&self) -> &M {
        &self.medium
    }

    /// What the map says, which is durable when this returns.
    pub(super) fn load(&mut self) -> Result<DirtyLoaded, Lost> {
        let header = self.medium.read(0).map_err(|error| Lost::Unreadable(errno(&error)))?;
        check_header(Unverified::new(&header), &self.owner)?;
        let count = blocks(&self.owner.geometry);
        let all = Bits::all(self.owner.geometry.grains());
        let (mut words, mut unverified) = (Vec::new(), 0);
        for index in 0..count {
            let bytes = self.medium.read(offset(index)).unwrap_or_default();
            match decode_block(Unverified::new(&bytes), &self.owner, index) {
                Ok(block) => words.extend(block),
                Err(_) => {
                    unverified += 1;
                    words.extend(slice(&self.owner, &all, index));
                }
            }
        }
        let bits = Bits::from_words(self.owner.geometry.grains(), words)
            .expect("each block has the bits of its grains and no others");
        let dirty = (0..count).map(|index| (index, slice(&self.owner, &bits, index)));
        let dirty: Vec<_> = dirty.filter(|(_, block)| block.iter().any(|&word| word != 0)).collect();
        self.put(&dirty).map_err(|error| Lost::Unwritable(errno(&error)))?;
        self.unsaved.clear();
        Ok(DirtyLoaded { bits, unverified })
    }

    /// Make durable what these blocks say now.
    ///
    /// # Panics
    /// If a block is not among them that may not have been saved the last time.
    pub(super) fn save(&mut self, blocks: &[(u64, &[u64])]) -> io::Result<()> {
        self.unsaved
            .retain(|index| !blocks.iter().any(|(given, _)| given == index));
        assert!(
            self.unsaved.is_empty(),
            "blocks {:?} of the dirty map were not saved, and are not given again",
            self.unsaved
        );
        self.put(blocks)
            .inspect_err(|_| self.unsaved.extend(blocks.iter().map(|(index, _)| index)))
    }

    /// Make durable that exactly `dirty` are dirty, whatever there was before.
    pub(super) fn begin_anew(&mut self, dirty: &Bits) -> io::Result<()> {
        assert_eq!(dirty.len(), self.owner.geometry.grains(), "the map of another device");
        for index in 0..blocks(&self.owner.geometry) {
            self.put_block(index, slice(&self.owner, dirty, index))?;
        }
        self.medium.sync()?;
        self.medium.write(0, &encode_header(&self.owner))?;
        self.medium.sync()?;
        self.unsaved.clear();
        Ok(())
    }

    fn put(&mut self, blocks: &[(u64, &[u64])]) -> io::Result<()> {
        for (index, bits) in blocks {
            self.put_block(*index, bits)?;
        }
        self.medium.sync()
    }

    fn put_block(&mut self, index: u64, bits: &[u64]) -> io::Result<()> {
        self.medium
            .write(offset(index), &encode_block(&self.owner, index, bits))
    }
}

const fn offset(index: u64) -> u64 {
    (index + 1) * BYTES as u64
}

/// The words of a block.
fn slice<'a>(owner: &Owner, bits: &'a Bits, index: u64) -> &'a [u64] {
    let start = index as usize * WORDS;
    &bits.words()[start..start + words_of(&owner.geometry, index)]
}

#[cfg(test)]
mod tests {
    use super::super::medium::model::{End, Model, Random};
    use super::*;
    use crate::core::Geometry;
    use crate::table::dirty::GRAINS;

    /// Three blocks, the last of them small.
    fn owner() -> Owner {
        let grains = 2 * GRAINS + 100;
        Owner {
            uuid: [7; 16],
            geometry: Geometry::new(grains * u64::from(Geometry::GRAIN), 512),
        }
    }

    fn made(seed: u64, dirty: &Bits) -> DirtyFile<Model> {
        let mut file = again(Model::new(file_bytes(&owner()) as usize, seed));
        assert!(file.load().is_err(), "zeroes are no map");
        file.begin_anew(dirty).expect("no fault yet");
        file
    }

    fn again(model: Model) -> DirtyFile<Model> {
        DirtyFile::new(model, owner())
    }

    fn random_grain(random: &mut Random) -> u64 {
        // The small block as often as the others.
        let block = random.below(3);
        block * GRAINS + random.below(if block == 2 { 100 } else { GRAINS })
    }

    /// All blocks in `indices` as `bits` has them.
    fn save(file: &mut DirtyFile<Model>, bits: &Bits, indices: &BTreeSet<u64>) -> io::Result<()> {
        let blocks: Vec<_> = indices
            .iter()
            .map(|&index| (index, slice(&owner(), bits, index)))
            .collect();
        let blocks: Vec<(u64, &[u64])> = blocks;
        file.save(&blocks)
    }

    fn grains() -> u64 {
        owner().geometry.grains()
    }

    #[test]
    fn what_was_saved_is_loaded_after_a_kill_and_after_a_cut() {
        for seed in 0..40 {
            let mut random = Random(seed);
            let mut bits = Bits::none(grains());
            let mut file = made(seed, &bits);
            for _ in 0..10 {
                let mut changed = BTreeSet::new();
                for _ in 0..random.below(6) {
                    let grain = random_grain(&mut random);
                    changed.insert(grain / GRAINS);
                    if random.below(3) == 0 {
                        bits.remove(grain);
                    } else {
                        bits.insert(grain);
                    }
                }
                save(&mut file, &bits, &changed).expect("no fault");
                file = again(if random.below(2) == 0 {
                    file.medium.clone().cut()
                } else {
                    file.medium.clone().killed()
                });
                let expected = DirtyLoaded {
                    bits: bits.clone(),
                    unverified: 0,
                };
                assert_eq!(file.load(), Ok(expected), "seed {seed}");
            }
        }
    }

    /// Whatever fails: a grain that was dirty at the last save, and in every set tried since, is dirty; and what has
    /// been loaded stays so. What is saved again after an error is durable.
    #[test]
    fn no_dirty_grain_is_ever_forgotten() {
        let mut unverified = 0;
        for seed in 0..2000 {
            let mut random = Random(seed);
            let mut bits = Bits::none(grains());
            // What must be dirty whatever has landed.
            let mut sure = bits.clone();
            let mut file = made(seed, &bits);
            let mut unsaved = BTreeSet::new();
            for _ in 0..10 {
                file.medium.end = match random.below(3) {
                    0 => Some((random.below(4), End::Error)),
                    1 => Some((random.below(4), End::Death)),
                    _ => None,
                };
                for _ in 0..=random.below(2) {
                    for _ in 0..=random.below(5) {
                        let grain = random_grain(&mut random);
                        unsaved.insert(grain / GRAINS);
                        if random.below(2) == 0 {
                            bits.remove(grain);
                            sure.remove(grain);
                        } else {
                            bits.insert(grain);
                        }
                    }
                    if save(&mut file, &bits, &unsaved).is_ok() {
                        unsaved.clear();
                        sure = bits.clone();
                    }
                }
                let model = match random.below(3) {
                    0 => file.medium.clone().cut(),
                    1 => file.medium.clone().killed(),
                    _ => continue,
                };
                file = again(model);
                let end = (random.below(4) == 0).then(|| (random.below(4), End::Death));
                file.medium.end = end;
                let loaded = match file.load() {
                    Ok(loaded) => loaded,
                    Err(lost) => {
                        assert!(
                            matches!(lost, Lost::Unwritable(_)) && end.is_some(),
                            "seed {seed}: {lost}"
                        );
                        break;
                    }
                };
                unverified += loaded.unverified;
                assert!(
                    sure.iter().all(|grain| loaded.bits.contains(grain)),
                    "seed {seed}: a dirty grain was forgotten"
                );
                bits = loaded.bits;
                sure = bits.clone();
                unsaved.clear();
            }
        }
        assert!(unverified > 100, "the test must tear blocks");
    }

    #[test]
    fn a_damaged_block_is_dirty_whole_and_the_others_are_not() {
        let mut bits = Bits::none(grains());
        bits.insert(3);
        let file = made(1, &bits);
        let mut model = file.medium.clone().killed();
        model.damage(offset(1) as usize + 50);
        let mut file = again(model);
        let loaded = file.load().expect("the header is whole");
        assert_eq!((loaded.unverified, loaded.bits.count()), (1, 1 + GRAINS));
        assert!(loaded.bits.contains(3) && (GRAINS..2 * GRAINS).all(|grain| loaded.bits.contains(grain)));
        // It is as dirty as that on disk now, and no longer in doubt.
        let again = again(file.medium.clone().cut()).load().expect("it was written");
        assert_eq!((again.unverified, again.bits), (0, loaded.bits));
    }

    #[test]
    fn without_its_header_the_map_says_nothing() {
        let file = made(1, &Bits::none(grains()));
        let mut model = file.medium.clone().killed();
        model.damage(40);
        let mut file = again(model);
        assert!(matches!(file.load(), Err(Lost::Flawed(_))));
        file.begin_anew(&Bits::all(grains())).expect("no fault");
        let loaded = again_loaded(&file);
        assert_eq!(loaded.bits, Bits::all(grains()));
    }

    fn again_loaded(file: &DirtyFile<Model>) -> DirtyLoaded {
        again(file.medium.clone().cut()).load().expect("it was written")
    }

    #[test]
    #[should_panic(expected = "are not given again")]
    fn a_block_whose_save_failed_has_to_be_given_again() {
        let bits = Bits::all(grains());
        let mut file = made(1, &Bits::none(grains()));
        file.medium.end = Some((1, End::Error));
        assert!(save(&mut file, &bits, &BTreeSet::from([0, 1])).is_err());
        let _ = save(&mut file, &bits, &BTreeSet::from([1, 2]));
    }
}
