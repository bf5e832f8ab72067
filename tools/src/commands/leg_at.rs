//! `leg-at`: is this block device a leg of some device? For the udev rule that hides legs from the host: it looks at the
//! state directory and sysfs alone, opens no disk, and needs no daemon.

use crate::args::LegAt;
use crate::context::Context;
use crate::disks::disk_error;
use crate::exit::Exit;
use serde::Serialize;
use std::path::Path;
use twinblk::control::{Error, ErrorKind};
use twinblk::core::LegId;
use twinblk::io::disk::system::BlockDir;
use twinblk::io::disk::{Identity, System, identity};
use twinblk::table::{LegIdentity, LegKind, Name};

/// Where udev keeps names that come from what a disk holds.
const CONTENT_LINKS: [&str; 4] = [
    "/dev/disk/by-uuid/",
    "/dev/disk/by-label/",
    "/dev/disk/by-partuuid/",
    "/dev/disk/by-partlabel/",
];

#[derive(Serialize)]
struct Found {
    name: Name,
    leg: LegId,
    /// Whether it is a partition of the leg.
    partition: bool,
    /// Whether the leg is looked for by a name that comes from its content.
    links: bool,
}

/// Print, for udev to import, which leg a block device is, or is a partition of. Ends with 1 when it is none.
///
/// # Errors
/// There is no such block device, or the state directory cannot be read.
pub fn run(context: &Context, args: &LegAt) -> Result<Exit, Error> {
    let system = System::host();
    let block = system.block(args.device).map_err(|error| disk_error(&error))?;
    let legs = context.legs()?;
    let found = match look(&system, &block, &legs)? {
        Some(found) => Some(found),
        None if block.partition().is_some() => {
            let whole = look(&system, &block.whole(), &legs)?;
            whole.map(|found| Found {
                partition: true,
                ..found
            })
        }
        None => None,
    };
    let Some(found) = found else {
        return Ok(Exit::Error(ErrorKind::Failed));
    };
    let flag = |is_set: bool| u8::from(is_set);
    context.print(&found, || {
        format!(
            "TWINBLK_LEG={}/{}\nTWINBLK_PARTITION={}\nTWINBLK_LINKS={}\n",
            found.name,
            found.leg,
            flag(found.partition),
            flag(found.links)
        )
    })?;
    Ok(Exit::Done)
}

fn look(system: &System, block: &BlockDir, legs: &[(Name, LegId, LegIdentity)]) -> Result<Option<Found>, Error> {
    if !legs.iter().any(|(_, _, disk)| disk.kind == LegKind::Block) {
        return Ok(None);
    }
    let node = block.node();
    let mut disk: Identity = identity::of_block(system, block, Path::new(&node)).map_err(|error| disk_error(&error))?;
    let sectors = block.attribute("size").and_then(|size| size.trim().parse::<u64>().ok());
    disk.size = sectors.unwrap_or(0) * 512;
    let leg = legs.iter().find(|(_, _, recorded)| identity::may_be(recorded, &disk));
    Ok(leg.map(|(name, leg, recorded)| Found {
        name: name.clone(),
        leg: *leg,
        partition: false,
        links: CONTENT_LINKS.iter().any(|links| recorded.path.starts_with(links)),
    }))
}
