//! One block as it is on the disk: who wrote it there, what was known to be durable then, and a filler.
//!
//! All of the block is a function of the header, so a block that is torn anywhere is recognised. Little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | [`MAGIC`] |
//! | 8..16 | seed of the run |
//! | 16..24 | number of the block on the disk |
//! | 24..28 | writer |
//! | 28..32 | number of the write, from 1 for each writer |
//! | 32..96 | for each writer: all its writes up to this one were durable when this write was submitted |
//! | 96..160 | for each writer: its forced writes up to this one were durable when this write was submitted |
//! | 160..168 | checksum of the above, and seed of the filler |
//! | 168.. | filler |

/// The most writers of a run.
pub const MAX_WRITERS: usize = 16;

const MAGIC: u64 = u64::from_le_bytes(*b"twinload");
const CHECKED: usize = 160;
const HEADER: usize = 168;

/// A number for each writer.
pub type PerWriter = [u32; MAX_WRITERS];

/// What was known to be durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Of each writer, all writes up to this one.
    pub all: PerWriter,
    /// Of each writer, the forced writes up to this one.
    pub forced: PerWriter,
}

impl Known {
    /// Take the better of both.
    pub fn merge(&mut self, other: &Known) {
        for writer in 0..MAX_WRITERS {
            self.all[writer] = self.all[writer].max(other.all[writer]);
            self.forced[writer] = self.forced[writer].max(other.forced[writer]);
        }
    }
}

/// A block that a writer put on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Whose run.
    pub seed: u64,
    /// The block's number on the disk.
    pub place: u64,
    /// Who wrote it.
    pub writer: u16,
    /// Which of its writes.
    pub number: u32,
    /// What was durable then.
    pub known: Known,
}

/// What a block turns out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// Zeroes.
    Untouched,
    /// Whole.
    Written(Stamp),
    /// Anything else: torn or foreign. Says how far it is right.
    Damaged(&'static str),
}

/// The next number of a sequence that visits all of them, mixed (Steele, Lea, Flood: SplitMix64).
pub const fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Fill a block.
pub fn write(block: &mut [u8], stamp: &Stamp) {
    block[0..8].copy_from_slice(&MAGIC.to_le_bytes());
    block[8..16].copy_from_slice(&stamp.seed.to_le_bytes());
    block[16..24].copy_from_slice(&stamp.place.to_le_bytes());
    block[24..28].copy_from_slice(&u32::from(stamp.writer).to_le_bytes());
    block[28..32].copy_from_slice(&stamp.number.to_le_bytes());
    for (slot, number) in block[32..CHECKED]
        .chunks_exact_mut(4)
        .zip(stamp.known.all.iter().chain(&stamp.known.forced))
    {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    let sum = checksum(&block[..CHECKED]);
    block[CHECKED..HEADER].copy_from_slice(&sum.to_le_bytes());
    let mut state = sum;
    for word in block[HEADER..].chunks_exact_mut(8) {
        word.copy_from_slice(&splitmix(&mut state).to_le_bytes());
    }
}

/// Look at a block.
pub fn read(block: &[u8]) -> Seen {
    if block.iter().all(|byte| *byte == 0) {
        return Seen::Untouched;
    }
    if word(block, 0) != MAGIC {
        return Seen::Damaged("does not begin like a block of a load");
    }
    let sum = word(block, CHECKED);
    if sum != checksum(&block[..CHECKED]) {
        return Seen::Damaged("its header is torn");
    }
    let mut state = sum;
    if !(HEADER..block.len())
        .step_by(8)
        .all(|at| word(block, at) == splitmix(&mut state))
    {
        return Seen::Damaged("is torn after its header");
    }
    let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| block[at + byte]));
    let writer = number(24);
    match u16::try_from(writer) {
        Ok(writer) if usize::from(writer) < MAX_WRITERS => Seen::Written(Stamp {
            seed: word(block, 8),
            place: word(block, 16),
            writer,
            number: number(28),
            known: Known {
                all: std::array::from_fn(|writer| number(32 + 4 * writer)),
                forced: std::array::from_fn(|writer| number(96 + 4 * writer)),
            },
        }),
        _ => Seen::Damaged("names a writer that cannot be"),
    }
}

fn word(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|byte| block[at + byte]))
}

fn checksum(bytes: &[u8]) -> u64 {
    (0..bytes.len()).step_by(8).fold(0, |sum, at| {
        let mut state = sum ^ word(bytes, at);
        splitmix(&mut state)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        let mut known = Known::default();
        known.all[3] = 17;
        known.forced[MAX_WRITERS - 1] = u32::MAX;
        Stamp {
            seed: 7,
            place: 99,
            writer: 3,
            number: 18,
            known,
        }
    }

    #[test]
    fn a_block_says_what_was_written_into_it() {
        for size in [512, 4096] {
            let mut block = vec![0xff; size];
            write(&mut block, &stamp());
            assert_eq!(read(&block), Seen::Written(stamp()));
            assert_eq!(read(&vec![0; size]), Seen::Untouched);
        }
    }

    #[test]
    fn a_change_of_any_bit_is_seen() {
        let mut block = vec![0; 512];
        write(&mut block, &stamp());
        for bit in 0..512 * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(read(&block), Seen::Damaged(_)), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_mixture_of_two_versions_is_seen() {
        let (mut old, mut new) = (vec![0; 4096], vec![0; 4096]);
        write(&mut old, &stamp());
        write(&mut new, &Stamp { number: 19, ..stamp() });
        for at in (8..4096).step_by(8) {
            if new[..at] == old[..at] || new[at..] == old[at..] {
                continue;
            }
            let mixed: Vec<u8> = new[..at].iter().chain(&old[at..]).copied().collect();
            assert!(matches!(read(&mixed), Seen::Damaged(_)), "at {at}");
        }
    }
}
