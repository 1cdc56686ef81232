//! How the command ends: every exit code, and which errors lead to which.

use std::process::ExitCode;

use thiserror::Error;

/// What every `--help` says of them.
pub(crate) const EXIT_CODES: &str = "Exit codes: 0 clean; 1 unexpected error, or jobs stuck \
(named); 2 a stage missed the scenario's limit, or no job reached it; 3 the audit found something \
(named by id), or no proof was shown; 4 the generator was the bottleneck, so the run is invalid; \
5 jobs were refused, of unknown fate when patience ended, or never sent; 64 bad usage or scenario; \
69 gateway or chain unreachable; 130 stopped by Ctrl-C.";

/// What a run came to. The numbers are the exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything adds up.
    Clean = 0,
    /// Something unexpected went wrong.
    Error = 1,
    /// A stage was slower than the scenario allows.
    SloMissed = 2,
    /// The audit found something.
    Findings = 3,
    /// The generator itself was too slow, so the run says nothing about the target.
    GeneratorTooSlow = 4,
    /// Jobs were refused, of unknown fate when patience ended, or never sent.
    NotAccepted = 5,
    /// The command line or the scenario is wrong.
    Usage = 64,
    /// The gateway or the chain cannot be reached.
    Unreachable = 69,
    /// Stopped by Ctrl-C.
    Interrupted = 130,
}

/// The command line, a file it names, or the scenario is wrong.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct BadUsage(pub(crate) String);

/// The target cannot be reached at all.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Unreachable(pub(crate) String);

impl Exit {
    /// The exit code an error leads to.
    pub(crate) fn of_error(error: &anyhow::Error) -> Self {
        if error.downcast_ref::<BadUsage>().is_some() {
            Self::Usage
        } else if error.downcast_ref::<Unreachable>().is_some() {
            Self::Unreachable
        } else {
            Self::Error
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn context_does_not_hide_what_an_error_leads_to() {
        let usage = anyhow::Error::new(BadUsage("no".into())).context("reading the scenario");
        assert_eq!(Exit::of_error(&usage), Exit::Usage);
        let unreachable: anyhow::Result<()> =
            Err(Unreachable("refused".into())).context("registering the endpoint");
        assert_eq!(Exit::of_error(&unreachable.unwrap_err()), Exit::Unreachable);
        assert_eq!(Exit::of_error(&anyhow::anyhow!("else")), Exit::Error);
    }
}
