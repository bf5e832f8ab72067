//! What is known by signatures is so.
//!
//! Verifies: an entry that the core trusts, at many moments and before any is believed, says what the leg shows, and the leg has not
//! lost it by a flush that failed; each entry that a start would believe does, whichever it finds and whatever survives in caches;
//! extents that are taken for equal are; at rest what was written or read back from both legs is on both. Not: that an entry is there where it
//! could be (`stats` counts what was known), nor what sectors show that changed by themselves.

use crate::check::Check;
use crate::disk::Disk;
use crate::oracle::sectors;
use crate::signatures::Entry;
use crate::walk::rename_zeroes;
use crate::what_if::is_taken_in;
use crate::world::World;
use twinblk::core::{Bits, Evidence, LegId, Record, Source};

/// At one of this many steps everything that is trusted is looked at.
const RARITY: u64 = 12;

impl World {
    /// The disk shows what the entry of this leg says.
    fn shows(&self, disk: &Disk, leg: LegId, extent: u64, entry: &Entry) -> Check {
        let range = self.plan.config.geometry.extent_range(extent);
        for (sector, token) in sectors(range).zip(&entry.content) {
            let shown = disk.live()[sector];
            if !shown.same_bytes(*token) && !shown.is_rotten() {
                return Err(format!(
                    "extent {extent} of leg {leg} is known with {token:?} at sector {sector} ({:?}), which holds {shown:?}",
                    entry.source
                ));
            }
        }
        Ok(())
    }

    /// The disk shows what the entry of this leg says, and has not lost it.
    fn holds(&self, disk: &Disk, leg: LegId, extent: u64, entry: &Entry) -> Check {
        self.shows(disk, leg, extent, entry)?;
        let range = self.plan.config.geometry.extent_range(extent);
        match sectors(range).find(|&sector| disk.is_lost(sector)) {
            None => Ok(()),
            Some(sector) => Err(format!(
                "extent {extent} of leg {leg} is known, which has lost sector {sector}"
            )),
        }
    }

    pub fn check_trusted_perhaps(&mut self) -> Check {
        match self.signatures.rng.below(RARITY) {
            0 => self.check_trusted(),
            _ => Ok(()),
        }
    }

    /// Every entry that the core trusts is right.
    pub fn check_trusted(&self) -> Check {
        for leg in LegId::ALL {
            let is_elsewhere = self.admin.touched[leg.index()] && !self.admin.claimed[leg.index()];
            if is_elsewhere || self.signatures.is_emptying(leg) {
                continue;
            }
            for (extent, entry) in self.signatures.entries(leg) {
                if self.mirror.is_trusted(leg, extent) {
                    self.holds(&self.disks[leg.index()], leg, extent, entry)?;
                }
            }
        }
        Ok(())
    }

    /// By leg: whether somebody else has written to it of which `record` knows nothing.
    pub fn outside(&self, record: &Record) -> [bool; 2] {
        LegId::ALL.map(|leg| {
            let at = leg.index();
            let unknown = self.admin.replaced[at] && leg != record.primary;
            self.admin.touched[at] || unknown && !record.legs[at].is_some_and(is_taken_in)
        })
    }

    /// Every entry that a start beside `record` may find and would believe is what these disks hold.
    pub fn check_found(&self, disks: &[Disk; 2], record: &Record) -> Check {
        let outside = self.outside(record);
        for leg in LegId::ALL {
            let at = leg.index();
            let doubted = record.legs[at].is_some_and(|leg| leg.doubted);
            if !record.clean || !record.tracked || outside[at] || doubted {
                continue;
            }
            for (extent, entry) in self.signatures.possible(leg) {
                self.holds(&disks[at], leg, extent, entry)
                    .map_err(|what| format!("a start would believe: {what} ({record:?})"))?;
            }
        }
        Ok(())
    }

    /// What the tables say to be equal, and is not copied because of that, is equal.
    pub fn check_matched(&mut self, equal: &Bits) -> Check {
        for extent in equal.iter() {
            for sector in sectors(self.plan.config.geometry.extent_range(extent)) {
                let [a, b] = [self.disks[0].live()[sector], self.disks[1].live()[sector]];
                if !a.same_bytes(b) && !a.is_rotten() && !b.is_rotten() {
                    return Err(format!("sector {sector} is taken for equal, and holds {a:?} and {b:?}"));
                }
                if a != b && a.same_bytes(b) {
                    rename_zeroes(&mut self.disks, a, b);
                }
            }
        }
        Ok(())
    }

    /// What is recognised by what was read of one leg and the entry of the other, and is not copied because of that, is equal.
    pub fn check_recognised(&mut self, extent: u64, read: [bool; 2], evidence: [Option<Evidence>; 2]) -> Check {
        let of = LegId::ALL.into_iter().find(|leg| read[leg.index()]);
        let of = of.ok_or("a question about nothing")?;
        if evidence[of.other().index()].is_some_and(|evidence| evidence.equals[of.index()]) {
            let mut equal = Bits::none(self.plan.config.geometry.extents());
            equal.insert(extent);
            self.check_matched(&equal)?;
            self.rot_anew(&equal);
            self.stats.recognised += 1;
        }
        Ok(())
    }

    /// At rest what was read from both legs, or copied, is on both, if one is in sync with the other.
    pub fn check_known_at_rest(&self, in_sync: bool) -> Check {
        self.check_trusted()?;
        for leg in LegId::ALL.into_iter().filter(|_| in_sync) {
            for (extent, entry) in self.signatures.entries(leg) {
                if entry.source != Source::One && self.mirror.is_trusted(leg, extent) {
                    self.shows(&self.disks[leg.other().index()], leg, extent, entry)?;
                }
            }
        }
        Ok(())
    }
}
