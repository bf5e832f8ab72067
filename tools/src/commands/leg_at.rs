//! `leg-at`: is this block device a leg of some device? For the udev rule that hides legs from the host: it looks at the
//! state directory and sysfs alone, opens no disk, and needs no daemon.
//!
//! *A state directory on a file system that is not mounted yet* says nothing, which is not the same as that there are no legs: it
//! is told to the kernel's log and to udev, and whoever mounts it has udev look again (`--again`, see the unit).

use crate::args::LegAt;
use crate::context::Context;
use crate::disks::disk_error;
use crate::exit::Exit;
use crate::udev;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use twinblk::control::Error;
use twinblk::core::LegId;
use twinblk::io::disk::system::{BlockDir, Mount};
use twinblk::io::disk::{Identity, System, footprint, identity};
use twinblk::runtime::retired;
use twinblk::table::{LegIdentity, LegKind, Name, Sighting};

/// Where udev keeps names that come from what a disk holds.
const CONTENT_LINKS: [&str; 4] = [
    "/dev/disk/by-uuid/",
    "/dev/disk/by-label/",
    "/dev/disk/by-partuuid/",
    "/dev/disk/by-partlabel/",
];

/// Partitions on partitions' mappings that are followed.
const DEPTH: usize = 4;

/// A disk that is to be hidden.
struct Hidden {
    name: Name,
    leg: LegId,
    disk: LegIdentity,
    sighting: Option<Sighting>,
}

#[derive(Serialize)]
struct Found {
    name: Name,
    leg: LegId,
    /// Whether it is a partition of the leg.
    partition: bool,
    /// Whether the leg is looked for by a name that comes from its content.
    links: bool,
}

/// Print, for udev to import, which leg a block device is, or is a partition of; nothing if it is none.
///
/// # Errors
/// There is no such block device, or the state directory cannot be read.
pub fn run(context: &Context, args: &LegAt) -> Result<Exit, Error> {
    let system = System::host();
    let mounts = system.mounts().map_err(|error| disk_error(&error))?;
    let fstab = fs::read("/etc/fstab").unwrap_or_default();
    if let Some(point) = not_mounted(&context.state_dir, &mounts, &fstab) {
        let point = point.display();
        // Whoever runs this reads neither of its outputs.
        let _ = fs::write(
            "/dev/kmsg",
            format!(
                "<4>twinblk: {point} is not mounted: until then nobody knows which disks are legs, and none is hidden\n"
            ),
        );
        let waits = serde_json::json!({ "not_mounted": point.to_string() });
        context.print(&waits, || "TWINBLK_UNKNOWN=1\n".into())?;
        return Ok(Exit::Done);
    }
    let hidden = all_hidden(context)?;
    let Some(device) = args.device else {
        return look_again_at_all(&system, &hidden);
    };
    let block = system.block(device).map_err(|error| disk_error(&error))?;
    let found = look(&system, &block, &hidden, DEPTH)?;
    let flag = |is_set: bool| u8::from(is_set);
    context.print(&found, || {
        found.as_ref().map_or_else(String::new, |found| {
            format!(
                "TWINBLK_LEG={}/{}\nTWINBLK_PARTITION={}\nTWINBLK_LINKS={}\n",
                found.name,
                found.leg,
                flag(found.partition),
                flag(found.links)
            )
        })
    })?;
    Ok(Exit::Done)
}

/// Every leg that is a block device, but for those that were let go and show no label any more. A device whose state cannot be
/// read has none.
fn all_hidden(context: &Context) -> Result<Vec<Hidden>, Error> {
    let mut hidden = Vec::new();
    for name in context.names()? {
        let Ok(picked) = context.peek(&name) else { continue };
        let superblock = picked.superblock;
        for leg in LegId::ALL {
            let Some(disk) = superblock.legs[leg.index()]
                .clone()
                .filter(|disk| disk.kind == LegKind::Block)
            else {
                continue;
            };
            // Where that cannot be found out, it may show the labels of the device.
            if retired::is_leg_retired(&context.state_dir.join(&name), &superblock, leg).unwrap_or(false) {
                continue;
            }
            hidden.push(Hidden {
                name: name.clone(),
                leg,
                disk,
                sighting: superblock.sightings[leg.index()],
            });
        }
    }
    Ok(hidden)
}

/// Have udev look at every disk that is to be hidden, and what is made of it.
fn look_again_at_all(system: &System, hidden: &[Hidden]) -> Result<Exit, Error> {
    for block in system.blocks().map_err(|error| disk_error(&error))? {
        // One that has gone since is none.
        if let Ok(Some(_)) = look(system, &block, hidden, DEPTH) {
            udev::change(&block);
        }
    }
    Ok(Exit::Done)
}

/// Which leg a block device is. A partition is what its disk is; so is one that device mapper makes (kpartx).
fn look(system: &System, block: &BlockDir, hidden: &[Hidden], depth: usize) -> Result<Option<Found>, Error> {
    if hidden.is_empty() {
        return Ok(None);
    }
    if let Some(found) = is_leg(system, block, hidden)? {
        return Ok(Some(found));
    }
    let lower = match block.partition() {
        Some(_) => vec![block.whole()],
        None if udev::is_mapped_partition(block) => block.slaves(),
        None => Vec::new(),
    };
    for lower in lower.iter().filter(|_| depth > 0) {
        if let Some(found) = look(system, lower, hidden, depth - 1)? {
            return Ok(Some(Found {
                partition: true,
                ..found
            }));
        }
    }
    Ok(None)
}

fn is_leg(system: &System, block: &BlockDir, hidden: &[Hidden]) -> Result<Option<Found>, Error> {
    let node = block.node();
    let mut disk: Identity = identity::of_block(system, block, Path::new(&node)).map_err(|error| disk_error(&error))?;
    let sectors = block.attribute("size").and_then(|size| size.trim().parse::<u64>().ok());
    disk.size = sectors.unwrap_or(0) * 512;
    let sighting = footprint::sighting(&disk);
    let is_it = |hidden: &&Hidden| {
        let is_there = sighting.is_some() && hidden.sighting == sighting;
        identity::is_proven(&hidden.disk, &disk, is_there)
    };
    Ok(hidden.iter().find(is_it).map(|hidden| Found {
        name: hidden.name.clone(),
        leg: hidden.leg,
        partition: false,
        links: CONTENT_LINKS.iter().any(|links| hidden.disk.path.starts_with(links)),
    }))
}

/// The mount point above the state directory on which nothing is mounted yet, as far as fstab and automounts tell.
fn not_mounted(state_dir: &Path, mounts: &[Mount], fstab: &[u8]) -> Option<PathBuf> {
    // What would be mounted by a look at it may wait for this very event.
    let above = mounts.iter().filter(|mount| state_dir.starts_with(&mount.point));
    let upper = above.max_by_key(|mount| mount.point.components().count());
    if let Some(automount) = upper.filter(|mount| mount.kind == "autofs") {
        return Some(automount.point.clone());
    }
    let is_mounted = |point: &Path| mounts.iter().any(|mount| mount.point == point);
    points_of_fstab(fstab)
        .into_iter()
        .find(|point| state_dir.starts_with(point) && !is_mounted(point))
}

/// Where fstab wants something mounted, apart from what is mounted by hand alone.
fn points_of_fstab(fstab: &[u8]) -> Vec<PathBuf> {
    let fields = |line: &str| -> Option<PathBuf> {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, point, _, ..] = fields[..] else { return None };
        let options = fields.get(3).copied().unwrap_or_default();
        let is_wanted = !line.trim_start().starts_with('#') && !options.split(',').any(|option| option == "noauto");
        (is_wanted && point.starts_with('/')).then(|| point.replace("\\040", " ").into())
    };
    String::from_utf8_lossy(fstab).lines().filter_map(fields).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinblk::io::disk::system::parse_mounts;

    fn mounts(text: &str) -> Vec<Mount> {
        parse_mounts(text.as_bytes())
    }

    #[test]
    fn fstab_says_what_is_still_to_be_mounted() {
        let points = points_of_fstab(
            b"# a comment\nUUID=1 / ext4 defaults 0 1\nUUID=2\t/var ext4\n\nUUID=3 /x\\040y xfs noauto\n",
        );
        assert_eq!(points, [PathBuf::from("/"), "/var".into()]);
    }

    #[test]
    fn an_automount_is_not_waited_for() {
        let root = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
        let waiting = format!("{root}35 21 0:30 / /state rw - autofs systemd-1 rw\n");
        let mounted = format!("{waiting}36 35 8:2 / /state rw - ext4 /dev/sda2 rw\n");
        let dir = Path::new("/state/twinblk");
        assert_eq!(not_mounted(dir, &mounts(root), b""), None);
        let wanted = b"UUID=1 /state ext4";
        assert_eq!(not_mounted(dir, &mounts(root), wanted), Some("/state".into()));
        assert_eq!(not_mounted(dir, &mounts(&waiting), b""), Some("/state".into()));
        assert_eq!(not_mounted(dir, &mounts(&mounted), wanted), None);
    }
}
