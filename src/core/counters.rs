//! The four counters of a mirrored device.
//!
//! Generations number guest mutations as they complete on the primary. What is on the secondary is followed one by one
//! in a ring of bits, so that M is exact: the highest n such that every generation up to n is there.

/// G, M, R and F; see the crate's documentation of `status`.
pub struct Counters {
    /// G: the newest generation.
    pub source: u64,
    /// R: the generation that the newest barrier must reach.
    pub requested: u64,
    /// F: M as of the newest completed flush of the secondary, taken when that flush was issued.
    pub flushed: u64,
    mirrored: u64,
    /// Bit `n % bits`: generation n is on the secondary. Bits up to M are clear.
    landed: Vec<u64>,
    following: bool,
}

/// How far G may be ahead of M.
pub const WINDOW: u64 = 1 << 18;

impl Counters {
    /// Counters that stand at `generation`.
    pub fn new(generation: u64) -> Counters {
        Counters {
            source: generation,
            requested: generation,
            flushed: generation,
            mirrored: generation,
            landed: vec![0; (WINDOW / 64) as usize],
            following: false,
        }
    }

    /// M: every generation up to this is on the secondary.
    pub fn mirrored(&self) -> u64 {
        self.mirrored
    }

    /// Whether `more` mutations can be numbered before M must rise.
    pub fn has_room(&self, more: u64) -> bool {
        !self.following || self.source - self.mirrored + more < WINDOW
    }

    /// From now on every generation goes to the secondary; those up to now are there or will be before it counts.
    pub fn follow(&mut self) {
        self.landed.fill(0);
        self.mirrored = self.source;
        self.following = true;
    }

    /// From now on M and F stand still.
    pub fn unfollow(&mut self) {
        self.following = false;
    }

    /// Whether M follows G.
    pub fn is_following(&self) -> bool {
        self.following
    }

    /// The primary has completed a mutation. Returns its generation.
    pub fn complete(&mut self, landed: bool) -> u64 {
        self.source += 1;
        if landed {
            self.land(self.source);
        }
        self.source
    }

    /// The mutation of this generation is on the secondary.
    pub fn land(&mut self, generation: u64) {
        if !self.following || generation <= self.mirrored {
            return;
        }
        if generation == self.mirrored + 1 {
            self.mirrored = generation;
            while self.take(self.mirrored + 1) {
                self.mirrored += 1;
            }
        } else {
            let (word, bit) = Counters::place(generation);
            self.landed[word] |= bit;
        }
    }

    fn take(&mut self, generation: u64) -> bool {
        let (word, bit) = Counters::place(generation);
        let set = self.landed[word] & bit != 0;
        self.landed[word] &= !bit;
        set
    }

    fn place(generation: u64) -> (usize, u64) {
        ((generation % WINDOW / 64) as usize, 1 << (generation % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrored_is_the_end_of_the_unbroken_run() {
        let mut counters = Counters::new(100);
        counters.follow();
        let generations: Vec<u64> = (0..5).map(|_| counters.complete(false)).collect();
        assert_eq!(generations, [101, 102, 103, 104, 105]);
        counters.land(103);
        counters.land(102);
        assert_eq!(counters.mirrored(), 100);
        counters.land(101);
        assert_eq!(counters.mirrored(), 103);
        assert_eq!(counters.complete(true), 106);
        assert_eq!(counters.mirrored(), 103);
        counters.land(105);
        counters.land(104);
        assert_eq!(counters.mirrored(), 106);
    }

    #[test]
    fn the_ring_is_clean_when_it_comes_round() {
        let mut counters = Counters::new(0);
        counters.follow();
        for _ in 0..3 * WINDOW / 2 {
            let first = counters.complete(false);
            let second = counters.complete(true);
            assert_eq!(counters.mirrored(), first - 1);
            counters.land(first);
            assert_eq!(counters.mirrored(), second);
        }
    }
}
