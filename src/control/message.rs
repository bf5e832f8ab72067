//! What can be asked of a running daemon, and what it answers.
//!
//! The JSON of each is in its documentation. `LEG` stands for `"a"`, `"b"` or a leg's path.

use super::error::Error;
use super::settings::Setting;
use super::status::{State, Status, Walk};
use crate::core::{Health, LegId, Protocol};
use crate::table::LegIdentity;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The most differing ranges that one [`Verified`] lists, so that it fits a line; every range is a
/// [`Progress::Difference`] first.
pub const MAX_DIFFERENCES: usize = 256;

/// A request: one line. Unknown commands and unknown fields are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// `{"command":"status"}`; answered by [`Reply::Status`] at once.
    Status {},
    /// `{"command":"attach","identity":{…},"content":"blank"}` with the disk's descriptor; answered
    /// by [`Reply::Attached`] when the leg is recorded and its resync has begun.
    Attach(Attach),
    /// `{"command":"wait"}` or `{"command":"wait","timeout_ms":5000}`: answered by [`Reply::InSync`] when both legs
    /// are in sync and nothing is dirty (writes may be on their way to the secondary: that is how it is served under the
    /// protocols flush and async; a flush of the guest under flush, or a stop or switch, has them there), by a `wrong-state` error as soon as that cannot come by itself (see
    /// [`Status::outlook`](super::status::Status::outlook)), by `timed-out` after the time given. Sends
    /// [`Progress::Walk`] and [`Progress::State`] meanwhile.
    Wait {
        /// Give up after this many milliseconds; absent: never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    },
    /// `{"command":"switch"}`, `{"command":"switch","max_pause_ms":10,"force":false}`: answered by
    /// [`Reply::Switched`], or by `timed-out` when it did not fit the pause (the guest goes on as before).
    Switch {
        /// The longest time that a guest request may be held; absent: the daemon's own bound.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_pause_ms: Option<u64>,
        /// Switch to a leg with suspect places.
        #[serde(default)]
        force: bool,
    },
    /// `{"command":"detach","leg":LEG}`: answered by [`Reply::Detached`] when the leg is drained, flushed, recorded as
    /// detached and its claim given up.
    Detach {
        /// Which leg.
        leg: LegName,
    },
    /// `{"command":"verify"}`, `{"command":"verify","repair":true,"repair_from":LEG}`: reads and compares both legs, and mends
    /// what is proven wrong, or what is left from the leg named. Sends [`Progress::Walk`] and every [`Progress::Difference`];
    /// answered by [`Reply::Verified`].
    Verify(Verify),
    /// `{"command":"digest","leg":LEG,"read_back":false,"max_pause_ms":10}`, all but the command optional; answered by
    /// [`Reply::Digested`]. Sends [`Progress::Walk`].
    Digest(Digest),
    /// `{"command":"resync","action":"pause"}`, `…"resume"`, `…"rate","bytes_per_s":1048576` (absent or null:
    /// unlimited); answered by [`Reply::Done`], when a rate is durable.
    Resync(Resync),
    /// `{"command":"set","key":"stall-budget","value":5000}`; answered by [`Reply::Done`] when it is in force
    /// and durable.
    Set(Setting),
    /// `{"command":"stop"}`: drain, flush, record as clean, delete the device, end. Answered by [`Reply::Done`] when
    /// the record is durable; the daemon ends soon after. Refused while the device is open, unless `force` is true:
    /// then whoever has it open gets errors.
    Stop {
        /// Stop although the device is open.
        #[serde(default)]
        force: bool,
    },
    /// `{"command":"hand-over"}`: bring everything to the disks, record it as clean, and end, with the block device left in the
    /// driver, where the guest waits for another daemon. Answered by [`Reply::HandedOver`] when nothing more is written; the
    /// daemon ends at once after. `wrong-state` while a switch, a verify or the like runs; `timed-out` when a disk does not
    /// answer: the daemon serves on.
    HandOver {},
}

/// A disk to mirror to. The descriptor that comes with it is opened, claimed and checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// What the disk is known by, with the path by which it is opened again.
    pub identity: LegIdentity,
    /// What is known of its content.
    pub content: Content,
    /// The administrator vouches that nobody else wrote to a leg that comes back.
    #[serde(default)]
    pub unchanged: bool,
}

/// What is known of the content of a disk to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// `"blank"`: checked, nothing on it.
    Blank,
    /// `"overwrite"`: the administrator gives its content up; it is not worth reading.
    Overwrite,
    /// `"returning"`: by its identity it is a leg of this device.
    Returning,
    /// `"seeded"`: an older copy of the device, to be compared.
    Seeded,
}

/// What to do about what differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// Mend what is proven wrong, on either leg.
    #[serde(default)]
    pub repair: bool,
    /// Mend that, and where nothing is proven take what this leg holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair_from: Option<LegName>,
}

/// What to hash, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {
    /// Which leg; absent: the primary. One that lags is a `wrong-state` error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leg: Option<LegName>,
    /// Read every extent, also those with a trusted signature.
    #[serde(default)]
    pub read_back: bool,
    /// The longest time that writes may be held for the rest, in milliseconds; absent: 10; 0: never, only when idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pause_ms: Option<u64>,
}

/// Steers the background work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Resync {
    /// `"pause"`.
    Pause {},
    /// `"resume"`.
    Resume {},
    /// `"rate"`.
    Rate {
        /// Bytes per second; absent or null: unlimited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes_per_s: Option<u64>,
    },
}

/// A leg as an administrator names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum LegName {
    /// `"a"` or `"b"`.
    Id(LegId),
    /// Its path, compared with the recorded one and with what that leads to.
    Path(PathBuf),
}

impl From<String> for LegName {
    fn from(text: String) -> LegName {
        match text.as_str() {
            "a" => LegName::Id(LegId::A),
            "b" => LegName::Id(LegId::B),
            _ => LegName::Path(text.into()),
        }
    }
}

impl From<LegName> for String {
    fn from(name: LegName) -> String {
        match name {
            LegName::Id(id) => id.to_string(),
            LegName::Path(path) => path.to_string_lossy().into_owned(),
        }
    }
}

/// One line from the daemon: `{"progress":{…}}`, `{"ok":{…}}` or `{"error":{…}}`. `T` is what the request is answered
/// with, [`Reply`] for the daemon and the one expected type for a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer<T> {
    /// It goes on.
    Progress(Progress),
    /// It is done.
    Ok(T),
    /// It is not done.
    Error(Error),
}

/// What a request is answered with; the object itself is the value of `"ok"`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// To `status`: the object of `twinblk status --json`.
    Status(Box<Status>),
    /// To `attach`: `{"leg":"b"}`.
    Attached(Attached),
    /// To `wait`: `{"state":"mirrored"}`.
    InSync(InSync),
    /// To `switch`.
    Switched(Switched),
    /// To `detach`: `{"leg":"a","path":"/dev/sda"}`.
    Detached(Detached),
    /// To `verify`.
    Verified(Verified),
    /// To `digest`.
    Digested(Digested),
    /// To `hand-over`.
    HandedOver(HandedOver),
    /// To everything else: `{}`.
    Done(Done),
}

impl Reply {
    /// Done, with nothing more to say.
    pub const DONE: Reply = Reply::Done(Done {});
}

/// `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// `{"leg":"b"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The leg that the disk is now.
    pub leg: LegId,
}

/// `{"state":"mirrored"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InSync {
    /// [`State::Mirrored`].
    pub state: State,
}

/// `{"leg":"a","path":"/dev/sda"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// The leg that is followed no more.
    pub leg: LegId,
    /// The disk that is free now.
    pub path: PathBuf,
}

/// `{"since_ns":123456789,"clean":true}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// Since when the guest's requests have been held: `CLOCK_MONOTONIC`, in nanoseconds.
    pub since_ns: u64,
    /// Whether the record says clean; if not, the next daemon compares what was written last.
    pub clean: bool,
}

/// `{"from":"a","to":"b","pause_us":0,"generation":0,"era":0}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switched {
    /// The old primary.
    pub from: LegId,
    /// The new one.
    pub to: LegId,
    /// The longest time that a guest request was held because of the switch, in microseconds.
    pub pause_us: u64,
    /// The generation at which it happened.
    pub generation: u64,
    /// The era that began with it.
    pub era: u64,
}

/// A range where the legs differ: `{"offset":0,"length":4096,"wrong_leg":null}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// First byte on the device.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The leg that is proven wrong; null: neither is.
    pub wrong_leg: Option<LegId>,
}

/// `{"equal":true,"bytes_compared":0,"differences":[],"difference_count":0,"repaired_bytes":0}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Whether everything was compared, and the legs are equal now: nothing differed, or all of it is mended.
    pub equal: bool,
    /// Bytes compared.
    pub bytes_compared: u64,
    /// The first [`MAX_DIFFERENCES`] differing ranges.
    pub differences: Vec<Difference>,
    /// How many there are.
    #[serde(default)]
    pub difference_count: u64,
    /// Bytes mended.
    pub repaired_bytes: u64,
}

/// `{"blake3":"…","leg":"a","generation":0,"known":"recorded"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digested {
    /// The hash in lower-case hexadecimal, as `b3sum` prints it.
    pub blake3: String,
    /// The leg whose content it is.
    pub leg: LegId,
    /// The generation at which the device had this content.
    pub generation: u64,
    /// Where the hashes come from.
    pub known: Known,
}

/// Where the hashes of a digest come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Known {
    /// `"recorded"`: the signature table alone.
    Recorded,
    /// `"read-back"`: the disk alone.
    ReadBack,
    /// `"mixed"`: both.
    Mixed,
}

/// What happens meanwhile. A daemon sends one at least every second while a request goes on, so that both sides notice
/// when the other is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Progress {
    /// `{"event":"walk","kind":"full","bytes_total":…,…}`: the figures of the background work.
    Walk(Walk),
    /// `{"event":"state","state":"syncing"}`: nothing runs, or the state has changed.
    State {
        /// What the device is now.
        state: State,
    },
    /// `{"event":"health","leg":"b","health":"behind"}`: a leg's health has changed, durably.
    Health {
        /// Which leg.
        leg: LegId,
        /// What it is worth now.
        health: Health,
    },
    /// `{"event":"difference","offset":0,"length":4096,"wrong_leg":null}`.
    Difference(Difference),
    /// `{"event":"protocol","protocol":"sync"}`: the protocol has changed, durably.
    Protocol {
        /// The protocol in force.
        protocol: Protocol,
    },
    /// An event of a newer daemon.
    #[serde(other)]
    Unknown,
}

impl Request {
    /// The value of `"command"`.
    pub const fn command(&self) -> &'static str {
        match self {
            Request::Status {} => "status",
            Request::Attach(_) => "attach",
            Request::Wait { .. } => "wait",
            Request::Switch { .. } => "switch",
            Request::Detach { .. } => "detach",
            Request::Verify(_) => "verify",
            Request::Digest(_) => "digest",
            Request::Resync(_) => "resync",
            Request::Set(_) => "set",
            Request::Stop { .. } => "stop",
            Request::HandOver {} => "hand-over",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::frame;

    const IDENTITY: &str = concat!(
        r#"{"kind":"block","size":4096,"block":512,"major":8,"minor":0,"inode":0,"partition":0,"serial":"","wwid":"","#,
        r#""partition_uuid":"","stack_uuid":"","path":"/dev/sdb","canonical":"/dev/sdb"}"#
    );

    fn parses(json: &str) -> Request {
        let request: Request = frame::decode(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"));
        let again: Request = frame::decode(&frame::encode(&request)).unwrap();
        assert_eq!(again, request, "{json}");
        assert!(
            json.contains(&format!(r#""command":"{}""#, request.command())),
            "{json}"
        );
        request
    }

    #[test]
    fn every_documented_request_parses_and_comes_back_the_same() {
        assert_eq!(parses(r#"{"command":"status"}"#), Request::Status {});
        assert_eq!(parses(r#"{"command":"hand-over"}"#), Request::HandOver {});
        assert_eq!(parses(r#"{"command":"wait"}"#), Request::Wait { timeout_ms: None });
        assert_eq!(
            parses(r#"{"command":"wait","timeout_ms":5}"#),
            Request::Wait { timeout_ms: Some(5) }
        );
        let switch = Request::Switch {
            max_pause_ms: None,
            force: false,
        };
        assert_eq!(parses(r#"{"command":"switch"}"#), switch);
        let switch = Request::Switch {
            max_pause_ms: Some(10),
            force: true,
        };
        assert_eq!(parses(r#"{"command":"switch","max_pause_ms":10,"force":true}"#), switch);
        let detach = |leg| Request::Detach { leg };
        assert_eq!(
            parses(r#"{"command":"detach","leg":"b"}"#),
            detach(LegName::Id(LegId::B))
        );
        assert_eq!(
            parses(r#"{"command":"detach","leg":"/dev/x"}"#),
            detach(LegName::Path("/dev/x".into()))
        );
        assert_eq!(parses(r#"{"command":"verify"}"#), Request::Verify(Verify::default()));
        assert_eq!(parses(r#"{"command":"digest"}"#), Request::Digest(Digest::default()));
        parses(r#"{"command":"digest","leg":"a","read_back":true,"max_pause_ms":0}"#);
        assert_eq!(
            parses(r#"{"command":"resync","action":"pause"}"#),
            Request::Resync(Resync::Pause {})
        );
        assert_eq!(
            parses(r#"{"command":"resync","action":"resume"}"#),
            Request::Resync(Resync::Resume {})
        );
        let rate = |bytes_per_s| Request::Resync(Resync::Rate { bytes_per_s });
        assert_eq!(
            parses(r#"{"command":"resync","action":"rate","bytes_per_s":7}"#),
            rate(Some(7))
        );
        assert_eq!(parses(r#"{"command":"resync","action":"rate"}"#), rate(None));
        let set = Request::Set(Setting::Protocol(Protocol::Sync));
        assert_eq!(parses(r#"{"command":"set","key":"protocol","value":"sync"}"#), set);
        let set = Request::Set(Setting::StallBudget(5));
        assert_eq!(parses(r#"{"command":"set","key":"stall-budget","value":5}"#), set);
        assert_eq!(parses(r#"{"command":"stop"}"#), Request::Stop { force: false });
        let attach = parses(&format!(
            r#"{{"command":"attach","identity":{IDENTITY},"content":"blank"}}"#
        ));
        assert!(matches!(
            attach,
            Request::Attach(Attach {
                content: Content::Blank,
                unchanged: false,
                ..
            })
        ));
    }

    #[test]
    fn nothing_unknown_is_silently_left_out_of_a_request() {
        for json in [
            r#"{"command":"nonsense"}"#,
            r#"{"command":"status","x":1}"#,
            r#"{"command":"verify","x":1}"#,
            r#"{"command":"detach","leg":"b","retire":true}"#,
            r#"{"command":"digest","x":1}"#,
            r#"{"command":"attach","identity":"","content":"blank"}"#,
            r#"{"command":"set","key":"protocol","value":"sync","x":1}"#,
            r#"{"command":"set","key":"protocol","value":"raid"}"#,
            r#"{"command":"set","key":"stall-budget","value":-1}"#,
            r#"{"command":"resync","action":"pause","x":1}"#,
            r#"{"command":"stop","force":"yes"}"#,
            r#"{}"#,
            r#"[]"#,
            "",
        ] {
            let parsed: Result<Request, Error> = frame::decode(json.as_bytes());
            assert!(parsed.is_err(), "{json}: {parsed:?}");
        }
    }

    #[test]
    fn answers_have_the_documented_shape() {
        let line = |answer: Answer<Reply>| String::from_utf8(frame::encode(&answer)).unwrap();
        assert_eq!(line(Answer::Ok(Reply::DONE)), "{\"ok\":{}}\n");
        let switched = Switched {
            from: LegId::A,
            to: LegId::B,
            pause_us: 1,
            generation: 2,
            era: 3,
        };
        assert_eq!(
            line(Answer::Ok(Reply::Switched(switched))),
            "{\"ok\":{\"from\":\"a\",\"to\":\"b\",\"pause_us\":1,\"generation\":2,\"era\":3}}\n"
        );
        let difference = Difference {
            offset: 0,
            length: 4096,
            wrong_leg: None,
        };
        assert_eq!(
            line(Answer::Progress(Progress::Difference(difference))),
            "{\"progress\":{\"event\":\"difference\",\"offset\":0,\"length\":4096,\"wrong_leg\":null}}\n"
        );
        let digested = Digested {
            blake3: "00".into(),
            leg: LegId::A,
            generation: 1,
            known: Known::ReadBack,
        };
        assert_eq!(
            line(Answer::Ok(Reply::Digested(digested))),
            "{\"ok\":{\"blake3\":\"00\",\"leg\":\"a\",\"generation\":1,\"known\":\"read-back\"}}\n"
        );
    }

    #[test]
    fn the_longest_verify_fits_a_line() {
        let difference = Difference {
            offset: u64::MAX,
            length: u64::MAX,
            wrong_leg: None,
        };
        let verified = Verified {
            equal: false,
            bytes_compared: u64::MAX,
            differences: vec![difference; MAX_DIFFERENCES],
            difference_count: u64::MAX,
            repaired_bytes: u64::MAX,
        };
        assert!(frame::encode(&Answer::Ok(Reply::Verified(verified))).len() <= frame::LINE_LIMIT);
    }

    #[test]
    fn events_and_fields_of_a_newer_daemon_are_ignored() {
        let answer: Answer<Switched> =
            frame::decode(br#"{"ok":{"from":"a","to":"b","pause_us":1,"generation":2,"era":3,"new":[]}}"#).unwrap();
        assert!(matches!(answer, Answer::Ok(_)));
        let answer: Answer<Switched> = frame::decode(br#"{"progress":{"event":"new","x":1}}"#).unwrap();
        assert_eq!(answer, Answer::Progress(Progress::Unknown));
    }
}
