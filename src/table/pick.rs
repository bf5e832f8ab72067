//! Which of two slots decides.
//!
//! Only the record number decides, and only between slots that are intact. Everything that could make a device go back
//! in time without anybody noticing is refused or said: a slot of a newer format may hold the newer record, so nothing is
//! served; two different records of one number were written by two owners; a damaged slot may have been a record that
//! was torn (then it was never acted on) or one that was durable and has rotted (then it was), which cannot be told
//! apart, so it is reported as doubt and has to be treated like an unclean end.

use super::checked::{Flaw, Unverified};
use super::superblock::Superblock;

/// The record in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picked {
    /// The newest intact superblock.
    pub superblock: Superblock,
    /// The slot (0 or 1) that holds it.
    pub slot: usize,
    /// Whether the other slot is damaged, so that a newer record may have been lost. `record.clean` means nothing then,
    /// and no leg but the primary may be taken for in-sync.
    pub doubt: bool,
}

/// Why no record is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpickable {
    /// No slot holds an intact superblock.
    #[error("no intact record in it (first: {first}; second: {second})")]
    NoneIntact {
        /// What is wrong with slot 0.
        first: Flaw,
        /// What is wrong with slot 1.
        second: Flaw,
    },
    /// A slot is whole and in a later format: it may be the newer one.
    #[error(
        "it has format version {0}, which this program does not know: use the program that wrote it, or a later one"
    )]
    Newer(u32),
    /// A slot is whole and makes no sense.
    #[error("a record is intact but makes no sense ({0})")]
    Malformed(&'static str),
    /// Both slots are intact and of different devices.
    #[error("its two records belong to different devices")]
    TwoDevices,
    /// Both slots are intact and claim the same place in history.
    #[error("its two records have the same number {0}: two daemons have written it")]
    SameNumber(u64),
}

/// Choose between two slots as they were read.
///
/// # Errors
/// See [`Unpickable`].
pub fn pick(slots: [Unverified<'_>; 2]) -> Result<Picked, Unpickable> {
    let decoded = slots.map(Superblock::decode);
    for slot in &decoded {
        match slot {
            Err(Flaw::Newer(version)) => return Err(Unpickable::Newer(*version)),
            Err(Flaw::Malformed(what)) => return Err(Unpickable::Malformed(what)),
            Ok(_) | Err(Flaw::Truncated | Flaw::Empty | Flaw::Foreign | Flaw::Damaged) => {}
        }
    }
    let picked = |superblock, slot, doubt| {
        Ok(Picked {
            superblock,
            slot,
            doubt,
        })
    };
    match decoded {
        [Err(first), Err(second)] => Err(Unpickable::NoneIntact { first, second }),
        [Ok(only), Err(flaw)] => {
            let doubt = !is_first(&only, flaw);
            picked(only, 0, doubt)
        }
        [Err(flaw), Ok(only)] => {
            let doubt = !is_first(&only, flaw);
            picked(only, 1, doubt)
        }
        [Ok(first), Ok(second)] => {
            if first.uuid != second.uuid {
                Err(Unpickable::TwoDevices)
            } else if first.record.number == second.record.number {
                Err(Unpickable::SameNumber(first.record.number))
            } else if first.record.number > second.record.number {
                picked(first, 0, false)
            } else {
                picked(second, 1, false)
            }
        }
    }
}

/// Whether the other slot is empty because nothing was ever written to it. A slot that is empty beside a later record was
/// written once, and lost.
fn is_first(only: &Superblock, other: Flaw) -> bool {
    other == Flaw::Empty && only.record.number == Superblock::FIRST_NUMBER
}
