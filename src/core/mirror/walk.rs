//! Background walks over the device, piece by piece: a resync reads the primary (and compares) and writes the secondary; a
//! verify compares; a digest hashes.
//!
//! *What must be prevented:* that a copy replaces newer data, that a write in flight is missed, that lag is taken for
//! difference.
//!
//! *How:* a piece is a mutation like any other: it takes its place in the order of both legs when it is admitted. On the
//! primary it is a read that waits for the writes admitted before it and that later writes wait for; they are let go as
//! soon as the bytes are read. On the secondary it keeps its place until it is written. So the secondary sees the copy
//! exactly where the read was in the order of arrival: what was older is in it, what is newer comes behind it.
//! While the secondary is in sync a piece belongs to the open epoch, like a guest's write.
//!
//! *Why the bits are right:* a grain's bit is taken in the moment its piece is admitted. A write admitted earlier is in the
//! piece; a write admitted later goes to both legs, behind the piece. If the piece fails, the bit is set again.
//!
//! *Why it ends:* a guest's write never makes a grain dirty that a piece has taken. Each grain is copied once.
//!
//! *Why it cannot deadlock:* a piece waits only for mutations admitted before it, and for nothing of the pool.

use super::Mirror;
use super::OpKind;
use super::follow::Follow;
use super::table::{Change, Entry, Owner, Side};
use crate::core::breaks::{self, Break};
use crate::core::config::CopyMode;
use crate::core::effect::{Action, BlockMask, Effect, Event, WalkId};
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::request::Errno;
use crate::core::status::WalkStatus;
use crate::core::time::{Span, Time};

/// Pieces under way at once while the guest is at work.
const PIECES_BESIDE_GUEST: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Resync(CopyMode),
    Verify,
    Digest(LegId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Reading,
    Judging,
    Writing,
}

/// One piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    phase: Phase,
    pub(super) job: Job,
    entry: u32,
    pub(super) range: Range,
    /// By leg: its turn has come there.
    ready: [bool; 2],
    /// By leg: read, or not to be read.
    read: [bool; 2],
    /// By leg: the read failed.
    failed: [bool; 2],
    /// Blocks that are left to be written.
    mask: BlockMask,
    /// The run of blocks that is being written.
    run: (usize, usize),
    /// Of a verify: blocks that a copy admitted behind it is to mend.
    pub(super) mended_behind: BlockMask,
    /// Its result is of no interest any more.
    cancelled: bool,
    /// A guest's write came behind it.
    pub(super) spoiled: bool,
}

impl Slot {
    pub(super) const FREE: Slot = Slot {
        phase: Phase::Free,
        job: Job::Verify,
        entry: 0,
        range: Range::EMPTY,
        ready: [false; 2],
        read: [true; 2],
        failed: [false; 2],
        mask: BlockMask([0; 4]),
        run: (0, 0),
        mended_behind: BlockMask([0; 4]),
        cancelled: false,
        spoiled: false,
    };

    pub(super) fn is_free(&self) -> bool {
        self.phase == Phase::Free
    }
}

/// The resync that runs or ran last, and the pace of all background work.
pub(super) struct Resync {
    pub(super) active: bool,
    pub(super) status: WalkStatus,
    cursor: u64,
    /// Pieces whose source could not be read; dirty again when the walk ends.
    pub(super) failed: Vec<Range>,
    /// It ended with pieces that could not be copied.
    pub(super) stuck: bool,
    pub(super) paused: bool,
    pub(super) rate: u64,
    /// Bytes that may be started now; negative: in debt.
    credit: i64,
    credited_at: Time,
}

impl Resync {
    pub(super) fn new() -> Resync {
        Resync {
            active: false,
            status: WalkStatus::default(),
            cursor: 0,
            failed: Vec::new(),
            stuck: false,
            paused: false,
            rate: 0,
            credit: 0,
            credited_at: Time(0),
        }
    }

    /// Pieces whose source could not be read: not equal, whatever the dirty map says.
    pub(super) fn failed(&self) -> &[Range] {
        &self.failed
    }
}

impl Mirror {
    pub(super) fn begin_resync(&mut self) {
        if self.resync.active {
            return;
        }
        self.resync.active = true;
        self.resync.stuck = false;
        self.resync.cursor = 0;
        self.resync.status = WalkStatus {
            kind: self.copy_kind,
            running: true,
            bytes_total: self.dirty.bytes(),
            began: self.now,
            ..WalkStatus::default()
        };
        self.want_copies(true);
        self.watch_tracking();
    }

    /// The walk is over. Pieces that could not be copied are dirty again.
    pub(super) fn end_resync(&mut self, in_sync: bool) {
        if !self.resync.active {
            return;
        }
        self.resync.active = false;
        self.resync.status.running = false;
        self.resync.status.ended = self.now;
        let failed = std::mem::take(&mut self.resync.failed);
        failed.iter().for_each(|&range| self.dirty.mark(range));
        self.notify(Event::ResyncEnded { in_sync });
        self.walks_may_rest();
    }

    pub(super) fn walks_may_rest(&mut self) {
        if !self.resync.active && !self.check.is_active() && self.slots.iter().all(Slot::is_free) {
            self.want_copies(false);
        }
    }

    pub(super) fn pump_walks(&mut self) {
        if self.resync.active {
            self.pump_resync();
        }
        if self.check.is_active() {
            self.pump_check();
        }
    }

    fn pump_resync(&mut self) {
        if !matches!(self.follow, Follow::Syncing | Follow::InSync) {
            return;
        }
        let most = BlockMask::SPAN.min(self.config.layout.copy_bytes as u64);
        loop {
            let next = self.dirty.next_run(self.resync.cursor, most);
            let Some(range) = next.or_else(|| self.dirty.next_run(0, most)) else {
                break;
            };
            if self.resync.paused || !self.may_start_piece(range.len) {
                return;
            }
            self.resync.cursor = range.end();
            self.dirty.take(range);
            self.note_mending(range);
            // What it shows proves nothing where it may have lost what it shows.
            let doubted = self.doubt.touches(self.secondary(), range) && !breaks::on(Break::DoubtedCompared);
            let mode = if doubted { CopyMode::Blind } else { self.copy_mode };
            self.start_piece(Job::Resync(mode), range);
        }
        let busy = self
            .slots
            .iter()
            .any(|slot| !slot.is_free() && matches!(slot.job, Job::Resync(_)));
        if busy || !self.dirty.is_empty() {
            return;
        }
        if !self.resync.failed.is_empty() {
            self.resync.stuck = true;
            self.end_resync(false);
            self.schedule_catch_up();
        } else if self.follow == Follow::Syncing {
            if self.drain.is_none() {
                self.join();
            }
        } else {
            self.end_resync(true);
        }
    }

    /// Whether another piece may start: within the rate, few while the guest is at work.
    pub(super) fn may_start_piece(&mut self, len: u64) -> bool {
        let busy = self.slots.iter().filter(|slot| !slot.is_free()).count();
        let most = if self.admitted > 0 {
            PIECES_BESIDE_GUEST
        } else {
            self.slots.len()
        };
        if busy >= most.min(self.slots.len()) || self.drain.is_some() {
            return false;
        }
        let rate = self.resync.rate;
        if rate == 0 {
            return true;
        }
        let earned = (self.now.since(self.resync.credited_at).0 as u128 * rate as u128 / 1_000_000_000) as i64;
        if earned > 0 {
            // What was not used is not saved up.
            self.resync.credit = self.resync.credit.saturating_add(earned).min(0);
            self.resync.credited_at = self.now;
        }
        if self.resync.credit < 0 {
            let debt = self.resync.credit.unsigned_abs() as u128;
            let wait = Span((debt * 1_000_000_000 / rate as u128) as u64 + 1_000_000);
            self.arm(self.now + wait);
            return false;
        }
        self.resync.credit -= len as i64;
        true
    }

    /// Admit a piece. One is free ([`Mirror::may_start_piece`]) and the range fits a copy buffer.
    pub(super) fn start_piece(&mut self, job: Job, range: Range) {
        let free = self.slots.iter().position(Slot::is_free).expect("a slot is free");
        let primary = self.primary;
        let secondary = primary.other();
        let mut sides = [Side::Waiting; 2];
        let mut read = [false; 2];
        match job {
            Job::Resync(CopyMode::Blind | CopyMode::Dirty) => read[secondary.index()] = true,
            Job::Resync(CopyMode::Compare) | Job::Verify => {}
            Job::Digest(leg) => {
                sides[leg.other().index()] = if leg == primary { Side::Absent } else { Side::Done };
                read[leg.other().index()] = true;
            }
        }
        let writes = matches!(job, Job::Resync(_));
        if writes {
            self.spoil_check(range);
        }
        let mut bufs = [self.config.layout.copy(free as u16, 0); 2];
        bufs[secondary.index()] = self.config.layout.copy(free as u16, 1);
        let index = self.table.insert(Entry {
            range,
            change: Change::Copy,
            owner: Owner::Walk(free as u16),
            sides,
            bufs,
            block: None,
            epoch: if writes { self.epochs.join() } else { 0 },
            generation: 0,
            arrived: self.now,
            issued_at: self.now,
            error: None,
            marked: false,
            settled: false,
            live: true,
        });
        self.slots[free] = Slot {
            phase: Phase::Reading,
            job,
            entry: index,
            range,
            read,
            ..Slot::FREE
        };
        self.enter(index);
    }

    /// A piece's turn has come on this leg.
    pub(super) fn walk_ready(&mut self, slot: u16, leg: LegId) {
        self.slots[slot as usize].ready[leg.index()] = true;
        self.advance_piece(slot);
    }

    fn advance_piece(&mut self, slot: u16) {
        let piece = self.slots[slot as usize];
        match piece.phase {
            Phase::Reading => {
                for leg in LegId::ALL {
                    let i = leg.index();
                    if piece.ready[i] && !piece.read[i] && self.table[piece.entry].sides[i] == Side::Waiting {
                        self.submit_piece(slot, leg, Action::Read, piece.range, 0);
                    }
                }
            }
            Phase::Writing => {
                let leg = self.secondary();
                let i = leg.index();
                if piece.ready[i] && self.table[piece.entry].sides[i] == Side::Waiting {
                    self.write_next_run(slot, leg);
                }
            }
            Phase::Free | Phase::Judging => {}
        }
    }

    fn submit_piece(&mut self, slot: u16, leg: LegId, action: Action, range: Range, offset: u64) {
        let piece = &self.slots[slot as usize];
        let (index, writes) = (piece.entry, matches!(action, Action::Write { .. }));
        let now = self.now;
        let primary = self.primary.index();
        let entry = &mut self.table[index];
        entry.sides[leg.index()] = Side::Issued;
        if leg.index() != primary {
            entry.issued_at = now;
        }
        // What is written to the secondary are the bytes of the primary.
        let buf = entry.bufs[if writes { primary } else { leg.index() }].skip(offset);
        self.submit(OpKind::Entry(leg, index), leg, action, range, buf);
        if leg.index() != primary {
            self.watch_leg();
        }
    }

    /// Write the next run of blocks that are left; the piece ends when there is none.
    fn write_next_run(&mut self, slot: u16, leg: LegId) {
        let piece = &mut self.slots[slot as usize];
        let blocks = piece.blocks();
        let Some(first) = (piece.run.1..blocks).find(|&i| piece.mask.contains(i)) else {
            self.finish_piece(slot);
            return;
        };
        let end = (first..blocks).find(|&i| !piece.mask.contains(i)).unwrap_or(blocks);
        piece.run = (first, end);
        let range = piece.run_range();
        let offset = range.start - piece.range.start;
        self.submit_piece(slot, leg, Action::Write { fua: false }, range, offset);
    }

    pub(super) fn walk_completed(&mut self, slot: u16, leg: LegId, result: Result<(), Errno>) {
        let piece = self.slots[slot as usize];
        let index = piece.entry;
        let writing = piece.phase == Phase::Writing;
        if let Err(error) = result {
            let action = if writing {
                Action::Write { fua: false }
            } else {
                Action::Read
            };
            self.tell_leg_error(leg, action, piece.range, error);
        }
        if writing {
            if let Err(error) = result {
                self.table[index].sides[leg.index()] = Side::Missed;
                self.dirty.mark(piece.range);
                self.order[leg.index()].remove(index, &mut self.released);
                self.released.clear();
                self.slots[slot as usize].cancelled = true;
                self.leave_because(error);
                self.finish_if_idle(slot);
                return;
            }
            let written = piece.run_range();
            self.unflushed[leg.index()].note(&self.config.geometry, written);
            self.resync.status.bytes_written += written.len;
            self.table[index].sides[leg.index()] = Side::Waiting;
            if piece.cancelled {
                self.finish_if_idle(slot);
            } else {
                self.write_next_run(slot, leg);
            }
            return;
        }
        self.walk_status(piece.job).bytes_read += piece.range.len;
        self.slots[slot as usize].read[leg.index()] = true;
        self.slots[slot as usize].failed[leg.index()] = result.is_err();
        if leg == self.primary || matches!(piece.job, Job::Digest(_)) {
            self.table[index].sides[leg.index()] = Side::Done;
            self.let_go(index, leg);
        } else {
            self.table[index].sides[leg.index()] = Side::Waiting;
        }
        if piece.cancelled {
            self.finish_if_idle(slot);
        } else if self.slots[slot as usize].read == [true; 2] {
            self.piece_read(slot);
        }
    }

    /// Everything that a piece reads is read.
    fn piece_read(&mut self, slot: u16) {
        let piece = self.slots[slot as usize];
        let primary = self.primary.index();
        let (source_failed, target_failed) = (piece.failed[primary], piece.failed[1 - primary]);
        let bufs = self.table[piece.entry].bufs;
        let judge = Effect::Compare {
            walk: WalkId(slot),
            left: bufs[primary],
            right: bufs[1 - primary],
            len: piece.range.len as u32,
        };
        match piece.job {
            Job::Resync(_) if source_failed => {
                self.resync.failed.push(piece.range);
                self.finish_piece(slot);
            }
            Job::Resync(CopyMode::Compare) if !target_failed => self.judge(slot, judge),
            Job::Resync(_) => self.write_piece(slot, BlockMask([u64::MAX; 4])),
            Job::Verify if source_failed || target_failed => {
                self.slots[slot as usize].cancelled = true;
                self.check_incomplete();
                self.finish_piece(slot);
            }
            Job::Verify => self.judge(slot, judge),
            Job::Digest(leg) if piece.failed[leg.index()] => {
                self.finish_piece(slot);
                self.check_failed();
            }
            Job::Digest(leg) => self.judge(
                slot,
                Effect::Hash {
                    walk: WalkId(slot),
                    range: piece.range,
                    buf: bufs[leg.index()],
                },
            ),
        }
    }

    fn judge(&mut self, slot: u16, effect: Effect) {
        self.slots[slot as usize].phase = Phase::Judging;
        self.effects.push_back(effect);
    }

    fn write_piece(&mut self, slot: u16, mask: BlockMask) {
        let piece = &mut self.slots[slot as usize];
        piece.phase = Phase::Writing;
        piece.mask = mask;
        self.advance_piece(slot);
    }

    pub(super) fn compared(&mut self, walk: WalkId, differing: BlockMask) {
        let piece = self.slots[walk.0 as usize];
        self.slots[walk.0 as usize].phase = Phase::Reading;
        if piece.cancelled {
            self.finish_if_idle(walk.0);
            return;
        }
        if matches!(piece.job, Job::Resync(_)) {
            // What is equal may be so in the cache of the leg alone, from a copy that was given up: it is no more durable
            // than what is written now.
            self.unflushed[self.secondary().index()].note(&self.config.geometry, piece.range);
        }
        let blocks = piece.blocks();
        let equal = (0..blocks).filter(|&i| !differing.contains(i)).count() as u64 * BlockMask::BLOCK;
        self.walk_status(piece.job).bytes_matched += equal.min(piece.range.len);
        if differing.is_empty() {
            self.finish_piece(walk.0);
        } else if matches!(piece.job, Job::Verify) {
            let news = self.news(&piece, differing);
            let mut from = 0;
            while let Some(first) = (from..blocks).find(|&i| news.contains(i)) {
                let end = (first..blocks).find(|&i| !news.contains(i)).unwrap_or(blocks);
                self.notify(Event::Difference(piece.block_range(first, end)));
                from = end;
            }
            self.finish_piece(walk.0);
        } else {
            self.write_piece(walk.0, differing);
        }
    }

    pub(super) fn hashed(&mut self, walk: WalkId) {
        let piece = self.slots[walk.0 as usize];
        self.slots[walk.0 as usize].phase = Phase::Reading;
        if piece.cancelled {
            self.finish_if_idle(walk.0);
            return;
        }
        self.digest_hashed(&piece);
        self.finish_piece(walk.0);
    }

    /// A piece is through: it leaves the order of both legs.
    fn finish_piece(&mut self, slot: u16) {
        let piece = self.slots[slot as usize];
        let index = piece.entry;
        if self.table[index].epoch > self.epochs.current() {
            // It ends before its epoch could start, and its place in the table may be another's by then.
            self.later.retain(|&waiting| waiting != index);
        }
        for leg in LegId::ALL {
            if self.table[index].sides[leg.index()] == Side::Waiting {
                self.table[index].sides[leg.index()] = Side::Done;
                self.let_go(index, leg);
            }
        }
        if !piece.cancelled {
            self.walk_status(piece.job).bytes_done += piece.range.len;
        }
        self.slots[slot as usize] = Slot::FREE;
        self.watch_tracking();
        self.settle(index);
        self.table.remove(index);
        self.walks_may_rest();
        self.leg_is_quiet();
    }

    fn finish_if_idle(&mut self, slot: u16) {
        let piece = &self.slots[slot as usize];
        let sides = self.table[piece.entry].sides;
        let busy = sides.iter().any(|side| matches!(side, Side::Issued | Side::Abandoned));
        if piece.phase != Phase::Judging && !busy {
            self.finish_piece(slot);
        }
    }

    /// The secondary is given up: no piece that concerns it has a purpose any more.
    pub(super) fn cancel_walk_pieces(&mut self) {
        let primary = self.primary;
        for slot in 0..self.slots.len() as u16 {
            let piece = self.slots[slot as usize];
            if !piece.is_free() && !piece.spares_secondary(primary) {
                self.cancel_piece(slot);
            }
        }
        self.check_lost_secondary();
    }

    pub(super) fn cancel_piece(&mut self, slot: u16) {
        if !self.slots[slot as usize].cancelled {
            self.slots[slot as usize].cancelled = true;
            self.finish_if_idle(slot);
        }
    }

    /// An operation of a piece came back after the secondary was given up.
    pub(super) fn walk_abandoned(&mut self, slot: u16) {
        self.finish_if_idle(slot);
    }

    fn walk_status(&mut self, job: Job) -> &mut WalkStatus {
        match job {
            Job::Resync(_) => &mut self.resync.status,
            Job::Verify | Job::Digest(_) => self.check.status_mut(),
        }
    }
}

impl Slot {
    /// Whether the piece has nothing to do with the secondary.
    pub(super) fn spares_secondary(&self, primary: LegId) -> bool {
        matches!(self.job, Job::Digest(leg) if leg == primary)
    }

    /// How many blocks it has; the last may be partial.
    pub(super) fn blocks(&self) -> usize {
        self.range.len.div_ceil(BlockMask::BLOCK) as usize
    }

    /// The bytes of its blocks from `first` up to, not including, `end`.
    pub(super) fn block_range(&self, first: usize, end: usize) -> Range {
        let start = self.range.start + first as u64 * BlockMask::BLOCK;
        let end = (self.range.start + end as u64 * BlockMask::BLOCK).min(self.range.end());
        Range::new(start, end - start)
    }

    /// The bytes of the run that is being written.
    fn run_range(&self) -> Range {
        self.block_range(self.run.0, self.run.1)
    }
}
