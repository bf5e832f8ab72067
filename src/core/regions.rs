//! Active regions: where the legs may differ after a crash although no grain says so.
//!
//! A region is *active* from before the first write to it that can reach a leg until both legs are known to hold, durably,
//! whatever was written (or the dirty map says, durably, that one does not). Being active is a mark in the state directory,
//! written ahead; entering a region costs one durable write, which all that wait share. A region stays active for a while
//! after its last write, so that a hot set costs nothing, and there is a bound on how many are, so that a crash costs no
//! more than comparing those.
//!
//! This is the book-keeping of one table of marks. When it is written, and what must come before, is [`super::mirror`]'s.

use super::bits::Bits;
use super::geometry::Range;
use super::time::{Span, Time};

/// What the state directory tells of a device whose daemon is gone.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// Regions in which the legs may differ; empty after a clean stop.
    pub active: Bits,
    /// Grains that the secondary may not hold.
    pub dirty: Bits,
}

#[derive(Clone, Copy, Debug)]
struct Region {
    /// Mutations that are not done with on both legs.
    users: u32,
    /// When the last of them was done with.
    left_at: Time,
}

/// The regions of a device; see the module.
pub struct Regions {
    shift: u32,
    regions: Vec<Region>,
    /// Marked durably, and not about to be cleared.
    active: Bits,
    active_count: u64,
    /// Regions that somebody uses.
    used: u64,
    /// To be marked by the next write of the table.
    wanted: Bits,
    wanted_count: u64,
    /// To be cleared by the write after the next save, unless written to before.
    leaving: Bits,
    leaving_count: u64,
    /// Of the write of the table that is under way: what it marks anew.
    entering: Bits,
    /// What that write says.
    table: Bits,
    most: u64,
}

impl Regions {
    /// At least so many regions may be active at once.
    const LEAST: u64 = 2048;

    /// The regions, of `region` bytes (a power of two), of a device of `size` bytes. None is active but `active`; the time of
    /// those begins `now`.
    pub fn new(size: u64, region: u64, active: Bits, now: Time) -> Regions {
        let regions = size.div_ceil(region);
        assert_eq!(active.len(), regions, "the marks are those of this device");
        Regions {
            shift: region.trailing_zeros(),
            regions: vec![Region { users: 0, left_at: now }; regions as usize],
            active_count: active.count(),
            active,
            used: 0,
            wanted: Bits::none(regions),
            wanted_count: 0,
            leaving: Bits::none(regions),
            leaving_count: 0,
            entering: Bits::none(regions),
            table: Bits::none(regions),
            most: Regions::LEAST.max(regions / 16),
        }
    }

    /// Whether every region that `range` touches is active, durably.
    #[inline]
    pub fn are_active(&self, range: Range) -> bool {
        self.of(range).all(|region| self.active.contains(region))
    }

    /// Whether a region that `range` touches is active, or is being marked.
    pub fn is_any_in_use(&self, range: Range) -> bool {
        self.of(range).any(|region| {
            self.active.contains(region) || self.entering.contains(region) || self.regions[region as usize].users > 0
        })
    }

    /// Have the regions of `range` that are not active marked by the next write.
    pub fn want(&mut self, range: Range) {
        for region in self.of(range) {
            if !self.active.contains(region) && !self.wanted.contains(region) && !self.entering.contains(region) {
                self.wanted.insert(region);
                self.wanted_count += 1;
            }
        }
    }

    /// A mutation of `range` is under way; its regions are active. Those that were to be left stay.
    #[inline]
    pub fn enter(&mut self, range: Range) {
        for region in self.of(range) {
            let users = &mut self.regions[region as usize].users;
            self.used += u64::from(*users == 0);
            *users += 1;
            if self.leaving_count > 0 && self.leaving.contains(region) {
                self.leaving.remove(region);
                self.leaving_count -= 1;
            }
        }
    }

    /// A mutation of `range` is done with on both legs.
    #[inline]
    pub fn leave(&mut self, range: Range, now: Time) {
        for region in self.of(range) {
            let region = &mut self.regions[region as usize];
            region.users -= 1;
            self.used -= u64::from(region.users == 0);
            region.left_at = now;
        }
    }

    /// Whether no more regions may become active before some are left.
    pub fn is_full(&self) -> bool {
        self.active_count + self.wanted_count > self.most
    }

    /// Whether a region is active that nobody uses.
    #[inline]
    pub fn some_unused(&self) -> bool {
        self.active_count > self.used
    }

    /// Whether the table is to be written to mark regions.
    pub fn wants(&self) -> bool {
        self.wanted_count > 0
    }

    /// Choose the regions to be left: unused for at least `idle`. Returns how many.
    pub fn choose(&mut self, now: Time, idle: Span) -> u64 {
        debug_assert_eq!(self.leaving_count, 0, "regions are left one batch after another");
        for (region, at) in self.regions.iter().enumerate() {
            if at.users == 0 && at.left_at + idle <= now && self.active.contains(region as u64) {
                self.leaving.insert(region as u64);
                self.leaving_count += 1;
            }
        }
        self.leaving_count
    }

    /// How many of the chosen regions are still to be left.
    pub fn leaving(&self) -> u64 {
        self.leaving_count
    }

    /// None of the chosen regions is left after all.
    pub fn stay(&mut self) {
        self.leaving.clear();
        self.leaving_count = 0;
    }

    /// A write of the table begins. It marks what is wanted, and with `clear` clears what is to be left; that is not active
    /// from now on, whatever becomes of the write.
    pub fn begin_write(&mut self, clear: bool) {
        std::mem::swap(&mut self.entering, &mut self.wanted);
        self.wanted_count = 0;
        if clear {
            self.active.subtract(&self.leaving);
            self.active_count -= self.leaving_count;
            self.stay();
        }
        self.table.assign(self.active.words());
        self.table.unite(&self.entering);
    }

    /// What the write of the table says.
    pub fn table(&self) -> &Bits {
        &self.table
    }

    /// The write has ended; `done`: what it says is durable.
    pub fn end_write(&mut self, done: bool) {
        if done {
            self.active.unite(&self.entering);
            self.active_count = self.active.count();
        }
        self.entering.clear();
    }

    /// The regions that `range` touches.
    #[inline]
    fn of(&self, range: Range) -> std::ops::Range<u64> {
        range.start >> self.shift..((range.end() - 1) >> self.shift) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: u64 = 4 << 20;

    fn regions() -> Regions {
        Regions::new(64 * REGION, REGION, Bits::none(64), Time(0))
    }

    fn range(region: u64) -> Range {
        Range::new(region * REGION, 4096)
    }

    #[test]
    fn a_region_is_active_when_its_mark_is_durable_and_not_before() {
        let mut regions = regions();
        let both = Range::new(REGION - 512, 1024);
        assert!(!regions.are_active(both));
        regions.want(both);
        regions.begin_write(false);
        assert!(regions.table().iter().eq([0, 1]));
        assert!(!regions.are_active(both));
        regions.want(both);
        assert!(!regions.wants(), "what is being marked is not wanted once more");
        regions.end_write(true);
        assert!(regions.are_active(both));
    }

    #[test]
    fn a_mark_that_failed_leaves_nothing_active() {
        let mut regions = regions();
        regions.want(range(3));
        regions.begin_write(false);
        regions.end_write(false);
        assert!(!regions.are_active(range(3)) && !regions.some_unused());
    }

    #[test]
    fn a_region_in_use_is_not_left_and_one_used_meanwhile_stays() {
        let mut regions = regions();
        for region in [1, 2, 3] {
            regions.want(range(region));
        }
        regions.begin_write(false);
        regions.end_write(true);
        regions.enter(range(1));
        assert_eq!(regions.choose(Time(10), Span(10)), 2);
        regions.enter(range(2));
        regions.leave(range(2), Time(11));
        assert_eq!(regions.leaving(), 1);
        regions.begin_write(true);
        assert!(regions.table().iter().eq([1, 2]));
        assert!(!regions.are_active(range(3)), "it is being cleared");
        regions.want(range(3));
        regions.end_write(true);
        regions.begin_write(false);
        assert!(regions.table().iter().eq([1, 2, 3]));
        regions.end_write(true);
        assert_eq!(
            regions.choose(Time(20), Span(10)),
            1,
            "only the one that nobody used since"
        );
    }
}
