//! Finds and starts the daemon.

use crate::context::Context;
use crate::disks::Leg;
use crate::driver;
use std::env;
use std::fs::{self, OpenOptions};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use twinblk::control::launch::{Action, DESCRIPTOR, Features, Launch, Launched, Ready};
use twinblk::control::status::{DriverState, uuid_text};
use twinblk::control::{Error, ErrorKind, paths};
use twinblk::io::process::spawn_detached;
use twinblk::runtime::admin::Launcher;
use twinblk::runtime::admin::launch::LaunchFailure;
use twinblk::runtime::admin::wire::Broken;
use twinblk::table::Name;

/// The name of the daemon's program.
const PROGRAM: &str = "twinblkd";

/// How long a daemon may take until its device can be used: more than it gives itself for all commands to the driver.
const READY: Duration = Duration::from_secs(90);

/// How long one that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(10);

/// The daemon's program: `TWINBLK_DAEMON`, or beside this one, or in `PATH`.
///
/// # Errors
/// There is none.
pub fn program() -> Result<PathBuf, Error> {
    if let Some(path) = env::var_os("TWINBLK_DAEMON") {
        return Ok(path.into());
    }
    let beside = env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(|directory| directory.join(PROGRAM)));
    let search = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&search).map(|directory| directory.join(PROGRAM));
    beside
        .into_iter()
        .chain(in_path)
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Error::failed(format!("{PROGRAM} is neither beside twinblk nor in PATH"))
                .hint("install it, or name it with TWINBLK_DAEMON")
        })
}

/// Start a daemon and wait until its device can be used.
///
/// # Errors
/// What the daemon says; or that it died or hangs, with the end of its log.
pub fn launch(context: &Context, name: &Name, action: Action, legs: &[Leg]) -> Result<Ready, Error> {
    launch_program(&program()?, context, name, action, legs)
}

/// Start this daemon's program and wait until its device can be used.
///
/// # Errors
/// As [`launch`].
pub fn launch_program(
    program: &Path,
    context: &Context,
    name: &Name,
    action: Action,
    legs: &[Leg],
) -> Result<Ready, Error> {
    let log_path = paths::log(&context.run_dir, name);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log_path)
        .map_err(|error| Error::failed(format!("{}: {error}", log_path.display())))?;
    // What an earlier daemon wrote is not the reason of this one's failure.
    let before = log.metadata().map_or(0, |meta| meta.len());
    let (ours, theirs) =
        UnixStream::pair().map_err(|error| Error::failed(format!("no socket for the daemon: {error}")))?;
    let mut child = spawn_detached(program, theirs.into(), DESCRIPTOR, log)
        .map_err(|error| Error::failed(format!("{} cannot be started: {error}", program.display())))?;
    let launch = Launch {
        name: name.clone(),
        state_dir: context.state_dir.clone(),
        run_dir: context.run_dir.clone(),
        action,
        legs: legs.iter().map(|leg| leg.told.clone()).collect(),
    };
    let descriptors: Vec<BorrowedFd<'_>> = legs.iter().map(Leg::descriptor).collect();
    match Launcher::new(ours).launch(&launch, &descriptors, READY) {
        Ok(Launched::Ready(ready)) => Ok(ready),
        Ok(Launched::Failed(error)) => {
            // It has said why; how it ends adds nothing.
            let _ = child.wait();
            Err(error)
        }
        Err(failure) => Err(died(&failure, &mut child, &log_path, before)),
    }
}

/// What to say of a daemon that said nothing itself.
fn died(failure: &LaunchFailure, child: &mut Child, log: &Path, before: u64) -> Error {
    let last = || {
        let text = fs::read(log).unwrap_or_default();
        let new = text
            .get(usize::try_from(before).unwrap_or(usize::MAX)..)
            .unwrap_or_default();
        let new = String::from_utf8_lossy(new);
        let lines: Vec<&str> = new.lines().rev().take(5).collect();
        lines
            .iter()
            .rev()
            .map(|line| format!("\n  | {line}"))
            .collect::<String>()
    };
    let hint = format!("see {}, and twinblk doctor", log.display());
    match failure {
        LaunchFailure::Broken(Broken::TimedOut) => {
            // Nobody would know of the device: it must not appear later. A guest that is taken over waits on, for the next
            // start. A daemon that hangs in the driver goes when the driver lets it.
            end(child);
            let message = format!(
                "the daemon did not get its device ready in {} s{}",
                READY.as_secs(),
                last()
            );
            Error::timed_out(message).hint(hint)
        }
        LaunchFailure::Broken(Broken::Closed { .. }) => {
            let how = child
                .wait()
                .map_or_else(|error| error.to_string(), |status| status.to_string());
            Error::failed(format!("the daemon died before its device was ready ({how}){}", last())).hint(hint)
        }
        LaunchFailure::Broken(_) | LaunchFailure::Answer(_) => {
            end(child);
            Error::failed(format!("the daemon could not be talked to: {failure}{}", last())).hint(hint)
        }
    }
}

/// Kill a daemon that is of no use, and give it a moment to let go of the device's state.
fn end(child: &mut Child) {
    let _ = child.kill();
    driver::until(DYING, || child.try_wait().is_ok_and(|ended| ended.is_some()));
}

/// The version of this daemon's program, which shows that it can run at all.
///
/// # Errors
/// It cannot, or says something else.
pub fn version(program: &Path) -> Result<String, Error> {
    let cannot = |why: String| {
        let error = Error::failed(format!("{} cannot be run: {why}", program.display()));
        error.hint("install it anew, or name another with TWINBLK_DAEMON")
    };
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|error| cannot(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().strip_prefix(PROGRAM).map(str::trim) {
        Some(version) if output.status.success() && !version.is_empty() => Ok(version.into()),
        _ => Err(cannot(format!(
            "--version: {}: {}{}",
            output.status,
            said.trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

/// What the driver has of a device that nobody serves. Unlike what can be seen of a number alone, this is of that very device.
///
/// # Errors
/// The daemon's program, or the driver, does not say.
pub fn left(id: u32, uuid: &[u8; 16]) -> Result<DriverState, Error> {
    let program = program()?;
    let output = Command::new(&program)
        .args(["--left", &id.to_string(), &uuid_text(uuid)])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::failed(format!("{}: {error}", program.display())))?;
    match String::from_utf8_lossy(&output.stdout).trim() {
        "nothing" => Ok(DriverState::Absent),
        "waiting" => Ok(DriverState::Quiesced),
        "remains" => Ok(DriverState::Dead),
        _ => Err(Error::failed(format!(
            "{} --left: {}: {}",
            program.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

/// What the driver can do, as the daemon finds it.
///
/// # Errors
/// The daemon is missing, or says something else.
pub fn features() -> Result<Features, Error> {
    let program = program()?;
    let output = Command::new(&program)
        .arg("--features")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::failed(format!("{}: {error}", program.display())))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::failed(format!(
            "{} --features: {}: {}",
            program.display(),
            output.status,
            said.trim()
        )));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::failed(format!("{} --features: not understood: {error}", program.display())))
}

/// Delete the block device that a dead daemon left in the driver.
///
/// # Errors
/// What the daemon's program says: somebody still has it open, say.
pub fn bury(id: u32, uuid: &[u8; 16]) -> Result<(), Error> {
    let program = program()?;
    let output = Command::new(&program)
        .args(["--bury", &id.to_string(), &uuid_text(uuid)])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::failed(format!("{}: {error}", program.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let code = output.status.code();
    let kind = ErrorKind::ALL
        .into_iter()
        .find(|kind| Some(i32::from(kind.exit_code())) == code);
    // Its log, of which the errors are what it has to say.
    let log = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = log
        .lines()
        .filter_map(|line| Some(line.split_once(" ERROR ")?.1))
        .collect();
    let message = format!("the dead device cannot be deleted: {}", errors.join("; "));
    Err(Error::new(kind.unwrap_or(ErrorKind::Failed), message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process;
    use twinblk::control::ErrorKind;
    use twinblk::control::launch::Start;

    /// Launch a script in the place of a daemon; it has the socket as descriptor 3.
    fn launch(test: &str, script: &str) -> (Result<Ready, Error>, PathBuf) {
        let root = env::temp_dir().join(format!("twinblk-launch-{}-{test}", process::id()));
        fs::create_dir_all(&root).unwrap();
        let program = root.join("daemon");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
        let context = Context {
            json: false,
            state_dir: root.join("state"),
            run_dir: root.clone(),
        };
        fs::write(root.join("vm1.log"), "an old line\n").unwrap();
        let action = Action::Start(Start {
            degraded: true,
            ..Start::default()
        });
        (
            launch_program(&program, &context, &"vm1".parse().unwrap(), action, &[]),
            root,
        )
    }

    #[test]
    fn a_daemon_is_told_what_to_serve_and_says_when_it_is_ready() {
        let script = r#"read -r line <&3; printf '%s' "$line" > "$0.told"
            echo '{"ready":{"device":"/dev/ublkb7","id":7,"pid":1}}' >&3"#;
        let (ready, root) = launch("ready", script);
        let ready = ready.unwrap();
        assert_eq!((ready.device, ready.id), (PathBuf::from("/dev/ublkb7"), 7));
        let told: Launch = serde_json::from_slice(&fs::read(root.join("daemon.told")).unwrap()).unwrap();
        assert_eq!(
            told.action,
            Action::Start(Start {
                degraded: true,
                ..Start::default()
            })
        );
        assert_eq!(told.run_dir, root);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_daemon_that_fails_says_why_through_the_tool() {
        let script = r#"read -r line <&3
            echo '{"failed":{"kind":"refused","message":"no","hint":"do"}}' >&3; exit 1"#;
        let (failed, root) = launch("failed", script);
        assert_eq!(failed, Err(Error::refused("no").hint("do")));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_daemon_that_dies_is_reported_with_the_end_of_its_own_log() {
        let (failed, root) = launch("died", "read -r line <&3; echo panicked at the disco >&2; exit 3");
        let error = failed.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Failed);
        for word in ["exit status: 3", "panicked at the disco"] {
            assert!(error.message.contains(word), "{}", error.message);
        }
        assert!(!error.message.contains("an old line"), "{}", error.message);
        fs::remove_dir_all(root).unwrap();
    }
}
