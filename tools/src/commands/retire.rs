//! `detach --retire` and `unretire`: the blocks that say what a disk holds are saved and wiped, and put back.

use super::list::status_of;
use super::steer::{self, leg_id};
use crate::args::{Detach, Leg};
use crate::context::{Context, absolute, state_error};
use crate::disks::{self, Target, disk_error};
use crate::exit::Exit;
use crate::{output, size, udev};
use serde::Serialize;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use twinblk::control::status::{Place, Role};
use twinblk::control::{Error, ErrorKind, LegName};
use twinblk::core::LegId;
use twinblk::io::disk::{Content, Disk, footprint, identity};
use twinblk::runtime::retired::{Entry, RetireError, RetiredDir};
use twinblk::table::{LegIdentity, Name, Superblock};

#[derive(Serialize)]
struct Retired {
    leg: LegId,
    path: PathBuf,
    retired: Vec<Place>,
}

#[derive(Serialize)]
struct Restored {
    leg: LegId,
    path: PathBuf,
    restored: Vec<Place>,
}

/// Stop mirroring to a leg if that has not happened yet, and have nobody take its disk for the one that is in use.
///
/// # Errors
/// What the daemon says of the detach. Then: another disk than the recorded one, or one that somebody has written to:
/// refused, with nothing wiped.
pub fn retire(context: &Context, args: &Detach) -> Result<Exit, Error> {
    let name = &args.leg.name;
    let status = status_of(context, name)?;
    let leg = leg_id(&status, &args.leg.leg)?;
    let is_followed = |leg: LegId| {
        let mut legs = status.legs.iter().filter(|status| status.id == leg);
        legs.any(|leg| leg.attached || leg.role == Role::Primary)
    };
    let entry = match is_followed(leg) {
        true => {
            steer::let_go(&mut context.running(name)?, leg)?;
            let say = |error: Error| Error {
                message: format!("leg {leg} is detached, but not retired: {}", error.message),
                ..error
            };
            wipe(context, args, leg, true).map_err(say)?
        }
        false => wipe(context, args, leg, false)?,
    };
    udev::look_again(&entry.retired.identity);
    let done = Retired {
        leg,
        path: (*entry.retired.identity.path).into(),
        retired: places(&entry),
    };
    context.print(&done, || {
        format!(
            "{name}: leg {leg} is detached; {} is retired: {} that say what it holds are saved and wiped (back with \
             twinblk unretire {name} {leg})\n",
            done.path.display(),
            total(&done.retired)
        )
    })?;
    Ok(Exit::Done)
}

/// Put back what was wiped.
///
/// # Errors
/// Nothing is saved, or the leg is attached: wrong state. Another disk, or one that somebody has written to: refused.
pub fn unretire(context: &Context, args: &Leg) -> Result<Exit, Error> {
    let name = &args.name;
    let dir = lock(context, name)?;
    let superblock = context.peek(name)?.superblock;
    let entry = chosen(dir.all().map_err(retire_error)?, &superblock, &args.leg)?;
    let recorded = &entry.retired.identity;
    let mut attached = Vec::new();
    for leg in LegId::ALL {
        let is_attached = superblock.record.legs[leg.index()].is_some_and(|leg| leg.attached);
        let Some(disk) = superblock.legs[leg.index()].as_ref().filter(|_| is_attached) else {
            continue;
        };
        if is_it(disk, recorded) {
            let message = format!("{} is leg {leg} of {name}, and mirrored to", &*disk.path);
            return Err(Error::wrong_state(message).hint(format!("detach it first: twinblk detach {name} {leg}")));
        }
        attached.push(disk.clone());
    }
    let disk = open(context, recorded, &attached)?;
    belongs_to_nobody_else(context, name, &disk.identity)?;
    refuse_older(&superblock, &entry, &disk.identity)?;
    let footprint = footprint::of(&disk.identity, disk.descriptor.as_fd());
    let is_proven = disks::comes_back(recorded, &disk.identity, false)
        || footprint::is_of_one_disk(entry.retired.detached.as_ref(), footprint.as_ref());
    dir.unretire(&entry, &disk, is_proven).map_err(retire_error)?;
    if !is_proven {
        let path = disk.path().display();
        output::note(&format!(
            "nothing but its size and place says that {path} is the retired disk: what was saved of it is kept; twinblk \
             remove --force gives it up"
        ));
    }
    udev::look_again(&disk.identity);
    let done = Restored {
        leg: entry.retired.leg,
        path: (*recorded.path).into(),
        restored: places(&entry),
    };
    context.print(&done, || {
        let (path, total) = (done.path.display(), total(&done.restored));
        format!("{name}: {path} is as it was when it was detached: {total} are put back\n")
    })?;
    Ok(Exit::Done)
}

/// Refuse to put back what is older than what the disk held when it was detached last.
fn refuse_older(superblock: &Superblock, entry: &Entry, disk: &LegIdentity) -> Result<(), Error> {
    let (name, leg) = (&superblock.name, entry.retired.leg);
    let recorded = superblock.legs[leg.index()].as_ref();
    let is_leg = recorded.is_some_and(|recorded| identity::mismatch(recorded, disk).is_none());
    if !is_leg || entry.retired.detached == superblock.footprints[leg.index()] {
        return Ok(());
    }
    let message = format!(
        "{} has been leg {leg} of {name} again since that was saved: what it holds is newer",
        &*disk.path
    );
    Err(Error::refused(message)
        .hint("nothing was written; twinblk remove --force forgets what was saved with the device"))
}

/// Have nobody retire or unretire a disk of this device meanwhile.
///
/// # Errors
/// Somebody does.
pub fn lock(context: &Context, name: &Name) -> Result<RetiredDir, Error> {
    RetiredDir::lock(&context.state_dir, name).map_err(retire_error)
}

/// The disks of which only the state directory has all blocks.
///
/// # Errors
/// They cannot be found out.
pub fn kept(dir: &RetiredDir) -> Result<Vec<String>, Error> {
    let entries = dir.all().map_err(retire_error)?;
    let path = |entry: &Entry| entry.retired.identity.path.to_string();
    Ok(entries.iter().map(path).collect())
}

/// Save and wipe what says what a detached disk holds. `just_detached`: nobody had the time to use it since.
fn wipe(context: &Context, args: &Detach, leg: LegId, just_detached: bool) -> Result<Entry, Error> {
    let name = &args.leg.name;
    let dir = lock(context, name)?;
    // What was read before the lock may be old.
    let superblock = context.peek(name)?.superblock;
    let is_free = superblock.record.legs[leg.index()].is_some_and(|leg| !leg.attached);
    let (Some(recorded), true) = (&superblock.legs[leg.index()], is_free) else {
        return Err(Error::wrong_state(format!("leg {leg} of {name} is in use")).hint("see twinblk status"));
    };
    let others: Vec<LegIdentity> = superblock.legs[leg.other().index()].iter().cloned().collect();
    let disk = open(context, recorded, &others)?;
    belongs_to_nobody_else(context, name, &disk.identity)?;
    // To wipe it takes more than that nothing speaks against it: it can be no other disk, and nobody has made anything else of it
    // since it was let go. That it has not been written to is proof of both; so is that an earlier call has begun, and then every
    // block that goes is saved.
    let now = footprint::of(&disk.identity, disk.descriptor.as_fd());
    let detached = superblock.footprints[leg.index()].as_ref();
    let doubt = footprint::doubt(detached, now.as_ref());
    let is_begun = dir.is_begun(&superblock, leg, &disk).map_err(retire_error)?;
    if let Some(why) = doubt.filter(|_| !is_begun) {
        let path = disk.path().display();
        let is_it =
            disks::comes_back(recorded, &disk.identity, false) || footprint::is_of_one_disk(detached, now.as_ref());
        if !is_it {
            let message = format!(
                "{path} has neither serial number nor id, and nothing else proves that it is the disk that was leg {leg} of {name}"
            );
            return Err(Error::refused(message).hint("make sure that it is; `wipefs --all --backup` wipes its labels"));
        }
        if !just_detached && !args.force {
            let message = format!("{path} may have been put to another use since it was detached: {why}");
            return Err(Error::refused(message).hint(format!(
                "see what it holds (lsblk --fs, wipefs); if it is the old disk of {name} still: twinblk detach {name} {leg} --retire \
                 --force"
            )));
        }
    }
    dir.retire(&superblock, leg, &disk).map_err(retire_error)
}

/// Refuse a disk that is a leg of another device, served or not.
fn belongs_to_nobody_else(context: &Context, name: &Name, disk: &LegIdentity) -> Result<(), Error> {
    let mut others = context.legs()?.into_iter().filter(|(other, ..)| other != name);
    if let Some((other, leg, _)) = others.find(|(.., recorded)| is_it(recorded, disk)) {
        let message = format!("{} is leg {leg} of {other}", &*disk.path);
        return Err(Error::refused(message).hint(format!("see twinblk status {other}")));
    }
    Ok(())
}

/// Whether both are known to be one disk.
fn is_it(recorded: &LegIdentity, disk: &LegIdentity) -> bool {
    identity::same(recorded, disk) && identity::mismatch(recorded, disk).is_none()
}

/// The disk, which must be the recorded one, claimed.
fn open(context: &Context, recorded: &LegIdentity, apart_from: &[LegIdentity]) -> Result<Disk, Error> {
    let path = Path::new(&*recorded.path);
    let target = Target {
        size: 0,
        block: 4096,
        apart_from,
    };
    let disk = disks::open(context, path, &target, Content::Any)?;
    match identity::mismatch(recorded, &disk.identity) {
        None => Ok(disk),
        Some(why) => {
            let message = format!("{} is another disk than the one that was a leg: {why}", path.display());
            let wanted = disks::describe(recorded);
            Err(Error::refused(message).hint(format!("make the recorded disk ({wanted}) available at that path")))
        }
    }
}

/// The retired disk that an administrator names.
fn chosen(entries: Vec<Entry>, superblock: &Superblock, text: &str) -> Result<Entry, Error> {
    let name = &superblock.name;
    let all: Vec<String> = entries
        .iter()
        .map(|entry| format!("{} (leg {})", &*entry.retired.identity.path, entry.retired.leg))
        .collect();
    let mut found: Vec<Entry> = match LegName::from(text.to_owned()) {
        LegName::Id(leg) => entries.into_iter().filter(|entry| entry.retired.leg == leg).collect(),
        LegName::Path(path) => {
            let path = absolute(&path)?;
            let canonical = std::fs::canonicalize(&path).ok();
            let is = |recorded: &str| Path::new(recorded) == path || canonical.as_deref() == Some(Path::new(recorded));
            let is_it = |entry: &Entry| is(&entry.retired.identity.path) || is(&entry.retired.identity.canonical);
            entries.into_iter().filter(is_it).collect()
        }
    };
    let is_since = |entry: &Entry| entry.retired.detached == superblock.footprints[entry.retired.leg.index()];
    if found.len() > 1 && found.iter().any(is_since) {
        // Older ones are of disks that were legs again since.
        found.retain(is_since);
    }
    if found.len() > 1 {
        // Other disks were that leg before: the last one is meant.
        let is_last = |entry: &Entry| {
            let recorded = superblock.legs[entry.retired.leg.index()].as_ref();
            recorded.is_some_and(|recorded| identity::mismatch(recorded, &entry.retired.identity).is_none())
        };
        if found.iter().any(is_last) {
            found.retain(is_last);
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(entry), true) => Ok(entry),
        (Some(_), false) => Err(
            Error::wrong_state(format!("{text} may be one of several retired disks of {name}"))
                .hint(format!("name it by its path: {}", all.join(", "))),
        ),
        (None, _) => {
            let error = Error::wrong_state(format!("{text} is no retired disk of {name}"));
            Err(match all.is_empty() {
                true => error.hint("none is: see twinblk status"),
                false => error.hint(format!("those that are: {}", all.join(", "))),
            })
        }
    }
}

fn places(entry: &Entry) -> Vec<Place> {
    let place = |saved: &twinblk::table::retired::Saved| Place {
        offset: saved.start,
        length: saved.content.len() as u64,
    };
    entry.retired.saved.iter().map(place).collect()
}

fn total(places: &[Place]) -> String {
    size::show(places.iter().map(|place| place.length).sum())
}

fn retire_error(error: RetireError) -> Error {
    let kind = match &error {
        RetireError::State(error) => return state_error(error),
        RetireError::Search(error) => return disk_error(error),
        RetireError::Busy { .. } => ErrorKind::WrongState,
        RetireError::Changed { .. } => ErrorKind::Refused,
        RetireError::Unusable { .. }
        | RetireError::Remains { .. }
        | RetireError::NotHeld { .. }
        | RetireError::Disk { .. } => ErrorKind::Failed,
    };
    let hint = match &error {
        RetireError::Busy { .. } => "wait for that, and try again",
        RetireError::Changed { .. } => {
            "what was saved is older than that and is kept; nothing was written. twinblk remove --force forgets it with the device"
        }
        RetireError::Unusable { .. } => "nothing was written; restore that file from a copy",
        RetireError::Remains { .. } => "what was wiped is saved (twinblk unretire); wipefs shows what is left",
        RetireError::NotHeld { .. } | RetireError::Disk { .. } => {
            "look at the disk, and the kernel's log; the same command again goes on where it stopped"
        }
        RetireError::State(_) | RetireError::Search(_) => "",
    };
    Error::new(kind, error.to_string()).hint(hint)
}
