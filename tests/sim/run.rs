//! Runs seeds on all processors and says how to replay the one that fails.

use crate::life;
use crate::plan::Plan;
use crate::stats::Stats;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

thread_local! {
    /// A panic of the core becomes a failure of its seed; nobody wants a thousand backtraces.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

fn quiet_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
}

/// One world; an error says what did not hold.
pub fn seed(seed: u64, trace: bool) -> Result<Stats, String> {
    plan(Plan::new(seed), trace)
}

/// The world of this plan; an error says what did not hold.
pub fn plan(plan: Plan, trace: bool) -> Result<Stats, String> {
    quiet_panics();
    QUIET.set(!trace);
    let result = catch_unwind(AssertUnwindSafe(|| life::run(plan, trace)));
    QUIET.set(false);
    match result {
        Ok(result) => result,
        Err(panic) => {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
            Err(format!("the core panicked: {}", said.unwrap_or_default()))
        }
    }
}

/// Name the seeds that are being run when none has begun or ended for long: a core that loops for ever cannot be stopped
/// from outside. Numbers come in twice, `2n` when the seed begins and `2n + 1` when it has ended.
fn watch_progress(numbers: Receiver<u64>) {
    let mut running = BTreeSet::new();
    loop {
        match numbers.recv_timeout(Duration::from_secs(20)) {
            Ok(number) if number & 1 == 0 => {
                running.insert(number >> 1);
            }
            Ok(number) => {
                running.remove(&(number >> 1));
            }
            Err(RecvTimeoutError::Timeout) => eprintln!("no progress for 20 s; running: {running:?}"),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// All seeds of a range. Panics with the failures, the first of them with the command that replays it.
pub fn range(seeds: Range<u64>) -> Stats {
    let next = AtomicU64::new(seeds.start);
    let (done, watch) = std::sync::mpsc::channel::<u64>();
    let failures = Mutex::new(Vec::new());
    let total = Mutex::new(Stats::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        scope.spawn(|| watch_progress(watch));
        for _ in 0..threads {
            let done = done.clone();
            let (next, failures, total) = (&next, &failures, &total);
            scope.spawn(move || {
                let mut stats = Stats::default();
                loop {
                    // Only hands out numbers; nothing else is published through it.
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= seeds.end {
                        break;
                    }
                    let _ = done.send(number << 1);
                    let world = seed(number, false);
                    let _ = done.send(number << 1 | 1);
                    match world {
                        Ok(world) => stats.add(&world),
                        Err(what) => {
                            let mut failures = failures.lock().expect("no thread panics with it");
                            // At once: the next seed may never end.
                            if failures.len() < most_shown() {
                                eprintln!("seed {number}: {what}");
                            }
                            failures.push(number);
                        }
                    }
                }
                total.lock().expect("no thread panics with it").add(&stats);
            });
        }
        drop(done);
    });
    let mut failures = failures.into_inner().expect("no thread panics with it");
    failures.sort();
    if !failures.is_empty() {
        panic!(
            "{} of {} seeds fail; replay the first: TWINBLK_SIM_SEED={} cargo test --test sim -- one_seed --nocapture",
            failures.len(),
            seeds.end - seeds.start,
            failures[0]
        );
    }
    total.into_inner().expect("no thread panics with it")
}

/// How many failures are printed: a screen, or all with `TWINBLK_SIM_ALL`.
fn most_shown() -> usize {
    if std::env::var_os("TWINBLK_SIM_ALL").is_some() {
        usize::MAX
    } else {
        20
    }
}
