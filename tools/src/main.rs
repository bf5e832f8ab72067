//! The admin tool.

mod args;
mod commands;
mod context;
mod daemon;
mod disks;
mod driver;
mod exit;
mod output;
mod progress;
mod size;
mod udev;

use clap::Parser;
use context::Context;
use exit::Exit;
use std::process::ExitCode;
use twinblk::control::{Error, ErrorKind};

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error).into(),
    };
    let json = cli.common.json;
    run(cli)
        .unwrap_or_else(|error| {
            output::error(&error, json);
            Exit::Error(error.kind)
        })
        .into()
}

fn run(cli: args::Cli) -> Result<Exit, Error> {
    let context = Context::new(&cli.common)?;
    commands::run(&context, &cli.command)
}

/// Say what is wrong with the command line; or its help, which is no error.
fn usage(error: &clap::Error) -> Exit {
    // Nothing can be said to somebody who does not listen.
    let _ = error.print();
    if !error.use_stderr() {
        return Exit::Done;
    }
    if std::env::args_os().any(|arg| arg == "--json") {
        output::json_error(&Error::usage(error.kind().to_string()));
    }
    Exit::Error(ErrorKind::Usage)
}
