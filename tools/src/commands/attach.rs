//! `attach`: start mirroring to a disk.

use super::steer;
use crate::args::Attach;
use crate::context::{Context, absolute};
use crate::disks::{self, Target};
use crate::exit::Exit;
use crate::udev;
use serde::Serialize;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::PathBuf;
use twinblk::control::message::Attached;
use twinblk::control::status::{LegStatus, Role};
use twinblk::control::{self, Content, Error, Request, Status};
use twinblk::core::LegId;
use twinblk::io::disk::{self, Disk};
use twinblk::table::{LegIdentity, Name};

#[derive(Serialize)]
struct Done<'a> {
    name: &'a Name,
    leg: LegId,
    path: PathBuf,
    content: Content,
}

/// Start mirroring to a disk.
///
/// # Errors
/// Refused with nothing written; or what the daemon says.
pub fn run(context: &Context, args: &Attach) -> Result<Exit, Error> {
    let name = &args.name;
    let mut client = context.running(name)?;
    let status = Context::status_of(&mut client)?;
    let path = absolute(&args.disk)?;
    refuse_present(&status, &path)?;
    let (disk, content) = open(context, args, &status, &path)?;
    let request = Request::Attach(control::Attach {
        identity: disk.identity.clone(),
        content,
        unchanged: args.unchanged,
    });
    let attached: Attached = client.call(&request, Some(disk.descriptor.as_fd()), |_| ControlFlow::Continue(()))?;
    let leg = attached.leg;
    udev::look_again(&disk.identity);
    // A disk that had this place is none of the device's any more.
    steer::look_again(&status, leg);
    let done = Done {
        name,
        leg,
        path,
        content,
    };
    context.print(&done, || {
        format!(
            "{name}: mirroring to {} as leg {leg}; twinblk wait {name}\n",
            args.disk.display()
        )
    })?;
    Ok(Exit::Done)
}

/// A disk that already follows, and has failed or is behind perhaps, must be let go before it can come back.
fn refuse_present(status: &Status, path: &std::path::Path) -> Result<(), Error> {
    let follows = |leg: &&LegStatus| leg.role == Role::Secondary && is_served(leg) && leg.path == path;
    let Some(LegStatus { id, health, .. }) = status.legs.iter().find(follows) else {
        return Ok(());
    };
    let name = &status.name;
    let message = format!(
        "{} is refused: it is leg {id} of {name} already, and is {}",
        path.display(),
        health.word()
    );
    Err(Error::refused(message).hint(format!(
        "to begin anew with it: twinblk detach {name} {id}, then attach it again"
    )))
}

/// The disk, claimed, and what is known of its content.
fn open(context: &Context, args: &Attach, status: &Status, path: &std::path::Path) -> Result<(Disk, Content), Error> {
    let served: Vec<LegIdentity> = status
        .legs
        .iter()
        .filter(|leg| is_served(leg))
        .filter_map(|leg| leg.identity.clone())
        .collect();
    let target = Target {
        size: status.size_bytes,
        block: status.logical_block_size,
        apart_from: &served,
    };
    let disk = disks::open(context, path, &target, disk::Content::Any)?;
    let was_leg = status
        .legs
        .iter()
        .filter(|leg| !is_served(leg))
        .filter_map(|leg| leg.identity.as_ref())
        .any(|recorded| disks::comes_back(recorded, &disk.identity, args.unchanged));
    if args.overwrite {
        return Ok((disk, Content::Overwrite));
    }
    if args.unchanged && !was_leg {
        let message = format!("{} is no leg of {} that comes back", path.display(), status.name);
        return Err(Error::refused(message).hint("attach it without --unchanged"));
    }
    if args.seeded {
        return Ok((disk, Content::Seeded));
    }
    if was_leg {
        return Ok((disk, Content::Returning));
    }
    // Opened again for the one check that a returning leg is spared; nothing of the first opening is relied on.
    drop(disk);
    disks::open(context, path, &target, disk::Content::Blank).map(|disk| (disk, Content::Blank))
}

/// Whether the daemon has the leg's disk: a detached one, and one that is not there, can come back.
fn is_served(leg: &LegStatus) -> bool {
    use twinblk::core::Health;
    match leg.health {
        _ if leg.role == Role::Primary => true,
        Health::Absent => false,
        Health::InSync | Health::Behind | Health::Syncing | Health::Failed => leg.attached,
    }
}
