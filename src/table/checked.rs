//! From bytes that anybody may have written to bytes that are ours and whole.
//!
//! Every table begins with a magic number, a format version and its own size, and ends with a checksum over all bytes
//! before it: BLAKE3 in key-derivation mode with a context of its own for each kind of table, so that no table is ever
//! taken for another. Every later format version keeps these four fields where they are, so that "newer" is a verified
//! statement and not a flipped bit.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | format version |
//! | 12 | 4 | size of the table in bytes, all of this |
//! | 16 | … | content |
//! | size − 32 | 32 | BLAKE3 derive-key hash of everything before |
//!
//! A table that is one of many of its kind, and too full to name its device, is sealed for an owner: that is hashed behind
//! the content, without being stored.
//!
//! The only way to a [`Verified`] is [`Unverified::verify`], or [`Unverified::verify_of`]. What the content means, and whether its values make sense,
//! is for the table's own module to say.

/// Bytes before the content.
pub const HEADER: usize = 16;
/// Bytes behind the content.
pub const CHECKSUM: usize = 32;

/// What distinguishes one kind of table from all others.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// First bytes of the table.
    pub magic: [u8; 8],
    /// Context of the checksum; never used for anything else.
    pub context: &'static str,
    /// The only format version that this program reads and writes.
    pub version: u32,
    /// Size of the table in bytes.
    pub bytes: usize,
}

/// Why bytes are not a table of the kind that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// There are fewer bytes than the table has.
    #[error("it is truncated")]
    Truncated,
    /// Nothing was ever written here.
    #[error("it is empty")]
    Empty,
    /// The magic number is not ours.
    #[error("it is not a twinblk file of this kind")]
    Foreign,
    /// The checksum does not fit: torn, or changed by something else.
    #[error("its checksum does not fit: it is torn or damaged")]
    Damaged,
    /// It is whole, and written by a program that knows a later format.
    #[error(
        "it has format version {0}, which this program does not know: use the program that wrote it, or a later one"
    )]
    Newer(u32),
    /// It is whole, and its values make no sense: a fault of the program that wrote it.
    #[error("it is intact but makes no sense: {0}")]
    Malformed(&'static str),
}

/// Bytes that nobody has looked at.
#[derive(Clone, Copy)]
pub struct Unverified<'a>(&'a [u8]);

/// A whole table of one kind and version, and nothing behind it.
#[derive(Clone, Copy)]
pub struct Verified<'a>(&'a [u8]);

impl<'a> Unverified<'a> {
    /// Bytes as they were read; they may be longer than the table.
    pub const fn new(bytes: &'a [u8]) -> Unverified<'a> {
        Unverified(bytes)
    }

    /// Check everything that can be checked without knowing what the content means.
    ///
    /// # Errors
    /// Says what is wrong. `Newer` is only said of intact bytes.
    pub fn verify(self, kind: &Kind) -> Result<Verified<'a>, Flaw> {
        self.verify_of(kind, &[])
    }

    /// As [`Unverified::verify`], for what was sealed for an owner. That of another owner is damaged.
    ///
    /// # Errors
    /// As there.
    pub fn verify_of(self, kind: &Kind, owner: &[u8]) -> Result<Verified<'a>, Flaw> {
        let bytes = self.0.get(..kind.bytes).ok_or(Flaw::Truncated)?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(Flaw::Empty);
        }
        if bytes[..8] != kind.magic {
            return Err(Flaw::Foreign);
        }
        // The checksum comes before the version: a flipped bit in the version must not be taken for a later format.
        let (content, sum) = bytes.split_at(kind.bytes - CHECKSUM);
        if checksum(kind, content, owner) != sum {
            return Err(Flaw::Damaged);
        }
        let table = Verified(bytes);
        match table.u32(8) {
            version if version > kind.version => return Err(Flaw::Newer(version)),
            version if version < kind.version => return Err(Flaw::Malformed("a format version that never was")),
            _ => {}
        }
        if table.u32(12) as usize != kind.bytes {
            return Err(Flaw::Malformed("its size field"));
        }
        Ok(table)
    }
}

impl<'a> Verified<'a> {
    /// The `len` bytes at `offset`. As all readers here, panics outside the table: offsets are constants.
    pub fn bytes(self, offset: usize, len: usize) -> &'a [u8] {
        &self.0[offset..offset + len]
    }

    fn array<const N: usize>(self, offset: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(offset, N));
        array
    }

    /// A byte.
    pub fn u8(self, offset: usize) -> u8 {
        self.0[offset]
    }

    /// A little-endian number of two bytes.
    pub fn u16(self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    /// A little-endian number of four bytes.
    pub fn u32(self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    /// A little-endian number of eight bytes.
    pub fn u64(self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }

    /// Sixteen bytes as they are.
    pub fn u128_bytes(self, offset: usize) -> [u8; 16] {
        self.array(offset)
    }

    /// A byte that is 0 or 1.
    ///
    /// # Errors
    /// Any other value is malformed.
    pub fn bool(self, offset: usize) -> Result<bool, Flaw> {
        match self.u8(offset) {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Flaw::Malformed("a flag that is neither 0 nor 1")),
        }
    }

    /// Check that `len` reserved bytes at `offset` are zero.
    ///
    /// # Errors
    /// Anything else is malformed: only a later format version may use them.
    pub fn zero(self, offset: usize, len: usize) -> Result<(), Flaw> {
        if self.bytes(offset, len).iter().all(|&byte| byte == 0) {
            Ok(())
        } else {
            Err(Flaw::Malformed("reserved bytes are in use"))
        }
    }
}

/// A table being written: zero but for what is put in.
pub struct Draft {
    bytes: Vec<u8>,
    kind: Kind,
}

impl Draft {
    /// An empty table of this kind.
    pub fn new(kind: &Kind) -> Draft {
        Draft {
            bytes: vec![0; kind.bytes],
            kind: *kind,
        }
    }

    /// Put bytes at `offset`. Panics outside the content: offsets are constants.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        assert!(
            offset >= HEADER && offset + bytes.len() <= self.kind.bytes - CHECKSUM,
            "outside the content of a table"
        );
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Add header and checksum.
    pub fn seal(self) -> Vec<u8> {
        self.seal_of(&[])
    }

    /// Add header and checksum, for an owner.
    pub fn seal_of(mut self, owner: &[u8]) -> Vec<u8> {
        self.bytes[..8].copy_from_slice(&self.kind.magic);
        self.bytes[8..12].copy_from_slice(&self.kind.version.to_le_bytes());
        self.bytes[12..16].copy_from_slice(&u32::try_from(self.kind.bytes).expect("tables are small").to_le_bytes());
        let (content, sum) = self.bytes.split_at_mut(self.kind.bytes - CHECKSUM);
        sum.copy_from_slice(&checksum(&self.kind, content, owner));
        self.bytes
    }
}

/// The content has one length for each kind, so where the owner begins is no question.
fn checksum(kind: &Kind, content: &[u8], owner: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new_derive_key(kind.context);
    hasher.update(content).update(owner);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind {
        magic: *b"twinblk?",
        context: "twinblk test table v1",
        version: 3,
        bytes: 64,
    };

    fn sealed(kind: &Kind) -> Vec<u8> {
        let mut draft = Draft::new(kind);
        draft.put(16, &[7; 16]);
        draft.seal()
    }

    fn flaw(bytes: &[u8], kind: &Kind) -> Option<Flaw> {
        Unverified::new(bytes).verify(kind).err()
    }

    #[test]
    fn what_was_sealed_verifies_and_bytes_behind_it_do_not_matter() {
        let mut bytes = sealed(&KIND);
        assert_eq!(flaw(&bytes, &KIND), None);
        bytes.extend([9; 100]);
        assert_eq!(flaw(&bytes, &KIND), None);
    }

    #[test]
    fn every_single_flipped_bit_is_found() {
        let bytes = sealed(&KIND);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit < 64 { Flaw::Foreign } else { Flaw::Damaged };
            assert_eq!(flaw(&bytes, &KIND), Some(expected), "bit {bit}");
        }
    }

    #[test]
    fn a_table_is_never_taken_for_one_of_another_kind() {
        let bytes = sealed(&KIND);
        let other_context = Kind {
            context: "twinblk other test table v1",
            ..KIND
        };
        assert_eq!(flaw(&bytes, &other_context), Some(Flaw::Damaged));
        let other_size = Kind { bytes: 56, ..KIND };
        assert_eq!(flaw(&bytes, &other_size), Some(Flaw::Damaged));
    }

    #[test]
    fn a_table_of_another_owner_is_damaged() {
        let mut draft = Draft::new(&KIND);
        draft.put(16, &[7; 16]);
        let bytes = draft.seal_of(b"one");
        let of = |owner: &[u8]| Unverified::new(&bytes).verify_of(&KIND, owner).err();
        assert_eq!(of(b"one"), None);
        assert_eq!(of(b"two"), Some(Flaw::Damaged));
        assert_eq!(of(b""), Some(Flaw::Damaged));
        assert_eq!(
            Unverified::new(&sealed(&KIND)).verify_of(&KIND, b"one").err(),
            Some(Flaw::Damaged)
        );
    }

    #[test]
    fn a_later_version_is_named_only_when_it_is_intact() {
        let mut bytes = sealed(&Kind { version: 4, ..KIND });
        assert_eq!(flaw(&bytes, &KIND), Some(Flaw::Newer(4)));
        bytes[20] ^= 1;
        assert_eq!(flaw(&bytes, &KIND), Some(Flaw::Damaged));
    }

    #[test]
    fn nothing_and_too_little_are_told_apart_from_damage() {
        assert_eq!(flaw(&[0; 64], &KIND), Some(Flaw::Empty));
        assert_eq!(flaw(&sealed(&KIND)[..63], &KIND), Some(Flaw::Truncated));
        assert_eq!(flaw(&[], &KIND), Some(Flaw::Truncated));
    }
}
