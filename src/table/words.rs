//! Words of bits as they lie on disk: little-endian, so that bit `n` of a set is bit `n % 8` of byte `n / 8`.

/// The bytes of `words`.
pub fn to_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The words in `bytes`, of which there are a multiple of eight.
pub fn from_bytes(bytes: &[u8]) -> Vec<u64> {
    let (words, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "half a word");
    words.iter().map(|word| u64::from_le_bytes(*word)).collect()
}
