//! Opens disks for the daemon: every safety check is made here, then the descriptor is handed over.

use crate::context::Context;
use crate::{driver, output, size};
use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use twinblk::control::launch::LaunchLeg;
use twinblk::control::{Error, ErrorKind};
use twinblk::core::LegId;
use twinblk::io::disk::{self, Content, Disk, Wanted, identity};
use twinblk::table::{LegIdentity, LegKind, Superblock};

/// How long a start waits for a primary that an operation of a dead daemon still holds.
pub const CLAIM_PATIENCE: Duration = Duration::from_secs(30);

/// A disk refused or failed, as the tool says it.
pub fn disk_error(error: &disk::Error) -> Error {
    let kind = match error {
        disk::Error::Refused(_) => ErrorKind::Refused,
        disk::Error::Io { .. } => ErrorKind::Failed,
    };
    let hint = error.hint();
    let said = Error::new(kind, error.to_string());
    if hint.is_empty() { said } else { said.hint(hint) }
}

/// The numbers N of `/dev/ublkbN` that are devices of ours, or were: no disk may lie on one.
fn own_devices(context: &Context) -> Result<Vec<u32>, Error> {
    let names = context.names()?;
    // A state that cannot be read says nothing; the driver's devices are recognised by their major number as well.
    Ok(names
        .iter()
        .filter_map(|name| context.peek(name).ok())
        .map(|picked| picked.superblock.ublk_id)
        .collect())
}

/// What a device asks of a disk.
pub struct Target<'a> {
    /// The least bytes.
    pub size: u64,
    /// The largest logical block size.
    pub block: u32,
    /// The device's other disks.
    pub apart_from: &'a [LegIdentity],
}

/// A disk for a device: checked, claimed.
///
/// # Errors
/// A safety check, or a failure.
pub fn open(context: &Context, path: &Path, target: &Target<'_>, content: Content) -> Result<Disk, Error> {
    try_open(context, path, target, content)?.map_err(|error| disk_error(&error))
}

/// The inner result is the disk's, the outer that of finding out what it must not lie on.
fn try_open(
    context: &Context,
    path: &Path,
    target: &Target<'_>,
    content: Content,
) -> Result<Result<Disk, disk::Error>, Error> {
    let own = own_devices(context)?;
    let wanted = Wanted {
        min_size: target.size,
        max_block: target.block,
        content,
        apart_from: target.apart_from,
        must_not_hold: &[&context.state_dir],
        own_devices: &own,
    };
    Ok(Disk::open(path, &wanted))
}

/// A leg for a start: its disk, and what the daemon is told.
pub struct Leg {
    descriptor: Descriptor,
    pub told: LaunchLeg,
}

enum Descriptor {
    Claimed(Disk),
    Unclaimed(OwnedFd),
}

impl Leg {
    /// A claimed disk as leg `leg`.
    pub fn claimed(leg: LegId, disk: Disk) -> Leg {
        let told = LaunchLeg {
            leg,
            identity: disk.identity.clone(),
            claimed: true,
        };
        Leg {
            descriptor: Descriptor::Claimed(disk),
            told,
        }
    }

    /// What is handed over.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.descriptor {
            Descriptor::Claimed(disk) => disk.descriptor.as_fd(),
            Descriptor::Unclaimed(fd) => fd.as_fd(),
        }
    }
}

/// How a recorded leg was found.
enum Found {
    Open(Disk),
    /// Somebody holds it, which may pass.
    Held(Error),
    /// It is not there.
    Missing(Error),
    /// Something else is at its path.
    Another(Error),
    /// It is there and cannot be served.
    Unfit(Error),
}

/// The recorded primary, waited for while it is held.
///
/// # Errors
/// Missing or another disk: refused. Held for too long: timed out.
pub fn open_primary(context: &Context, superblock: &Superblock, patience: Duration) -> Result<Leg, Error> {
    open_leg(context, superblock, superblock.record.primary, patience)?
}

/// A leg without which nothing is served, waited for while it is held. The inner error says that its disk is not where its
/// record says.
///
/// # Errors
/// Held for too long: timed out. There, and cannot be served: what is in the way.
pub fn open_leg(
    context: &Context,
    superblock: &Superblock,
    id: LegId,
    patience: Duration,
) -> Result<Result<Leg, Error>, Error> {
    let deadline = Instant::now() + patience;
    let mut said = false;
    loop {
        let held = match find(context, superblock, id, &[])? {
            Found::Open(disk) => return Ok(Ok(Leg::claimed(id, disk))),
            Found::Missing(error) | Found::Another(error) => return Ok(Err(error)),
            Found::Unfit(error) => return Err(error),
            Found::Held(error) => error,
        };
        if Instant::now() >= deadline {
            let message = format!("{}; waited {} s for it", held.message, patience.as_secs());
            let hint = "an operation of the daemon that died may still be in flight: the kernel's own time-out for that \
                        disk ends it; then start again";
            return Err(Error::timed_out(message).hint(hint));
        }
        if !said {
            output::note(&format!("{}; waiting up to {} s", held.message, patience.as_secs()));
            said = true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The recorded secondary: none if the device is to be served without it. One that has failed is missed by nobody.
///
/// # Errors
/// It cannot be had, and `degraded` was not asked for.
pub fn open_secondary(
    context: &Context,
    superblock: &Superblock,
    primary: &LegIdentity,
    degraded: bool,
) -> Result<Option<Leg>, Error> {
    let id = superblock.record.primary.other();
    let Some(recorded) = superblock.record.legs[id.index()].filter(|leg| leg.attached) else {
        return Ok(None);
    };
    let is_used = recorded.is_used();
    match find(context, superblock, id, std::slice::from_ref(primary))? {
        Found::Open(disk) => Ok(Some(Leg::claimed(id, disk))),
        Found::Held(error) if is_used => {
            output::note(&format!(
                "{}; starting without leg {id}, which is taken when it is free",
                error.message
            ));
            unclaimed(superblock, id).map(Some)
        }
        Found::Held(error) | Found::Missing(error) | Found::Another(error) | Found::Unfit(error)
            if degraded || !is_used =>
        {
            output::note(&format!("{}; starting without leg {id}", error.message));
            Ok(None)
        }
        Found::Held(error) | Found::Missing(error) | Found::Another(error) | Found::Unfit(error) => {
            let hint = format!(
                "bring leg {id} back, or serve without it: twinblk start {} --degraded",
                superblock.name
            );
            Err(Error {
                hint: Some(hint),
                ..error
            })
        }
    }
}

/// Whether a leg's disk is where its record says, whoever has claimed it.
///
/// # Errors
/// It is not there, or another is.
pub fn look_for(superblock: &Superblock, id: LegId) -> Result<(), Error> {
    let refused = |why: String| Error::refused(format!("leg {id} of {}: {why}", superblock.name));
    let Some(recorded) = &superblock.legs[id.index()] else {
        return Err(refused("the record names no disk for it".into()));
    };
    let path = Path::new(&*recorded.path);
    let why = match Disk::look(path) {
        Ok(found) => match identity::mismatch(recorded, &found) {
            None => return Ok(()),
            Some(why) => format!("{} is another disk than the recorded one: {why}", path.display()),
        },
        Err(error) => error.to_string(),
    };
    Err(refused(why).hint(format!(
        "make the recorded disk ({}) available at {}, where a daemon that starts looks for it",
        describe(recorded),
        path.display()
    )))
}

fn find(context: &Context, superblock: &Superblock, id: LegId, apart_from: &[LegIdentity]) -> Result<Found, Error> {
    let Some(recorded) = &superblock.legs[id.index()] else {
        return Err(Error::failed(format!(
            "the record of {} names no disk for leg {id}",
            superblock.name
        )));
    };
    let path = PathBuf::from(&*recorded.path);
    let target = Target {
        size: superblock.geometry.size,
        block: superblock.geometry.block,
        apart_from,
    };
    let refused = |why: String| Error::refused(format!("leg {id} of {}: {why}", superblock.name));
    let error = match try_open(context, &path, &target, Content::Any)? {
        Ok(disk) => {
            return Ok(match identity::mismatch(recorded, &disk.identity) {
                None => Found::Open(disk),
                Some(why) => Found::Another(
                    refused(format!(
                        "{} is another disk than the recorded one: {why}",
                        path.display()
                    ))
                    .hint(format!(
                        "make the recorded disk ({}) available at that path",
                        describe(recorded)
                    )),
                ),
            });
        }
        Err(error) => error,
    };
    let hint = |error: Error, hint: String| if hint.is_empty() { error } else { error.hint(hint) };
    Ok(if error.is_claimed() {
        Found::Held(hint(refused(error.to_string()), error.hint()))
    } else if error.is_missing() {
        Found::Missing(refused(format!("{} is not there", path.display())).hint(format!(
            "bring the recorded disk ({}) back at that path",
            describe(recorded)
        )))
    } else {
        let kind = disk_error(&error).kind;
        let said = Error::new(kind, format!("leg {id} of {}: {error}", superblock.name));
        Found::Unfit(hint(said, error.hint()))
    })
}

/// The leg's disk, open but not claimed, for the daemon to claim later. The daemon checks then that it is that disk, which may
/// have grown since it was recorded.
fn unclaimed(superblock: &Superblock, id: LegId) -> Result<Leg, Error> {
    look_for(superblock, id)?;
    let mut recorded = superblock.legs[id.index()]
        .clone()
        .expect("a leg that was found held is recorded");
    let found = Disk::look(Path::new(&*recorded.path)).map_err(|error| disk_error(&error))?;
    recorded.size = found.size;
    let fd = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
        .open(&*recorded.path)
        .map_err(|error| Error::failed(format!("{}: {error}", &*recorded.path)))?;
    let told = LaunchLeg {
        leg: id,
        identity: recorded,
        claimed: false,
    };
    Ok(Leg {
        descriptor: Descriptor::Unclaimed(fd.into()),
        told,
    })
}

/// Whether a disk is surely the recorded one, so that it may be written although it is not blank. That nothing speaks
/// against it ([`identity::mismatch`]) is not enough: disks without serial number and id look alike, and the next one at
/// the same name can hold somebody's data. `vouched` is the word of the administrator for such a disk.
pub fn comes_back(recorded: &LegIdentity, found: &LegIdentity, vouched: bool) -> bool {
    if identity::mismatch(recorded, found).is_some() {
        return false;
    }
    // Equal where they are recorded, because nothing mismatches.
    let unique = [&*recorded.wwid, &*recorded.stack_uuid, &*recorded.partition_uuid];
    if unique.iter().any(|id| !id.is_empty()) {
        return true;
    }
    // A serial number can be shared by several units; an inode's number is used again after the file is deleted.
    let by_place = match found.kind {
        LegKind::Block => !recorded.serial.is_empty(),
        LegKind::File => recorded.canonical == found.canonical,
    };
    identity::same(recorded, found) && (by_place || vouched)
}

/// A disk in words: what it was known by when it was recorded.
pub fn describe(identity: &LegIdentity) -> String {
    let mut words = vec![size::show(identity.size)];
    for (what, text) in [
        ("serial ", &*identity.serial),
        ("id ", &*identity.wwid),
        ("", &*identity.stack_uuid),
    ] {
        if !text.is_empty() {
            words.push(format!("{what}{text}"));
        }
    }
    if identity.partition != 0 {
        words.push(format!("partition {}", identity.partition));
    }
    words.join(", ")
}

/// Everybody who has device `id` open, in words. A process that only looks (udev, blkid) is given a moment to finish.
///
/// # Errors
/// It cannot be found out.
pub fn users_of_device(id: u32) -> Result<Vec<String>, Error> {
    let path = driver::block_device(id);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut users = Vec::new();
    let mut failure = None;
    driver::until(Duration::from_secs(1), || {
        match disk::users_of(&path) {
            Ok(found) => users = found,
            Err(error) => failure = Some(disk_error(&error)),
        }
        // Only processes pass by themselves.
        failure.is_some() || !users.iter().any(|user| matches!(user, disk::User::Process { .. })) || users.is_empty()
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(users.iter().map(ToString::to_string).collect()),
    }
}
