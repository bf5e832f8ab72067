//! `detach`, `resync`, `set`: small changes to a running device.

use crate::args::{Detach, Rate, Resync, ResyncAction, Set};
use crate::context::{Context, absolute};
use crate::exit::Exit;
use crate::udev;
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::Path;
use twinblk::control::message::{self, Detached, Done};
use twinblk::control::{Error, LegName, Request, Setting, Status};
use twinblk::core::LegId;
use twinblk::runtime::admin::Client;
use twinblk::table::Name;

/// The leg that an administrator names: `a`, `b`, or a path that leads to its disk.
///
/// # Errors
/// No leg is that.
pub fn leg_id(status: &Status, text: &str) -> Result<LegId, Error> {
    let named = |id: LegId| status.legs.iter().any(|leg| leg.id == id).then_some(id);
    let found = match LegName::from(text.to_owned()) {
        LegName::Id(id) => named(id),
        LegName::Path(path) => {
            let path = absolute(&path)?;
            // A link to the same place counts; a path that is gone is compared as it was written.
            let canonical = std::fs::canonicalize(&path).ok();
            let is = |recorded: &Path| recorded == path || canonical.as_deref() == Some(recorded);
            status
                .legs
                .iter()
                .find(|leg| {
                    is(&leg.path)
                        || leg
                            .identity
                            .as_ref()
                            .is_some_and(|disk| is(Path::new(&*disk.canonical)))
                })
                .map(|leg| leg.id)
        }
    };
    found.ok_or_else(|| {
        let legs: Vec<String> = status
            .legs
            .iter()
            .map(|leg| format!("{} ({})", leg.id, leg.path.display()))
            .collect();
        Error::wrong_state(format!("{} has no leg {text}", status.name)).hint(format!("its legs: {}", legs.join(", ")))
    })
}

/// Stop mirroring to a leg.
///
/// # Errors
/// What the daemon says.
pub fn detach(context: &Context, args: &Detach) -> Result<Exit, Error> {
    if args.retire {
        return super::retire::retire(context, args);
    }
    let name = &args.leg.name;
    let mut client = context.running(name)?;
    let status = Context::status_of(&mut client)?;
    let leg = leg_id(&status, &args.leg.leg)?;
    let detached = let_go(&mut client, leg)?;
    look_again(&status, leg);
    context.print(&detached, || {
        format!("{name}: leg {leg} is detached; {} is free\n", detached.path.display())
    })?;
    Ok(Exit::Done)
}

/// Have the host look anew at the disk of a leg whose part has changed.
pub fn look_again(status: &Status, leg: LegId) {
    let mut legs = status.legs.iter().filter(|status| status.id == leg);
    if let Some(disk) = legs.find_map(|leg| leg.identity.as_ref()) {
        udev::look_again(disk);
    }
}

/// Have a running daemon let go of a leg.
///
/// # Errors
/// What it says.
pub fn let_go(client: &mut Client, leg: LegId) -> Result<Detached, Error> {
    let request = Request::Detach { leg: LegName::Id(leg) };
    client.call(&request, None, |_| ControlFlow::Continue(()))
}

/// What was asked for is in force.
#[derive(Serialize)]
struct Changed<'a, T> {
    name: &'a Name,
    #[serde(flatten)]
    now: T,
}

/// Steer the background work.
///
/// # Errors
/// What the daemon says.
pub fn resync(context: &Context, args: &Resync) -> Result<Exit, Error> {
    let (action, said) = match &args.action {
        ResyncAction::Pause => (message::Resync::Pause {}, "is held"),
        ResyncAction::Resume => (message::Resync::Resume {}, "goes on"),
        ResyncAction::Rate { rate: Rate::Unlimited } => {
            (message::Resync::Rate { bytes_per_s: None }, "keeps to no rate")
        }
        ResyncAction::Rate {
            rate: Rate::BytesPerSecond(rate),
        } => (
            message::Resync::Rate {
                bytes_per_s: Some(*rate),
            },
            "keeps to that rate",
        ),
    };
    let name = &args.name;
    let Done {} = context
        .running(name)?
        .call(&Request::Resync(action), None, |_| ControlFlow::Continue(()))?;
    context.print(&Changed { name, now: action }, || {
        format!("{name}: background work {said}\n")
    })?;
    Ok(Exit::Done)
}

/// Change a setting.
///
/// # Errors
/// A value that makes no sense: usage. What the daemon says.
pub fn set(context: &Context, args: &Set) -> Result<Exit, Error> {
    let setting: Setting = args.setting().map_err(Error::usage)?;
    let name = &args.name;
    let Done {} = context
        .running(name)?
        .call(&Request::Set(setting), None, |_| ControlFlow::Continue(()))?;
    context.print(&Changed { name, now: setting }, || {
        format!("{name}: {} is in force\n", args.value)
    })?;
    Ok(Exit::Done)
}
