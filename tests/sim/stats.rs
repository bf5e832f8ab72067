//! What a world has been through, so that a run can prove that it tried everything it claims to.

macro_rules! stats {
    ($($name:ident),* $(,)?) => {
        /// Counts of what happened.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Stats { $(pub $name: u64),* }

        impl Stats {
            pub fn add(&mut self, other: &Stats) { $(self.$name += other.$name;)* }

            /// Names of what never happened.
            pub fn missing(&self) -> Vec<&'static str> {
                let mut missing = Vec::new();
                $(if self.$name == 0 { missing.push(stringify!($name)); })*
                missing
            }
        }
    };
}

stats! {
    lives, looks, reads, writes, flushes, guest_errors, leg_ops, kept, records, faults, marks, saves, starts_tracked,
    attaches, detaches, switches, switches_given_up, protocols_set, in_sync, demotions, releases,
    rests_in_sync, verifies, differences, digests, digests_given_up, stops, cuts, kills, starts_in_sync, refusals, leg_errors,
    outlasted_hangs, outlasted_losses, survivors, outlasted_records, unrecorded_errors, unrecordable_stops, ceilings_raised,
    hand_overs, hand_overs_given_up, hand_overs_unclean,
    failovers, rewrites, failovers_given_up, host_errors, pretending_starts,
    notes, notes_spoiled, forgets, recalls, matches, recognised, digests_recorded, digests_mixed, quiet_reads, starts_believing,
    tables_lost, tables_void,
    consults, rots, strays, rechecks, strayed, verdicts, mended, cleared, suspect_refusals,
}
