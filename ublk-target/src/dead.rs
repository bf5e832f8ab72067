//! The device in the driver that a dead daemon left.
//!
//! Its guest waits, and its unanswered requests wait with it. The next daemon takes it over, and nobody notices more than
//! the time that took. Where the guest must not go on ([`bury`]) it is deleted, and added again with the same number:
//! whoever still has it open or mounted gets errors, and none of it reaches the disks any more. Its number is free only
//! when nobody has it open.

use crate::errors::Told;
use crate::ublk::control::{self, State};
use crate::ublk::sysfs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use twinblk::control::Error;
use twinblk::io::disk::{User, users_of};

/// How long to wait for a daemon that is dying, and for the number to be free.
const PATIENCE: Duration = Duration::from_secs(15);

/// The guest waits meanwhile.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// How long the number is waited for at least, and when somebody is known to keep it: he may be letting go just now.
const LINGERING: Duration = Duration::from_secs(1);

/// What is left of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Its guest waits for a daemon to take it over.
    Waiting,
    /// The driver takes it for served: something of the dead daemon, which had this number, has not ended.
    Held(i32),
    /// It serves nobody any more, or never did.
    Remains,
}

impl Left {
    /// As it is told to the tool.
    pub fn word(self) -> &'static str {
        match self {
            Left::Nothing => "nothing",
            Left::Waiting => "waiting",
            Left::Held(_) => "held",
            Left::Remains => "remains",
        }
    }
}

/// See what is left of the device with this number and mark right now; one that is served is not left.
///
/// # Errors
/// The driver does not say.
pub fn see(id: u32, mark: u64) -> Result<Left, Error> {
    if !sysfs::exists(id) {
        return Ok(Left::Nothing);
    }
    match control::info(id) {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(Left::Nothing),
        Err(error) => Err(error.told(&format!("look at {}", sysfs::block_device(id).display()))),
        Ok(info) if info.mark != mark => Ok(Left::Nothing),
        Ok(info) => Ok(match info.state {
            State::Live if is_running(info.pid) => Left::Nothing,
            State::Quiesced => Left::Waiting,
            State::Live | State::Failing | State::Dead => Left::Remains,
        }),
    }
}

/// See what is left of the device with this number and mark, and wait a while for its daemon to have ended.
///
/// # Errors
/// The number belongs to another device.
pub fn look(id: u32, mark: u64) -> Result<Left, Error> {
    if !sysfs::exists(id) {
        return Ok(Left::Nothing);
    }
    let until = Instant::now() + PATIENCE;
    let path = sysfs::block_device(id);
    let path = path.display();
    loop {
        let info = match control::info(id) {
            Ok(info) => info,
            Err(error) if error.errno() == Some(libc::ENODEV) => return Ok(Left::Nothing),
            Err(error) => return Err(error.told(&format!("look at {path}"))),
        };
        if info.mark != mark {
            return Err(Error::refused(format!("{path} belongs to another program or device"))
                .hint("stop that one first: this device keeps the number it was created with"));
        }
        match info.state {
            State::Quiesced => return Ok(Left::Waiting),
            State::Failing | State::Dead => return Ok(Left::Remains),
            // Its state is locked by us, so its daemon is on its way out, and the driver is about to see that.
            State::Live if Instant::now() < until => thread::sleep(BETWEEN_LOOKS),
            State::Live => return Ok(Left::Held(info.pid)),
        }
    }
}

/// What to say of a dead daemon that something still holds.
pub fn held(id: u32, pid: i32) -> Error {
    let path = sysfs::block_device(id);
    Error::timed_out(format!(
        "the dead daemon of {} (pid {pid}) has not ended",
        path.display()
    ))
    .hint("an operation on a disk holds it: see the kernel's log, and wait for the disk to give up")
}

/// Delete what is left of the device with this number and mark, if anything is.
///
/// # Errors
/// As [`look`]; or somebody still has the old device open.
pub fn bury(id: u32, mark: u64) -> Result<(), Error> {
    let until = Instant::now() + PATIENCE;
    match look(id, mark)? {
        Left::Nothing => return Ok(()),
        // It may be served after all.
        Left::Held(pid) if is_running(pid) => return Err(held(id, pid)),
        Left::Held(_) | Left::Waiting | Left::Remains => {}
    }
    let path = sysfs::block_device(id);
    let path = path.display();
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

fn is_running(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
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
