//! A simulated disk: what it shows, what would survive a power cut, and the cache between the two.
//!
//! A write is visible from the moment its sectors were taken from memory and durable after a flush that was *issued* after
//! its completion, or at its own completion with FUA. Everything else in the cache is lost or kept block by block, as
//! chance has it. A failed flush may drop what it should have made durable, and a later flush that succeeds does not
//! bring it back (what Linux does to dirty pages).

use crate::rng::{Rng, mix};
use crate::token::{Token, WriteId};

/// One sector in the cache.
#[derive(Clone)]
struct Cached {
    sector: u32,
    token: Token,
    /// Order in which the disk took sectors.
    taken: u64,
    /// Which write it came with, as an index of [`Disk::completed`].
    write: u32,
}

/// What becomes of the cache when a flush fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushLoss {
    /// Nothing: a later flush may succeed.
    Kept,
    /// It is still shown but never becomes durable.
    Shown,
    /// The disk shows what was durable before.
    Reverted,
}

#[derive(Clone)]
pub struct Disk {
    live: Vec<Token>,
    durable: Vec<Token>,
    /// When the sector that is durable was taken: an older one in the cache is superseded.
    durable_taken: Vec<u64>,
    /// Shown, but lost to durability by a failed flush.
    lost: Vec<bool>,
    /// Nothing may be expected of it while it is the primary: the guest was told of the flush that lost it.
    forgiven: Vec<bool>,
    /// Of a sector that has rotted: the newest write that it may have shown before.
    before: Vec<WriteId>,
    /// What it shows went back to what was durable: only what was flushed may be expected.
    reverted: Vec<bool>,
    cache: Vec<Cached>,
    /// By write: when it completed, `u64::MAX` before.
    completed: Vec<u64>,
    clock: u64,
    /// Sectors of a logical block: the unit in which a write tears.
    block: u64,
}

impl Disk {
    pub fn new(content: Vec<Token>, block: u64) -> Disk {
        let sectors = content.len();
        Disk {
            durable: content.clone(),
            live: content,
            durable_taken: vec![0; sectors],
            lost: vec![false; sectors],
            forgiven: vec![false; sectors],
            before: vec![0; sectors],
            reverted: vec![false; sectors],
            cache: Vec::new(),
            completed: Vec::new(),
            clock: 1,
            block,
        }
    }

    pub fn live(&self) -> &[Token] {
        &self.live
    }

    pub fn durable(&self) -> &[Token] {
        &self.durable
    }

    /// Whether nothing may be expected of the sector: a flush of it failed and the guest was told.
    pub fn is_forgiven(&self, sector: usize) -> bool {
        self.forgiven[sector]
    }

    /// Whether the sector is shown and will not become durable: a flush of it failed.
    pub fn is_lost(&self, sector: usize) -> bool {
        self.lost[sector]
    }

    /// It was the primary. What the guest was told of it does not matter any more.
    pub fn expect_again(&mut self) {
        self.forgiven.fill(false);
    }

    pub fn begin_write(&mut self) -> u32 {
        self.completed.push(u64::MAX);
        (self.completed.len() - 1) as u32
    }

    /// Take one sector of a write from memory.
    pub fn take(&mut self, write: u32, sector: usize, token: Token) {
        self.clock += 1;
        if token.is_rotten() {
            // A copy of what has rotted elsewhere, which came after whatever was there before.
            self.before[sector] = token.rotted_at();
        }
        self.live[sector] = token;
        self.lost[sector] = false;
        self.reverted[sector] = false;
        self.cache.push(Cached {
            sector: sector as u32,
            token,
            taken: self.clock,
            write,
        });
    }

    pub fn complete_write(&mut self, write: u32, durably: bool) {
        self.clock += 1;
        self.completed[write as usize] = self.clock;
        if durably {
            self.persist(|cached, _| cached.write == write);
        } else if self.cache.len() > 1 << 14 {
            // A real cache is bounded too: what is oldest goes to the medium.
            let limit = self.cache[1 << 13].taken;
            self.persist(|cached, _| cached.taken < limit);
        }
    }

    /// When the flush was issued, for [`Disk::complete_flush`].
    pub fn begin_flush(&self) -> u64 {
        self.clock
    }

    pub fn complete_flush(&mut self, issued: u64) {
        self.persist(|cached, completed| completed[cached.write as usize] <= issued);
    }

    /// A flush failed. With `told` the guest learns of it and can expect nothing of what was lost.
    pub fn fail_flush(&mut self, issued: u64, loss: FlushLoss, told: bool) {
        if loss == FlushLoss::Kept {
            return;
        }
        let completed = &self.completed;
        let (dropped, kept) = std::mem::take(&mut self.cache)
            .into_iter()
            .partition(|cached| completed[cached.write as usize] <= issued);
        self.cache = kept;
        let dropped: Vec<Cached> = dropped;
        for cached in dropped {
            let sector = cached.sector as usize;
            if told {
                self.forgiven[sector] = true;
            }
            // Where a newer write is in the cache already, that one is shown and will become durable.
            if self.live[sector] != cached.token {
                continue;
            }
            self.lost[sector] = true;
            if loss == FlushLoss::Reverted {
                self.revert(sector);
            }
        }
    }

    fn persist(&mut self, mut which: impl FnMut(&Cached, &[u64]) -> bool) {
        let (durable, durable_taken, completed) = (&mut self.durable, &mut self.durable_taken, &self.completed);
        let forgiven = &mut self.forgiven;
        self.cache.retain(|cached| {
            if !which(cached, completed) {
                return true;
            }
            let sector = cached.sector as usize;
            if durable_taken[sector] < cached.taken {
                durable_taken[sector] = cached.taken;
                durable[sector] = cached.token;
                forgiven[sector] = false;
            }
            false
        });
    }

    /// The power fails: of each cached write all, nothing, or any of its blocks survive.
    pub fn cut(&mut self, rng: &mut Rng) {
        let (nonce, block) = (rng.next(), self.block);
        // Now and then nothing at all of the cache survives, or everything.
        let bias = rng.pick(&[0, 1, 2, 2, 2, 2, 2, 3]);
        self.persist(|cached, _| {
            let write = mix(nonce ^ u64::from(cached.write));
            let torn = mix(write ^ (u64::from(cached.sector) / block)) & 1 == 0;
            match bias {
                0 => false,
                1 => true,
                2 => write.is_multiple_of(4) || write % 4 == 1 && torn,
                _ => !write.is_multiple_of(4) || torn,
            }
        });
        self.settle(false);
    }

    /// The daemon dies but the disk does not, and everything in flight has ended: what it shows it keeps, apart from
    /// what a failed flush has lost. Returns whether anything was lost of which only the guest was told, when the disk
    /// was the primary: nobody can vouch for such a disk. If it `pretends`, it goes on to show out of its own cache what it has lost.
    pub fn reopen(&mut self, pretends: bool) -> bool {
        let mut unknown = false;
        self.clock += 1;
        for completed in &mut self.completed {
            *completed = (*completed).min(self.clock);
        }
        for sector in 0..self.live.len() {
            if self.lost[sector] {
                unknown |= self.forgiven[sector];
                if !pretends {
                    self.revert(sector);
                }
            }
        }
        unknown
    }

    fn revert(&mut self, sector: usize) {
        self.live[sector] = self.durable[sector];
        self.lost[sector] = false;
        self.reverted[sector] = true;
    }

    pub fn is_reverted(&self, sector: usize) -> bool {
        self.reverted[sector]
    }

    /// Everything shown is durable, or the other way round.
    fn settle(&mut self, shown: bool) {
        if shown {
            self.durable.clone_from(&self.live);
        } else {
            self.live.clone_from(&self.durable);
        }
        self.cache.clear();
        self.completed.clear();
        self.lost.fill(false);
        self.reverted.fill(false);
    }

    /// A new life begins: where there is only one content left, it is what may be expected.
    pub fn begin_anew(&mut self) {
        for sector in 0..self.live.len() {
            self.forgiven[sector] &= self.live[sector] != self.durable[sector];
            self.reverted[sector] = false;
        }
    }

    /// Somebody else writes the whole disk.
    pub fn replace(&mut self, content: impl Iterator<Item = Token>) {
        self.live.clear();
        self.live.extend(content);
        self.settle(true);
    }

    /// Zeroes at `token`'s place were compared and found to be as good as newer ones: from now on they count as those.
    pub fn rename_zeroes(&mut self, token: Token, newer: Token) {
        let sector = token.sector() as usize;
        if self.live[sector] != token {
            return;
        }
        self.live[sector] = newer;
        if self.durable[sector] == token {
            self.durable[sector] = newer;
        }
        for cached in &mut self.cache {
            if cached.token == token {
                cached.token = newer;
            }
        }
    }

    /// The newest write that the sector shows, or has shown before it rotted.
    pub fn newest(&self, sector: usize) -> WriteId {
        match self.live[sector] {
            rotten if rotten.is_rotten() => self.before[sector],
            token => token.id(),
        }
    }

    /// A sector changes by itself, without anybody being told.
    pub fn corrupt(&mut self, sector: usize, token: Token) {
        self.before[sector] = self.newest(sector);
        self.live[sector] = token;
        self.durable[sector] = token;
        self.lost[sector] = false;
        self.reverted[sector] = false;
        self.cache.retain(|cached| cached.sector as usize != sector);
    }
}
