//! `wait`: until both legs are in sync.

use crate::args::Wait;
use crate::context::Context;
use crate::exit::Exit;
use crate::progress::Meter;
use serde::Serialize;
use std::ops::ControlFlow;
use twinblk::control::message::InSync;
use twinblk::control::status::State;
use twinblk::control::{Error, Request};
use twinblk::table::Name;

#[derive(Serialize)]
struct Done<'a> {
    name: &'a Name,
    state: State,
}

/// Wait until both legs are in sync: the secondary follows every write in order, and no place is left on which the legs
/// may differ. The newest writes may still be on their way to it; under the protocols flush and async they always may.
///
/// # Errors
/// That cannot come by itself: wrong state. Not in time: timed out.
pub fn run(context: &Context, args: &Wait) -> Result<Exit, Error> {
    let name = &args.name;
    let mut client = context.running(name)?;
    let mut meter = Meter::new(context.json);
    let request = Request::Wait {
        timeout_ms: args.timeout,
    };
    let InSync { state } = client.call(&request, None, |progress| {
        meter.show(&progress);
        ControlFlow::Continue(())
    })?;
    drop(meter);
    context.print(&Done { name, state }, || format!("{name} is {}\n", state.word()))?;
    Ok(Exit::Done)
}
