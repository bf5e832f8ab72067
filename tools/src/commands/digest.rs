//! `digest`: the hash of the device's content.

use super::steer::leg_id;
use crate::args::Digest;
use crate::context::Context;
use crate::exit::Exit;
use crate::progress::Meter;
use std::ops::ControlFlow;
use twinblk::control::{self, Digested, Error, LegName, Request};

/// The hash of the device's content at one generation.
///
/// # Errors
/// A leg that lags: wrong state. Never quiet enough: timed out.
pub fn run(context: &Context, args: &Digest) -> Result<Exit, Error> {
    let name = &args.name;
    let mut client = context.running(name)?;
    let leg = match &args.leg {
        None => None,
        Some(leg) => {
            let status = Context::status_of(&mut client)?;
            Some(LegName::Id(leg_id(&status, leg)?))
        }
    };
    let request = Request::Digest(control::Digest {
        leg,
        read_back: args.read_back,
        max_pause_ms: Some(args.max_pause),
    });
    let mut meter = Meter::new(context.json);
    let digested: Digested = client.call(&request, None, |progress| {
        meter.show(&progress);
        ControlFlow::Continue(())
    })?;
    drop(meter);
    // As b3sum prints it: the hash, two spaces, what it is of.
    context.print(&digested, || format!("{}  {name}\n", digested.blake3))?;
    Ok(Exit::Done)
}
