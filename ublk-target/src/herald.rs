//! Tells the log what the shard tells.

use twinblk::core::{Action, Event, Health};
use twinblk::runtime::bulletin::{Bulletin, Number};

/// How many errors of disks are told in full between two other events; the rest is counted.
const ERRORS: u32 = 20;

/// How far the log is.
#[derive(Default)]
pub struct Herald {
    newest: Number,
    errors: u32,
}

impl Herald {
    /// The number of the newest event that was told.
    pub fn newest(&self) -> Number {
        self.newest
    }

    /// Tell what is new.
    pub fn tell(&mut self, bulletin: &Bulletin) {
        let (events, missed) = self.take(bulletin);
        if missed > 0 {
            log::warn!("{missed} events came too fast to be told");
        }
        for event in events {
            self.tell_one(event);
        }
    }

    /// What is new, and how much more there was. The board is let go before anything is logged: a log may take its time, and
    /// the shard needs the board.
    fn take(&mut self, bulletin: &Bulletin) -> (Vec<Event>, u64) {
        let board = bulletin.board();
        let (events, missed) = board.since(self.newest);
        let events = events.map(|(_, event)| event).collect();
        self.newest = board.newest;
        (events, missed)
    }

    fn tell_one(&mut self, event: Event) {
        if let Event::LegError {
            leg,
            action,
            range,
            error,
        } = event
        {
            self.errors += 1;
            match self.errors {
                ..=ERRORS => {
                    let what = match action {
                        Action::Read => "reading",
                        Action::Write { .. } => "writing",
                        Action::Flush => "flushing",
                        Action::Zero { .. } => "zeroing",
                    };
                    log::error!("leg {leg}: {what} {} bytes at {}: {error}", range.len, range.start);
                }
                n if n == ERRORS + 1 => log::error!("further errors of disks are not told one by one"),
                _ => {}
            }
            return;
        }
        self.errors = 0;
        match event {
            Event::Health {
                leg,
                health: health @ (Health::InSync | Health::Syncing),
            } => {
                log::info!("leg {leg} is {}", health.word());
            }
            Event::Health { leg, health } => log::warn!("leg {leg} is {}", health.word()),
            Event::Detached(leg) => log::info!("leg {leg} is detached"),
            Event::Switched {
                from,
                to,
                pause,
                generation,
                era,
            } => {
                log::info!(
                    "switched from {from} to {to} at generation {generation}, era {era}; pause {} us",
                    pause.0 / 1000
                );
            }
            Event::FailedOver {
                from,
                to,
                pause,
                generation,
                era,
            } => {
                log::error!(
                    "leg {from} failed; the guest goes on with leg {to}, from generation {generation}, era {era}; pause {} us",
                    pause.0 / 1000
                );
            }
            Event::Rewritten(range) => {
                log::warn!(
                    "{} bytes at {} were read from the other leg and written anew",
                    range.len,
                    range.start
                );
            }
            Event::SwitchGivenUp { pause } => log::info!("a switch was given up after {} us", pause.0 / 1000),
            Event::ResyncEnded { in_sync } => {
                log::info!("resync ended, {}", if in_sync { "in sync" } else { "not in sync" })
            }
            Event::Verified {
                bytes_compared,
                complete,
                repaired,
            } => {
                log::info!("verify ended, complete: {complete}, {bytes_compared} bytes compared, {repaired} mended");
            }
            Event::Rechecked { suspect: 0 } => log::info!("what was suspect is equal on both legs"),
            Event::Rechecked { suspect } => log::error!("{suspect} bytes are suspect: see twinblk status"),
            Event::Digested {
                leg,
                generation,
                complete,
                known: _,
            } => {
                log::info!("digest of leg {leg} ended at generation {generation}, complete: {complete}");
            }
            Event::Mended { leg, range } => {
                log::warn!("leg {leg} is mended: {} bytes at {}", range.len, range.start);
            }
            Event::Strayed(suspect) => {
                let wrong = suspect.wrong.map_or("nothing proves which is wrong".into(), |leg| {
                    format!("leg {leg} is wrong")
                });
                let (start, len) = (suspect.range.start, suspect.range.len);
                log::error!("the legs differ in {len} bytes at {start}, and {wrong}: run twinblk verify --repair");
            }
            Event::Tracked(true) => log::info!("where the disks may differ is tracked"),
            Event::Tracked(false) => {
                log::warn!("where the disks may differ is not tracked: after a crash everything is compared")
            }
            Event::ProtocolSet { done } => log::info!("change of the protocol ended, done: {done}"),
            Event::Stopped { clean } => log::info!("drained and flushed, clean: {clean}"),
            Event::HandedOver { clean, since: _ } => log::info!("handed over, clean: {clean}"),
            Event::HandOverGivenUp { pause, unfinished: _ } => {
                log::warn!("a hand-over was given up after {} us", pause.0 / 1000);
            }
            Event::Difference(_) | Event::LegError { .. } => {}
        }
    }
}
