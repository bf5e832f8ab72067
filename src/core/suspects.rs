//! Where the legs differ and nobody has made them equal: places that are *suspect*.
//!
//! A place is suspect from the moment that a comparison finds the legs to differ where they should be equal, until it is mended, or
//! found equal. Nothing copies over it meanwhile, and the secondary does not stand in for the primary. Where it is proven which leg
//! is wrong, that is kept along, for whoever mends it.
//!
//! The list has a bound. Beyond it the two places that lie nearest become one, with what is between them: doubt widens.

use super::geometry::Range;
use super::leg::LegId;

/// A place where the legs differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Where.
    pub range: Range,
    /// The leg that is proven wrong; `None`: nothing proves which.
    pub wrong: Option<LegId>,
}

/// The places, in order; no two of them overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects(Vec<Suspect>);

impl Suspects {
    /// The most places that are told apart.
    pub const MOST: usize = 240;

    /// None.
    pub fn none() -> Suspects {
        Suspects(Vec::with_capacity(Suspects::MOST + 2))
    }

    /// These ranges; nothing is known of which leg is wrong.
    pub fn of(ranges: impl IntoIterator<Item = Range>) -> Suspects {
        let mut suspects = Suspects::none();
        ranges
            .into_iter()
            .for_each(|range| suspects.insert(Suspect { range, wrong: None }));
        suspects
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Suspect> {
        self.0.iter()
    }

    /// Whether `range` touches one.
    pub fn touch(&self, range: Range) -> bool {
        let first = self.0.partition_point(|suspect| suspect.range.end() <= range.start);
        self.0.get(first).is_some_and(|suspect| suspect.range.overlaps(range))
    }

    /// How many bytes are suspect.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|suspect| suspect.range.len).sum()
    }

    /// Nothing proves any more which leg is wrong.
    pub fn forget_verdicts(&mut self) {
        self.0.iter_mut().for_each(|suspect| suspect.wrong = None);
    }

    /// Add a place. What is known of it now takes the place of what was known before. Nothing that was suspect ceases to be.
    pub fn insert(&mut self, new: Suspect) {
        self.cut(new.range);
        let at = self.0.partition_point(|suspect| suspect.range.start < new.range.start);
        self.0.insert(at, new);
        // Neighbours of which the same is known are one.
        for at in [at + 1, at] {
            if at > 0 && at < self.0.len() {
                let (before, after) = (self.0[at - 1], self.0[at]);
                if before.range.end() == after.range.start && before.wrong == after.wrong {
                    self.join(at - 1);
                }
            }
        }
        self.bound();
    }

    /// The legs are equal in `range`. What is left of a place on either side stays suspect; with what is between, where the list has
    /// no room for more.
    pub fn remove(&mut self, range: Range) {
        self.cut(range);
        self.bound();
    }

    fn cut(&mut self, range: Range) {
        let mut at = self.0.partition_point(|suspect| suspect.range.end() <= range.start);
        while let Some(&suspect) = self.0.get(at).filter(|suspect| suspect.range.overlaps(range)) {
            let place = suspect.range;
            self.0.remove(at);
            let left = Range::new(place.start, range.start.saturating_sub(place.start));
            let right = Range::new(range.end(), place.end().saturating_sub(range.end()));
            for range in [left, right].into_iter().filter(|range| range.len > 0) {
                self.0.insert(at, Suspect { range, ..suspect });
                at += 1;
            }
        }
    }

    /// The nearest become one until there are not too many.
    fn bound(&mut self) {
        while self.0.len() > Suspects::MOST {
            let gap = |at: &usize| self.0[at + 1].range.start - self.0[*at].range.end();
            let nearest = (0..self.0.len() - 1).min_by_key(gap).expect("there are many");
            self.join(nearest);
        }
    }

    /// The place and the next one become one. Of what is between them nothing is proven.
    fn join(&mut self, at: usize) {
        let (before, after) = (self.0[at], self.0.remove(at + 1));
        let touch = before.range.end() == after.range.start;
        self.0[at] = Suspect {
            range: Range::new(before.range.start, after.range.end() - before.range.start),
            wrong: before.wrong.filter(|_| touch && before.wrong == after.wrong),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(start: u64, len: u64, wrong: Option<LegId>) -> Suspect {
        Suspect {
            range: Range::new(start, len),
            wrong,
        }
    }

    #[test]
    fn agrees_with_a_verdict_for_each_block() {
        for seed in 1..50_u64 {
            let mut state = seed.wrapping_mul(0x2545_F491_4F6C_DD1D);
            let mut next = |bound: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % bound
            };
            let mut suspects = Suspects::none();
            let mut oracle = [None; 300];
            for _ in 0..200 {
                let start = next(300);
                let end = (start + 1 + next(20)).min(300);
                let range = Range::new(start * 512, (end - start) * 512);
                let verdict = [None, Some(LegId::A), Some(LegId::B)][next(3) as usize];
                let blocks = &mut oracle[start as usize..end as usize];
                if next(3) == 0 {
                    suspects.remove(range);
                    blocks.fill(None);
                } else {
                    suspects.insert(Suspect { range, wrong: verdict });
                    blocks.fill(Some(verdict));
                }
                for block in 0..300 {
                    let range = Range::new(block * 512, 512);
                    let found = suspects.iter().find(|suspect| suspect.range.overlaps(range));
                    assert_eq!(
                        found.map(|suspect| suspect.wrong),
                        oracle[block as usize],
                        "seed {seed}"
                    );
                    assert_eq!(suspects.touch(range), oracle[block as usize].is_some());
                }
                let ranges: Vec<Range> = suspects.iter().map(|suspect| suspect.range).collect();
                assert!(
                    ranges.windows(2).all(|pair| pair[0].end() <= pair[1].start),
                    "{ranges:?}"
                );
            }
        }
    }

    #[test]
    fn beyond_its_bound_the_nearest_become_one_and_nothing_is_lost() {
        let mut suspects = Suspects::none();
        for i in 0..Suspects::MOST as u64 + 1 {
            let wrong = if i % 2 == 0 { Some(LegId::A) } else { None };
            suspects.insert(place(i * 8192 - if i == 7 { 2048 } else { 0 }, 512, wrong));
        }
        assert_eq!(suspects.len(), Suspects::MOST);
        assert!(
            suspects.touch(Range::new(6 * 8192 + 1024, 512)),
            "between the two nearest"
        );
        for i in 0..Suspects::MOST as u64 + 1 {
            assert!(suspects.touch(Range::new(i * 8192 - if i == 7 { 2048 } else { 0 }, 512)));
        }
        let merged = suspects.iter().find(|suspect| suspect.range.len > 512).unwrap();
        assert_eq!(*merged, place(6 * 8192, 8192 - 2048 + 512, None));
    }

    #[test]
    fn a_hole_in_a_full_list_leaves_no_more_places_than_there_may_be() {
        let ranges = (0..Suspects::MOST as u64).map(|i| Range::new(i * 8192, 2048));
        let mut suspects = Suspects::of(ranges);
        suspects.remove(Range::new(3 * 8192 + 512, 512));
        assert_eq!(suspects.len(), Suspects::MOST);
        for i in 0..Suspects::MOST as u64 {
            assert!(suspects.touch(Range::new(i * 8192, 512)) && suspects.touch(Range::new(i * 8192 + 1536, 512)));
        }
        let places: Vec<Range> = suspects.iter().map(|suspect| suspect.range).collect();
        assert!(
            places.windows(2).all(|pair| pair[0].end() <= pair[1].start),
            "{places:?}"
        );
    }

    #[test]
    fn what_is_left_of_a_place_stays_suspect() {
        let mut suspects = Suspects::of([Range::new(0, 4096)]);
        suspects.remove(Range::new(1024, 512));
        let left: Vec<Range> = suspects.iter().map(|suspect| suspect.range).collect();
        assert_eq!(left, [Range::new(0, 1024), Range::new(1536, 2560)]);
        suspects.remove(Range::new(0, 8192));
        assert!(suspects.is_empty());
    }
}
