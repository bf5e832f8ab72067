//! Active regions: nothing but two intact slots of this device says that a region is not active.

use crate::{OWNER, Random, dump, load, other_owner, resealed_table};
use twinblk::core::{Bits, Geometry};
use twinblk::table::checked::{Flaw, Unverified};
use twinblk::table::regions::{BYTES, KIND, Regions, pick};
use twinblk::table::{Lost, Owner};

const REGIONS_V1: &str = include_str!("regions-v1.hex");
const REGIONS_V1_HASH: &str = "76522ed02414cc24d2f8bfc96f447efc7d6ff95f44fc540f63fd050fe20c74e0";

const NO_POISON: [u8; BYTES] = [0; BYTES];

/// The first, the last, and some between.
fn active() -> Bits {
    let mut active = Bits::none(OWNER.geometry.regions());
    active.insert(0);
    active.insert_run(70, 75);
    active.insert(OWNER.geometry.regions() - 1);
    active
}

fn random_set(random: &mut Random, owner: &Owner) -> Bits {
    let mut bits = Bits::none(owner.geometry.regions());
    for _ in 0..random.below(200) {
        bits.insert(random.below(bits.len()));
    }
    bits
}

fn picked(even: &[u8], odd: &[u8]) -> Result<Regions, Lost> {
    pick([Unverified::new(even), Unverified::new(odd)], &NO_POISON, &OWNER)
}

fn decode(bytes: &[u8]) -> Result<Regions, Flaw> {
    Regions::decode(Unverified::new(bytes))
}

#[test]
fn the_regions_of_version_1_are_what_is_checked_in() {
    let bytes = Regions::encode(&OWNER, 0x1112_1314_1516_1718, &active());
    assert_eq!(
        dump(&bytes),
        dump(&load(REGIONS_V1, BYTES)),
        "the dump of what is written now:\n{}",
        dump(&bytes)
    );
    assert_eq!(blake3::hash(&bytes).to_string(), REGIONS_V1_HASH);
    let decoded = decode(&load(REGIONS_V1, BYTES)).expect("it is what is read");
    assert_eq!((decoded.sequence, decoded.active), (0x1112_1314_1516_1718, active()));
}

#[test]
fn what_was_encoded_is_decoded_for_any_size_of_device() {
    let mut random = Random(11);
    for _ in 0..500 {
        let size = 512 << random.below(46);
        let geometry = Geometry::new(size + random.below(size / 512 + 1) * 512, 512);
        let owner = Owner { geometry, ..OWNER };
        let (sequence, active) = (1 + random.below(u64::MAX - 1), random_set(&mut random, &owner));
        let bytes = Regions::encode(&owner, sequence, &active);
        let expected = Regions {
            uuid: owner.uuid,
            sequence,
            size: geometry.size,
            region: geometry.region(),
            active,
        };
        assert_eq!(decode(&bytes), Ok(expected), "{geometry:?}");
    }
}

#[test]
fn the_higher_sequence_decides() {
    let none = Bits::none(OWNER.geometry.regions());
    for (even, odd) in [(8, 9), (10, 9), (4, 7), (2, 1)] {
        let (older, newer) = (none.clone(), active());
        let (even_set, odd_set) = if even > odd { (&newer, &older) } else { (&older, &newer) };
        let result = picked(
            &Regions::encode(&OWNER, even, even_set),
            &Regions::encode(&OWNER, odd, odd_set),
        );
        let result = result.expect("both are intact");
        assert_eq!((result.sequence, result.active), (even.max(odd), newer));
    }
}

#[test]
fn a_flipped_bit_in_either_slot_is_never_believed() {
    let (even, odd) = (
        Regions::encode(&OWNER, 8, &active()),
        Regions::encode(&OWNER, 9, &active()),
    );
    for bit in 0..BYTES * 8 {
        let flip = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        };
        for result in [picked(&flip(&even), &odd), picked(&even, &flip(&odd))] {
            assert!(
                matches!(result, Err(Lost::Flawed(Flaw::Damaged | Flaw::Foreign))),
                "bit {bit}"
            );
        }
    }
}

#[test]
fn an_empty_truncated_newer_or_malformed_slot_is_never_believed() {
    let intact = [8, 9].map(|sequence| Regions::encode(&OWNER, sequence, &active()));
    let bad = [
        (vec![0; BYTES], Flaw::Empty),
        (intact[0][..BYTES - 1].to_vec(), Flaw::Truncated),
        (Vec::new(), Flaw::Truncated),
        (resealed_table(&KIND, &intact[0], |bytes| bytes[8] = 2), Flaw::Newer(2)),
        (
            resealed_table(&KIND, &intact[0], |bytes| bytes[56] = 1),
            Flaw::Malformed("reserved bytes are in use"),
        ),
        (
            resealed_table(&KIND, &intact[0], |bytes| bytes[32..40].fill(0)),
            Flaw::Malformed("the sequence number"),
        ),
        (
            resealed_table(&KIND, &intact[0], |bytes| bytes[48] = 3),
            Flaw::Malformed("the size of the device or of a region"),
        ),
        (
            resealed_table(&KIND, &intact[0], |bytes| bytes[4063] = 1),
            Flaw::Malformed("reserved bytes are in use"),
        ),
    ];
    for (bytes, flaw) in &bad {
        assert_eq!(picked(bytes, &intact[1]), Err(Lost::Flawed(*flaw)));
        assert_eq!(picked(&intact[0], bytes), Err(Lost::Flawed(*flaw)));
    }
    // As a slot would be left if one had never been written: even then the other may be an old one.
    assert_eq!(
        picked(&[0; BYTES], &Regions::encode(&OWNER, 1, &active())),
        Err(Lost::Flawed(Flaw::Empty))
    );
    assert_eq!(
        picked(&intact[1], &intact[0]),
        Err(Lost::Flawed(Flaw::Malformed("a sequence number in the wrong slot")))
    );
}

#[test]
fn another_device_or_another_size_is_never_believed() {
    let intact = Regions::encode(&OWNER, 9, &active());
    for (owner, why) in [
        (other_owner(|owner| owner.uuid[3] ^= 1), Lost::OtherDevice),
        (
            other_owner(|owner| owner.geometry.size += 4096),
            Lost::Other("size of the device"),
        ),
        (
            other_owner(|owner| owner.geometry.extent = 1 << 30),
            Lost::Other("size of a region"),
        ),
    ] {
        let foreign = Regions::encode(&owner, 8, &Bits::none(owner.geometry.regions()));
        assert_eq!(picked(&foreign, &intact), Err(why));
    }
}

#[test]
fn a_torn_slot_is_the_old_one_the_new_one_or_damaged() {
    let mut random = Random(12);
    for round in 0..300 {
        let old_set = random_set(&mut random, &OWNER);
        let new_set = random_set(&mut random, &OWNER);
        let other = Regions::encode(&OWNER, 9, &random_set(&mut random, &OWNER));
        let (old, new) = (
            Regions::encode(&OWNER, 8, &old_set),
            Regions::encode(&OWNER, 10, &new_set),
        );
        let mut torn = old.clone();
        let landed = random.below(256);
        for sector in (0..8).filter(|sector| landed >> sector & 1 != 0) {
            let range = sector * 512..(sector + 1) * 512;
            torn[range.clone()].copy_from_slice(&new[range]);
        }
        match picked(&torn, &other) {
            Ok(regions) if regions.sequence == 10 => assert!(torn == new && regions.active == new_set),
            Ok(regions) => assert!(torn == old && regions.sequence == 9, "round {round}"),
            Err(lost) => assert_eq!(lost, Lost::Flawed(Flaw::Damaged), "round {round}"),
        }
    }
}

#[test]
fn any_byte_of_the_poison_poisons() {
    let slots = [8, 9].map(|sequence| Regions::encode(&OWNER, sequence, &active()));
    let [even, odd] = slots.each_ref().map(|bytes| Unverified::new(bytes));
    for at in 0..BYTES {
        let mut poison = NO_POISON;
        poison[at] = 1;
        assert_eq!(pick([even, odd], &poison, &OWNER), Err(Lost::Poisoned));
    }
    assert_eq!(
        pick([even, odd], &NO_POISON[1..], &OWNER),
        Err(Lost::Flawed(Flaw::Truncated))
    );
}
