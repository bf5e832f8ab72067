//! What worker threads do for the core: compare and hash bytes, some of them early and some late; and what a digest must find.
//!
//! Verifies: a digest's hashes, and what it knew without, are of the content at the
//! generation it names, and it says rightly where they come from. Bytes are looked at in two moments, so a buffer that is filled again too early shows as a false finding.

use crate::check::{Check, digested};
use crate::disk::Disk;
use crate::oracle::sectors;
use crate::rng::mix;
use crate::token::{SECTOR, Token};
use crate::world::{Happening, World};
use std::collections::BTreeMap;
use twinblk::core::{Action, BlockMask, Buf, Known, LegId, LegOp, Range, WalkId};

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
        digest: bool,
    },
}

#[derive(Default)]
pub struct Walks {
    looking: BTreeMap<u16, Looking>,
    /// By extent: what was hashed last since the digest began, or was known.
    hashed: BTreeMap<u64, Vec<Token>>,
    /// Whether the digest is to know nothing beforehand, and how many extents it hashed and knew.
    reads_back: bool,
    hashes: u64,
    recalled: u64,
    /// Bytes written to the secondary out of copy buffers since the resync that is running began.
    pub copied: u64,
}

impl Walks {
    pub fn is_idle(&self) -> bool {
        self.looking.is_empty()
    }

    pub fn begin_digest(&mut self, reads_back: bool) {
        self.hashed.clear();
        (self.reads_back, self.hashes, self.recalled) = (reads_back, 0, 0);
    }

    /// The table knew this extent, and the digest `wants` to know.
    pub fn recall(&mut self, extent: u64, content: Vec<Token>, wants: bool) {
        self.hashed.insert(extent, content);
        self.recalled += u64::from(wants);
    }
}

/// Two zeroes at the same place were found to be equal: from now on the older are as good as the newer.
pub fn rename_zeroes(disks: &mut [Disk; 2], a: Token, b: Token) {
    let (older, newer) = if a.id() < b.id() { (a, b) } else { (b, a) };
    disks.iter_mut().for_each(|disk| disk.rename_zeroes(older, newer));
}

fn is_early(nonce: u64, index: u64) -> bool {
    mix(nonce ^ index) & 1 == 0
}

impl World {
    fn walk_begin(&mut self, walk: WalkId, looking: Looking) -> Check {
        if self.walks.looking.insert(walk.0, looking).is_some() {
            return Err(format!("{walk:?} is looked at already"));
        }
        let delay = self.around(self.plan.judging_latency.0);
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

    pub fn walk_hash(&mut self, walk: WalkId, range: Range, buf: Buf, digest: bool) -> Check {
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
                digest,
            },
        )
    }

    /// Count what is read for no walk that anybody asked for.
    pub fn count_quiet(&mut self, op: &LegOp) {
        let status = self.mirror.status();
        let asked_for = status.resync.running || status.check.running;
        let layout = &self.plan.config.layout;
        let copies = layout.tags_bytes()..layout.pool_start();
        let is_walk = op.action == Action::Read && copies.contains(&op.buf.offset());
        self.stats.quiet_reads += u64::from(is_walk && !asked_for);
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
                        rename_zeroes(&mut self.disks, left, right);
                    }
                }
            }
            Looking::Hash {
                range,
                buf,
                nonce,
                content,
                ..
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
            Some(Looking::Hash {
                range, content, digest, ..
            }) => {
                let extent = range.start / u64::from(self.plan.config.geometry.extent);
                let signature = self.signatures.sign(&content);
                if digest {
                    self.walks.hashed.insert(extent, content);
                    self.walks.hashes += 1;
                }
                self.mirror.handle_hashed(self.now, WalkId(walk), signature);
            }
        }
        Ok(())
    }

    /// A digest says that it is complete.
    pub fn check_digest(&mut self, generation: u64, leg: LegId, known: Known) -> Check {
        let (hashes, recalled) = (self.walks.hashes, self.walks.recalled);
        let expected = match (recalled, hashes) {
            (_, 0) => Known::Recorded,
            (0, _) => Known::ReadBack,
            (_, _) => Known::Mixed,
        };
        if known != expected || self.walks.reads_back && known != Known::ReadBack {
            return Err(format!(
                "a digest is said to be {known:?}: {hashes} extents were hashed, {recalled} known"
            ));
        }
        self.stats.digests_recorded += u64::from(known == Known::Recorded);
        self.stats.digests_mixed += u64::from(known == Known::Mixed);
        let geometry = self.plan.config.geometry;
        // What the secondary has missed of what is suspect is not copied to it.
        let suspected = match leg == self.mirror.status().primary {
            true => Vec::new(),
            false => self.suspected_now(),
        };
        for extent in 0..geometry.extents() {
            let Some(content) = self.walks.hashed.get(&extent) else {
                return Err(format!("a digest of leg {leg} is complete without extent {extent}"));
            };
            for (sector, token) in sectors(geometry.extent_range(extent)).zip(content) {
                if suspected.get(sector) != Some(&true) {
                    digested(&self.oracle, sector, *token, generation)?;
                }
            }
        }
        self.stats.digests += 1;
        Ok(())
    }
}
