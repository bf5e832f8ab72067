//! The thread that makes marks of active regions and the dirty map durable.
//!
//! It is not the one that writes records: a write of a guest that waits for a mark does not wait for a record that is slow.

use super::inbox::{Message, Outbox};
use super::worker::STACK;
use crate::core::{Bits, Errno, Geometry, Suspects};
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// The tables that a shard hands over to be written, in memory that is there from the start. Whoever is to write one has it until
/// he has answered.
#[derive(Debug)]
pub struct Ledger {
    /// Active regions.
    pub marks: Mutex<Bits>,
    /// Dirty grains.
    pub grains: Mutex<Bits>,
    /// Suspect places.
    pub suspects: Mutex<Suspects>,
    /// By [`LegId::index`](crate::core::LegId::index): extents whose signatures are stale.
    pub stale: [Mutex<Bits>; 2],
}

impl Ledger {
    /// For a device of this geometry, with regions of `region` bytes.
    pub fn new(geometry: &Geometry, region: u64) -> Ledger {
        let stale = || Mutex::new(Bits::none(geometry.extents()));
        Ledger {
            marks: Mutex::new(Bits::none(geometry.size.div_ceil(region))),
            grains: Mutex::new(Bits::none(geometry.grains())),
            suspects: Mutex::new(Suspects::none()),
            stale: [stale(), stale()],
        }
    }
}

/// A table to be written, as the [`Ledger`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The marks of active regions; answered with [`Message::Marked`].
    Marks,
    /// The dirty map; answered with [`Message::Saved`].
    Grains,
    /// The suspect places; answered with [`Message::Suspected`].
    Suspects,
}

/// What they are written to.
pub trait Tables: Send + 'static {
    /// Make durable that exactly these regions are active.
    ///
    /// # Errors
    /// It is not known whether these or those of before are marked.
    fn mark(&mut self, active: &Bits) -> Result<(), Errno>;

    /// Make durable that exactly these grains are dirty.
    ///
    /// # Errors
    /// It is not known what the map says.
    fn save(&mut self, dirty: &Bits) -> Result<(), Errno>;

    /// Make durable that exactly these places are suspect.
    ///
    /// # Errors
    /// It is not known whether these or those of before are listed.
    fn suspect(&mut self, suspects: &Suspects) -> Result<(), Errno>;
}

/// Start the thread; it ends when the queue to it is dropped, and gives back what it wrote to.
///
/// # Errors
/// Fails when no thread can be had.
pub fn clerk<T: Tables, C: Send + 'static>(
    mut tables: T,
    ledger: Arc<Ledger>,
    outbox: Outbox<C>,
) -> io::Result<(SyncSender<Table>, thread::JoinHandle<T>)> {
    const WHOLE: &str = "nobody panics while holding a table";
    // One of each is under way at most.
    let (sender, wanted) = sync_channel(3);
    let thread = thread::Builder::new()
        .name("tables".into())
        .stack_size(STACK)
        .spawn(move || {
            while let Ok(table) = wanted.recv() {
                let done = match table {
                    Table::Marks => Message::Marked(tables.mark(&ledger.marks.lock().expect(WHOLE))),
                    Table::Grains => Message::Saved(tables.save(&ledger.grains.lock().expect(WHOLE))),
                    Table::Suspects => Message::Suspected(tables.suspect(&ledger.suspects.lock().expect(WHOLE))),
                };
                if outbox.send(done).is_err() {
                    break;
                }
            }
            tables
        })?;
    Ok((sender, thread))
}
