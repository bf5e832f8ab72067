//! Cuts at every step, on a disk that tears and loses what was not flushed.

use super::super::medium::model::{End, Model, Random};
use super::*;
use crate::table::superblock::example;

const DISK: usize = 256 << 10;
const FIRST: Range = Range::new(0, 8192);
const LAST: Range = Range::new((DISK - 4096) as u64, 4096);
/// A label that a probe sees only when the first range is wiped.
const BEHIND: Range = Range::new(65536, 4096);

fn entry() -> Entry {
    let mut identity = example().legs[0].clone().expect("it has two legs");
    identity.size = DISK as u64;
    Entry {
        path: PathBuf::new(),
        retired: Retired {
            uuid: [7; 16],
            leg: LegId::A,
            wiped: false,
            detached: None,
            identity,
            saved: Vec::new(),
        },
    }
}

/// A disk with something in every sector but a few.
fn disk(seed: u64) -> (Model, Vec<u8>) {
    let mut random = Random(seed);
    let mut model = Model::new(DISK, seed);
    for sector in 0..DISK / SECTOR {
        let byte = random.below(200) as u8;
        model
            .write((sector * SECTOR) as u64, &[byte; SECTOR])
            .expect("no fault yet");
    }
    model.sync().expect("no fault yet");
    let content = content(&model);
    (model, content)
}

fn content(model: &Model) -> Vec<u8> {
    (0..DISK)
        .step_by(BLOCK)
        .flat_map(|at| model.read(at as u64).expect("it can always be read"))
        .collect()
}

fn is_wiped(model: &Model, range: Range) -> bool {
    content(model)[range.start as usize..(range.start + range.len) as usize]
        .iter()
        .all(|&byte| byte == 0)
}

/// Retire with a state directory that may die before or after it has made the file durable.
fn retire(begun: Entry, model: &mut Model, saved: &mut Option<Entry>, fails: Option<u64>) -> Result<(), RetireError> {
    let mut entry = begun;
    let mut saves = 0;
    let is_dead = std::cell::Cell::new(false);
    // What is saved is wiped before anybody looks.
    let is_saved = |saved: &Saved| saved.start == BEHIND.start;
    let mut behind = !entry.retired.saved.iter().any(is_saved);
    let save = |entry: &mut Entry| {
        saves += 1;
        if fails == Some(2 * saves) {
            is_dead.set(true);
        } else {
            *saved = Some(Entry {
                retired: Retired::decode(&entry.retired.encode()).expect("it was written just now"),
                ..entry.clone()
            });
            is_dead.set(fails == Some(2 * saves + 1));
        }
        match is_dead.get() {
            true => Err(failed(&entry.retired.identity, "save")(io::ErrorKind::Other.into())),
            false => Ok(()),
        }
    };
    // The first look shows what lies in front, the second what is behind it, the third nothing.
    let mut looks = 0;
    let search = || {
        looks += 1;
        Ok(match looks {
            1 => vec![FIRST],
            _ if std::mem::take(&mut behind) => vec![BEHIND],
            _ => vec![],
        })
    };
    wipe(&mut entry, model, vec![FIRST, LAST], save, search)
}

#[test]
fn whatever_is_cut_off_is_on_the_disk_or_saved_and_both_ways_lead_out() {
    let (mut cut_short, mut done) = (0, 0);
    for seed in 0..400 {
        let (mut model, original) = disk(seed);
        let mut random = Random(seed + 1000);
        let mut saved = None;
        let (mut fails, mut steps) = (None, 0);
        // Cut again and again, on the way there and back.
        loop {
            steps += 1;
            let begun = saved.clone().unwrap_or_else(entry);
            match random.below(3) {
                0 => fails = Some(2 + random.below(4)),
                _ if steps < 6 => model.end = Some((random.below(6), End::Death)),
                _ => {}
            }
            let outcome = match &saved {
                Some(entry) if random.below(3) == 0 => put_back(&entry.retired, &mut model),
                _ => retire(begun, &mut model, &mut saved, fails.take()),
            };
            model = match random.below(2) {
                0 => model.cut(),
                _ => model.killed(),
            };
            match outcome {
                Ok(()) if steps >= 6 => break,
                Ok(()) => done += 1,
                Err(RetireError::Changed { .. } | RetireError::Remains { .. }) => {
                    panic!("seed {seed}: nobody else has written to it")
                }
                Err(_) => cut_short += 1,
            }
            for (at, now) in content(&model).chunks(SECTOR).enumerate() {
                let was = &original[at * SECTOR..(at + 1) * SECTOR];
                let is_saved = saved.as_ref().is_some_and(|entry| {
                    entry.retired.saved.iter().any(|saved| {
                        let from = (at * SECTOR) as u64;
                        let is_in = saved.start <= from && from < saved.end();
                        is_in && &saved.content[(from - saved.start) as usize..][..SECTOR] == was
                    })
                });
                assert!(now == was || is_saved, "seed {seed}: sector {at} is lost");
            }
        }
        let saved = saved.expect("it ended well");
        put_back(&saved.retired, &mut model).unwrap();
        assert!(content(&model.cut()) == original, "seed {seed}");
    }
    assert!(
        cut_short > 500 && done > 300,
        "the test must reach both: {cut_short}, {done}"
    );
}

#[test]
fn labels_and_what_lies_behind_them_are_wiped_and_nothing_else() {
    let (mut model, original) = disk(1);
    let mut saved = None;
    retire(entry(), &mut model, &mut saved, None).unwrap();
    assert!([FIRST, BEHIND, LAST].into_iter().all(|range| is_wiped(&model, range)));
    let now = content(&model);
    let ranges = saved.expect("it was saved").retired.saved;
    for at in (0..DISK).step_by(SECTOR) {
        let is_in = |saved: &Saved| saved.start <= at as u64 && (at as u64) < saved.end();
        let is_equal = now[at..at + SECTOR] == original[at..at + SECTOR];
        assert!(is_equal || ranges.iter().any(is_in), "byte {at}");
    }
    assert_eq!(ranges.len(), 3);
}

#[test]
fn a_disk_that_somebody_wrote_to_since_is_left_as_it_is() {
    for at in [FIRST.start, BEHIND.start + 512, LAST.start + LAST.len - 512] {
        let (mut model, _) = disk(2);
        let mut saved = None;
        retire(entry(), &mut model, &mut saved, None).unwrap();
        let retired = saved.clone().expect("it was saved").retired;
        model.write(at, &[0xee; SECTOR]).unwrap();
        let before = content(&model);
        let is_it = |error| matches!(error, Err(RetireError::Changed { at: found, .. }) if found == at);
        assert!(is_it(put_back(&retired, &mut model)), "byte {at}");
        assert!(
            is_it(retire(saved.clone().unwrap(), &mut model, &mut saved, None)),
            "byte {at}"
        );
        assert!(content(&model) == before, "byte {at}");
    }
}

#[test]
fn a_label_that_does_not_go_is_told_and_everything_can_be_put_back() {
    let (mut model, original) = disk(3);
    let mut entry = entry();
    let stubborn = || Ok(vec![FIRST]);
    let outcome = wipe(&mut entry, &mut model, vec![FIRST], |_| Ok(()), stubborn);
    assert!(matches!(outcome, Err(RetireError::Remains { .. })), "{outcome:?}");
    put_back(&entry.retired, &mut model).unwrap();
    assert!(content(&model) == original);
}

/// A disk that says that it has written.
struct Liar(Model);

impl Medium for Liar {
    fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        self.0.read(offset)
    }

    fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn nothing_counts_as_wiped_or_put_back_that_the_disk_does_not_hold() {
    let (mut model, _) = disk(4);
    let mut saved = None;
    let mut liar = Liar(model.clone());
    let outcome = wipe(&mut entry(), &mut liar, vec![FIRST], |_| Ok(()), || Ok(vec![]));
    assert!(matches!(outcome, Err(RetireError::NotHeld { .. })), "{outcome:?}");
    retire(entry(), &mut model, &mut saved, None).unwrap();
    let outcome = put_back(&saved.expect("it was saved").retired, &mut Liar(model));
    assert!(matches!(outcome, Err(RetireError::NotHeld { .. })), "{outcome:?}");
}

#[test]
fn what_is_saved_is_not_saved_again() {
    let saved = |start, len| Saved {
        start,
        content: vec![1; len],
    };
    let parts = |ranges: &[(u64, u64)], saved: &[Saved]| -> Vec<(u64, u64)> {
        let ranges = ranges.iter().map(|&(start, len)| Range::new(start, len)).collect();
        apart_from(ranges, saved)
            .iter()
            .map(|range| (range.start, range.len))
            .collect()
    };
    let saved = [saved(4096, 4096), saved(16384, 4096)];
    assert_eq!(parts(&[(0, 32768)], &saved), [(0, 4096), (8192, 8192), (20480, 12288)]);
    assert_eq!(parts(&[(4096, 4096), (16384, 512)], &saved), []);
    assert_eq!(parts(&[(0, 4096), (6144, 4096)], &saved), [(0, 4096), (8192, 2048)]);
}

#[test]
fn what_was_saved_before_the_disk_was_a_leg_again_is_not_taken_for_a_later_retire() {
    let root = std::env::temp_dir().join(format!("twinblk-retired-{}", std::process::id()));
    let _ = fs::remove_dir_all(&root);
    let footprint = |written| {
        Some(crate::table::Footprint {
            boot: [5; 16],
            sequence: 6,
            written,
        })
    };
    let mut superblock = example();
    superblock.record.number = Superblock::FIRST_NUMBER;
    let leg = superblock.record.primary.other();
    superblock.record.legs[leg.index()]
        .as_mut()
        .expect("it has two")
        .attached = false;
    superblock.footprints[leg.index()] = footprint(7);
    drop(StateDir::create(&root, &superblock).expect("a directory below the temporary one"));
    let dir = RetiredDir::lock(&root, &superblock.name).expect("nobody else has it");
    let disk = superblock.legs[leg.index()].clone().expect("it has two");
    let mut entry = Entry {
        path: PathBuf::new(),
        retired: Retired {
            uuid: superblock.uuid,
            leg,
            wiped: false,
            detached: footprint(7),
            identity: disk.clone(),
            saved: vec![Saved {
                start: 0,
                content: vec![1; 4096],
            }],
        },
    };
    dir.save(&mut entry).expect("there is room");
    let path = root.join(&superblock.name);
    let is_retired = |superblock: &Superblock| is_leg_retired(&path, superblock, leg).expect("it can be read");
    let is_gone_on_with = |superblock: &Superblock| is_current(&entry, superblock, leg, &disk);
    assert!(
        is_gone_on_with(&superblock) && !is_retired(&superblock),
        "some may be there yet"
    );
    let mut wiped = entry.clone();
    wiped.retired.wiped = true;
    dir.save(&mut wiped).expect("there is room");
    assert!(is_retired(&superblock));
    // It was a leg again, and was detached again.
    let mut later = superblock.clone();
    later.footprints[leg.index()] = footprint(8);
    assert!(!is_gone_on_with(&later) && !is_retired(&later));
    let mut attached = superblock.clone();
    attached.record.legs[leg.index()].as_mut().expect("it has two").attached = true;
    assert!(!is_retired(&attached));
    // Of a detach of which nothing was recorded, and a disk that looks like others.
    (later.footprints[leg.index()], entry.retired.detached) = (None, None);
    assert!(is_current(&entry, &later, leg, &disk));
    let mut nameless = disk.clone();
    (nameless.serial, nameless.wwid) = Default::default();
    (nameless.partition_uuid, nameless.stack_uuid) = Default::default();
    entry.retired.identity = nameless.clone();
    assert!(!is_current(&entry, &later, leg, &nameless));
    fs::remove_dir_all(&root).expect("it is there");
}
