//! A guest that never stops writing: barriers and resyncs must end all the same, bounded by what was there when they came.
//!
//! Verifies by counting and not by time: how many mutations of others are answered while one barrier waits. A barrier that
//! waited for a quiet moment would see all of them.

use crate::check::Check;
use crate::guest::Pending;
use crate::life;
use crate::plan::{Admin, Faults, Lasting, Plan};
use crate::world::World;
use twinblk::core::time::Span;
use twinblk::core::{LegId, Operation, Protocol};

/// Requests of one world.
const REQUESTS: u64 = 4_000;

/// What the guest may get done meanwhile: the pool some times over, and what fits into the slowest operation.
const MOST_WHILE_WAITING: u64 = 1_000;

fn plan(seed: u64, protocol: Protocol, mirrored: bool) -> Plan {
    let mut plan = Plan::new(seed);
    plan.protocol = protocol;
    plan.faults = Faults::None;
    plan.lasting = Lasting::None;
    plan.admin = Admin::Absent;
    plan.endless = true;
    plan.requests = REQUESTS;
    plan.lives = 1;
    plan.begins_mirrored = mirrored;
    plan.thinks = false;
    plan.hot_blocks = 4;
    plan.max_blocks = 2;
    plan.config.layout.depth = 8;
    plan.config.layout.pool_max = 16 * u64::from(plan.config.layout.max_io);
    plan.config.pool_bytes = plan.config.layout.pool_max;
    plan.config.lag_bytes = 0;
    plan.config.stall_budget = Span::from_secs(30);
    plan.config.leg_timeout = Span::from_secs(60);
    plan
}

/// What an endless load saw.
struct Seen {
    barriers: u64,
    most_while_waiting: u64,
    /// The secondary came to be in sync before the load ended.
    in_sync: bool,
}

/// One life under a load that does not stop; a secondary is attached at once.
fn run(plan: Plan) -> Check<Seen> {
    let mut world = life::first_life(plan, false);
    if !plan.begins_mirrored {
        world.attach(LegId::B)?;
    }
    world.live(plan.requests)?;
    let seen = Seen {
        barriers: world.barriers,
        most_while_waiting: world.most_while_waiting,
        in_sync: world.stats.in_sync > 0,
    };
    world.rest()?;
    Ok(seen)
}

impl World {
    /// How many mutations of others were answered while a barrier waited.
    pub fn count_answer(&mut self, pending: &Pending) {
        let barrier = match pending.request.operation {
            Operation::Read => return,
            Operation::Flush => true,
            Operation::Write { fua } | Operation::WriteZeroes { fua, .. } => fua,
            Operation::Discard => false,
        };
        if barrier {
            self.barriers += 1;
            self.most_while_waiting = self.most_while_waiting.max(self.answered - pending.answered_before);
        }
        self.answered += 1;
    }
}

#[test]
fn a_barrier_ends_while_the_guest_never_stops_writing() {
    for protocol in [Protocol::Sync, Protocol::Flush, Protocol::Async] {
        for seed in 0..8 {
            let seen = run(plan(seed, protocol, true)).unwrap_or_else(|what| panic!("{protocol:?} {seed}: {what}"));
            assert!(
                seen.barriers > 100,
                "{protocol:?} {seed}: only {} barriers",
                seen.barriers
            );
            assert!(
                seen.most_while_waiting < MOST_WHILE_WAITING,
                "{protocol:?} {seed}: {} mutations overtook a barrier",
                seen.most_while_waiting
            );
        }
    }
}

/// Not in `async`: there the guest never waits for the secondary, so what finds the pool full is missed and copied again,
/// and a secondary slower than the guest comes into sync only when the guest leaves it time.
#[test]
fn a_resync_ends_while_the_guest_never_stops_writing() {
    for protocol in [Protocol::Sync, Protocol::Flush] {
        for seed in 0..8 {
            let seen = run(plan(seed, protocol, false)).unwrap_or_else(|what| panic!("{protocol:?} {seed}: {what}"));
            assert!(
                seen.in_sync,
                "{protocol:?} {seed}: the resync is still running after {REQUESTS} requests"
            );
        }
    }
}
