//! Sectors that change by themselves, on either leg at any moment; and what becomes of the places where the legs differ.
//!
//! Verifies: a verify reports every sector that differed all the while, and nothing else; so does what is found where nobody asked; a leg
//! that is named wrong is; what is proven is mended, with what the other leg holds, and counted; nothing that is right is written over
//! unless somebody said so; a place that was told is written over by nothing but mending, is known to every start once the verify
//! has ended, and in every moment of its mending, until it is mended, durably, or equal; no switch without force and no failover
//! while there is such a place. Not: reads of a guest that show what has rotted (no guest of this simulation reads there), nor how
//! soon something is found.
//!
//! *What else is not expected:* of a sector that has rotted nothing from before that moment (`Token::rotted_at`); of one that is
//! suspect, what the secondary has missed meanwhile: nothing copies there, and it does not stand in for the primary.

use crate::check::{Check, shows_at_least};
use crate::oracle::sectors;
use crate::rng::Rng;
use crate::signatures::is_same;
use crate::token::{SECTOR, Token};
use crate::world::{Happening, World};
use std::collections::{BTreeMap, BTreeSet};
use twinblk::core::{Action, Bits, BlockMask, Health, LegId, LegOp, Range, Repair, Source, Suspect};

pub struct Rot {
    /// A stream of its own, so that what came to be modelled later changes the worlds of earlier seeds as little as possible.
    pub rng: Rng,
    serial: u64,
    /// By sector: it was told that the legs differ there, and which leg is wrong; until it is mended, or found equal.
    told: BTreeMap<usize, Option<LegId>>,
    /// Of these every start knows.
    promised: BTreeSet<usize>,
    /// A guest's write was asked for there since it was told: that decides what is there.
    pub decided: BTreeSet<usize>,
    /// What the verify that runs does about what differs.
    repair: Option<Repair>,
    /// What differed by rot when it began, by leg; nothing if something was being copied then.
    began: BTreeMap<usize, [Token; 2]>,
    /// What it has told, and mended in bytes.
    reported: BTreeSet<usize>,
    repaired: u64,
    /// Sectors that have rotted since it began, or before and are still rotten.
    rotted: BTreeSet<usize>,
    /// What it has written, by leg and sector.
    written: BTreeMap<(usize, usize), Token>,
    /// By copy buffer: what was read there last, and of which leg.
    read: BTreeMap<u64, (LegId, Range)>,
    /// By copy buffer: which leg is wrong in what was read there last of the other, to be mended. A guest's write that comes between
    /// decides what the sector holds, and is behind what mends.
    mends: BTreeMap<u64, (LegId, BTreeSet<usize>)>,
    /// By grain: dirty when the life began, of a leg in sync: the list of suspect places could not be written before a stop.
    pub behind: Option<Bits>,
    last: usize,
}

impl Rot {
    pub fn new(seed: u64) -> Rot {
        Rot {
            rng: Rng::new(seed ^ 0x0107_7e57),
            serial: 0,
            told: BTreeMap::new(),
            promised: BTreeSet::new(),
            decided: BTreeSet::new(),
            repair: None,
            began: BTreeMap::new(),
            reported: BTreeSet::new(),
            repaired: 0,
            rotted: BTreeSet::new(),
            written: BTreeMap::new(),
            read: BTreeMap::new(),
            mends: BTreeMap::new(),
            behind: None,
            last: 0,
        }
    }

    /// A core begins that was told of these places.
    pub fn begin_life(&mut self, found: &[bool]) -> Check {
        let known = |sector: &usize| found.get(*sector).copied().unwrap_or(false);
        if let Some(sector) = self.promised.iter().find(|sector| !known(sector)) {
            return Err(format!("sector {sector} was told to differ, and a start does not know"));
        }
        self.told = (0..found.len()).filter(known).map(|sector| (sector, None)).collect();
        self.promised = self.told.keys().copied().collect();
        self.repair = None;
        self.read.clear();
        self.mends.clear();
        self.rotted.clear();
        Ok(())
    }

    /// The leg has another disk.
    pub fn forget(&mut self) {
        self.told.clear();
        self.promised.clear();
    }

    /// What an administrator asks of a verify.
    pub fn choose(&mut self) -> Repair {
        let from = [Repair::From(LegId::A), Repair::From(LegId::B)];
        self.rng
            .pick(&[Repair::No, Repair::Proven, Repair::Proven, from[0], from[1]])
    }

    pub fn begin_verify(&mut self, repair: Repair, began: BTreeMap<usize, [Token; 2]>) {
        self.repair = Some(repair);
        self.began = began;
        self.reported.clear();
        // What was said of them then is said anew.
        self.told.values_mut().for_each(|wrong| *wrong = None);
        self.written.clear();
        self.repaired = 0;
    }
}

impl World {
    /// What both legs show of a sector.
    fn pair(&self, sector: usize) -> [Token; 2] {
        self.disks.each_ref().map(|disk| disk.live()[sector])
    }

    /// Whether a sector of the range has rotted on either leg.
    pub fn is_rotten(&self, range: Range) -> bool {
        sectors(range).any(|sector| self.pair(sector).iter().any(|token| token.is_rotten()))
    }

    /// By sector: whether it is suspect now; nothing if none is.
    pub fn suspected_now(&self) -> Vec<bool> {
        let suspects = self.mirror.suspects();
        if suspects.is_empty() {
            return Vec::new();
        }
        let size = self.plan.config.geometry.size;
        let mut suspected = vec![false; (size / SECTOR) as usize];
        suspects
            .iter()
            .for_each(|suspect| suspected[sectors(suspect.range)].fill(true));
        suspected
    }

    /// Something rots, and will again.
    pub fn rots(&mut self) {
        let Some(interval) = self.plan.rot_interval.filter(|_| self.issued < self.budget) else {
            return;
        };
        let delay = self.rot.rng.around(interval.0);
        self.at(delay, Happening::Rot);
        self.rot(2);
    }

    /// Whether somebody has written to the primary, and perhaps to the other leg, while the device was stopped: nothing that is known of either is
    /// believed then, and everything is suspect.
    pub fn goes_astray(&mut self) -> bool {
        let astray = self.plan.rot_interval.is_some() && self.rot.rng.percent(40);
        if astray {
            self.stats.strays += 1;
            self.rot(6);
        }
        astray
    }

    /// Change up to so many sectors of either leg behind everybody's back.
    pub fn rot(&mut self, most: u64) {
        let count = self.disks[0].live().len() as u64;
        let of_extent = u64::from(self.plan.config.geometry.extent) / SECTOR;
        for _ in 0..self.rot.rng.within(1, most) {
            let leg = self.rot.rng.pick(&[0, 1]);
            // Now and then both legs rot in one extent.
            let sector = match self.rot.rng.percent(30) {
                true => (self.rot.last as u64 / of_extent * of_extent + self.rot.rng.below(of_extent)).min(count - 1),
                false => self.rot.rng.below(count),
            } as usize;
            if !self.may_rot(leg, sector) {
                continue;
            }
            self.rot.serial += 1;
            self.rot.last = sector;
            let is = Token::rotten(self.oracle.newest(), self.rot.serial, sector as u64);
            self.disks[leg].corrupt(sector, is);
            self.rot.rotted.insert(sector);
            self.stats.rots += 1;
            self.trace(|| format!("sector {sector} of leg {} rots", LegId::ALL[leg]));
        }
    }

    /// Of these extents signatures say that the legs hold the same: nothing is read or copied there, so what has rotted is as if it had
    /// been written anew, and had rotted since.
    pub fn rot_anew(&mut self, equal: &Bits) {
        let extent = u64::from(self.plan.config.geometry.extent);
        for at in 0..2 {
            for sector in 0..self.disks[at].live().len() {
                let is_rotten = self.disks[at].live()[sector].is_rotten();
                if is_rotten && equal.contains(sector as u64 * SECTOR / extent) {
                    self.rot.serial += 1;
                    let is = Token::rotten(self.oracle.newest(), self.rot.serial, sector as u64);
                    self.disks[at].corrupt(sector, is);
                    self.rot.rotted.insert(sector);
                }
            }
        }
    }

    /// Not where a guest is reading, nor what a walk has read and is looking at: what it finds is of that moment.
    fn may_rot(&self, leg: usize, sector: usize) -> bool {
        let range = Range::new(sector as u64 * SECTOR, SECTOR);
        let is_read = |(_, range): &(LegId, Range)| range.contains(Range::new(sector as u64 * SECTOR, SECTOR));
        let of_guest = self
            .guest
            .outstanding()
            .any(|pending| pending.request.range.overlaps(range));
        !self.admin.replaced[leg] && !of_guest && !self.rot.read.values().any(is_read)
    }

    /// An operation is submitted on a copy buffer.
    pub fn note_walk(&mut self, op: &LegOp) {
        if op.action == Action::Read && self.is_of_walk(op) {
            self.rot.read.insert(op.buf.offset(), (op.leg, op.range));
            let wrong = op.leg.other();
            let mended = sectors(op.range).filter(|&sector| self.is_to_be_mended(wrong, sector));
            let mends = (wrong, mended.collect());
            self.rot.mends.insert(op.buf.offset(), mends);
        }
    }

    pub fn is_of_walk(&self, op: &LegOp) -> bool {
        let layout = &self.plan.config.layout;
        (layout.tags_bytes()..layout.pool_start()).contains(&op.buf.offset())
    }

    /// Whether this was told, and the administrator has what `leg` holds there written over.
    fn is_to_be_mended(&self, leg: LegId, sector: usize) -> bool {
        match (self.rot.told.get(&sector), self.rot.repair) {
            (Some(Some(wrong)), Some(Repair::Proven | Repair::From(_))) => *wrong == leg,
            (Some(None), Some(Repair::From(right))) => right != leg,
            (Some(_) | None, _) => false,
        }
    }

    /// Whether a write out of a copy buffer is to mend what was told.
    pub fn is_mending(&self, op: &LegOp) -> bool {
        let read = self.read_for(op).and_then(|(at, _)| self.rot.mends.get(&at));
        let is_told = |(leg, told): &(LegId, BTreeSet<usize>)| {
            *leg == op.leg && sectors(op.range).all(|sector| told.contains(&sector))
        };
        matches!(op.action, Action::Write { .. }) && self.is_of_walk(op) && read.is_some_and(is_told)
    }

    /// The copy buffer that holds these bytes since they were read of the place that is now written, and of which leg.
    fn read_for(&self, op: &LegOp) -> Option<(u64, LegId)> {
        let is_of = |&at: &u64, range: &Range| {
            let same_place = op.buf.offset().checked_sub(at) == op.range.start.checked_sub(range.start);
            range.contains(op.range) && same_place
        };
        let mut read = self.rot.read.iter();
        read.find_map(|(at, (leg, range))| is_of(at, range).then_some((*at, *leg)))
    }

    /// Whether a leg gets what was read of it itself.
    fn is_renewing(&self, op: &LegOp) -> bool {
        self.read_for(op).is_some_and(|(_, leg)| leg == op.leg)
    }

    /// Nothing but mending writes where it was told that the legs differ, and that only where every start knows.
    pub fn check_mending(&self, op: &LegOp) -> Check {
        if !matches!(op.action, Action::Write { .. }) || !self.is_of_walk(op) || self.is_renewing(op) {
            return Ok(());
        }
        if !self.is_mending(op) {
            return match sectors(op.range).find(|sector| self.rot.told.contains_key(sector)) {
                Some(sector) => Err(format!("sector {sector} is suspect, and is copied over")),
                None => Ok(()),
            };
        }
        for record in self.store.possible() {
            let surely = self.places.surely(record);
            // What the guest has written since is dirty.
            let is_decided = |sector: usize| self.rot.decided.contains(&sector) && !self.rot.told.contains_key(&sector);
            let unknown = |sector: &usize| !surely.get(*sector).copied().unwrap_or(false) && !is_decided(*sector);
            if let Some(sector) = sectors(op.range).find(unknown) {
                return Err(format!(
                    "sector {sector} is mended, and a start may not know: {record:?}"
                ));
            }
        }
        Ok(())
    }

    /// A copy or a mending puts `token` in the place of `shown`.
    pub fn replaced(&mut self, op: &LegOp, sector: usize, token: Token, shown: Token) -> Check {
        if !self.is_mending(op) {
            return Ok(());
        }
        self.rot.written.insert((op.leg.index(), sector), token);
        // The leg that is right may have rotted since that was seen.
        let before = self.rot.began.get(&sector).map(|pair| pair[op.leg.other().index()]);
        let since = self.rot.rotted.contains(&sector) && before != Some(token);
        match self.rot.repair {
            // What is proven wrong is given up whatever has become of the other meanwhile.
            Some(Repair::From(right)) if right != op.leg => self.give_up(sector, token),
            _ if token.is_rotten() && !shown.is_rotten() && !since => {
                return Err(format!("sector {sector} was right, and gets {token:?}"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Somebody has decided that this is what the sector holds.
    pub fn give_up(&mut self, sector: usize, token: Token) {
        self.oracle.give_up(sector, token.id());
        let at = sector as u64 * SECTOR;
        for pending in self.guest.pending.iter_mut().flatten() {
            let first = pending.request.range.start;
            let index = match pending.floor.len() == self.disks[0].live().len() {
                true => Some(sector),
                false => at.checked_sub(first).map(|offset| (offset / SECTOR) as usize),
            };
            if let Some(floor) = index.and_then(|index| pending.floor.get_mut(index)) {
                *floor = (*floor).min(token.id());
            }
        }
    }

    pub fn verify_with(&mut self, repair: Repair) -> Check {
        let result = self.mirror.verify(self.now, repair);
        self.trace(|| format!("{repair:?}"));
        if result.is_ok() {
            let status = self.mirror.status();
            let settled = status.dirty_bytes == 0 && !status.resync.running;
            let differing = |sector: &usize| {
                let [a, b] = self.pair(*sector);
                a != b && (a.is_rotten() || b.is_rotten())
            };
            let count = if settled { self.disks[0].live().len() } else { 0 };
            let began = (0..count).filter(differing).map(|sector| (sector, self.pair(sector)));
            let began = began.collect();
            let rotten = |sector: &usize| self.pair(*sector).iter().any(|token| token.is_rotten());
            self.rot.rotted = (0..self.disks[0].live().len()).filter(rotten).collect();
            self.rot.begin_verify(repair, began);
            self.admin.begin_verify();
        }
        self.asked(Some(crate::admin::Awaited::Verify), "verify", result)
    }

    /// It is told that the legs differ: they do, and a leg that is named is wrong.
    pub fn told_to_differ(&mut self, suspect: Suspect, asked: bool) -> Check {
        let Suspect { range, wrong } = suspect;
        for first in (range.start / BlockMask::BLOCK * BlockMask::BLOCK..range.end()).step_by(BlockMask::BLOCK as usize)
        {
            let size = self.plan.config.geometry.size;
            let block = Range::new(first, BlockMask::BLOCK.min(size - first));
            // What was written since it was read may be told without a verdict, if it was asked for.
            let was = |sector: usize| self.rot.told.contains_key(&sector) || asked && self.rot.rotted.contains(&sector);
            let off = |sector: usize| was(sector) || self.pair(sector).iter().any(|token| token.is_rotten());
            if !sectors(block).any(off) {
                return Err(format!("told that {block:?} differs, which it never did"));
            }
            let Some(wrong) = wrong.map(LegId::index) else { continue };
            let is_wrong = |sector: usize| {
                let pair = self.pair(sector);
                pair[wrong].is_rotten() && !pair[wrong].same_bytes(pair[1 - wrong])
            };
            if !sectors(block).any(is_wrong) {
                return Err(format!(
                    "leg {} is said to be wrong in {block:?}, and is not",
                    LegId::ALL[wrong]
                ));
            }
        }
        for sector in sectors(range) {
            self.rot.told.insert(sector, wrong);
            // A write that waits may be admitted any moment.
            let at = Range::new(
                sector as u64 * SECTOR / BlockMask::BLOCK * BlockMask::BLOCK,
                BlockMask::BLOCK,
            );
            if !self
                .guest
                .outstanding()
                .any(|pending| pending.request.range.overlaps(at))
            {
                self.rot.decided.remove(&sector);
            }
            if asked {
                self.rot.reported.insert(sector);
            }
        }
        self.stats.differences += u64::from(asked);
        self.stats.strayed += u64::from(!asked);
        self.stats.verdicts += u64::from(wrong.is_some());
        Ok(())
    }

    /// It is told that this is mended: it is, durably.
    pub fn told_to_be_mended(&mut self, leg: LegId, range: Range) -> Check {
        let disk = &self.disks[leg.index()];
        for sector in sectors(range) {
            if self.rot.told.remove(&sector).is_none() {
                // A guest's write may come between, and is behind what mends.
                if self.rot.decided.contains(&sector) {
                    continue;
                }
                return Err(format!("sector {sector} is mended, and was never told to differ"));
            }
            self.rot.promised.remove(&sector);
            let (shown, kept) = (disk.live()[sector], disk.durable()[sector]);
            let Some(written) = self.rot.written.get(&(leg.index(), sector)) else {
                return Err(format!("sector {sector} is mended, and was never written"));
            };
            let is_wrong = |token: Token| token.is_rotten() && token != *written;
            // It may have rotted again, and been written since.
            let before = self.rot.began.get(&sector).map(|pair| pair[leg.index()]);
            let again = self.rot.rotted.contains(&sector) && before != Some(kept);
            if is_wrong(kept) && kept != shown && !again {
                return Err(format!(
                    "sector {sector} is mended, and {kept:?} is what leg {leg} would keep"
                ));
            }
            if is_wrong(shown) && !self.rot.rotted.contains(&sector) {
                return Err(format!("sector {sector} is mended, and leg {leg} holds {shown:?}"));
            }
            let floor = self.oracle.floor()[sector];
            if self.mirror.status().primary == leg && !shows_at_least(&self.oracle, sector, shown, floor) {
                return Err(format!(
                    "sector {sector} is mended with {shown:?}, write {floor} is due"
                ));
            }
        }
        self.rot.repaired += range.len;
        self.stats.mended += 1;
        Ok(())
    }

    /// What is suspect no more is equal, or the guest has decided what it is to be.
    pub fn watch_suspects(&mut self) -> Check {
        if !self.mirror.suspects().is_empty() {
            self.faults.note_suspects(self.now);
        }
        if self.rot.told.is_empty() {
            return Ok(());
        }
        let suspected = self.suspected_now();
        let is_suspect = |sector: usize| suspected.get(sector).copied().unwrap_or(false);
        let cleared: Vec<usize> = self
            .rot
            .told
            .keys()
            .copied()
            .filter(|sector| !is_suspect(*sector))
            .collect();
        for sector in cleared {
            let [a, b] = self.pair(sector);
            // It may have rotted again after it was found equal.
            let again = self.rot.rotted.contains(&sector) && self.rot.began.get(&sector) != Some(&[a, b]);
            let decided = self.rot.decided.contains(&sector);
            if (a.is_rotten() || b.is_rotten()) && !a.same_bytes(b) && !again && !decided {
                return Err(format!("sector {sector} is suspect no more, and holds {a:?} and {b:?}"));
            }
            self.rot.told.remove(&sector);
            self.rot.promised.remove(&sector);
            self.stats.cleared += 1;
        }
        Ok(())
    }

    /// Whatever a start finds now, it knows what was told.
    pub fn check_promised(&self) -> Check {
        for record in self.store.possible() {
            let surely = self.places.surely(record);
            let unknown = |sector: &&usize| !surely.get(**sector).copied().unwrap_or(false);
            if let Some(sector) = self.rot.promised.iter().find(unknown) {
                return Err(format!(
                    "sector {sector} was told to differ, and a start may not know: {record:?}"
                ));
            }
        }
        Ok(())
    }

    /// A verify has ended.
    pub fn verified(&mut self, complete: bool, undisturbed: bool, repaired: u64) -> Check {
        let repair = self.rot.repair.take();
        if repaired != self.rot.repaired {
            return Err(format!(
                "{repaired} bytes are said to be mended, not {}",
                self.rot.repaired
            ));
        }
        if !complete {
            return Ok(());
        }
        let failing = self.places.failed || self.store.undetermined().next().is_some();
        if !failing {
            self.rot.promised = self.rot.told.keys().copied().collect();
            self.check_promised()?;
        }
        if undisturbed {
            self.check_verify(repair)?;
            self.stats.verifies += 1;
        }
        Ok(())
    }

    /// It has walked the whole device while the legs stayed in sync.
    fn check_verify(&self, repair: Option<Repair>) -> Check {
        let status = self.mirror.status();
        if status.dirty_bytes > 0 || status.resync.running {
            return Ok(());
        }
        let extent = u64::from(self.plan.config.geometry.extent) / SECTOR;
        for (&sector, began) in &self.rot.began {
            // What nobody has written since differed all the while.
            if self.pair(sector) != *began {
                continue;
            }
            if !self.rot.reported.contains(&sector) {
                return Err(format!(
                    "a verify did not report sector {sector}, which holds {began:?}"
                ));
            }
            let proven = self.proven(sector as u64 / extent);
            if let Some(wrong) = proven.filter(|_| repair != Some(Repair::No)) {
                return Err(format!(
                    "leg {wrong} is proven wrong at sector {sector}, and not mended"
                ));
            }
        }
        Ok(())
    }

    /// The leg that what is trusted proves to be wrong in this extent.
    fn proven(&self, extent: u64) -> Option<LegId> {
        let range = self.plan.config.geometry.extent_range(extent);
        let content = self.disks.each_ref().map(|disk| &disk.live()[sectors(range)]);
        let mut wrong = BTreeSet::new();
        for of in LegId::ALL {
            let entry = self.signatures.entries(of).find(|(number, _)| *number == extent);
            let Some((_, entry)) = entry.filter(|_| self.mirror.is_trusted(of, extent)) else {
                continue;
            };
            let fits = content.map(|content| is_same(content, &entry.content));
            let accused = LegId::ALL
                .into_iter()
                .filter(|leg| fits[leg.other().index()] && !fits[leg.index()]);
            wrong.extend(accused.filter(|leg| entry.source != Source::One || *leg == of));
        }
        match wrong.len() {
            1 => wrong.first().copied(),
            _ => None,
        }
    }

    /// The guest is on another leg, while there are suspect places: somebody has decided.
    pub fn decide_by_switch(&mut self, to: LegId) {
        for (sector, suspected) in self.suspected_now().into_iter().enumerate() {
            if suspected {
                let disk = &self.disks[to.index()];
                let [shown, kept] = [disk.live()[sector], disk.durable()[sector]];
                self.give_up(sector, if kept.id() < shown.id() { kept } else { shown });
            }
        }
    }

    /// Whether a leg in sync lacks nothing of the range, and nothing at all.
    pub fn is_suspect(&self, op: &LegOp) -> bool {
        match op.action {
            Action::Read => self.mirror.suspects().touch(op.range),
            Action::Write { .. } | Action::Zero { .. } | Action::Flush => !self.mirror.suspects().is_empty(),
        }
    }

    /// A leg in sync has everything, and what the primary has failed besides: nothing is copied to it, but to mend it.
    pub fn check_not_copied(&self, op: &LegOp) -> Check {
        let status = self.mirror.status();
        let in_sync = status.legs[op.leg.index()].is_some_and(|leg| leg.health == Health::InSync);
        let grain = u64::from(self.plan.config.geometry.grain);
        let mut grains = op.range.start / grain..op.range.end().div_ceil(grain);
        let behind = |behind: &Bits| grains.all(|grain| behind.contains(grain));
        let excused = self.is_mending(op) || self.rot.behind.as_ref().is_some_and(behind);
        let copied = matches!(op.action, Action::Write { .. }) && self.is_of_walk(op) && !excused;
        match copied && in_sync && op.leg != status.primary {
            true => Err("a leg in sync is copied to".into()),
            false => Ok(()),
        }
    }
}
