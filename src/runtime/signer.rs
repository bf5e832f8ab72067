//! The thread that keeps the signature tables.
//!
//! All that is noted, forgotten and looked up goes through it, in the order in which the core wants it. It is a thread of its own
//! because it touches mapped memory, which may wait for a disk: neither the guest, nor a mark that it waits for, nor a hash
//! waits for that. What follows a save of the tables, that of the dirty map, is passed on from here when it is done.

use super::digest::DigestTable;
use super::inbox::{Ended, Message, Outbox};
use super::tables::{Ledger, Table};
use super::worker::STACK;
use crate::core::{Bits, Consult, Errno, Evidence, LegId, Note, Signature, Source, signatures};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

/// Errands that can be under way at once: all notes, an emptying of each leg, a save, a digest's and a resync's look, and what a
/// verify asks, which is less than this.
const ROOM: usize = signatures::NOTING + 5 + 32;

/// What is to be done with the tables.
pub enum Errand {
    /// Note a signature; answered with [`Message::Noted`].
    Note(Note),
    /// Forget everything that is known of a leg; answered with [`Message::Emptied`].
    Empty(LegId),
    /// Forget what the ledger has as stale, durably, and have the dirty map saved; answered with [`Message::Saved`].
    Save,
    /// Look up these extents for a digest; answered with [`Message::Recalled`].
    Recall {
        /// In the table of this leg.
        leg: LegId,
        /// Which.
        extents: Bits,
        /// Where the hashes go; `None`: nobody wants them any more.
        digest: Option<Arc<DigestTable>>,
    },
    /// Look up what is known of an extent that was read; answered with [`Message::Consulted`].
    Consult(Consult),
    /// Look up which extents are the same on both legs, and which are known of the primary alone; answered with
    /// [`Message::Matched`].
    Match {
        /// The other is the secondary.
        primary: LegId,
        /// By leg: those whose entries may be believed.
        extents: [Bits; 2],
    },
    /// Undo what locking all memory has done to the tables.
    Unlock,
}

/// The tables.
pub trait Signatures: Send + 'static {
    /// Note a signature. One that cannot be is no entry.
    fn note(&mut self, note: &Note);

    /// Make durable that nothing is known of these extents of a leg, and of every other what was noted last, or nothing.
    ///
    /// # Errors
    /// A start may find something else.
    fn forget(&mut self, leg: LegId, extents: &Bits) -> Result<(), Errno>;

    /// Forget everything that is known of a leg, durably.
    ///
    /// # Errors
    /// A start may find something. [`Signatures::forget`] fails from now on, until it could be done.
    fn empty(&mut self, leg: LegId) -> Result<(), Errno>;

    /// What is noted of an extent on a leg.
    fn look_up(&mut self, leg: LegId, extent: u64) -> Option<(Signature, Source)>;

    /// Tell the signature of each of these extents of a leg, and take those out that have none.
    fn recall(&mut self, leg: LegId, extents: &mut Bits, found: &mut dyn FnMut(u64, Signature));

    /// Undo what locking all memory has done to them.
    fn unlock(&mut self) {}

    /// Of these extents, by leg, those that have the same signature on both, and those that have one on the primary alone.
    fn compare(&mut self, primary: LegId, extents: [Bits; 2]) -> [Bits; 2];
}

/// Tables that keep nothing.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Signatures for Nothing {
    fn note(&mut self, _: &Note) {}

    fn forget(&mut self, _: LegId, _: &Bits) -> Result<(), Errno> {
        Ok(())
    }

    fn empty(&mut self, _: LegId) -> Result<(), Errno> {
        Ok(())
    }

    fn look_up(&mut self, _: LegId, _: u64) -> Option<(Signature, Source)> {
        None
    }

    fn recall(&mut self, _: LegId, extents: &mut Bits, _: &mut dyn FnMut(u64, Signature)) {
        extents.clear();
    }

    fn compare(&mut self, _: LegId, [mut equal, mut lone]: [Bits; 2]) -> [Bits; 2] {
        equal.clear();
        lone.clear();
        [equal, lone]
    }
}

/// Start the thread; it ends when the queue to it is dropped. `clerk` saves the dirty map.
///
/// # Errors
/// Fails when no thread can be had.
pub fn signer<T: Signatures, C: Send + 'static>(
    mut tables: T,
    ledger: Arc<Ledger>,
    clerk: SyncSender<Table>,
    outbox: Outbox<C>,
) -> io::Result<(SyncSender<Errand>, thread::JoinHandle<()>)> {
    let (sender, errands) = sync_channel(ROOM);
    let thread = thread::Builder::new()
        .name("signatures".into())
        .stack_size(STACK)
        .spawn(move || {
            while let Ok(errand) = errands.recv() {
                let sent = match errand {
                    Errand::Note(note) => {
                        tables.note(&note);
                        outbox.send(Message::Noted(note.id))
                    }
                    Errand::Empty(leg) => {
                        // Whether it could be done shows when something is saved.
                        let _ = tables.empty(leg);
                        outbox.send(Message::Emptied(leg))
                    }
                    Errand::Save => match save(&mut tables, &ledger) {
                        Ok(()) => clerk.send(Table::Grains).map_err(|_| Ended),
                        Err(errno) => outbox.send(Message::Saved(Err(errno))),
                    },
                    Errand::Recall {
                        leg,
                        mut extents,
                        digest,
                    } => {
                        recall(&mut tables, leg, &mut extents, digest.as_deref());
                        outbox.send(Message::Recalled(extents))
                    }
                    Errand::Consult(consult) => {
                        let evidence = LegId::ALL.map(|leg| {
                            let (signature, source) = tables.look_up(leg, consult.extent)?;
                            Some(Evidence {
                                source,
                                equals: consult.read.map(|read| read == Some(signature)),
                            })
                        });
                        outbox.send(Message::Consulted(consult.id, evidence))
                    }
                    Errand::Match { primary, extents } => {
                        let [equal, lone] = tables.compare(primary, extents);
                        outbox.send(Message::Matched { equal, lone })
                    }
                    Errand::Unlock => {
                        tables.unlock();
                        Ok(())
                    }
                };
                if sent.is_err() {
                    break;
                }
            }
        })?;
    Ok((sender, thread))
}

fn save(tables: &mut impl Signatures, ledger: &Ledger) -> Result<(), Errno> {
    for leg in LegId::ALL {
        let stale = ledger.stale[leg.index()]
            .lock()
            .expect("nobody panics while holding a table");
        tables.forget(leg, &stale)?;
    }
    Ok(())
}

fn recall(tables: &mut impl Signatures, leg: LegId, extents: &mut Bits, digest: Option<&DigestTable>) {
    match digest {
        Some(digest) => digest.fill(|found| tables.recall(leg, extents, found)),
        None => extents.clear(),
    }
}
