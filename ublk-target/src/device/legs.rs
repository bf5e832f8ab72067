//! Legs that come and go.

use super::{Device, Tell, lost};
use crate::errors::Told;
use crate::keeper::Keeper;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use twinblk::control::message::{Attached, Detached};
use twinblk::control::status::LegFacts;
use twinblk::control::{Attach, Content, Error, LegName, Reply};
use twinblk::core::{Comes, CopyMode, Geometry, Health, LegId, LegTraits, Refusal};
use twinblk::io::disk::{Disk, footprint, identity};
use twinblk::runtime::retired;
use twinblk::runtime::worker::Subject;
use twinblk::table::LegIdentity;

impl Device {
    pub(super) fn attach(&self, attach: Attach, descriptor: Option<OwnedFd>, tell: Tell<'_>) -> Result<Reply, Error> {
        let Some(descriptor) = descriptor else {
            return Err(Error::usage("the disk's descriptor did not come along").hint("use twinblk attach"));
        };
        let content = attach.content;
        let disk = Disk::from_descriptor(descriptor, attach.identity).map_err(|error| error.told("take the disk"))?;
        let _alone = self.legs_change.lock().expect("nobody panics while holding it");
        let leg = self.call(|desk| desk.mirror.status().primary.other())?;
        self.check_not_held(leg)?;
        let is_same = self.misses_are_known(leg, &disk);
        let (how, comes) = match content {
            Content::Blank | Content::Overwrite => (CopyMode::Blind, Comes::Another),
            Content::Returning | Content::Seeded => {
                let is_known =
                    is_same && !self.is_retired(leg, &disk) && (attach.unchanged || self.is_unchanged(leg, &disk));
                match (is_known, is_same) {
                    (true, _) if content == Content::Returning => (CopyMode::Dirty, Comes::Known),
                    (true, _) => (CopyMode::Compare, Comes::Known),
                    (false, true) => (CopyMode::Compare, Comes::Doubtful),
                    (false, false) => (CopyMode::Compare, Comes::Another),
                }
            }
        };
        self.follow(leg, &disk, how, comes)??;
        self.until_recorded(leg, tell)?;
        self.forget_retired(&disk.identity);
        Ok(Reply::Attached(Attached { leg }))
    }

    /// Wait until the record says that a leg is attached and being made equal.
    fn until_recorded(&self, leg: LegId, tell: Tell<'_>) -> Result<(), Error> {
        loop {
            let core = self.call(|desk| desk.mirror.status())?;
            let says = |leg: Option<Health>| matches!(leg, Some(Health::Syncing | Health::InSync));
            let recorded = core.record.legs[leg.index()]
                .filter(|leg| leg.attached)
                .map(|leg| leg.health);
            if says(recorded) {
                return Ok(());
            }
            if !says(core.legs[leg.index()].map(|leg| leg.health)) {
                return Err(Error::failed(format!("leg {leg} failed at once")).hint("see twinblk status and the log"));
            }
            if self.tell_progress(tell)?.is_break() {
                return Err(lost("attach"));
            }
            self.bulletin
                .wait(Some(Instant::now() + Duration::from_millis(10)), |board| {
                    board.ended.then_some(())
                });
        }
    }

    /// A leg that fell behind or failed is still claimed; in its place no other disk is taken before it was let go,
    /// so that the record never names one disk and means another.
    fn check_not_held(&self, leg: LegId) -> Result<(), Error> {
        if !self.is_held(leg) {
            return Ok(());
        }
        Err(
            Error::wrong_state(format!("the device has a leg {leg} already")).hint(format!(
                "detach it first (twinblk detach NAME {leg}), or see twinblk status"
            )),
        )
    }

    /// Whether the shard has the leg's disk, or is still to let go of it. What the shard tells decides, not who waited for
    /// it: whoever asked for a detach may not be there any more when it ends.
    pub(super) fn is_held(&self, leg: LegId) -> bool {
        let released = self.bulletin.board().released[leg.index()];
        self.shared().held_since[leg.index()].is_some_and(|since| released <= since)
    }

    /// Whether this very disk was the leg: then the core knows what it misses, if nobody else wrote to it. That it has grown
    /// since is beyond the device's end.
    fn misses_are_known(&self, leg: LegId, disk: &Disk) -> bool {
        let shared = self.shared();
        shared.legs[leg.index()]
            .as_ref()
            .is_some_and(|facts| identity::is_unmoved(&facts.identity, &disk.identity))
    }

    /// Whether it is proven that nobody has written to the disk since it was detached.
    fn is_unchanged(&self, leg: LegId, disk: &Disk) -> bool {
        let recorded = self.notes.lock().expect("nobody panics while holding them").footprints[leg.index()];
        let now = footprint::of(&disk.identity, disk.descriptor.as_fd());
        match footprint::doubt(recorded.as_ref(), now.as_ref()) {
            None => true,
            Some(why) => {
                log::info!("leg {leg} is compared whole: {why}");
                false
            }
        }
    }

    /// Whether blocks of the disk were wiped that the dirty map knows nothing of. In doubt they were.
    fn is_retired(&self, leg: LegId, disk: &Disk) -> bool {
        let is_retired = retired::is_retired(&self.state_dir, &disk.identity).unwrap_or_else(|error| {
            log::warn!("{error}");
            true
        });
        if is_retired {
            log::info!("leg {leg} is compared whole: its disk was retired");
        }
        is_retired
    }

    /// What was wiped on a disk that is a leg again is of no use any more.
    fn forget_retired(&self, disk: &LegIdentity) {
        if let Err(error) = retired::forget(&self.state_dir, disk) {
            log::warn!(
                "what was saved when {} was retired is not forgotten: {error}",
                disk.path
            );
        }
    }

    /// Have the core follow a disk, unless it refuses. The caller changes legs alone.
    fn follow(&self, leg: LegId, disk: &Disk, how: CopyMode, comes: Comes) -> Result<Result<(), Refusal>, Error> {
        fits(&disk.identity, &self.constants.geometry)?;
        let pool = self.shared().settings.pool_bytes;
        self.prepare_memory(pool);
        let (descriptor, identity) = (Arc::clone(&disk.descriptor), disk.identity.clone());
        let kept = Arc::clone(&descriptor);
        let traits = LegTraits { punches: disk.punches };
        let followed = self.call(move |desk| {
            desk.mirror.attach(desk.now, leg, traits, how, comes)?;
            // Effects are carried out when this returns: its disk is there before the first operation on it, and its
            // identity before the first record that has it.
            let before = desk.set_leg(leg, descriptor);
            desk.amend(Subject::Leg(leg), move |keeper: &mut Keeper| {
                keeper.set_disk(leg, identity, &kept)
            });
            Ok::<_, Refusal>((before, desk.newest()))
        })?;
        let since = match followed {
            Ok((before, since)) => {
                drop(before);
                since
            }
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut shared = self.shared();
        // Whatever disk was waited for, it is not taken any more.
        shared.legs[leg.index()] = Some(LegFacts {
            identity: disk.identity.clone(),
            awaited: false,
            since: None,
        });
        shared.held_since[leg.index()] = Some(since);
        Ok(Ok(()))
    }

    pub(super) fn detach(&self, name: &LegName, tell: Tell<'_>) -> Result<Reply, Error> {
        let _alone = self.legs_change.lock().expect("nobody panics while holding it");
        let leg = self.leg_named(name)?;
        // While it is followed, its disk is claimed: what was saved of it is older than what it holds now, and would be
        // taken for what it lacks as soon as it is let go.
        let is_followed =
            self.call(move |desk| desk.mirror.status().legs[leg.index()].is_some_and(|leg| leg.attached))?;
        let disk = self.shared().legs[leg.index()]
            .as_ref()
            .map(|facts| facts.identity.clone());
        if let (true, Some(disk)) = (is_followed, disk) {
            self.forget_retired(&disk);
        }
        let begun = self.begin(move |mirror, now| mirror.detach(now, leg))?;
        // Before anything is waited for: whatever becomes of that, a disk that was detached is not taken any more.
        self.await_no_more(leg);
        self.shared().held_since[leg.index()].get_or_insert(begun);
        let released = self.outcome(tell, |board| (board.released[leg.index()] > begun).then_some(()))?;
        let path = self.shared().legs[leg.index()]
            .as_ref()
            .map(|facts| facts.identity.path.to_string())
            .unwrap_or_default();
        released
            .map(|()| Reply::Detached(Detached { leg, path: path.into() }))
            .ok_or_else(|| lost("detach"))
    }

    /// Take the disk of a leg that somebody else holds as soon as he lets go of it; unless, before that, the leg is
    /// detached, or given another disk. `descriptor` holds no claim.
    ///
    /// # Errors
    /// It cannot be claimed, is not as recorded, or the core refuses it. It is not waited for any more then.
    pub fn take_when_free(&self, leg: LegId, descriptor: &OwnedFd, identity: &LegIdentity) -> Result<(), Error> {
        let taken = claim_when_free(descriptor, identity, || self.goes_on_waiting(leg))
            .and_then(|claimed| claimed.map_or(Ok(()), |claimed| self.take_awaited(leg, claimed, identity)));
        if taken.is_err() {
            self.await_no_more(leg);
        }
        taken
    }

    /// Take a leg whose claim was waited for, if it still is.
    fn take_awaited(&self, leg: LegId, claimed: OwnedFd, identity: &LegIdentity) -> Result<(), Error> {
        let disk = Disk::from_descriptor(claimed, identity.clone()).map_err(|error| error.told("take the disk"))?;
        loop {
            {
                // Nobody detaches or attaches between the look and what follows from it.
                let _alone = self.legs_change.lock().expect("nobody panics while holding it");
                if !self.is_awaited(leg) {
                    return Ok(());
                }
                match self.follow(leg, &disk, CopyMode::Compare, Comes::Doubtful)? {
                    Ok(()) => return Ok(()),
                    // A verb that holds the guest, or the rest of an earlier following: it ends.
                    Err(Refusal::Busy) => {}
                    Err(refusal) => return Err(refusal.into()),
                }
            }
            if !self.goes_on_waiting(leg) {
                return Ok(());
            }
        }
    }

    /// Wait a second, less if the leg is detached. Returns whether its disk is still waited for.
    fn goes_on_waiting(&self, leg: LegId) -> bool {
        let newest = self.bulletin.board().newest;
        let next = Instant::now() + Duration::from_secs(1);
        self.bulletin.wait(Some(next), |board| {
            (board.ended || board.detached[leg.index()] > newest).then_some(())
        });
        !self.bulletin.board().ended && self.is_awaited(leg)
    }

    fn is_awaited(&self, leg: LegId) -> bool {
        self.shared().legs[leg.index()]
            .as_ref()
            .is_some_and(|facts| facts.awaited)
    }

    fn await_no_more(&self, leg: LegId) {
        if let Some(facts) = &mut self.shared().legs[leg.index()] {
            facts.awaited = false;
        }
    }

    /// The leg that an administrator means.
    pub(super) fn leg_named(&self, name: &LegName) -> Result<LegId, Error> {
        let path = match name {
            LegName::Id(leg) => return Ok(*leg),
            LegName::Path(path) => path,
        };
        let shared = self.shared();
        let is_it = |leg: &LegId| {
            shared.legs[leg.index()].as_ref().is_some_and(|facts| {
                Path::new(&*facts.identity.path) == path || Path::new(&*facts.identity.canonical) == path
            })
        };
        LegId::ALL.into_iter().find(is_it).ok_or_else(|| {
            Error::wrong_state(format!("{} is no leg of this device", path.display())).hint("say a or b, or see status")
        })
    }
}

/// Whether a disk can hold a device of this geometry.
///
/// # Errors
/// Says why not.
pub fn fits(disk: &LegIdentity, geometry: &Geometry) -> Result<(), Error> {
    let path = &disk.path;
    if disk.size < geometry.size {
        let (size, needed) = (disk.size, geometry.size);
        return Err(Error::refused(format!(
            "{path} has {size} bytes, and the device has {needed}"
        )));
    }
    if disk.block > geometry.block {
        let (block, most) = (disk.block, geometry.block);
        return Err(Error::refused(format!(
            "{path} has logical blocks of {block} bytes, and the device of {most}"
        ))
        .hint("create the device with --logical-block-size 4096"));
    }
    Ok(())
}

/// Wait until the disk of `descriptor`, which holds no claim, can be claimed, and return the claim.
///
/// # Errors
/// It cannot be, whatever one waits for.
fn claim_when_free(
    descriptor: &OwnedFd,
    identity: &LegIdentity,
    mut wait: impl FnMut() -> bool,
) -> Result<Option<OwnedFd>, Error> {
    use nix::errno::Errno;
    use nix::fcntl::OFlag;
    use std::os::fd::AsFd;
    use twinblk::io::disk::claim;
    use twinblk::table::LegKind;
    let flags = OFlag::O_RDWR | OFlag::O_DIRECT;
    loop {
        let claimed = match identity.kind {
            LegKind::Block => claim::reopen(descriptor.as_fd(), flags | OFlag::O_EXCL).map(Some),
            LegKind::File => {
                claim::reopen(descriptor.as_fd(), flags).and_then(|file| Ok(claim::lock(file.as_fd())?.then_some(file)))
            }
        };
        match claimed {
            Ok(Some(claimed)) => return Ok(Some(claimed)),
            Ok(None) | Err(Errno::EBUSY) => {}
            Err(errno) => return Err(Error::failed(format!("cannot claim {}: {errno}", identity.path))),
        }
        if !wait() {
            return Ok(None);
        }
    }
}

/// The legs as administrators see them, at the start.
pub fn facts(identities: &[Option<LegIdentity>; 2], awaited: [bool; 2]) -> [Option<LegFacts>; 2] {
    let of = |leg: LegId| {
        let identity = identities[leg.index()].clone()?;
        Some(LegFacts {
            identity,
            awaited: awaited[leg.index()],
            since: None,
        })
    };
    LegId::ALL.map(of)
}
