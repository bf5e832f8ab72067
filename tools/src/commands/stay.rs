//! `start --stay`: for a service manager, which wants a process that ends when the device is served no more.

use super::list::status_of;
use crate::context::Context;
use crate::driver;
use crate::exit::Exit;
use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::Duration;
use twinblk::control::status::State;
use twinblk::control::{Error, ErrorKind};
use twinblk::table::Name;

/// How often the daemon's lock is looked at.
const EVERY: Duration = Duration::from_millis(500);

/// How long a device may be without a daemon while somebody replaces it.
const REPLACING: Duration = Duration::from_secs(10);

/// Stay as long as the device is served, whoever serves it.
///
/// # Errors
/// Its daemon died: failed, so that the service manager starts it again.
pub fn run(context: &Context, name: &Name) -> Result<Exit, Error> {
    notify();
    loop {
        loop {
            match context.is_locked(name) {
                Ok(true) => thread::sleep(EVERY),
                Ok(false) => break,
                Err(error) if error.kind == ErrorKind::NoSuchDevice => return Ok(Exit::Done),
                Err(error) => return Err(error),
            }
        }
        match status_of(context, name).map(|status| status.state) {
            Ok(State::Stopped) => return Ok(Exit::Done),
            Err(error) if error.kind == ErrorKind::NoSuchDevice => return Ok(Exit::Done),
            _ => {}
        }
        // Handed over to another daemon, which may be starting; or dead.
        let is_served = driver::until(REPLACING, || context.is_locked(name).unwrap_or(true));
        if !is_served {
            let message = format!("the daemon of {name} has ended without stopping the device");
            return Err(Error::failed(message).hint(format!("twinblk start {name}")));
        }
    }
}

/// Tell the service manager that the device can be used; see sd_notify(3). There may be none.
fn notify() {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let socket = UnixDatagram::unbound();
    if let (Ok(address), Ok(socket)) = (address, socket) {
        let _ = socket.send_to_addr(b"READY=1", &address);
    }
}
