//! What becomes of a mutation: started on each leg when its turn comes, settled when both are done with it.
//!
//! *What must hold:* the guest is answered once; not before the primary is done; in `sync`, or while two records might be
//! in force, not before the secondary is done or durably excused; and never while a leg may still touch the buffer that the
//! kernel is handed for the tag's next request. A failed write leaves its range dirty, whatever the secondary did.

use super::admit::{Guest, Need};
use super::drain::HOLD_READS;
use super::follow::{Follow, is_hosts};
use super::table::{Change, Entry, Owner, Side};
use super::{Mirror, OpKind, SECONDARY_IN_FLIGHT};
use crate::core::breaks::{self, Break};
use crate::core::effect::Action;
use crate::core::geometry::Range;
use crate::core::layout::Buf;
use crate::core::leg::LegId;
use crate::core::record::Protocol;
use crate::core::request::{Errno, Tag};

impl Mirror {
    /// The entry is first in the primary's order for every byte of it.
    pub(super) fn start_on_primary(&mut self, index: u32) {
        let entry = &mut self.table[index];
        let leg = self.primary;
        if let Owner::Walk(slot) = entry.owner {
            self.walk_ready(slot, leg);
            return;
        }
        if entry.change == Change::Rewrite {
            self.rewrite_ready(index);
            return;
        }
        entry.sides[leg.index()] = Side::Issued;
        let (range, buf) = (entry.range, entry.bufs[leg.index()]);
        let action = match entry.change {
            Change::Write { fua } => Action::Write {
                fua: fua && !breaks::on(Break::FuaDropped),
            },
            Change::Zero { unmap, .. } => Action::Zero { unmap },
            Change::Copy | Change::Rewrite => unreachable!("a copy belongs to a walk, a rewrite to a read"),
        };
        self.submit(OpKind::Entry(leg, index), leg, action, range, buf);
    }

    /// The entry is first in the secondary's order for every byte of it, and its epoch is the current one.
    pub(super) fn start_on_secondary(&mut self, index: u32) {
        if let Owner::Walk(slot) = self.table[index].owner {
            self.walk_ready(slot, self.secondary());
            return;
        }
        if self.table[index].change == Change::Rewrite {
            self.read_for_rewrite(index);
            return;
        }
        if breaks::on(Break::OverlapOrder) && self.table[index].sides[self.secondary().index()] != Side::Waiting {
            return;
        }
        if self.in_flight < SECONDARY_IN_FLIGHT {
            self.issue_on_secondary(index);
        } else {
            self.ready.push_back(index);
        }
    }

    fn issue_on_secondary(&mut self, index: u32) {
        let leg = self.secondary();
        let now = self.now;
        let entry = &mut self.table[index];
        entry.sides[leg.index()] = Side::Issued;
        entry.issued_at = now;
        let (range, buf) = (entry.range, entry.bufs[leg.index()]);
        let action = match entry.change {
            // The flush that ends its epoch makes it durable; the flag alone would acknowledge nothing.
            Change::Write { .. } => Action::Write { fua: false },
            Change::Zero { unmap, .. } => Action::Zero { unmap },
            Change::Copy | Change::Rewrite => unreachable!("a copy belongs to a walk, a rewrite to a read"),
        };
        self.in_flight += 1;
        self.submit(OpKind::Entry(leg, index), leg, action, range, buf);
        self.watch_leg();
    }

    /// An operation of the secondary has ended: another may start.
    pub(super) fn secondary_ended(&mut self) {
        self.in_flight -= 1;
        if let Some(index) = self.ready.pop_front() {
            self.issue_on_secondary(index);
        }
    }

    pub(super) fn entry_completed(&mut self, index: u32, leg: LegId, result: Result<(), Errno>) {
        let entry = &self.table[index];
        if entry.sides[leg.index()] == Side::Abandoned {
            self.abandoned_ended(index, leg, result);
        } else if let Owner::Walk(slot) = entry.owner {
            self.walk_completed(slot, leg, result);
        } else if entry.change == Change::Rewrite {
            self.rewrite_completed(index, leg, result);
        } else if leg == self.primary {
            self.primary_completed(index, result);
        } else {
            self.secondary_completed(index, result);
        }
    }

    fn primary_completed(&mut self, index: u32, result: Result<(), Errno>) {
        let leg = self.primary;
        let secondary = leg.other();
        let entry = &mut self.table[index];
        entry.sides[leg.index()] = Side::Done;
        let (range, change) = (entry.range, entry.change);
        let other = entry.sides[secondary.index()];
        let owner = entry.owner;
        // One that failed may have done a part.
        self.unflushed[leg.index()].note(&self.config.geometry, range);
        let mut strays = false;
        match result {
            Ok(()) => {
                let generation = self.counters.complete(other == Side::Done);
                if matches!(other, Side::Waiting | Side::Issued) {
                    entry.generation = generation;
                    self.lag_bytes += range.len;
                }
                if change.is_fua() {
                    self.counters.requested = self.counters.requested.max(generation);
                }
                self.recorder.note_generation(generation);
                if self.recorder.wants_generations() {
                    self.pump_record();
                }
                if let (Change::Zero { fua: true, .. }, Owner::Guest(tag)) = (change, owner) {
                    self.flush_primary_for(tag);
                }
            }
            Err(error) => {
                entry.error = Some(error);
                if is_hosts(error) {
                    // Answered first: see below.
                    strays = true;
                    self.host_failed_primary(range);
                } else {
                    self.primary_failed(range);
                }
                let action = action_of(change);
                self.tell_leg_error(leg, action, range, error);
            }
        }
        self.let_go(index, leg);
        self.settle(index);
        if strays {
            self.leave_astray();
        }
    }

    fn secondary_completed(&mut self, index: u32, result: Result<(), Errno>) {
        let leg = self.secondary();
        let entry = &mut self.table[index];
        let (range, change, owner) = (entry.range, entry.change, entry.owner);
        match result {
            Ok(()) => {
                entry.sides[leg.index()] = Side::Done;
                if entry.generation != 0 {
                    self.lag_bytes -= range.len;
                    self.counters.land(entry.generation);
                }
                self.unflushed[leg.index()].note(&self.config.geometry, range);
                if let Owner::Guest(tag) = owner
                    && self.guests[tag.0 as usize].need == Need::Landing
                {
                    self.guests[tag.0 as usize].need = self.want_flush();
                }
                self.let_go(index, leg);
                self.secondary_ended();
                self.settle(index);
                self.try_flush_secondary();
            }
            Err(error) => {
                entry.sides[leg.index()] = Side::Missed;
                self.dirty.mark(range);
                self.in_flight -= 1;
                self.order[leg.index()].remove(index, &mut self.released);
                self.released.clear();
                self.tell_leg_error(leg, action_of(change), range, error);
                self.leave_because(error);
                self.settle(index);
            }
        }
    }

    /// An operation that nobody counts on has ended after all: its buffer is free.
    fn abandoned_ended(&mut self, index: u32, leg: LegId, result: Result<(), Errno>) {
        self.abandoned -= 1;
        if result.is_err_and(|error| !is_hosts(error)) {
            self.left_leg_failed();
        }
        self.table[index].sides[leg.index()] = Side::Missed;
        if let Owner::Walk(slot) = self.table[index].owner {
            self.walk_abandoned(slot);
        } else {
            self.settle(index);
        }
        self.leg_is_quiet();
    }

    /// Take the entry out of the order of `leg` and start what waited for it.
    #[inline]
    pub(super) fn let_go(&mut self, index: u32, leg: LegId) {
        self.order[leg.index()].remove(index, &mut self.released);
        if !self.released.is_empty() {
            self.start_released(leg);
        }
    }

    #[cold]
    fn start_released(&mut self, leg: LegId) {
        let mut released = std::mem::take(&mut self.released);
        for &next in &released {
            if leg == self.primary {
                self.start_on_primary(next);
            } else if self.table[next].epoch <= self.epochs.current() {
                self.start_on_secondary(next);
            }
        }
        released.clear();
        self.released = released;
    }

    /// Look again at what the entry still waits for.
    pub(super) fn settle(&mut self, index: u32) {
        let primary = self.primary.index();
        let entry = &mut self.table[index];
        let other = entry.sides[1 - primary];
        let settled = entry.sides[primary] == Side::Done && matches!(other, Side::Absent | Side::Done | Side::Missed);
        if settled && !entry.settled {
            entry.settled = true;
            let epoch = std::mem::take(&mut entry.epoch);
            if epoch != 0 {
                self.epochs.leave(epoch);
                if self.epochs.is_complete() {
                    self.try_flush_secondary();
                }
            }
        }
        match self.table[index].owner {
            Owner::Guest(tag) => self.try_answer(index, tag),
            Owner::Read(tag) => self.settle_rewrite(index, tag),
            Owner::Answered | Owner::Walk(_) => {}
        }
        let entry = &self.table[index];
        if entry.live && entry.settled && entry.owner == Owner::Answered {
            self.retire(index);
        }
    }

    pub(super) fn retire(&mut self, index: u32) {
        if let Some(block) = self.table[index].block.take() {
            self.give_back(block);
        }
        let Entry { range, marked, .. } = self.table[index];
        self.leave_regions(range, marked);
        self.table.remove(index);
    }

    /// Answer the request of this mutation, if nothing stands against it.
    pub(super) fn try_answer(&mut self, index: u32, tag: Tag) {
        let primary = self.primary.index();
        let entry = &self.table[index];
        if entry.sides[primary] != Side::Done {
            return;
        }
        let other = entry.sides[1 - primary];
        let mut result = entry.error.map_or(Ok(()), Err);
        if result.is_err() && self.is_failing_over() {
            if breaks::on(Break::AnsweredBeforeDemoted) {
                result = Ok(());
            } else {
                return;
            }
        }
        let guest = &self.guests[tag.0 as usize];
        if result.is_ok() {
            if !guest.primary_flushed {
                return;
            }
            let unmirrored = !matches!(other, Side::Absent | Side::Done);
            if (unmirrored && self.write_needs_secondary()) || !self.is_met(guest.need) {
                let Some(end) = self.overdue_end() else {
                    self.wait_alone(tag);
                    return;
                };
                result = end;
            }
        }
        let buf = guest.buf;
        self.answer_entry(index, tag, result, buf);
    }

    /// Answer the request of this entry, with another buffer for the next one if the secondary still needs this one. If there is
    /// none it waits.
    pub(super) fn answer_entry(&mut self, index: u32, tag: Tag, result: Result<(), Errno>, buf: Buf) {
        let primary = self.primary.index();
        let entry = &self.table[index];
        let other = entry.sides[1 - primary];
        let mut next = buf;
        if other.holds_buffer()
            && !breaks::on(Break::PayloadNotKept)
            && entry.bufs[1 - primary] == buf
            && matches!(entry.change, Change::Write { .. } | Change::Rewrite)
        {
            // The secondary still needs the bytes: the kernel gets another block for the tag.
            let Some(block) = self.table[index].block.take().or_else(|| self.pool.take_block()) else {
                self.wait_alone(tag);
                return;
            };
            self.table[index].block = Some(buf);
            next = block;
        }
        self.table[index].owner = Owner::Answered;
        self.answer(tag, result, next);
    }

    /// Whether a write is acknowledged only when the secondary has it too.
    pub(super) fn write_needs_secondary(&self) -> bool {
        let secondary = self.secondary();
        (self.protocol == Protocol::Sync || self.recorder.may_be_sync() || self.recorder.may_be_primary(secondary))
            && self.counts()
            && !breaks::on(Break::AckBeforeSecondary)
    }

    /// The request waits for the secondary and nothing else.
    pub(super) fn wait_alone(&mut self, tag: Tag) {
        let guest = &mut self.guests[tag.0 as usize];
        if guest.alone_since.is_none() {
            guest.alone_since = Some(self.now);
            self.arm(self.now + self.config.stall_budget);
        }
    }

    pub(super) fn read_completed(&mut self, tag: Tag, result: Result<(), Errno>) {
        let Guest { range, buf, leg, .. } = self.guests[tag.0 as usize];
        self.reads[leg.index()] -= 1;
        if leg != self.primary {
            // Roles were exchanged meanwhile. This leg may show a write that the primary has not completed, and the next
            // read would not show it any more: ask the primary.
            self.read_from_primary(tag);
            self.leg_is_quiet();
            return;
        }
        if result.is_ok() && self.is_failing_over() && self.holds & HOLD_READS != 0 {
            // The leg has failed a flush, and what it shows may be old: see `failover`.
            self.waiting.push_back(tag);
            return;
        }
        if let Err(error) = result {
            self.tell_leg_error(leg, Action::Read, range, error);
            self.read_failed(tag, error);
            return;
        }
        self.answer(tag, result, buf);
    }

    pub(super) fn read_from_primary(&mut self, tag: Tag) {
        let leg = self.primary;
        self.reads[leg.index()] += 1;
        let guest = &mut self.guests[tag.0 as usize];
        guest.leg = leg;
        let (range, buf) = (guest.range, guest.buf);
        self.submit(OpKind::GuestRead(tag), leg, Action::Read, range, buf);
    }

    /// Guest reads under way on this leg.
    pub(super) fn reads_on(&self, leg: LegId) -> u32 {
        self.reads[leg.index()]
    }

    /// Everything that could have been waiting for the secondary is looked at again.
    pub(super) fn review_guests(&mut self) {
        for tag in 0..self.guests.len() as u16 {
            let tag = Tag(tag);
            let guest = &self.guests[tag.0 as usize];
            if !guest.active || !guest.admitted {
                continue;
            }
            match guest.entry {
                Some(index) => self.settle(index),
                None => self.try_answer_flush(tag),
            }
        }
    }

    /// The next epoch may start on the secondary.
    pub(super) fn start_epoch(&mut self) {
        let current = self.epochs.current();
        let secondary = self.secondary().index();
        while let Some(&index) = self.later.front()
            && self.table[index].epoch <= current
        {
            self.later.pop_front();
            if self.order[secondary].is_ready(index) {
                self.start_on_secondary(index);
            }
        }
    }

    /// Nobody counts on the secondary any more: what has not started there will not, what has is waited for by nobody.
    /// All of it is dirty.
    pub(super) fn abandon_secondary(&mut self) {
        let secondary = self.secondary().index();
        self.ready.clear();
        self.later.clear();
        self.order[secondary].clear();
        self.in_flight = 0;
        self.lag_bytes = 0;
        if self.flush.take().is_some() {
            self.abandoned += 1;
        }
        self.epochs.reset();
        for index in self.table.indices() {
            let entry = &mut self.table[index];
            if !entry.live || matches!(entry.sides[secondary], Side::Abandoned) {
                continue;
            }
            entry.epoch = 0;
            entry.generation = 0;
            let range = entry.range;
            match entry.sides[secondary] {
                Side::Waiting => entry.sides[secondary] = Side::Missed,
                Side::Issued => {
                    entry.sides[secondary] = Side::Abandoned;
                    self.abandoned += 1;
                }
                // What it completed it may have lost: a write that is not answered yet was not mirrored.
                Side::Done if matches!(entry.owner, Owner::Guest(_)) => entry.sides[secondary] = Side::Missed,
                Side::Done if entry.sides[1 - secondary] != Side::Done => {}
                Side::Absent | Side::Abandoned | Side::Done | Side::Missed => continue,
            }
            self.dirty.mark(range);
        }
        self.cancel_walk_pieces();
        for index in self.table.indices() {
            if self.table[index].live && !matches!(self.table[index].owner, Owner::Walk(_)) {
                self.settle(index);
            }
        }
    }

    /// Nothing is dirty any more: what unanswered mutations missed on the secondary has come there by copies.
    pub(super) fn forgive_missed(&mut self) {
        let secondary = self.secondary().index();
        for index in self.table.indices() {
            let entry = &mut self.table[index];
            if entry.live && entry.sides[secondary] == Side::Missed {
                entry.sides[secondary] = Side::Absent;
            }
        }
    }

    /// Placeholder of an operation that has neither range nor buffer.
    pub(super) fn submit_flush(&mut self, kind: OpKind, leg: LegId) {
        self.submit(kind, leg, Action::Flush, Range::EMPTY, Buf(0));
    }

    /// Whether the secondary's word is waited for: it is in sync, about to be, or the record may still say so.
    pub(super) fn counts(&self) -> bool {
        match self.follow {
            Follow::InSync | Follow::Joining { .. } => true,
            Follow::Departing { .. } | Follow::Leaving => true,
            Follow::Not | Follow::Starting | Follow::Syncing => false,
        }
    }
}

fn action_of(change: Change) -> Action {
    match change {
        Change::Write { fua } => Action::Write { fua },
        Change::Zero { unmap, .. } => Action::Zero { unmap },
        Change::Copy | Change::Rewrite => Action::Read,
    }
}
