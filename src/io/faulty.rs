//! Makes any engine misbehave, reproducibly: errors, delays, torn and lost writes, by rules and a seed.
//!
//! Rules are asked in their order when an operation is submitted; the first one that matches and whose turn it is
//! decides what happens to it, and the others do not see it. An operation that no rule wants goes through untouched.
//! What each fault means for the content of the disk stands at [`Fault`]; what an error leaves undone stays undone, so
//! a failed flush is one that has not happened (for a disk that loses the data of a failed flush, cut the power of a
//! [`MemoryEngine`](super::memory::MemoryEngine) as well).
//!
//! Not handled: misdirected writes and rot (write to the disk behind the engine's back), and time: delays are counted
//! in operations.

use super::engine::{Completion, Engine};
use super::seed::Chance;
use crate::core::{Action, Errno, LegId, LegOp, OpId, Range};
use std::collections::HashMap;
use std::io;

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, with `fua` or without.
    Write,
    /// Flushes.
    Flush,
    /// Zeroings, with `unmap` or without.
    Zero,
}

impl Kind {
    /// The kind of an action.
    pub const fn of(action: Action) -> Kind {
        match action {
            Action::Read => Kind::Read,
            Action::Write { .. } => Kind::Write,
            Action::Flush => Kind::Flush,
            Action::Zero { .. } => Kind::Zero,
        }
    }
}

/// Which of the operations that a rule matches it applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// To one, after this many others.
    Once {
        /// How many go by before.
        after: u64,
    },
    /// To all, after this many others.
    From {
        /// How many go by before.
        after: u64,
    },
    /// To each with this probability, in millionths.
    Chance {
        /// Millionths.
        per_million: u32,
    },
}

/// Whether a delayed operation waits before it reaches the disk, or after, so that only its completion is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It takes effect late: newer writes may have landed before.
    Before,
    /// It has taken effect, and nobody has been told.
    After,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and has not happened.
    Error(Errno),
    /// It happens, and is reported as failed.
    ErrorAfter(Errno),
    /// The first blocks of it happen, by chance none and never all; it is reported as failed. The block that the
    /// device was cut off in holds the old content: blocks are never torn. Flushes have no blocks and just fail.
    Torn(Errno),
    /// It is reported as done and has not happened. No honest disk does that: for tests of what should find it out.
    /// A read is never lost.
    Lost,
    /// Its completion comes only after this many later operations were submitted; or when somebody waits who could
    /// not be served otherwise.
    Delay {
        /// How many later operations.
        operations: u64,
        /// What waits.
        stage: Stage,
    },
    /// It hangs until [`FaultyEngine::release`].
    Hang(Stage),
}

/// One rule; a field that is `None` matches everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Operations on this leg.
    pub leg: Option<LegId>,
    /// Operations of this kind.
    pub kind: Option<Kind>,
    /// Operations that touch this range; flushes touch none.
    pub touching: Option<Range>,
    /// To which of them it applies.
    pub when: When,
    /// What happens to those.
    pub fault: Fault,
}

impl Rule {
    /// A rule for every operation of every leg.
    pub const fn new(when: When, fault: Fault) -> Rule {
        Rule {
            leg: None,
            kind: None,
            touching: None,
            when,
            fault,
        }
    }

    /// Only for this leg.
    pub const fn on(self, leg: LegId) -> Rule {
        Rule { leg: Some(leg), ..self }
    }

    /// Only for this kind of operations.
    pub const fn of(self, kind: Kind) -> Rule {
        Rule {
            kind: Some(kind),
            ..self
        }
    }

    /// Only for operations that touch this range.
    pub const fn touching(self, range: Range) -> Rule {
        Rule {
            touching: Some(range),
            ..self
        }
    }

    fn matches(&self, op: &LegOp) -> bool {
        self.leg.is_none_or(|leg| leg == op.leg)
            && self.kind.is_none_or(|kind| kind == Kind::of(op.action))
            && self.touching.is_none_or(|range| range.overlaps(op.range))
            && !(self.fault == Fault::Lost && op.action == Action::Read)
    }
}

/// What is to happen to a completion when it arrives.
#[derive(Clone, Copy, Debug)]
enum Late {
    Fail(Errno),
    Keep { until: Option<u64> },
}

#[derive(Clone, Copy, Debug)]
enum Kept {
    Operation(LegOp),
    Completion(Completion),
}

/// An engine that misbehaves as its rules say.
#[derive(Debug)]
pub struct FaultyEngine<E> {
    inner: E,
    block: u32,
    chance: Chance,
    rules: Vec<(Rule, u64)>,
    submitted: u64,
    injected: u64,
    late: HashMap<OpId, Late>,
    /// What is kept back, until so many operations were submitted, or until released.
    kept: Vec<(Option<u64>, Kept)>,
    ready: Vec<Completion>,
    arrived: Vec<Completion>,
}

impl<E: Engine> FaultyEngine<E> {
    /// `inner` with faults by chance from `seed`; writes are torn at multiples of `block` bytes.
    ///
    /// # Panics
    /// If `block` is no power of two of at least 512.
    pub fn new(inner: E, seed: u64, block: u32) -> FaultyEngine<E> {
        assert!(block >= 512 && block.is_power_of_two(), "blocks of {block} bytes");
        FaultyEngine {
            inner,
            block,
            chance: Chance::new(seed),
            rules: Vec::new(),
            submitted: 0,
            injected: 0,
            late: HashMap::new(),
            kept: Vec::new(),
            ready: Vec::new(),
            arrived: Vec::new(),
        }
    }

    /// Ask this rule, too, after those that are there.
    pub fn add(&mut self, rule: Rule) {
        self.rules.push((rule, 0));
    }

    /// Forget all rules: the disks are healthy again. What hangs goes on hanging.
    pub fn heal(&mut self) {
        self.rules.clear();
    }

    /// Let everything go on that hangs or is delayed.
    pub fn release(&mut self) {
        self.late.retain(|_, late| matches!(late, Late::Fail(_)));
        for (_, kept) in std::mem::take(&mut self.kept) {
            self.let_go(kept);
        }
    }

    /// How many operations were made to misbehave.
    pub fn injected(&self) -> u64 {
        self.injected
    }

    /// The engine inside.
    pub fn inner(&self) -> &E {
        &self.inner
    }

    /// The engine inside; submitting to it or waiting on it is not for the caller.
    pub fn inner_mut(&mut self) -> &mut E {
        &mut self.inner
    }

    fn fault_for(&mut self, op: &LegOp) -> Option<Fault> {
        for (rule, seen) in &mut self.rules {
            if !rule.matches(op) {
                continue;
            }
            let before = *seen;
            *seen += 1;
            let applies = match rule.when {
                When::Once { after } => before == after,
                When::From { after } => before >= after,
                When::Chance { per_million } => self.chance.happens(per_million),
            };
            if applies {
                self.injected += 1;
                return Some(rule.fault);
            }
        }
        None
    }

    fn keep(&mut self, op: LegOp, until: Option<u64>, stage: Stage) {
        match stage {
            Stage::Before => self.kept.push((until, Kept::Operation(op))),
            Stage::After => {
                self.late.insert(op.id, Late::Keep { until });
                self.inner.submit(op);
            }
        }
    }

    fn let_go(&mut self, kept: Kept) {
        match kept {
            Kept::Operation(op) => self.inner.submit(op),
            Kept::Completion(completion) => self.ready.push(completion),
        }
    }

    /// Let go what is due.
    fn let_go_due(&mut self) {
        let mut i = 0;
        while i < self.kept.len() {
            if self.kept[i].0.is_some_and(|until| until <= self.submitted) {
                let (_, kept) = self.kept.remove(i);
                self.let_go(kept);
            } else {
                i += 1;
            }
        }
    }

    /// Let go what is due first; whether there was anything but what hangs.
    fn let_go_first(&mut self) -> bool {
        let delayed = self.kept.iter().enumerate();
        let first = delayed
            .filter_map(|(i, (until, _))| until.map(|until| (until, i)))
            .min();
        if let Some((_, i)) = first {
            let (_, kept) = self.kept.remove(i);
            self.let_go(kept);
        }
        first.is_some()
    }

    fn take_arrived(&mut self) {
        for (id, result) in std::mem::take(&mut self.arrived) {
            match self.late.remove(&id) {
                None => self.ready.push((id, result)),
                Some(Late::Fail(error)) => self.ready.push((id, Err(error))),
                Some(Late::Keep { until }) => self.kept.push((until, Kept::Completion((id, result)))),
            }
        }
    }
}

impl<E: Engine> Engine for FaultyEngine<E> {
    fn submit(&mut self, op: LegOp) {
        self.submitted += 1;
        match self.fault_for(&op) {
            None => self.inner.submit(op),
            Some(Fault::Error(error)) => self.ready.push((op.id, Err(error))),
            Some(Fault::ErrorAfter(error)) => {
                self.late.insert(op.id, Late::Fail(error));
                self.inner.submit(op);
            }
            Some(Fault::Torn(error)) => {
                let blocks = op.range.len.div_ceil(u64::from(self.block));
                let landing = if blocks == 0 { 0 } else { self.chance.below(blocks) };
                if landing == 0 {
                    self.ready.push((op.id, Err(error)));
                } else {
                    self.late.insert(op.id, Late::Fail(error));
                    self.inner.submit(LegOp {
                        range: Range::new(op.range.start, landing * u64::from(self.block)),
                        ..op
                    });
                }
            }
            Some(Fault::Lost) => self.ready.push((op.id, Ok(()))),
            Some(Fault::Delay { operations, stage }) => self.keep(op, Some(self.submitted + operations), stage),
            Some(Fault::Hang(stage)) => self.keep(op, None, stage),
        }
        self.let_go_due();
    }

    /// As the trait says, but for what hangs: when nothing else is left, it returns with less.
    fn wait(&mut self, at_least: usize, out: &mut Vec<Completion>) -> io::Result<()> {
        let wanted = out.len() + at_least.min(self.in_flight());
        loop {
            self.inner.wait(0, &mut self.arrived)?;
            self.take_arrived();
            self.let_go_due();
            out.append(&mut self.ready);
            if out.len() >= wanted {
                return Ok(());
            }
            if self.inner.in_flight() > 0 {
                self.inner.wait(1, &mut self.arrived)?;
                self.take_arrived();
            } else if self.ready.is_empty() && !self.let_go_first() {
                return Ok(());
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.kept.len() + self.ready.len()
    }
}
