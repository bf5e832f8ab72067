//! The superblock: everything about a device that must survive its daemon, in one block of 4096 bytes.
//!
//! Two slots hold superblocks; [`mod@super::pick`] says which one decides. A slot is one block, so that a disk that writes
//! blocks of 4 KiB whole never tears it; where it is torn all the same, the checksum says so.
//!
//! Format version 1; numbers are little-endian; bytes not listed are zero, and a table in which they are not is refused.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | header, see [`super::checked`]; magic `twinblkS` |
//! | 16 | 16 | uuid of the device |
//! | 32 | 64 | name of the device, padded with zeroes |
//! | 96 | 8 | size of the device in bytes |
//! | 104 | 4 | logical block size |
//! | 108 | 4 | grain |
//! | 112 | 4 | extent |
//! | 116 | 4 | largest read or write |
//! | 120 | 2 | queue depth |
//! | 124 | 4 | number of the ublk device |
//! | 128 | 8 | record: number |
//! | 136 | 8 | record: era |
//! | 144 | 8 | record: ceiling of generations |
//! | 152 | 1 | record: primary, 0 `a`, 1 `b` |
//! | 153 | 1 | record: protocol, 1 sync, 2 flush, 3 async |
//! | 154 | 1 | record: stopped cleanly |
//! | 155 | 1 | record: the other tables say where the legs may differ |
//! | 156 | 1 | record: the legs differ in places that are suspect, see [`mod@super::suspects`] |
//! | 160 | 16 | record: leg `a` (below) |
//! | 176 | 16 | record: leg `b` |
//! | 192 | 8 | settings: stall budget, ms |
//! | 200 | 8 | settings: leg time-out, ms |
//! | 208 | 8 | settings: pool, bytes |
//! | 216 | 8 | settings: most lag, bytes, 0 none |
//! | 224 | 8 | settings: quiet time before a hash, ms |
//! | 232 | 8 | settings: rate of background work, bytes per second, 0 unlimited |
//! | 240 | 1 | settings: catch up by itself |
//! | 248 | 32 | footprint of leg `a` when it was let go (below) |
//! | 280 | 32 | footprint of leg `b` |
//! | 312 | 8 | since when leg `a` has not been in sync, seconds since 1970, 0 it is or nobody knows |
//! | 320 | 8 | since when leg `b` has not been |
//! | 328 | 24 | where leg `a` was when it was claimed last (below) |
//! | 352 | 24 | where leg `b` was |
//! | 512 | 1728 | identity of leg `a` (below) |
//! | 2240 | 1728 | identity of leg `b` |
//! | 4064 | 32 | checksum |
//!
//! A leg in the record: byte 0 is its health (0 there never was one, 1 in-sync, 2 behind, 3 syncing, 4 failed, 5 absent),
//! byte 1 whether it is attached, byte 2 whether it failed a flush and may show what it does not hold, bytes 8 to 15 the
//! generation at which it is consistent.
//!
//! A footprint, all zero where there is none: 16 bytes boot id, 8 bytes sequence number, 8 bytes count of what was written.
//!
//! Where a leg was, all zero where nobody knows: 16 bytes boot id, 8 bytes sequence number of the block device.
//!
//! The identity of a leg, all zero where there never was one; a text is its length in two bytes and its bytes in UTF-8:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | 1 block device, 2 file |
//! | 4 | 4 | logical block size |
//! | 8 | 8 | size in bytes |
//! | 16 | 4 | major number of the block device, or of the file system |
//! | 20 | 4 | minor number |
//! | 24 | 8 | inode of a file |
//! | 32 | 4 | partition number, 0 none |
//! | 64 | 128 | text: serial number |
//! | 192 | 256 | text: world-wide id |
//! | 448 | 64 | text: uuid of the partition |
//! | 512 | 192 | text: uuid of a stacked device (device mapper, md) |
//! | 704 | 512 | text: path as it was given |
//! | 1216 | 512 | text: path with links resolved |

use super::checked::{CHECKSUM, Draft, Flaw, HEADER, Kind, Unverified, Verified};
use super::name::{Name, Text};
use crate::core::geometry::SECTOR;
use crate::core::{Geometry, Health, LegId, LegRecord, Protocol, Record};
use serde::{Deserialize, Serialize};

/// Bytes of a superblock.
pub const BYTES: usize = 4096;

/// How a superblock is told from everything else.
pub const KIND: Kind = Kind {
    magic: *b"twinblkS",
    context: "twinblk 2026 superblock",
    version: 1,
    bytes: BYTES,
};

const UUID: usize = 16;
const NAME: usize = UUID + 16;
const SIZE: usize = NAME + Name::MAX;
const BLOCK: usize = SIZE + 8;
const GRAIN: usize = BLOCK + 4;
const EXTENT: usize = GRAIN + 4;
const MAX_IO: usize = EXTENT + 4;
const DEPTH: usize = MAX_IO + 4;
const UBLK_ID: usize = DEPTH + 4;
const NUMBER: usize = UBLK_ID + 4;
const ERA: usize = NUMBER + 8;
const CEILING: usize = ERA + 8;
const PRIMARY: usize = CEILING + 8;
const PROTOCOL: usize = PRIMARY + 1;
const CLEAN: usize = PROTOCOL + 1;
const TRACKED: usize = CLEAN + 1;
const SUSPECT: usize = TRACKED + 1;
const LEG_RECORDS: usize = PRIMARY + 8;
const LEG_RECORD: usize = 16;
const STALL_BUDGET: usize = LEG_RECORDS + 2 * LEG_RECORD;
const LEG_TIMEOUT: usize = STALL_BUDGET + 8;
const POOL: usize = LEG_TIMEOUT + 8;
const LAG: usize = POOL + 8;
const QUIET: usize = LAG + 8;
const RATE: usize = QUIET + 8;
const CATCH_UP: usize = RATE + 8;
const FOOTPRINTS: usize = CATCH_UP + 8;
const FOOTPRINT: usize = 32;
const SINCE: usize = FOOTPRINTS + 2 * FOOTPRINT;
const SIGHTINGS: usize = SINCE + 2 * 8;
const SIGHTING: usize = 24;
const RESERVED: usize = SIGHTINGS + 2 * SIGHTING;
const IDENTITIES: usize = 512;
/// Bytes of an identity.
pub(super) const IDENTITY: usize = 1728;
const TAIL: usize = IDENTITIES + 2 * IDENTITY;

// Within an identity.
const KIND_OF_LEG: usize = 0;
const LEG_BLOCK: usize = 4;
const LEG_SIZE: usize = 8;
const LEG_MAJOR: usize = 16;
const LEG_MINOR: usize = 20;
const LEG_INODE: usize = 24;
const LEG_PARTITION: usize = 32;
const LEG_RESERVED: usize = 36;
const SERIAL: usize = 64;
const WWID: usize = SERIAL + 128;
const PARTITION_UUID: usize = WWID + 256;
const STACK_UUID: usize = PARTITION_UUID + 64;
const PATH: usize = STACK_UUID + 192;
const CANONICAL: usize = PATH + 512;

// The table in the module's documentation, held against the arithmetic.
const _: () = {
    assert!(UUID == HEADER && UBLK_ID == 124 && NUMBER == 128 && PRIMARY == 152 && LEG_RECORDS == 160);
    assert!(STALL_BUDGET == 192 && CATCH_UP == 240 && FOOTPRINTS == 248);
    assert!(SINCE == 312 && SIGHTINGS == 328 && RESERVED == 376 && RESERVED <= IDENTITIES);
    assert!(CANONICAL + 512 == IDENTITY && PATH == 704);
    assert!(TAIL == 3968 && TAIL + 96 + CHECKSUM == BYTES);
};

/// What kind of thing a leg is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LegKind {
    /// A block device.
    Block,
    /// A regular file.
    File,
}

/// What a disk is known by. Numbers of devices are meaningful within one boot only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegIdentity {
    /// Block device or file.
    pub kind: LegKind,
    /// Size in bytes, a multiple of `block`.
    pub size: u64,
    /// Logical block size in bytes.
    pub block: u32,
    /// Number of the block device, or of the file system that a file lies on.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
    /// Inode of a file; 0 for a block device.
    pub inode: u64,
    /// Number of the partition; 0 for a whole disk or a file.
    pub partition: u32,
    /// Serial number of the whole disk; empty when it has none.
    pub serial: Text<126>,
    /// World-wide id of the whole disk; empty when it has none.
    pub wwid: Text<254>,
    /// Uuid of the partition; empty when it is none or has none.
    pub partition_uuid: Text<62>,
    /// Uuid of a device-mapper or md device; empty for anything else.
    pub stack_uuid: Text<190>,
    /// The path as it was given; opened again at a start.
    pub path: Text<510>,
    /// The path with all links resolved, when it was opened.
    pub canonical: Text<510>,
}

/// What an administrator can change on a running device, other than the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Age of the oldest request that waits for the secondary alone, in ms.
    pub stall_budget_ms: u64,
    /// Age of the oldest operation on a leg, in ms.
    pub leg_timeout_ms: u64,
    /// Bytes of payloads that may wait for the secondary.
    pub pool_bytes: u64,
    /// How far a secondary may lag, in bytes; 0: the pool decides.
    pub lag_bytes: u64,
    /// How long an extent must have been quiet before it is hashed, in ms.
    pub quiet_ms: u64,
    /// Bytes per second of background work; 0: unlimited.
    pub rate: u64,
    /// Whether a leg that is behind catches up by itself.
    pub catch_up: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            stall_budget_ms: 5_000,
            leg_timeout_ms: 20_000,
            pool_bytes: 64 << 20,
            lag_bytes: 0,
            quiet_ms: 2_000,
            rate: 0,
            catch_up: true,
        }
    }
}

/// A device as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Never changes, and is never used again.
    pub uuid: [u8; 16],
    /// Also the name of its directory.
    pub name: Name,
    /// Size and units; fixed when the device was created.
    pub geometry: Geometry,
    /// The largest read or write, in bytes.
    pub max_io: u32,
    /// Requests in flight.
    pub depth: u16,
    /// The N of `/dev/ublkbN`.
    pub ublk_id: u32,
    /// What the core decided.
    pub record: Record,
    /// What an administrator has set.
    pub settings: Settings,
    /// What the legs are known by, by [`LegId::index`]; present exactly where the record has a leg.
    pub legs: [Option<LegIdentity>; 2],
    /// What the legs were like when they were let go, by [`LegId::index`]; none of a leg that is in use.
    pub footprints: [Option<Footprint>; 2],
    /// Since when the legs have not been in sync, in seconds since 1970, by [`LegId::index`]; none of one that is, or where
    /// nobody knows.
    pub since: [Option<u64>; 2],
    /// Where the legs were when they were claimed last, by [`LegId::index`].
    pub sightings: [Option<Sighting>; 2],
}

/// A block device in one boot: no other has the same numbers until the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The kernel's id of the boot.
    pub boot: [u8; 16],
    /// The sequence number of the whole disk.
    pub sequence: u64,
}

/// What a disk was like when it was let go: the same footprint later in the same boot proves that nobody wrote to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// The kernel's id of the boot.
    pub boot: [u8; 16],
    /// The block device's sequence number; a file's inode.
    pub sequence: u64,
    /// Sectors written to the block device; the file's change time in ns.
    pub written: u64,
}

impl Superblock {
    /// The number of the record that a device is created with.
    pub const FIRST_NUMBER: u64 = 1;

    /// The bytes of a slot.
    ///
    /// # Panics
    /// If the values contradict each other ([`Superblock::check`]): writing them would make the device unreadable.
    pub fn encode(&self) -> Vec<u8> {
        if let Err(flaw) = self.check() {
            panic!("a superblock that could not be read again: {flaw}");
        }
        let mut draft = Draft::new(&KIND);
        draft.put(UUID, &self.uuid);
        draft.put(NAME, self.name.as_bytes());
        draft.put(SIZE, &self.geometry.size.to_le_bytes());
        draft.put(BLOCK, &self.geometry.block.to_le_bytes());
        draft.put(GRAIN, &self.geometry.grain.to_le_bytes());
        draft.put(EXTENT, &self.geometry.extent.to_le_bytes());
        draft.put(MAX_IO, &self.max_io.to_le_bytes());
        draft.put(DEPTH, &self.depth.to_le_bytes());
        draft.put(UBLK_ID, &self.ublk_id.to_le_bytes());
        put_record(&mut draft, &self.record);
        put_settings(&mut draft, &self.settings);
        for leg in LegId::ALL {
            if let Some(identity) = &self.legs[leg.index()] {
                put_identity(&mut draft, IDENTITIES + leg.index() * IDENTITY, identity);
            }
            if let Some(footprint) = &self.footprints[leg.index()] {
                put_footprint(&mut draft, FOOTPRINTS + leg.index() * FOOTPRINT, footprint);
            }
            if let Some(since) = self.since[leg.index()] {
                draft.put(SINCE + leg.index() * 8, &since.to_le_bytes());
            }
            if let Some(sighting) = &self.sightings[leg.index()] {
                let at = SIGHTINGS + leg.index() * SIGHTING;
                draft.put(at, &sighting.boot);
                draft.put(at + 16, &sighting.sequence.to_le_bytes());
            }
        }
        draft.seal()
    }

    /// A superblock from bytes that anybody may have written.
    ///
    /// # Errors
    /// Says what is wrong with them; nothing that is torn, foreign or newer gets through.
    pub fn decode(bytes: Unverified<'_>) -> Result<Superblock, Flaw> {
        let table = bytes.verify(&KIND)?;
        table.zero(DEPTH + 2, 2)?;
        table.zero(CATCH_UP + 1, FOOTPRINTS - CATCH_UP - 1)?;
        table.zero(RESERVED, IDENTITIES - RESERVED)?;
        table.zero(TAIL, BYTES - CHECKSUM - TAIL)?;
        let superblock = Superblock {
            uuid: table.u128_bytes(UUID),
            name: take_name(table)?,
            geometry: Geometry {
                size: table.u64(SIZE),
                block: table.u32(BLOCK),
                grain: table.u32(GRAIN),
                extent: table.u32(EXTENT),
            },
            max_io: table.u32(MAX_IO),
            depth: table.u16(DEPTH),
            ublk_id: table.u32(UBLK_ID),
            record: take_record(table)?,
            settings: take_settings(table)?,
            legs: [
                take_identity(table, IDENTITIES)?,
                take_identity(table, IDENTITIES + IDENTITY)?,
            ],
            footprints: [
                take_footprint(table, FOOTPRINTS)?,
                take_footprint(table, FOOTPRINTS + FOOTPRINT)?,
            ],
            since: [SINCE, SINCE + 8].map(|at| Some(table.u64(at)).filter(|&since| since != 0)),
            sightings: [
                take_sighting(table, SIGHTINGS)?,
                take_sighting(table, SIGHTINGS + SIGHTING)?,
            ],
        };
        superblock.check()?;
        Ok(superblock)
    }

    /// Whether the values fit each other.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn check(&self) -> Result<(), Flaw> {
        let Geometry {
            size,
            block,
            grain,
            extent,
        } = self.geometry;
        let leg_present = |leg: LegId| self.record.legs[leg.index()].is_some();
        let rules = [
            (block == 512 || block == 4096, "the logical block size"),
            (
                size > 0 && size.is_multiple_of(block.max(1).into()),
                "the size of the device",
            ),
            (grain.is_power_of_two() && grain >= 4096, "the grain"),
            (
                extent.is_power_of_two() && extent >= grain && extent >= 16 << 10,
                "the extent",
            ),
            (
                self.max_io.is_power_of_two() && self.max_io >= 4096,
                "the largest request",
            ),
            (self.depth > 0, "the queue depth"),
            (self.uuid != [0; 16], "the uuid"),
            (self.record.number > 0, "the record number"),
            (
                leg_present(self.record.primary),
                "the primary is a leg that there never was",
            ),
            (
                LegId::ALL
                    .iter()
                    .all(|leg| leg_present(*leg) == self.legs[leg.index()].is_some()),
                "a leg without identity",
            ),
        ];
        for (holds, what) in rules {
            if !holds {
                return Err(Flaw::Malformed(what));
            }
        }
        for identity in self.legs.iter().flatten() {
            // A leg may have been attached when it was larger, and be behind for good: only its own values are checked.
            if !(identity.block.is_power_of_two()
                && u64::from(identity.block) >= SECTOR
                && identity.size.is_multiple_of(identity.block.into()))
            {
                return Err(Flaw::Malformed("the block size or size of a leg"));
            }
        }
        Ok(())
    }
}

fn take_name(table: Verified<'_>) -> Result<Name, Flaw> {
    let bytes = table.bytes(NAME, Name::MAX);
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(Name::MAX);
    table.zero(NAME + len, Name::MAX - len)?;
    std::str::from_utf8(&bytes[..len])
        .ok()
        .and_then(|text| Name::new(text).ok())
        .ok_or(Flaw::Malformed("the name"))
}

fn put_record(draft: &mut Draft, record: &Record) {
    draft.put(NUMBER, &record.number.to_le_bytes());
    draft.put(ERA, &record.era.to_le_bytes());
    draft.put(CEILING, &record.generation_ceiling.to_le_bytes());
    draft.put(
        PRIMARY,
        &[match record.primary {
            LegId::A => 0,
            LegId::B => 1,
        }],
    );
    draft.put(
        PROTOCOL,
        &[match record.protocol {
            Protocol::Sync => 1,
            Protocol::Flush => 2,
            Protocol::Async => 3,
        }],
    );
    draft.put(CLEAN, &[record.clean.into()]);
    draft.put(TRACKED, &[record.tracked.into()]);
    draft.put(SUSPECT, &[record.suspect.into()]);
    for leg in LegId::ALL {
        let at = LEG_RECORDS + leg.index() * LEG_RECORD;
        if let Some(leg) = &record.legs[leg.index()] {
            let health = match leg.health {
                Health::InSync => 1,
                Health::Behind => 2,
                Health::Syncing => 3,
                Health::Failed => 4,
                Health::Absent => 5,
            };
            draft.put(at, &[health, leg.attached.into(), leg.doubted.into()]);
            draft.put(at + 8, &leg.consistent_at.to_le_bytes());
        }
    }
}

fn take_record(table: Verified<'_>) -> Result<Record, Flaw> {
    table.zero(SUSPECT + 1, LEG_RECORDS - SUSPECT - 1)?;
    Ok(Record {
        number: table.u64(NUMBER),
        era: table.u64(ERA),
        primary: match table.u8(PRIMARY) {
            0 => LegId::A,
            1 => LegId::B,
            _ => return Err(Flaw::Malformed("the primary")),
        },
        legs: [
            take_leg(table, LEG_RECORDS)?,
            take_leg(table, LEG_RECORDS + LEG_RECORD)?,
        ],
        protocol: match table.u8(PROTOCOL) {
            1 => Protocol::Sync,
            2 => Protocol::Flush,
            3 => Protocol::Async,
            _ => return Err(Flaw::Malformed("the protocol")),
        },
        generation_ceiling: table.u64(CEILING),
        tracked: table.bool(TRACKED)?,
        suspect: table.bool(SUSPECT)?,
        clean: table.bool(CLEAN)?,
    })
}

fn take_leg(table: Verified<'_>, at: usize) -> Result<Option<LegRecord>, Flaw> {
    let health = match table.u8(at) {
        0 => {
            table.zero(at, LEG_RECORD)?;
            return Ok(None);
        }
        1 => Health::InSync,
        2 => Health::Behind,
        3 => Health::Syncing,
        4 => Health::Failed,
        5 => Health::Absent,
        _ => return Err(Flaw::Malformed("the health of a leg")),
    };
    table.zero(at + 3, 5)?;
    Ok(Some(LegRecord {
        health,
        consistent_at: table.u64(at + 8),
        attached: table.bool(at + 1)?,
        doubted: table.bool(at + 2)?,
    }))
}

fn put_settings(draft: &mut Draft, settings: &Settings) {
    draft.put(STALL_BUDGET, &settings.stall_budget_ms.to_le_bytes());
    draft.put(LEG_TIMEOUT, &settings.leg_timeout_ms.to_le_bytes());
    draft.put(POOL, &settings.pool_bytes.to_le_bytes());
    draft.put(LAG, &settings.lag_bytes.to_le_bytes());
    draft.put(QUIET, &settings.quiet_ms.to_le_bytes());
    draft.put(RATE, &settings.rate.to_le_bytes());
    draft.put(CATCH_UP, &[settings.catch_up.into()]);
}

fn take_settings(table: Verified<'_>) -> Result<Settings, Flaw> {
    Ok(Settings {
        stall_budget_ms: table.u64(STALL_BUDGET),
        leg_timeout_ms: table.u64(LEG_TIMEOUT),
        pool_bytes: table.u64(POOL),
        lag_bytes: table.u64(LAG),
        quiet_ms: table.u64(QUIET),
        rate: table.u64(RATE),
        catch_up: table.bool(CATCH_UP)?,
    })
}

pub(super) fn put_footprint(draft: &mut Draft, at: usize, footprint: &Footprint) {
    draft.put(at, &footprint.boot);
    draft.put(at + 16, &footprint.sequence.to_le_bytes());
    draft.put(at + 24, &footprint.written.to_le_bytes());
}

pub(super) fn take_footprint(table: Verified<'_>, at: usize) -> Result<Option<Footprint>, Flaw> {
    let footprint = Footprint {
        boot: table.u128_bytes(at),
        sequence: table.u64(at + 16),
        written: table.u64(at + 24),
    };
    if footprint.boot == [0; 16] {
        table.zero(at, FOOTPRINT)?;
        return Ok(None);
    }
    Ok(Some(footprint))
}

fn take_sighting(table: Verified<'_>, at: usize) -> Result<Option<Sighting>, Flaw> {
    let sighting = Sighting {
        boot: table.u128_bytes(at),
        sequence: table.u64(at + 16),
    };
    if sighting.boot == [0; 16] {
        table.zero(at, SIGHTING)?;
        return Ok(None);
    }
    Ok(Some(sighting))
}

pub(super) fn put_identity(draft: &mut Draft, at: usize, identity: &LegIdentity) {
    let kind = match identity.kind {
        LegKind::Block => 1,
        LegKind::File => 2,
    };
    draft.put(at + KIND_OF_LEG, &[kind]);
    draft.put(at + LEG_BLOCK, &identity.block.to_le_bytes());
    draft.put(at + LEG_SIZE, &identity.size.to_le_bytes());
    draft.put(at + LEG_MAJOR, &identity.major.to_le_bytes());
    draft.put(at + LEG_MINOR, &identity.minor.to_le_bytes());
    draft.put(at + LEG_INODE, &identity.inode.to_le_bytes());
    draft.put(at + LEG_PARTITION, &identity.partition.to_le_bytes());
    put_text(draft, at + SERIAL, &identity.serial);
    put_text(draft, at + WWID, &identity.wwid);
    put_text(draft, at + PARTITION_UUID, &identity.partition_uuid);
    put_text(draft, at + STACK_UUID, &identity.stack_uuid);
    put_text(draft, at + PATH, &identity.path);
    put_text(draft, at + CANONICAL, &identity.canonical);
}

pub(super) fn take_identity(table: Verified<'_>, at: usize) -> Result<Option<LegIdentity>, Flaw> {
    let kind = match table.u8(at + KIND_OF_LEG) {
        0 => {
            table.zero(at, IDENTITY)?;
            return Ok(None);
        }
        1 => LegKind::Block,
        2 => LegKind::File,
        _ => return Err(Flaw::Malformed("the kind of a leg")),
    };
    table.zero(at + KIND_OF_LEG + 1, LEG_BLOCK - KIND_OF_LEG - 1)?;
    table.zero(at + LEG_RESERVED, SERIAL - LEG_RESERVED)?;
    Ok(Some(LegIdentity {
        kind,
        size: table.u64(at + LEG_SIZE),
        block: table.u32(at + LEG_BLOCK),
        major: table.u32(at + LEG_MAJOR),
        minor: table.u32(at + LEG_MINOR),
        inode: table.u64(at + LEG_INODE),
        partition: table.u32(at + LEG_PARTITION),
        serial: take_text(table, at + SERIAL)?,
        wwid: take_text(table, at + WWID)?,
        partition_uuid: take_text(table, at + PARTITION_UUID)?,
        stack_uuid: take_text(table, at + STACK_UUID)?,
        path: take_text(table, at + PATH)?,
        canonical: take_text(table, at + CANONICAL)?,
    }))
}

fn put_text<const N: usize>(draft: &mut Draft, at: usize, text: &Text<N>) {
    let len = u16::try_from(text.len()).expect("texts are bounded below 64 KiB");
    draft.put(at, &len.to_le_bytes());
    draft.put(at + 2, text.as_bytes());
}

fn take_text<const N: usize>(table: Verified<'_>, at: usize) -> Result<Text<N>, Flaw> {
    let len = usize::from(table.u16(at));
    if len > N {
        return Err(Flaw::Malformed("the length of a text"));
    }
    table.zero(at + 2 + len, N - len)?;
    std::str::from_utf8(table.bytes(at + 2, len))
        .ok()
        .and_then(|text| Text::new(text).ok())
        .ok_or(Flaw::Malformed("a text"))
}

/// A superblock with something in every field, for tests of this crate.
#[cfg(test)]
pub(crate) fn example() -> Superblock {
    let text = "mirrored";
    let leg = |kind, n: u32| LegIdentity {
        kind,
        size: 1 << 31,
        block: 512 << n,
        major: 8,
        minor: 16 + n,
        inode: u64::from(n) * 131,
        partition: 1,
        serial: Text::cut(&format!("SERIAL-{n}")),
        wwid: Text::cut(&format!("naa.500000000000000{n}")),
        partition_uuid: Text::cut("6f6b7a1e-01"),
        stack_uuid: Text::cut("LVM-0123"),
        path: Text::cut(&format!("/dev/disk/by-id/{text}-{n}")),
        canonical: Text::cut(&format!("/dev/sd{n}")),
    };
    Superblock {
        uuid: *b"0123456789abcdef",
        name: Name::new("vm1").expect("it is a name"),
        geometry: Geometry::new((1 << 31) - 4096, 4096),
        max_io: 512 << 10,
        depth: 128,
        ublk_id: 3,
        record: Record {
            number: 7,
            era: 5,
            primary: LegId::B,
            legs: [
                Some(LegRecord {
                    health: Health::Behind,
                    consistent_at: 41,
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
            protocol: Protocol::Async,
            generation_ceiling: 0x0102_0304_0506_0708,
            tracked: false,
            suspect: false,
            clean: true,
        },
        settings: Settings {
            lag_bytes: 9,
            rate: 10,
            ..Settings::default()
        },
        legs: [Some(leg(LegKind::Block, 0)), Some(leg(LegKind::File, 3))],
        footprints: [
            None,
            Some(Footprint {
                boot: [5; 16],
                sequence: 6,
                written: 7,
            }),
        ],
        since: [Some(8), None],
        sightings: [
            Some(Sighting {
                boot: [9; 16],
                sequence: 10,
            }),
            None,
        ],
    }
}
