//! The signature table of a leg: for each extent the hash of what the leg holds, where it comes from and how old it is.
//!
//! The file is a header and then an entry for each extent. It is sparse and mapped into memory: the kernel writes its
//! pages when it likes, and half of one if the power fails. So each entry is checked by itself, and bound to the
//! device, the leg and its place: a page that lands elsewhere, or in another device's table, says nothing. An entry
//! that is all zero, or does not verify, says that nothing is known of its extent, which is always true.
//!
//! Format version 1; numbers are little-endian; bytes not listed are zero, and a table in which they are not is
//! refused.
//!
//! The header:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | header, see [`super::checked`]; magic `twinblkG` |
//! | 16 | 16 | uuid of the device |
//! | 32 | 1 | leg, 0 `a`, 1 `b` |
//! | 40 | 8 | size of the device in bytes |
//! | 48 | 4 | bytes of an extent |
//! | 4064 | 32 | checksum |
//!
//! The entry of extent `i`, at byte `4096 + 64 · i` of the file:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 32 | BLAKE3 chaining value of the extent, an aligned subtree of the device; of a device of one extent, the hash itself |
//! | 32 | 8 | generation that it is of |
//! | 40 | 1 | source, 1 payload, 2 both legs, 3 this leg |
//! | 48 | 16 | first half of the keyed BLAKE3 hash of `i` (8 bytes) and the 48 bytes before |
//!
//! The key is derived, in a context of its own, from the uuid and the leg (one byte). So an entry is checked by hashing
//! a single block. Chaining values know nothing of the size of the device and the root is none, which is why a table of
//! another size is refused as a whole.

use super::checked::{CHECKSUM, Draft, HEADER, Kind, Unverified};
use super::lost::{Lost, Owner};
use crate::core::{Geometry, LegId, Source};

/// Bytes of the header.
pub const BYTES: usize = 4096;
/// Bytes of an entry.
pub const ENTRY: usize = 64;

/// How the header is told from everything else.
pub const KIND: Kind = Kind {
    magic: *b"twinblkG",
    context: "twinblk 2026 signature table, header",
    version: 1,
    bytes: BYTES,
};

/// From which the key of the entries' checksums is derived.
const ENTRY_CONTEXT: &str = "twinblk 2026 signature table, entry";

const UUID: usize = 16;
const LEG: usize = UUID + 16;
const SIZE: usize = LEG + 8;
const EXTENT: usize = SIZE + 8;
const RESERVED: usize = EXTENT + 4;

const GENERATION: usize = 32;
const SOURCE: usize = 40;
const SUM: usize = 48;

// The tables in the module's documentation, held against the arithmetic; and 64 MiB of entries for a TiB.
const _: () = {
    assert!(UUID == HEADER && LEG == 32 && SIZE == 40 && EXTENT == 48);
    assert!(SUM + 16 == ENTRY && BYTES.is_multiple_of(ENTRY));
    assert!((1u64 << 40) / Geometry::EXTENT as u64 * ENTRY as u64 == 64 << 20);
};

/// What is known of an extent on a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Chaining value of the extent; of a device of one extent, its hash.
    pub value: [u8; 32],
    /// Newest generation that it covers.
    pub generation: u64,
    /// Where it comes from.
    pub source: Source,
}

/// Bytes of the file with the table of a device.
pub const fn file_bytes(geometry: &Geometry) -> u64 {
    BYTES as u64 + geometry.extents() * ENTRY as u64
}

/// Where in the file the entry of `extent` is.
pub const fn entry_at(extent: u64) -> u64 {
    BYTES as u64 + extent * ENTRY as u64
}

/// The bytes of the header.
pub fn encode_header(owner: &Owner, leg: LegId) -> Vec<u8> {
    let mut draft = Draft::new(&KIND);
    draft.put(UUID, &owner.uuid);
    draft.put(LEG, &[code(leg)]);
    draft.put(SIZE, &owner.geometry.size.to_le_bytes());
    draft.put(EXTENT, &owner.geometry.extent.to_le_bytes());
    draft.seal()
}

/// Check that bytes are the header of this leg's table.
///
/// # Errors
/// Says why they are not: then no signature is known.
pub fn check_header(bytes: Unverified<'_>, owner: &Owner, leg: LegId) -> Result<(), Lost> {
    let table = bytes.verify(&KIND)?;
    table.zero(LEG + 1, SIZE - LEG - 1)?;
    table.zero(RESERVED, BYTES - CHECKSUM - RESERVED)?;
    if table.u128_bytes(UUID) != owner.uuid {
        return Err(Lost::OtherDevice);
    }
    if table.u8(LEG) != code(leg) {
        return Err(Lost::Other("leg"));
    }
    if table.u64(SIZE) != owner.geometry.size {
        return Err(Lost::Other("size of the device"));
    }
    if table.u32(EXTENT) != owner.geometry.extent {
        return Err(Lost::Other("size of an extent"));
    }
    Ok(())
}

/// Binds the entries of one table to it.
#[derive(Clone, Copy)]
pub struct Seal([u8; 32]);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

impl Seal {
    /// For the table of a leg.
    pub fn new(uuid: &[u8; 16], leg: LegId) -> Seal {
        let mut whose = [0; 17];
        whose[..16].copy_from_slice(uuid);
        whose[16] = code(leg);
        Seal(blake3::derive_key(ENTRY_CONTEXT, &whose))
    }

    /// The bytes of the entry of `extent`.
    pub fn encode(&self, extent: u64, entry: &Entry) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..GENERATION].copy_from_slice(&entry.value);
        bytes[GENERATION..SOURCE].copy_from_slice(&entry.generation.to_le_bytes());
        bytes[SOURCE] = match entry.source {
            Source::Payload => 1,
            Source::Both => 2,
            Source::One => 3,
        };
        let sum = self.sum(extent, &bytes);
        bytes[SUM..].copy_from_slice(&sum);
        bytes
    }

    /// The entry of `extent`, from bytes that anybody may have written. `None`: nothing is known of the extent.
    pub fn decode(&self, extent: u64, bytes: &[u8; ENTRY]) -> Option<Entry> {
        let source = match bytes[SOURCE] {
            1 => Source::Payload,
            2 => Source::Both,
            3 => Source::One,
            // Also that of an entry which was never written.
            _ => return None,
        };
        let is_intact = bytes[SOURCE + 1..SUM].iter().all(|&byte| byte == 0) && self.sum(extent, bytes) == bytes[SUM..];
        let mut generation = [0; 8];
        generation.copy_from_slice(&bytes[GENERATION..SOURCE]);
        let mut value = [0; 32];
        value.copy_from_slice(&bytes[..GENERATION]);
        is_intact.then_some(Entry {
            value,
            generation: u64::from_le_bytes(generation),
            source,
        })
    }

    fn sum(&self, extent: u64, bytes: &[u8; ENTRY]) -> [u8; 16] {
        let mut placed = [0; 8 + SUM];
        placed[..8].copy_from_slice(&extent.to_le_bytes());
        placed[8..].copy_from_slice(&bytes[..SUM]);
        let mut sum = [0; 16];
        sum.copy_from_slice(&blake3::keyed_hash(&self.0, &placed).as_bytes()[..16]);
        sum
    }
}

const fn code(leg: LegId) -> u8 {
    match leg {
        LegId::A => 0,
        LegId::B => 1,
    }
}
