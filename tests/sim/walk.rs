//! What worker threads do for the core: compare and hash bytes, some of them early and some late; and what a verify and
//! a digest must find.
//!
//! Verifies: a verify reports each 4 KiB that differs and nothing else; a digest's hashes are of the content at the generation it
//! names. Bytes are looked at in two moments, so a buffer that is filled again too early shows as a false finding.

use crate::check::{Check, digested};
use crate::oracle::sectors;
use crate::rng::mix;
use crate::token::{SECTOR, Token};
use crate::world::{Happening, World};
use std::collections::BTreeMap;
use twinblk::core::{BlockMask, Buf, LegId, Range, WalkId};

enum Looking {
    Compare {
        left: Buf,
        right: Buf,
        len: u64,
        nonce: u64,
        early: Option<BlockMask>,
    },
    Hash {
        range: Range,
        buf: Buf,
        nonce: u64,
        content: Vec<Token>,
    },
}

#[derive(Default)]
pub struct Walks {
    looking: BTreeMap<u16, Looking>,
    /// By extent: what was hashed last since the digest began.
    hashed: BTreeMap<u64, Vec<Token>>,
    pub differences: Vec<Range>,
    /// Bytes written to the secondary out of copy buffers since the resync that is running began.
    pub copied: u64,
}

impl Walks {
    pub fn is_idle(&self) -> bool {
        self.looking.is_empty()
    }

    pub fn forget_hashes(&mut self) {
        self.hashed.clear();
    }
}

fn is_early(nonce: u64, index: u64) -> bool {
    mix(nonce ^ index) & 1 == 0
}

impl World {
    fn walk_begin(&mut self, walk: WalkId, looking: Looking) -> Check {
        if self.walks.looking.insert(walk.0, looking).is_some() {
            return Err(format!("{walk:?} is looked at already"));
        }
        let delay = self.around(30_000);
        let early = self.rng.below(delay + 1);
        self.at(early, Happening::WalkEarly { walk: walk.0 });
        self.at(delay, Happening::WalkDone { walk: walk.0 });
        Ok(())
    }

    pub fn walk_compare(&mut self, walk: WalkId, left: Buf, right: Buf, len: u32) -> Check {
        let nonce = self.rng.next();
        self.trace(|| format!("  compare {walk:?} {left:?} {right:?} {len}"));
        let len = u64::from(len);
        if len > BlockMask::SPAN {
            return Err("a compare of more than a mask covers".into());
        }
        self.walk_begin(
            walk,
            Looking::Compare {
                left,
                right,
                len,
                nonce,
                early: None,
            },
        )
    }

    pub fn walk_hash(&mut self, walk: WalkId, range: Range, buf: Buf) -> Check {
        let nonce = self.rng.next();
        self.trace(|| format!("  hash {walk:?} {range:?} {buf:?}"));
        let geometry = &self.plan.config.geometry;
        if geometry.extent_range(range.start / u64::from(geometry.extent)) != range {
            return Err(format!("a hash of {range:?}, which is no extent"));
        }
        let content = vec![Token::POISON; (range.len / SECTOR) as usize];
        self.walk_begin(
            walk,
            Looking::Hash {
                range,
                buf,
                nonce,
                content,
            },
        )
    }

    /// Look at the early half, or at the late one.
    pub fn walk_look(&mut self, walk: u16, early: bool) -> Check {
        let Some(looking) = self.walks.looking.get_mut(&walk) else {
            return Ok(());
        };
        match looking {
            Looking::Compare {
                left,
                right,
                len,
                nonce,
                early: seen,
            } => {
                let (left, right) = (self.arena.check(*left, *len)?, self.arena.check(*right, *len)?);
                let mask = seen.get_or_insert_default();
                for (index, (left, right)) in left.zip(right).enumerate() {
                    let block = index as u64 * SECTOR / BlockMask::BLOCK;
                    if is_early(*nonce, block) != early {
                        continue;
                    }
                    let (left, right) = (self.arena.read(left), self.arena.read(right));
                    if !left.same_bytes(right) {
                        mask.insert(block as usize);
                    } else if left != right {
                        let (older, newer) = if left.id() < right.id() {
                            (left, right)
                        } else {
                            (right, left)
                        };
                        self.disks.iter_mut().for_each(|disk| disk.rename_zeroes(older, newer));
                    }
                }
            }
            Looking::Hash {
                range,
                buf,
                nonce,
                content,
            } => {
                let span = self.arena.check(*buf, range.len)?;
                for (index, place) in span.enumerate() {
                    if is_early(*nonce, index as u64) == early {
                        content[index] = self.arena.read(place);
                    }
                }
            }
        }
        Ok(())
    }

    pub fn walk_done(&mut self, walk: u16) -> Check {
        self.walk_look(walk, false)?;
        match self.walks.looking.remove(&walk) {
            None => {}
            Some(Looking::Compare { early, .. }) => {
                let mask = early.expect("it was looked at");
                self.mirror.handle_compared(self.now, WalkId(walk), mask);
            }
            Some(Looking::Hash { range, content, .. }) => {
                let extent = range.start / u64::from(self.plan.config.geometry.extent);
                self.walks.hashed.insert(extent, content);
                self.mirror.handle_hashed(self.now, WalkId(walk));
            }
        }
        Ok(())
    }

    /// A digest says that it is complete.
    pub fn check_digest(&mut self, generation: u64, leg: LegId) -> Check {
        let geometry = self.plan.config.geometry;
        for extent in 0..geometry.extents() {
            let Some(content) = self.walks.hashed.get(&extent) else {
                return Err(format!("a digest of leg {leg} is complete without extent {extent}"));
            };
            for (sector, token) in sectors(geometry.extent_range(extent)).zip(content) {
                if !self.admin.is_corrupt(sector) {
                    digested(&self.oracle, sector, *token, generation)?;
                }
            }
        }
        self.stats.digests += 1;
        Ok(())
    }

    /// A verify has walked the whole device while the legs stayed in sync.
    pub fn check_verify(&mut self) -> Check {
        let differs = |sector: usize| !self.disks[0].live()[sector].same_bytes(self.disks[1].live()[sector]);
        for sector in self.admin.corrupt_sectors() {
            let at = sector as u64 * SECTOR;
            let reported = self
                .walks
                .differences
                .iter()
                .any(|range| range.contains(Range::new(at, SECTOR)));
            if differs(sector) && !reported {
                return Err(format!("a verify did not report sector {sector}, which differs"));
            }
        }
        for range in &self.walks.differences {
            for block in range.start / BlockMask::BLOCK..range.end().div_ceil(BlockMask::BLOCK) {
                let of_block = Range::new(block * BlockMask::BLOCK, BlockMask::BLOCK);
                if !self.admin.corrupted_overlaps(of_block) {
                    return Err(format!(
                        "a verify reported {range:?}, where block {block} was never different"
                    ));
                }
            }
        }
        self.stats.verifies += 1;
        self.stats.differences += self.walks.differences.len() as u64;
        Ok(())
    }
}
