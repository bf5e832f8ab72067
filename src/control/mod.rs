//! The messages between the daemon of a device and whoever administers it: one typed definition for both sides.
//!
//! # The admin socket
//! Each running device has a stream socket, `RUN_DIR/NAME.sock`. A client writes one JSON object per line
//! ([`Request`]) and reads, for each: any number of `{"progress":{…}}` lines ([`Progress`]), then exactly one
//! `{"ok":{…}}` ([`Reply`]) or `{"error":{"kind":"…","message":"…","hint":"…"}}` ([`Error`]). Requests of one
//! connection are carried out one after the other; several connections are served at once. From a shell:
//!
//! ```text
//! $ echo '{"command":"status"}' | socat -t 10 - UNIX-CONNECT:/run/twinblk/vm1.sock
//! {"ok":{"name":"vm1","state":"mirrored",…}}
//! ```
//!
//! Rules, for clients in any language:
//! - A line ends with a line feed and is at most [`frame::LINE_LIMIT`] bytes long; longer ones end the connection.
//! - A request with a field or a command that the daemon does not know is refused (`usage`), so that an option is
//!   never silently left out. In what the daemon says, fields are only ever added: ignore those you do not know.
//! - Closing the connection breaks off a running `verify` or `digest`, ends a `wait`, and nothing else.
//! - Only `attach` comes with a descriptor (`SCM_RIGHTS`, sent with the line): the disk, opened and claimed. The next
//!   `attach` of the connection takes it; a second one before that ends the connection. A shell uses `twinblk attach`.
//! - A client that leaves what it is sent unread, or sends nothing for long, is dropped.
//!
//! # Starting a daemon
//! [`launch`] has the one line that the tool sends to a new daemon and the one that it gets back.
//!
//! Nothing here does I/O; sockets are in [`crate::runtime::admin`].

pub mod error;
pub mod frame;
pub mod launch;
pub mod message;
pub mod paths;
pub mod settings;
pub mod stand_in;
pub mod status;

pub use error::{Error, ErrorKind};
pub use message::{
    Answer, Attach, Content, Difference, Digest, Digested, HandedOver, Known, LegName, Progress, Reply, Request,
    Switched, Verified, Verify,
};
pub use settings::{CatchUp, Setting, Settings};
pub use status::Status;
