//! The list of suspect places: where the legs differ, and nobody has decided which is right.
//!
//! One block, made anew under another name and renamed, so that it is there whole or as it was. It means something only while the
//! record says that there are such places; then one that is missing, torn or another device's means that all of the device is
//! suspect.
//!
//! Format version 1; numbers are little-endian; bytes not listed are zero, and a table in which they are not is refused.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | header, see [`super::checked`]; magic `twinblkX` |
//! | 16 | 16 | uuid of the device |
//! | 32 | 8 | size of the device in bytes |
//! | 40 | 4 | how many places there are, at most 240 |
//! | 48 | 16 · that | first byte and length of each, in order, none of them empty, no two of which overlap |
//! | 4064 | 32 | checksum |

use super::checked::{CHECKSUM, Draft, Flaw, HEADER, Kind, Unverified};
use super::lost::{Lost, Owner};
use crate::core::geometry::SECTOR;
use crate::core::{Range, Suspects};

/// Bytes of the list.
pub const BYTES: usize = 4096;

/// How the list is told from everything else.
pub const KIND: Kind = Kind {
    magic: *b"twinblkX",
    context: "twinblk 2026 suspect places",
    version: 1,
    bytes: BYTES,
};

const UUID: usize = 16;
const SIZE: usize = UUID + 16;
const COUNT: usize = SIZE + 8;
const PLACES: usize = COUNT + 8;
const PLACE: usize = 16;
const END: usize = PLACES + Suspects::MOST * PLACE;

// The table in the module's documentation, held against the arithmetic.
const _: () = assert!(UUID == HEADER && PLACES == 48 && Suspects::MOST == 240 && END <= BYTES - CHECKSUM);

/// The bytes of the list of a device.
pub fn encode(owner: &Owner, suspects: &Suspects) -> Vec<u8> {
    let mut draft = Draft::new(&KIND);
    draft.put(UUID, &owner.uuid);
    draft.put(SIZE, &owner.geometry.size.to_le_bytes());
    draft.put(
        COUNT,
        &u32::try_from(suspects.len()).expect("they have a bound").to_le_bytes(),
    );
    for (index, suspect) in suspects.iter().enumerate() {
        let at = PLACES + index * PLACE;
        draft.put(at, &suspect.range.start.to_le_bytes());
        draft.put(at + 8, &suspect.range.len.to_le_bytes());
    }
    draft.seal()
}

/// The list, from bytes that anybody may have written.
///
/// # Errors
/// Says why they are not this device's list: then everything is suspect.
pub fn decode(bytes: Unverified<'_>, owner: &Owner) -> Result<Suspects, Lost> {
    let table = bytes.verify(&KIND)?;
    if table.u128_bytes(UUID) != owner.uuid {
        return Err(Lost::OtherDevice);
    }
    if table.u64(SIZE) != owner.geometry.size {
        return Err(Lost::Other("size of the device"));
    }
    table.zero(COUNT + 4, 4)?;
    let count = table.u32(COUNT) as usize;
    if count > Suspects::MOST {
        return Err(Lost::Flawed(Flaw::Malformed("the number of places")));
    }
    let end = PLACES + count * PLACE;
    table.zero(end, BYTES - CHECKSUM - end)?;
    let (mut ranges, mut before) = (Vec::with_capacity(count), 0);
    for at in (PLACES..end).step_by(PLACE) {
        let (start, len) = (table.u64(at), table.u64(at + 8));
        let after = start.checked_add(len).filter(|&after| after <= owner.geometry.size);
        let aligned = start.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        match after {
            Some(after) if start >= before && len > 0 && aligned => {
                ranges.push(Range::new(start, len));
                before = after;
            }
            Some(_) | None => return Err(Lost::Flawed(Flaw::Malformed("a place"))),
        }
    }
    Ok(Suspects::of(ranges))
}
