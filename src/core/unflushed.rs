//! Which grains were written since the last good flush of a leg, so that a failed flush knows what it may have lost.
//!
//! A flush that fails says nothing of what it lost, and the next one may succeed all the same. So everything since the
//! flush before is in doubt. The list is bounded; beyond its bound everything is in doubt.

use super::geometry::{Geometry, Range};

const BOUND: usize = 16 * 1024;

/// Grains written since a flush, as runs in the order they were written.
pub struct Unflushed {
    runs: std::collections::VecDeque<(u64, u64)>,
    /// Number of the first run in `runs`.
    first: u64,
    /// Runs before this number were dropped for want of room and are not covered by a flush yet.
    lost_before: u64,
    /// The highest mark handed out: a run before it may be covered by a flush under way, and cannot stand for a later write.
    marked: u64,
}

impl Unflushed {
    /// A leg that was just claimed: what was written to it before, by whomever, may be in its cache. Everything is in doubt
    /// until its first good flush.
    pub fn new() -> Unflushed {
        Unflushed {
            runs: std::collections::VecDeque::with_capacity(BOUND),
            first: 1,
            lost_before: 1,
            marked: 0,
        }
    }

    /// A leg that is not there: nothing was written to it.
    pub fn nothing() -> Unflushed {
        Unflushed {
            lost_before: 0,
            ..Unflushed::new()
        }
    }

    /// The leg was claimed anew.
    pub fn forget(&mut self) {
        self.first += self.runs.len() as u64 + 1;
        self.runs.clear();
        self.lost_before = self.first;
    }

    /// A write to `range` has completed on the leg.
    pub fn note(&mut self, geometry: &Geometry, range: Range) {
        let run = geometry.grains_of(range);
        let end = self.first + self.runs.len() as u64;
        if self.runs.back() == Some(&run) && end > self.marked {
            return;
        }
        if self.runs.len() == BOUND {
            self.runs.pop_front();
            self.first += 1;
            self.lost_before = self.first;
        }
        self.runs.push_back(run);
    }

    /// Where the list stands now; taken when a flush is issued.
    pub fn mark(&mut self) -> u64 {
        self.marked = self.first + self.runs.len() as u64;
        self.marked
    }

    /// A flush issued at `mark` has succeeded: what had completed before is durable.
    pub fn flushed(&mut self, mark: u64) {
        while self.first < mark && !self.runs.is_empty() {
            self.runs.pop_front();
            self.first += 1;
        }
        if mark >= self.lost_before {
            self.lost_before = 0;
        }
    }

    /// Call `what` with each range in doubt. Returns false, having called nothing, if that is all of the device.
    pub fn each(&self, geometry: &Geometry, mut what: impl FnMut(Range)) -> bool {
        if self.lost_before > 0 {
            return false;
        }
        let grain = geometry.grain as u64;
        for &(first, end) in &self.runs {
            what(Range::new(
                first * grain,
                (end * grain).min(geometry.size) - first * grain,
            ));
        }
        true
    }

    /// Everything in doubt, as ranges; `None`: all of the device. The list is empty afterwards.
    pub fn take(&mut self, geometry: &Geometry) -> Option<Vec<Range>> {
        let whole = self.lost_before > 0;
        let grain = geometry.grain as u64;
        let ranges = self
            .runs
            .drain(..)
            .map(|(first, end)| Range::new(first * grain, (end * grain).min(geometry.size) - first * grain))
            .collect::<Vec<_>>();
        self.first += ranges.len() as u64;
        self.lost_before = 0;
        (!whole).then_some(ranges)
    }
}

impl Default for Unflushed {
    fn default() -> Self {
        Unflushed::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_covers_what_was_noted_before_it_and_nothing_after() {
        let geometry = Geometry::new(1 << 30, 512);
        let mut unflushed = Unflushed::new();
        let mark = unflushed.mark();
        unflushed.flushed(mark);
        unflushed.note(&geometry, Range::new(0, 4096));
        let mark = unflushed.mark();
        unflushed.note(&geometry, Range::new(1 << 20, 4096));
        unflushed.flushed(mark);
        assert_eq!(unflushed.take(&geometry), Some(vec![Range::new(1 << 20, 65536)]));
    }

    #[test]
    fn a_leg_that_was_never_flushed_is_in_doubt_whole() {
        let geometry = Geometry::new(1 << 30, 512);
        let mut unflushed = Unflushed::new();
        assert_eq!(unflushed.take(&geometry), None);
        let mark = unflushed.mark();
        unflushed.flushed(mark);
        assert_eq!(unflushed.take(&geometry), Some(vec![]));
        unflushed.forget();
        assert_eq!(unflushed.take(&geometry), None);
    }

    #[test]
    fn a_write_that_completes_while_a_flush_runs_is_in_doubt_if_the_next_one_fails() {
        let geometry = Geometry::new(1 << 30, 512);
        let mut unflushed = Unflushed::new();
        unflushed.note(&geometry, Range::new(0, 4096));
        let mark = unflushed.mark();
        unflushed.note(&geometry, Range::new(0, 4096));
        unflushed.flushed(mark);
        assert_eq!(unflushed.take(&geometry), Some(vec![Range::new(0, 65536)]));
    }

    #[test]
    fn beyond_its_bound_everything_is_in_doubt_until_a_flush() {
        let geometry = Geometry::new(1 << 40, 512);
        let mut unflushed = Unflushed::new();
        for i in 0..BOUND as u64 + 5 {
            unflushed.note(&geometry, Range::new(i << 20, 4096));
        }
        unflushed.flushed(3);
        assert_eq!(unflushed.take(&geometry), None);
        unflushed.note(&geometry, Range::new(0, 4096));
        assert!(unflushed.take(&geometry).is_some());
    }
}
