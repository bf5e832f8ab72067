//! What a daemon does with requests.

use crate::control::{Error, Progress, Reply, Request};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

/// Carries requests out. Called on the connection's thread, by several threads at once.
pub trait Handler: Send + Sync + 'static {
    /// Carry out `request`; `descriptor` is the disk of an `attach`, and is closed when it is not kept.
    ///
    /// A request that takes long calls `progress` at least once a second. [`ControlFlow::Break`] says that the client
    /// is gone: break off what has no use without it (`wait`, `verify`, `digest`) and return; the answer goes nowhere.
    ///
    /// # Errors
    /// What failed, why, and what to do next; goes to the client.
    fn handle(
        &self,
        request: Request,
        descriptor: Option<OwnedFd>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Reply, Error>;
}
