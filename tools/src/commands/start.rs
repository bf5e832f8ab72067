//! `start`: serve a recorded device again.

use super::create::Served;
use super::stay;
use crate::args::Start;
use crate::context::Context;
use crate::disks::{self, CLAIM_PATIENCE, Leg};
use crate::exit::Exit;
use crate::{daemon, driver};
use twinblk::control::Error;
use twinblk::control::launch::{self, Action};

/// Serve a recorded device again.
///
/// # Errors
/// Running already: wrong state. Primary missing: refused. Primary held: timed out.
pub fn run(context: &Context, args: &Start) -> Result<Exit, Error> {
    if args.accept_stale {
        return Err(Error::not_available("twinblk start --accept-stale"));
    }
    let name = &args.name;
    let picked = context.peek(name)?;
    // The daemon's own lock decides; this is for the better message.
    if context.is_locked(name)? {
        if args.stay {
            return stay::run(context, name);
        }
        return Err(Error::wrong_state(format!("{name} is running already")).hint(format!("twinblk status {name}")));
    }
    let superblock = &picked.superblock;
    let primary = disks::open_primary(context, superblock, CLAIM_PATIENCE)?;
    let secondary = disks::open_secondary(context, superblock, &primary.told.identity, args.degraded)?;
    driver::ensure()?;
    context.make_run_dir()?;
    let legs: Vec<Leg> = [Some(primary), secondary].into_iter().flatten().collect();
    let action = Action::Start(launch::Start {
        degraded: args.degraded,
        force: args.force,
    });
    let ready = daemon::launch(context, name, action, &legs)?;
    context.print(&Served::new(name, &ready), || format!("{}\n", ready.device.display()))?;
    if args.stay {
        return stay::run(context, name);
    }
    Ok(Exit::Done)
}
