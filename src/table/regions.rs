//! Active regions: where a write may have reached one leg and not the other, in one block of 4096 bytes.
//!
//! The block says the whole set, so that no mark is ever in force without the ones before it, and two slots of it are
//! written in turn: the one with the odd sequence number is slot 1. [`pick`] says which one decides.
//!
//! **Doubt.** A mark that is lost is a difference between the legs that nobody looks for. So unless both slots are
//! intact nothing is believed: a damaged one may have been the newer one, and acknowledged. Neither is an empty one:
//! both are written before the device has a name. A later block of the file is the poison: when marks cannot be written
//! any more it is filled, which says "everything is active" without a word from either slot.
//!
//! Format version 1; numbers are little-endian; bytes not listed are zero, and a table in which they are not is
//! refused.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | header, see [`super::checked`]; magic `twinblkR` |
//! | 16 | 16 | uuid of the device |
//! | 32 | 8 | sequence number, from 1 |
//! | 40 | 8 | size of the device in bytes |
//! | 48 | 8 | bytes of a region |
//! | 64 | 4000 | region `n` is bit `n % 8` (counted from the lowest) of byte `n / 8`: 1 active |
//! | 4064 | 32 | checksum |
//!
//! The poison has no format: any byte of its block that is not zero poisons.

use super::checked::{CHECKSUM, Draft, Flaw, HEADER, Kind, Unverified};
use super::lost::{Lost, Owner};
use super::words;
use crate::core::{Bits, Geometry};

/// Bytes of a slot.
pub const BYTES: usize = 4096;

/// How a slot is told from everything else.
pub const KIND: Kind = Kind {
    magic: *b"twinblkR",
    context: "twinblk 2026 active regions",
    version: 1,
    bytes: BYTES,
};

const UUID: usize = 16;
const SEQUENCE: usize = UUID + 16;
const SIZE: usize = SEQUENCE + 8;
const REGION: usize = SIZE + 8;
const RESERVED: usize = REGION + 8;
const BITS: usize = RESERVED + 8;

// The table in the module's documentation, held against the arithmetic.
const _: () = {
    assert!(UUID == HEADER && SEQUENCE == 32 && SIZE == 40 && REGION == 48 && BITS == 64);
    assert!(BITS + CHECKSUM + Geometry::MOST_REGIONS as usize / 8 == BYTES);
    assert!(Geometry::MOST_REGIONS.is_multiple_of(64));
};

/// The set of active regions, as written once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    /// Uuid of the device.
    pub uuid: [u8; 16],
    /// Higher than that of any set written before.
    pub sequence: u64,
    /// Size of the device in bytes.
    pub size: u64,
    /// Bytes of a region.
    pub region: u64,
    /// Which are active.
    pub active: Bits,
}

impl Regions {
    /// The bytes of a slot that says that `active` are active.
    ///
    /// # Panics
    /// If the set is not one of the owner's regions, or the sequence number is 0.
    pub fn encode(owner: &Owner, sequence: u64, active: &Bits) -> Vec<u8> {
        let Owner { uuid, geometry } = owner;
        assert_eq!(active.len(), geometry.regions(), "marks of another device");
        assert!(sequence > 0, "sequence numbers begin with 1");
        let mut draft = Draft::new(&KIND);
        draft.put(UUID, uuid);
        draft.put(SEQUENCE, &sequence.to_le_bytes());
        draft.put(SIZE, &geometry.size.to_le_bytes());
        draft.put(REGION, &geometry.region().to_le_bytes());
        draft.put(BITS, &words::to_bytes(active.words()));
        draft.seal()
    }

    /// A set from bytes that anybody may have written.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn decode(bytes: Unverified<'_>) -> Result<Regions, Flaw> {
        let table = bytes.verify(&KIND)?;
        table.zero(RESERVED, BITS - RESERVED)?;
        let (size, region) = (table.u64(SIZE), table.u64(REGION));
        if size == 0 || !region.is_power_of_two() || size.div_ceil(region) > Geometry::MOST_REGIONS {
            return Err(Flaw::Malformed("the size of the device or of a region"));
        }
        let sequence = table.u64(SEQUENCE);
        if sequence == 0 {
            return Err(Flaw::Malformed("the sequence number"));
        }
        let regions = size.div_ceil(region);
        let used = regions.div_ceil(64) as usize * 8;
        table.zero(BITS + used, BYTES - CHECKSUM - BITS - used)?;
        let active = Bits::from_words(regions, words::from_bytes(table.bytes(BITS, used)))
            .ok_or(Flaw::Malformed("a region behind the end of the device"))?;
        Ok(Regions {
            uuid: table.u128_bytes(UUID),
            sequence,
            size,
            region,
            active,
        })
    }
}

/// The slot for a sequence number.
pub const fn slot_of(sequence: u64) -> usize {
    (sequence & 1) as usize
}

/// The set in force, of two slots and the poison's block as they were read.
///
/// # Errors
/// Says why it is not known: then any region may be active.
pub fn pick(slots: [Unverified<'_>; 2], poison: &[u8], owner: &Owner) -> Result<Regions, Lost> {
    if poison.len() < BYTES {
        return Err(Flaw::Truncated.into());
    }
    if poison[..BYTES].iter().any(|&byte| byte != 0) {
        return Err(Lost::Poisoned);
    }
    let [first, second] = slots.map(Regions::decode);
    let slots = [first?, second?];
    for (slot, regions) in slots.iter().enumerate() {
        if regions.uuid != owner.uuid {
            return Err(Lost::OtherDevice);
        }
        if regions.size != owner.geometry.size {
            return Err(Lost::Other("size of the device"));
        }
        if regions.region != owner.geometry.region() {
            return Err(Lost::Other("size of a region"));
        }
        if slot_of(regions.sequence) != slot {
            return Err(Flaw::Malformed("a sequence number in the wrong slot").into());
        }
    }
    // One is odd and the other even, so they are never equal.
    let [even, odd] = slots;
    Ok(if even.sequence > odd.sequence { even } else { odd })
}
