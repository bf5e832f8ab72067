//! What the secondary is worth, from one moment to the next.
//!
//! ```text
//!   Not ──attach, catch-up──▶ Starting ──record: syncing──▶ Syncing ──nothing dirty──▶ Joining ──record: in-sync──▶ InSync
//!    ▲                                                         │                          │                        │
//!    ├─────────────────────────── error, stall, detach ◀───────┴──────────────────────────┤          detach ◀──────┤
//!    │                                                                                    ▼             ▼          ▼
//!    └──────────────────────────────── record: not in-sync ◀──────────────────────── Leaving ◀──── Departing    Leaving
//! ```
//! *What must hold:* a barrier counts every leg that a record which may be in force calls in-sync. So a leg begins to
//! count before the record says in-sync (at the freeze), and ceases to count only after a record that says otherwise is
//! durable. What arrives between giving a leg up and that record waits for the record, not for the leg.
//!
//! *In-sync begins so:* nothing is dirty and nothing is being copied, so every admitted mutation is on the secondary or on
//! its way there. At the freeze the open epoch is closed, and what arrives later waits in the next. The frozen set lands
//! and is flushed; then the next epochs go on as they do in sync, while the record is made durable: the guest does not wait
//! for it. That is safe because from the freeze on the leg counts for everything, so whichever record is in force, what it
//! promises of the leg is true; and a leg that fails now leaves as one in sync does, by a record of its own.
//!
//! *Before it is written:* a leg is recorded as syncing before the first copy writes to it, for from then on it is a mixture.
//!
//! *A leg that was given up with operations under way* takes nothing new before all of them have come back.

use super::Mirror;
use crate::core::breaks::{self, Break};
use crate::core::config::CopyMode;
use crate::core::effect::{Effect, Event};
use crate::core::geometry::Range;
use crate::core::leg::Health;
use crate::core::regions::Tracked;
use crate::core::request::Errno;
use crate::core::status::WalkKind;
use crate::core::time::{Span, Time};
use crate::core::unflushed::Unflushed;

/// How closely the secondary is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    /// There is none, or it is left alone.
    Not,
    /// To be followed as soon as the record says syncing.
    Starting,
    /// Gets what is written to clean ranges; a copy brings the rest.
    Syncing,
    /// Counts already; the record does not say so yet.
    Joining {
        /// The last epoch of the frozen set.
        epoch: u64,
    },
    /// Counts for everything.
    InSync,
    /// Gets what had arrived when the detach came, nothing later; counts until the record says otherwise.
    Departing {
        /// The last epoch that it gets.
        epoch: u64,
    },
    /// Given up; counts until the record says so.
    Leaving,
}

/// How long a leg that fell behind is left alone before it is tried again, at first.
const RETRY_FIRST: Span = Span::from_secs(1);
/// And at most.
const RETRY_LAST: Span = Span::from_secs(60);
/// A leg that stayed in sync this long is tried quickly again.
const STEADY: Span = Span::from_secs(120);

/// When a leg that fell behind is tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct CatchUp {
    pub(super) at: Option<Time>,
    pause: Span,
    in_sync_since: Time,
}

impl CatchUp {
    pub(super) const fn new() -> CatchUp {
        CatchUp {
            at: None,
            pause: RETRY_FIRST,
            in_sync_since: Time(0),
        }
    }
}

/// Whether an error says nothing of the disk: see [`Errno::is_of_host`].
pub(super) fn is_hosts(error: Errno) -> bool {
    error.is_of_host() && !breaks::on(Break::HostTakenForDisk)
}

impl Mirror {
    /// Go on with a secondary as the record has it.
    pub(super) fn resume_following(&mut self, tracked: Option<Tracked>) {
        let secondary = self.secondary();
        let leg = *self.leg(secondary);
        if !leg.known {
            return;
        }
        self.watch_tracking();
        match tracked {
            Some(Tracked { active, dirty }) => {
                if !leg.attached || matches!(leg.health, Health::Failed | Health::Absent) {
                    // What may have been lost of it is in what was tracked, and nothing is written to it before it is taken anew.
                    self.unflushed[secondary.index()] = Unflushed::nothing();
                }
                self.dirty.mark_grains(&dirty);
                let (size, region) = (self.config.geometry.size, self.config.region);
                for start in active.iter().map(|number| number * region) {
                    self.dirty.mark(Range::new(start, region.min(size - start)));
                }
                self.copy_kind = if active.is_empty() {
                    WalkKind::Dirty
                } else {
                    WalkKind::Reconcile
                };
            }
            None if leg.health == Health::InSync && leg.attached => {}
            None => self.dirty.mark_all(),
        }
        self.doubt_what_is_dirty(secondary);
        if !leg.attached || leg.traits.is_none() {
            return;
        }
        match leg.health {
            Health::InSync => {
                self.size_pool(self.config.pool_bytes);
                self.follow = Follow::InSync;
                self.catch_up.in_sync_since = self.now;
                self.copy_mode = CopyMode::Dirty;
                self.copy_kind = WalkKind::Dirty;
                self.counters.follow();
            }
            Health::Syncing => self.start_following(),
            Health::Behind | Health::Failed | Health::Absent => {}
        }
    }

    /// Begin to follow the secondary and to copy what is dirty; as soon as the record says that it is syncing.
    pub(super) fn start_following(&mut self) {
        debug_assert!(self.follow == Follow::Not && self.is_secondary_idle());
        let secondary = self.secondary();
        let leg = self.leg_mut(secondary);
        leg.health = Health::Syncing;
        leg.attached = true;
        leg.known = true;
        self.follow = Follow::Starting;
        self.catch_up.at = None;
        self.dirty_doubted(secondary);
        self.size_pool(self.config.pool_bytes);
        self.pump_record();
        self.follow_recorded();
    }

    /// A record is durable: take the steps that waited for it.
    pub(super) fn follow_recorded(&mut self) {
        let secondary = self.secondary();
        let recorded = self.recorder.durable().legs[secondary.index()].map(|leg| leg.health);
        match self.follow {
            Follow::Starting if recorded == Some(Health::Syncing) && !self.recorder.may_count(secondary) => {
                self.follow = Follow::Syncing;
                self.end_decided();
                self.begin_resync();
            }
            Follow::Joining { epoch }
                if recorded == Some(Health::InSync)
                    && self.leg(secondary).health == Health::InSync
                    && self.epochs.durable() >= epoch =>
            {
                self.become_in_sync();
            }
            Follow::Leaving if !self.recorder.may_count(secondary) || breaks::on(Break::DemotionUndurable) => {
                self.follow = Follow::Not;
                self.end_decided();
                self.settle_demotion();
                self.review_guests();
                self.leg_is_quiet();
            }
            Follow::Not
            | Follow::Starting
            | Follow::Syncing
            | Follow::Joining { .. }
            | Follow::InSync
            | Follow::Departing { .. }
            | Follow::Leaving => {}
        }
    }

    /// Nothing is dirty and nothing is being copied: freeze.
    pub(super) fn join(&mut self) {
        debug_assert!(self.follow == Follow::Syncing && self.dirty.is_empty());
        self.forgive_missed();
        let epoch = self.epochs.close_even_empty();
        self.counters.follow();
        self.follow = Follow::Joining { epoch };
        self.hold_barriers_for(epoch);
        self.try_flush_secondary();
    }

    /// The current epoch is durable on the secondary.
    pub(super) fn epoch_durable(&mut self) {
        let durable = self.epochs.durable();
        match self.follow {
            Follow::Joining { epoch } if durable == epoch => {
                let secondary = self.secondary();
                self.leg_mut(secondary).health = Health::InSync;
                // All of it was dirty, and what was copied is flushed.
                self.doubt.settle(secondary);
                self.pump_record();
                self.epochs.advance();
                self.start_epoch();
            }
            Follow::Departing { epoch } if durable == epoch => {
                let generation = self.counters.flushed;
                self.give_up(Health::Behind, generation);
            }
            Follow::InSync | Follow::Joining { .. } | Follow::Departing { .. } => {
                self.epochs.advance();
                self.start_epoch();
            }
            Follow::Not | Follow::Starting | Follow::Syncing | Follow::Leaving => {
                unreachable!("epochs end only on a leg that counts")
            }
        }
    }

    fn become_in_sync(&mut self) {
        // What was decided before may not have reached it.
        self.forget_decided();
        self.follow = Follow::InSync;
        self.copy_mode = CopyMode::Dirty;
        self.copy_kind = WalkKind::Dirty;
        self.catch_up.in_sync_since = self.now;
        self.end_resync(true);
        self.keep_copied();
        self.review_guests();
        self.try_flush_secondary();
    }

    /// The secondary answered with an error. It may have lost more than what the error was about (a disk that went away
    /// comes back without its cache): everything since its last good flush is in doubt.
    pub(super) fn leave_failed(&mut self) {
        let secondary = self.secondary();
        self.doubt_unflushed(secondary);
        self.give_up(Health::Failed, 0);
    }

    /// The secondary answered with this error.
    pub(super) fn leave_because(&mut self, error: Errno) {
        if is_hosts(error) {
            self.leave_lagging();
        } else {
            self.leave_failed();
        }
    }

    /// An operation of a leg that was given up came back with an error after all: what it holds is as unknown as if it had
    /// failed then.
    pub(super) fn left_leg_failed(&mut self) {
        let secondary = self.secondary();
        self.doubt_unflushed(secondary);
        self.regions_stay();
        if matches!(self.follow, Follow::Not | Follow::Leaving) {
            let leg = self.leg_mut(secondary);
            leg.health = Health::Failed;
            leg.consistent_at = 0;
            self.pump_record();
        }
    }

    /// The secondary is too slow. What it holds is an image as of its last flush, unless a copy has been writing it.
    pub(super) fn leave_lagging(&mut self) {
        match self.follow {
            Follow::InSync | Follow::Departing { .. } => {
                let generation = self.counters.flushed;
                self.give_up(Health::Behind, generation);
            }
            Follow::Starting | Follow::Syncing | Follow::Joining { .. } => self.give_up(Health::Syncing, 0),
            Follow::Not | Follow::Leaving => {}
        }
    }

    fn give_up(&mut self, health: Health, consistent_at: u64) {
        if matches!(self.follow, Follow::Not | Follow::Leaving) {
            return;
        }
        let secondary = self.secondary();
        let leg = self.leg_mut(secondary);
        leg.health = health;
        leg.consistent_at = consistent_at;
        if leg.detaching {
            leg.attached = false;
        }
        self.dirty_lacking();
        let steady = self.follow == Follow::InSync && self.now.since(self.catch_up.in_sync_since) > STEADY;
        if steady {
            self.catch_up.pause = RETRY_FIRST;
        }
        self.drain_lost_secondary();
        self.counters.unfollow();
        self.follow = Follow::Leaving;
        self.regions_stay();
        self.owe_demotion();
        if breaks::on(Break::HealthBeforeRecord) {
            self.notify(Event::Health { leg: secondary, health });
        }
        self.abandon_secondary();
        self.end_resync(false);
        self.schedule_catch_up();
        self.pump_record();
        self.follow_recorded();
    }

    /// Stop following without fault of the leg: a detach while it was being copied to, or a stop.
    pub(super) fn stop_following(&mut self) {
        self.give_up(Health::Syncing, 0);
    }

    /// An operation of a leg that was given up has come back, or the record has caught up: perhaps it can be let go, or
    /// be tried again.
    pub(super) fn leg_is_quiet(&mut self) {
        let secondary = self.secondary();
        if self.follow != Follow::Not || !self.is_secondary_idle() || self.is_stopped() {
            return;
        }
        let leg = *self.leg(secondary);
        let recorded = self.recorder.durable().legs[secondary.index()].is_some_and(|leg| leg.attached);
        if leg.detaching && !recorded && !self.recorder.is_busy() {
            // What is in its cache nobody will ever know to be durable.
            self.doubt_unflushed(secondary);
            let leg = self.leg_mut(secondary);
            leg.detaching = false;
            leg.traits = None;
            self.size_pool(0);
            self.effects.push_back(Effect::Release(secondary));
            self.notify(Event::Detached(secondary));
            self.walks_may_rest();
        }
    }

    /// Whether no operation of the secondary is under way, and no piece of a walk that concerns it.
    pub(super) fn is_secondary_idle(&self) -> bool {
        let at = self.secondary().index();
        let flushes = [self.drain_flushes[at], self.tracking.flushes[at]];
        let mending = self.check.mend_flush_on(self.secondary()).is_some();
        let drained = self.abandoned == 0 && flushes.iter().all(Option::is_none) && !mending;
        let primary = self.primary;
        drained
            && self.reads_on(self.secondary()) == 0
            && self
                .slots
                .iter()
                .all(|slot| slot.is_free() || slot.spares_secondary(primary))
    }

    /// Try the leg again after a pause, which doubles until it has stayed in sync for a while.
    pub(super) fn schedule_catch_up(&mut self) {
        let at = self.now + self.catch_up.pause;
        self.catch_up.at = Some(at);
        self.catch_up.pause = Span((self.catch_up.pause.0 * 2).min(RETRY_LAST.0));
        self.arm(at);
    }

    /// Try a leg that fell behind again, if it is time and nothing of it is under way.
    pub(super) fn try_catch_up(&mut self) {
        let Some(at) = self.catch_up.at else { return };
        if at > self.now {
            self.arm(at);
            return;
        }
        if self.resync.stuck && matches!(self.follow, Follow::Syncing | Follow::InSync) {
            self.catch_up.at = None;
            self.begin_resync();
            return;
        }
        let leg = self.leg(self.secondary());
        let healthy = matches!(leg.health, Health::Behind | Health::Syncing);
        if !healthy || leg.traits.is_none() || leg.detaching || !leg.attached || self.follow == Follow::InSync {
            self.catch_up.at = None;
        } else if !self.config.catch_up {
            // Asked again when that changes.
        } else if self.follow == Follow::Not && self.is_secondary_idle() && self.drain.is_none() {
            self.start_following();
        } else {
            self.arm(self.now + RETRY_FIRST);
        }
    }

    /// Whether a leg that is not in sync will become so without anybody's help.
    pub(super) fn comes_by_itself(&self) -> bool {
        match self.follow {
            Follow::Starting | Follow::Syncing | Follow::Joining { .. } | Follow::InSync => true,
            Follow::Departing { .. } => false,
            Follow::Leaving | Follow::Not => self.config.catch_up && self.catch_up.at.is_some(),
        }
    }
}
