//! Suspect places: nothing but an intact list of this device says that a place is not suspect.

use crate::{OWNER, Random, dump, load, other_owner, resealed_table};
use twinblk::core::{Range, Suspects};
use twinblk::table::checked::{Flaw, Unverified};
use twinblk::table::suspects::{BYTES, KIND, decode, encode};
use twinblk::table::{Lost, Owner};

const SUSPECTS_V1: &str = include_str!("suspects-v1.hex");
const SUSPECTS_V1_HASH: &str = "63809c6754321a346a29725e8b74b3eac4cfa60457a31c41eb299619b41d7ba4";

/// Where the places begin, and how many bytes one takes.
const PLACES: usize = 48;
const PLACE: usize = 16;

/// The first sector, the last, and some between.
fn example() -> Suspects {
    let size = OWNER.geometry.size;
    Suspects::of([
        Range::new(0, 512),
        Range::new(0x0102_0304_0000, 0x1_1000),
        Range::new(size - 512, 512),
    ])
}

fn decoded(bytes: &[u8]) -> Result<Suspects, Lost> {
    decode(Unverified::new(bytes), &OWNER)
}

fn malformed(change: impl FnOnce(&mut [u8])) -> Result<Suspects, Lost> {
    decoded(&resealed_table(&KIND, &encode(&OWNER, &example()), change))
}

fn put(bytes: &mut [u8], place: usize, start: u64, len: u64) {
    let at = PLACES + place * PLACE;
    bytes[at..at + 8].copy_from_slice(&start.to_le_bytes());
    bytes[at + 8..at + 16].copy_from_slice(&len.to_le_bytes());
}

#[test]
fn the_suspects_of_version_1_are_what_is_checked_in() {
    let bytes = encode(&OWNER, &example());
    assert_eq!(
        dump(&bytes),
        dump(&load(SUSPECTS_V1, BYTES)),
        "the dump of what is written now:\n{}",
        dump(&bytes)
    );
    assert_eq!(blake3::hash(&bytes).to_string(), SUSPECTS_V1_HASH);
    assert_eq!(decoded(&load(SUSPECTS_V1, BYTES)), Ok(example()));
}

#[test]
fn what_was_encoded_is_decoded_and_has_one_encoding() {
    let mut random = Random(41);
    for round in 0..500 {
        let mut suspects = Suspects::none();
        for _ in 0..random.below(2 * Suspects::MOST as u64) {
            let sectors = OWNER.geometry.size / 512;
            let start = random.below(sectors);
            let longest = 1 << random.below(20);
            let len = 1 + random.below((sectors - start).min(longest));
            let added = Suspects::of([Range::new(start * 512, len * 512)]);
            added.iter().for_each(|suspect| suspects.insert(*suspect));
        }
        let bytes = encode(&OWNER, &suspects);
        assert_eq!(bytes.len(), BYTES);
        assert_eq!(decoded(&bytes).as_ref(), Ok(&suspects), "round {round}");
    }
    assert_eq!(decoded(&encode(&OWNER, &Suspects::none())), Ok(Suspects::none()));
}

#[test]
fn every_single_flipped_bit_is_found() {
    let bytes = encode(&OWNER, &example());
    for bit in 0..BYTES * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(
            matches!(decoded(&bytes), Err(Lost::Flawed(Flaw::Damaged | Flaw::Foreign))),
            "bit {bit}"
        );
    }
}

#[test]
fn no_mixture_of_two_lists_is_taken_for_one() {
    let old = encode(&OWNER, &example());
    let new = encode(&OWNER, &Suspects::of((0..240).map(|i| Range::new(i << 30, 4096))));
    for torn_at in 0..=BYTES {
        let mut torn = old.clone();
        torn[..torn_at].copy_from_slice(&new[..torn_at]);
        let whole = torn == old || torn == new;
        assert_eq!(decoded(&torn).is_ok(), whole, "torn at {torn_at}");
        assert!(whole || decoded(&torn) == Err(Lost::Flawed(Flaw::Damaged)));
    }
}

#[test]
fn a_list_that_is_short_empty_foreign_or_newer_is_refused() {
    let bytes = encode(&OWNER, &example());
    for len in [0, 1, PLACES, BYTES - 1] {
        assert_eq!(
            decoded(&bytes[..len]),
            Err(Lost::Flawed(Flaw::Truncated)),
            "{len} bytes"
        );
    }
    assert_eq!(decoded(&[0; BYTES]), Err(Lost::Flawed(Flaw::Empty)));
    let mut foreign = bytes.clone();
    foreign[..8].copy_from_slice(b"twinblkR");
    assert_eq!(decoded(&foreign), Err(Lost::Flawed(Flaw::Foreign)));
    assert_eq!(malformed(|bytes| bytes[8] = 2), Err(Lost::Flawed(Flaw::Newer(2))));
}

#[test]
fn a_list_of_another_device_is_refused() {
    let of = |owner: &Owner| decoded(&encode(owner, &Suspects::of([Range::new(0, 4096)])));
    assert_eq!(of(&other_owner(|owner| owner.uuid[15] ^= 1)), Err(Lost::OtherDevice));
    assert_eq!(
        of(&other_owner(|owner| owner.geometry.size += 4096)),
        Err(Lost::Other("size of the device"))
    );
}

#[test]
fn places_that_make_no_sense_are_refused() {
    let size = OWNER.geometry.size;
    let impossible = Err(Lost::Flawed(Flaw::Malformed("a place")));
    for (start, len) in [
        (0x1000, 0),
        (0x1000, 511),
        (0x1001, 512),
        (256, 512),
        (size, 512),
        (size - 512, 1024),
        (u64::MAX - 511, 1024),
        (0x1000, u64::MAX - 511),
    ] {
        assert_eq!(
            malformed(|bytes| put(bytes, 1, start, len)),
            impossible,
            "{start} {len}"
        );
    }
    // Out of order, and overlapping.
    assert_eq!(malformed(|bytes| put(bytes, 0, 0x0102_0304_2000, 512)), impossible);
    assert_eq!(malformed(|bytes| put(bytes, 0, 0, 0x0102_0304_0200)), impossible);
}

#[test]
fn a_count_that_is_not_that_of_the_places_is_refused() {
    let count = 40;
    let number = Err(Lost::Flawed(Flaw::Malformed("the number of places")));
    assert_eq!(malformed(|bytes| bytes[count] = 241), number);
    assert_eq!(malformed(|bytes| bytes[count + 3] = 1), number);
    for wrong in [0, 1, 2, 4, 240] {
        assert!(
            matches!(
                malformed(|bytes| bytes[count] = wrong),
                Err(Lost::Flawed(Flaw::Malformed(_)))
            ),
            "{wrong} places"
        );
    }
}

#[test]
fn no_byte_that_means_nothing_is_accepted() {
    let mut random = Random(42);
    let mut accepted = 0;
    for offset in 16..BYTES - 32 {
        let value = random.next() as u8;
        let bytes = resealed_table(&KIND, &encode(&OWNER, &example()), |bytes| bytes[offset] = value);
        if let Ok(suspects) = decoded(&bytes) {
            accepted += 1;
            assert_eq!(encode(&OWNER, &suspects), bytes, "offset {offset}");
        }
    }
    assert!(accepted > 0, "the test must reach values that make sense");
}
