//! How the tool starts a daemon.
//!
//! The tool starts `twinblkd` without arguments, in a session of its own, with a connected stream socket as descriptor
//! [`DESCRIPTOR`]; standard input is `/dev/null`, standard output and error are the log file. It sends one line, a
//! [`Launch`], with the legs' descriptors (`SCM_RIGHTS`, in the order of [`Launch::legs`], in the message that holds
//! the line's first byte), and gets one line back, a [`Launched`]. The daemon answers when the device can be used, or
//! when it will never be; it closes the socket after. A socket that is closed without a line is a daemon that died.
//!
//! The daemon owns the state directory: it makes it for a `create`, locks it, writes every record.
//!
//! `twinblkd --features` prints a [`Features`] and ends; it needs no launch.

use super::error::Error;
use crate::core::{LegId, Protocol};
use crate::table::{LegIdentity, Name};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The number of the descriptor on which a daemon is told what to serve.
pub const DESCRIPTOR: i32 = 3;

/// The most descriptors that come with one message: both legs.
pub const MAX_DESCRIPTORS: usize = 2;

/// What to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// The device.
    pub name: Name,
    /// The directory with all devices' state; absolute.
    pub state_dir: PathBuf,
    /// The directory of the admin sockets; absolute, exists.
    pub run_dir: PathBuf,
    /// Make a device, or serve one again.
    pub action: Action,
    /// The legs whose descriptors come along, in their order. For a create: leg `a` alone.
    pub legs: Vec<LaunchLeg>,
}

/// What is to be done: `{"create":{"protocol":"flush"}}` or `{"start":{}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Make a device; fails if there is state of that name.
    Create(Create),
    /// Serve a recorded device again.
    Start(Start),
}

/// What a new device is made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// When writes and barriers are acknowledged.
    pub protocol: Protocol,
    /// `/dev/ublkbN` with this N; absent: the next free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// Requests in flight; absent: the daemon's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u16>,
    /// Bytes; absent: that of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_block_size: Option<u32>,
}

/// How a recorded device is served again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Serve although an attached leg is missing from [`Launch::legs`]; the primary too, if the other leg has every write
    /// that was acknowledged.
    #[serde(default)]
    pub degraded: bool,
    /// Have the guest of a dead daemon see its device end, instead of taking it over.
    #[serde(default)]
    pub force: bool,
    /// Serve the other leg although it may lack writes that were acknowledged, if the recorded primary is missing from
    /// [`Launch::legs`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_stale: bool,
}

/// A leg's disk; its descriptor comes along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchLeg {
    /// Which leg.
    pub leg: LegId,
    /// What the disk is known by, with the path by which it is opened again.
    pub identity: LegIdentity,
    /// Whether the descriptor holds the claim. False only for a secondary that somebody still holds (an operation of a
    /// dead daemon that has not ended): the daemon starts degraded, and claims and takes the leg when it is free. Its
    /// descriptor is open for reading and writing, direct, and good for nothing but to claim that very disk; the
    /// identity is the recorded one, against which the disk is checked then.
    pub claimed: bool,
}

/// How it went: `{"ready":{"device":"/dev/ublkb0","id":0,"pid":1234}}` or
/// `{"failed":{"kind":"…","message":"…","hint":"…"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Launched {
    /// The device can be used.
    Ready(Ready),
    /// It will not be; nothing of it is left.
    Failed(Error),
}

/// A device that can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The block device.
    pub device: PathBuf,
    /// Its number in the driver.
    pub id: u32,
    /// The daemon's process.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// What `twinblkd --features` prints: `{"features":1023,"names":["user-recovery",…]}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// The driver's feature bits.
    pub features: u64,
    /// The names of those that are known.
    pub names: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::frame;

    #[test]
    fn a_launch_comes_back_the_same() {
        let json = concat!(
            r#"{"name":"vm1","state_dir":"/var/lib/twinblk","run_dir":"/run/twinblk","#,
            r#""action":{"create":{"protocol":"flush","id":3}},"#,
            r#""legs":[{"leg":"a","identity":{"kind":"block","size":4096,"block":512,"major":8,"minor":0,"inode":0,"#,
            r#""partition":0,"serial":"","wwid":"","partition_uuid":"","stack_uuid":"","path":"/dev/sda","#,
            r#""canonical":"/dev/sda"},"claimed":true}]}"#,
            "\n"
        );
        let launch: Launch = frame::decode(json.as_bytes()).unwrap();
        let create = Create {
            protocol: Protocol::Flush,
            id: Some(3),
            depth: None,
            logical_block_size: None,
        };
        assert_eq!(launch.action, Action::Create(create));
        assert_eq!((launch.legs[0].leg, launch.legs[0].claimed), (LegId::A, true));
        assert_eq!(String::from_utf8(frame::encode(&launch)).unwrap(), json);
    }

    #[test]
    fn both_answers_parse() {
        let ready: Launched = frame::decode(br#"{"ready":{"device":"/dev/ublkb0","id":0}}"#).unwrap();
        assert_eq!(
            ready,
            Launched::Ready(Ready {
                device: "/dev/ublkb0".into(),
                id: 0,
                pid: None
            })
        );
        let failed: Launched = frame::decode(br#"{"failed":{"kind":"refused","message":"no"}}"#).unwrap();
        assert_eq!(failed, Launched::Failed(Error::refused("no")));
    }
}
