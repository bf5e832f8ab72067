//! The mutations under way: one entry for each guest write, zeroing or discard and for each piece of a walk, from
//! arrival until both legs are done with it and the guest is answered.

use crate::core::geometry::Range;
use crate::core::layout::Buf;
use crate::core::request::{Errno, Tag};
use crate::core::time::Time;

/// What is known of a mutation on one leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// It does not concern this leg.
    Absent,
    /// Held back by order, epoch or the number of operations in flight.
    Waiting,
    /// The leg is at it.
    Issued,
    /// The leg is at it, but nobody counts on it any more; its buffer is still the leg's.
    Abandoned,
    /// Completed (or failed, see [`Entry::error`]).
    Done,
    /// Never reached the leg, or nobody knows: the range is dirty.
    Missed,
}

impl Side {
    /// Whether the leg may still touch the buffer, now or later.
    pub(super) fn holds_buffer(self) -> bool {
        matches!(self, Side::Waiting | Side::Issued | Side::Abandoned)
    }
}

/// On whose behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A guest's request that is not answered yet.
    Guest(Tag),
    /// A guest's request that is answered.
    Answered,
    /// A piece of a walk, by slot.
    Walk(u16),
    /// A guest's read that the primary failed and that is served from the secondary; see `rewrite`.
    Read(Tag),
}

/// What it does to the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Write {
        fua: bool,
    },
    Zero {
        unmap: bool,
        fua: bool,
    },
    Copy,
    /// What the secondary holds is written to the primary.
    Rewrite,
}

impl Change {
    /// Whether it is acknowledged only when it is durable.
    pub(super) fn is_fua(self) -> bool {
        matches!(self, Change::Write { fua: true } | Change::Zero { fua: true, .. })
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub range: Range,
    pub change: Change,
    pub owner: Owner,
    /// By leg.
    pub sides: [Side; 2],
    /// By leg: where the bytes lie.
    pub bufs: [Buf; 2],
    /// Memory of the pool that goes back to it at the end.
    pub block: Option<Buf>,
    /// 0: in none.
    pub epoch: u64,
    /// 0: not completed on the primary, or of no interest to the counters.
    pub generation: u64,
    /// When it was admitted.
    pub arrived: Time,
    /// When the secondary began.
    pub issued_at: Time,
    /// What the primary answered.
    pub error: Option<Errno>,
    /// Its regions are marked.
    pub marked: bool,
    /// Both legs are done.
    pub settled: bool,
    pub live: bool,
}

/// A table of entries with a bound.
pub(super) struct Table {
    entries: Vec<Entry>,
    free: Vec<u32>,
    len: usize,
    capacity: usize,
}

impl Table {
    pub(super) fn new(capacity: usize) -> Table {
        Table {
            entries: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            len: 0,
            capacity,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many more entries fit.
    pub(super) fn room(&self) -> usize {
        self.capacity - self.len
    }

    pub(super) fn insert(&mut self, entry: Entry) -> u32 {
        self.len += 1;
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = entry;
            return index;
        }
        assert!(self.entries.len() < self.capacity, "admission leaves room in the table");
        self.entries.push(entry);
        self.entries.len() as u32 - 1
    }

    pub(super) fn remove(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        assert!(entry.live, "an entry is removed once");
        entry.live = false;
        self.len -= 1;
        self.free.push(index);
    }

    /// Indices that have ever been used; look at `live`.
    pub(super) fn indices(&self) -> std::ops::Range<u32> {
        0..self.entries.len() as u32
    }
}

impl std::ops::Index<u32> for Table {
    type Output = Entry;

    fn index(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }
}

impl std::ops::IndexMut<u32> for Table {
    fn index_mut(&mut self, index: u32) -> &mut Entry {
        &mut self.entries[index as usize]
    }
}
