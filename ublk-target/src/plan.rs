//! What is to be served: made from a launch and, for a device that is known, its record. Nothing is written here.

use crate::device::legs::fits;
use crate::errors::Told;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use twinblk::control::launch::{Action, Create, Launch, LaunchLeg, Start};
use twinblk::control::stand_in::Keeps;
use twinblk::control::{self, Error};
use twinblk::core::{CopyMode, Geometry, Health, LegId, Record, StandIn};
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
    /// It would have to see its device end, and nobody has said that it may. Why it may not go on.
    Refused(&'static str),
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
    /// By [`LegId::index`]: the leg's signature table says what it holds, where it says something.
    pub believed: [bool; 2],
    /// All of the device is suspect: the primary may have been written to since the legs were equal.
    pub suspect: bool,
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
                Plan::start(state, picked.superblock, picked.doubt, &start, disks, awaited)
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
            since: [None; 2],
            sightings: [None; 2],
        };
        let id = create.id;
        Ok(Plan {
            superblock,
            state: None,
            id,
            disks,
            awaited: None,
            resync: CopyMode::Compare,
            believed: [true; 2],
            suspect: false,
            guest: Guest::Refused("it is a new device"),
        })
    }

    fn start(
        state: StateDir,
        mut superblock: Superblock,
        doubt: bool,
        start: &Start,
        mut disks: [Option<Disk>; 2],
        mut awaited: Option<Awaited>,
    ) -> Result<Plan, Error> {
        for disk in disks.iter().flatten() {
            fits(&disk.identity, &superblock.geometry)?;
        }
        let may_be_equal = was_equal(&superblock.record);
        if doubt {
            doubt_record(&mut superblock);
        }
        let mut believed = believed(&superblock, &disks);
        let keeps = match disks[superblock.record.primary.index()] {
            // Awaited is not missing: that is refused below.
            None if awaited.is_none() => stand_in(&mut superblock, doubt, start, &disks)?,
            None | Some(_) => Keeps::Everything,
        };
        let record = &superblock.record;
        let primary = record.primary;
        if awaited.as_ref().is_some_and(|awaited| awaited.leg.leg == primary) {
            return Err(
                Error::timed_out(format!("the primary, leg {primary}, is still held by somebody"))
                    .hint("an operation of a dead daemon may not have ended: try again, or see who has it open"),
            );
        }
        if disks[primary.index()].is_none() {
            return Err(
                Error::refused(format!("leg {primary}, which is to be the primary, is not there"))
                    .hint("bring its disk back"),
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
        } else if !is_used && awaited.is_some() {
            // What has failed is taken back by whoever asks for it.
            awaited = None;
        } else if disks[at].is_none() && awaited.is_none() && !start.degraded && is_used {
            return Err(Error::refused(format!("leg {secondary} is not there"))
                .hint("bring its disk back, or serve without it: --degraded"));
        }
        let suspect = may_be_equal && keeps == Keeps::Everything && is_suspect(&superblock, &disks);
        if suspect {
            superblock.record.suspect = true;
            // What the other leg is known by would prove wrong what somebody may have meant.
            believed = [false; 2];
        } else {
            doubt_changed(&mut superblock, &disks);
        }
        for (recorded, disk) in superblock.legs.iter_mut().zip(&disks) {
            // It may have grown, or come by another number.
            if let Some(disk) = disk {
                *recorded = Some(disk.identity.clone());
            }
        }
        let id = Some(superblock.ublk_id);
        let guest = match (start.force, doubt, keeps) {
            (true, ..) => Guest::Ends,
            // Not from a record that may not have been the newest.
            (false, true, _) => {
                Guest::Refused("one of the two records is damaged, and the other disk may have been the primary since")
            }
            // Promise 11: it would find that writes are gone which it was told are there.
            (false, false, Keeps::AnEarlierMoment) => {
                Guest::Refused("the disk that is left may not have what it was told is there")
            }
            (false, false, Keeps::Everything) => Guest::GoesOn,
        };
        Ok(Plan {
            superblock,
            state: Some(state),
            id,
            disks,
            awaited,
            resync: CopyMode::Compare,
            believed,
            suspect,
            guest,
        })
    }
}

/// Go on with the other leg, because the recorded primary is missing.
///
/// *What must hold:* before anything is served, a durable record names the leg that is served; it never names one that is no
/// image of the device. *Why it cannot break:* nothing is written here. The first record of the start is made from what is
/// left in `superblock`, with a number, an era and generations above everything used, and it is durable before the first
/// request can come (see `serve`). An end before it leaves the old record, and the same question to the next start; an end after
/// it leaves a device whose primary is this leg. The old primary's disk is not among the legs then, whatever is plugged in.
fn stand_in(
    superblock: &mut Superblock,
    doubt: bool,
    start: &Start,
    disks: &[Option<Disk>; 2],
) -> Result<Keeps, Error> {
    let old = superblock.record.primary;
    let why = format!("the recorded primary, leg {old}, is not there");
    let mut keeps = control::stand_in::stand_in(superblock, doubt, start, &why)?;
    // Equal to the primary when it was let go is not what it is now, if somebody has written to it since.
    if superblock.record.clean
        && let Some(disk) = &disks[old.other().index()]
        && let Some(why) = changed(superblock, old.other(), disk)
    {
        log::warn!("leg {}, {}, is served as it is: {why}", old.other(), disk.identity.path);
        keeps = Keeps::AnEarlierMoment;
    }
    if let StandIn::Stale(stale) = superblock.record.stand_in() {
        let lacks = control::stand_in::lacks(superblock, old.other(), stale);
        log::warn!("{why}: serving leg {}, which {lacks}", old.other());
    }
    superblock.record = superblock.record.promoted();
    // What it was like when it was let go proves nothing of a disk that has lost its part.
    superblock.footprints[old.index()] = None;
    superblock.since[old.other().index()] = None;
    Ok(keeps)
}

/// Go on from a record although a newer one may have been lost: it had the next number, it may have made generations
/// available, and it may have said anything.
fn doubt_record(superblock: &mut Superblock) {
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

/// Whether the legs were equal when they were let go.
fn was_equal(record: &Record) -> bool {
    let secondary = record.legs[record.primary.other().index()];
    record.clean && secondary.is_some_and(|leg| leg.attached && leg.health == Health::InSync)
}

/// Whether a primary that was equal to the other leg when both were let go ([`was_equal`]) is not proven to be what it was: somebody may have
/// written to it, or it may have gone bad.
///
/// *What must hold:* it is served as it is, and nothing that is on either leg is lost before somebody has decided. *How:* all of the device is
/// suspect, which every later start knows, before the record says that it is in use. So no copy writes over either leg, not over one
/// that comes later either, and no switch and no failover shows the other one to the guest. What is equal is suspect no more when both have
/// been read.
///
/// Also where a newer record may have been lost: whatever it said, both legs are kept.
fn is_suspect(superblock: &Superblock, disks: &[Option<Disk>; 2]) -> bool {
    let primary = superblock.record.primary;
    let Some(disk) = &disks[primary.index()] else {
        return false;
    };
    let Some(why) = changed(superblock, primary, disk) else {
        return false;
    };
    log::warn!(
        "leg {primary}, {}, is served as it is: {why}; where leg {} differs is suspect, and is looked for now",
        disk.identity.path,
        primary.other()
    );
    true
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
        if let Some(why) = changed(superblock, leg, disk) {
            log::warn!("both legs are compared whole: leg {leg}, {}: {why}", disk.identity.path);
            superblock.record.clean = false;
            superblock.record.tracked = false;
        }
    }
}

/// By leg: whether its signature table holds. It does after a clean end, if the disk is proven to be as it was let go; of a disk
/// that is not here, that is asked when it comes back.
fn believed(superblock: &Superblock, disks: &[Option<Disk>; 2]) -> [bool; 2] {
    let record = &superblock.record;
    LegId::ALL.map(|leg| {
        let as_it_was = |disk: &Disk| changed(superblock, leg, disk).is_none();
        record.clean && record.tracked && disks[leg.index()].as_ref().is_none_or(as_it_was)
    })
}

/// Why a leg's disk is not proven to be as it was let go.
fn changed(superblock: &Superblock, leg: LegId, disk: &Disk) -> Option<&'static str> {
    let now = footprint::of(&disk.identity, disk.descriptor.as_fd());
    footprint::doubt(superblock.footprints[leg.index()].as_ref(), now.as_ref())
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
    use std::fs;
    use std::path::PathBuf;
    use twinblk::control::ErrorKind;
    use twinblk::core::{LegRecord, Protocol};
    use twinblk::io::disk::Wanted;
    use twinblk::table::Footprint;

    /// A device of two files, leg `a` its primary, with a state directory; goes away with the value.
    struct World {
        root: PathBuf,
        superblock: Superblock,
        disks: [Option<Disk>; 2],
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    impl World {
        fn new(test: &str, health: Health, protocol: Protocol) -> World {
            let root = std::env::temp_dir().join(format!("twinblk-plan-{}-{test}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            let disks = ["a", "b"].map(|name| {
                File::create(root.join(name)).unwrap().set_len(1 << 20).unwrap();
                Some(Disk::open(&root.join(name), &Wanted::ANY).unwrap())
            });
            let leg = |health| {
                Some(LegRecord {
                    health,
                    consistent_at: 41,
                    attached: true,
                    doubted: false,
                })
            };
            let footprint = Footprint {
                boot: [5; 16],
                sequence: 6,
                written: 7,
            };
            let superblock = Superblock {
                uuid: [1; 16],
                name: "vm1".parse().unwrap(),
                geometry: Geometry::new(1 << 20, disks[0].as_ref().unwrap().block()),
                max_io: MAX_IO,
                depth: DEPTH,
                ublk_id: 0,
                record: Record {
                    number: Superblock::FIRST_NUMBER,
                    legs: [leg(Health::InSync), leg(health)],
                    tracked: true,
                    clean: false,
                    ..Record::first(protocol)
                },
                settings: Settings::default(),
                legs: disks
                    .each_ref()
                    .map(|disk| disk.as_ref().map(|disk| disk.identity.clone())),
                footprints: [Some(footprint); 2],
                since: [None, Some(8)],
                sightings: [None; 2],
            };
            drop(StateDir::create(&root, &superblock).unwrap());
            World {
                root,
                superblock,
                disks,
            }
        }

        fn start(
            &self,
            present: [bool; 2],
            awaited: Option<Awaited>,
            doubt: bool,
            start: &Start,
        ) -> Result<Plan, Error> {
            let (state, picked) = StateDir::open(&self.root, &self.superblock.name).unwrap();
            let disks = LegId::ALL.map(|leg| self.disks[leg.index()].clone().filter(|_| present[leg.index()]));
            Plan::start(state, picked.superblock, doubt, start, disks, awaited)
        }
    }

    const ALL: Start = Start {
        degraded: true,
        force: false,
        accept_stale: true,
    };

    #[test]
    fn the_other_leg_is_served_as_primary_and_nothing_of_the_old_one_is_believed() {
        let world = World::new("stale", Health::Behind, Protocol::Flush);
        let refused = world.start([false, true], None, false, &Start::default());
        assert!(refused.is_err_and(|error| error.kind == ErrorKind::Refused));
        let plan = world.start([false, true], None, false, &ALL).unwrap();
        let record = plan.superblock.record;
        assert_eq!((record.primary, record.tracked, record.clean), (LegId::B, false, false));
        assert!(!record.legs[0].unwrap().attached && plan.disks[0].is_none() && plan.disks[1].is_some());
        assert_eq!((plan.superblock.footprints[0], plan.superblock.since[1]), (None, None));
        assert!(matches!(plan.guest, Guest::Refused(_)));
        drop(plan);
        let forced = Start { force: true, ..ALL };
        assert_eq!(
            world.start([false, true], None, false, &forced).unwrap().guest,
            Guest::Ends
        );
        // With the primary there, nothing is asked and nothing changes.
        let plan = world.start([true, true], None, false, &ALL).unwrap();
        assert_eq!((plan.superblock.record.primary, plan.guest), (LegId::A, Guest::GoesOn));
    }

    #[test]
    fn a_guest_goes_on_with_a_leg_that_has_everything_and_with_no_other() {
        let degraded = Start {
            degraded: true,
            ..Start::default()
        };
        let sync = World::new("sync", Health::InSync, Protocol::Sync);
        assert_eq!(
            sync.start([false, true], None, false, &degraded).unwrap().guest,
            Guest::GoesOn
        );
        // A record that was lost may have said that it is being copied to.
        assert!(sync.start([false, true], None, true, &ALL).is_err());
        let flush = World::new("flush", Health::InSync, Protocol::Flush);
        assert!(flush.start([false, true], None, false, &degraded).is_err());
        assert!(matches!(
            flush.start([false, true], None, false, &ALL).unwrap().guest,
            Guest::Refused(_)
        ));
        let mixture = World::new("mixture", Health::Syncing, Protocol::Sync);
        assert!(mixture.start([false, true], None, false, &ALL).is_err());
    }

    #[test]
    fn a_leg_that_has_failed_is_not_waited_for_to_be_taken_back() {
        for (health, is_awaited) in [(Health::Failed, false), (Health::Behind, true)] {
            let world = World::new(health.word(), health, Protocol::Flush);
            let disk = world.disks[1].as_ref().unwrap();
            let awaited = Awaited {
                leg: LaunchLeg {
                    leg: LegId::B,
                    identity: disk.identity.clone(),
                    claimed: false,
                },
                descriptor: disk.descriptor.try_clone().unwrap(),
            };
            let plan = world
                .start([true, false], Some(awaited), false, &Start::default())
                .unwrap();
            assert_eq!(plan.awaited.is_some(), is_awaited, "{health:?}");
        }
    }

    #[test]
    fn where_the_primary_may_have_changed_after_a_clean_stop_everything_is_suspect_and_nothing_is_copied() {
        let mut world = World::new("suspect", Health::InSync, Protocol::Flush);
        world.superblock.record.clean = true;
        let start = |world: &World, present| {
            let (state, _) = StateDir::open(&world.root, &world.superblock.name).unwrap();
            let disks = LegId::ALL.map(|leg| {
                world.disks[leg.index()]
                    .clone()
                    .filter(|_| present == [true; 2] || leg == LegId::A)
            });
            let degraded = Start {
                degraded: true,
                ..Start::default()
            };
            Plan::start(state, world.superblock.clone(), false, &degraded, disks, None).unwrap()
        };
        // Of a file nothing proves that it is what it was in another boot.
        let plan = start(&world, [true; 2]);
        let record = plan.superblock.record;
        assert!(plan.suspect && record.suspect && record.clean && record.tracked);
        assert_eq!(plan.believed, [false; 2]);
        drop(plan);
        // So too where the second disk comes later.
        let plan = start(&world, [true, false]);
        assert!(plan.suspect && plan.superblock.record.suspect);
        drop(plan);
        world.superblock.record.tracked = false;
        assert!(start(&world, [true; 2]).suspect);
        world.superblock.record.tracked = true;
        // One that has not everything is made equal.
        world.superblock.record.legs[1].as_mut().unwrap().health = Health::Behind;
        let plan = start(&world, [true; 2]);
        assert!(!plan.suspect && !plan.superblock.record.tracked);
        drop(plan);
        // The secondary alone: it is made equal.
        world.superblock.record.legs[1].as_mut().unwrap().health = Health::InSync;
        let a = world.disks[0].as_ref().unwrap();
        world.superblock.footprints[0] = footprint::of(&a.identity, a.descriptor.as_fd());
        if world.superblock.footprints[0].is_some() {
            let plan = start(&world, [true; 2]);
            assert!(!plan.suspect && !plan.superblock.record.clean);
        }
    }

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
            since: [None; 2],
            sightings: [None; 2],
        };
        doubt_record(&mut superblock);
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
