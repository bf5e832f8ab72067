//! `twinblk-load`: a load generator with an oracle, for power cuts, crashes and switches.
//!
//! `write` puts self-describing blocks on a disk from several writers and says on standard output what was acknowledged.
//! `check` takes that output and a disk (or an image of what a power cut left) and says whether the disk may look so. What
//! a writer does is a function of the parameters, so the output needs to hold little more than the acknowledged barriers.
//!
//! What `check` proves of a disk:
//! - every block is untouched, or exactly what a writer put at that place: not torn, not misplaced, not made up;
//! - everything that was acknowledged as durable is there, or something that the same writer put there later (not with
//!   `--order-only`, which is for a disk that may be older);
//! - if a write can be seen that was submitted after a barrier had completed, all that the barrier covered is there.
//!
//! What it does not prove: the order of different writers in the range they share (any of their writes from the last
//! durable one on may be there), and that nothing newer was lost that was never acknowledged as durable.

mod aligned;
mod block;
mod check;
mod journal;
mod plan;
mod write;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Load with an oracle: say what must have survived, and check that it has.
#[derive(Debug, Parser)]
#[command(name = "twinblk-load", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write until killed, or until told to end; print what is acknowledged
    Write(Write),
    /// Whether DISK may look as it does after what the journal says
    Check(Check),
}

#[derive(Args, Debug)]
struct Write {
    /// A block device or a file; what it holds is overwritten
    disk: PathBuf,
    /// Decides all that is written
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads that write, each one write at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=block::MAX_WRITERS as i64))]
    writers: u16,
    /// Bytes of the unit that is never torn: the disk's logical block size
    #[arg(long, default_value_t = 512, value_parser = parse_block)]
    block: u32,
    /// Use so many bytes of the disk; all unless given
    #[arg(long, value_name = "BYTES")]
    size: Option<u64>,
    /// Writes between two fsyncs of a writer, on average
    #[arg(long, value_name = "N", default_value_t = 12)]
    sync_every: u32,
    /// Of a hundred writes, how many are forced (O_DSYNC, which a block device takes as FUA)
    #[arg(long, value_name = "PERCENT", default_value_t = 5)]
    forced: u32,
    /// Of a hundred operations, how many read back what the writer wrote before, and compare it
    #[arg(long, value_name = "PERCENT", default_value_t = 10)]
    reads: u32,
    /// End after so many writes of each writer
    #[arg(long, value_name = "N")]
    writes: Option<u32>,
    /// End after so many seconds
    #[arg(long, value_name = "SECS")]
    seconds: Option<u64>,
    /// End when a line comes on standard input, or its end
    #[arg(long)]
    until_line: bool,
}

#[derive(Args, Debug)]
struct Check {
    /// What `write` printed; lines that are not its own are skipped
    #[arg(long, value_name = "FILE")]
    journal: PathBuf,
    /// The disk may be older than what was acknowledged, but it must be in order
    #[arg(long)]
    order_only: bool,
    /// A block device or a file
    disk: PathBuf,
}

fn parse_block(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("a logical block has 512 or 4096 bytes".into()),
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Write(args) => write::run(&args),
        Command::Check(args) => check::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("twinblk-load: {message}");
            ExitCode::FAILURE
        }
    }
}
