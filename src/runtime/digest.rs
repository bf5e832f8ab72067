//! The hash of a device, put together from the hashes of its extents.
//!
//! An extent is an aligned subtree of the tree that BLAKE3 builds over the whole content, so its chaining value merges
//! with its neighbours' into the hash that `b3sum` prints for the device. Chaining values are bound to their position.
//! A device of one extent has no subtree below the root: the root itself is kept for it.
//!
//! Not handled: which extents are up to date. The core says when every one of them belongs to one generation.

use crate::core::{Buf, Geometry, Range, Signature};
use crate::io::Arena;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use std::sync::Mutex;

/// Bytes hashed at a time: enough that BLAKE3 fills its lanes, few enough to stay in a processor's own cache.
const PIECE: usize = 64 << 10;

/// Merges the chaining values of a device's extents, in order, into the hash of the device.
///
/// BLAKE3 gives a left subtree the largest power of two of chunks that leaves at least one byte for the right one. An
/// extent is a power of two of chunks, and the last extent has at least one byte, so subtrees are split between
/// extents. The last value is held back, because the last merge, and it alone, makes a root.
#[derive(Debug, Default)]
pub struct Merger {
    /// One subtree for each bit that is set in `merged`, the largest first.
    subtrees: Vec<ChainingValue>,
    /// How many values are in them.
    merged: u64,
    last: Option<ChainingValue>,
}

impl Merger {
    /// Add the value of the next extent; of a device of one extent, its hash.
    pub fn push(&mut self, value: ChainingValue) {
        let Some(mut subtree) = self.last.replace(value) else {
            return;
        };
        self.merged += 1;
        for _ in 0..self.merged.trailing_zeros() {
            let left = self.subtrees.pop().expect("there is one for each bit");
            subtree = merge_subtrees_non_root(&left, &subtree, Mode::Hash);
        }
        self.subtrees.push(subtree);
    }

    /// The hash of what was added.
    pub fn finish(self) -> blake3::Hash {
        let Some(mut right) = self.last else {
            return blake3::hash(&[]);
        };
        let mut lefts = self.subtrees.into_iter();
        let Some(leftmost) = lefts.next() else {
            return blake3::Hash::from_bytes(right);
        };
        for left in lefts.rev() {
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
        merge_subtrees_root(&leftmost, &right, Mode::Hash)
    }
}

/// The hashes of a device's extents, filled by workers in any order.
#[derive(Debug)]
pub struct DigestTable {
    geometry: Geometry,
    /// By extent: its chaining value, or the root's bytes if it is the only one.
    values: Mutex<Vec<Option<ChainingValue>>>,
}

impl DigestTable {
    /// A table without any hash.
    pub fn new(geometry: Geometry) -> DigestTable {
        let extents = usize::try_from(geometry.extents()).expect("an address space holds 32 bytes per extent");
        DigestTable {
            geometry,
            values: Mutex::new(vec![None; extents]),
        }
    }

    /// Keep the hash of an extent.
    pub fn put(&self, range: Range, signature: Signature) {
        let extent = range.start / u64::from(self.geometry.extent);
        self.lock()[extent as usize] = Some(signature.0);
    }

    /// Keep the hashes that `from` tells to the function it is given.
    pub fn fill(&self, from: impl FnOnce(&mut dyn FnMut(u64, Signature))) {
        let mut values = self.lock();
        from(&mut |extent, signature| values[extent as usize] = Some(signature.0));
    }

    /// The hash of the whole device; `None` while an extent has no hash.
    pub fn root(&self) -> Option<blake3::Hash> {
        let mut merger = Merger::default();
        for value in self.lock().iter() {
            merger.push((*value)?);
        }
        Some(merger.finish())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<ChainingValue>>> {
        self.values.lock().expect("nobody panics while holding the table")
    }
}

/// The value that tables keep of an extent, whose bytes lie in the arena at `buf`: its chaining value or, on a device
/// of one extent, its hash. `scratch` is a place to copy them to in pieces, and grows once.
///
/// # Panics
/// If `range` is not one whole extent.
pub fn hash_extent(geometry: &Geometry, arena: &Arena, range: Range, buf: Buf, scratch: &mut Vec<u8>) -> Signature {
    let extent = range.start / u64::from(geometry.extent);
    assert_eq!(range, geometry.extent_range(extent), "hashes are kept of whole extents");
    scratch.resize(PIECE, 0);
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(range.start);
    let mut done = 0;
    while done < range.len {
        let piece = &mut scratch[..(range.len - done).min(PIECE as u64) as usize];
        arena.read(buf.skip(done), piece);
        hasher.update(piece);
        done += piece.len() as u64;
    }
    Signature(match geometry.extents() {
        1 => *hasher.finalize().as_bytes(),
        _ => hasher.finalize_non_root(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(len: usize) -> Vec<u8> {
        (0..len)
            .map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7])
            .collect()
    }

    fn digest(content: &[u8], extent: u32) -> Option<blake3::Hash> {
        let geometry = Geometry {
            size: content.len() as u64,
            block: 512,
            grain: 16 << 10,
            extent,
        };
        let arena = Arena::reserve(content.len() as u64).unwrap();
        arena.write(Buf(0), content);
        let table = DigestTable::new(geometry);
        let mut scratch = Vec::new();
        for extent in (0..geometry.extents()).rev() {
            assert_eq!(table.root(), None, "an extent is missing");
            let range = geometry.extent_range(extent);
            table.put(
                range,
                hash_extent(&geometry, &arena, range, Buf::at(range.start), &mut scratch),
            );
        }
        table.root()
    }

    #[test]
    fn the_digest_of_any_size_equals_the_ordinary_hash() {
        let extent = 128 << 10;
        let mut sizes = vec![512, 1024, 1536, 4096, 65536 + 512];
        for extents in 1..=17_usize {
            let whole = extents * extent as usize;
            sizes.extend([whole - 512, whole, whole + 512, whole + 1024, whole + 70_144]);
        }
        for size in sizes {
            let content = content(size);
            assert_eq!(digest(&content, extent), Some(blake3::hash(&content)), "{size} bytes");
        }
    }

    #[test]
    fn the_digest_does_not_depend_on_the_extent() {
        let content = content((3 << 20) + 512);
        for extent in [16 << 10, 64 << 10, 1 << 20, 4 << 20] {
            assert_eq!(
                digest(&content, extent),
                Some(blake3::hash(&content)),
                "extents of {extent}"
            );
        }
    }

    #[test]
    fn an_extent_hashed_again_replaces_what_it_was() {
        let geometry = Geometry {
            size: 256 << 10,
            block: 512,
            grain: 16 << 10,
            extent: 128 << 10,
        };
        let arena = Arena::reserve(geometry.size).unwrap();
        let table = DigestTable::new(geometry);
        let mut scratch = Vec::new();
        for byte in [1, 2] {
            let bytes = vec![byte; 256 << 10];
            arena.write(Buf(0), &bytes);
            for extent in 0..2 {
                let range = geometry.extent_range(extent);
                table.put(
                    range,
                    hash_extent(&geometry, &arena, range, Buf::at(range.start), &mut scratch),
                );
            }
            assert_eq!(table.root(), Some(blake3::hash(&bytes)));
        }
    }
}
