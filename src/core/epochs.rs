//! Epochs: the mutations between two barriers, as the secondary sees them.
//!
//! *What must hold:* no mutation of an epoch starts on the secondary before every mutation of the epoch before it is
//! durable there. Then the secondary is at every moment what a disk may legally be after a power cut: some prefix of the
//! epochs, and any part of the next one.
//!
//! *How:* the front of the queue is the only epoch that may start there, the back is the one that arrivals join. A barrier
//! closes the back if it is not empty. A closed front is complete when nothing of it is outstanding (on either leg: only
//! then does every mutation of it have its generation); it is then flushed, and durable when that flush, which was
//! issued after the last of them had landed, has completed. The next one starts behind it.
//!
//! *Why a barrier ends:* it waits for the epochs that were closed when it arrived. What arrives later joins a later one.

use std::collections::VecDeque;

struct Epoch {
    number: u64,
    members: u32,
    outstanding: u32,
}

/// The epochs that are not durable on the secondary, oldest first; the last is open.
pub struct Epochs {
    queue: VecDeque<Epoch>,
    durable: u64,
}

impl Epochs {
    /// One open epoch; at most `bound` can be waiting.
    pub fn new(bound: usize) -> Epochs {
        let mut queue = VecDeque::with_capacity(bound + 2);
        queue.push_back(Epoch {
            number: 1,
            members: 0,
            outstanding: 0,
        });
        Epochs { queue, durable: 0 }
    }

    /// The epoch that arrivals join.
    pub fn open(&self) -> u64 {
        self.back().number
    }

    /// The epoch whose mutations may start on the secondary.
    pub fn current(&self) -> u64 {
        self.front().number
    }

    /// The newest epoch that is durable on the secondary.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// A mutation arrives. Returns its epoch.
    pub fn join(&mut self) -> u64 {
        let open = self.queue.back_mut().expect("one epoch is always open");
        open.members += 1;
        open.outstanding += 1;
        open.number
    }

    /// A mutation of `epoch` is done on both legs.
    pub fn leave(&mut self, epoch: u64) {
        let at = epoch - self.front().number;
        self.queue[at as usize].outstanding -= 1;
    }

    /// A barrier arrives: what has arrived ends an epoch. Returns the epoch that must be durable for it.
    pub fn close(&mut self) -> u64 {
        let open = self.back();
        if open.members == 0 {
            return open.number - 1;
        }
        self.close_even_empty()
    }

    /// As [`Epochs::close`], but for an empty epoch too.
    pub fn close_even_empty(&mut self) -> u64 {
        let number = self.back().number;
        self.queue.push_back(Epoch {
            number: number + 1,
            members: 0,
            outstanding: 0,
        });
        number
    }

    /// Whether the current epoch is closed and all of it has landed: it is to be flushed.
    pub fn is_complete(&self) -> bool {
        self.queue.len() > 1 && self.front().outstanding == 0 && self.durable < self.front().number
    }

    /// The current epoch is durable (it stays current until [`Epochs::advance`]).
    pub fn set_durable(&mut self) {
        self.durable = self.front().number;
    }

    /// The epoch behind the durable one becomes current.
    pub fn advance(&mut self) {
        debug_assert!(self.durable == self.front().number && self.queue.len() > 1);
        self.queue.pop_front();
    }

    /// The secondary follows no more: nothing is outstanding, nothing waits.
    pub fn reset(&mut self) {
        let next = self.open() + 1;
        self.queue.clear();
        self.queue.push_back(Epoch {
            number: next,
            members: 0,
            outstanding: 0,
        });
        self.durable = next - 1;
    }

    fn front(&self) -> &Epoch {
        self.queue.front().expect("one epoch is always open")
    }

    fn back(&self) -> &Epoch {
        self.queue.back().expect("one epoch is always open")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_waits_for_what_had_arrived_and_for_nothing_later() {
        let mut epochs = Epochs::new(4);
        assert_eq!(
            epochs.close(),
            epochs.durable(),
            "nothing has arrived: nothing to wait for"
        );
        let first = epochs.join();
        let barrier = epochs.close();
        assert_eq!(barrier, first);
        let second = epochs.join();
        assert!(second > first);
        assert_eq!(epochs.current(), first);
        assert!(!epochs.is_complete());
        epochs.leave(first);
        assert!(epochs.is_complete());
        epochs.set_durable();
        assert!(epochs.durable() >= barrier);
        epochs.advance();
        assert_eq!(epochs.current(), second);
        assert!(!epochs.is_complete(), "an open epoch is never complete");
    }

    #[test]
    fn a_barrier_behind_an_undurable_epoch_waits_for_it_even_when_nothing_came_between() {
        let mut epochs = Epochs::new(4);
        let first = epochs.join();
        assert_eq!(epochs.close(), first);
        assert_eq!(epochs.close(), first);
        epochs.reset();
        assert!(epochs.durable() >= first);
    }
}
