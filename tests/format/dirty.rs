//! The dirty map: a block that is not this one of this device, whole, says nothing of its grains.

use crate::{OWNER, Random, dump, load, other_owner, resealed_for, resealed_table};
use twinblk::core::Geometry;
use twinblk::table::checked::{Flaw, Unverified};
use twinblk::table::dirty::{
    BLOCK_KIND, BYTES, GRAINS, HEADER_KIND, WORDS, blocks, check_header, decode_block, encode_block, encode_header,
    words_of,
};
use twinblk::table::{Lost, Owner};

const HEADER_V1: &str = include_str!("dirty-header-v1.hex");
const HEADER_V1_HASH: &str = "8f3c13763e7732f6db3986398b8f00caac2b3f8a7f90b79fdf05370c256e66c3";
const BLOCK_V1: &str = include_str!("dirty-block-v1.hex");
const BLOCK_V1_HASH: &str = "2cdfd494e801f86089e35227e6e5d2f483e418531dc271e4ce55ef689ea747b6";

/// Of a block in the middle.
fn example() -> Vec<u64> {
    let mut words = vec![0; WORDS];
    words[0] = 0x0123_4567_89ab_cdef;
    words[WORDS - 1] = 1 << 63;
    words
}

fn decode(bytes: &[u8], index: u64) -> Result<Vec<u64>, Flaw> {
    decode_block(Unverified::new(bytes), &OWNER, index)
}

fn header(bytes: &[u8]) -> Result<(), Lost> {
    check_header(Unverified::new(bytes), &OWNER)
}

#[test]
fn the_dirty_map_of_version_1_is_what_is_checked_in() {
    for (bytes, file, hash) in [
        (encode_header(&OWNER), HEADER_V1, HEADER_V1_HASH),
        (encode_block(&OWNER, 3, &example()), BLOCK_V1, BLOCK_V1_HASH),
    ] {
        assert_eq!(
            dump(&bytes),
            dump(&load(file, BYTES)),
            "the dump of what is written now:\n{}",
            dump(&bytes)
        );
        assert_eq!(blake3::hash(&bytes).to_string(), hash);
    }
    assert_eq!(header(&load(HEADER_V1, BYTES)), Ok(()));
    assert_eq!(decode(&load(BLOCK_V1, BYTES), 3), Ok(example()));
}

#[test]
fn what_was_encoded_is_decoded_for_any_size_of_device() {
    let mut random = Random(21);
    for _ in 0..300 {
        let most = 2 << random.below(32);
        let sectors = 1 + random.below(most);
        let geometry = Geometry {
            grain: 4096 << random.below(6),
            ..Geometry::new(sectors * 512, 512)
        };
        let owner = Owner { geometry, ..OWNER };
        let index = random.below(blocks(&geometry));
        let mut words: Vec<u64> = (0..words_of(&geometry, index)).map(|_| random.next()).collect();
        let last = geometry.grains() - index * GRAINS;
        if last < GRAINS && !last.is_multiple_of(64) {
            *words.last_mut().expect("a block has a grain") &= (1 << (last % 64)) - 1;
        }
        let bytes = encode_block(&owner, index, &words);
        assert_eq!(bytes.len(), BYTES);
        assert_eq!(decode_block(Unverified::new(&bytes), &owner, index), Ok(words));
        assert_eq!(check_header(Unverified::new(&encode_header(&owner)), &owner), Ok(()));
    }
}

#[test]
fn the_blocks_of_a_device_have_exactly_its_grains() {
    for (grains, expected) in [
        (1, vec![1]),
        (64, vec![1]),
        (65, vec![2]),
        (GRAINS, vec![WORDS]),
        (GRAINS + 1, vec![WORDS, 1]),
        (3 * GRAINS, vec![WORDS; 3]),
    ] {
        let geometry = Geometry::new(grains * u64::from(Geometry::GRAIN), 512);
        let found: Vec<usize> = (0..blocks(&geometry)).map(|index| words_of(&geometry, index)).collect();
        assert_eq!(found, expected, "{grains} grains");
    }
}

#[test]
fn every_single_flipped_bit_is_found() {
    let tables = [encode_header(&OWNER), encode_block(&OWNER, 3, &example())];
    for bit in 0..BYTES * 8 {
        let [header_flipped, block_flipped] = tables.each_ref().map(|bytes| {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        assert!(
            matches!(
                header(&header_flipped),
                Err(Lost::Flawed(Flaw::Damaged | Flaw::Foreign))
            ),
            "bit {bit}"
        );
        assert!(
            matches!(decode(&block_flipped, 3), Err(Flaw::Damaged | Flaw::Foreign)),
            "bit {bit}"
        );
    }
}

#[test]
fn a_block_of_another_place_or_device_or_version_is_refused() {
    let bytes = encode_block(&OWNER, 3, &example());
    assert_eq!(decode(&bytes, 2), Err(Flaw::Malformed("it belongs to another place")));
    let other = other_owner(|owner| owner.uuid[3] ^= 1);
    assert_eq!(decode(&encode_block(&other, 3, &example()), 3), Err(Flaw::Damaged));
    assert_eq!(decode(&bytes[..BYTES - 1], 3), Err(Flaw::Truncated));
    assert_eq!(decode(&[0; BYTES], 3), Err(Flaw::Empty));
    assert_eq!(decode(&encode_header(&OWNER), 3), Err(Flaw::Foreign));
    let newer = resealed_for(&BLOCK_KIND, &bytes, &OWNER.uuid, |bytes| bytes[8] = 2);
    assert_eq!(decode(&newer, 3), Err(Flaw::Newer(2)));
    let reserved = resealed_for(&BLOCK_KIND, &bytes, &OWNER.uuid, |bytes| bytes[24] = 1);
    assert_eq!(decode(&reserved, 3), Err(Flaw::Malformed("reserved bytes are in use")));
}

#[test]
fn a_grain_behind_the_end_of_the_device_is_refused() {
    let last = blocks(&OWNER.geometry) - 1;
    let words = words_of(&OWNER.geometry, last);
    let grains = OWNER.geometry.grains() - last * GRAINS;
    assert!(
        !grains.is_multiple_of(64),
        "the example must have a last word that is not full"
    );
    let intact = encode_block(&OWNER, last, &vec![0; words]);
    let with = |grain: u64| {
        let bytes = resealed_for(&BLOCK_KIND, &intact, &OWNER.uuid, |bytes| {
            bytes[32 + (grain / 8) as usize] |= 1 << (grain % 8);
        });
        decode(&bytes, last)
    };
    assert!(with(grains - 1).is_ok());
    for grain in grains..GRAINS {
        assert!(matches!(with(grain), Err(Flaw::Malformed(_))), "grain {grain}");
    }
}

#[test]
fn a_header_of_another_device_or_size_or_grain_or_version_is_refused() {
    for (owner, why) in [
        (other_owner(|owner| owner.uuid[3] ^= 1), Lost::OtherDevice),
        (
            other_owner(|owner| owner.geometry.size += 4096),
            Lost::Other("size of the device"),
        ),
        (
            other_owner(|owner| owner.geometry.grain *= 2),
            Lost::Other("size of a grain"),
        ),
    ] {
        assert_eq!(header(&encode_header(&owner)), Err(why));
    }
    let intact = encode_header(&OWNER);
    assert_eq!(header(&intact[..4095]), Err(Lost::Flawed(Flaw::Truncated)));
    assert_eq!(header(&[0; BYTES]), Err(Lost::Flawed(Flaw::Empty)));
    assert_eq!(
        header(&resealed_table(&HEADER_KIND, &intact, |bytes| bytes[8] = 2)),
        Err(Lost::Flawed(Flaw::Newer(2)))
    );
    for at in 44..BYTES - 32 {
        let reserved = resealed_table(&HEADER_KIND, &intact, |bytes| bytes[at] = 1);
        assert!(
            matches!(header(&reserved), Err(Lost::Flawed(Flaw::Malformed(_)))),
            "byte {at}"
        );
    }
}

#[test]
fn a_torn_block_is_the_old_one_the_new_one_or_damaged() {
    let mut random = Random(22);
    for round in 0..300 {
        let [old, new] = [(), ()].map(|()| (0..WORDS).map(|_| random.next()).collect::<Vec<u64>>());
        let (old_bytes, new_bytes) = (encode_block(&OWNER, 3, &old), encode_block(&OWNER, 3, &new));
        let mut torn = old_bytes.clone();
        let landed = random.below(256);
        for sector in (0..8).filter(|sector| landed >> sector & 1 != 0) {
            let range = sector * 512..(sector + 1) * 512;
            torn[range.clone()].copy_from_slice(&new_bytes[range]);
        }
        match decode(&torn, 3) {
            Ok(words) => assert!(words == old && torn == old_bytes || words == new && torn == new_bytes),
            Err(flaw) => assert_eq!(flaw, Flaw::Damaged, "round {round}"),
        }
    }
}
