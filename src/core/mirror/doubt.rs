//! What a leg may have lost in a flush that failed.
//!
//! A disk that failed a flush may show for ever what it never made durable, and call the next flush good. Of a secondary all that
//! was not flushed is dirty at once. Of the primary nobody can make up for it while it is primary: the guest is told (`barrier`),
//! or moved (`failover`).
//!
//! *What must hold:* a leg that failed a flush is not recorded as in sync before what it may have lost was written to it anew.
//! *How:* what the primary may have lost is kept here. The record that makes the other leg primary says of this one that it is
//! being made equal (after a switch) or failed (after a failover), and when roles are exchanged all of it becomes dirty. What is
//! dirty is then written without being compared, because what the leg shows proves nothing; a leg that is attached anew was opened
//! anew, and shows what it has.
//! *Why in memory only:* nothing is tracked after such a failure (`is_trackable`), and the next start compares everything.

use super::Mirror;
use crate::core::bits::Bits;
use crate::core::breaks::{self, Break};
use crate::core::geometry::Range;
use crate::core::leg::LegId;

impl Mirror {
    /// The primary failed a flush.
    pub(super) fn doubt_primary(&mut self) {
        let geometry = self.config.geometry;
        let ranges = self.unflushed[self.primary.index()].take(&geometry);
        let doubted = self.doubted.get_or_insert_with(|| Bits::none(geometry.grains()));
        match &ranges {
            Some(ranges) => {
                for &range in ranges {
                    let (first, end) = geometry.grains_of(range);
                    doubted.insert_run(first, end);
                }
            }
            None => *doubted = Bits::all(geometry.grains()),
        }
        self.doubt(ranges);
    }

    /// Everything written to the leg since its last good flush may not be there: it is dirty.
    pub(super) fn doubt_unflushed(&mut self, leg: LegId) {
        let ranges = self.unflushed[leg.index()].take(&self.config.geometry);
        self.doubt(ranges);
    }

    fn doubt(&mut self, ranges: Option<Vec<Range>>) {
        if !self.remembers() {
            return;
        }
        match ranges {
            Some(ranges) => ranges.into_iter().for_each(|range| self.dirty.mark(range)),
            None => {
                self.doubt_all();
                self.pump_record();
            }
        }
    }

    /// Whether the primary may show what it has lost.
    pub(super) fn is_primary_doubted(&self) -> bool {
        self.doubted.is_some() && !breaks::on(Break::DoubtForgotten)
    }

    /// Roles are exchanged: what the old primary may have lost is dirty.
    pub(super) fn dirty_doubted(&mut self) {
        if let Some(grains) = self.doubted.take() {
            self.dirty.mark_grains(&grains);
        }
    }
}
