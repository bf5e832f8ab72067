//! The admin socket: the daemon's server and the tool's client of [`crate::control`].
//!
//! The server has one thread per connection and at most [`server::MAX_CONNECTIONS`] of them. It holds one line and one
//! descriptor per connection and queues nothing: an answer is written before the next request is read, and a client
//! that does not take it in time is dropped. So whatever a client sends or does not read, memory is bounded and the
//! threads that serve the device do not notice.
//!
//! It does not decide who may connect: the socket's directory has mode 0700 and the socket 0600.

pub mod client;
pub mod handler;
pub mod launch;
pub mod server;
pub mod wire;

pub use client::Client;
pub use handler::Handler;
pub use launch::{Launchee, Launcher};
pub use server::{Server, Socket};

#[cfg(test)]
mod tests;
