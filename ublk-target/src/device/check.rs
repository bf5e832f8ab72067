//! Reading the legs to compare or to hash them.

use super::{Device, Tell, lost};
use std::sync::Arc;
use twinblk::control::message::MAX_DIFFERENCES;
use twinblk::control::{Difference, Digest, Digested, Error, Known, Progress, Reply, Verified, Verify};
use twinblk::core::time::Span;
use twinblk::core::{self, Event, Repair, Suspect};
use twinblk::runtime::bulletin::Differences;
use twinblk::runtime::digest::DigestTable;

/// How long writes may be held for the rest of a digest, unless said otherwise.
const PAUSE_MS: u64 = 10;

impl Device {
    pub(super) fn verify(&self, verify: &Verify, tell: Tell<'_>) -> Result<Reply, Error> {
        let bulletin = Arc::clone(&self.bulletin);
        let repair = match (&verify.repair_from, verify.repair) {
            (Some(leg), _) => Repair::From(self.leg_named(leg)?),
            (None, true) => Repair::Proven,
            (None, false) => Repair::No,
        };
        let begun = self.begin(move |mirror, now| {
            mirror.verify(now, repair)?;
            bulletin.change(|board| board.differences = Differences::default());
            Ok(())
        })?;
        let mut told = 0;
        let mut listened = true;
        let ended = {
            let mut tell_all = |progress: &Progress| {
                // All but the last, which may still grow.
                let ranges = self.differences(told, 1);
                told += ranges.len();
                let mut all = ranges.iter().map(|range| Progress::Difference(difference(*range)));
                listened = all.all(|event| tell(&event).is_continue()) && tell(progress).is_continue();
                if listened {
                    std::ops::ControlFlow::Continue(())
                } else {
                    std::ops::ControlFlow::Break(())
                }
            };
            self.outcome(&mut tell_all, |board| {
                board.verified.filter(|(number, _)| *number > begun)
            })?
        };
        let Some((
            _,
            Event::Verified {
                bytes_compared,
                complete,
                repaired,
            },
        )) = ended
        else {
            self.give_up_check();
            return Err(lost("verify"));
        };
        for range in self.differences(told, 0) {
            if listened {
                listened = tell(&Progress::Difference(difference(range))).is_continue();
            }
        }
        if !complete {
            return Err(Error::failed("not everything could be compared, or mended")
                .hint("see twinblk status for the legs' health, and the log"));
        }
        let left = self.call(|desk| desk.mirror.suspects().len())?;
        let board = self.bulletin.board();
        let found = &board.differences;
        Ok(Reply::Verified(Verified {
            equal: left == 0,
            bytes_compared,
            differences: found
                .ranges
                .iter()
                .take(MAX_DIFFERENCES)
                .copied()
                .map(difference)
                .collect(),
            difference_count: found.count,
            repaired_bytes: repaired,
        }))
    }

    /// The differences found, from the `from`th on, but the last `keep` of all.
    fn differences(&self, from: usize, keep: usize) -> Vec<Suspect> {
        let board = self.bulletin.board();
        let ranges = &board.differences.ranges;
        ranges
            .get(from..ranges.len().saturating_sub(keep))
            .unwrap_or_default()
            .to_vec()
    }

    pub(super) fn digest(&self, digest: &Digest, tell: Tell<'_>) -> Result<Reply, Error> {
        let named = digest.leg.as_ref().map(|name| self.leg_named(name)).transpose()?;
        let pause = Span::from_millis(digest.max_pause_ms.unwrap_or(PAUSE_MS));
        let table = Arc::new(DigestTable::new(self.constants.geometry));
        let filled = Arc::clone(&table);
        let read_back = digest.read_back;
        let begun = self.call(move |desk| {
            let leg = named.unwrap_or(desk.mirror.status().primary);
            let newest = desk.newest();
            desk.mirror.digest(desk.now, leg, pause, read_back)?;
            desk.set_digest(Some(filled));
            Ok::<_, twinblk::core::Refusal>(newest)
        })??;
        let ended = self.outcome(tell, |board| board.digested.filter(|(number, _)| *number > begun))?;
        match ended {
            Some((
                _,
                Event::Digested {
                    generation,
                    leg,
                    complete: true,
                    known,
                },
            )) => {
                let root = table.root().ok_or_else(|| Error::failed("an extent was not hashed"))?;
                let blake3 = root.to_hex().to_string();
                Ok(Reply::Digested(Digested {
                    blake3,
                    leg,
                    generation,
                    known: match known {
                        core::Known::Recorded => Known::Recorded,
                        core::Known::ReadBack => Known::ReadBack,
                        core::Known::Mixed => Known::Mixed,
                    },
                }))
            }
            Some((_, Event::Digested { complete: false, .. })) => {
                let pause = pause.0 / 1_000_000;
                let why = format!("the device was written faster than it could be hashed within a pause of {pause} ms");
                Err(Error::timed_out(why).hint("allow a longer one with --max-pause, or wait for less load"))
            }
            _ => {
                self.give_up_check();
                Err(lost("digest"))
            }
        }
    }

    /// Nobody waits for it any more. That the device may have ended is no matter then.
    fn give_up_check(&self) {
        let _ = self.call(|desk| desk.mirror.cancel_check(desk.now));
    }
}

fn difference(suspect: Suspect) -> Difference {
    Difference {
        offset: suspect.range.start,
        length: suspect.range.len,
        wrong_leg: suspect.wrong,
    }
}
