//! G, M, F and R against what the disks hold.
//!
//! Verifies after every step: G never falls and stays below every ceiling a start might find; R <= G; while the secondary
//! is in sync (and not given up since) F <= M <= G, none falls, every generation up to M is shown by the secondary and every one up to F is
//! durable there. Each write is looked at once for M and once for F, when the counter passes it. Does not verify that M and F
//! are as high as they could be, but for M = G at rest (`world`).

use crate::check::{Check, write_there};
use crate::disk::Disk;
use crate::oracle::Oracle;
use crate::token::WriteId;
use twinblk::core::{Health, Status};

#[derive(Default)]
pub struct Counters {
    /// Writes by generation, in order of generation.
    numbered: Vec<(u64, WriteId)>,
    last: Option<Last>,
    /// Positions in `numbered` up to which the secondary was looked at.
    mirrored: usize,
    flushed: usize,
}

#[derive(Clone, Copy)]
struct Last {
    era: u64,
    in_sync: bool,
    counts: [u64; 4],
}

impl Counters {
    /// A write of the guest was completed by the primary and counted as `generation`.
    pub fn number(&mut self, generation: u64, id: WriteId) {
        self.numbered.push((generation, id));
    }

    /// Of sectors that are `suspected` nothing is expected of the secondary: nothing is copied there.
    pub fn look(
        &mut self,
        status: &Status,
        lowest_ceiling: u64,
        oracle: &Oracle,
        disks: &[Disk; 2],
        suspected: &[bool],
    ) -> Check {
        let counts = [
            status.source_generation,
            status.writes_mirrored,
            status.flush_request,
            status.writes_flushed,
        ];
        let [source, mirrored, requested, flushed] = counts;
        if source > lowest_ceiling {
            return Err(format!(
                "generation {source} was used above the durable ceiling {lowest_ceiling}"
            ));
        }
        if requested > source {
            return Err(format!("R {requested} is above G {source}"));
        }
        // After a switch that was given up too late the record may name the other leg for a while.
        let secondary = status.primary.other().index();
        let recorded = status.record.legs[secondary].is_some_and(|leg| leg.health == Health::InSync && leg.attached);
        // A leg that was given up may have lost what it had; the counters stand still, whatever the record says yet.
        let in_sync = recorded && status.legs[secondary].is_some_and(|leg| leg.health == Health::InSync);
        let now = Last {
            era: status.record.era,
            in_sync,
            counts,
        };
        let last = self.last.replace(now);
        if let Some(last) = last {
            if counts[0] < last.counts[0] || counts[2] < last.counts[2] {
                return Err(format!("G or R fell: {:?} then {counts:?}", last.counts));
            }
            let same = in_sync && last.in_sync && now.era == last.era;
            if same && (mirrored < last.counts[1] || flushed < last.counts[3]) {
                return Err(format!("M or F fell in one era: {:?} then {counts:?}", last.counts));
            }
        }
        if !in_sync || last.is_some_and(|last| last.era != now.era) {
            (self.mirrored, self.flushed) = (0, 0);
        }
        if !in_sync {
            return Ok(());
        }
        if flushed > mirrored || mirrored > source {
            return Err(format!("not F <= M <= G: G M R F are {counts:?}"));
        }
        let disk = &disks[secondary];
        while let Some((_, id)) = self
            .numbered
            .get(self.mirrored)
            .filter(|(number, _)| *number <= mirrored)
        {
            write_there(oracle, disk, disk.live(), *id, suspected)
                .map_err(|what| format!("M is {mirrored}, but {what}"))?;
            self.mirrored += 1;
        }
        while let Some((_, id)) = self.numbered.get(self.flushed).filter(|(number, _)| *number <= flushed) {
            write_there(oracle, disk, disk.durable(), *id, suspected)
                .map_err(|what| format!("F is {flushed}, but {what}"))?;
            self.flushed += 1;
        }
        Ok(())
    }
}
