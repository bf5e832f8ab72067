//! `start`: serve a recorded device again.

use super::create::Served;
use super::stay;
use crate::args::Start;
use crate::context::Context;
use crate::disks::{self, CLAIM_PATIENCE, Leg};
use crate::exit::Exit;
use crate::{daemon, driver, output, udev};
use twinblk::control::launch::{self, Action};
use twinblk::control::{self, Error};
use twinblk::core::{StandIn, Unfit};
use twinblk::table::{Picked, Superblock};

/// Serve a recorded device again.
///
/// # Errors
/// Running already: wrong state. Primary missing: refused, unless the other leg may be served. Primary held: timed out.
pub fn run(context: &Context, args: &Start) -> Result<Exit, Error> {
    let name = &args.name;
    let picked = context.peek(name)?;
    // The daemon's own lock decides; this is for the better message.
    if context.is_locked(name)? {
        if args.stay {
            return stay::run(context, name);
        }
        return Err(Error::wrong_state(format!("{name} is running already")).hint(format!("twinblk status {name}")));
    }
    let asked = launch::Start {
        degraded: args.degraded,
        force: args.force,
        accept_stale: args.accept_stale,
    };
    let superblock = &picked.superblock;
    let primary = disks::open_leg(context, superblock, superblock.record.primary, CLAIM_PATIENCE)?;
    let is_missing = primary.is_err();
    let legs: Vec<Leg> = match primary {
        Ok(primary) => {
            let secondary = disks::open_secondary(context, superblock, &primary.told.identity, args.degraded)?;
            [Some(primary), secondary].into_iter().flatten().collect()
        }
        Err(missing) => vec![open_stand_in(context, &picked, &asked, &missing)?],
    };
    driver::ensure()?;
    context.make_run_dir()?;
    let ready = daemon::launch(context, name, Action::Start(asked), &legs)?;
    // Of a disk that has nothing of its own to be known by, a boot has made another until it is claimed again.
    legs.iter().for_each(|leg| udev::look_again(&leg.told.identity));
    if is_missing {
        say_what_became(superblock);
    }
    context.print(&Served::new(name, &ready), || format!("{}\n", ready.device.display()))?;
    if args.stay {
        return stay::run(context, name);
    }
    Ok(Exit::Done)
}

/// The other leg, to be served although the primary is missing.
fn open_stand_in(context: &Context, picked: &Picked, asked: &launch::Start, missing: &Error) -> Result<Leg, Error> {
    let superblock = &picked.superblock;
    if superblock.record.stand_in() == StandIn::Unfit(Unfit::None) {
        return Err(missing.clone());
    }
    control::stand_in::stand_in(superblock, picked.doubt, asked, &missing.message)?;
    let other = superblock.record.primary.other();
    disks::open_leg(context, superblock, other, CLAIM_PATIENCE)?.map_err(|error| Error {
        message: format!("{}; {}", missing.message, error.message),
        ..error
    })
}

/// What was served instead of the recorded primary, and how that may come back.
fn say_what_became(superblock: &Superblock) {
    let record = &superblock.record;
    let (name, old, new) = (&superblock.name, record.primary, record.primary.other());
    if let StandIn::Stale(stale) = record.stand_in() {
        let lacks = control::stand_in::lacks(superblock, new, stale);
        output::note(&format!("{name} is served from leg {new}, which {lacks}"));
    }
    let path = superblock.legs[old.index()].as_ref().map_or("DISK", |disk| &disk.path);
    output::note(&format!(
        "leg {new} is the primary of {name}; leg {old} is detached, its disk is left as it is: twinblk attach {name} {path} makes it \
         equal to leg {new}"
    ));
}
