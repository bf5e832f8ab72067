//! What was on the blocks of a disk that were wiped when it was retired: a block of 4096 bytes, then the content of each
//! range, one after another.
//!
//! Format version 1; numbers are little-endian; bytes not listed are zero, and a table in which they are not is refused.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | header, see [`super::checked`]; magic `twinblkW` |
//! | 16 | 16 | uuid of the device |
//! | 32 | 1 | leg, 0 `a`, 1 `b` |
//! | 33 | 1 | 1 if all of it is wiped, 0 if some may be there yet, or again |
//! | 36 | 4 | number of ranges, 1 to 64 |
//! | 40 | 32 | BLAKE3 derive-key hash of the content of all ranges, context `twinblk 2026 retired content` |
//! | 72 | 32 | footprint of the leg when it was detached, as in the superblock, all zero where there is none |
//! | 128 | 1728 | identity of the disk, see [`super::superblock`] |
//! | 1856 | 1024 | ranges in ascending order, apart from each other: 8 bytes first byte, 8 bytes length, each a multiple of 512 |
//! | 4064 | 32 | checksum |
//! | 4096 | … | content of the first range, of the second, … |

use super::checked::{CHECKSUM, Draft, Flaw, HEADER, Kind, Unverified};
use super::superblock::{Footprint, IDENTITY, LegIdentity, put_footprint, put_identity, take_footprint, take_identity};
use crate::core::LegId;
use crate::core::geometry::SECTOR;

/// Bytes before the content.
pub const BYTES: usize = 4096;

/// Most ranges of one disk.
pub const MOST_RANGES: usize = 64;

/// Most bytes of one disk.
pub const MOST_CONTENT: u64 = 16 << 20;

/// How the block is told from everything else.
pub const KIND: Kind = Kind {
    magic: *b"twinblkW",
    context: "twinblk 2026 retired disk",
    version: 1,
    bytes: BYTES,
};

const CONTENT: &str = "twinblk 2026 retired content";

const UUID: usize = 16;
const LEG: usize = UUID + 16;
const WIPED: usize = LEG + 1;
const COUNT: usize = LEG + 4;
const HASH: usize = COUNT + 4;
const DETACHED: usize = HASH + 32;
const RESERVED: usize = DETACHED + 32;
const DISK: usize = 128;
const RANGES: usize = DISK + IDENTITY;
const RANGE: usize = 16;
const TAIL: usize = RANGES + MOST_RANGES * RANGE;

// The table in the module's documentation, held against the arithmetic.
const _: () = {
    assert!(UUID == HEADER && COUNT == 36 && HASH == 40 && DETACHED == 72 && RESERVED <= DISK);
    assert!(RANGES == 1856 && TAIL == 2880 && TAIL + CHECKSUM <= BYTES);
};

/// A range of a disk, and what was on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// First byte on the disk.
    pub start: u64,
    /// Its content; never empty.
    pub content: Vec<u8>,
}

impl Saved {
    /// The byte behind the range.
    pub fn end(&self) -> u64 {
        self.start + self.content.len() as u64
    }
}

/// A disk that was retired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retired {
    /// Uuid of the device that it was a leg of.
    pub uuid: [u8; 16],
    /// Which leg it was.
    pub leg: LegId,
    /// Whether all of it is wiped; else some may be there yet, or again.
    pub wiped: bool,
    /// What the leg was like when it was detached: what is saved is of no use once it has been a leg again.
    pub detached: Option<Footprint>,
    /// What it is known by.
    pub identity: LegIdentity,
    /// What was wiped, in ascending order.
    pub saved: Vec<Saved>,
}

impl Retired {
    /// The bytes of a file.
    ///
    /// # Panics
    /// If the ranges are not such as could be read again ([`Retired::check`]).
    pub fn encode(&self) -> Vec<u8> {
        if let Err(flaw) = self.check() {
            panic!("a retired disk that could not be read again: {flaw}");
        }
        let mut draft = Draft::new(&KIND);
        draft.put(UUID, &self.uuid);
        draft.put(
            LEG,
            &[match self.leg {
                LegId::A => 0,
                LegId::B => 1,
            }],
        );
        draft.put(WIPED, &[self.wiped.into()]);
        if let Some(footprint) = &self.detached {
            put_footprint(&mut draft, DETACHED, footprint);
        }
        let count = u32::try_from(self.saved.len()).expect("there are few ranges");
        draft.put(COUNT, &count.to_le_bytes());
        put_identity(&mut draft, DISK, &self.identity);
        for (index, saved) in self.saved.iter().enumerate() {
            let at = RANGES + index * RANGE;
            draft.put(at, &saved.start.to_le_bytes());
            draft.put(at + 8, &(saved.content.len() as u64).to_le_bytes());
        }
        let content: Vec<u8> = self.saved.iter().flat_map(|saved| &saved.content).copied().collect();
        draft.put(HASH, &hash(&content));
        let mut bytes = draft.seal();
        bytes.extend(content);
        bytes
    }

    /// A retired disk from the bytes of a file that anybody may have written.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Retired, Flaw> {
        let table = Unverified::new(bytes).verify(&KIND)?;
        table.zero(WIPED + 1, COUNT - WIPED - 1)?;
        table.zero(RESERVED, DISK - RESERVED)?;
        table.zero(TAIL, BYTES - CHECKSUM - TAIL)?;
        let leg = match table.u8(LEG) {
            0 => LegId::A,
            1 => LegId::B,
            _ => return Err(Flaw::Malformed("the leg")),
        };
        let count = table.u32(COUNT) as usize;
        if count > MOST_RANGES {
            return Err(Flaw::Malformed("the number of ranges"));
        }
        table.zero(RANGES + count * RANGE, (MOST_RANGES - count) * RANGE)?;
        let mut rest = &bytes[BYTES..];
        let is_whole = hash(rest) == table.bytes(HASH, 32);
        let mut saved = Vec::new();
        for at in (RANGES..).step_by(RANGE).take(count) {
            let (start, len) = (table.u64(at), table.u64(at + 8));
            if len > MOST_CONTENT || start.checked_add(len).is_none() {
                return Err(Flaw::Malformed("a range"));
            }
            let Some((content, behind)) = rest.split_at_checked(len as usize) else {
                return Err(Flaw::Truncated);
            };
            let content = content.to_vec();
            saved.push(Saved { start, content });
            rest = behind;
        }
        if !is_whole || !rest.is_empty() {
            return Err(Flaw::Damaged);
        }
        let retired = Retired {
            uuid: table.u128_bytes(UUID),
            leg,
            wiped: table.bool(WIPED)?,
            detached: take_footprint(table, DETACHED)?,
            identity: take_identity(table, DISK)?.ok_or(Flaw::Malformed("a disk without identity"))?,
            saved,
        };
        retired.check()?;
        Ok(retired)
    }

    /// Whether the values fit each other.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn check(&self) -> Result<(), Flaw> {
        let size = self.identity.size;
        let lens = self.saved.iter().map(|saved| saved.content.len() as u64);
        let is_good = |saved: &Saved| {
            let len = saved.content.len() as u64;
            len > 0 && len.is_multiple_of(SECTOR) && saved.start.is_multiple_of(SECTOR) && saved.end() <= size
        };
        let rules = [
            (
                (1..=MOST_RANGES).contains(&self.saved.len()) && lens.sum::<u64>() <= MOST_CONTENT,
                "the number of ranges, or their length",
            ),
            (self.saved.iter().all(is_good), "a range"),
            (
                self.saved.is_sorted_by(|one, next| one.end() <= next.start),
                "ranges that overlap",
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, what)) => Err(Flaw::Malformed(what)),
        }
    }
}

fn hash(content: &[u8]) -> [u8; 32] {
    blake3::derive_key(CONTENT, content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::superblock::example;

    fn retired() -> Retired {
        let identity = example().legs[1].clone().expect("it has two legs");
        let saved = |start, len, byte| Saved {
            start,
            content: vec![byte; len],
        };
        Retired {
            uuid: [3; 16],
            leg: LegId::B,
            wiped: true,
            detached: example().footprints[1],
            identity,
            saved: vec![saved(0, 4096, 1), saved(4096, 512, 2), saved((1 << 31) - 4096, 4096, 3)],
        }
    }

    #[test]
    fn what_was_saved_is_read_again() {
        assert_eq!(Retired::decode(&retired().encode()), Ok(retired()));
    }

    #[test]
    fn nothing_that_is_torn_or_damaged_is_put_back_on_a_disk() {
        let bytes = retired().encode();
        for at in (0..bytes.len()).step_by(37) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            assert!(Retired::decode(&bytes).is_err(), "byte {at}");
        }
        for len in [0, 100, BYTES, BYTES + 1, bytes.len() - 1] {
            assert!(Retired::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Retired::decode(&longer), Err(Flaw::Damaged));
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        type Change = fn(&mut Retired);
        let changes: [Change; 6] = [
            |it| it.saved.clear(),
            |it| it.saved[1].start = 2048,
            |it| it.saved.swap(0, 2),
            |it| it.saved[1].content.push(0),
            |it| it.saved[1].content.clear(),
            |it| it.saved[2].start += 512,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut retired = retired();
            change(&mut retired);
            assert!(matches!(retired.check(), Err(Flaw::Malformed(_))), "change {index}");
        }
    }
}
