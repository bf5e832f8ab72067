//! Which grains the secondary may not hold. Doubt widens: a grain touched at all is dirty whole, and only a copy that
//! began after the bit was taken away can make it clean, or proof that both legs hold the same.

use super::bits::Bits;
use super::geometry::{Geometry, Range};

/// One bit per grain, and how many are set.
pub struct DirtyMap {
    geometry: Geometry,
    words: Vec<u64>,
    count: u64,
}

impl DirtyMap {
    /// A map without a dirty grain.
    pub fn new(geometry: Geometry) -> DirtyMap {
        DirtyMap {
            geometry,
            words: vec![0; geometry.grains().div_ceil(64) as usize],
            count: 0,
        }
    }

    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of dirty grains; the last grain counts with what it has.
    pub fn bytes(&self) -> u64 {
        let grain = self.geometry.grain as u64;
        let last = self.geometry.grains() - 1;
        let missing = self.geometry.grains() * grain - self.geometry.size;
        self.count * grain - if self.get(last) { missing } else { 0 }
    }

    /// Mark every grain that `range` touches.
    pub fn mark(&mut self, range: Range) {
        let (first, end) = self.geometry.grains_of(range);
        for grain in first..end {
            let (word, bit) = place(grain);
            self.count += u64::from(self.words[word] & bit == 0);
            self.words[word] |= bit;
        }
    }

    /// Mark everything.
    pub fn mark_all(&mut self) {
        let grains = self.geometry.grains();
        self.words.fill(u64::MAX);
        if !grains.is_multiple_of(64) {
            *self.words.last_mut().expect("a device has a grain") = (1 << (grains % 64)) - 1;
        }
        self.count = grains;
    }

    /// Mark every grain in `grains`, which has the bound of this device.
    pub fn mark_grains(&mut self, grains: &Bits) {
        assert_eq!(grains.len(), self.geometry.grains(), "grains of this device");
        self.words
            .iter_mut()
            .zip(grains.words())
            .for_each(|(word, grains)| *word |= grains);
        self.count = self.words.iter().map(|word| u64::from(word.count_ones())).sum();
    }

    /// Have `grains`, which has the bound of this device, be what is dirty.
    pub fn copy_to(&self, grains: &mut Bits) {
        assert_eq!(grains.len(), self.geometry.grains(), "grains of this device");
        grains.assign(&self.words);
    }

    /// Put what is dirty into `grains`, which has the bound of this device.
    pub fn add_to(&self, grains: &mut Bits) {
        assert_eq!(grains.len(), self.geometry.grains(), "grains of this device");
        grains.unite_words(&self.words);
    }

    /// Take the mark from the grains that lie wholly in `range` (the device's end counts as a boundary). Only for a
    /// copy of them that is about to be entered into the order of both legs, or where both are known to hold the same.
    pub fn take(&mut self, range: Range) {
        let grain_bytes = self.geometry.grain as u64;
        let first = range.start.div_ceil(grain_bytes);
        let end = if range.end() == self.geometry.size {
            self.geometry.grains()
        } else {
            range.end() / grain_bytes
        };
        let mut at = first;
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - bits)) << (at % 64);
            let word = &mut self.words[(at / 64) as usize];
            self.count -= u64::from((*word & mask).count_ones());
            *word &= !mask;
            at += bits;
        }
    }

    /// Whether every grain that `range` touches is dirty.
    pub fn covers(&self, range: Range) -> bool {
        let (first, end) = self.geometry.grains_of(range);
        self.count > 0 && (first..end).all(|grain| self.get(grain))
    }

    /// Whether a grain that `range` touches is dirty.
    pub fn touches(&self, range: Range) -> bool {
        let (first, end) = self.geometry.grains_of(range);
        self.count > 0 && (first..end).any(|grain| self.get(grain))
    }

    /// The first run of dirty grains at or behind byte `from`, cut at the next extent and at `most` bytes.
    pub fn next_run(&self, from: u64, most: u64) -> Option<Range> {
        let grain_bytes = self.geometry.grain as u64;
        let first = self.next_dirty(from / grain_bytes)?;
        let start = first * grain_bytes;
        let extent = self.geometry.extent as u64;
        let limit = ((start / extent + 1) * extent)
            .min(start + most.max(grain_bytes))
            .min(self.geometry.size);
        let mut end = first + 1;
        while end * grain_bytes < limit && self.get(end) {
            end += 1;
        }
        Some(Range::new(start, (end * grain_bytes).min(limit) - start))
    }

    fn next_dirty(&self, from: u64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let mut word = (from / 64) as usize;
        let mut bits = *self.words.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.words.get(word)?;
        }
        Some(word as u64 * 64 + u64::from(bits.trailing_zeros()))
    }

    fn get(&self, grain: u64) -> bool {
        let (word, bit) = place(grain);
        self.words[word] & bit != 0
    }
}

fn place(grain: u64) -> (usize, u64) {
    ((grain / 64) as usize, 1 << (grain % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn agrees_with_a_list_of_booleans() {
        for seed in 1..100u64 {
            let mut state = seed.wrapping_mul(0x2545_F491_4F6C_DD1D);
            let grain = 4096u64;
            let size = (1 + next(&mut state) % 400) * 512;
            let geometry = Geometry {
                size,
                block: 512,
                grain: grain as u32,
                extent: 16384,
            };
            let mut map = DirtyMap::new(geometry);
            let mut oracle = vec![false; size.div_ceil(grain) as usize];
            for _ in 0..300 {
                let start = next(&mut state) % (size / 512) * 512;
                let len = (1 + next(&mut state) % 64) * 512;
                let range = Range::new(start, len.min(size - start));
                let touches = |i: usize| range.overlaps(Range::new(i as u64 * grain, grain));
                let whole = |i: usize| range.contains(Range::new(i as u64 * grain, grain.min(size - i as u64 * grain)));
                match next(&mut state) % 8 {
                    0..3 => {
                        map.mark(range);
                        (0..oracle.len()).filter(|&i| touches(i)).for_each(|i| oracle[i] = true);
                    }
                    3 if next(&mut state).is_multiple_of(8) => {
                        map.mark_all();
                        oracle.fill(true);
                    }
                    4..6 => {
                        map.take(range);
                        (0..oracle.len()).filter(|&i| whole(i)).for_each(|i| oracle[i] = false);
                    }
                    _ => {}
                }
                assert_eq!(map.touches(range), (0..oracle.len()).any(|i| touches(i) && oracle[i]));
                assert_eq!(map.is_empty(), oracle.iter().all(|dirty| !dirty));
                assert_eq!(
                    map.covers(range),
                    (0..oracle.len()).filter(|&i| touches(i)).all(|i| oracle[i])
                );
                let bytes: u64 = (0..oracle.len())
                    .filter(|&i| oracle[i])
                    .map(|i| grain.min(size - i as u64 * grain))
                    .sum();
                assert_eq!(map.bytes(), bytes);
                let expected = (start / grain..oracle.len() as u64)
                    .find(|&i| oracle[i as usize])
                    .map(|first| {
                        let mut end = first + 1;
                        while !end.is_multiple_of(4) && oracle.get(end as usize) == Some(&true) {
                            end += 1;
                        }
                        Range::new(first * grain, (end * grain).min(size) - first * grain)
                    });
                assert_eq!(map.next_run(start, 1 << 20), expected, "seed {seed}");
            }
        }
    }
}
