//! A guest's read that the primary failed is served by the secondary, and what it read is written to the primary anew.
//!
//! It takes a place in the order of both legs, as a mutation does. On the secondary it is a read; on the primary, when that
//! is done and its turn has come, a write of the bytes read. Then the guest is answered.
//!
//! *What must hold:* the guest never sees something newer than what the next read would show; a newer write is not replaced.
//! *Why the bytes are right:* the secondary is in sync and nothing of the range is dirty; what was admitted before has landed
//! there when its turn comes; what is admitted later stands behind it on both legs.
//! *Why a block read twice says the same:* what the bytes contain beyond what the primary shows are writes admitted before. On
//! the primary they stand before the rewrite, and the answer waits for that.
//! *Why it cannot deadlock:* it waits for mutations admitted before it and for its regions, holding nothing meanwhile.
//!
//! *While reads are held* (a hand-over) a read that failed is held with them: it is asked again, by this core if the hand-over is
//! given up, else by the next one.
//!
//! If the rewrite fails, the primary fails a write: the guest is moved (`failover`), and the read is asked again at its end. If it
//! cannot be moved the bytes are as good as they were, and are what the guest gets; unless the primary lacks something there (see
//! `doubt`), or the legs differ there since the bytes were read: it may not show them next time. A range that failed to be
//! rewritten is not dirty, for the secondary has it, and neither is it lacking, for the primary shows nothing older: it is in
//! doubt, until the primary is a secondary.

use super::Mirror;
use super::OpKind;
use super::drain::HOLD_READS;
use super::follow::{Follow, is_hosts};
use super::table::{Change, Entry, Owner, Side};
use super::tracking::Entrance;
use crate::core::breaks::{self, Break};
use crate::core::effect::{Action, Event};
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::request::{Errno, Operation, Tag};

impl Mirror {
    /// The primary failed a guest's read.
    pub(super) fn read_failed(&mut self, tag: Tag, error: Errno) {
        self.guests[tag.0 as usize].failed = Some(error);
        self.failed_reads += 1;
        if self.holds & HOLD_READS != 0 {
            self.park_failed_reads();
        }
    }

    /// Reads are held: so are those that failed, unless what makes up for them is under way.
    pub(super) fn park_failed_reads(&mut self) {
        for tag in 0..self.guests.len() as u16 {
            let guest = &mut self.guests[tag as usize];
            let failed = guest.active && guest.operation == Operation::Read && guest.failed.is_some();
            if failed && guest.entry.is_none() {
                guest.failed = None;
                guest.held_since = Some(self.now);
                self.failed_reads -= 1;
                self.waiting.push_back(Tag(tag));
            }
        }
    }

    /// Whether the secondary holds the newest data of this range when its turn comes.
    fn may_serve(&self, range: Range) -> bool {
        let failed = self.resync.failed().iter().any(|failed| failed.overlaps(range));
        self.follow == Follow::InSync && !self.dirty.touches(range) && !failed && !self.suspects.touch(range)
    }

    /// See what can be done for reads that failed.
    pub(super) fn pump_failed_reads(&mut self) {
        for tag in 0..self.guests.len() as u16 {
            let guest = self.guests[tag as usize];
            if !guest.active || guest.operation != Operation::Read {
                continue;
            }
            let Some(error) = guest.failed else { continue };
            match guest.entry {
                Some(index) => self.settle(index),
                None => self.pump_failed_read(Tag(tag), error),
            }
        }
    }

    fn pump_failed_read(&mut self, tag: Tag, error: Errno) {
        let guest = self.guests[tag.0 as usize];
        let range = guest.range;
        if guest.leg != self.primary {
            self.read_again(tag);
        } else if !self.may_rewrite() {
            // What is under way decides which leg is asked; a stop that is past writing ends soon, and answers nothing then.
            if self.is_stopping() && !self.is_failing_over() {
                self.read_ends(tag, Err(error));
            }
        } else if !self.may_serve(range) {
            self.read_ends(tag, Err(error));
        } else if let Entrance::Open { marked } = self.may_enter(range) {
            self.begin_rewrite(tag, marked);
        }
    }

    fn read_again(&mut self, tag: Tag) {
        self.failed_reads -= 1;
        self.guests[tag.0 as usize].failed = None;
        self.read_from_primary(tag);
    }

    fn read_ends(&mut self, tag: Tag, result: Result<(), Errno>) {
        self.failed_reads -= 1;
        let buf = self.guests[tag.0 as usize].buf;
        self.answer(tag, result, buf);
    }

    fn begin_rewrite(&mut self, tag: Tag, marked: bool) {
        let guest = &self.guests[tag.0 as usize];
        let (range, buf) = (guest.range, guest.buf);
        let index = self.table.insert(Entry {
            range,
            change: Change::Rewrite,
            owner: Owner::Read(tag),
            sides: [Side::Waiting; 2],
            bufs: [buf; 2],
            block: None,
            epoch: 0,
            generation: 0,
            arrived: self.now,
            issued_at: self.now,
            error: None,
            marked,
            settled: false,
            live: true,
        });
        self.guests[tag.0 as usize].entry = Some(index);
        self.distrust(self.primary, range);
        self.spoil_walks(range);
        self.enter_regions(range, marked);
        self.enter(index);
    }

    /// Its turn has come on the secondary.
    pub(super) fn read_for_rewrite(&mut self, index: u32) {
        let leg = self.secondary();
        let range = self.table[index].range;
        if !self.may_serve(range) {
            self.table[index].sides[leg.index()] = Side::Missed;
            self.let_go(index, leg);
            self.settle(index);
            return;
        }
        let now = self.now;
        let entry = &mut self.table[index];
        entry.sides[leg.index()] = Side::Issued;
        entry.issued_at = now;
        let buf = entry.bufs[leg.index()];
        self.submit(OpKind::Entry(leg, index), leg, Action::Read, range, buf);
        self.watch_leg();
    }

    /// Its turn has come on the primary, or the secondary is done: write, if both.
    pub(super) fn rewrite_ready(&mut self, index: u32) {
        let leg = self.primary;
        let entry = &mut self.table[index];
        let read = entry.sides[leg.other().index()] == Side::Done;
        if !read || entry.sides[leg.index()] != Side::Waiting {
            return;
        }
        entry.sides[leg.index()] = Side::Issued;
        let (range, buf) = (entry.range, entry.bufs[leg.index()]);
        let action = Action::Write { fua: false };
        self.submit(OpKind::Entry(leg, index), leg, action, range, buf);
    }

    pub(super) fn rewrite_completed(&mut self, index: u32, leg: LegId, result: Result<(), Errno>) {
        let range = self.table[index].range;
        let wrote = leg == self.primary;
        if let Err(error) = result {
            let action = if wrote {
                Action::Write { fua: false }
            } else {
                Action::Read
            };
            self.tell_leg_error(leg, action, range, error);
        }
        self.table[index].sides[leg.index()] = match result {
            Err(_) if !wrote => Side::Missed,
            Ok(()) | Err(_) => Side::Done,
        };
        if wrote {
            self.unflushed[leg.index()].note(&self.config.geometry, range);
            match result {
                Ok(()) => self.notify(Event::Rewritten(range)),
                Err(error) => {
                    self.table[index].error = Some(error);
                    if !is_hosts(error) {
                        self.rewrite_failed(range);
                    }
                }
            }
        }
        self.let_go(index, leg);
        if !wrote && result.is_ok() {
            if self.order[self.primary.index()].is_ready(index) || breaks::on(Break::RewriteOvertakes) {
                self.rewrite_ready(index);
            }
        } else {
            self.settle(index);
        }
    }

    /// The primary cannot be read here, nor written.
    fn rewrite_failed(&mut self, range: Range) {
        // Whatever is flushed before the guest is moved: this is to be written to it then.
        self.doubt.add(self.primary, range);
        self.distrust(self.primary, range);
        if self.follow == Follow::InSync {
            self.failover_due = true;
            self.fail_over();
        }
        if !self.is_failing_over() {
            self.pump_record();
        }
    }

    /// Look again at what the entry still waits for.
    pub(super) fn settle_rewrite(&mut self, index: u32, tag: Tag) {
        let primary = self.primary;
        let sides = self.table[index].sides;
        let unserved = matches!(sides[primary.other().index()], Side::Missed | Side::Abandoned);
        match sides[primary.index()] {
            Side::Waiting if unserved => {
                // Nothing is written.
                self.table[index].sides[primary.index()] = Side::Done;
                self.let_go(index, primary);
                self.settle(index);
            }
            Side::Done if self.is_failing_over() => {
                // Asked again when that is over.
                self.table[index].owner = Owner::Answered;
                self.guests[tag.0 as usize].entry = None;
            }
            Side::Done if unserved => {
                let guest = &self.guests[tag.0 as usize];
                let (error, buf) = (guest.failed.unwrap_or(Errno::IO), guest.buf);
                self.answer_entry(index, tag, Err(error), buf);
                if self.table[index].owner == Owner::Answered {
                    self.failed_reads -= 1;
                }
            }
            Side::Done => {
                let Entry { range, error, .. } = self.table[index];
                self.table[index].owner = Owner::Answered;
                // What the primary shows next time may be older than what was read.
                let error = error.filter(|_| self.doubt.lacks(range) || self.dirty.touches(range));
                self.read_ends(tag, error.map_or(Ok(()), Err));
            }
            Side::Absent | Side::Waiting | Side::Issued | Side::Abandoned | Side::Missed => {}
        }
    }
}
