//! The formats on disk, pinned: a device made by any release must be served by every later one. To change what is
//! checked in here is to approve a new format version, and to keep reading the old one.

mod dirty;
mod regions;
mod retired;
mod signatures;
mod suspects;

use std::fmt::Write;
use twinblk::core::{Geometry, Health, LegId, LegRecord, Protocol, Record};
use twinblk::table::checked::{Flaw, Kind, Unverified};
use twinblk::table::name::Text;
use twinblk::table::superblock::{BYTES, KIND};
use twinblk::table::{Footprint, LegIdentity, LegKind, Name, Owner, Settings, Sighting, Superblock, Unpickable, pick};

/// Lines of an offset and 16 bytes; lines of zeroes are left out.
const SUPERBLOCK_V1: &str = include_str!("superblock-v1.hex");
const SUPERBLOCK_V1_HASH: &str = "71ef36ff9a6a7cb4ada51174162e8f0ad144c151aea6444a3b2c99b51f05d9f8";

fn example() -> Superblock {
    Superblock {
        uuid: *b"0123456789abcdef",
        name: Name::new("vm1").expect("it is a name"),
        geometry: Geometry {
            size: 0x0102_0304_0506_0000,
            block: 4096,
            grain: 64 << 10,
            extent: 1 << 20,
        },
        max_io: 512 << 10,
        depth: 128,
        ublk_id: 3,
        record: Record {
            number: 0x1112_1314_1516_1718,
            era: 0x2122_2324_2526_2728,
            primary: LegId::B,
            legs: [
                Some(LegRecord {
                    health: Health::Behind,
                    consistent_at: 0x3132_3334_3536_3738,
                    attached: true,
                    doubted: false,
                }),
                Some(LegRecord {
                    health: Health::InSync,
                    consistent_at: 42,
                    attached: false,
                    doubted: false,
                }),
            ],
            protocol: Protocol::Flush,
            generation_ceiling: 0x4142_4344_4546_4748,
            tracked: false,
            suspect: false,
            clean: true,
        },
        settings: Settings {
            stall_budget_ms: 5_000,
            leg_timeout_ms: 20_000,
            pool_bytes: 64 << 20,
            lag_bytes: 1 << 20,
            quiet_ms: 2_000,
            rate: 100 << 20,
            catch_up: true,
        },
        footprints: [None; 2],
        since: [None; 2],
        sightings: [None; 2],
        legs: [
            Some(LegIdentity {
                kind: LegKind::Block,
                size: 0x5152_5354_5556_5000,
                block: 512,
                major: 259,
                minor: 7,
                inode: 0,
                partition: 2,
                serial: text("S4EWNX0R"),
                wwid: text("eui.0025385b71b0c2d1"),
                partition_uuid: text("6f6b7a1e-02"),
                stack_uuid: text("LVM-abc"),
                path: text("/dev/disk/by-id/nvme-x-part2"),
                canonical: text("/dev/nvme0n1p2"),
            }),
            Some(LegIdentity {
                kind: LegKind::File,
                size: 1 << 40,
                block: 4096,
                major: 8,
                minor: 1,
                inode: 0x6162_6364_6566_6768,
                partition: 0,
                serial: text(""),
                wwid: text(""),
                partition_uuid: text(""),
                stack_uuid: text(""),
                path: text("/srv/Spiegelbild-ä.img"),
                canonical: text("/mnt/1/Spiegelbild-ä.img"),
            }),
        ],
    }
}

/// The device of the tables beside the superblock: 5 TiB and a bit, so that every unit ends in a partial one.
const OWNER: Owner = Owner {
    uuid: *b"0123456789abcdef",
    geometry: Geometry {
        size: (5 << 40) + 4096,
        block: 4096,
        grain: 64 << 10,
        extent: 1 << 20,
    },
};

/// A device that differs from [`OWNER`].
fn other_owner(change: fn(&mut Owner)) -> Owner {
    let mut owner = OWNER;
    change(&mut owner);
    owner
}

/// Change a sealed table and seal it again for `owner`, as a faulty program would.
fn resealed_for(kind: &Kind, sealed: &[u8], owner: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = sealed.to_vec();
    change(&mut bytes);
    let (content, sum) = bytes.split_at_mut(kind.bytes - 32);
    let mut hasher = blake3::Hasher::new_derive_key(kind.context);
    hasher.update(content).update(owner);
    sum.copy_from_slice(hasher.finalize().as_bytes());
    bytes
}

/// The same for a table that has no owner behind its content.
fn resealed_table(kind: &Kind, sealed: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    resealed_for(kind, sealed, &[], change)
}

fn text<const N: usize>(text: &str) -> Text<N> {
    Text::new(text).expect("it fits")
}

fn dump(bytes: &[u8]) -> String {
    let mut dump = String::new();
    for (index, line) in bytes
        .chunks(16)
        .enumerate()
        .filter(|(_, line)| line.iter().any(|&byte| byte != 0))
    {
        write!(dump, "{:04x}:", index * 16).expect("a string takes everything");
        for byte in line {
            write!(dump, " {byte:02x}").expect("a string takes everything");
        }
        dump.push('\n');
    }
    dump
}

fn load(dump: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for line in dump.lines().filter(|line| !line.starts_with('#')) {
        let (offset, values) = line.split_once(':').expect("an offset and bytes");
        let offset = usize::from_str_radix(offset, 16).expect("a number");
        for (index, value) in values.split_whitespace().enumerate() {
            bytes[offset + index] = u8::from_str_radix(value, 16).expect("a byte");
        }
    }
    bytes
}

/// A generator for tests: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize].clone()
    }

    fn text<const N: usize>(&mut self) -> Text<N> {
        let len = self.below(N as u64 + 1);
        Text::cut(
            &(0..len)
                .map(|_| self.pick(&['a', '/', ' ', '9', 'ü', '漢']))
                .collect::<String>(),
        )
    }

    fn identity(&mut self) -> LegIdentity {
        let block = self.pick(&[512, 4096]);
        LegIdentity {
            kind: self.pick(&[LegKind::Block, LegKind::File]),
            size: self.below(1 << 40) * u64::from(block),
            block,
            major: self.next() as u32,
            minor: self.next() as u32,
            inode: self.next(),
            partition: self.next() as u32,
            serial: self.text(),
            wwid: self.text(),
            partition_uuid: self.text(),
            stack_uuid: self.text(),
            path: self.text(),
            canonical: self.text(),
        }
    }

    fn leg(&mut self) -> LegRecord {
        let all = [
            Health::InSync,
            Health::Behind,
            Health::Syncing,
            Health::Failed,
            Health::Absent,
        ];
        LegRecord {
            health: self.pick(&all),
            consistent_at: self.next(),
            attached: self.pick(&[true, false]),
            doubted: self.pick(&[true, false]),
        }
    }

    fn superblock(&mut self) -> Superblock {
        let mut superblock = example();
        let block = self.pick(&[512, 4096]);
        let grain = 4096 << self.below(8);
        superblock.uuid = u128::from(self.next()).to_le_bytes();
        superblock.uuid[15] = 1;
        superblock.name = Name::new(&"aZ9._-".repeat(11)[..1 + self.below(64) as usize]).expect("it is a name");
        superblock.geometry = Geometry {
            size: (1 + self.below(1 << 40)) * u64::from(block),
            block,
            grain,
            extent: grain.max(16 << 10) << self.below(4),
        };
        superblock.max_io = 4096 << self.below(10);
        superblock.depth = 1 + self.below(4096) as u16;
        superblock.ublk_id = self.next() as u32;
        superblock.record.number = 1 + self.below(u64::MAX - 1);
        superblock.record.era = self.next();
        superblock.record.generation_ceiling = self.next();
        superblock.record.clean = self.pick(&[true, false]);
        superblock.record.protocol = self.pick(&[Protocol::Sync, Protocol::Flush, Protocol::Async]);
        superblock.record.primary = self.pick(&LegId::ALL);
        for leg in LegId::ALL {
            let present = leg == superblock.record.primary || self.pick(&[true, false]);
            superblock.record.legs[leg.index()] = present.then(|| self.leg());
            superblock.legs[leg.index()] = present.then(|| self.identity());
        }
        superblock.settings = Settings {
            stall_budget_ms: self.next(),
            leg_timeout_ms: self.next(),
            pool_bytes: self.next(),
            lag_bytes: self.next(),
            quiet_ms: self.next(),
            rate: self.next(),
            catch_up: self.pick(&[true, false]),
        };
        for leg in LegId::ALL {
            let at = leg.index();
            let boot = u128::from(1 + self.below(u64::MAX - 1)).to_le_bytes();
            superblock.footprints[at] = self.pick(&[true, false]).then(|| Footprint {
                boot,
                sequence: self.next(),
                written: self.next(),
            });
            superblock.since[at] = self.pick(&[true, false]).then(|| 1 + self.below(u64::MAX - 1));
            superblock.sightings[at] = self.pick(&[true, false]).then(|| Sighting {
                boot,
                sequence: self.next(),
            });
        }
        superblock
    }
}

fn decode(bytes: &[u8]) -> Result<Superblock, Flaw> {
    Superblock::decode(Unverified::new(bytes))
}

/// Change a sealed table and seal it again, as a faulty program would.
fn resealed(superblock: &Superblock, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    resealed_table(&KIND, &superblock.encode(), change)
}

#[test]
fn the_superblock_of_version_1_is_what_is_checked_in() {
    let bytes = example().encode();
    assert_eq!(
        dump(&bytes),
        dump(&load(SUPERBLOCK_V1, BYTES)),
        "the dump of what is written now:\n{}",
        dump(&bytes)
    );
    assert_eq!(blake3::hash(&bytes).to_string(), SUPERBLOCK_V1_HASH);
    assert_eq!(decode(&load(SUPERBLOCK_V1, BYTES)), Ok(example()));
}

#[test]
fn what_was_encoded_is_decoded() {
    let mut random = Random(1);
    for round in 0..500 {
        let superblock = random.superblock();
        let bytes = superblock.encode();
        assert_eq!(bytes.len(), BYTES);
        let decoded = decode(&bytes);
        assert_eq!(decoded.as_ref(), Ok(&superblock), "round {round}");
        assert_eq!(
            decoded.expect("compared above").encode(),
            bytes,
            "round {round}: there is one encoding"
        );
    }
}

#[test]
fn every_single_flipped_bit_is_found() {
    let bytes = example().encode();
    for bit in 0..BYTES * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(
            matches!(decode(&bytes), Err(Flaw::Damaged | Flaw::Foreign)),
            "bit {bit}"
        );
    }
}

#[test]
fn no_mixture_of_two_records_is_taken_for_one() {
    let mut random = Random(2);
    for round in 0..300 {
        let (old, new) = (random.superblock(), random.superblock());
        let (old_bytes, new_bytes) = (old.encode(), new.encode());
        // In order up to some byte, and sector by sector in any order.
        let torn_at = random.below(BYTES as u64) as usize;
        let mut prefix = old_bytes.clone();
        prefix[..torn_at].copy_from_slice(&new_bytes[..torn_at]);
        let mut sectors = old_bytes.clone();
        let landed = random.below(256);
        for sector in (0..8).filter(|sector| landed >> sector & 1 != 0) {
            let range = sector * 512..(sector + 1) * 512;
            sectors[range.clone()].copy_from_slice(&new_bytes[range]);
        }
        for mixture in [prefix, sectors] {
            match decode(&mixture) {
                Ok(whole) => assert!(mixture == old_bytes && whole == old || mixture == new_bytes && whole == new),
                Err(flaw) => assert_eq!(flaw, Flaw::Damaged, "round {round}"),
            }
        }
    }
}

#[test]
fn garbage_never_parses() {
    let mut random = Random(3);
    for _ in 0..2000 {
        let mut bytes: Vec<u8> = (0..BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        assert_eq!(decode(&bytes), Err(Flaw::Foreign));
        bytes[..8].copy_from_slice(&KIND.magic);
        assert_eq!(decode(&bytes), Err(Flaw::Damaged));
        bytes.truncate(random.below(BYTES as u64) as usize);
        assert_eq!(decode(&bytes), Err(Flaw::Truncated));
    }
}

#[test]
fn no_intact_table_with_impossible_values_is_accepted_and_none_panics() {
    let superblock = example();
    let mut accepted = 0;
    let mut random = Random(4);
    for offset in 16..BYTES - 32 {
        let value = random.next() as u8;
        let bytes = resealed(&superblock, |bytes| bytes[offset] = value);
        match decode(&bytes) {
            // Whatever is accepted has this one encoding, and so no byte that means nothing.
            Ok(decoded) => {
                accepted += 1;
                assert_eq!(decoded.encode(), bytes, "offset {offset}");
            }
            Err(flaw) => assert!(matches!(flaw, Flaw::Malformed(_)), "offset {offset}: {flaw}"),
        }
    }
    assert!(accepted > 0, "the test must reach values that make sense");
}

#[test]
fn a_later_version_is_refused_by_its_number() {
    let later = resealed(&example(), |bytes| bytes[8] = 2);
    assert_eq!(decode(&later), Err(Flaw::Newer(2)));
}

#[test]
fn the_higher_number_decides_whichever_slot_it_is_in() {
    let (mut old, mut new) = (example(), example());
    old.record.number = 9;
    new.record.number = 10;
    old.record.primary = LegId::A;
    let (old, new) = (old.encode(), new.encode());
    for (slots, expected) in [([&old, &new], 1), ([&new, &old], 0)] {
        let picked = pick(slots.map(|bytes| Unverified::new(bytes))).expect("both are intact");
        assert_eq!(
            (picked.slot, picked.superblock.record.number, picked.doubt),
            (expected, 10, false)
        );
    }
}

#[test]
fn a_record_beside_a_damaged_slot_is_in_doubt() {
    let mut first = example();
    first.record.number = Superblock::FIRST_NUMBER;
    let first = first.encode();
    let later = example().encode();
    let mut damaged = example().encode();
    damaged[700] ^= 1;
    let empty = vec![0; BYTES];
    for (other, intact, doubt) in [
        (&empty, &first, false),
        (&empty, &later, true),
        (&damaged, &later, true),
        (&damaged, &first, true),
    ] {
        for slots in [[other, intact], [intact, other]] {
            let picked = pick(slots.map(|bytes| Unverified::new(bytes))).expect("one is intact");
            assert_eq!(picked.doubt, doubt);
        }
    }
}

#[test]
fn two_slots_that_contradict_each_other_are_refused() {
    let one = example();
    let mut same_number = example();
    same_number.record.era += 1;
    let mut other_device = example();
    other_device.uuid[0] ^= 1;
    other_device.record.number += 1;
    let newer = resealed(&example(), |bytes| bytes[8] = 2);
    let malformed = resealed(&example(), |bytes| bytes[153] = 9);
    let pick_with_one = |bytes: Vec<u8>| {
        let one = one.encode();
        let both = [
            pick([Unverified::new(&one), Unverified::new(&bytes)]),
            pick([Unverified::new(&bytes), Unverified::new(&one)]),
        ];
        assert_eq!(both[0], both[1]);
        both[0].clone().expect_err("refused")
    };
    let number = one.record.number;
    assert_eq!(pick_with_one(one.encode()), Unpickable::SameNumber(number));
    assert_eq!(pick_with_one(same_number.encode()), Unpickable::SameNumber(number));
    assert_eq!(pick_with_one(other_device.encode()), Unpickable::TwoDevices);
    assert_eq!(pick_with_one(newer), Unpickable::Newer(2));
    assert_eq!(pick_with_one(malformed), Unpickable::Malformed("the protocol"));
}
