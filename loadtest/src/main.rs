//! `loadtest`: open-loop load against a live Jobseal system, and an audit of it from outside. It
//! speaks the public API and to the chain, and knows nothing that a tenant could not know.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::{EXIT_CODES, Exit};

mod audit;
mod chain;
mod client;
mod clock;
mod crowd;
mod demo;
mod exit;
mod faults;
mod issuer;
mod load;
mod log;
mod poll;
mod receiver;
mod refusals;
mod report;
mod request;
mod run;
mod scenario;
mod schedule;
mod session;
mod show;
mod stages;
mod watch;
mod work;

/// Open-loop load against a live Jobseal system, and an audit of it from outside.
#[derive(Parser)]
#[command(after_help = EXIT_CODES)]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Run(run::RunOptions),
    Demo(demo::DemoOptions),
    Audit(audit::AuditOptions),
    Issuer(issuer::IssuerOptions),
    Token(issuer::TokenOptions),
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Command::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        let exit = if error.use_stderr() {
            Exit::Usage
        } else {
            Exit::Clean
        };
        std::process::exit(exit as i32)
    });
    let provider = rustls::crypto::ring::default_provider();
    provider
        .install_default()
        .expect("nothing was installed before");
    let exit = tokio::select! {
        result = act(command.action) => result.unwrap_or_else(|error| {
            report::error(&error);
            Exit::of_error(&error)
        }),
        _ = tokio::signal::ctrl_c() => {
            report::error(&anyhow::anyhow!("stopped"));
            Exit::Interrupted
        }
    };
    exit.into()
}

async fn act(action: Action) -> anyhow::Result<Exit> {
    match action {
        Action::Run(options) => run::run(&options).await,
        Action::Demo(options) => demo::run(&options).await,
        Action::Audit(options) => audit::run(&options).await,
        Action::Issuer(options) => issuer::make(&options).map(|()| Exit::Clean),
        Action::Token(options) => issuer::print_token(&options).map(|()| Exit::Clean),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_audits_help_says_what_is_checked_what_is_billed_and_the_exit_codes() {
        let mut command = Command::command();
        command.clone().debug_assert();
        let audit = command.find_subcommand_mut("audit").expect("there is one");
        let help = audit.render_long_help().to_string();
        for told in ["compute_ms", "/v1/prices", "replay", "403", "Exit codes: 0"] {
            assert!(help.contains(told), "{told} is not in:\n{help}");
        }
    }
}
