//! The one clock: nanoseconds of `CLOCK_MONOTONIC`, which is also what the kernel's timers are told.

use crate::core::Time;
use nix::time::{ClockId, clock_gettime};

/// What time it is.
pub fn now() -> Time {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has a monotonic clock");
    Time(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_back() {
        let first = now();
        assert!(now() >= first);
        assert!(first > Time(0));
    }
}
