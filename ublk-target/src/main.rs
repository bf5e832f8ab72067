//! The twinblk daemon: serves one device, and is started by `twinblk`.
//!
//! Without arguments it expects to be told on descriptor 3 what to serve (see `twinblk::control::launch`). `--features`
//! prints what the driver can do; `--left ID UUID` what is left in it of a device that nobody serves; `--bury ID UUID` deletes that.

mod dead;
mod device;
mod ending;
mod errors;
mod hand_over;
mod herald;
mod keeper;
mod logger;
mod plan;
mod port;
mod process;
mod running;
mod serve;
mod tables;
mod ublk;

use crate::errors::Told;
use crate::ublk::features::Features;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use twinblk::control::{Error, ErrorKind, launch};
use twinblk::runtime::admin::Launchee;

/// What this daemon calls itself. A build can be told to differ from another of the same sources.
const VERSION: &str = match option_env!("TWINBLK_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

fn main() -> ExitCode {
    logger::start();
    // A thread that panics leaves something undone that others wait for; a daemon that dies is recovered from.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        [] => serve(),
        ["--features"] => print_features(),
        ["--left", id, uuid] => print_left(id, uuid),
        ["--bury", id, uuid] => bury(id, uuid),
        ["--version"] => {
            println!("twinblkd {VERSION}");
            Ok(())
        }
        _ => Err(Error::usage(
            "usage: twinblkd [--features | --left ID UUID | --bury ID UUID | --version]; to serve a device it is started by twinblk",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            if let Some(hint) = &error.hint {
                log::error!("{hint}");
            }
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn print_features() -> Result<(), Error> {
    let features = Features::of_driver().map_err(|error| error.told("ask the ublk driver"))?;
    let names = features.names().into_iter().map(String::from).collect();
    let features = launch::Features {
        features: features.0,
        names,
    };
    let json = serde_json::to_string(&features).map_err(|error| Error::failed(error.to_string()))?;
    println!("{json}");
    Ok(())
}

/// Say what is left of a device that nobody serves: `nothing`, `waiting` for a daemon to take it over, or `remains`.
fn print_left(id: &str, uuid: &str) -> Result<(), Error> {
    let (id, mark) = number_and_mark(id, uuid)?;
    println!("{}", dead::see(id, mark)?.word());
    Ok(())
}

/// Delete what a dead daemon left in the driver, for a device that is not to be served again.
fn bury(id: &str, uuid: &str) -> Result<(), Error> {
    let (id, mark) = number_and_mark(id, uuid)?;
    dead::bury(id, mark)
}

fn number_and_mark(id: &str, uuid: &str) -> Result<(u32, u64), Error> {
    let id = id
        .parse()
        .map_err(|_| Error::usage(format!("{id} is no number of a device")))?;
    let digits = uuid.replace('-', "");
    let uuid = u128::from_str_radix(&digits, 16).map_err(|_| Error::usage(format!("{uuid} is no uuid")))?;
    Ok((id, plan::mark(&uuid.to_be_bytes())))
}

fn serve() -> Result<(), Error> {
    let socket = launch_socket().ok_or_else(|| {
        Error::new(ErrorKind::Usage, "nothing came on descriptor 3")
            .hint("this daemon is started by twinblk create or start")
    })?;
    process::hold_signals().map_err(|error| error.told("start"))?;
    process::settle();
    serve::serve(Launchee::new(socket))
}

/// The socket that whoever started us has left us.
fn launch_socket() -> Option<UnixStream> {
    let descriptor = launch::DESCRIPTOR;
    // SAFETY: asks for the flags of a descriptor number, whatever it is.
    if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open, and at this point of `main` nothing else in this process has opened or owns it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let socket = UnixStream::from(descriptor);
    socket.local_addr().is_ok().then_some(socket)
}
