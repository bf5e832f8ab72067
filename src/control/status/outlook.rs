//! Whether waiting is of any use.

use super::{State, Status};
use crate::control::settings::CatchUp;
use crate::core::Health;

/// Whether both legs will be in sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// They are: the secondary follows every write in order, and there is no place on which the legs may differ. It may
    /// lag: unless the protocol is sync, the newest writes are on their way to it at any moment.
    InSync,
    /// They will be, if nothing else happens.
    Coming,
    /// Not by itself: why, and what would help.
    Never {
        /// Why.
        why: String,
        /// What to do.
        hint: String,
    },
}

impl Status {
    /// Whether both legs will be in sync; what `wait` goes by.
    pub fn outlook(&self) -> Outlook {
        let name = &self.name;
        let never = |why: String, hint: String| Outlook::Never { why, hint };
        match self.state {
            State::Mirrored => return Outlook::InSync,
            State::Stopped => return never(format!("{name} is stopped"), format!("twinblk start {name}")),
            State::Failed => return never(format!("{name} has failed"), format!("see twinblk status {name}")),
            State::Single | State::Syncing | State::Degraded => {}
        }
        let attach = format!("twinblk attach {name} DISK");
        let Some(leg) = self.secondary().filter(|leg| leg.attached) else {
            return never(format!("{name} has one leg only"), attach);
        };
        let path = leg.path.display();
        let manual = self
            .settings
            .is_some_and(|settings| settings.catch_up == CatchUp::Manual);
        match leg.health {
            _ if leg.awaited => Outlook::Coming,
            Health::InSync if self.dirty_bytes == 0 && !self.paused => Outlook::Coming,
            Health::InSync | Health::Syncing | Health::Behind if self.paused => never(
                format!("the background work of {name} is paused"),
                format!("twinblk resync {name} resume"),
            ),
            Health::InSync | Health::Syncing | Health::Behind if self.comes_by_itself => Outlook::Coming,
            Health::Syncing | Health::Behind if manual => never(
                format!(
                    "leg {} ({path}) is {}, and catch-up is manual",
                    leg.id,
                    leg.health.word()
                ),
                format!("twinblk set {name} catch-up auto"),
            ),
            Health::InSync | Health::Syncing | Health::Behind => never(
                format!("the resync of leg {} ({path}) cannot go on", leg.id),
                format!("the daemon's log says which place of which leg could not be read or written; {attach}"),
            ),
            Health::Failed => never(
                format!("leg {} ({path}) has failed", leg.id),
                format!(
                    "mend the disk or take another: twinblk detach {name} {}, then {attach}",
                    leg.id
                ),
            ),
            Health::Absent => never(format!("leg {} ({path}) is not there", leg.id), attach),
        }
    }
}
