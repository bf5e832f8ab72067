//! What tables are kept on: blocks that are read one by one, written in place, and made durable all together.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are read at a time: those of a table.
pub(super) const BLOCK: usize = 4096;

/// Something to keep tables on.
pub(super) trait Medium {
    /// Read the block at `offset`; fewer bytes when the medium is shorter.
    fn read(&self, offset: u64) -> io::Result<Vec<u8>>;
    /// Write all of `bytes` at `offset`.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Make durable what was written.
    fn sync(&mut self) -> io::Result<()>;
}

impl Medium for File {
    fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; BLOCK];
        let mut done = 0;
        while done < BLOCK {
            match self.read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(got) => done += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// A disk behind a page cache, that fails as a seed says.
#[cfg(test)]
pub(super) mod model {
    use super::{BLOCK, Medium};
    use std::io;

    /// What a disk writes whole.
    const SECTOR: usize = 512;

    /// A generator for tests: SplitMix64.
    #[derive(Clone, Debug)]
    pub struct Random(pub u64);

    impl Random {
        pub fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % bound
        }
    }

    /// The end of the world that a call can be.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum End {
        /// The call fails, and those after it do not.
        Error,
        /// The call fails, and so do all after it: the process is about to be dead.
        Death,
    }

    #[derive(Clone, Debug)]
    pub struct Model {
        cache: Vec<u8>,
        disk: Vec<u8>,
        /// Sectors written since they were last taken for durable.
        dirty: std::collections::BTreeSet<usize>,
        random: Random,
        /// After so many calls that change something comes the end.
        pub end: Option<(u64, End)>,
        dead: bool,
    }

    impl Model {
        pub fn new(bytes: usize, seed: u64) -> Model {
            Model {
                cache: vec![0; bytes],
                disk: vec![0; bytes],
                dirty: std::collections::BTreeSet::new(),
                random: Random(seed),
                end: None,
                dead: false,
            }
        }

        /// The process died; the system lives.
        pub fn killed(self) -> Model {
            Model {
                end: None,
                dead: false,
                ..self
            }
        }

        /// The power failed: of what was not durable, some sectors are.
        pub fn cut(mut self) -> Model {
            self.land_some();
            self.cache.clone_from(&self.disk);
            self.dirty.clear();
            self.killed()
        }

        /// What is durable has rotted.
        pub fn damage(&mut self, at: usize) {
            self.cache[at] ^= 1;
            self.disk[at] ^= 1;
        }

        fn land(&mut self, sector: usize) {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            self.disk[range.clone()].copy_from_slice(&self.cache[range]);
        }

        fn land_some(&mut self) {
            for sector in self.dirty.clone() {
                if self.random.below(2) == 0 {
                    self.land(sector);
                }
            }
        }

        fn is_the_end(&mut self) -> bool {
            let is_end = match &mut self.end {
                Some((0, end)) => {
                    self.dead = *end == End::Death;
                    self.end = None;
                    true
                }
                Some((calls, _)) => {
                    *calls -= 1;
                    false
                }
                None => false,
            };
            is_end || self.dead
        }
    }

    impl Medium for Model {
        fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
            let start = (offset as usize).min(self.cache.len());
            Ok(self.cache[start..(start + BLOCK).min(self.cache.len())].to_vec())
        }

        fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            let was_dead = self.dead;
            let is_end = self.is_the_end();
            let len = match is_end {
                _ if was_dead => 0,
                true => self.random.below(bytes.len() as u64 / 512 + 1) as usize * SECTOR,
                false => bytes.len(),
            };
            let start = offset as usize;
            self.cache[start..start + len].copy_from_slice(&bytes[..len]);
            self.dirty.extend(start / SECTOR..(start + len).div_ceil(SECTOR));
            if is_end {
                return Err(io::Error::from_raw_os_error(5));
            }
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            let was_dead = self.dead;
            if self.is_the_end() {
                if !was_dead {
                    // Some of it reached the disk, and the pages are clean.
                    self.land_some();
                    self.dirty.clear();
                }
                return Err(io::Error::from_raw_os_error(5));
            }
            for sector in std::mem::take(&mut self.dirty) {
                self.land(sector);
            }
            Ok(())
        }
    }
}
