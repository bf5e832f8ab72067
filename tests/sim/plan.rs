//! What kind of world a seed makes.

use crate::rng::Rng;
use twinblk::core::time::Span;
use twinblk::core::{Config, Geometry, Layout, Protocol, Record};

/// Which faults a world may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// None at all: nothing may be demoted without the administrator.
    None,
    /// Errors of the secondary, once or until healed.
    SecondaryErrors,
    /// Errors of either leg.
    Errors,
    /// A leg that does not answer for a while.
    Hangs,
    /// Records that fail or end undetermined.
    Records,
    /// All of it.
    Everything,
    /// A primary that fails or hangs while records fail for longer than the core waits for them, errors of the secondary, and
    /// of the host.
    Doubt,
}

/// Something that goes wrong in the middle of a life and stays so until its end, or until it comes to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    None,
    /// The secondary answers nothing any more.
    SecondaryHangs,
    /// The primary answers everything with an error.
    PrimaryLost,
    /// Every record's write ends in an error.
    RecordsFail,
    /// A record's write does not end.
    RecordsHang,
}

/// How the administrator behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    /// Does nothing.
    Absent,
    /// Attaches a leg and leaves it.
    Calm,
    /// Mostly switches.
    Switching,
    /// Anything at any time.
    Restless,
    /// Takes a leg off and attaches it again, and wants digests.
    Seeding,
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub config: Config,
    pub protocol: Protocol,
    pub faults: Faults,
    pub lasting: Lasting,
    pub admin: Admin,
    /// Mean time between two things the administrator does, and between two faults.
    pub admin_interval: Span,
    pub fault_interval: Span,
    /// Mean latency of an operation, by leg, and of a record.
    pub latency: [Span; 2],
    pub record_latency: Span,
    /// Mean time that a comparison or a hash takes.
    pub judging_latency: Span,
    /// Mean time that the thread takes that keeps the signature tables.
    pub errand_latency: Span,
    /// How late timers come.
    pub timer_lateness: Span,
    /// Whether leg `i` can punch holes.
    pub punches: [bool; 2],
    /// Guest requests of one life.
    pub requests: u64,
    pub lives: u64,
    /// Hot spots: few blocks that get most of the writes.
    pub hot_blocks: u64,
    /// Most blocks of one request.
    pub max_blocks: u64,
    /// Whether clients pause between requests.
    pub thinks: bool,
    /// Whether the guest does little but write, without end.
    pub endless: bool,
    /// Whether the world begins with both legs in sync.
    pub begins_mirrored: bool,
    /// Of a hundred writes of a table so many fail.
    pub table_failures: u64,
    /// Mean time between two times at which sectors change by themselves, if they do; see `rot`.
    pub rot_interval: Option<Span>,
    /// Whether records are written that say nothing new; see `renew`.
    pub renews: bool,
    /// Whether the device is handed over; see `hand_over`.
    pub hands_over: bool,
    /// Whether a disk may show what it lost in a flush that failed until the power fails, whoever opens it anew.
    pub drive_caches: bool,
}

impl Plan {
    /// Both legs of a mirror fail again and again, whichever is primary, and roles are exchanged as often.
    pub fn of_errors(seed: u64) -> Plan {
        let plan = Plan::new(seed);
        Plan {
            faults: Faults::Errors,
            lasting: Lasting::None,
            admin: Admin::Switching,
            begins_mirrored: true,
            requests: 4 * plan.requests,
            ..plan
        }
    }

    /// A primary that fails where the guest cannot be moved at once, and disks that show what they do not hold.
    pub fn of_doubt(seed: u64) -> Plan {
        let plan = Plan::new(seed);
        Plan {
            faults: Faults::Doubt,
            lasting: Lasting::None,
            admin: [Admin::Switching, Admin::Calm, Admin::Switching, Admin::Restless][(seed % 4) as usize],
            begins_mirrored: true,
            requests: 2 * plan.requests,
            lives: 6,
            drive_caches: true,
            ..plan
        }
    }

    /// A mirror of which much is known by signatures, and asked for: legs that come back, digests, and little else.
    pub fn of_signatures(seed: u64) -> Plan {
        let mut plan = Plan::new(seed);
        let fast = plan.latency[0];
        // So slow now and then that a leg can be let go and another come before it is done.
        let slow = Span(3 * plan.record_latency.0);
        let (judging_latency, errand_latency) = match seed % 5 {
            0 => (plan.judging_latency, slow),
            1 => (slow, plan.errand_latency),
            _ => (plan.judging_latency, plan.errand_latency),
        };
        plan.config.quiet = Span(fast.0 * [3, 10][(seed % 2) as usize]);
        let faults = [Faults::None, Faults::None, Faults::SecondaryErrors, Faults::Errors][(seed / 2 % 4) as usize];
        if faults == Faults::None {
            // Where nothing goes wrong nothing is given up, however slow it is.
            plan.config.stall_budget = Span::from_secs(30);
            plan.config.leg_timeout = Span::from_secs(60);
        }
        Plan {
            faults,
            lasting: Lasting::None,
            admin: Admin::Seeding,
            admin_interval: Span(fast.0 * [10, 30, 100][(seed % 3) as usize]),
            judging_latency,
            errand_latency,
            begins_mirrored: true,
            thinks: true,
            requests: 2 * plan.requests,
            lives: 4,
            ..plan
        }
    }

    /// Sectors that change by themselves, again and again, of legs that are verified as often.
    pub fn of_rot(seed: u64) -> Plan {
        let plan = Plan::new(seed);
        let fast = plan.latency[0].0;
        let faults = match seed % 8 {
            1 | 5 => Faults::Errors,
            3 => Faults::Everything,
            7 => Faults::Doubt,
            _ => Faults::None,
        };
        let mut config = plan.config;
        config.quiet = Span(fast * [2, 10, 40][(seed / 4 % 3) as usize]);
        if faults == Faults::None {
            // Where nothing goes wrong nothing is given up, however slow it is.
            config.stall_budget = Span::from_secs(30);
            config.leg_timeout = Span::from_secs(60);
        }
        Plan {
            config,
            faults,
            lasting: Lasting::None,
            admin: [Admin::Calm, Admin::Restless][(seed / 2 % 2) as usize],
            begins_mirrored: true,
            requests: 2 * plan.requests,
            lives: 5,
            rot_interval: Some(Span(fast * [30, 100, 300][(seed / 3 % 3) as usize])),
            drive_caches: true,
            ..plan
        }
    }

    pub fn new(seed: u64) -> Plan {
        let rng = &mut Rng::new(seed);
        let block: u32 = rng.pick(&[512, 512, 4096]);
        let grain: u32 = rng.pick(&[4096, 4096, 8192, 16384]);
        let extent = rng.pick(&[16384u32, 16384, 32768, 65536]).max(grain);
        let blocks = if block == 512 {
            rng.within(48, 400)
        } else {
            rng.within(24, 130)
        };
        let copies: u16 = rng.pick(&[1, 2, 4]);
        // Copy buffers are a whole number of the largest requests.
        let max_io = rng
            .pick(&[4096u32, 8192, 16384, 65536])
            .min(2 * extent * u32::from(copies));
        let depth = rng.pick(&[1u16, 2, 4, 8, 16, 16]);
        let pool_max = u64::from(max_io) * rng.within(1, 24);
        let fast = rng.pick(&[20_000u64, 100_000, 500_000]);
        let slower = rng.pick(&[1, 1, 3, 10, 40]);
        let faults = rng.pick(&[
            Faults::None,
            Faults::None,
            Faults::None,
            Faults::SecondaryErrors,
            Faults::Errors,
            Faults::Hangs,
            Faults::Records,
            Faults::Everything,
        ]);
        // Of a stream of its own, so that what came to be modelled later does not change the worlds of earlier seeds.
        let later = &mut Rng::new(seed ^ 0x1a57);
        let lasting = match later.below(100) {
            0..75 => Lasting::None,
            75..83 => Lasting::SecondaryHangs,
            83..88 => Lasting::PrimaryLost,
            88..95 => Lasting::RecordsFail,
            _ => Lasting::RecordsHang,
        };
        let few_generations = 4 * u64::from(depth) + later.below(100);
        let generations = later.pick(&[Record::GENERATIONS, Record::GENERATIONS, few_generations]);
        let quiet = later.pick(&[Some(2), Some(5), Some(20), None]);
        let errands = later.pick(&[1, 4, 20]);
        let rots = later.pick(&[Some(100), None, None, None, None, None, None, None]);
        // A buffer that a leg keeps for good is replaced out of the pool, which is never smaller than all tags' buffers (see
        // `Mirror::set_pool_bytes`). Elsewhere a smaller one makes it run short more often.
        let least = if lasting == Lasting::SecondaryHangs {
            u64::from(depth)
        } else {
            1
        };
        let patient = faults == Faults::None || rng.percent(30);
        Plan {
            seed,
            config: Config {
                geometry: Geometry {
                    size: blocks * u64::from(block),
                    block,
                    grain,
                    extent,
                },
                region: u64::from(grain) * [1, 2, 8, 1024][(seed % 4) as usize],
                linger: Span((fast * [2, 20, 200][(seed % 3) as usize]).max(1_000_000)),
                layout: Layout {
                    depth,
                    max_io,
                    copies,
                    copy_bytes: extent,
                    pool_max: pool_max.max(least * u64::from(max_io)),
                },
                pool_bytes: (u64::from(max_io) * rng.within(1, 24).max(least))
                    .min(pool_max.max(least * u64::from(max_io))),
                stall_budget: if patient {
                    Span::from_secs(30)
                } else {
                    Span::from_millis(rng.pick(&[5, 50, 500]))
                },
                leg_timeout: if patient {
                    Span::from_secs(60)
                } else {
                    Span::from_millis(rng.pick(&[20, 200, 2000]))
                },
                catch_up: rng.percent(75),
                lag_bytes: if rng.percent(70) { 0 } else { rng.within(1, 16) * 8192 },
                quiet: quiet.map_or(Span::from_secs(100), |times| Span(fast * times)),
                generations,
            },
            protocol: rng.pick(&[Protocol::Flush, Protocol::Flush, Protocol::Sync, Protocol::Async]),
            faults,
            lasting,
            admin: rng.pick(&[Admin::Calm, Admin::Switching, Admin::Restless]),
            admin_interval: Span(fast * rng.pick(&[20, 60, 200])),
            fault_interval: Span(fast * rng.pick(&[30, 100, 400])),
            latency: [Span(fast), Span(fast * slower)],
            record_latency: Span(fast * rng.pick(&[1, 4, 20])),
            judging_latency: Span(30_000),
            errand_latency: Span(fast / 4 * errands),
            timer_lateness: Span(rng.pick(&[0, 0, 1_000, 2_000_000])),
            punches: [rng.percent(70), rng.percent(70)],
            requests: rng.within(60, 320),
            lives: rng.pick(&[1, 1, 2, 3]),
            hot_blocks: rng.pick(&[1, 4, 16, 1000]),
            max_blocks: rng.pick(&[1, 4, 8, 32]),
            thinks: rng.percent(50),
            endless: false,
            begins_mirrored: rng.percent(50),
            table_failures: if seed % 8 == 3 { 20 } else { 0 },
            rot_interval: rots.map(|times| Span(fast * times)),
            renews: false,
            hands_over: false,
            drive_caches: false,
        }
    }
}
