//! What carries operations out, for whoever has no ring of its own: tests, tools, and the suite that every engine
//! passes.

use crate::core::{Errno, LegOp, OpId};
use std::io;

/// How an operation ended.
pub type Completion = (OpId, Result<(), Errno>);

/// Carries operations on legs out.
///
/// Operations in flight at the same time are not ordered, overlapping or not; a flush covers the operations whose
/// completions were returned before it was submitted. Buffers lie in the engine's arena and belong to the operation
/// until its completion was returned. A completion without an error means the whole operation; one with an error says
/// nothing of what the range holds (or of what was read), and after a failed flush nothing of what it was to cover.
pub trait Engine {
    /// Begin an operation. It may be started only by the next [`wait`](Engine::wait).
    ///
    /// # Panics
    /// If the leg is not there, the buffer is not in the arena, or more operations are in flight than the engine was
    /// made for.
    fn submit(&mut self, op: LegOp);

    /// Start what was submitted, wait until at least `at_least` operations have ended, and append their completions in
    /// the order in which they ended. Fewer are waited for when fewer are in flight; with 0 it does not wait.
    ///
    /// # Errors
    /// Fails when the engine itself fails, which is no failure of an operation; it is of no use afterwards.
    fn wait(&mut self, at_least: usize, out: &mut Vec<Completion>) -> io::Result<()>;

    /// How many operations were submitted whose completions were not returned.
    fn in_flight(&self) -> usize;
}

impl<E: Engine + ?Sized> Engine for Box<E> {
    fn submit(&mut self, op: LegOp) {
        (**self).submit(op);
    }

    fn wait(&mut self, at_least: usize, out: &mut Vec<Completion>) -> io::Result<()> {
        (**self).wait(at_least, out)
    }

    fn in_flight(&self) -> usize {
        (**self).in_flight()
    }
}
