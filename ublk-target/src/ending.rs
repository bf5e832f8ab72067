//! How the daemon is asked to end, and what becomes of that.
//!
//! Whoever asks waits for the outcome; the main thread carries it out, one request after another.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use twinblk::control::{Error, HandedOver};
use twinblk::runtime::bulletin::Bulletin;

/// A request to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Of the device too.
    Stop {
        /// Although it is open.
        force: bool,
    },
    /// Of this daemon alone: another goes on.
    HandOver,
}

/// What was asked for is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The device is stopped.
    Stopped,
    /// Its guest waits for the next daemon.
    HandedOver(HandedOver),
}

#[derive(Default)]
struct State {
    wanted: Option<Wanted>,
    /// How many requests have been carried out, and how the last one went.
    done: u64,
    outcome: Option<Result<Ended, Error>>,
}

/// Where the two meet.
pub struct Ending {
    state: Mutex<State>,
    changed: Condvar,
    bulletin: Arc<Bulletin>,
}

impl Ending {
    /// Nobody has asked. The main thread waits for changes of `bulletin`.
    pub fn new(bulletin: Arc<Bulletin>) -> Ending {
        Ending {
            state: Mutex::default(),
            changed: Condvar::new(),
            bulletin,
        }
    }

    /// Ask, and wait for the outcome.
    ///
    /// # Errors
    /// It was refused or failed; the device is as it was, as far as the error does not say otherwise.
    pub fn ask(&self, wanted: Wanted) -> Result<Ended, Error> {
        let mut state = self.lock();
        while state.wanted.is_some() {
            state = self.wait(state);
        }
        state.wanted = Some(wanted);
        let number = state.done;
        drop(state);
        self.bulletin.change(|_| ());
        let mut state = self.lock();
        while state.done == number {
            state = self.wait(state);
        }
        state.outcome.clone().expect("an answer has an outcome")
    }

    /// What is asked for. It is to be answered with [`Ending::answer`].
    pub fn wanted(&self) -> Option<Wanted> {
        self.lock().wanted
    }

    /// Say how it went.
    pub fn answer(&self, outcome: Result<Ended, Error>) {
        let mut state = self.lock();
        state.wanted = None;
        state.done += 1;
        state.outcome = Some(outcome);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).expect("nobody panics while holding it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_gets_the_outcome_of_what_was_asked() {
        let bulletin = Arc::new(Bulletin::default());
        let ending = Arc::new(Ending::new(Arc::clone(&bulletin)));
        let ask = |force| {
            let ending = Arc::clone(&ending);
            std::thread::spawn(move || ending.ask(Wanted::Stop { force }))
        };
        for (force, outcome) in [(false, Err(Error::refused("open"))), (true, Ok(Ended::Stopped))] {
            let asked = ask(force);
            let wanted = bulletin.wait(None, |_| ending.wanted()).unwrap();
            assert_eq!(wanted, Wanted::Stop { force });
            ending.answer(outcome.clone());
            assert_eq!(asked.join().unwrap(), outcome);
        }
    }
}
