//! The commands: each file has those that belong together.

mod attach;
mod create;
mod digest;
mod doctor;
mod leg_at;
mod list;
mod restart;
mod retire;
mod start;
mod status;
mod stay;
mod steer;
mod stop;
mod switch;
mod verify;
mod wait;

use crate::args::Command;
use crate::context::Context;
use crate::exit::Exit;
use twinblk::control::Error;

/// Carry out a command.
///
/// # Errors
/// What failed, why, what to do next.
pub fn run(context: &Context, command: &Command) -> Result<Exit, Error> {
    match command {
        Command::Create(args) => create::run(context, args),
        Command::Attach(args) => attach::run(context, args),
        Command::Wait(args) => wait::run(context, args),
        Command::Status(args) => status::run(context, args),
        Command::List => list::run(context),
        Command::Switch(args) => switch::run(context, args),
        Command::Detach(args) => steer::detach(context, args),
        Command::Unretire(args) => retire::unretire(context, args),
        Command::Verify(args) => verify::run(context, args),
        Command::Digest(args) => digest::run(context, args),
        Command::Resync(args) => steer::resync(context, args),
        Command::Set(args) => steer::set(context, args),
        Command::Stop(args) => stop::run(context, args),
        Command::Start(args) => start::run(context, args),
        Command::Restart(args) => restart::run(context, args),
        Command::Remove(args) => stop::remove(context, args),
        Command::LegAt(args) => leg_at::run(context, args),
        Command::Doctor => doctor::run(context),
    }
}
