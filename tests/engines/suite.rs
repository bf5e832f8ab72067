//! What every engine does.

use crate::rig::{CAPACITY, MIB, Rig, UNMAP, WRITE, WRITE_FUA, ZERO, assert_same, pattern};
use std::sync::Arc;
use twinblk::core::{Action, Buf, Errno, LegId, Range};
use twinblk::io::seed::Chance;

pub fn what_is_written_is_read_back_from_that_leg_alone(mut rig: Rig) {
    let (block, size) = (rig.block, rig.size);
    let places = [
        (0, block),
        (block, 3 * block),
        (128 << 10, 64 << 10),
        (MIB - block, 2 * block),
        (2 * MIB, MIB),
        (size - block, block),
        (size - MIB - block, MIB),
    ];
    for (i, (start, len)) in places.into_iter().enumerate() {
        for action in [WRITE, WRITE_FUA] {
            for leg in LegId::ALL {
                let bytes = pattern(i as u64 * 4 + leg.index() as u64, len);
                rig.write(leg, action, start, &bytes);
            }
            for leg in LegId::ALL {
                let bytes = pattern(i as u64 * 4 + leg.index() as u64, len);
                assert_same(
                    &rig.read(leg, start, len),
                    &bytes,
                    &format!("{action:?} of {len} at {start}"),
                );
            }
        }
    }
}

pub fn a_write_touches_no_neighbour(mut rig: Rig) {
    let (block, leg) = (rig.block, LegId::A);
    let old = pattern(1, 64 * block);
    rig.write(leg, WRITE, 0, &old);
    let new = pattern(2, 3 * block);
    rig.write(leg, WRITE, 7 * block, &new);
    let mut expected = old;
    expected[7 * block as usize..10 * block as usize].copy_from_slice(&new);
    assert_same(&rig.read(leg, 0, 64 * block), &expected, "neighbours of a write");
}

pub fn a_read_touches_no_neighbour_in_the_arena(mut rig: Rig) {
    let block = rig.block;
    rig.arena.write(Buf::at(MIB), &vec![0xAB; 3 * block as usize]);
    rig.run(LegId::B, Action::Read, Range::new(0, block), Buf::at(MIB + block))
        .unwrap();
    let mut bytes = vec![0; 3 * block as usize];
    rig.arena.read(Buf::at(MIB), &mut bytes);
    let (before, rest) = bytes.split_at(block as usize);
    let (read, after) = rest.split_at(block as usize);
    assert!(before.iter().chain(after).all(|&byte| byte == 0xAB));
    assert!(read.iter().all(|&byte| byte == 0));
}

pub fn a_read_behind_the_end_is_an_error_and_not_short(mut rig: Rig) {
    let (block, size) = (rig.block, rig.size);
    for (start, len) in [(size, block), (size - block, 2 * block), (size + MIB, block)] {
        let result = rig.run(LegId::A, Action::Read, Range::new(start, len), Buf(0));
        assert_eq!(result, Err(Errno::IO), "{len} bytes at {start} of {size}");
    }
    // An error ends the operation alone.
    rig.run(LegId::A, Action::Read, Range::new(size - block, block), Buf(0))
        .unwrap();
}

pub fn a_zeroed_range_reads_as_zeroes_and_its_neighbours_as_before(mut rig: Rig) {
    let (block, size) = (rig.block, rig.size);
    let whole = pattern(3, size);
    let places = [
        (0, block),
        (5 * block, 3 * block),
        (64 << 10, 128 << 10),
        (MIB / 2 - block, 2 * MIB + 2 * block),
        (size - 2 * block, 2 * block),
        (0, size),
    ];
    for leg in LegId::ALL {
        for action in [ZERO, UNMAP] {
            for (start, len) in places {
                rig.write(leg, WRITE, 0, &whole);
                rig.run(leg, action, Range::new(start, len), Buf(0)).unwrap();
                let mut expected = whole.clone();
                expected[start as usize..(start + len) as usize].fill(0);
                assert_same(
                    &rig.read(leg, 0, size),
                    &expected,
                    &format!("{action:?} of {len} at {start}"),
                );
            }
            rig.write(leg, WRITE, 0, &whole);
            assert_same(&rig.read(leg, 0, size), &whole, "written after it was zeroed");
        }
    }
}

pub fn a_flush_ends_well_with_and_without_writes(mut rig: Rig) {
    for leg in LegId::ALL {
        rig.run(leg, Action::Flush, Range::EMPTY, Buf(0)).unwrap();
        let bytes = pattern(4, rig.block);
        rig.write(leg, WRITE, 0, &bytes);
        rig.run(leg, Action::Flush, Range::EMPTY, Buf(0)).unwrap();
        assert_same(&rig.read(leg, 0, bytes.len() as u64), &bytes, "flushed");
    }
}

pub fn each_of_many_operations_in_flight_ends_once_and_well(mut rig: Rig) {
    let block = rig.block;
    let each = u64::from(CAPACITY) / 2;
    for round in 0..3 {
        let mut ids = Vec::new();
        for i in 0..each {
            for leg in LegId::ALL {
                let buf = Buf::at((i * 2 + leg.index() as u64) * block);
                rig.arena
                    .write(buf, &pattern(round * 10_000 + i * 2 + leg.index() as u64, block));
                let action = if i % 50 == 49 { Action::Flush } else { WRITE };
                ids.push(rig.submit(leg, action, Range::new(i * block, block), buf));
            }
        }
        assert_eq!(rig.engine.in_flight(), CAPACITY as usize);
        let mut ended = rig.wait_all();
        assert!(ended.iter().all(|(_, result)| result.is_ok()));
        ended.sort_by_key(|(id, _)| id.0);
        assert_eq!(ended.iter().map(|&(id, _)| id).collect::<Vec<_>>(), ids);
        for leg in LegId::ALL {
            let bytes = rig.read(leg, 0, each * block);
            for i in (0..each).filter(|i| i % 50 != 49) {
                let read = &bytes[(i * block) as usize..((i + 1) * block) as usize];
                let written = pattern(round * 10_000 + i * 2 + leg.index() as u64, block);
                assert_same(read, &written, &format!("block {i} of leg {leg}, round {round}"));
            }
        }
    }
}

pub fn overlapping_writes_in_flight_leave_each_block_one_of_them(mut rig: Rig) {
    let block = rig.block;
    for round in 0..8 {
        let bytes: Vec<_> = (0..16).map(|i| pattern(round * 100 + i, 4 * block)).collect();
        for (i, bytes) in bytes.iter().enumerate() {
            let buf = Buf::at(i as u64 * 4 * block);
            rig.arena.write(buf, bytes);
            rig.submit(LegId::A, WRITE, Range::new(8 * block, 4 * block), buf);
        }
        assert!(rig.wait_all().iter().all(|(_, result)| result.is_ok()));
        let read = rig.read(LegId::A, 8 * block, 4 * block);
        for i in 0..4 {
            let at = (i * block) as usize..((i + 1) * block) as usize;
            assert!(
                bytes.iter().any(|bytes| bytes[at.clone()] == read[at.clone()]),
                "block {i} is none of them"
            );
        }
    }
}

pub fn waiting_for_less_than_is_in_flight_returns_at_least_that_and_loses_nothing(mut rig: Rig) {
    let block = rig.block;
    let mut ended = Vec::new();
    rig.engine.wait(0, &mut ended).unwrap();
    rig.engine.wait(5, &mut ended).unwrap();
    assert_eq!(ended, [], "nothing was in flight");
    for i in 0..64 {
        rig.submit(
            LegId::ALL[i % 2],
            WRITE,
            Range::new(i as u64 * block, block),
            Buf::at(i as u64 * block),
        );
    }
    for step in [1, 3, 10, 50] {
        let before = ended.len();
        rig.engine.wait(step, &mut ended).unwrap();
        assert!(ended.len() >= (before + step).min(64));
        assert_eq!(ended.len() + rig.engine.in_flight(), 64);
    }
    assert_eq!(ended.len(), 64);
}

pub fn random_operations_do_what_a_plain_array_of_bytes_does(mut rig: Rig) {
    let mut chance = Chance::new(99);
    let (block, size) = (rig.block, rig.size);
    let blocks = size / block;
    let mut model = [vec![0_u8; size as usize], vec![0_u8; size as usize]];
    for round in 0..60 {
        // Disjoint within a round, as nothing orders what is in flight together.
        let mut reads = Vec::new();
        let slices = 1 + chance.below(16);
        for slice in 0..slices {
            let leg = LegId::ALL[chance.below(2) as usize];
            let from = blocks * slice / slices;
            let room = (blocks * (slice + 1) / slices - from).min(256);
            let first = from + chance.below(room);
            let len = (1 + chance.below(from + room - first)) * block;
            let (start, buf) = (first * block, Buf::at(slice * MIB));
            let at = start as usize..(start + len) as usize;
            let model = &mut model[leg.index()];
            let action = match chance.below(6) {
                0 | 1 => {
                    reads.push((leg, buf, model[at].to_vec()));
                    Action::Read
                }
                2 => {
                    model[at].fill(0);
                    UNMAP
                }
                3 => {
                    model[at].fill(0);
                    ZERO
                }
                kind => {
                    let bytes = pattern(round * 100 + slice, len);
                    model[at].copy_from_slice(&bytes);
                    rig.arena.write(buf, &bytes);
                    Action::Write { fua: kind == 4 }
                }
            };
            rig.submit(leg, action, Range::new(start, len), buf);
        }
        assert!(rig.wait_all().iter().all(|(_, result)| result.is_ok()));
        for (leg, buf, expected) in reads {
            let mut bytes = vec![0; expected.len()];
            rig.arena.read(buf, &mut bytes);
            assert_same(&bytes, &expected, &format!("round {round}, leg {leg}"));
        }
    }
    for leg in LegId::ALL {
        assert_same(
            &rig.read(leg, 0, size),
            &model[leg.index()],
            &format!("leg {leg} in the end"),
        );
    }
}

pub fn dropping_with_operations_in_flight_lets_go_of_the_arena(mut rig: Rig) {
    let block = rig.block;
    for i in 0..u64::from(CAPACITY) {
        let action = [WRITE, Action::Read, Action::Flush, ZERO][i as usize % 4];
        rig.submit(
            LegId::ALL[i as usize % 2],
            action,
            Range::new(i * block, block),
            Buf::at(i * block),
        );
    }
    let Rig { engine, arena, .. } = rig;
    drop(engine);
    assert_eq!(Arc::strong_count(&arena), 1, "something still uses the arena");
}
