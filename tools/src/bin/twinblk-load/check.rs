//! `check`: whether a disk may look as it does.
//!
//! Two passes over what the writers did. The first finds what must be durable: what the journal says, what any block on the
//! disk says was durable before it was submitted, and what its writer had made durable before it went on to the newest
//! write that can be seen (a writer does one thing after the other). The second computes, block by block, the last write
//! that must be there.

use crate::aligned::Aligned;
use crate::block::{self, Known, MAX_WRITERS, PerWriter, Seen, Stamp};
use crate::journal::Journal;
use crate::plan::{MAX_BYTES, Op, Params, Plan};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// How many findings are told in full.
const TOLD: usize = 10;

/// What is wrong with the disk, and how much was looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What is wrong, in words.
    pub wrong: Vec<String>,
    /// Blocks that hold a write of the load.
    pub written: u64,
    /// Blocks that had to hold one.
    pub required: u64,
    /// Blocks of another load.
    pub foreign: u64,
}

/// Check.
///
/// # Errors
/// The journal or the disk cannot be read, or the disk must not look so.
pub fn run(args: &crate::Check) -> Result<(), String> {
    let text = std::fs::read(&args.journal).map_err(|error| format!("{}: {error}", args.journal.display()))?;
    let journal = Journal::parse(&String::from_utf8_lossy(&text))?;
    let said = |error: std::io::Error| format!("{}: {error}", args.disk.display());
    let disk = File::open(&args.disk).map_err(said)?;
    let mut buffer = Aligned::new(MAX_BYTES as usize);
    let mut blocks = Vec::new();
    let end = journal.params.bytes(journal.params.blocks());
    let mut offset = 0;
    while offset < end {
        let length = u64::from(MAX_BYTES).min(end - offset);
        let bytes = buffer.first(usize::try_from(length).expect("a piece is short"));
        disk.read_exact_at(bytes, offset).map_err(said)?;
        blocks.extend(bytes.chunks_exact(journal.params.block as usize).map(block::read));
        offset += length;
    }
    let acknowledged = if args.order_only {
        Known::default()
    } else {
        journal.known
    };
    let findings = examine(&journal.params, &acknowledged, &blocks);
    println!(
        "checked {} blocks: {} written, {} had to be, {} of another load; {} barriers acknowledged{}",
        blocks.len(),
        findings.written,
        findings.required,
        findings.foreign,
        journal.barriers,
        if args.order_only {
            ", only the order checked"
        } else {
            ""
        }
    );
    if findings.wrong.is_empty() {
        return Ok(());
    }
    for wrong in findings.wrong.iter().take(TOLD) {
        eprintln!("{wrong}");
    }
    Err(format!(
        "{}: {} blocks are wrong",
        args.disk.display(),
        findings.wrong.len()
    ))
}

/// Look at all blocks of a disk.
pub fn examine(params: &Params, acknowledged: &Known, blocks: &[Seen]) -> Findings {
    let mut findings = Findings::default();
    let mut known = *acknowledged;
    let mut newest: PerWriter = [0; MAX_WRITERS];
    // What each block shows of this load, without what is wrong with the block itself.
    let mut shown: Vec<Option<Stamp>> = Vec::with_capacity(blocks.len());
    for (place, seen) in (0..).zip(blocks) {
        let mut stamp = None;
        match seen {
            Seen::Untouched => {}
            Seen::Damaged(why) => findings.wrong.push(format!("{}: {why}", at(params, place))),
            Seen::Written(found) if found.seed != params.seed => findings.foreign += 1,
            Seen::Written(found) if found.place != place || found.writer >= params.writers => {
                findings.wrong.push(format!(
                    "{}: holds what belongs elsewhere: {found:?}",
                    at(params, place)
                ));
            }
            Seen::Written(found) => {
                findings.written += 1;
                known.merge(&found.known);
                let newest = &mut newest[usize::from(found.writer)];
                *newest = found.number.max(*newest);
                stamp = Some(*found);
            }
        }
        shown.push(stamp);
    }
    for writer in 0..params.writers {
        learn(params, writer, newest[usize::from(writer)], &mut known);
    }
    let mut required = vec![false; blocks.len()];
    for writer in 0..params.writers {
        follow(params, writer, &newest, &known, &shown, &mut required, &mut findings);
    }
    for (place, (required, shown)) in (0..).zip(required.iter().zip(&shown)) {
        findings.required += u64::from(*required);
        if *required && shown.is_none() && !matches!(blocks[place as usize], Seen::Damaged(_)) {
            findings
                .wrong
                .push(format!("{}: a durable write is missing", at(params, place)));
        }
    }
    findings
}

/// What `writer` must have made durable before it submitted its write `newest`.
fn learn(params: &Params, writer: u16, newest: u32, known: &mut Known) {
    let (mut written, mut durable, mut forced_one) = (0, 0, 0);
    if newest == 0 {
        return;
    }
    for op in Plan::new(params, writer) {
        match op {
            Op::Write { number, .. } if number >= newest => break,
            Op::Write { number, forced, .. } => {
                written = number;
                forced_one = if forced { number } else { forced_one };
            }
            Op::Sync => durable = written,
            Op::Read { .. } => {}
        }
    }
    let mut learnt = Known::default();
    learnt.all[usize::from(writer)] = durable;
    learnt.forced[usize::from(writer)] = forced_one;
    known.merge(&learnt);
}

/// Compare what `writer` did with what the disk shows.
fn follow(
    params: &Params,
    writer: u16,
    newest: &PerWriter,
    known: &Known,
    shown: &[Option<Stamp>],
    required: &mut [bool],
    findings: &mut Findings,
) {
    let me = usize::from(writer);
    let (all, forced_to) = (known.all[me], known.forced[me]);
    let last = newest[me].max(all).max(forced_to);
    // The last of its writes that must be there, and whether what is shown is one that it made there.
    let mut must = vec![0; shown.len()];
    let mut made = vec![false; shown.len()];
    for op in Plan::new(params, writer) {
        let Op::Write { number, blocks, forced } = op else {
            continue;
        };
        if number > last {
            break;
        }
        let is_durable = number <= all || forced && number <= forced_to;
        for place in blocks.start as usize..blocks.end as usize {
            if is_durable {
                must[place] = number;
            }
            made[place] |= shown[place].is_some_and(|stamp| (stamp.writer, stamp.number) == (writer, number));
        }
    }
    for (place, stamp) in (0..).zip(shown) {
        let at_place = place as usize;
        required[at_place] |= must[at_place] != 0;
        match stamp {
            Some(stamp) if stamp.writer == writer && !made[at_place] => {
                findings.wrong.push(format!(
                    "{}: write {} of writer {writer} did not go there",
                    at(params, place),
                    stamp.number
                ));
            }
            Some(stamp) if stamp.writer == writer && stamp.number < must[at_place] => {
                findings.wrong.push(format!(
                    "{}: holds write {} of writer {writer}, but its write {} was durable",
                    at(params, place),
                    stamp.number,
                    must[at_place]
                ));
            }
            // Another writer's in the shared range: it may have come later. Untouched is told once for all writers.
            Some(_) | None => {}
        }
    }
}

fn at(params: &Params, place: u64) -> String {
    format!("block {place} (byte {})", params.bytes(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A write: who, which of its writes, what it put where.
    type Made = (u16, u32, Vec<(usize, Stamp)>);

    /// A disk in memory on which one writer after the other does its plan.
    struct World {
        params: Params,
        disk: Vec<Option<Stamp>>,
        completed: PerWriter,
        known: Known,
        /// All writes, in the order in which they were made.
        history: Vec<Made>,
    }

    fn params() -> Params {
        Params {
            seed: 11,
            size: 4 << 20,
            block: 4096,
            writers: 3,
            sync_every: 6,
            forced: 8,
            reads: 5,
        }
    }

    impl World {
        fn run(steps: usize) -> World {
            let params = params();
            let mut world = World {
                disk: vec![None; params.blocks() as usize],
                completed: [0; MAX_WRITERS],
                known: Known::default(),
                history: Vec::new(),
                params: params.clone(),
            };
            let mut plans: Vec<Plan<'_>> = (0..params.writers).map(|writer| Plan::new(&params, writer)).collect();
            for step in 0..steps {
                let writer = step % plans.len();
                let op = plans[writer].next().unwrap();
                world.step(writer as u16, &op);
            }
            world
        }

        fn step(&mut self, writer: u16, op: &Op) {
            match op {
                Op::Write { number, blocks, forced } => {
                    let stamp = |place| Stamp {
                        seed: self.params.seed,
                        place,
                        writer,
                        number: *number,
                        known: self.known,
                    };
                    let written: Vec<(usize, Stamp)> =
                        blocks.clone().map(|place| (place as usize, stamp(place))).collect();
                    for (place, stamp) in &written {
                        self.disk[*place] = Some(*stamp);
                    }
                    self.history.push((writer, *number, written));
                    self.completed[usize::from(writer)] = *number;
                    if *forced {
                        self.known.forced[usize::from(writer)] = *number;
                    }
                }
                Op::Sync => self.known.all = self.completed,
                Op::Read { .. } => {}
            }
        }

        fn findings(&self, disk: &[Option<Stamp>], acknowledged: &Known) -> Findings {
            let seen: Vec<Seen> = disk
                .iter()
                .map(|stamp| stamp.map_or(Seen::Untouched, Seen::Written))
                .collect();
            examine(&self.params, acknowledged, &seen)
        }

        /// The disk on which only the writes that `kept` picks have arrived.
        fn disk_of(&self, kept: impl Fn(usize) -> bool) -> Vec<Option<Stamp>> {
            let mut disk = vec![None; self.disk.len()];
            for (_, (_, _, written)) in self.history.iter().enumerate().filter(|(index, _)| kept(*index)) {
                for (place, stamp) in written {
                    disk[*place] = Some(*stamp);
                }
            }
            disk
        }
    }

    #[test]
    fn a_disk_that_lost_nothing_is_right() {
        let world = World::run(600);
        let findings = world.findings(&world.disk, &world.known);
        assert_eq!(findings.wrong, Vec::<String>::new());
        assert!(findings.required > 100 && findings.written >= findings.required);
    }

    #[test]
    fn every_older_state_is_in_order_but_lacks_what_was_acknowledged() {
        let world = World::run(600);
        for length in (0..world.history.len()).step_by(7) {
            let disk = world.disk_of(|index| index < length);
            assert_eq!(
                world.findings(&disk, &Known::default()).wrong,
                Vec::<String>::new(),
                "{length}"
            );
            let last_is_durable = world.history[length..]
                .iter()
                .any(|(writer, number, _)| *number <= world.known.all[usize::from(*writer)]);
            if last_is_durable {
                let private = world.history[length..].iter().any(|(writer, number, written)| {
                    *number <= world.known.all[usize::from(*writer)] && written[0].0 as u64 >= world.params.shared().end
                });
                assert!(
                    !private || !world.findings(&disk, &world.known).wrong.is_empty(),
                    "{length}"
                );
            }
        }
    }

    #[test]
    fn a_durable_write_that_is_missing_under_newer_ones_is_found() {
        let world = World::run(600);
        let shared = world.params.shared().end;
        let mut found = 0;
        for (lost, (writer, number, written)) in world.history.iter().enumerate() {
            if (written[0].0 as u64) < shared {
                continue;
            }
            let disk = world.disk_of(|index| index != lost);
            // Known from the other blocks, without the journal, if anything was submitted after the barrier.
            let is_wrong = !world.findings(&disk, &Known::default()).wrong.is_empty();
            let was_visible = written.iter().any(|(place, stamp)| world.disk[*place] == Some(*stamp));
            assert!(was_visible || !is_wrong, "write {lost} cannot be missed");
            if was_visible && *number + 40 <= world.completed[usize::from(*writer)] {
                assert!(is_wrong, "write {lost}");
                found += 1;
            }
        }
        assert!(found > 20, "{found}");
    }

    #[test]
    fn a_write_at_a_place_it_never_went_to_is_found() {
        let world = World::run(600);
        let mut disk = world.disk.clone();
        let place = disk
            .iter()
            .position(Option::is_none)
            .expect("some block was never written");
        let number = world.completed[2] - 1;
        disk[place] = Some(Stamp {
            seed: world.params.seed,
            place: place as u64,
            writer: 2,
            number,
            known: Known::default(),
        });
        assert_eq!(world.findings(&disk, &world.known).wrong.len(), 1);
        // And a whole block at the wrong place.
        disk[place] = world.disk.iter().flatten().next().copied();
        assert_eq!(world.findings(&disk, &world.known).wrong.len(), 1);
    }

    #[test]
    fn a_damaged_block_is_found() {
        let world = World::run(60);
        let mut seen: Vec<Seen> = world
            .disk
            .iter()
            .map(|stamp| stamp.map_or(Seen::Untouched, Seen::Written))
            .collect();
        seen[3] = Seen::Damaged("torn");
        assert_eq!(examine(&world.params, &Known::default(), &seen).wrong.len(), 1);
    }
}
