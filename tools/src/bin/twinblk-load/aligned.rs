//! Memory that direct I/O takes, without `unsafe`: a larger vector, used from its first aligned byte on.

/// What every disk that twinblk serves is content with.
const ALIGNMENT: usize = 4096;

/// A buffer of fixed size whose address is aligned.
pub struct Aligned {
    bytes: Vec<u8>,
    begin: usize,
    length: usize,
}

impl Aligned {
    /// Zeroes.
    pub fn new(length: usize) -> Aligned {
        let bytes = vec![0; length + ALIGNMENT];
        let begin = bytes.as_ptr().align_offset(ALIGNMENT);
        assert!(begin < ALIGNMENT, "bytes can always be aligned");
        Aligned { bytes, begin, length }
    }

    /// The first `length` bytes.
    pub fn first(&mut self, length: usize) -> &mut [u8] {
        assert!(length <= self.length, "longer than the buffer");
        &mut self.bytes[self.begin..self.begin + length]
    }
}
