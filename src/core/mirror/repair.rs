//! Where the legs differ and should not: who is wrong, what is suspect, and how it is mended.
//!
//! # Who is wrong
//! What was read from both legs is hashed, and held against what the tables say of the extent. An entry that is trusted, and the extent
//! not written since it was read, proves a leg wrong whose content it does not fit, while it fits the other's: an entry of a
//! payload, or read back equal from both, proves it of either leg; one read back from one leg alone, of that leg (it may
//! have been wrong already when it was read, but then it would fit now). If two entries disagree, or fit neither, nothing is proven.
//!
//! # Suspect
//! *What must hold:* a place where the legs differ, and that somebody has been told of, is known to every later core, until it is
//! mended or found equal; no copy decides it; and the secondary does not stand in for the primary meanwhile, unless by force.
//! *How:* the places are made durable, then the record that says that there are some, and only then the verify ends. Fewer places
//! become durable at leisure: too many cost nothing but another look. A core that finds the record without the places
//! takes everything for suspect, which is also what a list that cannot be written comes to.
//! *A leg that failed a flush* may show there, too, what it never made durable (see `doubt`). It is not given what the primary holds, but
//! what it shows itself: whatever becomes of the place later, that is what it holds.
//! *A guest's write decides* what is in the blocks of 4 KiB that it covers, or, if the secondary misses it, touches: see `decide`.
//!
//! # Mending
//! In this order: the place is suspect, durably; the leg that is right is read, in the order of its writes; the other is written,
//! in that of its own; both are flushed; the place is suspect no more. So a cut at any moment leaves it suspect or mended. A guest's
//! write that comes meanwhile stands behind the piece on both legs, or before it on both: it is in what is read. Only what is suspect when
//! it was read is written.
//! *Why both are flushed,* also where they are found equal: nothing copies to a place that is suspect, so the secondary may have missed
//! there what a barrier was acknowledged for; what has made it equal since may lie in its cache alone.
//! *Why a mended leg is not a mixture:* only what is proven wrong, or given up by whoever decided, is written over.
//!
//! Places are mended when the walk is through, or as soon as there are many: their list has a bound.

use super::Mirror;
use super::OpKind;
use super::check::Mending;
use super::drain::DrainFlush;
use super::follow::Follow;
use super::walk::{Job, Slot};
use crate::core::breaks::{self, Break};
use crate::core::config::Repair;
use crate::core::effect::{BlockMask, Consult, ConsultId, Effect, Event, Evidence};
use crate::core::geometry::Range;
use crate::core::leg::LegId;
use crate::core::request::Errno;
use crate::core::signature::{Signature, Source};
use crate::core::suspects::{Suspect, Suspects};
use crate::core::time::{Span, Time};

/// How often an extent that differs is read again because it was written to before it could be said who is wrong.
const TRIES: u8 = 3;

/// How long a state directory that failed is left alone.
const RETRY: Span = Span::from_secs(5);

/// What is known of the durability of the suspect places.
pub(super) struct Suspicion {
    /// They have changed since they were written.
    changed: bool,
    writing: bool,
    /// What is being written is of before there were none.
    outdated: bool,
    /// Some were made durable since there were none: the record may say that there are.
    kept: bool,
    retry_at: Option<Time>,
    /// What a guest's write to both legs has decided, and is not known to be durable there.
    decided: Vec<Range>,
    /// Questions to the tables that are not answered, whoever asked.
    consulting: u32,
    /// Those of them whose answer somebody wants, with the piece that they are about.
    questions: Vec<(ConsultId, Slot)>,
    next: u32,
}

impl Suspicion {
    pub(super) fn new(kept: bool) -> Suspicion {
        Suspicion {
            changed: false,
            writing: false,
            outdated: false,
            kept,
            retry_at: None,
            decided: Vec::with_capacity(Suspects::MOST),
            consulting: 0,
            questions: Vec::new(),
            next: 0,
        }
    }

    /// What the record is to say.
    pub(super) fn is_recorded(&self, suspects: &Suspects) -> bool {
        self.kept && !suspects.is_empty()
    }
}

impl Mirror {
    /// The places where the legs differ and nobody has decided.
    pub fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// Whether there is something to tell that is on its way: a question, or the list.
    pub(super) fn is_telling(&self) -> bool {
        let suspicion = &self.suspicion;
        !suspicion.questions.is_empty() || suspicion.writing || suspicion.changed && suspicion.retry_at.is_none()
    }

    /// Whether the tables have not answered yet.
    pub(super) fn is_consulting(&self) -> bool {
        self.suspicion.consulting > 0
    }

    /// A place is suspect from now on. Returns whether it was not, all of it. If it was, a list that is durable says so already: who is
    /// wrong is not on it.
    pub(super) fn suspect(&mut self, suspect: Suspect) -> bool {
        // It differs after all that was written there.
        self.suspicion.decided.retain(|range| !range.overlaps(suspect.range));
        self.check.equal.retain(|range| !range.overlaps(suspect.range));
        let before = self.suspects.bytes();
        self.suspects.insert(suspect);
        let is_news = self.suspects.bytes() > before;
        if is_news {
            self.suspects_changed();
        }
        is_news
    }

    /// The legs are equal in `range`, durably or by the order of their writes.
    pub(super) fn unsuspect(&mut self, range: Range) {
        if self.suspects.touch(range) {
            self.suspects.remove(range);
            self.signatures.come_back(range);
            if self.suspects.is_empty() {
                self.suspicion.kept = false;
                self.suspicion.outdated = self.suspicion.writing;
            }
            self.suspects_changed();
            self.watch_quiet();
        }
    }

    /// The guest decides what is in `range`: it goes to both legs, or is dirty. Copies go by blocks, and leave one alone of which a part
    /// is suspect: so one that the guest writes in part stays suspect whole if both legs get that, and is copied whole if not.
    ///
    /// A leg in sync is said to hold every write that was flushed, but where it is suspect. So what goes to both is suspect until it is
    /// durable on both, or a power cut would leave on the secondary what was there before, and nothing would say so. One that is behind is said
    /// to hold every write up to a generation: what it has missed of those in a place that is suspect it goes on to lack, until it
    /// is copied to.
    pub(super) fn decide(&mut self, range: Range, both: bool) {
        let (block, size) = (BlockMask::BLOCK, self.config.geometry.size);
        let is_end = range.end() == size;
        let (start, end) = match both {
            true => (range.start.next_multiple_of(block), range.end() / block * block),
            false => (
                range.start / block * block,
                range.end().next_multiple_of(block).min(size),
            ),
        };
        let end = if is_end { size } else { end };
        if start >= end {
            return;
        }
        let range = Range::new(start, end - start);
        let is_image = self.recorder.may_be_image(self.secondary());
        if !both && !is_image || breaks::on(Break::DecidedUnflushed) {
            self.unsuspect(range);
            return;
        }
        // What there is no room for stays suspect until it is found equal.
        let is_tracked = !both || self.is_marked(range);
        let decided = &mut self.suspicion.decided;
        if is_tracked && self.suspects.touch(range) && !decided.contains(&range) && decided.len() < decided.capacity() {
            decided.push(range);
        }
    }

    /// The secondary is in sync from now on: what the guest decided before may not have reached it.
    pub(super) fn forget_decided(&mut self) {
        self.suspicion.decided.clear();
    }

    /// Where no record calls the secondary in sync or behind any more, what the guest has decided is dirty, and is copied.
    pub(super) fn end_decided(&mut self) {
        if self.recorder.may_be_image(self.secondary()) {
            return;
        }
        while let Some(range) = self.suspicion.decided.pop() {
            self.unsuspect(range);
        }
    }

    /// Regions were left, which both legs were flushed for: what the guest had decided there is durable.
    pub(super) fn leave_decided(&mut self) {
        let mut at = 0;
        while let Some(&range) = self.suspicion.decided.get(at) {
            if self.is_used(range) || self.follow != Follow::InSync || self.dirty.touches(range) {
                at += 1;
            } else {
                self.suspicion.decided.swap_remove(at);
                self.unsuspect(range);
            }
        }
    }

    /// Whatever was suspect is so no more, from the next record on: whoever calls this begins it.
    pub(super) fn give_up_suspects(&mut self) {
        if !self.suspects.is_empty() {
            self.suspects.remove(self.config.geometry.whole());
            self.suspicion.decided.clear();
            self.suspicion.kept = false;
            self.suspicion.outdated = self.suspicion.writing;
            self.suspicion.changed = false;
            self.signatures.come_back(self.config.geometry.whole());
            self.watch_quiet();
        }
    }

    fn is_ending(&self) -> bool {
        self.is_stopping() || self.is_handing_over()
    }

    fn suspects_changed(&mut self) {
        self.suspicion.changed = true;
        self.pump_suspects();
    }

    fn pump_suspects(&mut self) {
        // The record says when there are none; a list of none would have to be told from one that is lost.
        self.suspicion.changed &= !self.suspects.is_empty();
        if self.suspicion.changed && !self.suspicion.writing && self.suspicion.retry_at.is_none() && !self.is_stopped()
        {
            self.suspicion.changed = false;
            self.suspicion.writing = true;
            self.effects.push_back(Effect::Suspects);
        }
        self.pump_record();
    }

    /// The suspect places are durable, or may not be.
    pub fn handle_suspected(&mut self, now: Time, result: Result<(), Errno>) {
        self.now = now;
        self.suspicion.writing = false;
        match result {
            Ok(()) => self.suspicion.kept |= !std::mem::take(&mut self.suspicion.outdated),
            Err(_) => {
                // There is no list then: a start that finds the record takes everything for suspect.
                self.suspicion.kept |= !std::mem::take(&mut self.suspicion.outdated);
                self.suspicion.changed = true;
                self.suspicion.retry_at = Some(now + RETRY);
                self.arm(now + RETRY);
            }
        }
        self.pump_suspects();
        self.pump();
    }

    pub(super) fn check_suspicion(&mut self) {
        match self.suspicion.retry_at {
            // Not behind the back of a stop, which has ceased to wait for it.
            Some(_) if self.is_ending() => {
                self.suspicion.retry_at = Some(self.now + RETRY);
                self.arm(self.now + RETRY);
            }
            Some(at) if at > self.now => self.arm(at),
            Some(_) => {
                self.suspicion.retry_at = None;
                self.pump_suspects();
            }
            None => {}
        }
    }

    /// Whether what is suspect is durable; or cannot be made so, and is not waited for.
    pub(super) fn are_suspects_settled(&self) -> bool {
        let suspicion = &self.suspicion;
        let failing = suspicion.retry_at.is_some() || self.recorder.is_uncertain();
        failing || breaks::on(Break::SuspectUnrecorded) || self.are_suspects_recorded()
    }

    /// Whether the list is not being written, and what is suspect is durable, or cannot be made so.
    pub(super) fn are_suspects_kept(&self) -> bool {
        !self.suspicion.writing && self.are_suspects_settled()
    }

    /// Whether a start would find what is suspect now.
    pub(super) fn are_suspects_recorded(&self) -> bool {
        let written = !self.suspicion.changed && !self.suspicion.writing;
        let recorded = self.recorder.durable().suspect != self.suspects.is_empty();
        written && recorded && !self.recorder.is_busy()
    }

    /// What a piece has read is hashed: ask the tables, and let go of the piece.
    pub(super) fn consult(&mut self, piece: Slot, read: [Option<Signature>; 2]) {
        let id = ConsultId(self.suspicion.next);
        self.suspicion.next = self.suspicion.next.wrapping_add(1);
        self.suspicion.consulting += 1;
        let extent = self.config.geometry.extent_at(piece.range.start);
        self.suspicion.questions.push((id, piece));
        self.effects.push_back(Effect::Consult(Consult { id, extent, read }));
    }

    /// What the tables say of an extent, by leg.
    pub fn handle_consulted(&mut self, now: Time, id: ConsultId, evidence: [Option<Evidence>; 2]) {
        self.now = now;
        self.suspicion.consulting -= 1;
        let questions = &mut self.suspicion.questions;
        let asked = questions.iter().position(|(asked, _)| *asked == id);
        if let Some((_, piece)) = asked.map(|at| questions.swap_remove(at))
            && !self.is_stopped()
        {
            match piece.job {
                Job::Recognise => self.recognised(&piece, evidence),
                _ => self.weighed(&piece, evidence),
            }
        }
        self.pump();
    }

    /// What was read for these questions is not what the legs hold any more.
    pub(super) fn spoil_questions(&mut self, range: Range) {
        let questions = self.suspicion.questions.iter_mut();
        questions.for_each(|(_, piece)| piece.spoiled |= piece.range.overlaps(range));
    }

    /// Nobody wants to know any more what a verify has asked.
    pub(super) fn forget_questions(&mut self) {
        self.suspicion.questions.retain(|(_, piece)| !piece.is_of_verify());
    }

    /// Nobody wants to know any more what a resync has asked.
    pub(super) fn forget_recognition(&mut self) {
        self.suspicion
            .questions
            .retain(|(_, piece)| piece.job != Job::Recognise);
    }

    /// Nobody wants to know any more what was asked of a leg that is let go.
    pub(super) fn forget_all_questions(&mut self) {
        self.suspicion.questions.clear();
    }

    /// The piece that a question is about, if somebody wants the answer.
    pub(super) fn question(&self, id: ConsultId) -> Option<&Slot> {
        let questions = self.suspicion.questions.iter();
        questions
            .filter(|(asked, _)| *asked == id)
            .map(|(_, piece)| piece)
            .next()
    }

    /// How many questions are not answered, whoever asked.
    pub(super) fn consulting(&self) -> usize {
        self.suspicion.consulting as usize
    }

    /// Whether a question of a resync is not answered.
    pub(super) fn is_recognition_asked(&self) -> bool {
        let questions = &self.suspicion.questions;
        questions.iter().any(|(_, piece)| piece.job == Job::Recognise)
    }

    /// How many questions of a verify are not answered.
    pub(super) fn questions(&self) -> usize {
        let of_verify = |(_, piece): &&(ConsultId, Slot)| piece.is_of_verify();
        self.suspicion.questions.iter().filter(of_verify).count()
    }

    /// Which leg is wrong in an extent that differs.
    fn verdict(&self, piece: &Slot, evidence: [Option<Evidence>; 2]) -> Option<LegId> {
        let extent = self.config.geometry.extent_at(piece.range.start);
        if piece.spoiled && !breaks::on(Break::JudgedOutdated) {
            return None;
        }
        let mut wrong = [false; 2];
        for (leg, evidence) in LegId::ALL.into_iter().zip(evidence) {
            let trusted = self.signatures.is_trusted(leg, extent) || breaks::on(Break::JudgedOutdated);
            let Some(Evidence { source, equals }) = evidence.filter(|_| trusted) else {
                continue;
            };
            for accused in LegId::ALL {
                let may_accuse = source != Source::One || leg == accused || breaks::on(Break::AccusedByOther);
                let fits_other = equals[accused.other().index()] && !equals[accused.index()];
                wrong[accused.index()] |= may_accuse && fits_other;
            }
        }
        match wrong {
            [true, false] => Some(LegId::A),
            [false, true] => Some(LegId::B),
            [true, true] | [false, false] => None,
        }
    }

    /// It is known what there is to know of an extent that differs.
    fn weighed(&mut self, piece: &Slot, evidence: [Option<Evidence>; 2]) {
        if piece.spoiled && !breaks::on(Break::JudgedOutdated) && self.is_read_again(piece) {
            return;
        }
        // No failover while something is suspect: it began when nothing was, and goes on. So does a stop, which has no time for another
        // list. Whoever looks next finds it again.
        if self.is_failing_over() || self.is_ending() {
            return;
        }
        let wrong = self.verdict(piece, evidence);
        self.tell_differences(piece, wrong);
    }

    /// A piece was written to before it could be said who is wrong: it is read again, a few times; a quiet one when it is quiet.
    fn is_read_again(&mut self, piece: &Slot) -> bool {
        let again = piece.is_of_verify() && piece.tries < TRIES;
        if again {
            self.check.again.push((piece.range, piece.tries + 1));
        }
        again || !piece.is_of_verify()
    }

    /// The blocks of a piece that differ are suspect, and told.
    pub(super) fn tell_differences(&mut self, piece: &Slot, wrong: Option<LegId>) {
        for range in piece.runs() {
            let suspect = Suspect { range, wrong };
            let is_news = self.suspect(suspect);
            if piece.is_of_verify() && !self.check.is_recheck() {
                self.notify(Event::Difference(suspect));
            } else if is_news {
                self.notify(Event::Strayed(suspect));
            }
        }
    }

    /// Blocks of a verify's piece that were found equal are suspect no more when both legs are flushed.
    pub(super) fn clear_equal(&mut self, piece: &Slot, differing: BlockMask) {
        if !piece.is_of_verify() || !self.suspects.touch(piece.range) {
            return;
        }
        for i in (0..piece.blocks()).filter(|&i| !differing.contains(i)) {
            let block = piece.block_range(i, i + 1);
            if !self.suspects.touch(block) {
                continue;
            }
            match self.check.equal.last_mut() {
                Some(before) if before.end() == block.start => before.len += block.len,
                Some(_) | None => self.check.equal.push(block),
            }
        }
    }

    /// The blocks of a piece that are suspect, even in part.
    pub(super) fn suspect_blocks(&self, piece: &Slot) -> BlockMask {
        let mut suspect = BlockMask::default();
        if self.suspects.touch(piece.range) {
            let is = |i: &usize| self.suspects.touch(piece.block_range(*i, *i + 1));
            (0..piece.blocks()).filter(is).for_each(|i| suspect.insert(i));
        }
        suspect
    }

    /// Of the blocks that a copy found to differ, those that it may write.
    pub(super) fn without_suspects(&self, piece: &Slot, differing: BlockMask) -> BlockMask {
        if breaks::on(Break::SuspectCopied) {
            return differing;
        }
        differing.without(&self.suspect_blocks(piece))
    }

    /// The leg to be mended in this place, if it is to be.
    fn mends(&self, suspect: &Suspect, repair: Repair) -> Option<LegId> {
        match (repair, suspect.wrong) {
            (Repair::No, _) | (Repair::Proven, None) => None,
            (Repair::Proven | Repair::From(_), Some(wrong)) => Some(wrong),
            (Repair::From(right), None) => Some(right.other()),
        }
    }

    /// How many places are to be mended, of what the verify has been through.
    pub(super) fn to_be_mended(&self, repair: Repair) -> usize {
        let mends =
            |suspect: &&Suspect| suspect.range.start < self.check.cursor && self.mends(suspect, repair).is_some();
        self.suspects.iter().filter(mends).count()
    }

    /// Have what was found equal suspect no more, then mend what is to be mended, piece by piece; either is flushed. Returns whether nothing
    /// more can be done.
    pub(super) fn pump_mending(&mut self, repair: Repair) -> bool {
        loop {
            if !self.pump_round(repair) {
                return false;
            }
            let mends = !self.check.mend_failed && self.to_be_mended(repair) > 0;
            if self.check.mending.is_none() && !mends && self.check.equal.is_empty() {
                return true;
            }
        }
    }

    /// One round of that. Returns whether it has ended.
    fn pump_round(&mut self, repair: Repair) -> bool {
        let mends = !self.check.mend_failed && self.to_be_mended(repair) > 0;
        if self.check.mending.is_none() {
            if !mends && self.check.equal.is_empty() {
                return true;
            }
            self.check.mending = Some(Mending::new(!self.check.equal.is_empty()));
        }
        let clears_only = self.check.mending.as_ref().is_some_and(|mending| mending.clears_only);
        if mends
            && !clears_only
            && !self.are_suspects_recorded()
            && !breaks::on(Break::MendedUnsuspected)
            && !self.is_mending()
        {
            let never = self.are_suspects_settled();
            if never {
                self.mending_failed();
            }
            return never;
        }
        if !self.start_mending(repair) || self.slots.iter().any(|slot| !slot.is_free() && slot.is_mending()) {
            return false;
        }
        self.flush_mended();
        if self.check.mend_flushes.iter().any(Option::is_some) {
            return false;
        }
        self.end_mending();
        true
    }

    /// Whether a round of mending has begun: what it is about was recorded then.
    fn is_mending(&self) -> bool {
        self.check.mending.as_ref().is_some_and(|mending| mending.cursor > 0)
    }

    /// A flush of the primary failed: what was written to mend it, or found equal, may be lost, and the flush that is asked for behind it
    /// says nothing of that. (A secondary that fails one is given up, and the verify ends.)
    pub(super) fn mending_in_doubt(&mut self) {
        if self.check.mending.is_some() || !self.check.equal.is_empty() {
            self.mending_failed();
        }
    }

    fn mending_failed(&mut self) {
        self.check.mending = None;
        self.check.mend_failed = true;
        self.check.equal.clear();
        self.check_incomplete();
    }

    /// Start the pieces that are left. Returns whether none is.
    fn start_mending(&mut self, repair: Repair) -> bool {
        let most = u64::from(self.config.geometry.extent).min(BlockMask::SPAN);
        while let Some(cursor) = self
            .check
            .mending
            .as_ref()
            .filter(|mending| !mending.flushed && !mending.clears_only)
            .map(|it| it.cursor)
        {
            let behind = self.suspects.iter().filter(|suspect| suspect.range.end() > cursor);
            let mut wanted = behind.filter_map(|suspect| Some((suspect.range, self.mends(suspect, repair)?)));
            let Some((range, leg)) = wanted.next() else { break };
            drop(wanted);
            let start = range.start.max(cursor);
            let end = range.end().min((start / most + 1) * most).min(self.check.cursor);
            if start >= end {
                break;
            }
            if !self.may_start_piece(end - start) {
                return false;
            }
            self.check.mending.as_mut().expect("it is under way").cursor = end;
            self.start_piece(Job::Mend { leg }, Range::new(start, end - start));
        }
        true
    }

    /// Flush both legs, once.
    fn flush_mended(&mut self) {
        let mending = self.check.mending.as_mut().expect("it is under way");
        if std::mem::replace(&mut mending.flushed, true) || breaks::on(Break::MendedUnflushed) {
            return;
        }
        if mending.pieces.is_empty() && self.check.equal.is_empty() {
            return;
        }
        for leg in LegId::ALL {
            let mark = self.unflushed[leg.index()].mark();
            self.check.mend_flushes[leg.index()] = Some(DrainFlush {
                issued_at: self.now,
                mark,
            });
            self.submit_flush(OpKind::MendFlush(leg), leg);
            if leg != self.primary {
                self.watch_leg();
            }
        }
    }

    /// A mended leg is flushed.
    pub(super) fn mend_flush_completed(&mut self, leg: LegId, result: Result<(), Errno>) {
        let flush = self.check.mend_flushes[leg.index()]
            .take()
            .expect("a flush is under way");
        match result {
            Ok(()) => self.unflushed[leg.index()].flushed(flush.mark),
            Err(error) => {
                if self.check.mending.is_some() {
                    self.mending_failed();
                }
                self.unasked_flush_failed(leg, error);
            }
        }
        self.leg_is_quiet();
    }

    /// What was written over is durable: it is suspect no more.
    fn end_mending(&mut self) {
        let mending = self.check.mending.take().expect("it is under way");
        for range in std::mem::take(&mut self.check.equal) {
            self.unsuspect(range);
        }
        for (leg, range) in mending.pieces {
            self.unsuspect(range);
            self.check.repaired += range.len;
            self.notify(Event::Mended { leg, range });
        }
    }

    /// The blocks of a piece in which this leg is to be mended. Some that were may not be any more, since the piece took its place in the
    /// order: a guest has decided them, and both legs hold what it wrote.
    pub(super) fn wrong_blocks(&self, piece: &Slot, leg: LegId) -> BlockMask {
        let repair = self.check.repair();
        let is_wrong = |i: &usize| {
            let block = piece.block_range(*i, *i + 1);
            let mut suspects = self.suspects.iter();
            suspects.any(|suspect| suspect.range.overlaps(block) && self.mends(suspect, repair) == Some(leg))
        };
        let mut wrong = BlockMask::default();
        (0..piece.blocks()).filter(is_wrong).for_each(|i| wrong.insert(i));
        wrong
    }

    /// A piece has written over what was wrong; or could not, and then it stays suspect.
    pub(super) fn mend_ended(&mut self, leg: LegId, piece: &Slot, mended: bool) {
        match &mut self.check.mending {
            Some(mending) if mended => mending.pieces.extend(piece.runs().map(|range| (leg, range))),
            Some(_) | None => {
                self.check.mend_failed = true;
                self.check_incomplete();
            }
        }
    }
}
