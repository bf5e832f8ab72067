//! What `write` says on standard output. Lines:
//! - `load {…}`: the parameters, once, first;
//! - `synced WRITER NUMBER N0 N1 …`: an fsync of WRITER after its write NUMBER has completed; when it was issued, writer 0
//!   had completed all its writes up to N0, and so on;
//! - `forced WRITER NUMBER`: a forced write has completed;
//! - `done`: the load has ended by itself.

use crate::block::{Known, MAX_WRITERS, PerWriter};
use crate::plan::Params;
use std::fmt::Write;

const LOAD: &str = "load ";
const SYNCED: &str = "synced ";
const FORCED: &str = "forced ";

/// The line of the parameters.
pub fn load(params: &Params) -> String {
    let json = serde_json::to_string(params).expect("numbers can be written as JSON");
    format!("{LOAD}{json}\n")
}

/// The line of a barrier.
pub fn synced(writer: u16, completed: &[u32]) -> String {
    let mut line = format!("{SYNCED}{writer} {}", completed[usize::from(writer)]);
    for number in completed {
        write!(line, " {number}").expect("a string takes everything");
    }
    line.push('\n');
    line
}

/// The line of a forced write.
pub fn forced(writer: u16, number: u32) -> String {
    format!("{FORCED}{writer} {number}\n")
}

/// What a journal says.
#[derive(Debug)]
pub struct Journal {
    /// What was to be written.
    pub params: Params,
    /// What was acknowledged as durable.
    pub known: Known,
    /// How many barriers were acknowledged.
    pub barriers: u64,
}

impl Journal {
    /// Read it. A power cut may end the text in the middle of a line; that line counts for nothing.
    ///
    /// # Errors
    /// No load or more than one, or a line that cannot be read.
    pub fn parse(text: &str) -> Result<Journal, String> {
        let mut journal: Option<Journal> = None;
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let bad = || format!("the journal has a line that cannot be read: {line:?}");
            if let Some(json) = line.strip_prefix(LOAD) {
                let params: Params = serde_json::from_str(json).map_err(|error| format!("{}: {error}", bad()))?;
                params.validate()?;
                let begun = Journal {
                    params,
                    known: Known::default(),
                    barriers: 0,
                };
                if journal.replace(begun).is_some() {
                    return Err("the journal has more than one load".into());
                }
            } else if let Some(numbers) = line.strip_prefix(SYNCED) {
                let journal = journal.as_mut().ok_or_else(bad)?;
                let numbers = parse_numbers(numbers).ok_or_else(bad)?;
                if numbers.len() != 2 + usize::from(journal.params.writers) {
                    return Err(bad());
                }
                let mut all: PerWriter = [0; MAX_WRITERS];
                all[..numbers.len() - 2].copy_from_slice(&numbers[2..]);
                if all.get(numbers[0] as usize) != Some(&numbers[1]) {
                    return Err(bad());
                }
                journal.known.merge(&Known {
                    all,
                    forced: [0; MAX_WRITERS],
                });
                journal.barriers += 1;
            } else if let Some(numbers) = line.strip_prefix(FORCED) {
                let journal = journal.as_mut().ok_or_else(bad)?;
                match parse_numbers(numbers).as_deref() {
                    Some(&[writer, number]) if writer < u32::from(journal.params.writers) => {
                        let known = &mut journal.known.forced[writer as usize];
                        *known = number.max(*known);
                        journal.barriers += 1;
                    }
                    _ => return Err(bad()),
                }
            }
        }
        journal.ok_or_else(|| "the journal has no load".into())
    }
}

fn parse_numbers(text: &str) -> Option<Vec<u32>> {
    text.split(' ').map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> Params {
        Params {
            seed: 5,
            size: 64 << 20,
            block: 512,
            writers: 3,
            sync_every: 10,
            forced: 5,
            reads: 10,
        }
    }

    #[test]
    fn a_journal_says_what_was_written_into_it() {
        let text = format!(
            "noise\n{}{}{}{}other noise\nsynced 0 9 9 9 ",
            load(&params()),
            synced(1, &[4, 7, 2]),
            forced(2, 3),
            synced(0, &[3, 8, 1])
        );
        let journal = Journal::parse(&text).unwrap();
        assert_eq!(journal.params, params());
        assert_eq!(journal.known.all[..4], [4, 8, 2, 0]);
        assert_eq!(journal.known.forced[..4], [0, 0, 3, 0]);
        assert_eq!(journal.barriers, 3);
    }

    #[test]
    fn a_journal_that_makes_no_sense_is_refused() {
        for tail in [
            "synced 0 1 1 1\n",
            "synced 0 1 2 3 4\n",
            "synced x\n",
            "forced 3 1\n",
            "forced 1\n",
            "load {}\n",
        ] {
            let text = format!("{}{tail}", load(&params()));
            assert!(Journal::parse(&text).is_err(), "{tail}");
        }
        assert!(Journal::parse("").is_err());
        assert!(Journal::parse("synced 0 1 1 1 1\n").is_err());
    }
}
