//! Admission: a request takes its buffer, its epoch and its place in the order of both legs, in order of arrival.
//!
//! *What must hold:* once admitted, a mutation waits only for mutations admitted before it, so nothing that is waited for
//! can be waiting for memory. Whatever may be short (pool, table, window of the counters, generations) is taken here, and
//! who cannot have it waits here, in front of everything that came later, holding nothing.

use super::Mirror;
use super::drain::HOLD_READS;
use super::follow::Follow;
use super::table::{Change, Entry, Owner, Side};
use super::tracking::Entrance;
use crate::core::breaks::{self, Break};
use crate::core::effect::Effect;
use crate::core::geometry::Range;
use crate::core::layout::Buf;
use crate::core::leg::LegId;
use crate::core::record::Protocol;
use crate::core::request::{Errno, Operation, Request, Tag};
use crate::core::time::Time;

/// What a barrier still needs of the secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Nothing,
    /// That this epoch is durable there.
    Epoch(u64),
    /// That the flush with this number has completed there.
    Flush(u64),
    /// That its own write has landed there, and then a flush.
    Landing,
    /// That the secondary counts no more.
    Excuse,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guest {
    pub active: bool,
    pub admitted: bool,
    pub operation: Operation,
    pub range: Range,
    /// The tag's buffer.
    pub buf: Buf,
    /// The leg that a read was sent to.
    pub leg: LegId,
    /// The mutation, while it is admitted.
    pub entry: Option<u32>,
    pub need: Need,
    /// For a FLUSH, and for the flush behind a FUA zeroing: the primary is done.
    pub primary_flushed: bool,
    /// Where the list of unflushed writes stood when the primary's flush was issued.
    pub mark: u64,
    /// What the primary answered to a flush or a read, while it is not answered to the guest: see `failover` and `rewrite`.
    pub failed: Option<Errno>,
    /// Failed flushes of the primary when its flush was issued.
    pub flush_failures: u64,
    /// Since when it waits for the secondary and nothing else.
    pub alone_since: Option<Time>,
    /// Since when a hold keeps it.
    pub held_since: Option<Time>,
}

impl Guest {
    pub(super) fn idle(buf: Buf) -> Guest {
        Guest {
            active: false,
            admitted: false,
            operation: Operation::Flush,
            range: Range::EMPTY,
            buf,
            leg: LegId::A,
            entry: None,
            need: Need::Nothing,
            primary_flushed: true,
            mark: 0,
            failed: None,
            flush_failures: 0,
            alone_since: None,
            held_since: None,
        }
    }
}

impl Mirror {
    pub(super) fn arrive(&mut self, tag: Tag, request: Request) {
        let guest = &mut self.guests[tag.0 as usize];
        assert!(!guest.active, "a tag has one request at a time");
        let buf = guest.buf;
        *guest = Guest {
            active: true,
            operation: request.operation,
            range: request.range,
            ..Guest::idle(buf)
        };
        if !self.is_valid(&request) {
            if !self.is_stopped() {
                self.answer(tag, Err(Errno::INVALID), buf);
            }
            return;
        }
        match request.operation {
            Operation::Read if self.holds & HOLD_READS == 0 => self.read_from_primary(tag),
            Operation::Flush if self.holds == 0 => self.admit_flush(tag),
            _ if self.holds == 0 && self.waiting.is_empty() && self.admit(tag) => {}
            _ => {
                if self.holds != 0 {
                    self.guests[tag.0 as usize].held_since = Some(self.now);
                }
                let front = self.waiting.front().map(|front| self.guests[front.0 as usize]);
                if front.is_some_and(|front| front.alone_since.is_some()) {
                    self.wait_alone(tag);
                }
                self.waiting.push_back(tag);
                if !matches!(request.operation, Operation::Flush | Operation::Discard) && self.holds == 0 {
                    self.want_ahead(request.range);
                }
            }
        }
    }

    fn is_valid(&self, request: &Request) -> bool {
        let geometry = &self.config.geometry;
        let block = geometry.block as u64;
        let range = request.range;
        match request.operation {
            Operation::Flush => true,
            Operation::Read | Operation::Write { .. } if range.len > self.config.layout.max_io as u64 => false,
            _ => {
                range.len > 0
                    && range.start.is_multiple_of(block)
                    && range.len.is_multiple_of(block)
                    && range
                        .start
                        .checked_add(range.len)
                        .is_some_and(|end| end <= geometry.size)
            }
        }
    }

    /// Admit those that wait, in order, until one cannot be.
    pub(super) fn admit_waiting(&mut self) {
        while self.holds == 0 {
            let Some(&tag) = self.waiting.front() else { return };
            let admitted = match self.guests[tag.0 as usize].operation {
                Operation::Flush => {
                    self.admit_flush(tag);
                    true
                }
                _ => self.admit(tag),
            };
            if !admitted {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// Admit a mutation. Returns false, having changed nothing, if it must wait.
    fn admit(&mut self, tag: Tag) -> bool {
        let guest = self.guests[tag.0 as usize];
        let range = guest.range;
        let (change, fua) = match guest.operation {
            Operation::Write { fua } => (Change::Write { fua }, fua),
            Operation::WriteZeroes { unmap, fua } => (Change::Zero { unmap, fua }, fua),
            Operation::Discard if !self.can_discard() => {
                self.guests[tag.0 as usize].admitted = true;
                self.admitted += 1;
                self.answer(tag, Ok(()), guest.buf);
                return true;
            }
            Operation::Discard => (
                Change::Zero {
                    unmap: true,
                    fua: false,
                },
                false,
            ),
            Operation::Read | Operation::Flush => unreachable!("only mutations are admitted here"),
        };
        if !self.has_generations() {
            let fails = self.owe_generations();
            if fails {
                self.answer(tag, Err(Errno::IO), guest.buf);
            }
            return fails;
        }
        let marked = match self.may_enter(range) {
            Entrance::Open { marked } => marked,
            Entrance::Marking => return false,
            // What fills them waits for the secondary: as when the pool is full.
            Entrance::Full if self.protocol == Protocol::Async => {
                self.leave_lagging();
                return false;
            }
            Entrance::Full => {
                self.wait_for_room(tag);
                return false;
            }
        };
        let mut block = None;
        let mut both = match self.follow {
            Follow::InSync | Follow::Joining { .. } => true,
            Follow::Syncing => !self.dirty.covers(range),
            Follow::Not | Follow::Starting | Follow::Departing { .. } | Follow::Leaving => false,
        };
        if both {
            match self.reserve(range.len, matches!(change, Change::Write { .. })) {
                Ok(reserved) => block = reserved,
                Err(Short::Throttled) => {
                    self.throttle(tag);
                    return false;
                }
                Err(Short::OfRoom) if self.protocol != Protocol::Async => {
                    self.wait_for_room(tag);
                    return false;
                }
                Err(Short::OfRoom) => {
                    // In `async` no request waits for the secondary. A leg that is in sync is behind from here on; one
                    // that is being copied to misses this write and gets it with a later copy.
                    if self.follow != Follow::Syncing {
                        self.leave_lagging();
                    }
                    both = false;
                }
            }
        }
        let missed = !both && self.remembers();
        if breaks::on(Break::ZeroOneLeg) && matches!(change, Change::Zero { .. }) {
            both = false;
        }
        if breaks::on(Break::PartialGrainClears) && both {
            let (first, end) = self.config.geometry.grains_of(range);
            let grain = self.config.geometry.grain as u64;
            self.dirty.take(Range::new(
                first * grain,
                (end * grain).min(self.config.geometry.size) - first * grain,
            ));
        }
        if missed {
            self.dirty.mark(range);
        }
        let primary = self.primary.index();
        let secondary = 1 - primary;
        let mut reached = [true; 2];
        reached[secondary] = both;
        self.written(range, reached);
        if !self.suspects.is_empty() {
            self.decide(range, both);
        }
        let mut sides = [Side::Waiting; 2];
        if !both {
            sides[secondary] = if missed { Side::Missed } else { Side::Absent };
        }
        let mut bufs = [guest.buf; 2];
        if let Some(buf) = block
            && self.pool.copies(range.len)
            && !breaks::on(Break::PayloadNotKept)
        {
            self.effects.push_back(Effect::Keep {
                from: guest.buf,
                to: buf,
                len: range.len as u32,
            });
            bufs[secondary] = buf;
        }
        let epoch = if both { self.epochs.join() } else { 0 };
        let index = self.table.insert(Entry {
            range,
            change,
            owner: Owner::Guest(tag),
            sides,
            bufs,
            block,
            epoch,
            generation: 0,
            arrived: self.now,
            issued_at: self.now,
            error: None,
            marked,
            settled: false,
            live: true,
        });
        self.enter_regions(range, marked);
        let need = if fua { self.need_of_fua(both) } else { Need::Nothing };
        let guest = &mut self.guests[tag.0 as usize];
        guest.admitted = true;
        guest.alone_since = None;
        let held_since = guest.held_since.take();
        guest.entry = Some(index);
        guest.need = need;
        guest.primary_flushed = !matches!(change, Change::Zero { fua: true, .. });
        self.admitted += 1;
        if let Some(since) = held_since {
            self.note_hold(since);
        }
        self.enter(index);
        true
    }

    /// Take the entry's place in the order of each leg it concerns, and start what may start.
    pub(super) fn enter(&mut self, index: u32) {
        let Entry {
            range, sides, epoch, ..
        } = self.table[index];
        let primary = self.primary;
        let secondary = primary.other();
        let walk = matches!(self.table[index].owner, Owner::Walk(_));
        let forget = walk && breaks::on(Break::ResyncForgetsInFlight);
        if sides[primary.index()] == Side::Waiting && (self.order[primary.index()].insert(index, range) || forget) {
            self.start_on_primary(index);
        }
        if sides[secondary.index()] == Side::Waiting {
            let forget = breaks::on(if walk { Break::CopyOrder } else { Break::OverlapOrder });
            let ready = self.order[secondary.index()].insert(index, range) || forget;
            if epoch > self.epochs.current() && !breaks::on(Break::EpochOrder) {
                self.later.push_back(index);
            } else if ready {
                self.start_on_secondary(index);
            }
        }
    }

    /// What a mutation on both legs needs: room in the table and the counters' window, and for a payload that may
    /// outlive its request memory of the pool.
    fn reserve(&mut self, len: u64, payload: bool) -> Result<Option<Buf>, Short> {
        let outstanding = self.guests.len();
        if self.table.room() <= outstanding + self.slots.len() || !self.counters.has_room(outstanding as u64) {
            return Err(Short::OfRoom);
        }
        // A long range is held against every other one: few of them may wait.
        if !payload {
            return if self.order[self.secondary().index()].wide_len() < 64 {
                Ok(None)
            } else {
                Err(Short::OfRoom)
            };
        }
        if self.protocol == Protocol::Sync && self.follow != Follow::Syncing {
            return Ok(None);
        }
        let held = self.pool.held(len);
        if self.pool.used() > 0 {
            let used = self.pool.used() + held;
            if self.config.lag_bytes != 0 && used > self.config.lag_bytes {
                return Err(Short::OfRoom);
            }
            if used > self.drain_limit() {
                return Err(Short::Throttled);
            }
        }
        let block = self.pool.take(len).ok_or(Short::OfRoom)?;
        self.lower_limit(held);
        Ok(Some(block))
    }

    /// The request, and all that came behind it, wait for the secondary and nothing else.
    fn wait_for_room(&mut self, tag: Tag) {
        if self.guests[tag.0 as usize].alone_since.is_some() {
            return;
        }
        self.wait_alone(tag);
        for at in 0..self.waiting.len() {
            self.wait_alone(self.waiting[at]);
        }
    }

    fn can_discard(&self) -> bool {
        let punches = |leg: Option<crate::core::config::LegTraits>| leg.is_none_or(|traits| traits.punches);
        self.legs.iter().all(|leg| punches(leg.traits))
    }

    /// Answer a request. `next` is the tag's buffer from now on.
    pub(super) fn answer(&mut self, tag: Tag, result: Result<(), Errno>, next: Buf) {
        let guest = &mut self.guests[tag.0 as usize];
        let buf = std::mem::replace(&mut guest.buf, next);
        guest.active = false;
        guest.entry = None;
        // It is answered, with this error or another: nobody is to answer it again.
        guest.failed = None;
        if guest.admitted {
            self.admitted -= 1;
        }
        let counts = &mut self.io;
        match guest.operation {
            Operation::Read => {
                counts.reads += 1;
                counts.read_bytes += guest.range.len;
            }
            Operation::Write { .. } | Operation::WriteZeroes { .. } => {
                counts.writes += 1;
                counts.written_bytes += guest.range.len;
            }
            Operation::Flush => counts.flushes += 1,
            Operation::Discard => counts.discards += 1,
        }
        counts.errors += u64::from(result.is_err());
        self.effects.push_back(Effect::Complete { tag, result, buf, next });
    }
}

/// Why a mutation cannot be admitted now.
enum Short {
    /// Something bounded is used up until the secondary gets on.
    OfRoom,
    /// The lag is being brought down.
    Throttled,
}
