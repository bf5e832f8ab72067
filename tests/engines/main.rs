//! One suite that every engine passes, and what only one of them can show.

mod engines;
mod faulty;
mod rig;
mod suite;
mod uring;

macro_rules! suite {
    ($engine:ident) => {
        suite!($engine:
            what_is_written_is_read_back_from_that_leg_alone
            a_write_touches_no_neighbour
            a_read_touches_no_neighbour_in_the_arena
            a_read_behind_the_end_is_an_error_and_not_short
            a_zeroed_range_reads_as_zeroes_and_its_neighbours_as_before
            a_flush_ends_well_with_and_without_writes
            each_of_many_operations_in_flight_ends_once_and_well
            overlapping_writes_in_flight_leave_each_block_one_of_them
            waiting_for_less_than_is_in_flight_returns_at_least_that_and_loses_nothing
            random_operations_do_what_a_plain_array_of_bytes_does
            dropping_with_operations_in_flight_lets_go_of_the_arena
        );
    };
    ($engine:ident: $($property:ident)*) => {
        mod $engine {
            $(
                #[test]
                fn $property() {
                    match crate::engines::$engine() {
                        Ok(rig) => crate::suite::$property(rig),
                        Err(missing) => println!("skipped: {missing}"),
                    }
                }
            )*
        }
    };
}

suite!(memory_in_order);
suite!(memory_shuffled);
suite!(faulty_without_faults);
suite!(faulty_with_delays);
suite!(uring_on_direct_files);
suite!(uring_on_buffered_files);
suite!(uring_on_tmpfs);
suite!(uring_on_loop_devices_of_512);
suite!(uring_on_loop_devices_of_4096);
