//! The end of a daemon in whose place another goes on.
//!
//! The core brings everything to the disks, with the guest's requests held, and records it as clean. Then the process ends as if it
//! were killed: the block device stays in the driver, and what has arrived and is not answered waits there for the next daemon.

use crate::device::Device;
use crate::ending::Ended;
use crate::errors::Told;
use crate::running::Running;
use std::time::Duration;
use twinblk::control::{Error, HandedOver};
use twinblk::core::time::Span;
use twinblk::core::{Event, LegId, Refusal};
use twinblk::runtime::admin::Server;

/// How long the guest's requests may be held before the record that ends it is begun.
const PAUSE: Span = Span::from_secs(5);
/// How long clients may take at the end: the guest waits.
const FAREWELL: Duration = Duration::from_millis(500);

/// Have the core hand over. Once that is done the shard has ended, and there is nothing for this process to do but to end.
///
/// # Errors
/// It was refused or given up, and the guest goes on.
pub fn hand_over(running: &Running, device: &Device) -> Result<HandedOver, Error> {
    let begun = running.client.call(|desk| {
        let newest = desk.newest();
        desk.mirror.hand_over(desk.now, PAUSE).map(|()| newest)
    });
    let begun = begun.map_err(|ended| ended.told("hand over"))?;
    let begun = begun.map_err(|refusal| refused(refusal, device))?;
    let ended = running.bulletin.wait(None, |board| {
        let ended = board.hand_over.filter(|(number, _)| *number > begun);
        ended.map(|(_, event)| event)
    });
    match ended {
        Some(Event::HandedOver { clean, since }) => Ok(HandedOver {
            since_ns: since.0,
            clean,
        }),
        Some(Event::HandOverGivenUp { pause, unfinished }) => Err(given_up(pause, unfinished, device)),
        Some(_) | None => Err(Error::failed("the device has ended")),
    }
}

/// Tell whoever asked, and end.
pub fn end(server: Server, device: &Device, handed_over: HandedOver) -> ! {
    log::info!("handed over: ending");
    device.ending.answer(Ok(Ended::HandedOver(handed_over)));
    server.finish(FAREWELL);
    std::process::exit(0)
}

fn refused(refusal: Refusal, device: &Device) -> Error {
    let name = &device.constants.name;
    match refusal {
        Refusal::Busy => Error::wrong_state(format!("{name} is busy: {refusal}"))
            .hint("wait until the switch, verify or digest that runs has ended (twinblk status), and try again"),
        Refusal::Unanswered(leg) => {
            let error = Error::from(refusal);
            Error {
                message: format!(
                    "{} of {name} has not answered, and would hold the guest",
                    named(leg, device)
                ),
                ..error
            }
        }
        refusal => refusal.into(),
    }
}

fn given_up(pause: Span, unfinished: [bool; 2], device: &Device) -> Error {
    let name = &device.constants.name;
    let held = pause.0 / 1_000_000;
    let legs: Vec<String> = LegId::ALL
        .into_iter()
        .filter(|leg| unfinished[leg.index()])
        .map(|leg| named(leg, device))
        .collect();
    if legs.is_empty() {
        return Error::failed(format!(
            "{name} could not be handed over: something failed on the way; its guest goes on (requests held for {held} ms)"
        ))
        .hint("see the daemon's log, and the file system of the state directory");
    }
    Error::timed_out(format!(
        "{} of {name} did not get done in time; its guest goes on (requests held for {held} ms)",
        legs.join(" and ")
    ))
    .hint("see the kernel's log for its disk; or try again with less load")
}

fn named(leg: LegId, device: &Device) -> String {
    let shared = device.shared.lock().expect("nobody panics while holding it");
    match &shared.legs[leg.index()] {
        Some(facts) => format!("leg {leg} ({})", &*facts.identity.path),
        None => format!("leg {leg}"),
    }
}
