//! `switch`: exchange the roles of the legs.

use crate::args::Switch;
use crate::context::Context;
use crate::exit::Exit;
use crate::progress::Meter;
use std::ops::ControlFlow;
use twinblk::control::{Error, Request, Switched};

/// Exchange the roles of the legs.
///
/// # Errors
/// Not in sync: wrong state. Past the bound: timed out; the guest goes on as before.
pub fn run(context: &Context, args: &Switch) -> Result<Exit, Error> {
    let name = &args.name;
    let mut client = context.running(name)?;
    let mut meter = Meter::new(context.json);
    let request = Request::Switch {
        max_pause_ms: args.max_pause,
        force: args.force,
    };
    let switched: Switched = client.call(&request, None, |progress| {
        meter.show(&progress);
        ControlFlow::Continue(())
    })?;
    drop(meter);
    let Switched {
        from,
        to,
        pause_us,
        generation,
        era,
    } = switched;
    context.print(&switched, || {
        let (ms, us) = (pause_us / 1000, pause_us % 1000);
        format!("{name}: leg {to} is primary now, leg {from} follows; pause {ms}.{us:03} ms at generation {generation}, era {era}\n")
    })?;
    Ok(Exit::Done)
}
