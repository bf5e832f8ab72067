//! What a power cut or the death of the daemon would leave now, looked at without ending the life.
//!
//! Verifies what `check::image_after` verifies, for every record that a start might find, at many more moments than lives
//! end. Does not start anything from the image: that is what ends of lives are for.

use crate::check::{Check, End, image_after};
use crate::world::World;

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
                image.reopen();
            } else {
                image.cut(&mut self.rng);
            }
            image
        });
        let end = if kill { End::Kill } else { End::Cut };
        for record in self.store.possible() {
            image_after(&self.oracle, &images, record, end, self.admin.replaced)?;
        }
        Ok(())
    }
}
