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
//! *Why the bits are right:* a grain's bit is taken in the moment its piece is admitted (but see `matching`). A write admitted earlier is in the
//! piece; a write admitted later goes to both legs, behind the piece. If the piece fails, the bit is set again.
//!
//! *Why it ends:* a guest's write never makes a grain dirty that a piece has taken. Each grain is copied once.
//!
//! *Why it cannot deadlock:* a piece waits only for mutations admitted before it, and for nothing of the pool.

use super::Mirror;
use super::OpKind;
use super::follow::Follow;
use super::matching::Matching;
use super::signing::Sources;
use super::table::{Change, Entry, Owner, Side};
use crate::core::breaks::{self, Break};
use crate::core::config::CopyMode;
use crate::core::effect::{Action, BlockMask, Effect, Event, WalkId};
use crate::core::geometry::Range;
use crate::core::layout::Buf;
use crate::core::leg::LegId;
use crate::core::request::Errno;
use crate::core::signature::{Signature, Source};
use crate::core::status::WalkStatus;
use crate::core::time::{Span, Time};

/// Pieces under way at once while the guest is at work.
const PIECES_BESIDE_GUEST: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Resync(CopyMode),
    /// Of an extent that the primary's table knows: read the secondary, and see whether it holds the same.
    Recognise,
    Verify,
    Digest(LegId),
    /// Of an extent that is quiet: read the primary, or both legs, for its signature.
    Quiet {
        both: bool,
    },
    /// What a piece has read is hashed, behind it.
    Sign(Sources),
    /// What a piece has read of both legs differs, and is hashed, behind it.
    Weigh {
        /// For a verify.
        verify: bool,
    },
    /// This leg is wrong here, and gets what the other holds.
    Mend {
        leg: LegId,
    },
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
    /// Those that get what the leg shows there itself: see `repair`.
    renewed: BlockMask,
    /// The run of blocks that is being written.
    run: (usize, usize),
    /// Of a verify: blocks that a copy admitted behind it is to mend.
    pub(super) mended_behind: BlockMask,
    /// Both legs were read, and hold the same.
    equal: bool,
    /// The legs differ behind it.
    differs: bool,
    /// By leg: where the bytes lie that were read there.
    bufs: [Buf; 2],
    /// Of what differs: the signature of what leg `a` holds. Of what is recognised: that of what the secondary holds.
    pub(super) first: Option<Signature>,
    /// How often it was read before.
    pub(super) tries: u8,
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
        renewed: BlockMask([0; 4]),
        run: (0, 0),
        mended_behind: BlockMask([0; 4]),
        equal: false,
        differs: false,
        bufs: [Buf(0); 2],
        first: None,
        tries: 0,
        cancelled: false,
        spoiled: false,
    };

    pub(super) fn is_free(&self) -> bool {
        self.phase == Phase::Free
    }

    /// Whether it has read what it was to read, and done with it what it was to do.
    pub(super) fn is_sound(&self) -> bool {
        !self.cancelled && self.failed == [false; 2] && !self.differs
    }

    /// Whether it belongs to a verify or digest.
    pub(super) fn is_of_check(&self) -> bool {
        match self.job {
            Job::Verify | Job::Digest(_) | Job::Mend { .. } | Job::Weigh { verify: true } => true,
            Job::Resync(_) | Job::Recognise | Job::Quiet { .. } | Job::Sign(_) | Job::Weigh { verify: false } => false,
        }
    }

    /// Whether it compares for a verify.
    pub(super) fn is_of_verify(&self) -> bool {
        matches!(self.job, Job::Verify | Job::Weigh { verify: true })
    }

    pub(super) fn is_weighed(&self) -> bool {
        matches!(self.job, Job::Weigh { .. })
    }

    pub(super) fn is_mending(&self) -> bool {
        matches!(self.job, Job::Mend { .. })
    }

    /// Whether it writes, or has written, all of its blocks.
    pub(super) fn is_written_whole(&self) -> bool {
        (0..self.blocks()).all(|i| self.mask.contains(i))
    }

    /// The runs of blocks that differ, or that it writes, or has written.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = (from..self.blocks()).find(|&i| self.mask.contains(i))?;
            from = (first..self.blocks())
                .find(|&i| !self.mask.contains(i))
                .unwrap_or(self.blocks());
            Some(self.block_range(first, from))
        })
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// Whether both legs were read, and hold the same.
    pub(super) fn is_equal(&self) -> bool {
        self.equal
    }
}

/// The resync that runs or ran last, and the pace of all background work.
pub(super) struct Resync {
    pub(super) active: bool,
    pub(super) status: WalkStatus,
    cursor: u64,
    /// What the tables know of it.
    pub(super) matching: Matching,
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
            matching: Matching::new(),
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
        self.ask_tables();
    }

    /// The walk is over. Pieces that could not be copied are dirty again.
    pub(super) fn end_resync(&mut self, in_sync: bool) {
        if !self.resync.active {
            return;
        }
        self.resync.active = false;
        self.forget_matching();
        self.resync.status.running = false;
        self.resync.status.ended = self.now;
        let failed = std::mem::take(&mut self.resync.failed);
        failed.iter().for_each(|&range| self.dirty.mark(range));
        self.notify(Event::ResyncEnded { in_sync });
        self.walks_may_rest();
        self.watch_quiet();
    }

    pub(super) fn walks_may_rest(&mut self) {
        let walked = self.resync.active || self.check.is_active() || self.pieces > 0;
        // While a leg is followed they are needed again and again, and memory is not to be asked for where the guest waits.
        if !walked && !self.quiet.is_at_work() && self.follow == Follow::Not {
            self.want_copies(false);
        }
    }

    pub(super) fn pump_walks(&mut self) {
        if self.resync.active {
            self.pump_resync();
        }
        if self.wants_check() {
            self.pump_checks();
        }
    }

    fn pump_resync(&mut self) {
        if !matches!(self.follow, Follow::Syncing | Follow::InSync) || self.is_matching() {
            return;
        }
        if !self.pump_recognition() {
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
            let mode = match self.copy_mode {
                _ if doubted => CopyMode::Blind,
                // What is suspect is told from what is not by comparing.
                CopyMode::Dirty if self.suspects.touch(range) => CopyMode::Compare,
                mode => mode,
            };
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
            // It lacks what it has missed of what is suspect: a record that calls it in sync says that there is such.
            if self.drain.is_none() && (self.suspects.is_empty() || self.are_suspects_recorded()) {
                self.join();
            }
        } else {
            self.end_resync(true);
        }
    }

    /// Whether another piece may start: within the rate, few while the guest is at work.
    pub(super) fn may_start_piece(&mut self, len: u64) -> bool {
        let most = if self.admitted > 0 {
            PIECES_BESIDE_GUEST
        } else {
            self.slots.len()
        };
        // What is being signed has left the legs alone.
        let busy = self.pieces - self.signing();
        if busy >= most || self.pieces >= self.slots.len() || self.drain.is_some() {
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
        self.start_piece_again(job, range, 0);
    }

    /// The same, of a piece that was read so often before.
    pub(super) fn start_piece_again(&mut self, job: Job, range: Range, tries: u8) {
        let free = self.slots.iter().position(Slot::is_free).expect("a slot is free");
        let primary = self.primary;
        let secondary = primary.other();
        let mut sides = [Side::Waiting; 2];
        let mut read = [false; 2];
        match job {
            Job::Resync(CopyMode::Blind) if self.suspects.touch(range) => {}
            Job::Resync(CopyMode::Blind | CopyMode::Dirty) => read[secondary.index()] = true,
            Job::Resync(CopyMode::Compare) | Job::Verify | Job::Quiet { both: true } => {}
            Job::Recognise => {
                sides[primary.index()] = Side::Done;
                read[primary.index()] = true;
            }
            Job::Digest(leg) => {
                sides[leg.other().index()] = if leg == primary { Side::Absent } else { Side::Done };
                read[leg.other().index()] = true;
            }
            Job::Quiet { both: false } => {
                sides[secondary.index()] = Side::Absent;
                read[secondary.index()] = true;
            }
            Job::Mend { leg } => read[leg.index()] = true,
            Job::Sign(_) | Job::Weigh { .. } => unreachable!("what is hashed was read before"),
        }
        let target = self.target(job);
        if let Some(leg) = target {
            self.distrust(leg, range);
            self.spoil_walks(range);
        }
        let writes = target == Some(secondary);
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
            bufs,
            tries,
            ..Slot::FREE
        };
        if job == Job::Resync(CopyMode::Blind) {
            self.slots[free].renewed = self.suspect_blocks(&self.slots[free]);
        }
        self.pieces += 1;
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
                let leg = self.target(piece.job).expect("it writes");
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
        let renews = piece.renewed.contains(piece.run.0);
        let now = self.now;
        let primary = self.primary.index();
        let entry = &mut self.table[index];
        entry.sides[leg.index()] = Side::Issued;
        if leg.index() != primary {
            entry.issued_at = now;
        }
        // What is written to one leg are the bytes of the other, but where they are its own.
        let from = if writes && !renews { leg.other() } else { leg };
        let buf = entry.bufs[from.index()].skip(offset);
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
        let renews = piece.renewed.contains(first);
        let is_else = |&i: &usize| !piece.mask.contains(i) || piece.renewed.contains(i) != renews;
        piece.run = (first, (first..blocks).find(is_else).unwrap_or(blocks));
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
            let mends = piece.is_mending();
            if result.is_err() && leg == self.primary {
                // The place stays suspect; of the guest's writes each has its own answer.
                self.unflushed[leg.index()].note(&self.config.geometry, piece.run_range());
                self.table[index].sides[leg.index()] = Side::Waiting;
                self.slots[slot as usize].failed[leg.index()] = true;
                self.finish_piece(slot);
                return;
            }
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
            if !mends {
                self.resync.status.bytes_written += written.len;
            }
            self.table[index].sides[leg.index()] = Side::Waiting;
            if piece.cancelled {
                self.finish_if_idle(slot);
            } else {
                self.write_next_run(slot, leg);
            }
            return;
        }
        self.count(piece.job, |status| status.bytes_read += piece.range.len);
        self.slots[slot as usize].read[leg.index()] = true;
        self.slots[slot as usize].failed[leg.index()] = result.is_err();
        let reads_only = matches!(piece.job, Job::Recognise | Job::Digest(_) | Job::Quiet { .. });
        if leg == self.primary || reads_only || piece.is_mending() {
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
            Job::Resync(_) => {
                let left = self.without_suspects(&piece, BlockMask([u64::MAX; 4]));
                let renewed = match target_failed {
                    true => BlockMask::default(),
                    false => piece.renewed.without(&left),
                };
                // What could not be read, or is suspect only now, is still in doubt.
                let stays = self.suspect_blocks(&piece).without(&renewed);
                if piece.job == Job::Resync(CopyMode::Blind) && !stays.is_empty() {
                    self.resync.failed.push(piece.range);
                }
                self.slots[slot as usize].renewed = renewed;
                self.slots[slot as usize].differs = self.suspects.touch(piece.range);
                self.write_piece(slot, left.or(&renewed));
            }
            Job::Verify if source_failed || target_failed => {
                self.slots[slot as usize].cancelled = true;
                self.check_incomplete();
                self.finish_piece(slot);
            }
            // What cannot be read is copied.
            Job::Recognise if target_failed => self.finish_piece(slot),
            Job::Recognise => self.judge(
                slot,
                Effect::Hash {
                    walk: WalkId(slot),
                    range: piece.range,
                    buf: bufs[1 - primary],
                    digest: false,
                },
            ),
            Job::Quiet { .. } if source_failed || target_failed => self.finish_piece(slot),
            Job::Verify | Job::Quiet { both: true } => self.judge(slot, judge),
            Job::Quiet { both: false } => self.finish_piece(slot),
            Job::Mend { .. } if source_failed || target_failed => self.finish_piece(slot),
            Job::Mend { leg } => {
                let wrong = self.wrong_blocks(&piece, leg);
                self.write_piece(slot, wrong);
            }
            Job::Sign(_) | Job::Weigh { .. } => unreachable!("it reads nothing"),
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
                    digest: true,
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
        self.count(piece.job, |status| status.bytes_matched += equal.min(piece.range.len));
        if matches!(piece.job, Job::Verify | Job::Quiet { .. }) {
            self.clear_equal(&piece, differing);
        }
        if differing.is_empty() {
            self.slots[walk.0 as usize].equal = true;
            self.finish_piece(walk.0);
        } else if matches!(piece.job, Job::Verify | Job::Quiet { .. }) {
            self.slots[walk.0 as usize].mask = self.news(&piece, differing);
            self.slots[walk.0 as usize].differs = true;
            self.finish_piece(walk.0);
        } else {
            let left = self.without_suspects(&piece, differing);
            self.slots[walk.0 as usize].differs = left != differing;
            self.write_piece(walk.0, left);
        }
    }

    pub(super) fn hashed(&mut self, walk: WalkId, signature: Signature) {
        let piece = self.slots[walk.0 as usize];
        if let Job::Sign(sources) = piece.job {
            self.free_slot(walk.0);
            if !piece.spoiled || breaks::on(Break::SpoiledSigned) {
                self.note(piece.range, signature, sources);
            }
            return;
        }
        if let Job::Weigh { .. } = piece.job {
            self.weigh(walk.0, piece, signature);
            return;
        }
        self.slots[walk.0 as usize].phase = Phase::Reading;
        if piece.cancelled {
            self.finish_if_idle(walk.0);
            return;
        }
        if piece.job == Job::Recognise {
            self.recognise(&piece, signature);
            self.finish_piece(walk.0);
            return;
        }
        self.digest_hashed(&piece);
        self.finish_piece(walk.0);
        let extent = self.config.geometry.extent_at(piece.range.start);
        if let Job::Digest(leg) = piece.job
            && !piece.spoiled
            && !self.doubt.touches(leg, piece.range)
            // What is known by better evidence than this reading stays.
            && !(self.check.reads_back && self.signatures.is_trusted(leg, extent))
        {
            self.note(
                piece.range,
                signature,
                LegId::ALL.map(|id| (id == leg).then_some(Source::One)),
            );
        }
    }

    /// What one leg holds of an extent that differs is hashed; then what the other does; then the tables are asked.
    fn weigh(&mut self, slot: u16, piece: Slot, signature: Signature) {
        match piece.first {
            _ if piece.cancelled => self.free_slot(slot),
            None => {
                self.slots[slot as usize].first = Some(signature);
                self.hash_behind(slot, piece.bufs[LegId::B.index()]);
            }
            Some(first) => {
                self.free_slot(slot);
                self.consult(piece, [Some(first), Some(signature)]);
            }
        }
    }

    /// Hash what a piece has read, now that it has left the order of both legs.
    fn hash_behind(&mut self, slot: u16, buf: Buf) {
        self.effects.push_back(Effect::Hash {
            walk: WalkId(slot),
            range: self.slots[slot as usize].range,
            buf,
            digest: false,
        });
    }

    /// The leg that a piece of this job writes to.
    fn target(&self, job: Job) -> Option<LegId> {
        match job {
            Job::Resync(_) => Some(self.secondary()),
            Job::Mend { leg } => Some(leg),
            Job::Recognise | Job::Verify | Job::Digest(_) | Job::Quiet { .. } | Job::Sign(_) | Job::Weigh { .. } => {
                None
            }
        }
    }

    pub(super) fn free_slot(&mut self, slot: u16) {
        self.slots[slot as usize] = Slot::FREE;
        self.pieces -= 1;
        self.walks_may_rest();
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
        // What is recognised is done when the tables have said so.
        if !piece.cancelled && piece.job != Job::Recognise {
            self.count(piece.job, |status| status.bytes_done += piece.range.len);
        }
        if let (Some((job, buf)), false) = (self.behind(&piece), self.is_stopped()) {
            self.slots[slot as usize] = Slot {
                phase: Phase::Judging,
                job,
                first: None,
                ..piece
            };
            self.hash_behind(slot, buf);
        } else {
            self.free_slot(slot);
        }
        if let Job::Mend { leg } = piece.job {
            self.mend_ended(leg, &piece, piece.is_sound() && piece.phase == Phase::Writing);
        }
        if matches!(piece.job, Job::Quiet { .. }) {
            self.quiet_ended(&piece);
        }
        self.watch_tracking();
        self.settle(index);
        self.table.remove(index);
        self.leg_is_quiet();
    }

    /// What is to be done behind a piece, and with the bytes at which place.
    fn behind(&mut self, piece: &Slot) -> Option<(Job, Buf)> {
        let verify = piece.job == Job::Verify;
        let compares = matches!(piece.job, Job::Verify | Job::Quiet { .. });
        if compares && piece.differs && !piece.cancelled && !piece.mask.is_empty() {
            let extent = self.config.geometry.extent_at(piece.range.start);
            if self.config.geometry.extent_range(extent) == piece.range {
                return Some((Job::Weigh { verify }, piece.bufs[LegId::A.index()]));
            }
            // Tables know whole extents.
            self.tell_differences(piece, None);
            return None;
        }
        let sources = self.sources_of(piece)?;
        // A verify has nothing else to do, and nobody would look again at what it skips.
        if matches!(piece.job, Job::Resync(_)) && self.signing() >= self.slots.len() / 2 {
            return None;
        }
        // What mends the primary was read from the secondary; the primary was not read at all.
        let read = match piece.job {
            Job::Mend { leg } => leg.other(),
            _ => self.primary,
        };
        Some((Job::Sign(sources), piece.bufs[read.index()]))
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
            self.let_primary_go(slot);
            self.finish_if_idle(slot);
        }
    }

    /// A piece that was to mend the primary, and waits for what the secondary may never answer: nothing of the guest's waits for it
    /// any more.
    fn let_primary_go(&mut self, slot: u16) {
        let (piece, leg) = (self.slots[slot as usize], self.primary);
        let mends = piece.job == Job::Mend { leg } && piece.phase == Phase::Reading;
        if mends && self.table[piece.entry].sides[leg.index()] == Side::Waiting {
            self.table[piece.entry].sides[leg.index()] = Side::Done;
            self.let_go(piece.entry, leg);
        }
    }

    /// An operation of a piece came back after the secondary was given up.
    pub(super) fn walk_abandoned(&mut self, slot: u16) {
        self.finish_if_idle(slot);
    }

    fn count(&mut self, job: Job, what: impl FnOnce(&mut WalkStatus)) {
        match job {
            Job::Resync(_) | Job::Recognise => what(&mut self.resync.status),
            Job::Verify | Job::Digest(_) => what(self.check.status_mut()),
            Job::Quiet { .. } | Job::Sign(_) | Job::Weigh { .. } | Job::Mend { .. } => {}
        }
    }
}

impl Slot {
    /// Whether the piece has nothing to do with the secondary.
    pub(super) fn spares_secondary(&self, primary: LegId) -> bool {
        match self.job {
            Job::Digest(leg) => leg == primary,
            Job::Quiet { both } => !both,
            Job::Sign(_) | Job::Weigh { .. } => true,
            Job::Resync(_) | Job::Recognise | Job::Verify | Job::Mend { .. } => false,
        }
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
