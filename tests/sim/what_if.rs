//! What a power cut or the death of the daemon would leave now, looked at without ending the life.
//!
//! Verifies what `check::image_after` verifies, for every record that a start might find, at many more moments than lives
//! end; and where the record says that it is tracked where the legs may differ, that they differ nowhere else. Does not start anything from the image: that is what ends of lives are for.

use crate::check::{Check, End, image_after};
use crate::disk::Disk;
use crate::token::SECTOR;
use crate::world::World;
use twinblk::core::{Health, LegRecord, Record};

/// One of this many steps is looked at.
const RARITY: u64 = 24;

impl World {
    pub fn look_ahead(&mut self) -> Check {
        if self.plan.endless || self.rng.below(RARITY) != 0 {
            return Ok(());
        }
        self.stats.looks += 1;
        let kill = self.rng.percent(20);
        let images = self.disks.each_ref().map(|disk| {
            let mut image = disk.clone();
            if kill {
                image.reopen(false);
            } else {
                image.cut(&mut self.rng);
            }
            image
        });
        self.check_promised()?;
        let end = if kill { End::Kill } else { End::Cut };
        for record in self.store.possible() {
            let spared = self.places.surely(record);
            image_after(&self.oracle, &images, record, end, self.admin.replaced, &spared)?;
            self.is_tracked(&images, record)
                .map_err(|what| format!("after a {end:?}, {what} ({record:?})"))?;
            self.check_found(&images, record)
                .map_err(|what| format!("after a {end:?}, {what}"))?;
        }
        Ok(())
    }

    /// Where the legs differ, and have not rotted, a start that finds `record` would compare them, or takes them for suspect.
    fn is_tracked(&self, images: &[Disk; 2], record: &Record) -> Check {
        let other = record.primary.other().index();
        let Some(leg) = record.legs[other].filter(|_| record.tracked && !self.admin.touched[other]) else {
            return Ok(());
        };
        if self.admin.replaced[other] && !is_taken_in(leg) {
            return Ok(());
        }
        let spared = self.places.surely(record);
        let (region, grain) = (self.plan.config.region, u64::from(self.plan.config.geometry.grain));
        for (sector, (left, right)) in images[0].live().iter().zip(images[1].live()).enumerate() {
            let at = sector as u64 * SECTOR;
            let compared = self.tables.surely_compares(record, at / region, at / grain);
            let odd = left.is_rotten() || right.is_rotten() || spared.get(sector).copied().unwrap_or(false);
            if !left.same_bytes(*right) && !compared && !odd {
                return Err(format!(
                    "sector {sector} holds {left:?} and {right:?}, and would not be compared"
                ));
            }
        }
        Ok(())
    }
}

/// Whether what somebody else wrote to a leg while it was away is accounted for by the record: it was attached since. Before,
/// the daemon sees by the disk's own counts that it has changed.
pub fn is_taken_in(leg: LegRecord) -> bool {
    leg.attached && matches!(leg.health, Health::InSync | Health::Syncing)
}
