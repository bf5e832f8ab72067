//! Signature tables as they are used: the hash of the device from them, and what they cost.

use crate::lab::Dir;
use crate::state_dir::superblock;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use std::fs;
use std::path::Path;
use std::time::Instant;
use twinblk::core::{Bits, Geometry, LegId, Source};
use twinblk::runtime::digest::DigestTable;
use twinblk::runtime::signature_table::SignatureTable;
use twinblk::runtime::signature_tables::SignatureTables;
use twinblk::runtime::state_dir::StateDir;
use twinblk::table::signatures::Entry;

fn tables(dir: &Dir, geometry: Geometry) -> SignatureTables {
    let mut device = superblock("vm1", 1);
    device.geometry = geometry;
    let state = StateDir::create(dir.path(), &device).unwrap_or_else(|error| panic!("{error}"));
    let (tables, _) = state.signatures(&device).unwrap_or_else(|error| panic!("{error}"));
    tables
}

/// The hash of the device from the table, or the extents that it does not know.
fn digest(table: &SignatureTable, geometry: Geometry) -> Result<blake3::Hash, Bits> {
    let mut known = Bits::all(geometry.extents());
    let digest = DigestTable::new(geometry);
    digest.fill(|found| table.recall(&mut known, found));
    let mut unknown = Bits::all(geometry.extents());
    unknown.subtract(&known);
    digest.root().ok_or(unknown)
}

fn entry(value: ChainingValue) -> Entry {
    Entry {
        value,
        generation: 5,
        source: Source::Payload,
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7])
        .collect()
}

#[test]
fn the_digest_from_the_table_is_the_ordinary_hash_of_a_device_of_any_size() {
    let extent = 16 << 10;
    let mut sizes = vec![512, 1024, 1536, 16 << 10];
    for extents in 1..=17_usize {
        let whole = extents * extent;
        sizes.extend([whole - 512, whole, whole + 512, whole + 1536]);
    }
    for size in sizes {
        let dir = Dir::new();
        let geometry = Geometry {
            size: size as u64,
            block: 512,
            grain: 4096,
            extent: extent as u32,
        };
        let (tables, content) = (tables(&dir, geometry), content(size));
        let table = tables.table(LegId::A);
        assert_eq!(digest(table, geometry), Err(Bits::all(geometry.extents())));
        for number in (0..geometry.extents()).rev() {
            let range = geometry.extent_range(number);
            let bytes = &content[range.start as usize..range.end() as usize];
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(range.start).update(bytes);
            let value = match geometry.extents() {
                1 => *hasher.finalize().as_bytes(),
                _ => hasher.finalize_non_root(),
            };
            table.write(number, &entry(value));
        }
        assert_eq!(digest(table, geometry), Ok(blake3::hash(&content)), "{size} bytes");
    }
}

#[test]
fn extents_without_an_entry_are_named() {
    let dir = Dir::new();
    let geometry = Geometry::new(300 << 20, 512);
    let tables = tables(&dir, geometry);
    let table = tables.table(LegId::A);
    for extent in 0..300 {
        let mut entry = entry([1; 32]);
        entry.generation = extent;
        table.write(extent, &entry);
    }
    table.forget(17..19);
    let mut expected = Bits::none(300);
    expected.insert_run(17, 19);
    assert_eq!(digest(table, geometry), Err(expected));
}

/// Merges as the specification of BLAKE3 has it: the left subtree is the largest power of two that leaves something.
fn merged(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [value] => *value,
        values => {
            let (left, right) = values.split_at(values.len().next_power_of_two() / 2);
            merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
        }
    }
}

/// KiB of memory that mappings of the file take in this process.
fn resident(path: &Path) -> u64 {
    let areas = fs::read_to_string("/proc/self/smaps").expect("the kernel says");
    let path = path.to_str().expect("its name is plain");
    let mut total = 0;
    let mut is_ours = false;
    for line in areas.lines() {
        if line.split_once(' ').is_some_and(|(first, _)| first.contains('-')) {
            is_ours = line.ends_with(path);
        } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| is_ours) {
            total += rss.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
        }
    }
    total
}

#[test]
fn a_warm_table_of_a_tebibyte_gives_the_digest_and_takes_only_the_memory_that_is_used() {
    let dir = Dir::new();
    let geometry = Geometry::new(1 << 40, 4096);
    let extents = geometry.extents();
    let tables = tables(&dir, geometry);
    let table = tables.table(LegId::A);
    let path = dir.join("vm1/signatures-a");
    assert_eq!(fs::metadata(&path).expect("it is there").len(), 4096 + (64 << 20));

    assert!(resident(&path) <= 64, "nothing was used: {} KiB", resident(&path));
    for extent in (0..extents).step_by(extents as usize / 16) {
        table.write(extent, &entry([1; 32]));
    }
    assert!(
        resident(&path) <= 16 * 64,
        "16 places were used: {} KiB",
        resident(&path)
    );

    let value = |extent: u64| *blake3::hash(&extent.to_le_bytes()).as_bytes();
    let values: Vec<ChainingValue> = (0..extents).map(value).collect();
    let filling = Instant::now();
    for (extent, value) in (0..).zip(&values) {
        table.write(extent, &entry(*value));
    }
    println!("1 TiB: {extents} entries written in {:?}", filling.elapsed());
    assert!(
        resident(&path) >= 64 << 10,
        "all of it is used: {} KiB",
        resident(&path)
    );
    let syncing = Instant::now();
    table.sync(0..extents).expect("a file");
    println!("1 TiB: synced in {:?}", syncing.elapsed());

    let reading = Instant::now();
    let found = digest(table, geometry);
    println!(
        "1 TiB: digest in {:?}; {} KiB resident afterwards",
        reading.elapsed(),
        resident(&path)
    );
    let (left, right) = values.split_at(values.len() / 2);
    let expected = merge_subtrees_root(&merged(left), &merged(right), Mode::Hash);
    assert_eq!(found, Ok(expected));
    assert!(resident(&path) <= 64, "{} KiB are kept", resident(&path));
}
