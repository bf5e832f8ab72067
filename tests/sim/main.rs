//! Deterministic simulation of the core: the real decisions over simulated disks, memory, records and guests.
//!
//! One seed makes one world: geometry, protocol, habits of the guest, the administrator and chance. A failing seed prints the
//! command that replays it.
//!
//! **What must be survived**, alone and together:
//! - completions of a leg in any order, with any delay, next to a guest that never stops writing to one hot block;
//! - errors of a leg, per kind, once or several times: failed writes that did part of what they should, failed reads,
//!   failed flushes that lose what they should have made durable, shown or not shown afterwards;
//! - a secondary that does not answer for longer than its budget, and answers late; a primary that does not answer for a while;
//! - a leg that is lost with what is in flight, and comes back;
//! - a primary that fails reads, writes or flushes, or is lost: the guest is served by the other leg, if that has everything; at once,
//!   or later when no record can be written or something hangs;
//! - a disk that goes on to show what a failed flush has lost, whoever opens it anew, until the power fails;
//! - errors that are the host's and not the disk's: nobody is demoted for them;
//! - a power cut at any moment: of what was not flushed each block survives or not, on each leg by itself;
//! - the death of the daemon at any moment: what is in flight lands or not, caches stay;
//! - records that are slow, or end in an error while nobody knows whether they are durable;
//! - what lasts: a secondary that answers nothing any more, a primary that answers everything with an error, records that
//!   cannot be written or never end; and a late answer of what hung, when it is over;
//! - signatures that are noted, forgotten and looked up late, next to writes of what they are about; signature tables that cannot be
//!   synced, or not even be emptied;
//! - generations that run out every few dozen writes, so that each start and each raise of the ceiling counts;
//! - an administrator who attaches (blank, junk, a former leg), detaches, switches, stops, verifies, digests and changes
//!   settings at any moment; somebody who writes to a detached leg;
//! - sectors that change by themselves on either leg at any moment, found and mended or not; a list of suspect places that is written
//!   late, or cannot be, or is lost.
//!
//! **Not simulated**: faults that the design does not survive either (a lost primary's device served from the other leg by
//! force, a daemon that dies while a leg hangs for ever, a guest's read that was sent to a leg just before it ceased to be
//! the primary and hangs there; a flush that fails while the daemon dies, on a disk that goes on to show what it lost); the format of records; memory and threads of the daemon.
//!
//! What each checker verifies, and what it does not, stands at the head of its module: `check` (acknowledgements, cuts,
//! rest, digests), `effects` (order and use of memory), `counters`, `walk` (verify), `faults` (errors told to the guest),
//! `admin` (verbs), `signatures` and `trust` (what is known by signatures),
//! `rot` and `suspects` (places where the legs differ), `record`, `renew`, `hand_over`, `world` (progress), `life` (starts and stops).
//!
//! `TWINBLK_SIM_SEED=n` runs one seed with a trace, `TWINBLK_SIM_SEEDS=a..b` a range.

mod admin;
mod arena;
#[cfg(feature = "breaks")]
mod breaks;
mod check;
mod counters;
mod disk;
mod effects;
mod endless;
mod faults;
mod guest;
mod hand_over;
mod life;
mod oracle;
mod plan;
mod record;
mod renew;
mod rng;
mod rot;
mod run;
mod seeds;
mod signatures;
mod stats;
mod suspects;
mod tables;
mod token;
mod trust;
mod walk;
mod what_if;
mod world;
