//! What a shard has to tell, for everybody who waits for it.
//!
//! A board of the newest of each kind of event, every entry with the number under which it was pinned, so that whoever
//! started something can tell its outcome from an older one; and the last few events in order, for the log. It has a
//! bound, however fast events come: an event that nobody read in time is counted, and the board still has the newest
//! of its kind. The shard never waits for a reader longer than it takes to look at the board.

use crate::core::{Errno, Event, Health, LegId, Suspect};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// How many events are kept in order.
const RECENT: usize = 256;

/// How many differing ranges of one verify are kept; further ones are counted.
pub const DIFFERENCES: usize = 4096;

/// The number of an event: higher than that of any before, and above 0.
pub type Number = u64;

/// What can be seen at one moment.
#[derive(Debug, Default)]
pub struct Board {
    /// The number of the newest event.
    pub newest: Number,
    /// The newest durable health of each leg that has changed.
    pub health: [Option<(Number, Health)>; 2],
    /// The newest outcome of a switch.
    pub switch: Option<(Number, Event)>,
    /// The newest end of a detach, by leg.
    pub detached: [Number; 2],
    /// The newest release of a leg: its descriptor is closed. By leg.
    pub released: [Number; 2],
    /// The newest end of a resync.
    pub resync: Option<(Number, Event)>,
    /// The newest end of a verify.
    pub verified: Option<(Number, Event)>,
    /// The newest end of a digest.
    pub digested: Option<(Number, Event)>,
    /// The newest end of a hand-over.
    pub hand_over: Option<(Number, Event)>,
    /// The newest end of a change of the protocol.
    pub protocol: Option<(Number, Event)>,
    /// The number of the newest durable record that the shard asked for.
    pub recorded: u64,
    /// The newest record whose write ended in an error, and which.
    pub not_recorded: Option<(u64, Errno)>,
    /// Everything is drained and flushed; whether the record says clean.
    pub stopped: Option<bool>,
    /// The kernel sends no more requests.
    pub gone: bool,
    /// The shard has ended; nothing changes any more.
    pub ended: bool,
    /// What the running or last verify has found.
    pub differences: Differences,
    recent: VecDeque<(Number, Event)>,
}

/// Ranges that differ, in order; neighbours are one range.
#[derive(Debug, Default)]
pub struct Differences {
    /// The first [`DIFFERENCES`] of them.
    pub ranges: Vec<Suspect>,
    /// How many there are.
    pub count: u64,
    /// Where the last one ends, and who is wrong there.
    end: Option<(u64, Option<LegId>)>,
}

impl Differences {
    fn note(&mut self, suspect: Suspect) {
        let Suspect { range, wrong } = suspect;
        let goes_on = self.end.replace((range.end(), wrong)) == Some((range.start, wrong));
        if !goes_on {
            self.count += 1;
            if self.ranges.len() < DIFFERENCES {
                self.ranges.push(suspect);
            }
        } else if self.count == self.ranges.len() as u64
            && let Some(last) = self.ranges.last_mut()
        {
            last.range.len += range.len;
        }
    }
}

impl Board {
    /// The kept events after `number`, oldest first, and how many are kept no more.
    pub fn since(&self, number: Number) -> (impl Iterator<Item = (Number, Event)> + '_, u64) {
        let kept = self.recent.iter().filter(move |(at, _)| *at > number).copied();
        let oldest = self.recent.front().map_or(self.newest, |(at, _)| at - 1);
        (kept, oldest.saturating_sub(number))
    }

    fn pin(&mut self, event: Event) {
        self.newest += 1;
        let number = self.newest;
        match event {
            Event::Switched { .. } | Event::SwitchGivenUp { .. } => self.switch = Some((number, event)),
            Event::Detached(leg) => self.detached[leg.index()] = number,
            Event::ResyncEnded { .. } => self.resync = Some((number, event)),
            Event::Verified { .. } => self.verified = Some((number, event)),
            Event::Digested { .. } => self.digested = Some((number, event)),
            Event::ProtocolSet { .. } => self.protocol = Some((number, event)),
            Event::Stopped { clean } => self.stopped = Some(clean),
            Event::HandedOver { .. } | Event::HandOverGivenUp { .. } => self.hand_over = Some((number, event)),
            // Each can come as often as there are blocks: kept apart, so that they push nothing else out.
            Event::Difference(suspect) => return self.differences.note(suspect),
            Event::Health { leg, health } => self.health[leg.index()] = Some((number, health)),
            Event::LegError { .. }
            | Event::Tracked(_)
            | Event::FailedOver { .. }
            | Event::Rewritten(_)
            | Event::Strayed(_)
            | Event::Rechecked { .. }
            | Event::Mended { .. } => {}
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((number, event));
    }
}

/// The board, to be shared.
#[derive(Debug)]
pub struct Bulletin {
    board: Mutex<Board>,
    changed: Condvar,
}

impl Default for Bulletin {
    fn default() -> Bulletin {
        // All the memory that the shard will ever need here.
        let board = Board {
            recent: VecDeque::with_capacity(RECENT),
            ..Board::default()
        };
        Bulletin {
            board: Mutex::new(board),
            changed: Condvar::new(),
        }
    }
}

impl Bulletin {
    /// Look at it.
    pub fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().expect("nobody panics while holding the board")
    }

    /// Tell an event.
    pub fn tell(&self, event: Event) {
        self.change(|board| board.pin(event));
    }

    /// Tell how the write of a record has ended.
    pub fn tell_recorded(&self, number: u64, result: Result<(), Errno>) {
        self.change(|board| match result {
            Ok(()) => board.recorded = number,
            Err(error) => board.not_recorded = Some((number, error)),
        });
    }

    /// Tell that a leg's descriptor is closed.
    pub fn tell_released(&self, leg: LegId) {
        self.change(|board| {
            board.newest += 1;
            board.released[leg.index()] = board.newest;
        });
    }

    /// Change something else, and wake whoever waits.
    pub fn change(&self, change: impl FnOnce(&mut Board)) {
        change(&mut self.board());
        self.changed.notify_all();
    }

    /// Wait until `found` finds what it looks for, which is returned; or until the time has come (`None`). It is asked
    /// at once and after each change, and once more after the shard has ended.
    pub fn wait<T>(&self, until: Option<Instant>, mut found: impl FnMut(&mut Board) -> Option<T>) -> Option<T> {
        let mut board = self.board();
        loop {
            let found = found(&mut board);
            if found.is_some() || board.ended {
                return found;
            }
            board = match until {
                None => self.changed.wait(board).expect("nobody panics while holding the board"),
                Some(until) => {
                    let left = until
                        .checked_duration_since(Instant::now())
                        .filter(|left| !left.is_zero())?;
                    self.changed
                        .wait_timeout(board, left)
                        .expect("nobody panics while holding the board")
                        .0
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Range;
    use crate::core::effect::Action;

    const SET: Event = Event::ProtocolSet { done: true };
    const ERROR: Event = Event::LegError {
        leg: LegId::B,
        action: Action::Flush,
        range: Range::EMPTY,
        error: Errno::IO,
    };

    #[test]
    fn a_flood_of_errors_neither_grows_the_board_nor_hides_an_outcome() {
        let bulletin = Bulletin::default();
        bulletin.tell(Event::ResyncEnded { in_sync: true });
        for _ in 0..10_000 {
            bulletin.tell(ERROR);
        }
        let board = bulletin.board();
        assert_eq!(board.resync, Some((1, Event::ResyncEnded { in_sync: true })));
        assert_eq!(
            board.recent.capacity(),
            VecDeque::<(Number, Event)>::with_capacity(RECENT).capacity()
        );
        let (kept, missed) = board.since(0);
        assert_eq!(kept.count() as u64 + missed, 10_001);
    }

    #[test]
    fn nothing_is_missed_by_a_reader_that_keeps_up() {
        let bulletin = Bulletin::default();
        let mut seen = 0;
        for _ in 0..3 {
            bulletin.tell(ERROR);
            bulletin.tell(SET);
            let board = bulletin.board();
            let (events, missed) = board.since(seen);
            assert_eq!(events.map(|(_, event)| event).collect::<Vec<_>>(), [ERROR, SET]);
            assert_eq!(missed, 0);
            seen = board.newest;
        }
    }

    fn place(start: u64, len: u64) -> Suspect {
        Suspect {
            range: Range::new(start, len),
            wrong: None,
        }
    }

    #[test]
    fn neighbouring_differences_are_one_and_too_many_are_counted() {
        let bulletin = Bulletin::default();
        for i in 0..DIFFERENCES as u64 + 10 {
            bulletin.tell(Event::Difference(place(i * 8192, 512)));
            bulletin.tell(Event::Difference(place(i * 8192 + 512, 512)));
        }
        let board = bulletin.board();
        assert_eq!(board.differences.ranges.len(), DIFFERENCES);
        assert_eq!(board.differences.ranges[7], place(7 * 8192, 1024));
        assert_eq!(board.differences.count, DIFFERENCES as u64 + 10);
    }

    #[test]
    fn a_waiter_learns_of_what_happened_before_and_of_the_end() {
        let bulletin = Bulletin::default();
        bulletin.tell(SET);
        assert_eq!(bulletin.wait(None, |board| board.protocol), Some((1, SET)));
        let past = Instant::now();
        assert_eq!(bulletin.wait(Some(past), |board| board.stopped), None);
        bulletin.change(|board| board.ended = true);
        assert_eq!(bulletin.wait(None, |board| board.stopped), None);
    }
}
