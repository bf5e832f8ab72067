//! Both ends of the socket over which the tool starts a daemon; see [`crate::control::launch`].

use super::wire::{Broken, Wire};
use crate::control::launch::{Launch, Launched};
use crate::control::{Error, frame};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long the daemon waits for the line of the tool that has just started it, and to be heard.
const PROMPT: Duration = Duration::from_secs(10);

/// The tool's end.
#[derive(Debug)]
pub struct Launcher(Wire);

impl Launcher {
    /// The tool's end of the socket pair.
    pub fn new(stream: UnixStream) -> Launcher {
        Launcher(Wire::new(stream, 0))
    }

    /// Say what to serve, and wait at most `patience` for the device. `legs` are the descriptors of `launch.legs`.
    ///
    /// # Errors
    /// The line could not be sent or none came: the daemon died, or hangs. What it said itself is [`Launched::Failed`].
    pub fn launch(
        mut self,
        launch: &Launch,
        legs: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<Launched, LaunchFailure> {
        assert_eq!(launch.legs.len(), legs.len(), "one descriptor per leg");
        self.0.write(launch, legs, PROMPT)?;
        let line = self.0.read_line(patience)?;
        frame::decode(&line).map_err(LaunchFailure::Answer)
    }
}

/// Why the tool does not know how a launch went.
#[derive(Debug, thiserror::Error)]
pub enum LaunchFailure {
    /// The daemon ended, or did not answer in time.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// It answered something else.
    #[error("the daemon's answer is not understood: {0}")]
    Answer(#[source] Error),
}

/// The daemon's end.
#[derive(Debug)]
pub struct Launchee(Wire);

impl Launchee {
    /// The socket found at [`crate::control::launch::DESCRIPTOR`].
    pub fn new(stream: UnixStream) -> Launchee {
        Launchee(Wire::new(stream, crate::control::launch::MAX_DESCRIPTORS))
    }

    /// What to serve, with the descriptors of its legs in their order.
    ///
    /// # Errors
    /// Nothing came, or nothing sensible: answer with it and end.
    pub fn launch(&mut self) -> Result<(Launch, Vec<OwnedFd>), Error> {
        let line = self
            .0
            .read_line(PROMPT)
            .map_err(|broken| Error::failed(format!("nothing to serve came from the tool: {broken}")))?;
        let launch: Launch = frame::decode(&line)?;
        let legs: Vec<OwnedFd> = std::iter::from_fn(|| self.0.take_descriptor()).collect();
        if legs.len() == launch.legs.len() {
            Ok((launch, legs))
        } else {
            let (came, named) = (legs.len(), launch.legs.len());
            Err(Error::usage(format!("{came} descriptors came for {named} legs")))
        }
    }

    /// Say how it went. A tool that is gone is no failure of the device.
    pub fn answer(mut self, launched: &Launched) {
        if let Err(broken) = self.0.write(launched, &[], PROMPT) {
            log::warn!("the tool that started this daemon did not take the answer: {broken}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::launch::{Action, LaunchLeg, Ready, Start};
    use crate::core::LegId;
    use crate::table::LegIdentity;
    use std::os::fd::AsFd;
    use std::thread;

    fn launch(legs: usize) -> Launch {
        let identity: LegIdentity = serde_json::from_value(serde_json::json!({
            "kind":"block","size":4096,"block":512,"major":8,"minor":0,"inode":0,"partition":0,"serial":"","wwid":"",
            "partition_uuid":"","stack_uuid":"","path":"/dev/null","canonical":"/dev/null"
        }))
        .unwrap();
        let leg = |leg| LaunchLeg {
            leg,
            identity: identity.clone(),
            claimed: true,
        };
        Launch {
            name: "vm1".parse().unwrap(),
            state_dir: "/s".into(),
            run_dir: "/r".into(),
            action: Action::Start(Start::default()),
            legs: LegId::ALL[..legs].iter().map(|&id| leg(id)).collect(),
        }
    }

    #[test]
    fn a_launch_brings_its_legs_and_an_answer() {
        let (tool, daemon) = UnixStream::pair().unwrap();
        let daemon = thread::spawn(move || {
            let mut end = Launchee::new(daemon);
            let (launch, legs) = end.launch().unwrap();
            end.answer(&Launched::Ready(Ready {
                device: "/dev/ublkb0".into(),
                id: 0,
                pid: Some(1),
            }));
            (launch, legs.len())
        });
        let null = std::fs::File::open("/dev/null").unwrap();
        let legs = [null.as_fd(), null.as_fd()];
        let launched = Launcher::new(tool).launch(&launch(2), &legs, PROMPT).unwrap();
        assert!(matches!(launched, Launched::Ready(Ready { id: 0, .. })));
        assert_eq!(daemon.join().unwrap(), (launch(2), 2));
    }

    #[test]
    fn a_daemon_that_dies_is_noticed_at_once() {
        let (tool, daemon) = UnixStream::pair().unwrap();
        drop(daemon);
        let failure = Launcher::new(tool).launch(&launch(0), &[], PROMPT).unwrap_err();
        assert!(matches!(failure, LaunchFailure::Broken(Broken::Closed { .. })));
    }

    #[test]
    fn a_leg_without_its_descriptor_is_refused() {
        let (tool, daemon) = UnixStream::pair().unwrap();
        Wire::new(tool, 0).write(&launch(1), &[], PROMPT).unwrap();
        assert!(Launchee::new(daemon).launch().is_err());
    }
}
