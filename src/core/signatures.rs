//! Which entries of the legs' signature tables may be believed.
//!
//! The tables themselves are others' (`runtime::signature_table`); here is one bit for each extent and leg. An entry is
//! *trusted* while it says what the leg holds, or while there is none: a table that says nothing of an extent says nothing
//! wrong. It is *stale* from the moment that a mutation of the extent is admitted which may reach the leg, until it is forgotten
//! durably, or noted anew.
//!
//! *What must hold:* whoever believes a table finds no stale entry in it. *How:* while this core lives, nobody believes an entry
//! that is not trusted. For the next one, what is stale is forgotten, durably, before a record says clean, and before what is
//! saved as dirty or marked active says less ([`Signatures::forget_stale`]). Entries are noted and forgotten by one thread, in the
//! order in which that is asked for here.
//!
//! *While an entry is being noted* it is neither: a mutation that is admitted meanwhile makes it stale, whatever comes of it.
//!
//! An extent that was written and is not trusted any more is hashed when it has been *quiet* for a while. Two bits say that without a
//! clock for each extent: written in this span of time, and in the one before.

use super::bits::Bits;
use super::geometry::{Geometry, Range};
use super::leg::LegId;

/// Entries that can be noted at once.
pub const NOTING: usize = 16;

/// The number of a note under way: below [`NOTING`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoteId(pub u8);

/// What is known of one leg's entries.
struct Entries {
    trusted: Bits,
    stale: Bits,
    /// What is being forgotten.
    forgetting: Bits,
}

/// A note under way.
#[derive(Clone, Copy)]
struct Noting {
    extent: u64,
    /// By leg: it is still right.
    right: [bool; 2],
}

/// See the module.
pub struct Signatures {
    shift: u32,
    legs: [Entries; 2],
    noting: [Option<Noting>; NOTING],
    under_way: usize,
    recent: Bits,
    previous: Bits,
    /// By leg: the table is being emptied.
    emptying: [bool; 2],
    /// Not to be hashed again before they are written: they could not be read, or differ.
    odd: Bits,
}

impl Signatures {
    /// All entries are trusted: whoever opened the tables has emptied those that are not to be believed.
    pub fn new(geometry: &Geometry) -> Signatures {
        let extents = geometry.extents();
        let none = || Bits::none(extents);
        Signatures {
            shift: geometry.extent.trailing_zeros(),
            legs: std::array::from_fn(|_| Entries {
                trusted: Bits::all(extents),
                stale: none(),
                forgetting: none(),
            }),
            noting: [None; NOTING],
            under_way: 0,
            recent: none(),
            previous: none(),
            odd: none(),
            emptying: [false; 2],
        }
    }

    fn of(&self, range: Range) -> std::ops::Range<u64> {
        range.start >> self.shift..((range.end() - 1) >> self.shift) + 1
    }

    /// A guest's mutation of `range` is admitted.
    #[inline]
    pub fn write(&mut self, range: Range, reached: [bool; 2]) {
        for extent in self.of(range) {
            self.recent.insert(extent);
        }
        self.touch(range, reached);
    }

    /// What these legs hold of `range` may change from now on.
    #[inline]
    pub fn touch(&mut self, range: Range, reached: [bool; 2]) {
        for extent in self.of(range) {
            for (entries, reached) in self.legs.iter_mut().zip(reached) {
                if reached && entries.trusted.contains(extent) {
                    entries.trusted.remove(extent);
                    entries.stale.insert(extent);
                }
            }
        }
        if self.under_way > 0 {
            self.spoil_notes(range, reached);
        }
    }

    #[cold]
    fn spoil_notes(&mut self, range: Range, reached: [bool; 2]) {
        let extents = self.of(range);
        for note in self
            .noting
            .iter_mut()
            .flatten()
            .filter(|note| extents.contains(&note.extent))
        {
            for leg in LegId::ALL.into_iter().filter(|leg| reached[leg.index()]) {
                if std::mem::replace(&mut note.right[leg.index()], false) {
                    self.legs[leg.index()].stale.insert(note.extent);
                }
            }
        }
    }

    /// Nothing is known any more of what `leg` holds of the device.
    pub fn touch_all(&mut self, leg: LegId) {
        let entries = &mut self.legs[leg.index()];
        entries.stale.unite(&entries.trusted);
        entries.trusted.clear();
        for note in self.noting.iter_mut().flatten() {
            if std::mem::replace(&mut note.right[leg.index()], false) {
                entries.stale.insert(note.extent);
            }
        }
    }

    /// Nobody knows what `leg` holds, and its table has no entry: all of it is to be hashed.
    pub fn begin_unknown(&mut self, leg: LegId) {
        self.legs[leg.index()].trusted.clear();
    }

    /// Whether the table of `leg` is being emptied.
    pub fn is_emptying(&self, leg: LegId) -> bool {
        self.emptying[leg.index()]
    }

    /// The table of `leg` is emptied, or could not be.
    pub fn end_emptying(&mut self, leg: LegId) {
        self.emptying[leg.index()] = false;
    }

    /// The table of `leg` is to be emptied, after everything that was asked for before.
    pub fn begin_emptying(&mut self, leg: LegId) {
        self.emptying[leg.index()] = true;
        let extents = self.recent.len();
        let entries = &mut self.legs[leg.index()];
        entries.trusted = Bits::all(extents);
        entries.stale.clear();
        // What is being forgotten stays in the list: that says when it is done, and not of what.
        self.noting
            .iter_mut()
            .flatten()
            .for_each(|note| note.right[leg.index()] = false);
    }

    /// Whether an entry may be believed, if there is one.
    pub fn is_trusted(&self, leg: LegId, extent: u64) -> bool {
        self.legs[leg.index()].trusted.contains(extent)
    }

    /// The extents whose entries may be believed, if there are any.
    pub fn trusted(&self, leg: LegId) -> &Bits {
        &self.legs[leg.index()].trusted
    }

    /// Whether an entry is being noted.
    pub fn is_noting(&self) -> bool {
        self.under_way > 0
    }

    /// An entry is about to be noted on these legs, of what they hold now. `None`: too many are under way.
    pub fn begin_note(&mut self, extent: u64, legs: [bool; 2]) -> Option<NoteId> {
        let free = self.noting.iter().position(Option::is_none)?;
        // Two of one extent would not know of each other.
        if self.noting.iter().flatten().any(|note| note.extent == extent) {
            return None;
        }
        self.noting[free] = Some(Noting { extent, right: legs });
        self.under_way += 1;
        for leg in LegId::ALL.into_iter().filter(|leg| legs[leg.index()]) {
            // It takes the place of whatever is there, before anything that is asked for later.
            let entries = &mut self.legs[leg.index()];
            entries.stale.remove(extent);
            entries.trusted.remove(extent);
        }
        Some(NoteId(free as u8))
    }

    /// It is noted.
    pub fn end_note(&mut self, id: NoteId) {
        let note = self.noting[usize::from(id.0)].take().expect("it is being noted");
        self.under_way -= 1;
        for leg in LegId::ALL.into_iter().filter(|leg| note.right[leg.index()]) {
            self.legs[leg.index()].trusted.insert(note.extent);
        }
    }

    /// Have what is stale forgotten; it is [`Signatures::forgetting`] until that has ended. Called again before, it is
    /// what is forgotten in all.
    pub fn forget_stale(&mut self) {
        for entries in &mut self.legs {
            entries.forgetting.unite(&entries.stale);
            entries.stale.clear();
        }
    }

    /// What is being forgotten.
    pub fn forgetting(&self, leg: LegId) -> &Bits {
        &self.legs[leg.index()].forgetting
    }

    /// It is forgotten, or is not: then it is still to be.
    pub fn forgotten(&mut self, done: bool) {
        for entries in &mut self.legs {
            if !done {
                entries.stale.unite(&entries.forgetting);
                // One that was noted meanwhile is forgotten along with it, which is always true.
            }
            entries.forgetting.clear();
        }
    }

    /// A span of time is over, in which what is quiet was not written. Returns how many extents were written in it and in the one
    /// before: what was hashed of them in between would be of no use.
    pub fn turn(&mut self) -> u64 {
        self.odd.subtract(&self.recent);
        let pairs = self.recent.words().iter().zip(self.previous.words());
        let hot = pairs
            .map(|(recent, previous)| u64::from((recent & previous).count_ones()))
            .sum();
        std::mem::swap(&mut self.previous, &mut self.recent);
        self.recent.clear();
        hot
    }

    /// Whether the extent was written not long ago.
    pub fn is_hot(&self, extent: u64) -> bool {
        self.recent.contains(extent) || self.previous.contains(extent)
    }

    /// Leave an extent alone until it is written.
    pub fn leave(&mut self, extent: u64) {
        self.odd.insert(extent);
    }

    /// How many extents are not trusted on one of `legs`.
    pub fn untrusted(&self, legs: [bool; 2]) -> u64 {
        let extents = self.recent.len();
        let trusted = match legs {
            [true, true] => {
                let both = self.legs[0].trusted.words().iter().zip(self.legs[1].trusted.words());
                both.map(|(a, b)| u64::from((a & b).count_ones())).sum()
            }
            [true, false] => self.legs[0].trusted.count(),
            [false, true] => self.legs[1].trusted.count(),
            [false, false] => extents,
        };
        extents - trusted
    }

    /// What was left alone in `range` is not any more.
    pub fn come_back(&mut self, range: Range) {
        self.of(range).for_each(|extent| self.odd.remove(extent));
    }

    /// Whether something was written that is not quiet yet.
    pub fn is_active(&self) -> bool {
        !self.recent.is_empty() || !self.previous.is_empty()
    }

    /// The next extent, from `from` on, that is quiet and not trusted on one of `legs`.
    pub fn next_quiet(&self, from: u64, legs: [bool; 2]) -> Option<u64> {
        let bits = [&self.recent, &self.previous, &self.odd];
        let untrusted = self.legs.iter().zip(legs).filter(|(_, asked)| *asked);
        let first = (from / 64) as usize;
        for word in first..self.recent.words().len() {
            let untrusted = untrusted
                .clone()
                .fold(0, |all, (entries, _)| all | !entries.trusted.words()[word]);
            let mut quiet = bits.iter().fold(untrusted, |all, bits| all & !bits.words()[word]);
            if word == first {
                quiet &= u64::MAX << (from % 64);
            }
            let extent = word as u64 * 64 + u64::from(quiet.trailing_zeros());
            if quiet != 0 && extent < self.recent.len() {
                return Some(extent);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [bool; 2] = [true, false];
    const BOTH: [bool; 2] = [true; 2];

    fn signatures() -> (Signatures, impl Fn(u64) -> Range) {
        let geometry = Geometry::new(100 << 20, 512);
        (Signatures::new(&geometry), |extent| {
            Range::new((extent << 20) + 4096, 4096)
        })
    }

    #[test]
    fn an_entry_is_stale_from_the_write_on_until_it_is_forgotten_or_noted_anew() {
        let (mut signatures, of) = signatures();
        signatures.write(of(7), A);
        signatures.write(of(9), BOTH);
        assert!(!signatures.is_trusted(LegId::A, 7) && signatures.is_trusted(LegId::B, 7));
        signatures.forget_stale();
        assert!(signatures.forgetting(LegId::A).iter().eq([7, 9]));
        assert!(signatures.forgetting(LegId::B).iter().eq([9]));
        signatures.forgotten(false);
        let note = signatures.begin_note(9, BOTH).unwrap();
        signatures.forget_stale();
        assert!(
            signatures.forgetting(LegId::A).iter().eq([7]),
            "what is being noted is not forgotten"
        );
        signatures.forgotten(true);
        signatures.end_note(note);
        assert!(signatures.is_trusted(LegId::A, 9) && !signatures.is_trusted(LegId::A, 7));
        signatures.forget_stale();
        assert!(signatures.forgetting(LegId::A).is_empty(), "it is forgotten once");
    }

    #[test]
    fn a_write_while_an_entry_is_noted_makes_it_stale() {
        let (mut signatures, of) = signatures();
        let note = signatures.begin_note(3, BOTH).unwrap();
        signatures.write(of(3), A);
        assert_eq!(signatures.begin_note(3, A), None, "two notes of one extent");
        signatures.end_note(note);
        assert!(!signatures.is_trusted(LegId::A, 3) && signatures.is_trusted(LegId::B, 3));
        signatures.forget_stale();
        assert!(signatures.forgetting(LegId::A).iter().eq([3]));
    }

    #[test]
    fn a_table_that_is_emptied_is_trusted_and_what_is_noted_meanwhile_is_not() {
        let (mut signatures, of) = signatures();
        signatures.write(of(3), BOTH);
        let note = signatures.begin_note(4, BOTH).unwrap();
        signatures.begin_emptying(LegId::B);
        signatures.write(of(4), [false, true]);
        signatures.end_note(note);
        assert!(signatures.is_trusted(LegId::B, 3) && !signatures.is_trusted(LegId::B, 4));
        signatures.touch_all(LegId::B);
        signatures.forget_stale();
        assert_eq!(signatures.forgetting(LegId::B).count(), 100);
        assert!(signatures.is_trusted(LegId::A, 4));
    }

    #[test]
    fn an_extent_is_quiet_when_it_was_not_written_for_a_whole_span() {
        let (mut signatures, of) = signatures();
        assert_eq!(signatures.next_quiet(0, BOTH), None, "nothing was written");
        signatures.write(of(70), A);
        signatures.turn();
        signatures.write(of(71), A);
        assert_eq!(signatures.next_quiet(0, BOTH), None);
        signatures.turn();
        assert_eq!(signatures.next_quiet(0, BOTH), Some(70));
        assert_eq!(signatures.next_quiet(70, BOTH), Some(70));
        assert_eq!(signatures.next_quiet(71, BOTH), None);
        assert_eq!(
            signatures.next_quiet(0, [false, true]),
            None,
            "it did not reach this leg"
        );
        signatures.leave(70);
        assert_eq!(signatures.next_quiet(0, BOTH), None);
        signatures.write(of(70), A);
        signatures.turn();
        signatures.turn();
        assert_eq!(signatures.next_quiet(0, BOTH), Some(70), "it was written since");
        assert!(!signatures.is_active());
    }
}
