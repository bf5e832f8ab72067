//! The thread that owns a core: takes what arrives to it, and carries out what it wants done.
//!
//! Nobody else touches the core. What takes time (records, comparing, hashing, closing a disk, giving memory back) is
//! done by other threads, whose answers and whose requests come in through an [`Inbox`]; the shard waits for nothing
//! but its port. In the data path nothing is allocated and nothing is logged: what there is to tell goes to the
//! [`Bulletin`], whose readers log it.
//!
//! Effects are begun in the order in which the core yields them, all those of one arrival before the next arrival is
//! looked at; what they queue reaches the kernel together, with the next wait.
//!
//! Not handled: a port that fails. The thread ends with the error, and the process with it: the kernel then treats the
//! device as one whose daemon died.

use super::bulletin::{Bulletin, Number};
use super::clock;
use super::digest::DigestTable;
use super::inbox::{Ended, Inbox, Message, Outbox};
use super::port::{Arrival, Port};
use super::residence::{Residence, Span};
use super::signer::Errand;
use super::surroundings::Surroundings;
use super::tables::{Ledger, Table};
use super::worker::{Amendments, Job, RecordJob, Subject};
use crate::core::{Effect, Event, LegId, Mirror, Refusal, Time};
use crate::io::Arena;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;

const WHOLE: &str = "nobody panics while holding a table";

/// What an administrator's thread has the shard do.
pub type Command<S> = Box<dyn FnOnce(&mut Desk<'_, S>) + Send>;

/// What a command may use.
pub struct Desk<'a, S> {
    /// The core.
    pub mirror: &'a mut Mirror,
    /// What time it is.
    pub now: Time,
    port: &'a mut dyn Port,
    amendments: &'a mut Amendments<S>,
    bulletin: &'a Bulletin,
    digest: &'a mut Option<Arc<DigestTable>>,
    end: &'a mut bool,
}

impl<S> Desk<'_, S> {
    /// The number of the newest event: the outcome of what is begun now has a higher one.
    pub fn newest(&self) -> Number {
        self.bulletin.board().newest
    }

    /// Give a leg its disk, in the same command that has the core use it. What it had before is returned, and is to be
    /// closed by another thread.
    #[must_use]
    pub fn set_leg(&mut self, leg: LegId, disk: Arc<OwnedFd>) -> Option<Arc<OwnedFd>> {
        self.port.set_leg(leg, Some(disk))
    }

    /// Change what goes with every record from the next one on that the core asks for. Waits for nobody, however long the
    /// record that is under way may take.
    pub fn amend(&mut self, subject: Subject, change: impl FnOnce(&mut S) + Send + 'static) {
        self.amendments.add(subject, change);
    }

    /// Where the hashes of the digest that begins now go.
    pub fn set_digest(&mut self, table: Option<Arc<DigestTable>>) {
        *self.digest = table;
    }

    /// End the shard's thread when this batch is done.
    pub fn end(&mut self) {
        *self.end = true;
    }
}

/// A handle to a shard, for any thread.
pub struct Client<S> {
    outbox: Outbox<Command<S>>,
}

impl<S> Clone for Client<S> {
    fn clone(&self) -> Client<S> {
        Client {
            outbox: self.outbox.clone(),
        }
    }
}

impl<S: 'static> Client<S> {
    /// A handle that sends through `outbox`.
    pub(super) fn new(outbox: Outbox<Command<S>>) -> Client<S> {
        Client { outbox }
    }

    /// Have the shard do something, and wait for what it returns.
    ///
    /// # Errors
    /// Fails when the shard has ended.
    pub fn call<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut Desk<'_, S>) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        let (answer, answered) = sync_channel(1);
        let command: Command<S> = Box::new(move |desk| {
            // Nobody listens any more: then nobody needs it.
            let _ = answer.send(command(desk));
        });
        self.outbox.send(Message::Command(command))?;
        answered.recv().map_err(|_| Ended)
    }

    /// Bring everything to the disks for good, and record that; a switch or a change of the protocol that is under way
    /// ends first. `bulletin` is the shard's. Returns whether the record says clean, or `None` when it takes longer than
    /// until `until`; to be called again then.
    ///
    /// # Errors
    /// Fails when the shard has ended.
    pub fn drain(&self, bulletin: &Bulletin, until: Option<Instant>) -> Result<Option<bool>, Ended> {
        loop {
            // Before it is asked: what it is busy with may end right after.
            let newest = bulletin.board().newest;
            match self.call(|desk| desk.mirror.stop(desk.now))? {
                Ok(()) | Err(Refusal::Stopping) => break,
                // Whatever it is busy with, its end is an event.
                Err(_) => {
                    let told = bulletin.wait(until, |board| (board.newest > newest || board.ended).then_some(()));
                    if told.is_none() {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(bulletin.wait(until, |board| board.stopped))
    }
}

/// The thread's own.
pub struct Shard<P, S> {
    mirror: Mirror,
    port: P,
    arena: Arc<Arena>,
    residence: Arc<Residence>,
    bulletin: Arc<Bulletin>,
    inbox: Inbox<Command<S>>,
    workers: SyncSender<Job>,
    recorder: SyncSender<RecordJob<S>>,
    clerk: SyncSender<Table>,
    signer: SyncSender<Errand>,
    ledger: Arc<Ledger>,
    arrivals: Vec<Arrival>,
    digest: Option<Arc<DigestTable>>,
    /// What goes with the next record.
    amendments: Amendments<S>,
    end: bool,
}

impl<P: Port, S: 'static> Shard<P, S> {
    /// A shard that has not begun. Its requests come from `port` and its operations go there, at most `arrivals` arrivals
    /// at once without their list growing; `recorder` writes its records, `clerk` its tables, `signer` keeps its signatures.
    pub fn new(
        mirror: Mirror,
        port: P,
        surroundings: Surroundings<S>,
        recorder: SyncSender<RecordJob<S>>,
        clerk: SyncSender<Table>,
        signer: SyncSender<Errand>,
        arrivals: usize,
    ) -> Shard<P, S> {
        let Surroundings {
            arena,
            residence,
            bulletin,
            outbox: _,
            ledger,
            inbox,
            workers,
        } = surroundings;
        Shard {
            mirror,
            port,
            arena,
            residence,
            bulletin,
            inbox,
            workers,
            recorder,
            clerk,
            signer,
            ledger,
            arrivals: Vec::with_capacity(arrivals),
            digest: None,
            amendments: Amendments::default(),
            end: false,
        }
    }

    /// Serve until a command ends it, or the device is handed over. The port is given back, and everything else dropped.
    ///
    /// # Errors
    /// Fails when the port fails.
    pub fn run(mut self) -> io::Result<P> {
        let ended = self.serve();
        self.bulletin.change(|board| board.ended = true);
        ended.map(|()| self.port)
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        self.carry_out();
        while !self.end {
            let deadline = self.mirror.next_timeout();
            self.port.wait(deadline, &mut arrivals)?;
            let now = clock::now();
            for arrival in arrivals.drain(..) {
                match arrival {
                    Arrival::Request(tag, request) => self.mirror.handle_request(now, tag, request),
                    Arrival::Completion(id, result) => self.mirror.handle_completion(now, id, result),
                    Arrival::Wake => self.empty_inbox(now),
                    Arrival::Gone => self.bulletin.change(|board| board.gone = true),
                }
                self.carry_out();
            }
            if self.mirror.next_timeout().is_some_and(|due| due <= now) {
                self.mirror.handle_timeout(now);
                self.carry_out();
            }
        }
        Ok(())
    }

    fn empty_inbox(&mut self, now: Time) {
        while let Some(message) = self.inbox.take() {
            let mirror = &mut self.mirror;
            match message {
                Message::Recorded { number, result } => {
                    mirror.handle_record(now, number, result);
                    self.bulletin.tell_recorded(number, result);
                }
                Message::Marked(result) => mirror.handle_marked(now, result),
                Message::Saved(result) => mirror.handle_saved(now, result),
                Message::Compared { walk, differing } => mirror.handle_compared(now, walk, differing),
                Message::Hashed { walk, signature } => mirror.handle_hashed(now, walk, signature),
                Message::Suspected(result) => mirror.handle_suspected(now, result),
                Message::Consulted(consult, evidence) => mirror.handle_consulted(now, consult, evidence),
                Message::Noted(note) => mirror.handle_noted(now, note),
                Message::Emptied(leg) => mirror.handle_emptied(now, leg),
                Message::Recalled(extents) => mirror.handle_recalled(now, &extents),
                Message::Matched { equal, lone } => mirror.handle_matched(now, &equal, &lone),
                Message::Command(command) => command(&mut Desk {
                    mirror,
                    now,
                    port: &mut self.port,
                    amendments: &mut self.amendments,
                    bulletin: &self.bulletin,
                    digest: &mut self.digest,
                    end: &mut self.end,
                }),
            }
            // A command's closure may look at what it has begun; the next message must find it begun.
            self.carry_out();
        }
    }

    #[inline]
    fn carry_out(&mut self) {
        while let Some(effect) = self.mirror.poll_effect() {
            match effect {
                Effect::Submit(op) => self.port.submit(op),
                Effect::Complete { tag, result, buf, next } => self.port.complete(tag, result, buf, next),
                Effect::Keep { from, to, len } => self.arena.copy(from, to, len),
                effect => self.carry_out_rare(effect),
            }
        }
    }

    #[cold]
    fn carry_out_rare(&mut self, effect: Effect) {
        match effect {
            Effect::Record(record) => {
                let amendments = std::mem::take(&mut self.amendments);
                self.recorder
                    .send(RecordJob { record, amendments })
                    .expect("the recorder ends after its queue is dropped");
            }
            Effect::Mark => {
                let mut marks = self.ledger.marks.lock().expect(WHOLE);
                marks.assign(self.mirror.marks().words());
                drop(marks);
                self.hand_over_table(Table::Marks);
            }
            Effect::Save => {
                self.mirror.unsynced(&mut self.ledger.grains.lock().expect(WHOLE));
                for leg in LegId::ALL {
                    let mut stale = self.ledger.stale[leg.index()].lock().expect(WHOLE);
                    stale.assign(self.mirror.forgetting(leg).words());
                }
                self.run_errand(Errand::Save);
            }
            Effect::Note(note) => self.run_errand(Errand::Note(note)),
            Effect::Consult(consult) => self.run_errand(Errand::Consult(consult)),
            Effect::Suspects => {
                self.ledger
                    .suspects
                    .lock()
                    .expect(WHOLE)
                    .clone_from(self.mirror.suspects());
                self.hand_over_table(Table::Suspects);
            }
            Effect::Forget(leg) => self.run_errand(Errand::Empty(leg)),
            Effect::Recall(leg) => {
                let (extents, digest) = (self.mirror.recallable().clone(), self.digest.clone());
                self.run_errand(Errand::Recall { leg, extents, digest });
            }
            Effect::Match(primary) => {
                let extents = self.mirror.matchable().clone();
                self.run_errand(Errand::Match { primary, extents });
            }
            Effect::Compare { walk, left, right, len } => self.hand_over(Job::Compare { walk, left, right, len }),
            Effect::Hash {
                walk,
                range,
                buf,
                digest,
            } => {
                let digest = self.digest.clone().filter(|_| digest);
                self.hand_over(Job::Hash {
                    walk,
                    range,
                    buf,
                    digest,
                });
            }
            Effect::Populate {
                start,
                len,
                wanted: true,
            } => {
                // Not being locked was told to the administrator who prepared it.
                let _ = self.residence.prepare(Span { start, len });
            }
            Effect::Populate {
                start,
                len,
                wanted: false,
            } => {
                if self.residence.leave(Span { start, len }) {
                    self.hand_over(Job::GiveBack);
                }
            }
            Effect::Release(leg) => {
                let disk = self.port.set_leg(leg, None);
                self.hand_over(Job::Close { leg, disk });
            }
            Effect::Notify(event) => {
                match event {
                    Event::Digested { .. } => self.digest = None,
                    // Requests go on coming, and none may reach a core that has nothing more to say.
                    Event::HandedOver { .. } => self.end = true,
                    _ => {}
                }
                self.bulletin.tell(event);
            }
            Effect::Submit(_) | Effect::Complete { .. } | Effect::Keep { .. } => {
                unreachable!("carried out by the caller")
            }
        }
    }

    fn hand_over_table(&mut self, table: Table) {
        self.clerk
            .send(table)
            .expect("the clerk ends after its queue is dropped");
    }

    fn run_errand(&mut self, errand: Errand) {
        self.signer
            .send(errand)
            .expect("the keeper of signatures ends after its queue is dropped");
    }

    fn hand_over(&mut self, job: Job) {
        self.workers
            .send(job)
            .expect("workers end after their queue is dropped");
    }
}
