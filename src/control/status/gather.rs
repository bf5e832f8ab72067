//! Puts a status together: of a device that is served, from its core; of another, from its record.

use super::{
    Counters, Daemon, DriverState, Io, LegStatus, Place, Role, Signatures, State, Status, Walk, WalkKind, rfc3339,
    uuid_text,
};
use crate::control::settings::Settings;
use crate::core::{
    Health, LegId, LegStatus as CoreLegStatus, Status as CoreStatus, Suspect, Suspects, Time, WalkKind as CoreWalkKind,
    WalkStatus,
};
use crate::table::{LegIdentity, Superblock};
use std::path::PathBuf;

/// What the daemon knows of a device beside its core.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The device's name.
    pub name: String,
    /// Its identity.
    pub uuid: String,
    /// The block device.
    pub device: Option<PathBuf>,
    /// Its size.
    pub size_bytes: u64,
    /// Its logical block size, in bytes.
    pub logical_block_size: u32,
    /// The legs' disks, by [`LegId::index`].
    pub legs: [Option<LegFacts>; 2],
    /// The process.
    pub daemon: Daemon,
    /// What the driver says.
    pub driver_state: DriverState,
    /// Durable writes to the state directory.
    pub metadata_writes: u64,
    /// The settings in force.
    pub settings: Settings,
    /// Seconds since 1970.
    pub unix: u64,
}

/// What the daemon knows of a leg's disk.
#[derive(Clone, Debug)]
pub struct LegFacts {
    /// What it is known by, with its path.
    pub identity: LegIdentity,
    /// Whether its claim is waited for.
    pub awaited: bool,
    /// Since when the record says that it is not in sync, in seconds since 1970.
    pub since: Option<u64>,
}

impl Status {
    /// The status of a device that a daemon serves.
    pub fn of_core(facts: &Facts, core: &CoreStatus, suspects: &Suspects, now: Time) -> Status {
        let legs = LegId::ALL
            .into_iter()
            .filter_map(|id| leg_of_core(id, facts, core, suspects, now));
        let resync = Walk::of_core(&core.resync, now);
        let check = Walk::of_core(&core.check, now);
        let running = if core.resync.running {
            resync
        } else if core.check.running {
            check
        } else {
            None
        };
        Status {
            name: facts.name.clone(),
            uuid: facts.uuid.clone(),
            device: facts.device.clone(),
            size_bytes: facts.size_bytes,
            logical_block_size: facts.logical_block_size,
            protocol: core.protocol,
            era: core.record.era,
            state: State::of_core(core),
            legs: legs.collect(),
            counters: Some(Counters {
                source_generation: core.source_generation,
                writes_mirrored: core.writes_mirrored,
                flush_request: core.flush_request,
                writes_flushed: core.writes_flushed,
            }),
            dirty_bytes: core.dirty_bytes,
            resync: running,
            last_resync: resync.filter(|_| !core.resync.running),
            last_check: check.filter(|_| !core.check.running),
            daemon: Some(facts.daemon.clone()),
            driver_state: facts.driver_state,
            io: Some(Io {
                guest: core.io,
                metadata_writes: facts.metadata_writes,
            }),
            signatures: Some(Signatures {
                unsigned_bytes: core.unsigned_bytes,
                hot_skipped: core.hot_skipped,
            }),
            record_number: core.record.number,
            record_failing: core.record_failing,
            pool_used_bytes: core.pool_used,
            tracked: core.tracked,
            paused: core.paused,
            comes_by_itself: core.comes_by_itself,
            rate_limit_bytes_per_s: (core.rate != 0).then_some(core.rate),
            settings: Some(facts.settings),
        }
    }
}

impl Status {
    /// The status of a device that nobody serves, from its record. `clean` is false when the record says so or is in
    /// doubt: then the device was not stopped, its daemon died.
    pub fn of_record(superblock: &Superblock, clean: bool, driver_state: DriverState) -> Status {
        let legs = LegId::ALL.into_iter().filter_map(|id| leg_of_record(id, superblock));
        Status {
            name: superblock.name.to_string(),
            uuid: uuid_text(&superblock.uuid),
            device: None,
            size_bytes: superblock.geometry.size,
            logical_block_size: superblock.geometry.block,
            protocol: superblock.record.protocol,
            era: superblock.record.era,
            state: if clean { State::Stopped } else { State::Failed },
            legs: legs.collect(),
            counters: None,
            // Nothing else is known here: a secondary that is not in sync is compared whole.
            dirty_bytes: 0,
            resync: None,
            last_resync: None,
            last_check: None,
            daemon: None,
            driver_state,
            io: None,
            signatures: None,
            record_number: superblock.record.number,
            record_failing: false,
            pool_used_bytes: 0,
            tracked: superblock.record.tracked,
            paused: false,
            comes_by_itself: false,
            rate_limit_bytes_per_s: (superblock.settings.rate != 0).then_some(superblock.settings.rate),
            settings: Some(Settings::from(&superblock.settings)),
        }
    }
}

fn leg_of_record(id: LegId, superblock: &Superblock) -> Option<LegStatus> {
    let leg = superblock.record.legs[id.index()]?;
    let identity = superblock.legs[id.index()].clone();
    let consistent = consistent(leg.health);
    Some(LegStatus {
        id,
        path: identity
            .as_ref()
            .map(|disk| PathBuf::from(&*disk.path))
            .unwrap_or_default(),
        role: Role::of(id, superblock.record.primary),
        health: leg.health,
        consistent,
        consistent_at_generation: consistent.then_some(leg.consistent_at),
        lag_bytes: 0,
        suspect: Vec::new(),
        attached: leg.attached,
        awaited: false,
        not_in_sync_since: superblock.since[id.index()].map(rfc3339),
        lag_ms: None,
        retired: false,
        identity,
    })
}

fn leg_of_core(id: LegId, facts: &Facts, core: &CoreStatus, suspects: &Suspects, now: Time) -> Option<LegStatus> {
    let leg = core.legs[id.index()]?;
    let disk = facts.legs[id.index()].as_ref();
    let consistent = consistent(leg.health);
    Some(LegStatus {
        id,
        path: disk.map(|disk| PathBuf::from(&*disk.identity.path)).unwrap_or_default(),
        role: Role::of(id, core.record.primary),
        health: leg.health,
        consistent,
        consistent_at_generation: consistent.then_some(leg.consistent_at),
        lag_bytes: leg.lag_bytes,
        suspect: suspects_of(id, suspects),
        attached: leg.attached,
        awaited: disk.is_some_and(|disk| disk.awaited),
        not_in_sync_since: disk.and_then(|disk| disk.since).map(rfc3339),
        lag_ms: lag_ms(
            &leg,
            core.dirty_bytes,
            disk.and_then(|disk| disk.since),
            facts.unix,
            now,
        ),
        retired: false,
        identity: disk.map(|disk| disk.identity.clone()),
    })
}

/// Where a leg is proven wrong, or nothing proves which is.
fn suspects_of(id: LegId, suspects: &Suspects) -> Vec<Place> {
    let its = suspects
        .iter()
        .filter(|suspect| suspect.wrong.is_none_or(|wrong| wrong == id));
    let place = |suspect: &Suspect| Place {
        offset: suspect.range.start,
        length: suspect.range.len,
    };
    its.map(place).collect()
}

/// The age of the oldest thing that a leg lacks, in ms. What one that is not in sync lacks began when it ceased to be; of one that
/// has never been nobody can say.
fn lag_ms(leg: &CoreLegStatus, dirty_bytes: u64, since: Option<u64>, unix: u64, now: Time) -> Option<u64> {
    let pending = leg.lacking_since.map_or(0, |since| now.since(since).0 / 1_000_000);
    match leg.health {
        Health::InSync => Some(pending),
        Health::Behind | Health::Syncing | Health::Failed | Health::Absent if dirty_bytes == 0 => Some(pending),
        Health::Behind | Health::Syncing | Health::Failed | Health::Absent => {
            since.map(|since| unix.saturating_sub(since).saturating_mul(1000).max(pending))
        }
    }
}

/// Whether a leg of this health holds a valid image of the device at some generation.
pub const fn consistent(health: Health) -> bool {
    match health {
        Health::InSync | Health::Behind => true,
        Health::Syncing | Health::Failed | Health::Absent => false,
    }
}

impl State {
    fn of_core(core: &CoreStatus) -> State {
        let primary = core.record.primary;
        match core.legs[primary.index()].map(|leg| leg.health) {
            Some(Health::InSync) => {}
            Some(Health::Behind | Health::Syncing | Health::Failed | Health::Absent) | None => return State::Failed,
        }
        match core.legs[primary.other().index()]
            .filter(|leg| leg.attached)
            .map(|leg| leg.health)
        {
            None => State::Single,
            Some(Health::InSync) if core.dirty_bytes == 0 && !core.rechecking => State::Mirrored,
            // It follows every write, but places on which the legs may differ are still to be copied, or looked at.
            Some(Health::InSync | Health::Syncing) => State::Syncing,
            Some(Health::Behind | Health::Failed | Health::Absent) => State::Degraded,
        }
    }
}

impl Walk {
    /// The figures of a walk of the core; none if none has run.
    pub fn of_core(walk: &WalkStatus, now: Time) -> Option<Walk> {
        let kind = match walk.kind {
            CoreWalkKind::None => return None,
            CoreWalkKind::Full => WalkKind::Full,
            CoreWalkKind::Dirty => WalkKind::Dirty,
            CoreWalkKind::Signature => WalkKind::Signature,
            CoreWalkKind::Reconcile => WalkKind::Reconcile,
            CoreWalkKind::Verify => WalkKind::Verify,
            CoreWalkKind::Digest => WalkKind::Digest,
        };
        let until = if walk.running { now } else { walk.ended };
        let nanos = u128::from(until.since(walk.began).0).max(1);
        let per_second = |bytes: u64| u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX);
        let rate = per_second(walk.bytes_done);
        let left = walk.bytes_total.saturating_sub(walk.bytes_done);
        let eta_s = match (walk.running, rate) {
            (false, _) => Some(0),
            (true, 0) => None,
            (true, rate) => Some(left.div_ceil(rate)),
        };
        Some(Walk {
            kind,
            bytes_total: walk.bytes_total,
            bytes_done: walk.bytes_done,
            bytes_read: walk.bytes_read,
            bytes_written: walk.bytes_written,
            bytes_matched: walk.bytes_matched,
            rate_bytes_per_s: rate,
            eta_s,
            elapsed_s: until.since(walk.began).0 / 1_000_000_000,
        })
    }
}
