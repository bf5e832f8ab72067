//! The command line. `--help` of each command is made from the comments here.

use crate::size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use twinblk::control::{CatchUp, Setting, paths};
use twinblk::core::Protocol;
use twinblk::io::disk::DevNo;
use twinblk::table::Name;

/// Put a block device in front of a disk, mirror it live, switch over.
#[derive(Debug, Parser)]
#[command(name = "twinblk", version, disable_help_subcommand = true)]
#[command(after_help = "Sizes and rates take K, M, G and T (powers of 1024).\n\
    Exit codes: 0 done; 1 failed; 2 usage; 3 refused (a safety check, nothing changed); 4 no such device;\n\
    5 not in the needed state; 6 timed out; 7 differences found (verify).")]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Where state is kept
    #[arg(long, global = true, value_name = "DIR", env = "TWINBLK_STATE_DIR", default_value = paths::STATE_DIR)]
    pub state_dir: PathBuf,
    /// Where sockets and logs are
    #[arg(long, global = true, value_name = "DIR", env = "TWINBLK_RUN_DIR", default_value = paths::RUN_DIR)]
    pub run_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve DISK as a new device; its content is untouched. Prints /dev/ublkbN
    Create(Create),
    /// Start mirroring to DISK
    Attach(Attach),
    /// Return when both legs are in sync, or as soon as that can no longer come by itself
    Wait(Wait),
    /// What is served, how far, how healthy
    Status(Status),
    /// All devices, running or not
    List,
    /// Exchange the roles of the legs under the running guest
    Switch(Switch),
    /// Stop mirroring to a leg, drained and flushed
    Detach(Detach),
    /// Put back what `detach --retire` saved and wiped
    Unretire(Leg),
    /// Read both legs, compare, report every differing range
    Verify(Verify),
    /// The BLAKE3 hash of the device's content at one generation, equal to b3sum of the device
    Digest(Digest),
    /// Steer the background work
    Resync(Resync),
    /// Change a running device
    Set(Set),
    /// Stop cleanly: drained, flushed, state kept
    Stop(Stop),
    /// Serve a device again after a stop, a crash or a reboot
    Start(Start),
    /// Replace the running daemon (upgrade) without an error for the guest
    Restart(Device),
    /// Stop, and forget the device and its state; the disks keep their content
    Remove(Remove),
    /// Whether a block device is a leg of some device: for the udev rule
    #[command(hide = true)]
    LegAt(LegAt),
    /// Whether this machine can serve devices; what is missing and how to get it
    Doctor,
}

#[derive(Args, Debug)]
pub struct Device {
    /// The device's name
    pub name: Name,
}

#[derive(Args, Debug)]
pub struct Create {
    /// The device's name
    pub name: Name,
    /// The disk to serve: a block device or a file
    pub disk: PathBuf,
    /// When a write and a barrier are acknowledged
    #[arg(long, value_enum, default_value = "flush")]
    pub protocol: ProtocolWord,
    /// Serve it as /dev/ublkbN with this N
    #[arg(long, value_name = "N")]
    pub id: Option<u32>,
    /// Requests in flight
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub depth: Option<u16>,
    /// 512 or 4096; the disk's own unless given
    #[arg(long, value_name = "N", value_parser = parse_block)]
    pub logical_block_size: Option<u32>,
}

#[derive(Args, Debug)]
pub struct Attach {
    /// The device's name
    pub name: Name,
    /// The disk to mirror to
    pub disk: PathBuf,
    /// Give up what is on DISK
    #[arg(long)]
    pub overwrite: bool,
    /// DISK holds an older copy: compare by signature, or by content, and move only what differs
    #[arg(long, conflicts_with = "overwrite")]
    pub seeded: bool,
    /// A leg of this device comes back, and nobody else wrote to it
    #[arg(long, conflicts_with = "overwrite")]
    pub unchanged: bool,
}

#[derive(Args, Debug)]
pub struct Wait {
    /// The device's name
    pub name: Name,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    pub timeout: Option<u64>,
}

#[derive(Args, Debug)]
pub struct Status {
    /// The device's name; all devices unless given
    pub name: Option<Name>,
    /// Show it again every second
    #[arg(long)]
    pub watch: bool,
}

#[derive(Args, Debug)]
pub struct Switch {
    /// The device's name
    pub name: Name,
    /// The longest time that a guest request may be held
    #[arg(long, value_name = "MS")]
    pub max_pause: Option<u64>,
    /// Switch to a leg with suspect places
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct Leg {
    /// The device's name
    pub name: Name,
    /// a, b or the leg's path
    pub leg: String,
}

#[derive(Args, Debug)]
pub struct Detach {
    #[command(flatten)]
    pub leg: Leg,
    /// Save and wipe what says what the disk holds, so that nobody takes it for the one in use
    #[arg(long)]
    pub retire: bool,
    /// Retire a disk that was detached before, although somebody may have used it since
    #[arg(long, requires = "retire")]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct Verify {
    /// The device's name
    pub name: Name,
    /// Mend what is proven wrong, on either leg
    #[arg(long)]
    pub repair: bool,
    /// Mend that, and where nothing is proven take what this leg holds
    #[arg(long, value_name = "LEG", value_parser = ["a", "b"])]
    pub repair_from: Option<String>,
}

#[derive(Args, Debug)]
pub struct Digest {
    /// The device's name
    pub name: Name,
    /// a, b or the leg's path; the primary unless given
    #[arg(long)]
    pub leg: Option<String>,
    /// Read everything, also what has a trusted signature
    #[arg(long)]
    pub read_back: bool,
    /// How long writes may be held for the rest; 0: only when idle
    #[arg(long, value_name = "MS", default_value_t = 10)]
    pub max_pause: u64,
}

#[derive(Args, Debug)]
pub struct Resync {
    /// The device's name
    pub name: Name,
    #[command(subcommand)]
    pub action: ResyncAction,
}

#[derive(Debug, Subcommand)]
pub enum ResyncAction {
    /// Hold background work
    Pause,
    /// Go on
    Resume,
    /// Keep to a rate
    Rate {
        /// Bytes per second, or unlimited
        #[arg(value_name = "BYTES_PER_S|unlimited", value_parser = parse_rate)]
        rate: Rate,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Unlimited,
    BytesPerSecond(u64),
}

#[derive(Args, Debug)]
pub struct Set {
    /// The device's name
    pub name: Name,
    /// What to change
    #[arg(value_enum)]
    pub key: Key,
    /// protocol: sync, flush, async; stall-budget: ms; leg-timeout, quiet: s; pool-bytes, lag-bytes: a size;
    /// catch-up: auto, manual
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Key {
    Protocol,
    StallBudget,
    LegTimeout,
    PoolBytes,
    LagBytes,
    Quiet,
    CatchUp,
}

#[derive(Args, Debug)]
pub struct Stop {
    /// The device's name
    pub name: Name,
    /// Stop although the device is open: whoever has it open gets errors
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct Start {
    /// The device's name
    pub name: Name,
    /// Serve without a leg that is missing; the primary too, if the other leg has every acknowledged write
    #[arg(long)]
    pub degraded: bool,
    /// If the primary is missing, serve the other leg although it lacks writes that were acknowledged
    #[arg(long)]
    pub accept_stale: bool,
    /// Do not take over what a dead daemon left: whoever still has it open gets errors
    #[arg(long)]
    pub force: bool,
    /// Stay as long as it is served, for a service manager; a device that runs already is no error
    #[arg(long, hide = true)]
    pub stay: bool,
}

#[derive(Args, Debug)]
pub struct LegAt {
    /// The block device's number, MAJOR:MINOR
    #[arg(value_parser = parse_number, required_unless_present = "again", conflicts_with = "again")]
    pub device: Option<DevNo>,
    /// Have udev look at every leg again
    #[arg(long)]
    pub again: bool,
}

#[derive(Args, Debug)]
pub struct Remove {
    /// The device's name
    pub name: Name,
    /// Remove although the device is open, or its state cannot be used
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtocolWord {
    /// A write by both legs, a flush by both
    Sync,
    /// A write by the primary, a flush by both
    Flush,
    /// A write by the primary, a flush by the primary
    Async,
}

impl From<ProtocolWord> for Protocol {
    fn from(word: ProtocolWord) -> Protocol {
        match word {
            ProtocolWord::Sync => Protocol::Sync,
            ProtocolWord::Flush => Protocol::Flush,
            ProtocolWord::Async => Protocol::Async,
        }
    }
}

impl Set {
    /// The change.
    ///
    /// # Errors
    /// Says what the key takes.
    pub fn setting(&self) -> Result<Setting, String> {
        let value = self.value.as_str();
        let number = |unit: &str| {
            value
                .parse::<u64>()
                .map_err(|_| format!("{value:?} is no number of {unit}"))
        };
        Ok(match self.key {
            Key::Protocol => Setting::Protocol(
                ProtocolWord::from_str(value, false)
                    .map(Protocol::from)
                    .map_err(|_| format!("{value:?} is no protocol: use sync, flush or async"))?,
            ),
            Key::StallBudget => Setting::StallBudget(number("milliseconds")?),
            Key::LegTimeout => Setting::LegTimeout(number("seconds")?),
            Key::PoolBytes => Setting::PoolBytes(size::parse(value)?),
            Key::LagBytes => Setting::LagBytes(size::parse(value)?),
            Key::Quiet => Setting::Quiet(number("seconds")?),
            Key::CatchUp => Setting::CatchUp(match value {
                "auto" => CatchUp::Auto,
                "manual" => CatchUp::Manual,
                _ => return Err(format!("{value:?} is neither auto nor manual")),
            }),
        })
    }
}

fn parse_block(text: &str) -> Result<u32, String> {
    match size::parse(text)? {
        512 => Ok(512),
        4096 => Ok(4096),
        _ => Err("a logical block has 512 or 4096 bytes".into()),
    }
}

fn parse_number(text: &str) -> Result<DevNo, String> {
    text.split_once(':')
        .and_then(|(major, minor)| {
            Some(DevNo {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        })
        .ok_or_else(|| format!("{text:?} is not MAJOR:MINOR"))
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    if text == "unlimited" {
        return Ok(Rate::Unlimited);
    }
    match size::parse(text)? {
        0 => Err("a rate of 0 never ends: use twinblk resync NAME pause".into()),
        rate => Ok(Rate::BytesPerSecond(rate)),
    }
}

/// Whole or broken seconds, as milliseconds.
fn parse_seconds(text: &str) -> Result<u64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    if (0.0..=1e9).contains(&seconds) {
        Ok((seconds * 1000.0).round() as u64)
    } else {
        Err(format!("{text} is no number of seconds from 0 to a thousand million"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_line_parses() {
        for line in [
            "twinblk create vm1 /dev/sda --protocol async --id 3 --depth 64 --logical-block-size 4096",
            "twinblk create vm1 /dev/sda --logical-block-size 4K",
            "twinblk attach vm1 /dev/sdb --overwrite",
            "twinblk attach vm1 /dev/sdb --seeded",
            "twinblk attach vm1 /dev/sdb --unchanged",
            "twinblk wait vm1 --timeout 1.5",
            "twinblk status",
            "twinblk status vm1 --watch --json",
            "twinblk --json list",
            "twinblk list --json --state-dir /x --run-dir /y",
            "twinblk switch vm1 --max-pause 10 --force",
            "twinblk detach vm1 a --retire",
            "twinblk detach vm1 /dev/sda",
            "twinblk unretire vm1 b",
            "twinblk verify vm1 --repair --repair-from a",
            "twinblk digest vm1 --leg b --read-back --max-pause 0",
            "twinblk resync vm1 pause",
            "twinblk resync vm1 resume",
            "twinblk resync vm1 rate 10M",
            "twinblk resync vm1 rate unlimited",
            "twinblk set vm1 stall-budget 5000",
            "twinblk stop vm1 --force",
            "twinblk start vm1 --degraded --accept-stale --force",
            "twinblk start vm1 --stay",
            "twinblk restart vm1",
            "twinblk remove vm1 --force",
            "twinblk leg-at 8:16",
            "twinblk doctor --json",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "twinblk",
            "twinblk nonsense",
            "twinblk create vm1",
            "twinblk create ../x /dev/sda",
            "twinblk create vm1 /dev/sda --protocol raid",
            "twinblk create vm1 /dev/sda --depth 0",
            "twinblk create vm1 /dev/sda --logical-block-size 1024",
            "twinblk attach vm1 /dev/sdb --overwrite --unchanged",
            "twinblk resync vm1 rate 0",
            "twinblk resync vm1 rate -1",
            "twinblk wait vm1 --timeout -1",
            "twinblk wait vm1 --timeout nan",
            "twinblk verify vm1 --repair-from c",
            "twinblk set vm1 nonsense 1",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert_ne!(error.kind(), ErrorKind::DisplayHelp, "{line}");
        }
    }

    fn setting(key: &str, value: &str) -> Result<Setting, String> {
        match parse(&format!("twinblk set vm1 {key} {value}")).unwrap().command {
            Command::Set(set) => set.setting(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn settings_have_the_units_of_the_documentation() {
        assert_eq!(setting("protocol", "async"), Ok(Setting::Protocol(Protocol::Async)));
        assert_eq!(setting("stall-budget", "5000"), Ok(Setting::StallBudget(5000)));
        assert_eq!(setting("leg-timeout", "20"), Ok(Setting::LegTimeout(20)));
        assert_eq!(setting("pool-bytes", "64M"), Ok(Setting::PoolBytes(64 << 20)));
        assert_eq!(setting("lag-bytes", "0"), Ok(Setting::LagBytes(0)));
        assert_eq!(setting("quiet", "2"), Ok(Setting::Quiet(2)));
        assert_eq!(setting("catch-up", "manual"), Ok(Setting::CatchUp(CatchUp::Manual)));
        for (key, value) in [
            ("protocol", "x"),
            ("stall-budget", "5s"),
            ("pool-bytes", "x"),
            ("catch-up", "yes"),
        ] {
            assert!(setting(key, value).is_err(), "{key} {value}");
        }
    }

    #[test]
    fn a_timeout_is_exact_to_the_millisecond() {
        let Command::Wait(wait) = parse("twinblk wait vm1 --timeout 0.25").unwrap().command else {
            panic!()
        };
        assert_eq!(wait.timeout, Some(250));
    }
}
