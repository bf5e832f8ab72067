//! Which bytes of the arena are backed by locked memory.
//!
//! Making memory available or giving it back takes milliseconds for a pool, which no guest request is to wait for. So
//! an administrator's thread makes it available *before* it asks the core for something that needs it
//! ([`Residence::prepare`]), and the core's effect then finds it there; and a worker gives it back.
//!
//! Invariant: memory that the core has asked for is not given back until the core says so. A giving back that is under
//! way is waited for before the same bytes are wanted again; it cannot begin in between, because both are effects,
//! carried out by one thread.

use crate::io::Arena;
use crate::io::arena::NotLocked;
use std::sync::{Arc, Condvar, Mutex};

/// A span of the arena, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl Span {
    fn end(self) -> u64 {
        self.start + self.len
    }

    fn overlaps(self, other: Span) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

#[derive(Debug, Default)]
struct Ledger {
    /// Disjoint and in order.
    there: Vec<Span>,
    /// Being given back.
    leaving: Vec<Span>,
}

/// The arena's memory; see the module.
#[derive(Debug)]
pub struct Residence {
    arena: Arc<Arena>,
    ledger: Mutex<Ledger>,
    left: Condvar,
}

impl Residence {
    /// An arena of which nothing is there yet.
    pub fn new(arena: Arc<Arena>) -> Residence {
        Residence {
            arena,
            ledger: Mutex::default(),
            left: Condvar::new(),
        }
    }

    /// Make the memory of `span` available, unless it is already. Returns when it is there.
    ///
    /// # Errors
    /// [`NotLocked`]: the memory is there but not locked.
    pub fn prepare(&self, span: Span) -> Result<(), NotLocked> {
        let mut ledger = self.lock();
        while ledger.leaving.iter().any(|leaving| leaving.overlaps(span)) {
            ledger = self.left.wait(ledger).expect("nobody panics while holding the ledger");
        }
        if ledger.covers(span) {
            return Ok(());
        }
        drop(ledger);
        let locked = self.arena.populate(span.start, span.len, true);
        self.lock().add(span);
        locked
    }

    /// Note that `span` is of no use any more. Returns whether somebody has to call [`Residence::give_back`] for it;
    /// if not, a call that is owed already will do.
    pub fn leave(&self, span: Span) -> bool {
        let mut ledger = self.lock();
        ledger.remove(span);
        let is_first = ledger.leaving.is_empty();
        ledger.leaving.push(span);
        is_first
    }

    /// Give back all that was noted.
    pub fn give_back(&self) {
        loop {
            // It stays noted until it is gone: it must not be wanted again before.
            let Some(&span) = self.lock().leaving.last() else {
                return;
            };
            // Giving back locks nothing, so it cannot fail to.
            let _ = self.arena.populate(span.start, span.len, false);
            self.lock().leaving.retain(|leaving| *leaving != span);
            self.left.notify_all();
        }
    }

    /// How many bytes are there.
    pub fn bytes(&self) -> u64 {
        self.lock().there.iter().map(|span| span.len).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nobody panics while holding the ledger")
    }
}

impl Ledger {
    fn covers(&self, span: Span) -> bool {
        self.there
            .iter()
            .any(|there| there.start <= span.start && span.end() <= there.end())
    }

    fn add(&mut self, mut span: Span) {
        self.there.retain(|there| {
            let apart = there.end() < span.start || span.end() < there.start;
            if !apart {
                let end = span.end().max(there.end());
                span.start = span.start.min(there.start);
                span.len = end - span.start;
            }
            apart
        });
        let at = self.there.partition_point(|there| there.start < span.start);
        self.there.insert(at, span);
    }

    fn remove(&mut self, span: Span) {
        let mut rest = Vec::with_capacity(self.there.len() + 1);
        for there in self.there.drain(..) {
            for (start, end) in [
                (there.start, there.end().min(span.start)),
                (there.start.max(span.end()), there.end()),
            ] {
                if start < end {
                    rest.push(Span {
                        start,
                        len: end - start,
                    });
                }
            }
        }
        self.there = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span {
            start,
            len: end - start,
        }
    }

    #[test]
    fn the_ledger_is_the_set_of_bytes() {
        // Against a plain set of units, over all short histories of two kinds of changes.
        let spans: Vec<Span> = (0..5)
            .flat_map(|start| (start + 1..6).map(move |end| span(start, end)))
            .collect();
        for &first in &spans {
            for &second in &spans {
                for &third in &spans {
                    let mut ledger = Ledger::default();
                    ledger.add(first);
                    ledger.add(second);
                    ledger.remove(third);
                    let is_there = |unit: u64| {
                        let unit = span(unit, unit + 1);
                        (first.overlaps(unit) || second.overlaps(unit)) && !third.overlaps(unit)
                    };
                    for unit in 0..6 {
                        assert_eq!(
                            ledger.covers(span(unit, unit + 1)),
                            is_there(unit),
                            "{first:?} {second:?} {third:?}"
                        );
                    }
                    assert!(ledger.there.windows(2).all(|pair| pair[0].end() < pair[1].start));
                }
            }
        }
    }

    #[test]
    fn memory_that_leaves_is_waited_for_before_it_is_wanted_again() {
        let arena = Arc::new(Arena::reserve(1 << 20).unwrap());
        let residence = Arc::new(Residence::new(Arc::clone(&arena)));
        let whole = span(0, 1 << 20);
        let _ = residence.prepare(whole);
        arena.write(crate::core::Buf(0), &[1; 512]);
        assert!(residence.leave(whole));
        let wanted = {
            let residence = Arc::clone(&residence);
            std::thread::spawn(move || {
                let _ = residence.prepare(whole);
            })
        };
        residence.give_back();
        wanted.join().unwrap();
        assert_eq!(residence.bytes(), 1 << 20);
        arena.write(crate::core::Buf(0), &[2; 512]);
        let mut now = [0; 512];
        arena.read(crate::core::Buf(0), &mut now);
        assert_eq!(now, [2; 512]);
    }
}
