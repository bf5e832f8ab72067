//! `doctor`: whether this machine can serve devices; what is missing and how to get it.

use crate::context::Context;
use crate::exit::Exit;
use crate::{daemon, driver, size};
use serde::Serialize;
use std::fs;
use std::path::Path;
use twinblk::control::{Error, ErrorKind};

/// The oldest kernel that can serve.
const OLDEST: Version = Version(6, 12, 0);

/// What a default device locks: its I/O buffers and a mirror's pool.
const LOCKED: u64 = (8 + 64) << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It can serve, but.
    Warning,
    /// It cannot serve.
    Missing,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Check {
        Check {
            name,
            verdict,
            found: found.into(),
            hint: None,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Check {
        self.hint = Some(hint.into());
        self
    }
}

#[derive(Serialize)]
struct Report {
    can_serve: bool,
    checks: Vec<Check>,
}

/// Check the machine.
///
/// # Errors
/// It cannot serve: failed, after the report.
pub fn run(context: &Context) -> Result<Exit, Error> {
    let checks = vec![
        root(),
        kernel(),
        driver_present(),
        features(),
        io_uring(),
        device_limit(),
        memory_lock(),
        directory("state directory", &context.state_dir),
        directory("run directory", &context.run_dir),
        tool(
            "b3sum",
            "only to check twinblk digest against another program: cargo install b3sum, or apt install b3sum",
        ),
    ];
    let can_serve = checks.iter().all(|check| check.verdict != Verdict::Missing);
    let report = Report { can_serve, checks };
    context.print(&report, || human(&report))?;
    Ok(if can_serve {
        Exit::Done
    } else {
        Exit::Error(ErrorKind::Failed)
    })
}

fn human(report: &Report) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let word = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Missing => "MISSING",
        };
        text.push_str(&format!("{word:8} {}: {}\n", check.name, check.found));
        if let Some(hint) = &check.hint {
            text.push_str(&format!("         what to do: {hint}\n"));
        }
    }
    text.push_str(if report.can_serve {
        "This machine can serve devices.\n"
    } else {
        "This machine cannot serve devices yet.\n"
    });
    text
}

fn root() -> Check {
    if nix::unistd::geteuid().is_root() {
        Check::new("rights", Verdict::Ok, "root")
    } else {
        Check::new("rights", Verdict::Missing, "not root").hint("run twinblk as root: disks and the driver need it")
    }
}

/// The first three numbers of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Version {
    fn parse(release: &str) -> Option<Version> {
        let plain: &str = release.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut numbers = plain.split('.').map(str::parse::<u32>);
        let major = numbers.next()?.ok()?;
        let minor = numbers.next()?.ok()?;
        let patch = numbers.next().and_then(Result::ok).unwrap_or(0);
        Some(Version(major, minor, patch))
    }
}

fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    judge_kernel(release.trim())
}

fn judge_kernel(release: &str) -> Check {
    let check = |verdict| Check::new("kernel", verdict, release);
    match Version::parse(release) {
        None => check(Verdict::Warning).hint("its version is not understood; 6.12 or later is needed"),
        Some(version) if version < OLDEST => {
            check(Verdict::Missing).hint("6.12 or later is needed: Debian 13, or linux-image from backports")
        }
        Some(Version(6, 18, 4 | 5)) => {
            check(Verdict::Missing).hint("adding a device oopses on this kernel: use 6.18.6 or later, or 6.12")
        }
        // Which of them carry the faulty backport cannot be told from the number.
        Some(Version(6, 17, _)) if release.contains('-') => check(Verdict::Warning)
            .hint("adding a device oopses on some vendors' 6.17: try it where nothing is lost, or use another kernel"),
        Some(_) => check(Verdict::Ok),
    }
}

fn driver_present() -> Check {
    const NAME: &str = "ublk driver";
    match driver::ensure() {
        Ok(()) => Check::new(NAME, Verdict::Ok, driver::CONTROL),
        Err(error) => {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            let modules = format!("/lib/modules/{}", release.trim());
            let hint = if Path::new(&modules).is_dir() {
                format!(
                    "the module {} is not among those of this kernel: install the distribution's full kernel (Debian: \
                     linux-image-amd64, not the cloud image), or one built with CONFIG_BLK_DEV_UBLK",
                    driver::MODULE
                )
            } else {
                format!("there are no modules for this kernel ({modules}): boot a kernel with CONFIG_BLK_DEV_UBLK")
            };
            Check::new(NAME, Verdict::Missing, error.message).hint(hint)
        }
    }
}

fn features() -> Check {
    const NAME: &str = "daemon and driver features";
    match daemon::features() {
        Ok(features) => Check::new(
            NAME,
            Verdict::Ok,
            format!("{:#x} ({})", features.features, features.names.join(" ")),
        ),
        Err(error) => {
            let check = Check::new(NAME, Verdict::Missing, error.message);
            match error.hint {
                Some(hint) => check.hint(hint),
                None => check.hint("if the driver is there, the daemon's message says why it cannot use it"),
            }
        }
    }
}

fn io_uring() -> Check {
    judge_io_uring(fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok().as_deref())
}

fn judge_io_uring(sysctl: Option<&str>) -> Check {
    let check = |verdict, found: &str| Check::new("io_uring", verdict, found);
    match sysctl.map(str::trim) {
        None | Some("0") => check(Verdict::Ok, "allowed"),
        // Privileged processes may use it.
        Some("1") => check(Verdict::Ok, "allowed for root (kernel.io_uring_disabled = 1)"),
        Some(value) => check(Verdict::Missing, &format!("kernel.io_uring_disabled = {value}"))
            .hint("sysctl kernel.io_uring_disabled=1, and set it in /etc/sysctl.d"),
    }
}

fn device_limit() -> Check {
    const NAME: &str = "devices";
    let limit = read_number("/sys/module/ublk_drv/parameters/ublks_max");
    let used = fs::read_dir("/sys/class/ublk-char").map_or(0, |entries| entries.count() as u64);
    match limit {
        None => Check::new(NAME, Verdict::Ok, format!("{used} in use; the driver names no limit")),
        Some(limit) if used < limit => Check::new(NAME, Verdict::Ok, format!("{used} in use of {limit}")),
        Some(limit) => Check::new(NAME, Verdict::Missing, format!("all {limit} in use"))
            .hint("echo 256 > /sys/module/ublk_drv/parameters/ublks_max"),
    }
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn memory_lock() -> Check {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    const NAME: &str = "locked memory";
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((_, RLIM_INFINITY)) => Check::new(NAME, Verdict::Ok, "unlimited"),
        // Root is not bound by it, a daemon in a container may be.
        Ok((_, hard)) if hard < LOCKED && !nix::unistd::geteuid().is_root() => {
            Check::new(NAME, Verdict::Warning, format!("at most {}", size::show(hard))).hint(format!(
                "ulimit -l {}: a mirrored device locks {}",
                LOCKED >> 10,
                size::show(LOCKED)
            ))
        }
        Ok((_, hard)) => Check::new(NAME, Verdict::Ok, format!("{}; root may lock more", size::show(hard))),
        Err(errno) => Check::new(NAME, Verdict::Warning, format!("the limit cannot be read: {errno}")),
    }
}

fn directory(name: &'static str, path: &Path) -> Check {
    use nix::unistd::{AccessFlags, access};
    // One that is not there yet is made where there is something to make it in.
    let there = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let shown = path.display().to_string();
    match access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) if there == path => Check::new(name, Verdict::Ok, shown),
        Ok(()) => Check::new(name, Verdict::Ok, format!("{shown} (will be made)")),
        Err(errno) => {
            Check::new(name, Verdict::Missing, format!("{shown}: {errno}")).hint("make it writable, or name another")
        }
    }
}

fn tool(name: &'static str, hint: &str) -> Check {
    let search = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&search)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
    {
        Some(path) => Check::new(name, Verdict::Ok, path.display().to_string()),
        None => Check::new(name, Verdict::Warning, "not in PATH").hint(hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_known_to_break_are_named() {
        for (release, verdict) in [
            ("6.1.0-28-amd64", Verdict::Missing),
            ("6.11.9", Verdict::Missing),
            ("6.12.0", Verdict::Ok),
            ("6.12.57+deb13-amd64", Verdict::Ok),
            ("6.17.4", Verdict::Ok),
            ("6.17.0-8-generic", Verdict::Warning),
            ("6.18.3", Verdict::Ok),
            ("6.18.4", Verdict::Missing),
            ("6.18.5-arch1-1", Verdict::Missing),
            ("6.18.44", Verdict::Ok),
            ("7.2.1", Verdict::Ok),
            ("7.2-rc1", Verdict::Ok),
            ("mystery", Verdict::Warning),
        ] {
            assert_eq!(judge_kernel(release).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn a_switched_off_io_uring_is_missing() {
        assert_eq!(judge_io_uring(None).verdict, Verdict::Ok);
        assert_eq!(judge_io_uring(Some("0\n")).verdict, Verdict::Ok);
        assert_eq!(judge_io_uring(Some("1\n")).verdict, Verdict::Ok);
        assert_eq!(judge_io_uring(Some("2\n")).verdict, Verdict::Missing);
    }

    #[test]
    fn a_report_says_what_to_do_about_each_thing_missing() {
        let checks = vec![Check::new("x", Verdict::Ok, "there"), judge_kernel("6.18.4")];
        let text = human(&Report {
            can_serve: false,
            checks,
        });
        assert!(
            text.starts_with("ok       x: there\nMISSING  kernel: 6.18.4\n         what to do: "),
            "{text}"
        );
        assert!(text.ends_with("cannot serve devices yet.\n"));
    }
}
