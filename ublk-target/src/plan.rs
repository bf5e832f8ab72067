//! What is to be served: made from a launch and, for a device that is known, its record. Nothing is written here.

use crate::device::legs::fits;
use crate::errors::Told;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use twinblk::control::Error;
use twinblk::control::launch::{Action, Create, Launch, LaunchLeg, Start};
use twinblk::core::{CopyMode, Geometry, LegId, Record};
use twinblk::io::disk::{Disk, footprint};
use twinblk::runtime::state_dir::StateDir;
use twinblk::table::{Settings, Superblock};

/// Requests in flight, unless said otherwise: with the largest request, 8 MiB of buffers.
const DEPTH: u16 = 64;
/// The most that makes sense on one queue.
const MAX_DEPTH: u16 = 1024;
/// The largest read or write, in bytes.
const MAX_IO: u32 = 128 << 10;

/// A leg whose disk somebody else still holds.
pub struct Awaited {
    /// Which leg.
    pub leg: LaunchLeg,
    /// Open, without a claim.
    pub descriptor: OwnedFd,
}

/// What is to become of a guest that a dead daemon left waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// It goes on.
    GoesOn,
    /// It would have to see its device end, and nobody has said that it may.
    Refused,
    /// It sees its device end.
    Ends,
}

/// What to serve.
pub struct Plan {
    /// The device as recorded, or as it will be. For a create, its number in the driver is not known yet.
    pub superblock: Superblock,
    /// The lock on its state; none yet for a create.
    pub state: Option<StateDir>,
    /// The number it must have in the driver.
    pub id: Option<u32>,
    /// The disks that are there and claimed, by [`LegId::index`].
    pub disks: [Option<Disk>; 2],
    /// A secondary that will be taken when it is free.
    pub awaited: Option<Awaited>,
    /// How a secondary that is not in sync is made equal.
    pub resync: CopyMode,
    /// What is to become of the guest of a dead daemon.
    pub guest: Guest,
}

impl Plan {
    /// What a launch asks for, if it can be.
    ///
    /// # Errors
    /// What is in the way; nothing has changed.
    pub fn new(launch: Launch, descriptors: Vec<OwnedFd>) -> Result<Plan, Error> {
        let Launch {
            name,
            state_dir,
            run_dir: _,
            action,
            legs,
        } = launch;
        let mut disks = [None, None];
        let mut awaited = None;
        for (leg, descriptor) in legs.into_iter().zip(descriptors) {
            let at = leg.leg.index();
            if leg.claimed {
                let doing = format!("take leg {}", leg.leg);
                let disk = Disk::from_descriptor(descriptor, leg.identity).map_err(|error| error.told(&doing))?;
                if disks[at].replace(disk).is_some() {
                    return Err(Error::usage(format!("leg {} came twice", leg.leg)));
                }
            } else {
                awaited = Some(Awaited { leg, descriptor });
            }
        }
        match action {
            Action::Create(create) => Plan::create(name, &create, disks),
            Action::Start(start) => {
                let (state, picked) =
                    StateDir::open(&state_dir, &name).map_err(|error| error.told("start the device"))?;
                let mut superblock = picked.superblock;
                if picked.doubt {
                    doubt(&mut superblock);
                }
                let plan = Plan::start(state, superblock, &start, disks, awaited)?;
                Ok(Plan {
                    // Not from a record that may not have been the newest.
                    guest: match (start.force, picked.doubt) {
                        (true, _) => Guest::Ends,
                        (false, true) => Guest::Refused,
                        (false, false) => Guest::GoesOn,
                    },
                    ..plan
                })
            }
        }
    }

    fn create(name: twinblk::table::Name, create: &Create, disks: [Option<Disk>; 2]) -> Result<Plan, Error> {
        let [Some(disk), None] = &disks else {
            return Err(Error::usage("a device is created on one disk, its leg a"));
        };
        let depth = create.depth.unwrap_or(DEPTH);
        if !(1..=MAX_DEPTH).contains(&depth) {
            return Err(Error::usage(format!(
                "a depth of {depth}: it must be from 1 to {MAX_DEPTH}"
            )));
        }
        let block = create.logical_block_size.unwrap_or(disk.block());
        if block != 512 && block != 4096 {
            return Err(Error::usage(format!(
                "logical blocks of {block} bytes: they must be of 512 or 4096 bytes"
            )));
        }
        let size = disk.size() - disk.size() % u64::from(block);
        let geometry = Geometry::new(size, block);
        fits(&disk.identity, &geometry)?;
        if size == 0 {
            return Err(Error::refused(format!("{} is empty", disk.path().display())));
        }
        let superblock = Superblock {
            uuid: random_uuid().map_err(|error| error.told("make a uuid"))?,
            name,
            geometry,
            max_io: MAX_IO,
            depth,
            ublk_id: 0,
            record: Record::first(create.protocol),
            settings: Settings::default(),
            legs: [Some(disk.identity.clone()), None],
            footprints: [None; 2],
        };
        let id = create.id;
        Ok(Plan {
            superblock,
            state: None,
            id,
            disks,
            awaited: None,
            resync: CopyMode::Compare,
            guest: Guest::Refused,
        })
    }

    fn start(
        state: StateDir,
        mut superblock: Superblock,
        start: &Start,
        mut disks: [Option<Disk>; 2],
        mut awaited: Option<Awaited>,
    ) -> Result<Plan, Error> {
        let record = &superblock.record;
        let primary = record.primary;
        for disk in disks.iter().flatten() {
            fits(&disk.identity, &superblock.geometry)?;
        }
        if awaited.as_ref().is_some_and(|awaited| awaited.leg.leg == primary) {
            return Err(
                Error::timed_out(format!("the primary, leg {primary}, is still held by somebody"))
                    .hint("an operation of a dead daemon may not have ended: try again, or see who has it open"),
            );
        }
        if disks[primary.index()].is_none() {
            return Err(
                Error::refused(format!("the recorded primary, leg {primary}, is not there"))
                    .hint("bring its disk back; nothing else is known to have every acknowledged write"),
            );
        }
        let secondary = primary.other();
        let at = secondary.index();
        let is_attached = record.legs[at].is_some_and(|leg| leg.attached);
        // The guest was moved off it: nobody waits for it to come back.
        let is_used = record.legs[at].is_some_and(|leg| leg.is_used());
        if !is_attached {
            // A disk that the device does not follow is not touched, and its claim is let go.
            disks[at] = None;
            awaited = None;
        } else if disks[at].is_none() && awaited.is_none() && !start.degraded && is_used {
            return Err(Error::refused(format!("leg {secondary} is not there"))
                .hint("bring its disk back, or serve without it: --degraded"));
        }
        doubt_changed(&mut superblock, &disks);
        let id = Some(superblock.ublk_id);
        Ok(Plan {
            superblock,
            state: Some(state),
            id,
            disks,
            awaited,
            resync: CopyMode::Compare,
            guest: Guest::Refused,
        })
    }
}

/// Go on from a record although a newer one may have been lost: it had the next number, it may have made generations
/// available, and it may have said anything.
fn doubt(superblock: &mut Superblock) {
    let record = &mut superblock.record;
    record.clean = false;
    // Of the other files it says nothing.
    record.tracked = false;
    record.number += 2;
    record.generation_ceiling += Record::GENERATIONS;
    let path = |leg: LegId| match &superblock.legs[leg.index()] {
        Some(disk) => disk.path.to_string(),
        None => "none".into(),
    };
    let (primary, other) = (record.primary, record.primary.other());
    log::warn!(
        "one of the two records of {} is damaged, and it may have been the newer one: serving from leg {primary} ({}), as \
         the other record says; if roles were exchanged just before, leg {other} ({}) has what was written since",
        superblock.name,
        path(primary),
        path(other)
    );
}

/// After a clean stop the legs are what they were unless somebody wrote to one of them. Where that is not proven, everything
/// is compared: what nobody of ours has tracked may be anywhere.
fn doubt_changed(superblock: &mut Superblock, disks: &[Option<Disk>; 2]) {
    if !superblock.record.clean || superblock.record.legs.iter().any(Option::is_none) {
        return;
    }
    // The primary counts also where the other leg is detached: what that one misses is known only if nobody wrote here.
    for leg in LegId::ALL {
        let Some(disk) = &disks[leg.index()] else { continue };
        let now = footprint::of(&disk.identity, disk.descriptor.as_fd());
        if let Some(why) = footprint::doubt(superblock.footprints[leg.index()].as_ref(), now.as_ref()) {
            log::warn!("both legs are compared whole: leg {leg}, {}: {why}", disk.identity.path);
            superblock.record.clean = false;
            superblock.record.tracked = false;
        }
    }
}

/// Random, version 4.
fn random_uuid() -> std::io::Result<[u8; 16]> {
    let mut uuid = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut uuid)?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// What the driver is to know the device with this uuid by.
pub fn mark(uuid: &[u8; 16]) -> u64 {
    let first: [u8; 8] = std::array::from_fn(|at| uuid[at]);
    u64::from_le_bytes(first)
}

/// The other leg's facts do not matter before it is there.
pub fn awaited_flags(awaited: Option<&Awaited>) -> [bool; 2] {
    LegId::ALL.map(|leg| awaited.is_some_and(|awaited| awaited.leg.leg == leg))
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinblk::core::Protocol;

    #[test]
    fn nothing_that_a_lost_record_may_have_used_is_used_again() {
        let record = Record {
            number: 8,
            generation_ceiling: 3 * Record::GENERATIONS,
            ..Record::first(Protocol::Flush)
        };
        let mut superblock = Superblock {
            uuid: [1; 16],
            name: "vm1".parse().unwrap(),
            geometry: Geometry::new(1 << 20, 512),
            max_io: MAX_IO,
            depth: DEPTH,
            ublk_id: 0,
            record,
            settings: Settings::default(),
            legs: [None, None],
            footprints: [None; 2],
        };
        doubt(&mut superblock);
        let lost = Record {
            number: record.number + 1,
            generation_ceiling: record.generation_ceiling + Record::GENERATIONS,
            ..record
        };
        assert!(superblock.record.number > lost.number);
        assert!(superblock.record.generation_ceiling >= lost.generation_ceiling);
        assert!(!superblock.record.clean);
    }
}
