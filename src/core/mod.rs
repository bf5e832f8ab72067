//! The decisions: which operation goes to which leg, in which order, and when the guest is answered.
//!
//! Nothing here performs I/O, reads a clock, or owns memory that a disk sees. [`mirror::Mirror`] takes what happened
//! (`handle_*`) with the time it happened, and yields what is to be done (`poll_effect`).

pub mod bits;
pub mod breaks;
pub mod config;
pub mod counters;
pub mod dirty;
pub mod effect;
pub mod epochs;
pub mod geometry;
pub mod layout;
pub mod leg;
pub mod mirror;
pub mod order;
pub mod pool;
pub mod record;
pub mod regions;
pub mod request;
pub mod signature;
pub mod signatures;
pub mod status;
pub mod suspects;
pub mod time;
pub mod unflushed;

pub use bits::Bits;
pub use config::{Comes, Config, CopyMode, LegTraits, Refusal, Repair};
pub use effect::{Action, BlockMask, Consult, ConsultId, Effect, Event, Evidence, Known, LegOp, Note, OpId, WalkId};
pub use geometry::{Geometry, Range};
pub use layout::{Buf, Layout};
pub use leg::{Health, LegId};
pub use mirror::Mirror;
pub use record::{LegRecord, Protocol, Record, Stale, StandIn, Unfit};
pub use regions::Tracked;
pub use request::{Errno, Operation, Request, Tag};
pub use signature::{Signature, Source};
pub use signatures::NoteId;
pub use status::{IoCounts, LegStatus, Status, WalkKind, WalkStatus};
pub use suspects::{Suspect, Suspects};
pub use time::Time;
