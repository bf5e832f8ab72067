//! What is compared unasked: what was suspect at the start, so that what is equal after all is suspect no more. And how that gives way to what
//! somebody asks for.
//!
//! A recheck is a verify of what is suspect alone. It begins when the secondary is in sync, and again if it is broken off: from where it was, for
//! what was found equal is suspect no more soon after. It rests while background work is paused.
//!
//! *Nobody is refused anything because of it.* Whatever cannot go on beside it breaks it off. A verify or a digest begins when nothing of it is
//! under way any more; whoever has asked hears of its end, whatever becomes of the device meanwhile.

use super::Mirror;
use super::check::{Check, Purpose};
use super::follow::Follow;
use crate::core::config::Repair;
use crate::core::effect::{Event, Known};
use crate::core::leg::LegId;
use crate::core::status::WalkKind;
use crate::core::time::{Span, Time};

/// How long a recheck rests after one that could not be flushed.
const PATIENCE: Span = Span::from_secs(60);

/// What somebody has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Verify(Repair),
    Digest {
        leg: LegId,
        max_pause: Span,
        read_back: bool,
    },
}

impl Check {
    /// Whether somebody has asked for it, and waits.
    pub(super) fn is_asked_for(&self) -> bool {
        self.waiting.is_some() || self.is_active() && !self.is_recheck()
    }

    pub(super) fn is_recheck(&self) -> bool {
        self.purpose == Some(Purpose::Recheck)
    }

    /// Whether a recheck is under way, or is to begin.
    pub(super) fn is_rechecking(&self) -> bool {
        self.recheck_at.is_some() || self.is_recheck()
    }
}

impl Mirror {
    /// Somebody asks for a verify or a digest, and nothing else that was asked for is under way.
    pub(super) fn ask_for(&mut self, asked: Asked) {
        self.check.waiting = Some(asked);
        self.recheck_gives_way();
        self.pump();
    }

    /// Somebody asks for something that cannot go on beside a recheck. Whatever that is stands in its way before anything is pumped.
    pub(super) fn recheck_gives_way(&mut self) {
        if self.check.is_recheck() {
            self.break_off_check();
        }
    }

    /// Compare the legs where they are suspect, as soon as the secondary is in sync and nothing else is compared: what is equal is suspect
    /// no more. Ends with `Rechecked`, unless nothing is suspect any more before it begins.
    pub fn recheck(&mut self, now: Time) {
        self.now = now;
        self.check.recheck_at = Some(now).filter(|_| !self.suspects.is_empty());
        self.pump();
    }

    /// Whether something is compared, or could be.
    pub(super) fn wants_check(&self) -> bool {
        let check = &self.check;
        check.is_active() || check.waiting.is_some() || check.recheck_at.is_some() && self.follow == Follow::InSync
    }

    /// Begin what is to be compared, and go on with it.
    pub(super) fn pump_checks(&mut self) {
        loop {
            self.begin_asked();
            self.begin_recheck();
            if !self.check.is_active() {
                return;
            }
            self.pump_check();
            if self.check.is_active() {
                return;
            }
        }
    }

    /// Begin what was asked for, as soon as nothing else is compared.
    fn begin_asked(&mut self) {
        let Some(asked) = self.check.waiting.filter(|_| !self.check.is_active()) else {
            return;
        };
        match asked {
            Asked::Verify(repair) if self.follow == Follow::InSync => {
                if self.may_verify() {
                    self.check.waiting = None;
                    self.begin_verify(repair);
                }
            }
            Asked::Digest {
                leg,
                max_pause,
                read_back,
            } if self.may_read_all(leg) => {
                if self.drain.is_none() {
                    self.check.waiting = None;
                    self.begin_digest(leg, max_pause, read_back);
                }
            }
            Asked::Verify(_) | Asked::Digest { .. } => self.asked_in_vain(),
        }
    }

    /// What was asked for cannot begin.
    pub(super) fn asked_in_vain(&mut self) {
        let event = match self.check.waiting.take() {
            Some(Asked::Verify(_)) => Event::Verified {
                bytes_compared: 0,
                complete: false,
                repaired: 0,
            },
            Some(Asked::Digest { leg, .. }) => Event::Digested {
                generation: self.counters.source,
                leg,
                complete: false,
                known: Known::ReadBack,
            },
            None => return,
        };
        self.notify(event);
    }

    fn begin_recheck(&mut self) {
        let Some(at) = self.check.recheck_at else { return };
        if self.suspects.is_empty() {
            self.check.recheck_at = None;
        } else if at > self.now {
            self.arm(at);
        } else if self.follow == Follow::InSync && self.may_verify() {
            self.check.recheck_at = None;
            self.begin_check(Purpose::Recheck, WalkKind::Verify);
            self.check.status.bytes_total = self.recheck_bytes();
        }
    }

    /// It is through, or broken off.
    pub(super) fn end_recheck(&mut self) {
        let (is_broken, is_vain) = (self.check.broken, self.check.mend_failed);
        self.end_check();
        if is_broken {
            self.check.recheck_at = Some(self.now);
        } else {
            self.check.recheck_at = is_vain.then_some(self.now + PATIENCE);
            self.notify(Event::Rechecked {
                suspect: self.suspects.bytes(),
            });
        }
    }

    /// How many bytes a recheck reads of each leg.
    fn recheck_bytes(&self) -> u64 {
        let (size, most) = (self.config.geometry.size, self.piece_bytes());
        let (mut bytes, mut cursor) = (0, 0);
        for suspect in self.suspects.iter() {
            let start = (suspect.range.start / most * most).max(cursor);
            cursor = suspect.range.end().next_multiple_of(most).min(size).max(cursor);
            bytes += cursor.saturating_sub(start);
        }
        bytes
    }

    /// Where the next piece of a verify begins; the device's size: there is none.
    pub(super) fn next_to_verify(&self) -> u64 {
        let (cursor, most) = (self.check.cursor, self.piece_bytes());
        if !self.check.is_recheck() {
            return cursor;
        }
        let mut suspects = self.suspects.iter().map(|suspect| suspect.range);
        match suspects.find(|range| range.end() > cursor) {
            Some(range) => (range.start / most * most).max(cursor),
            None => self.config.geometry.size,
        }
    }
}
