//! What the core says of itself.

use super::Mirror;
use super::follow::Follow;
use super::table::Side;
use crate::core::dirty::DirtyMap;
use crate::core::leg::{Health, LegId};
use crate::core::status::{LegStatus, Status};
use crate::core::time::Time;

impl Mirror {
    /// Where the device stands.
    pub fn status(&self) -> Status {
        let in_sync = matches!(self.follow, Follow::InSync | Follow::Departing { .. });
        Status {
            record: *self.recorder.durable(),
            primary: self.primary,
            protocol: self.protocol,
            legs: LegId::ALL.map(|leg| self.leg_status(leg)),
            source_generation: self.counters.source,
            writes_mirrored: self.counters.mirrored(),
            flush_request: self.counters.requested,
            writes_flushed: self.counters.flushed,
            counting: in_sync,
            dirty_bytes: self.dirty.bytes() + self.doubt.lacking().map_or(0, DirtyMap::bytes),
            pool_used: self.pool.used(),
            pool_bytes: self.config.pool_bytes,
            resync: self.resync.status,
            check: self.check.status(),
            rechecking: self.check.is_rechecking(),
            unsigned_bytes: self.unsigned_bytes(),
            hot_skipped: self.quiet.skipped,
            paused: self.resync.paused,
            rate: self.resync.rate,
            comes_by_itself: self.comes_by_itself() && !self.resync.stuck,
            tracked: self.recorder.durable().tracked,
            record_failing: self.recorder.is_uncertain(),
            io: self.io,
        }
    }

    fn leg_status(&self, id: LegId) -> Option<LegStatus> {
        let leg = self.leg(id);
        if !leg.known {
            return None;
        }
        let secondary = id != self.primary;
        let consistent_at = match self.follow {
            _ if !secondary => self.counters.source,
            Follow::InSync | Follow::Departing { .. } => self.counters.flushed,
            _ => leg.consistent_at,
        };
        let health = match self.follow {
            // It counts, but the record does not say so yet: a kill now finds it syncing.
            Follow::Joining { .. } if secondary => Health::Syncing,
            _ => leg.health,
        };
        Some(LegStatus {
            health,
            attached: leg.attached,
            consistent_at,
            lag_bytes: if secondary { self.lag_bytes } else { 0 },
            lacking_since: self.lacking_since().filter(|_| secondary),
        })
    }

    /// When the oldest mutation arrived that the primary has and the secondary, which is to get it, has not.
    fn lacking_since(&self) -> Option<Time> {
        let secondary = self.secondary().index();
        let entries = self.table.indices().map(|index| &self.table[index]);
        entries
            .filter(|entry| entry.live && entry.generation != 0)
            .filter(|entry| matches!(entry.sides[secondary], Side::Waiting | Side::Issued))
            .map(|entry| entry.arrived)
            .min()
    }
}
