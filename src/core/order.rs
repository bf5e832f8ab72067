//! Overlapping operations of one leg take effect in the order in which they arrived.
//!
//! Every mutation of a leg is entered on arrival, with the slot it has in the table of mutations. It may start once no
//! earlier one that shares a byte with it is left. Nothing else is ordered: two mutations that do not overlap never wait
//! for each other.
//!
//! *Why it cannot deadlock:* an operation waits only for operations that arrived before it.
//!
//! *Cost:* places are hashed by bucket (a bucket is at least as long as the largest write, so a write lies in at most
//! two). Ranges longer than that, discards and copies, are few and kept in a list of their own that everything is held against.

use super::geometry::Range;

const NONE: u32 = u32::MAX;
const HEADS: usize = 1024;

#[derive(Clone, Copy)]
struct Link {
    next: u32,
    prev: u32,
}

#[derive(Clone, Copy)]
struct Node {
    start: u64,
    end: u64,
    /// Position in the order of arrival.
    arrival: u64,
    /// Earlier overlapping operations that are left.
    blockers: u32,
    present: bool,
    wide: bool,
    /// The operation's places in the chains of its first and second bucket. A chain names node `n`, link `l` as `2n + l`.
    links: [Link; 2],
}

const VACANT: Node = Node {
    start: 0,
    end: 0,
    arrival: 0,
    blockers: 0,
    present: false,
    wide: false,
    links: [Link { next: NONE, prev: NONE }; 2],
};

/// The order of one leg. Slots are the caller's and below the capacity.
pub struct RangeOrder {
    bucket_shift: u32,
    nodes: Vec<Node>,
    heads: Box<[u32; HEADS]>,
    wide: Vec<u32>,
    arrivals: u64,
    len: usize,
}

impl RangeOrder {
    /// An order for slots below `capacity`, of which ranges up to `longest` bytes are the common kind.
    pub fn new(capacity: usize, longest: u64) -> RangeOrder {
        RangeOrder {
            bucket_shift: longest.next_power_of_two().trailing_zeros(),
            nodes: Vec::with_capacity(capacity),
            heads: Box::new([NONE; HEADS]),
            wide: Vec::with_capacity(256),
            arrivals: 0,
            len: 0,
        }
    }

    /// How many operations are entered.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is entered.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many of them are longer than the common kind.
    pub fn wide_len(&self) -> usize {
        self.wide.len()
    }

    /// Enter an operation as the latest. Returns whether it may start at once.
    pub fn insert(&mut self, slot: u32, range: Range) -> bool {
        debug_assert!(range.len > 0, "an operation without a range has no order");
        let (start, end) = (range.start, range.end());
        let (first, last) = self.buckets(start, end);
        if self.nodes.len() <= slot as usize {
            self.nodes.resize(slot as usize + 1, VACANT);
        }
        let wide = last - first > 1;
        let mut blockers = 0;
        let mut bucket = first;
        loop {
            let mut at = self.heads[head_of(bucket)];
            while at != NONE {
                let node = &self.nodes[(at >> 1) as usize];
                blockers += u32::from(overlap_begins_in(node, start, end, bucket, self.bucket_shift));
                at = node.links[(at & 1) as usize].next;
            }
            if bucket == last {
                break;
            }
            bucket += 1;
        }
        for &other in &self.wide {
            let node = &self.nodes[other as usize];
            blockers += u32::from(node.start < end && start < node.end);
        }
        self.arrivals += 1;
        let node = &mut self.nodes[slot as usize];
        assert!(!node.present, "a slot is entered once");
        // The links are written when it is linked, and not read before.
        node.start = start;
        node.end = end;
        node.arrival = self.arrivals;
        node.blockers = blockers;
        node.present = true;
        node.wide = wide;
        if wide {
            self.wide.push(slot);
        } else {
            self.link(slot << 1, head_of(first));
            if last != first && head_of(last) != head_of(first) {
                self.link(slot << 1 | 1, head_of(last));
            }
        }
        self.len += 1;
        blockers == 0
    }

    /// Whether the operation in `slot` may start.
    pub fn is_ready(&self, slot: u32) -> bool {
        let node = &self.nodes[slot as usize];
        node.present && node.blockers == 0
    }

    /// Whether an operation is entered in `slot`.
    pub fn contains(&self, slot: u32) -> bool {
        self.nodes.get(slot as usize).is_some_and(|node| node.present)
    }

    /// Take out an operation that has ended. The slots of those that may start now are appended to `ready`.
    pub fn remove(&mut self, slot: u32, ready: &mut Vec<u32>) {
        let node = &mut self.nodes[slot as usize];
        assert!(node.present, "only what was entered can be taken out");
        node.present = false;
        let (start, end, arrival, wide) = (node.start, node.end, node.arrival, node.wide);
        self.len -= 1;
        let (first, last) = self.buckets(start, end);
        if wide {
            let at = self.wide.iter().position(|&other| other == slot);
            self.wide
                .swap_remove(at.expect("a wide operation is in the list of wide ones"));
        } else {
            self.unlink(slot << 1, head_of(first));
            if last != first && head_of(last) != head_of(first) {
                self.unlink(slot << 1 | 1, head_of(last));
            }
        }
        let mut bucket = first;
        loop {
            let mut at = self.heads[head_of(bucket)];
            while at != NONE {
                let other = &mut self.nodes[(at >> 1) as usize];
                if other.arrival > arrival && overlap_begins_in(other, start, end, bucket, self.bucket_shift) {
                    other.blockers -= 1;
                    if other.blockers == 0 {
                        ready.push(at >> 1);
                    }
                }
                at = other.links[(at & 1) as usize].next;
            }
            if bucket == last {
                break;
            }
            bucket += 1;
        }
        for &slot in &self.wide {
            let other = &mut self.nodes[slot as usize];
            if other.arrival > arrival && other.start < end && start < other.end {
                other.blockers -= 1;
                if other.blockers == 0 {
                    ready.push(slot);
                }
            }
        }
    }

    /// Forget every operation.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.heads.fill(NONE);
        self.wide.clear();
        self.len = 0;
    }

    #[inline]
    fn buckets(&self, start: u64, end: u64) -> (u64, u64) {
        (start >> self.bucket_shift, (end - 1) >> self.bucket_shift)
    }

    #[inline]
    fn link(&mut self, at: u32, head: usize) {
        let next = std::mem::replace(&mut self.heads[head], at);
        self.nodes[(at >> 1) as usize].links[(at & 1) as usize] = Link { next, prev: NONE };
        if next != NONE {
            self.nodes[(next >> 1) as usize].links[(next & 1) as usize].prev = at;
        }
    }

    #[inline]
    fn unlink(&mut self, at: u32, head: usize) {
        let Link { next, prev } = self.nodes[(at >> 1) as usize].links[(at & 1) as usize];
        if prev == NONE {
            self.heads[head] = next;
        } else {
            self.nodes[(prev >> 1) as usize].links[(prev & 1) as usize].next = next;
        }
        if next != NONE {
            self.nodes[(next >> 1) as usize].links[(next & 1) as usize].prev = prev;
        }
    }
}

/// Whether the two ranges overlap and their common part begins in `bucket`: each pair is counted in one bucket only.
#[inline]
fn overlap_begins_in(node: &Node, start: u64, end: u64, bucket: u64, shift: u32) -> bool {
    node.start < end && start < node.end && node.start.max(start) >> shift == bucket
}

#[inline]
fn head_of(bucket: u64) -> usize {
    (bucket.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slow, obvious order: all operations in a list.
    #[derive(Default)]
    struct Oracle(Vec<(u32, Range)>);

    impl Oracle {
        fn ready(&self, slot: u32) -> bool {
            let at = self.0.iter().position(|(other, _)| *other == slot).unwrap();
            self.0[..at].iter().all(|(_, range)| !range.overlaps(self.0[at].1))
        }
    }

    fn next(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn starts_exactly_what_no_earlier_overlap_holds_back() {
        for seed in 1..200u64 {
            let mut state = seed.wrapping_mul(0x2545_F491_4F6C_DD1D);
            let mut order = RangeOrder::new(64, 128 << 10);
            let mut oracle = Oracle::default();
            let span = 1 + next(&mut state) % 4000;
            for _ in 0..400 {
                let free: Vec<u32> = (0..64).filter(|&slot| !order.contains(slot)).collect();
                if next(&mut state).is_multiple_of(2) && !free.is_empty() {
                    let slot = free[(next(&mut state) % free.len() as u64) as usize];
                    let sectors = match next(&mut state) % 10 {
                        0 => 1 + next(&mut state) % 16384,
                        _ => 1 + next(&mut state) % 256,
                    };
                    let range = Range::new((next(&mut state) % span) * 512, sectors * 512);
                    oracle.0.push((slot, range));
                    assert_eq!(order.insert(slot, range), oracle.ready(slot), "seed {seed}");
                } else if let Some(at) = oracle.0.iter().position(|(slot, _)| oracle.ready(*slot)) {
                    let before: Vec<u32> = oracle.0.iter().map(|e| e.0).filter(|&s| oracle.ready(s)).collect();
                    let (slot, _) = oracle.0.remove(at);
                    let mut ready = Vec::new();
                    order.remove(slot, &mut ready);
                    let mut expected: Vec<u32> = oracle
                        .0
                        .iter()
                        .map(|e| e.0)
                        .filter(|&s| oracle.ready(s) && !before.contains(&s))
                        .collect();
                    ready.sort();
                    expected.sort();
                    assert_eq!(ready, expected, "seed {seed}");
                }
                for (slot, _) in &oracle.0 {
                    assert_eq!(order.is_ready(*slot), oracle.ready(*slot), "seed {seed}");
                }
                assert_eq!(order.len(), oracle.0.len());
            }
        }
    }
}
