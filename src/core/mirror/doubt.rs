//! What a leg may lack although nobody would see it, and what the primary lacks and the secondary has.
//!
//! # Doubt
//! A disk that failed a flush may show for ever what it never made durable, and call the next flush good. Of a secondary all that
//! was not flushed is dirty at once. Of the primary nobody can make up for it while it is primary: the guest is told (`barrier`),
//! or moved (`failover`).
//!
//! *What must hold:* a leg that failed a flush is not recorded as in sync before what it may have lost was written to it anew.
//! *How:* what each leg may have lost is kept here, whatever becomes of the leg: given up, detached, attached again. Before it is
//! made equal all of it is dirty, and a copy that touches it writes without comparing: what the leg shows proves nothing, and a
//! disk that is opened anew may show it out of its own cache all the same. It is forgotten when the copies are flushed, in the
//! record that says in-sync. The record that makes the other leg primary says of such a leg that it is being made equal (after a
//! switch) or failed (after a failover).
//! *Over a restart* the record says that there is doubt (see [`LegRecord::doubted`]), and not where. Of a secondary it is wherever
//! something is dirty: what is saved as dirty, or marked active, covers what was not flushed, and that was dirty from then on.
//! Of a primary it is everywhere, and nothing is tracked before it was written anew as a secondary: where it reverts in the end,
//! the legs differ, and no mark says so.
//!
//! # What the primary lacks
//! While the secondary counts for everything, what the primary fails has reached the secondary, or is about to: the legs differ,
//! and the secondary is right. It is *lacking* on the primary, and not dirty, which is what the secondary lacks.
//!
//! *What must hold:* it is never copied from the primary.
//! *How:* it is no part of what a resync looks at. The guest is moved as soon as that can be done (`failover`); then it is dirty,
//! for the leg that was primary. *If the secondary is given up before,* there is nobody better than the primary: it is dirty then,
//! and what the secondary gets later is what the primary shows. The guest was told.
//! *What else knows of it:* it is saved as dirty, it keeps a stop from calling the legs equal, a verify does not report it, a read that
//! the primary fails there is served by the secondary only if the primary takes the bytes (see `rewrite`).
//!
//! [`LegRecord::doubted`]: crate::core::LegRecord::doubted

use super::Mirror;
use super::follow::Follow;
use crate::core::bits::Bits;
use crate::core::breaks::{self, Break};
use crate::core::dirty::DirtyMap;
use crate::core::geometry::{Geometry, Range};
use crate::core::leg::LegId;
use crate::core::record::Record;

/// See the module. Memory is taken when there is something to say.
pub(super) struct Doubt {
    geometry: Geometry,
    /// By leg: grains that it may show and not hold.
    unproven: [Option<Bits>; 2],
    /// Grains that the primary failed and the secondary has.
    lacking: Option<DirtyMap>,
}

impl Doubt {
    pub(super) fn new(geometry: Geometry, record: &Record) -> Doubt {
        let doubted = |leg: LegId| record.legs[leg.index()].is_some_and(|leg| leg.doubted);
        let everywhere = |leg: LegId| doubted(leg).then(|| Bits::all(geometry.grains()));
        Doubt {
            geometry,
            unproven: LegId::ALL
                .map(everywhere)
                .map(|grains| grains.filter(|_| !breaks::on(Break::DoubtUnrecorded))),
            lacking: None,
        }
    }

    /// Whether the leg may show what it does not hold.
    pub(super) fn is_doubted(&self, leg: LegId) -> bool {
        self.unproven[leg.index()].is_some()
    }

    /// Whether it may show here what it does not hold.
    pub(super) fn touches(&self, leg: LegId, range: Range) -> bool {
        let (first, end) = self.geometry.grains_of(range);
        let unproven = self.unproven[leg.index()].as_ref();
        unproven.is_some_and(|grains| (first..end).any(|grain| grains.contains(grain)))
    }

    fn unproven_mut(&mut self, leg: LegId) -> &mut Bits {
        let grains = self.geometry.grains();
        self.unproven[leg.index()].get_or_insert_with(|| Bits::none(grains))
    }

    pub(super) fn add(&mut self, leg: LegId, range: Range) {
        let (first, end) = self.geometry.grains_of(range);
        self.unproven_mut(leg).insert_run(first, end);
    }

    /// Whatever it might have lost was written to it, and flushed.
    pub(super) fn settle(&mut self, leg: LegId) {
        self.unproven[leg.index()] = None;
    }

    /// Whether the secondary has something that the primary failed.
    pub(super) fn some_lacks(&self) -> bool {
        self.lacking.is_some()
    }

    /// Whether it has something of this range.
    pub(super) fn lacks(&self, range: Range) -> bool {
        self.lacking.as_ref().is_some_and(|lacking| lacking.touches(range))
    }

    pub(super) fn lacking(&self) -> Option<&DirtyMap> {
        self.lacking.as_ref()
    }

    fn lacking_mut(&mut self) -> &mut DirtyMap {
        let geometry = self.geometry;
        self.lacking.get_or_insert_with(|| DirtyMap::new(geometry))
    }
}

impl Mirror {
    /// Whether what the primary fails now reaches a secondary that counts for everything.
    fn is_made_up_for(&self) -> bool {
        match self.follow {
            Follow::InSync | Follow::Joining { .. } => true,
            Follow::Not | Follow::Starting | Follow::Syncing | Follow::Departing { .. } | Follow::Leaving => false,
        }
    }

    /// The primary failed a mutation of `range`: the guest is moved, now or later, or the secondary gets what the primary shows.
    pub(super) fn primary_failed(&mut self, range: Range) {
        if !self.remembers() || breaks::on(Break::FailedWriteClean) {
            return;
        }
        if self.is_made_up_for() {
            self.failover_due = true;
            self.fail_over();
            self.doubt.lacking_mut().mark(range);
            self.copy_from_doubted(range);
        } else {
            self.dirty.mark(range);
        }
    }

    /// The host could not do a mutation of `range` on the primary, which is as good as it was. How much of it was done nobody knows:
    /// the legs may differ there.
    pub(super) fn host_failed_primary(&mut self, range: Range) {
        if !self.remembers() {
        } else if self.failover_due || self.is_failing_over() {
            self.doubt.lacking_mut().mark(range);
        } else {
            self.dirty.mark(range);
        }
    }

    /// What the host could not do on the primary may be on the secondary: that is not equal any more, and catches up.
    pub(super) fn leave_astray(&mut self) {
        if self.is_made_up_for() && !self.dirty.is_empty() {
            self.leave_lagging();
        }
    }

    /// A fault that the simulation must find.
    fn copy_from_doubted(&mut self, range: Range) {
        if breaks::on(Break::CopiedFromDoubted) && !self.is_failing_over() {
            self.dirty.mark(range);
            self.begin_resync();
        }
    }

    /// The primary failed a flush.
    pub(super) fn doubt_primary(&mut self) {
        self.mending_in_doubt();
        let (leg, geometry) = (self.primary, self.config.geometry);
        let ranges = self.unflushed[leg.index()].take(&geometry);
        for &range in ranges.as_deref().unwrap_or(&[geometry.whole()]) {
            self.doubt.add(leg, range);
            self.distrust_doubted(leg, range);
        }
        if !self.remembers() {
            return;
        }
        if !self.is_made_up_for() {
            self.doubt(ranges);
            return;
        }
        self.failover_due = true;
        for &range in ranges.as_deref().unwrap_or(&[geometry.whole()]) {
            self.doubt.lacking_mut().mark(range);
            self.copy_from_doubted(range);
        }
    }

    /// The secondary failed a flush. What was not flushed is dirty; and what is dirty may have been written to it before, and not
    /// since.
    pub(super) fn doubt_secondary(&mut self) {
        let leg = self.secondary();
        self.doubt_unflushed(leg);
        let mut grains = Bits::none(self.config.geometry.grains());
        self.dirty.copy_to(&mut grains);
        self.doubt.unproven_mut(leg).unite(&grains);
    }

    /// Everything written to the leg since its last good flush may not be there: it is dirty.
    pub(super) fn doubt_unflushed(&mut self, leg: LegId) {
        let ranges = self.unflushed[leg.index()].take(&self.config.geometry);
        match &ranges {
            Some(ranges) => ranges.iter().for_each(|&range| self.distrust_doubted(leg, range)),
            None => self.distrust_doubted(leg, self.config.geometry.whole()),
        }
        self.doubt(ranges);
    }

    /// What the leg shows of `range` may be gone tomorrow.
    fn distrust_doubted(&mut self, leg: LegId, range: Range) {
        if !breaks::on(Break::DoubtedSigned) {
            self.distrust(leg, range);
            self.spoil_walks(range);
        }
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

    /// Whether the primary is not as good as the secondary: it may show what it has lost, or it lacks something.
    pub(super) fn is_primary_doubted(&self) -> bool {
        let doubted = self.doubt.is_doubted(self.primary) || self.doubt.some_lacks();
        doubted && !breaks::on(Break::DoubtForgotten)
    }

    /// The leg is going to be made equal: what it may have lost is dirty.
    pub(super) fn dirty_doubted(&mut self, leg: LegId) {
        if let Some(grains) = &self.doubt.unproven[leg.index()] {
            self.dirty.mark_grains(grains);
        }
    }

    /// The secondary is not what makes up for the primary any more: roles are exchanged, or it is given up. What the primary lacked is
    /// what the legs may differ in.
    pub(super) fn dirty_lacking(&mut self) {
        self.failover_due = false;
        if let Some(lacking) = self.doubt.lacking.take() {
            let mut grains = Bits::none(self.config.geometry.grains());
            lacking.copy_to(&mut grains);
            self.dirty.mark_grains(&grains);
        }
    }

    /// What was tracked says where the secondary may differ, and there it is doubted, if it is at all.
    pub(super) fn doubt_what_is_dirty(&mut self, leg: LegId) {
        if let Some(grains) = &mut self.doubt.unproven[leg.index()] {
            self.dirty.copy_to(grains);
        }
    }
}
