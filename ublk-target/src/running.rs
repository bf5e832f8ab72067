//! The threads of a device that is served, from the first to the last.

use crate::errors::Told;
use crate::keeper::{Keeper, Notes};
use crate::port::{BATCH, Refused, UblkPort};
use crate::tables::StateTables;
use crate::ublk::control::{self, Added};
use crate::ublk::queue;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use twinblk::control::Error;
use twinblk::core::config::{Config, LINGER};
use twinblk::core::time::Span as TimeSpan;
use twinblk::core::{CopyMode, Event, Layout, LegId, LegTraits, Mirror, Record, Suspects, Tracked};
use twinblk::io::disk::Disk;
use twinblk::runtime::bulletin::Bulletin;
use twinblk::runtime::clock;
use twinblk::runtime::port::Port;
use twinblk::runtime::residence::{Residence, Span};
use twinblk::runtime::shard::{Client, Shard};
use twinblk::runtime::signature_tables::SignatureTables;
use twinblk::runtime::signer::{Errand, signer};
use twinblk::runtime::surroundings::Surroundings;
use twinblk::runtime::tables::clerk;
use twinblk::runtime::worker::recorder;
use twinblk::table::Superblock;

/// Copies that can be under way at once.
const COPIES: u16 = 4;
/// The largest pool that can ever be asked for, in bytes.
const POOL_MAX: u64 = 1 << 30;
/// Threads that compare and hash.
const WORKERS: usize = 2;
/// Stack of the shard's thread, in bytes.
const STACK: usize = 256 << 10;

/// A device with its threads.
pub struct Running {
    /// The device in the driver.
    pub added: Added,
    /// The shard.
    pub client: Client<Keeper>,
    /// What it tells.
    pub bulletin: Arc<Bulletin>,
    /// The buffers' memory.
    pub residence: Arc<Residence>,
    /// Where buffers lie.
    pub layout: Layout,
    /// What the last record says of the legs.
    pub notes: Notes,
    /// Whether it began with two legs.
    has_two: bool,
    refused: Refused,
    shard: JoinHandle<io::Result<()>>,
    recorder: JoinHandle<Keeper>,
    clerk: JoinHandle<StateTables>,
    signer: JoinHandle<()>,
    /// Until memory is locked: it ends when nobody has one.
    errands: Option<SyncSender<Errand>>,
}

/// Where buffers lie in a device of this shape.
pub fn layout(superblock: &Superblock) -> Layout {
    Layout {
        depth: superblock.depth,
        max_io: superblock.max_io,
        copies: COPIES,
        copy_bytes: superblock.geometry.extent,
        pool_max: POOL_MAX,
    }
}

/// Why the threads could not be started, and what records were written to.
pub struct Failed {
    /// Why.
    pub error: Error,
    /// There is none if it could not be had back.
    pub keeper: Option<Box<Keeper>>,
}

/// The state directory, open.
pub struct State {
    /// The superblock.
    pub keeper: Box<Keeper>,
    /// The other files.
    pub tables: StateTables,
    /// The signature tables.
    pub signatures: SignatureTables,
    /// By [`LegId::index`]: its table says what the leg holds; if not, it is empty.
    pub believed: [bool; 2],
    /// The places where they do, and nobody has decided which is right.
    pub suspects: Suspects,
    /// Where the legs may differ, if the record says that it is known.
    pub tracked: Option<Tracked>,
}

/// Start the threads. `record` is durable; requests can come as soon as the device is started.
///
/// # Errors
/// No memory, thread or ring. Nothing is left but what `keeper` has written.
pub fn begin(
    added: Added,
    superblock: &Superblock,
    record: Record,
    disks: [Option<Disk>; 2],
    resync: CopyMode,
    state: State,
) -> Result<Running, Failed> {
    let State {
        keeper,
        tables,
        signatures,
        believed,
        suspects,
        tracked,
    } = state;
    let layout = layout(superblock);
    let kept = |error, keeper| Failed {
        error,
        keeper: Some(keeper),
    };
    let failed = |error: io::Error| error.told("start the device's threads");
    let geometry = &superblock.geometry;
    let surroundings = match Surroundings::new(&layout, geometry, geometry.region(), WORKERS) {
        Ok(surroundings) => surroundings,
        Err(error) => {
            let error = error.told("reserve memory and start the threads of the device");
            return Err(kept(error, keeper));
        }
    };
    let (client, wake) = (surroundings.client(), surroundings.wake());
    let (residence, bulletin) = (Arc::clone(&surroundings.residence), Arc::clone(&surroundings.bulletin));
    let has_two = disks.iter().all(Option::is_some);
    let len = memory_at_start(superblock, &layout, has_two);
    if let Err(not_locked) = residence.prepare(Span { start: 0, len }) {
        log::warn!("{not_locked}");
    }
    let ledger = Arc::clone(&surroundings.ledger);
    let notes = keeper.notes();
    let (tables, clerk) = match clerk(tables, Arc::clone(&ledger), surroundings.outbox.clone()) {
        Ok(both) => both,
        Err(error) => return Err(kept(failed(error), keeper)),
    };
    let (errands, signer) = match signer(signatures, ledger, tables.clone(), surroundings.outbox.clone()) {
        Ok(both) => both,
        Err(error) => return Err(kept(failed(error), keeper)),
    };
    let (records, recorder) = recorder(*keeper, surroundings.outbox.clone()).map_err(|error| Failed {
        error: failed(error),
        keeper: None,
    })?;

    let config = config(superblock, layout);
    let rate = superblock.settings.rate;
    let traits = disks
        .each_ref()
        .map(|disk| disk.as_ref().map(|disk| LegTraits { punches: disk.punches }));
    let refused = Refused::default();
    let (opened, wait_opened) = sync_channel(1);
    let shard = {
        let (added, refused, board) = (added.clone(), Arc::clone(&refused), Arc::clone(&bulletin));
        let keeps = errands.clone();
        thread::Builder::new()
            .name("shard".into())
            .stack_size(STACK)
            .spawn(move || {
                let device = queue::Device::new(&added);
                drop(added);
                let port = UblkPort::open(&device, Arc::clone(&surroundings.arena), layout, wake, refused);
                let mut port = match port {
                    Ok(port) => port,
                    Err(error) => {
                        let _ = opened.send(Err(error));
                        return Ok(());
                    }
                };
                for (leg, disk) in LegId::ALL.into_iter().zip(disks) {
                    port.set_leg(leg, disk.map(|disk| disk.descriptor));
                }
                let mut mirror = Mirror::new(config, record, traits, tracked, suspects, resync, clock::now());
                // Before the first copy: a resync that begins with the device keeps to it from its first byte.
                mirror.set_rate(clock::now(), rate);
                for leg in LegId::ALL.into_iter().filter(|leg| !believed[leg.index()]) {
                    mirror.begin_unknown(clock::now(), leg);
                }
                mirror.recheck(clock::now());
                let shard = Shard::new(mirror, port, surroundings, records, tables, keeps, BATCH + 1);
                // All that it will ever touch is there, to be locked.
                let _ = opened.send(Ok(()));
                // The port ends here, on the thread that its ring belongs to.
                let port = shard.run()?;
                if is_handed_over(&board) {
                    // The driver still has its fetches, and taking the queue down waits for them. They end with the process.
                    loop {
                        thread::park();
                    }
                }
                drop(port);
                Ok(())
            })
    };
    let shard = shard.map_err(|error| Failed {
        error: failed(error),
        keeper: None,
    })?;
    let running = Running {
        added,
        client,
        bulletin,
        residence,
        layout,
        notes,
        has_two,
        refused,
        shard,
        recorder,
        clerk,
        signer,
        errands: Some(errands),
    };
    match wait_opened.recv() {
        Ok(Ok(())) => Ok(running),
        Ok(Err(error)) => Err(Failed {
            error: error.told("serve the block device"),
            keeper: running.join(),
        }),
        Err(_) => Err(Failed {
            error: Error::failed("the device's thread ended at once"),
            keeper: running.join(),
        }),
    }
}

fn is_handed_over(bulletin: &Bulletin) -> bool {
    matches!(bulletin.board().hand_over, Some((_, Event::HandedOver { .. })))
}

/// How many bytes of the arena are needed from the first moment on; they are its first.
fn memory_at_start(superblock: &Superblock, layout: &Layout, has_two: bool) -> u64 {
    let for_two = layout.copies_bytes() + superblock.settings.pool_bytes;
    layout.tags_bytes() + if has_two { for_two } else { 0 }
}

fn config(superblock: &Superblock, layout: Layout) -> Config {
    let settings = &superblock.settings;
    Config {
        geometry: superblock.geometry,
        region: superblock.geometry.region(),
        linger: LINGER,
        layout,
        pool_bytes: settings.pool_bytes,
        stall_budget: TimeSpan::from_millis(settings.stall_budget_ms),
        leg_timeout: TimeSpan::from_millis(settings.leg_timeout_ms),
        catch_up: settings.catch_up,
        lag_bytes: settings.lag_bytes,
        quiet: TimeSpan::from_millis(settings.quiet_ms),
        generations: Record::GENERATIONS,
    }
}

impl Running {
    /// Start the device in the driver: from now on it can be used.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn start(&self) -> Result<(), Error> {
        self.added
            .start()
            .map_err(|error| match self.refused.load(Ordering::Relaxed) {
                0 => error.told("start the block device"),
                errno => Error::failed(format!(
                    "cannot start the block device: the driver does not let requests be fetched: {}",
                    io::Error::from_raw_os_error(errno)
                )),
            })
    }

    /// Lock no more address space than there is memory in, and nothing that may wait for a disk; to be called when all is locked, and
    /// before administrators can change that.
    pub fn unlock_unused(&mut self, superblock: &Superblock) {
        if let Some(errands) = self.errands.take() {
            // It fails when the device has ended.
            let _ = errands.send(Errand::Unlock);
        }
        let start = memory_at_start(superblock, &self.layout, self.has_two);
        let len = self.layout.arena_bytes() - start;
        if self.residence.leave(Span { start, len }) {
            self.residence.give_back();
        }
    }

    /// End the threads of a device that serves no more; what records were written to is given back.
    pub fn end(self) -> Option<Box<Keeper>> {
        // It fails when the shard has ended, which is what is wanted.
        let _ = self.client.call(|desk| desk.end());
        self.join()
    }

    fn join(self) -> Option<Box<Keeper>> {
        let Running {
            added,
            client,
            bulletin: _,
            residence: _,
            layout: _,
            notes: _,
            has_two: _,
            refused: _,
            shard,
            recorder,
            clerk,
            signer,
            errands,
        } = self;
        match shard.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error!("the ring of the block device failed: {error}"),
            Err(_) => log::error!("the thread of the block device has panicked"),
        }
        drop((added, client, errands));
        // Nothing of the state is written any more when its lock is let go.
        if signer.join().is_err() {
            log::error!("the thread that keeps signatures has panicked");
        }
        if clerk.join().is_err() {
            log::error!("the thread that writes tables has panicked");
        }
        recorder.join().ok().map(Box::new)
    }
}

/// Delete a device in the driver, whatever its state, and wait for its number to be free.
pub fn delete(id: u32, wait: Duration) {
    if let Err(error) = control::delete(id, wait) {
        log::warn!(
            "{} is not gone yet: {error}",
            crate::ublk::sysfs::block_device(id).display()
        );
    }
}
