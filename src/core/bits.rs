//! A set of numbers below a bound, as bits: of regions, grains or extents.

/// A set of numbers below [`Bits::len`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits {
    len: u64,
    /// Number `n` is bit `n % 64` of word `n / 64`; no bit is set at or behind `len`.
    words: Vec<u64>,
}

impl Bits {
    /// The empty set of numbers below `len`.
    pub fn none(len: u64) -> Bits {
        Bits {
            len,
            words: vec![0; words(len)],
        }
    }

    /// All numbers below `len`.
    pub fn all(len: u64) -> Bits {
        let mut words = vec![u64::MAX; words(len)];
        if let Some(last) = words.last_mut() {
            *last = last_word(len);
        }
        Bits { len, words }
    }

    /// The set that `words` says; `None` if they are too many or few, or say a number that is not below `len`.
    pub fn from_words(len: u64, words: Vec<u64>) -> Option<Bits> {
        let fits = words.len() == self::words(len) && words.last().is_none_or(|last| last & !last_word(len) == 0);
        fits.then_some(Bits { len, words })
    }

    /// The bound: every number in the set is below it.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether no number is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// How many numbers are in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether `number` is in the set. As the other two, panics if it is not below [`Bits::len`].
    pub fn contains(&self, number: u64) -> bool {
        let (word, bit) = self.place(number);
        self.words[word] & bit != 0
    }

    /// Put `number` into the set.
    pub fn insert(&mut self, number: u64) {
        let (word, bit) = self.place(number);
        self.words[word] |= bit;
    }

    /// Take `number` out of the set.
    pub fn remove(&mut self, number: u64) {
        let (word, bit) = self.place(number);
        self.words[word] &= !bit;
    }

    /// Take all numbers out of the set.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Put every number of `other`, which has the same bound, into the set.
    pub fn unite(&mut self, other: &Bits) {
        assert_eq!(self.len, other.len, "sets of the same numbers");
        self.unite_words(&other.words);
    }

    /// Put every number of the set that `words` says, as many as there are, into the set.
    pub fn unite_words(&mut self, words: &[u64]) {
        assert_eq!(self.words.len(), words.len(), "sets of the same numbers");
        self.words
            .iter_mut()
            .zip(words)
            .for_each(|(word, other)| *word |= other);
    }

    /// Take every number of `other`, which has the same bound, out of the set.
    pub fn subtract(&mut self, other: &Bits) {
        assert_eq!(self.len, other.len, "sets of the same numbers");
        self.words
            .iter_mut()
            .zip(&other.words)
            .for_each(|(word, other)| *word &= !other);
    }

    /// Take every number that is not in `other`, which has the same bound, out of the set.
    pub fn intersect(&mut self, other: &Bits) {
        assert_eq!(self.len, other.len, "sets of the same numbers");
        self.words
            .iter_mut()
            .zip(&other.words)
            .for_each(|(word, other)| *word &= other);
    }

    /// Put the numbers from `first` to before `end` into the set.
    ///
    /// # Panics
    /// If one of them is not below [`Bits::len`].
    pub fn insert_run(&mut self, first: u64, end: u64) {
        assert!(end <= self.len, "{end} in a set of numbers up to {}", self.len);
        let mut at = first;
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            self.words[(at / 64) as usize] |= (u64::MAX >> (64 - bits)) << (at % 64);
            at += bits;
        }
    }

    /// Become the set that `words` says, as many as there are.
    pub fn assign(&mut self, words: &[u64]) {
        self.words.copy_from_slice(words);
    }

    /// The first number in the set that is not below `from`.
    pub fn next(&self, from: u64) -> Option<u64> {
        let first = (from / 64) as usize;
        let mut mask = u64::MAX << (from % 64);
        for (index, word) in self.words.iter().enumerate().skip(first) {
            if word & mask != 0 {
                return Some(index as u64 * 64 + u64::from((word & mask).trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }

    /// The numbers in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            let mut word = word;
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros();
                word &= word.checked_sub(1)?;
                Some(index as u64 * 64 + u64::from(bit))
            })
        })
    }

    /// Number `n` is bit `n % 64` of word `n / 64`.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    fn place(&self, number: u64) -> (usize, u64) {
        assert!(number < self.len, "{number} in a set of numbers up to {}", self.len);
        ((number / 64) as usize, 1 << (number % 64))
    }
}

fn words(len: u64) -> usize {
    usize::try_from(len.div_ceil(64)).expect("an address space holds the bits of any device")
}

/// The bits of the last word that are below `len`.
const fn last_word(len: u64) -> u64 {
    match len % 64 {
        0 => u64::MAX,
        bits => (1 << bits) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_an_ordinary_set() {
        for len in [0, 1, 63, 64, 65, 128, 1000] {
            let mut state = 0x2545_F491_4F6C_DD1D_u64 + len;
            let mut next = |bound: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % bound
            };
            let mut bits = Bits::none(len);
            let mut oracle = BTreeSet::new();
            for _ in 0..if len == 0 { 1 } else { 300 } {
                if len > 0 {
                    let number = next(len);
                    match next(5) {
                        0 | 1 => {
                            bits.insert(number);
                            oracle.insert(number);
                        }
                        2 => {
                            let end = number + next(len - number + 1);
                            bits.insert_run(number, end);
                            oracle.extend(number..end);
                        }
                        _ => {
                            bits.remove(number);
                            oracle.remove(&number);
                        }
                    }
                    assert_eq!(bits.contains(number), oracle.contains(&number));
                }
                assert!(bits.iter().eq(oracle.iter().copied()), "{len}");
                let from = next(len + 70);
                assert_eq!(bits.next(from), oracle.range(from..).next().copied());
                assert_eq!(bits.count(), oracle.len() as u64);
                assert_eq!(bits.is_empty(), oracle.is_empty());
                assert_eq!(Bits::from_words(len, bits.words().to_vec()), Some(bits.clone()));
            }
            assert!(Bits::all(len).iter().eq(0..len));
        }
    }

    #[test]
    fn words_that_say_too_much_are_refused() {
        assert_eq!(Bits::from_words(65, vec![0, 2]), None);
        assert_eq!(Bits::from_words(65, vec![0]), None);
        assert_eq!(Bits::from_words(64, vec![0, 0]), None);
        assert_eq!(Bits::from_words(0, vec![0]), None);
        assert!(Bits::from_words(65, vec![0, 1]).is_some());
    }
}
