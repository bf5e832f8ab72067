//! Records that say nothing new, written because something is recorded along with them: at any moment, between everything
//! else that records are for.
//!
//! Verifies: the number that is promised is that of no record begun before; a record of it, or of a higher one, becomes
//! durable; no other promise suffers. The worlds are those of other seeds' plans, with renewals besides.

use crate::check::Check;
use crate::life;
use crate::plan::{Faults, Plan};
use crate::world::{Happening, World};
use twinblk::core::Refusal;

impl World {
    /// Something is to be recorded, and will be again.
    pub fn renew(&mut self) -> Check {
        if self.issued >= self.budget {
            return Ok(());
        }
        let delay = self.around(self.plan.admin_interval.0 / 2);
        self.at(delay, Happening::Renew);
        let (begun, durable) = (self.store.highest(), self.mirror.status().record.number);
        match self.mirror.renew_record(self.now) {
            Ok(number) if number > begun && number > durable => {
                self.trace(|| format!("renewal: {number}"));
                self.admin.renewal = Some(number);
                Ok(())
            }
            Ok(number) => Err(format!(
                "a renewal is to be record {number}, and {begun} was begun before"
            )),
            Err(Refusal::Stopping) => Ok(()),
            Err(refusal) => Err(format!("a record is not renewed: {refusal}")),
        }
    }

    /// A record is durable.
    pub fn renewed(&mut self, number: u64) {
        if self.admin.renewal.is_some_and(|renewal| renewal <= number) {
            self.admin.renewal = None;
        }
    }
}

#[test]
fn a_record_renewed_at_any_moment_becomes_durable_and_breaks_no_promise() {
    let mut records = [0; 2];
    for seed in 0..400 {
        for renews in [false, true] {
            let plan = Plan {
                renews,
                ..Plan::new(seed)
            };
            let stats = life::run(plan, false).unwrap_or_else(|what| panic!("seed {seed}, renews {renews}: {what}"));
            records[usize::from(renews)] += stats.records;
        }
    }
    // It is a test only if they were written.
    assert!(records[1] > 2 * records[0], "{records:?}");
}

/// A core that never writes a record twice in vain, and the one way to have it do so.
#[test]
fn a_renewal_writes_one_record_and_changes_nothing() {
    let plan = Plan {
        faults: Faults::None,
        ..Plan::new(1)
    };
    let mut world = life::first_life(plan, false);
    world.settle_effects().unwrap();
    while world.step().unwrap() {}
    let before = world.mirror.status().record;
    let number = world.mirror.renew_record(world.now).unwrap();
    assert_eq!(number, before.number + 1);
    world.settle_effects().unwrap();
    // While it is under way, what goes with it is taken: another renewal is another record.
    assert_eq!(world.mirror.renew_record(world.now), Ok(number + 1));
    while world.step().unwrap() {}
    let after = world.mirror.status().record;
    assert_eq!(
        after,
        twinblk::core::Record {
            number: number + 1,
            ..before
        }
    );
}
