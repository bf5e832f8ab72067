//! The device is handed over to another core at any moment, with its guest.
//!
//! Verifies: a core that has handed over is at nothing and does nothing more, whatever the guest asks; where it says clean, every
//! record that may be found does, what was acknowledged is durable on every leg that the record counts, and such legs are equal.
//! One that gives up goes on and breaks no promise. The worlds are those of other seeds' plans, with hand-overs besides.

use crate::admin::Awaited;
use crate::check::{Check, End, image_after};
use crate::disk::Disk;
use crate::life;
use crate::plan::{Faults, Lasting, Plan};
use crate::stats::Stats;
use crate::world::World;
use twinblk::core::time::Span;
use twinblk::core::{Health, Record};

/// One of this many steps begins a hand-over.
const RARITY: u64 = 150;

impl World {
    /// Hand over, perhaps. Returns whether it is done, and the life over.
    pub fn hand_over_perhaps(&mut self) -> Check<bool> {
        if self.plan.hands_over && self.rng.below(RARITY) == 0 {
            let pause = Span(self.rng.pick(&[100_000, 2_000_000, 20_000_000]));
            let result = self.mirror.hand_over(self.now, pause);
            self.asked(Some(Awaited::HandOver), "hand-over", result)?;
            self.settle_effects()?;
        }
        self.is_handed_over()
    }

    /// A hand-over that is under way ends. Returns whether it is done, and the life over.
    pub fn outwait_hand_over(&mut self) -> Check<bool> {
        while self.admin.awaits(Awaited::HandOver) {
            self.must_step()?;
        }
        self.is_handed_over()
    }

    fn is_handed_over(&mut self) -> Check<bool> {
        if self.plan.hands_over && self.admin.stopped {
            self.ask_in_vain()?;
        }
        Ok(self.plan.hands_over && self.admin.stopped)
    }

    /// The guest knows of nothing, and asks on.
    fn ask_in_vain(&mut self) -> Check {
        for tag in 0..self.guest.pending.len() {
            if self.guest.pending[tag].is_none() {
                let request = self.guest.next(tag, &mut self.rng);
                self.issued += 1;
                self.ask(tag as u16, request)?;
                // An effect after the end is an error.
                self.carry_out()?;
            }
        }
        self.mirror.handle_timeout(self.now + Span::from_secs(60));
        self.carry_out()
    }

    pub fn handed_over(&mut self, clean: bool) -> Check {
        self.admin.answered(Awaited::HandOver)?;
        self.admin.stopped = true;
        self.admin.stopped_clean = clean;
        self.stats.hand_overs += u64::from(clean);
        self.stats.hand_overs_unclean += u64::from(!clean);
        if !self.flights.is_empty() || self.tables.is_writing() || self.places.is_writing() || !self.walks.is_idle() {
            return Err(format!("handed over with something under way: {:?}", self.flights));
        }
        if !clean {
            return Ok(());
        }
        if !self.signatures.is_idle() {
            return Err("handed over as clean, and something is asked of the signature tables".into());
        }
        for record in self.store.possible() {
            if !record.clean {
                return Err(format!("handed over, and a start may find {record:?}"));
            }
            // Whatever is lost now, nothing that was acknowledged is.
            let images = self.disks.each_ref().map(|disk| {
                let mut image = disk.clone();
                image.cut(&mut self.rng);
                image
            });
            let spared = self.places.surely(record);
            image_after(&self.oracle, &images, record, End::Kill, self.admin.replaced, &spared)?;
            self.are_equal(record)?;
        }
        Ok(())
    }

    /// Legs that the record calls in sync are equal, but for what a flush that failed has lost.
    fn are_equal(&self, record: &Record) -> Check {
        let other = record.primary.other().index();
        let follows = record.legs[other].is_some_and(|leg| leg.health == Health::InSync && leg.attached);
        let [primary, secondary] = [&self.disks[record.primary.index()], &self.disks[other]];
        let spared = self.places.surely(record);
        let rotten = |disk: &Disk, sector: usize| disk.live()[sector].is_rotten();
        let odd =
            |sector: usize| rotten(primary, sector) || rotten(secondary, sector) || spared.get(sector) == Some(&true);
        let forgiven = |sector: usize| primary.is_forgiven(sector) || secondary.is_forgiven(sector) || odd(sector);
        let pairs = primary.live().iter().zip(secondary.live()).enumerate();
        let differing = pairs
            .filter(|(_, (left, right))| !left.same_bytes(**right))
            .find(|(sector, _)| !forgiven(*sector));
        match differing.filter(|_| follows) {
            None => Ok(()),
            Some((sector, pair)) => Err(format!("handed over as in sync, sector {sector} differs: {pair:?}")),
        }
    }
}

fn run(seed: u64, trace: bool) -> Check<Stats> {
    let mut plan = Plan {
        hands_over: true,
        lives: 3,
        ..Plan::new(seed)
    };
    if seed.is_multiple_of(4) {
        plan.faults = Faults::None;
        plan.lasting = Lasting::None;
        // Where nothing goes wrong nothing is given up, however slow it is.
        plan.config.stall_budget = Span::from_secs(30);
        plan.config.leg_timeout = Span::from_secs(60);
    }
    life::run(plan, trace)
}

#[test]
fn a_device_handed_over_at_any_moment_loses_nothing() {
    let mut total = Stats::default();
    let (from, to) = match std::env::var("TWINBLK_SIM_HAND_OVERS") {
        Ok(text) => {
            let (from, to) = text.split_once("..").expect("TWINBLK_SIM_HAND_OVERS is FROM..TO");
            (from.parse().expect("a number"), to.parse().expect("a number"))
        }
        Err(_) => (0, 1_000),
    };
    for seed in from..to {
        match run(seed, to - from == 1) {
            Ok(stats) => total.add(&stats),
            Err(what) => panic!("{what}; replay: TWINBLK_SIM_HAND_OVERS={seed}..{}", seed + 1),
        }
    }
    println!("{total:#?}");
    // It is a test only if all of it has happened.
    if to - from >= 1_000 {
        for (what, count) in [
            ("clean", total.hand_overs),
            ("unclean", total.hand_overs_unclean),
            ("given up", total.hand_overs_given_up),
        ] {
            assert!(count > 10, "{what}: {count}");
        }
    }
}
