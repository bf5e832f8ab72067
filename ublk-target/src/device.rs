//! The device as its administrators see it: carries out the requests of the admin socket.
//!
//! Runs on the threads of connections. Everything about the core is asked of the shard; what takes long (looking at a
//! disk, making memory available) is done here, before the shard is asked. What was begun is waited for on the bulletin,
//! with progress told several times a second.

mod check;
pub mod legs;

use crate::ending::{Ended, Ending, Wanted};
use crate::errors::Told;
use crate::keeper::{Keeper, Notes};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use twinblk::control::message::{InSync, Resync};
use twinblk::control::status::{Daemon, DriverState, Facts, LegFacts, Outlook, State};
use twinblk::control::{CatchUp, Error, Progress, Reply, Request, Setting, Settings, Status, Switched};
use twinblk::core::time::Span;
use twinblk::core::{Event, Geometry, Layout, LegId, Mirror, Protocol, Refusal, Time};
use twinblk::runtime::admin::Handler;
use twinblk::runtime::bulletin::{Board, Bulletin, Number};
use twinblk::runtime::residence::Residence;
use twinblk::runtime::shard::{Client, Desk};
use twinblk::runtime::worker::Subject;
use twinblk::table;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_millis(250);

/// Where progress goes; breaks when nobody listens any more.
type Tell<'a> = &'a mut dyn FnMut(&Progress) -> ControlFlow<()>;

/// What does not change while the device is served.
pub struct Constants {
    /// Its name.
    pub name: String,
    /// Its uuid as text.
    pub uuid: String,
    /// Its block device.
    pub path: PathBuf,
    /// Size and units.
    pub geometry: Geometry,
    /// Where buffers lie.
    pub layout: Layout,
    /// This process.
    pub daemon: Daemon,
}

/// The device; see the module.
pub struct Device {
    /// What does not change.
    pub constants: Constants,
    /// The shard.
    pub client: Client<Keeper>,
    /// What it tells.
    pub bulletin: Arc<Bulletin>,
    /// The buffers' memory.
    pub residence: Arc<Residence>,
    /// How to end.
    pub ending: Arc<Ending>,
    /// What the last record says of the legs.
    pub notes: Notes,
    /// Durable writes to the state directory.
    pub metadata_writes: Arc<AtomicU64>,
    /// Where that is.
    pub state_dir: PathBuf,
    /// What changes, and only administrators need to know.
    pub shared: Mutex<Shared>,
    /// Held by whoever adds or removes a leg: one at a time.
    pub legs_change: Mutex<()>,
}

/// What administrators' threads share.
pub struct Shared {
    /// The legs' disks, by [`LegId::index`](twinblk::core::LegId::index).
    pub legs: [Option<LegFacts>; 2],
    /// The newest event when the shard got the leg's disk, or its detach began; `None`: neither has happened.
    pub held_since: [Option<Number>; 2],
    /// What administrators have set.
    pub settings: table::Settings,
}

impl Handler for Device {
    fn handle(
        &self,
        request: Request,
        descriptor: Option<OwnedFd>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Reply, Error> {
        match request {
            Request::Status {} => Ok(Reply::Status(Box::new(self.status()?))),
            Request::Attach(attach) => self.attach(attach, descriptor, progress),
            Request::Detach { leg } => self.detach(&leg, progress),
            Request::Wait { timeout_ms } => self.wait(timeout_ms, progress),
            Request::Switch { max_pause_ms, force } => self.switch(max_pause_ms, force, progress),
            Request::Verify(verify) => self.verify(&verify, progress),
            Request::Digest(digest) => self.digest(&digest, progress),
            Request::Resync(resync) => self.steer(resync, progress),
            Request::Set(setting) => self.set(setting, progress),
            Request::Stop { force } => self.end(Wanted::Stop { force }),
            Request::HandOver {} => self.end(Wanted::HandOver),
        }
    }
}

impl Device {
    fn end(&self, wanted: Wanted) -> Result<Reply, Error> {
        Ok(match self.ending.ask(wanted)? {
            Ended::Stopped => Reply::DONE,
            Ended::HandedOver(handed_over) => Reply::HandedOver(handed_over),
        })
    }

    /// Have the shard do something.
    fn call<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut Desk<'_, Keeper>) -> R + Send + 'static,
    ) -> Result<R, Error> {
        self.client.call(command).map_err(|ended| ended.told("ask the device"))
    }

    /// Have the core begin something; returns the number after which its outcome will be pinned.
    fn begin(
        &self,
        verb: impl FnOnce(&mut Mirror, Time) -> Result<(), Refusal> + Send + 'static,
    ) -> Result<Number, Error> {
        let begun = self.call(move |desk| {
            let newest = desk.newest();
            verb(desk.mirror, desk.now).map(|()| newest)
        })?;
        Ok(begun?)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("nobody panics while holding it")
    }

    /// Wait for an outcome; progress is told meanwhile. `None`: the shard has ended, or nobody listens any more.
    fn outcome<T>(&self, tell: Tell<'_>, mut found: impl FnMut(&mut Board) -> Option<T>) -> Result<Option<T>, Error> {
        loop {
            let found = self.bulletin.wait(Some(Instant::now() + PROGRESS), &mut found);
            if found.is_some() || self.bulletin.board().ended {
                return Ok(found);
            }
            if self.tell_progress(tell)?.is_break() {
                return Ok(None);
            }
        }
    }

    fn tell_progress(&self, tell: Tell<'_>) -> Result<ControlFlow<()>, Error> {
        let status = self.status()?;
        Ok(tell(&progress_of(&status)))
    }

    /// The status as it is told.
    ///
    /// # Errors
    /// The shard has ended.
    pub fn status(&self) -> Result<Status, Error> {
        let (core, suspects, now) =
            self.call(|desk| (desk.mirror.status(), desk.mirror.suspects().clone(), desk.now))?;
        let gone = self.bulletin.board().gone;
        let shared = self.shared();
        let mut legs = shared.legs.clone();
        let noted = *self.notes.lock().expect("nobody panics while holding them");
        for (leg, since) in legs.iter_mut().zip(noted.since) {
            leg.iter_mut().for_each(|leg| leg.since = since);
        }
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let constants = &self.constants;
        let facts = Facts {
            name: constants.name.clone(),
            uuid: constants.uuid.clone(),
            device: (!gone).then(|| constants.path.clone()),
            size_bytes: constants.geometry.size,
            logical_block_size: constants.geometry.block,
            legs,
            daemon: constants.daemon.clone(),
            driver_state: if gone { DriverState::Dead } else { DriverState::Live },
            metadata_writes: self.metadata_writes.load(Ordering::Relaxed),
            settings: Settings::from(&shared.settings),
            unix: unix.map_or(0, |unix| unix.as_secs()),
        };
        Ok(Status::of_core(&facts, &core, &suspects, now))
    }

    fn wait(&self, timeout_ms: Option<u64>, tell: Tell<'_>) -> Result<Reply, Error> {
        let until = timeout_ms.map(|timeout| Instant::now() + Duration::from_millis(timeout));
        loop {
            let newest = self.bulletin.board().newest;
            let status = self.status()?;
            match status.outlook() {
                Outlook::InSync => return Ok(Reply::InSync(InSync { state: State::Mirrored })),
                Outlook::Never { why, hint } => return Err(Error::wrong_state(why).hint(hint)),
                Outlook::Coming => {}
            }
            let now = Instant::now();
            if until.is_some_and(|until| until <= now) {
                let waited = timeout_ms.unwrap_or_default();
                return Err(Error::timed_out(format!("the legs are not in sync after {waited} ms")));
            }
            if tell(&progress_of(&status)).is_break() {
                return Err(Error::failed("nobody waits any more"));
            }
            let next = until.map_or(now + PROGRESS, |until| until.min(now + PROGRESS));
            self.bulletin
                .wait(Some(next), |board| (board.newest > newest).then_some(()));
        }
    }

    fn switch(&self, max_pause_ms: Option<u64>, force: bool, tell: Tell<'_>) -> Result<Reply, Error> {
        let max_pause = max_pause_ms.map(Span::from_millis);
        let begun = self.begin(move |mirror, now| mirror.switch(now, max_pause, force))?;
        let outcome = self.outcome(tell, |board| board.switch.filter(|(number, _)| *number > begun))?;
        match outcome {
            Some((
                _,
                Event::Switched {
                    from,
                    to,
                    pause,
                    generation,
                    era,
                },
            )) => Ok(Reply::Switched(Switched {
                from,
                to,
                pause_us: pause.0 / 1000,
                generation,
                era,
            })),
            Some((_, Event::SwitchGivenUp { pause })) => {
                let held = pause.0 / 1000;
                let why = format!("the legs were not equal within the pause ({held} us); nothing has changed");
                Err(Error::timed_out(why).hint("allow a longer one with --max-pause, or wait for less load"))
            }
            _ => Err(lost("switch")),
        }
    }

    fn steer(&self, resync: Resync, tell: Tell<'_>) -> Result<Reply, Error> {
        match resync {
            Resync::Pause {} => self.call(|desk| desk.mirror.pause_resync(desk.now, true))?,
            Resync::Resume {} => self.call(|desk| desk.mirror.pause_resync(desk.now, false))?,
            Resync::Rate { bytes_per_s } => {
                let rate = bytes_per_s.unwrap_or(0);
                if bytes_per_s == Some(0) {
                    return Err(Error::usage("a rate of 0 is no rate").hint("pause it instead, or say unlimited"));
                }
                return self.change(
                    tell,
                    |settings| settings.rate = rate,
                    move |mirror, now| mirror.set_rate(now, rate),
                );
            }
        }
        Ok(Reply::DONE)
    }

    fn set(&self, setting: Setting, tell: Tell<'_>) -> Result<Reply, Error> {
        match setting {
            Setting::Protocol(protocol) => self.set_protocol(protocol, tell),
            Setting::StallBudget(ms) => {
                let budget = Span::from_millis(bounded(ms, "stall-budget", 1, 3_600_000)?);
                self.change(
                    tell,
                    |settings| settings.stall_budget_ms = ms,
                    move |mirror, now| mirror.set_stall_budget(now, budget),
                )
            }
            Setting::LegTimeout(secs) => {
                let timeout = Span::from_secs(bounded(secs, "leg-timeout", 1, 3600)?);
                self.change(
                    tell,
                    |settings| settings.leg_timeout_ms = secs * 1000,
                    move |mirror, now| mirror.set_leg_timeout(now, timeout),
                )
            }
            Setting::PoolBytes(bytes) => {
                let layout = self.constants.layout;
                bounded(bytes, "pool-bytes", layout.tags_bytes(), layout.pool_max)?;
                let bytes = bytes / u64::from(layout.max_io) * u64::from(layout.max_io);
                if LegId::ALL.into_iter().all(|leg| self.is_held(leg)) {
                    self.prepare_memory(bytes);
                }
                self.call(move |desk| desk.mirror.set_pool_bytes(desk.now, bytes))??;
                self.change(tell, |settings| settings.pool_bytes = bytes, |_, _| ())
            }
            Setting::LagBytes(bytes) => self.change(
                tell,
                |settings| settings.lag_bytes = bytes,
                move |mirror, now| mirror.set_lag_bytes(now, bytes),
            ),
            Setting::Quiet(secs) => {
                bounded(secs, "quiet", 0, 86_400)?;
                let quiet = Span::from_secs(secs);
                self.change(
                    tell,
                    |settings| settings.quiet_ms = secs * 1000,
                    move |mirror, now| mirror.set_quiet(now, quiet),
                )
            }
            Setting::CatchUp(catch_up) => {
                let automatic = catch_up == CatchUp::Auto;
                self.change(
                    tell,
                    |settings| settings.catch_up = automatic,
                    move |mirror, now| mirror.set_catch_up(now, automatic),
                )
            }
        }
    }

    fn set_protocol(&self, protocol: Protocol, tell: Tell<'_>) -> Result<Reply, Error> {
        let begun = self.begin(move |mirror, now| mirror.set_protocol(now, protocol))?;
        let outcome = self.outcome(tell, |board| board.protocol.filter(|(number, _)| *number > begun))?;
        match outcome {
            Some((_, Event::ProtocolSet { done: true })) => Ok(Reply::DONE),
            Some(_) => Err(Error::failed("the protocol could not be recorded, and is as before")
                .hint("look at the file system of the state directory")),
            None => Err(lost("change of the protocol")),
        }
    }

    /// Change a setting, and return when it is durable.
    ///
    /// It is in force at once, and goes with a record that is begun in the same command: that is the next one, so it has the
    /// number that is waited for, or a higher one. Nothing is acknowledged on the strength of a setting, so one that is in
    /// force and cannot be recorded is told, and not taken back; every later record has it too.
    fn change(
        &self,
        tell: Tell<'_>,
        record: impl FnOnce(&mut table::Settings),
        apply: impl FnOnce(&mut Mirror, Time) + Send + 'static,
    ) -> Result<Reply, Error> {
        let number = {
            // Held while the shard is asked, so that two changes are recorded in their order.
            let mut shared = self.shared();
            let mut settings = shared.settings;
            record(&mut settings);
            let begun = self.call(move |desk| {
                let number = desk.mirror.renew_record(desk.now)?;
                desk.amend(Subject::Settings, move |keeper: &mut Keeper| {
                    keeper.set_settings(settings)
                });
                apply(desk.mirror, desk.now);
                Ok::<_, Refusal>(number)
            })?;
            let number = begun?;
            shared.settings = settings;
            number
        };
        let recorded = self.outcome(tell, |board| {
            let failed = board.not_recorded.filter(|(failed, _)| *failed >= number);
            match failed {
                _ if board.recorded >= number => Some(Ok(())),
                Some((_, errno)) => Some(Err(errno)),
                None => None,
            }
        })?;
        match recorded {
            Some(Ok(())) => Ok(Reply::DONE),
            Some(Err(errno)) => Err(Error::failed(format!(
                "it is in force, but could not be recorded: {}",
                std::io::Error::from_raw_os_error(errno.0)
            ))
            .hint("it is recorded as soon as the file system of the state directory takes it; until then an end of the daemon loses it")),
            None => Err(lost("change of the setting")),
        }
    }

    /// Have the memory of copies and of a pool of `pool` bytes there before the shard needs it.
    fn prepare_memory(&self, pool: u64) {
        let layout = &self.constants.layout;
        let span = twinblk::runtime::residence::Span {
            start: layout.tags_bytes(),
            len: layout.copies_bytes() + pool.min(layout.pool_max),
        };
        if let Err(not_locked) = self.residence.prepare(span) {
            log::warn!("{not_locked}");
        }
    }
}

fn bounded(value: u64, what: &str, least: u64, most: u64) -> Result<u64, Error> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Error::usage(format!(
        "{what} is {value}, and must be from {least} to {most}"
    )))
}

fn progress_of(status: &Status) -> Progress {
    match status.resync {
        Some(walk) => Progress::Walk(walk),
        None => Progress::State { state: status.state },
    }
}

fn lost(what: &str) -> Error {
    Error::failed(format!(
        "the outcome of the {what} is not known: nobody waited for it, or the device has ended"
    ))
    .hint("see twinblk status")
}

#[cfg(test)]
mod tests;
