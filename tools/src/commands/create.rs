//! `create`: serve a disk as a new device.

use crate::args::Create;
use crate::context::{Context, absolute};
use crate::disks::{self, Leg, Target};
use crate::exit::Exit;
use crate::{daemon, driver, udev};
use serde::Serialize;
use std::path::PathBuf;
use twinblk::control::launch::{self, Action, Ready};
use twinblk::control::{Error, ErrorKind};
use twinblk::core::LegId;
use twinblk::io::disk::Content;
use twinblk::table::Name;

/// A device that is served now.
#[derive(Serialize)]
pub struct Served<'a> {
    pub name: &'a Name,
    pub device: &'a PathBuf,
    pub id: u32,
    pub pid: Option<u32>,
}

impl<'a> Served<'a> {
    /// What the daemon said of it.
    pub fn new(name: &'a Name, ready: &'a Ready) -> Served<'a> {
        Served {
            name,
            device: &ready.device,
            id: ready.id,
            pid: ready.pid,
        }
    }
}

/// Serve a disk as a new device.
///
/// # Errors
/// Refused with nothing changed; or failed with nothing left.
pub fn run(context: &Context, args: &Create) -> Result<Exit, Error> {
    let name = &args.name;
    match context.peek(name) {
        Err(error) if error.kind == ErrorKind::NoSuchDevice => {}
        Err(error) => return Err(error),
        Ok(_) => {
            let message = format!("there is a device {name} already, in {}", context.state_dir.display());
            return Err(Error::refused(message).hint(format!("choose another name, or: twinblk start {name}")));
        }
    }
    let path = absolute(&args.disk)?;
    let target = Target {
        size: 0,
        block: args.logical_block_size.unwrap_or(4096),
        apart_from: &[],
    };
    let disk = disks::open(context, &path, &target, Content::Any)?;
    driver::ensure()?;
    context.make_run_dir()?;
    let action = Action::Create(launch::Create {
        protocol: args.protocol.into(),
        id: args.id,
        depth: args.depth,
        logical_block_size: args.logical_block_size,
    });
    let identity = disk.identity.clone();
    let ready = daemon::launch(context, name, action, &[Leg::claimed(LegId::A, disk)])?;
    udev::look_again(&identity);
    context.print(&Served::new(name, &ready), || format!("{}\n", ready.device.display()))?;
    Ok(Exit::Done)
}
