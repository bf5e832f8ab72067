//! `verify`: read both legs and compare.

use crate::args::Verify;
use crate::context::Context;
use crate::exit::Exit;
use crate::progress::Meter;
use crate::size;
use std::ops::ControlFlow;
use twinblk::control::{self, Difference, Error, LegName, Progress, Request, Verified};
use twinblk::table::Name;

/// Read both legs and compare, and mend what is to be.
///
/// # Errors
/// Not both legs there: wrong state. Differences that are left are no error but [`Exit::Differences`].
pub fn run(context: &Context, args: &Verify) -> Result<Exit, Error> {
    let name = &args.name;
    let mut client = context.running(name)?;
    let mut meter = Meter::new(context.json);
    // Every range comes as an event; the answer itself holds the first ones only, so that it fits a line.
    let mut differences: Vec<Difference> = Vec::new();
    let request = Request::Verify(control::Verify {
        repair: args.repair,
        repair_from: args.repair_from.clone().map(LegName::from),
    });
    let mut verified: Verified = client.call(&request, None, |progress| {
        if let Progress::Difference(difference) = progress {
            differences.push(difference);
        }
        meter.show(&progress);
        ControlFlow::Continue(())
    })?;
    drop(meter);
    if differences.len() > verified.differences.len() {
        verified.differences = differences;
    }
    context.print(&verified, || human(name, &verified))?;
    Ok(if verified.equal { Exit::Done } else { Exit::Differences })
}

fn human(name: &Name, verified: &Verified) -> String {
    let mut text = String::new();
    for Difference {
        offset,
        length,
        wrong_leg,
    } in &verified.differences
    {
        let wrong = wrong_leg.map_or_else(
            || "neither leg is proven wrong".into(),
            |leg| format!("leg {leg} is wrong"),
        );
        text.push_str(&format!("differs: {length} bytes at {offset}; {wrong}\n"));
    }
    let compared = size::show(verified.bytes_compared);
    let count = verified.difference_count.max(verified.differences.len() as u64);
    if verified.repaired_bytes > 0 {
        text.push_str(&format!("{name}: {} mended\n", size::show(verified.repaired_bytes)));
    }
    text.push_str(&match (verified.equal, count) {
        (true, _) => format!("{name}: both legs are equal; {compared} compared\n"),
        (false, 0) => format!("{name}: not everything could be compared; {compared} were, and are equal; see twinblk status for what is suspect\n"),
        (false, count) => format!("{name}: {count} ranges differed, and not all are mended; {compared} compared\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinblk::core::LegId;

    #[test]
    fn every_differing_range_is_reported() {
        let name: Name = "vm1".parse().unwrap();
        let difference = |offset, wrong_leg| Difference {
            offset,
            length: 4096,
            wrong_leg,
        };
        let verified = Verified {
            equal: false,
            bytes_compared: 1 << 20,
            differences: vec![difference(0, None), difference(8192, Some(LegId::B))],
            difference_count: 2,
            repaired_bytes: 0,
        };
        assert_eq!(
            human(&name, &verified),
            "differs: 4096 bytes at 0; neither leg is proven wrong\n\
             differs: 4096 bytes at 8192; leg b is wrong\n\
             vm1: 2 ranges differed, and not all are mended; 1.00 MiB compared\n"
        );
    }

    #[test]
    fn a_walk_broken_off_is_not_called_equal() {
        let name: Name = "vm1".parse().unwrap();
        let verified = Verified {
            equal: false,
            bytes_compared: 0,
            differences: vec![],
            difference_count: 0,
            repaired_bytes: 0,
        };
        assert!(human(&name, &verified).contains("not everything"));
    }
}
