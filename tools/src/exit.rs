//! What the tool's exit code says.

use std::process::ExitCode;
use twinblk::control::ErrorKind;

/// How the tool ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1 to 6: not done, see [`ErrorKind`].
    Error(ErrorKind),
    /// 7: `verify` has found differences.
    Differences,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Error(kind) => kind.exit_code(),
            Exit::Differences => 7,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_end_has_a_code_of_its_own() {
        let mut codes = vec![Exit::Done.code(), Exit::Differences.code()];
        codes.extend(ErrorKind::ALL.map(|kind| Exit::Error(kind).code()));
        codes.sort_unstable();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
