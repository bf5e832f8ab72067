//! The device in the driver that a dead daemon left.
//!
//! It is deleted, and added again with the same number by the next daemon: whoever still has it open or mounted gets
//! errors, and none of it reaches the disks any more. Its number is free only when nobody has it open.

use crate::errors::Told;
use crate::ublk::control::{self, Info, State};
use crate::ublk::sysfs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use twinblk::control::Error;
use twinblk::io::disk::{User, users_of};

/// How long to wait for a daemon that is dying, and for the number to be free.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long the number is waited for at least, and when somebody is known to keep it: he may be letting go just now.
const LINGERING: Duration = Duration::from_secs(1);

/// Delete what is left of the device with this number and mark, if anything is.
///
/// # Errors
/// The number belongs to another device, or somebody still has the old device open.
pub fn bury(id: u32, mark: u64) -> Result<(), Error> {
    if !sysfs::exists(id) {
        return Ok(());
    }
    let until = Instant::now() + PATIENCE;
    let path = sysfs::block_device(id);
    let path = path.display();
    loop {
        let info = match control::info(id) {
            Ok(info) => info,
            Err(error) if error.errno() == Some(libc::ENODEV) => return Ok(()),
            Err(error) => return Err(error.told(&format!("look at {path}"))),
        };
        if info.mark != mark {
            return Err(Error::refused(format!("{path} belongs to another program or device"))
                .hint("stop that one first: this device keeps the number it was created with"));
        }
        if !is_served(&info) {
            break;
        }
        // Its state is locked by us, so its daemon is on its way out.
        if Instant::now() > until {
            return Err(
                Error::timed_out(format!("the dead daemon of {path} (pid {}) has not ended", info.pid))
                    .hint("an operation on a disk holds it: see the kernel's log, and wait for the disk to give up"),
            );
        }
        thread::sleep(Duration::from_millis(100));
    }
    log::info!("deleting {path}, which a dead daemon left");
    // While there is a block device to look at.
    let users = users_of(&sysfs::block_device(id)).unwrap_or_default();
    control::stop(id).map_err(|error| error.told(&format!("end {path}")))?;
    let left = match users.iter().any(stays) {
        true => LINGERING,
        false => until.saturating_duration_since(Instant::now()).max(LINGERING),
    };
    control::delete(id, left).map_err(|error| match error.is_timeout() {
        true => still_used(id, &users),
        false => error.told(&format!("delete {path}")),
    })
}

/// Whether somebody has to make this user let go: errors do not. A process that gets them may end, or close the device.
fn stays(user: &User) -> bool {
    matches!(user, User::Mount { .. } | User::Swap { .. } | User::Holder { .. })
}

fn is_served(info: &Info) -> bool {
    info.state == State::Live && Path::new(&format!("/proc/{}", info.pid)).exists()
}

fn still_used(id: u32, users: &[User]) -> Error {
    let path = sysfs::block_device(id);
    let by: Vec<String> = users.iter().map(ToString::to_string).collect();
    let by = if by.is_empty() {
        "somebody has it open".into()
    } else {
        by.join("; ")
    };
    Error::wrong_state(format!(
        "the device that the dead daemon left, {}, is ended but still in use: {by}",
        path.display()
    ))
    .hint("it answers nothing but errors: unmount and close it, then start again")
}

/// What to say when the driver has no device of this number to show, and does not give the number away either: it was
/// deleted, and somebody still has it open.
pub fn number_kept(id: u32) -> Error {
    still_used(id, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_keeps_the_number_until_somebody_unmounts_it_and_a_process_may_let_go() {
        let mount = User::Mount {
            device: "/dev/ublkb0".into(),
            at: "/mnt".into(),
        };
        let process = User::Process {
            pid: 1,
            name: "fio".into(),
            writes: true,
        };
        assert!(stays(&mount));
        assert!(!stays(&process));
    }
}
