//! The dirty map: which grains a leg that does not follow is missing, in blocks of 4096 bytes that are written in
//! place.
//!
//! The file is a header and then a block for each 32,256 grains, all checked one by one. A block that is torn, or of
//! another device, or in the wrong place costs no more than its own grains: they are all dirty. Without its header the
//! map says nothing at all.
//!
//! Format version 1; numbers are little-endian; bytes not listed are zero, and a table in which they are not is
//! refused.
//!
//! The header:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | header, see [`super::checked`]; magic `twinblkD` |
//! | 16 | 16 | uuid of the device |
//! | 32 | 8 | size of the device in bytes |
//! | 40 | 4 | bytes of a grain |
//! | 4064 | 32 | checksum |
//!
//! Block `i`, at byte `4096 · (i + 1)` of the file:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | header, see [`super::checked`]; magic `twinblkd` |
//! | 16 | 8 | `i` |
//! | 32 | 4032 | grain `32256 · i + n` is bit `n % 8` (counted from the lowest) of byte `n / 8`: 1 dirty |
//! | 4064 | 32 | checksum, with the uuid of the device behind what is before it |

use super::checked::{CHECKSUM, Draft, Flaw, HEADER, Kind, Unverified};
use super::lost::{Lost, Owner};
use super::words;
use crate::core::Geometry;

/// Bytes of the header, and of a block.
pub const BYTES: usize = 4096;
/// Words of bits in a block.
pub const WORDS: usize = 504;
/// Grains of a block.
pub const GRAINS: u64 = WORDS as u64 * 64;

/// How the header is told from everything else.
pub const HEADER_KIND: Kind = Kind {
    magic: *b"twinblkD",
    context: "twinblk 2026 dirty map, header",
    version: 1,
    bytes: BYTES,
};

/// How a block is told from everything else.
pub const BLOCK_KIND: Kind = Kind {
    magic: *b"twinblkd",
    context: "twinblk 2026 dirty map, block",
    version: 1,
    bytes: BYTES,
};

const UUID: usize = 16;
const SIZE: usize = UUID + 16;
const GRAIN: usize = SIZE + 8;
const HEADER_RESERVED: usize = GRAIN + 4;
const INDEX: usize = 16;
const BLOCK_RESERVED: usize = INDEX + 8;
const BITS: usize = BLOCK_RESERVED + 8;

// The tables in the module's documentation, held against the arithmetic.
const _: () = {
    assert!(UUID == HEADER && SIZE == 32 && GRAIN == 40 && HEADER_RESERVED == 44);
    assert!(INDEX == HEADER && BITS == 32 && BITS + WORDS * 8 + CHECKSUM == BYTES);
    assert!(GRAINS == 32_256);
};

/// How many blocks the map of a device has.
pub const fn blocks(geometry: &Geometry) -> u64 {
    geometry.grains().div_ceil(GRAINS)
}

/// How many words of bits block `index` has: as many as there are grains for.
///
/// # Panics
/// If there is no such block.
pub fn words_of(geometry: &Geometry, index: u64) -> usize {
    let grains = geometry.grains() - index * GRAINS;
    assert!(grains > 0, "the map has no block {index}");
    grains.min(GRAINS).div_ceil(64) as usize
}

/// The bytes of the header.
pub fn encode_header(owner: &Owner) -> Vec<u8> {
    let mut draft = Draft::new(&HEADER_KIND);
    draft.put(UUID, &owner.uuid);
    draft.put(SIZE, &owner.geometry.size.to_le_bytes());
    draft.put(GRAIN, &owner.geometry.grain.to_le_bytes());
    draft.seal()
}

/// Check that bytes are the header of this device's map.
///
/// # Errors
/// Says why they are not: then any grain may be dirty.
pub fn check_header(bytes: Unverified<'_>, owner: &Owner) -> Result<(), Lost> {
    let table = bytes.verify(&HEADER_KIND)?;
    table.zero(HEADER_RESERVED, BYTES - CHECKSUM - HEADER_RESERVED)?;
    if table.u128_bytes(UUID) != owner.uuid {
        return Err(Lost::OtherDevice);
    }
    if table.u64(SIZE) != owner.geometry.size {
        return Err(Lost::Other("size of the device"));
    }
    if table.u32(GRAIN) != owner.geometry.grain {
        return Err(Lost::Other("size of a grain"));
    }
    Ok(())
}

/// The bytes of block `index`.
///
/// # Panics
/// If these are not as many words as the block has.
pub fn encode_block(owner: &Owner, index: u64, bits: &[u64]) -> Vec<u8> {
    assert_eq!(
        bits.len(),
        words_of(&owner.geometry, index),
        "the bits of another block"
    );
    let mut draft = Draft::new(&BLOCK_KIND);
    draft.put(INDEX, &index.to_le_bytes());
    draft.put(BITS, &words::to_bytes(bits));
    draft.seal_of(&owner.uuid)
}

/// The words of bits of block `index`.
///
/// # Errors
/// Says why they are not known: then any grain of the block may be dirty.
pub fn decode_block(bytes: Unverified<'_>, owner: &Owner, index: u64) -> Result<Vec<u64>, Flaw> {
    let table = bytes.verify_of(&BLOCK_KIND, &owner.uuid)?;
    if table.u64(INDEX) != index {
        return Err(Flaw::Malformed("it belongs to another place"));
    }
    table.zero(BLOCK_RESERVED, BITS - BLOCK_RESERVED)?;
    let used = words_of(&owner.geometry, index) * 8;
    table.zero(BITS + used, WORDS * 8 - used)?;
    let words = words::from_bytes(table.bytes(BITS, used));
    let last = owner.geometry.grains() - index * GRAINS;
    let behind_end = last < GRAINS && !last.is_multiple_of(64) && words[used / 8 - 1] >> (last % 64) != 0;
    if behind_end {
        return Err(Flaw::Malformed("a grain behind the end of the device"));
    }
    Ok(words)
}
