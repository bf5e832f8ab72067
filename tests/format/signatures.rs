//! Signature tables: an entry is one of this place, leg and device, whole, or it says nothing.

use crate::{OWNER, Random, dump, load, other_owner, resealed_table};
use twinblk::core::{LegId, Source};
use twinblk::table::Lost;
use twinblk::table::checked::{Flaw, Unverified};
use twinblk::table::signatures::{BYTES, ENTRY, Entry, KIND, Seal, check_header, encode_header};

const HEADER_V1: &str = include_str!("signatures-header-v1.hex");
const HEADER_V1_HASH: &str = "d49a34be1ba34b18e6457b45be68df2768e9c1f7c8803030be66fccb4f2fd2c5";
const ENTRIES_V1: &str = include_str!("signatures-entries-v1.hex");
const ENTRIES_V1_HASH: &str = "2f17888db053385b4f9439b35100ca02f68fae31f4857ab96581d6449c2610e8";

fn seal() -> Seal {
    Seal::new(&OWNER.uuid, LegId::B)
}

/// One entry of each source, and the extents they are of.
fn examples() -> [(u64, Entry); 3] {
    [
        (0_u64, Source::Payload),
        (5, Source::Both),
        (0x0102_0304_0506, Source::One),
    ]
    .map(|(extent, source)| {
        let entry = Entry {
            value: *blake3::hash(&extent.to_le_bytes()).as_bytes(),
            generation: 0x1112_1314_1516_1718 + extent,
            source,
        };
        (extent, entry)
    })
}

fn header(bytes: &[u8]) -> Result<(), Lost> {
    check_header(Unverified::new(bytes), &OWNER, LegId::B)
}

#[test]
fn the_signature_table_of_version_1_is_what_is_checked_in() {
    let entries: Vec<u8> = examples()
        .iter()
        .flat_map(|(extent, entry)| seal().encode(*extent, entry))
        .collect();
    for (bytes, file, hash) in [
        (encode_header(&OWNER, LegId::B), HEADER_V1, HEADER_V1_HASH),
        (entries, ENTRIES_V1, ENTRIES_V1_HASH),
    ] {
        assert_eq!(
            dump(&bytes),
            dump(&load(file, bytes.len())),
            "the dump of what is written now:\n{}",
            dump(&bytes)
        );
        assert_eq!(blake3::hash(&bytes).to_string(), hash);
    }
    assert_eq!(header(&load(HEADER_V1, BYTES)), Ok(()));
    let read = load(ENTRIES_V1, 3 * ENTRY);
    let (read, _) = read.as_chunks::<ENTRY>();
    for ((extent, entry), bytes) in examples().iter().zip(read) {
        assert_eq!(seal().decode(*extent, bytes), Some(*entry));
    }
}

#[test]
fn what_was_encoded_is_decoded() {
    let mut random = Random(31);
    for _ in 0..1000 {
        let mut value = [0; 32];
        value.fill_with(|| random.next() as u8);
        let entry = Entry {
            value,
            generation: random.next(),
            source: random.pick(&[Source::Payload, Source::Both, Source::One]),
        };
        let extent = random.next();
        assert_eq!(seal().decode(extent, &seal().encode(extent, &entry)), Some(entry));
    }
}

#[test]
fn an_entry_of_zeroes_and_one_with_a_flipped_bit_say_nothing() {
    for (extent, entry) in examples() {
        assert_eq!(seal().decode(extent, &[0; ENTRY]), None);
        let bytes = seal().encode(extent, &entry);
        for bit in 0..ENTRY * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(seal().decode(extent, &bytes), None, "bit {bit}");
        }
    }
}

#[test]
fn an_entry_of_another_place_leg_or_device_says_nothing() {
    let (extent, entry) = examples()[1];
    let bytes = seal().encode(extent, &entry);
    assert_eq!(seal().decode(extent, &bytes), Some(entry));
    for other in [0, 4, 6, extent + (1 << 32)] {
        assert_eq!(seal().decode(other, &bytes), None, "extent {other}");
    }
    assert_eq!(Seal::new(&OWNER.uuid, LegId::A).decode(extent, &bytes), None);
    assert_eq!(Seal::new(b"fedcba9876543210", LegId::B).decode(extent, &bytes), None);
}

#[test]
fn an_entry_torn_between_two_says_nothing() {
    let (extent, old) = examples()[1];
    let new = Entry {
        value: [0xa5; 32],
        generation: 99,
        source: Source::Payload,
    };
    let (old_bytes, new_bytes) = (seal().encode(extent, &old), seal().encode(extent, &new));
    // By words of eight bytes, in any order: as two threads would write it.
    for landed in 0..256_u32 {
        let mut torn = old_bytes;
        for word in (0..8).filter(|word| landed >> word & 1 != 0) {
            torn[word * 8..(word + 1) * 8].copy_from_slice(&new_bytes[word * 8..(word + 1) * 8]);
        }
        let expected = match torn {
            torn if torn == old_bytes => Some(old),
            torn if torn == new_bytes => Some(new),
            _ => None,
        };
        assert_eq!(seal().decode(extent, &torn), expected, "{landed:08b}");
    }
}

#[test]
fn a_header_of_another_device_leg_size_extent_or_version_is_refused() {
    for (owner, why) in [
        (other_owner(|owner| owner.uuid[3] ^= 1), Lost::OtherDevice),
        (
            other_owner(|owner| owner.geometry.size += 4096),
            Lost::Other("size of the device"),
        ),
        (
            other_owner(|owner| owner.geometry.extent *= 2),
            Lost::Other("size of an extent"),
        ),
    ] {
        assert_eq!(header(&encode_header(&owner, LegId::B)), Err(why));
    }
    assert_eq!(header(&encode_header(&OWNER, LegId::A)), Err(Lost::Other("leg")));
    let intact = encode_header(&OWNER, LegId::B);
    assert_eq!(header(&intact[..4095]), Err(Lost::Flawed(Flaw::Truncated)));
    assert_eq!(header(&[0; BYTES]), Err(Lost::Flawed(Flaw::Empty)));
    assert_eq!(
        header(&resealed_table(&KIND, &intact, |bytes| bytes[8] = 2)),
        Err(Lost::Flawed(Flaw::Newer(2)))
    );
    for bit in 0..BYTES * 8 {
        let mut bytes = intact.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(
            matches!(header(&bytes), Err(Lost::Flawed(Flaw::Damaged | Flaw::Foreign))),
            "bit {bit}"
        );
    }
}
