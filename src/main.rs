//! The command line: for now, the check of a configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use shipreid::config::{Config, Sources};

/// Ship re-identification in optical and SAR satellite images.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reads a configuration as a server would and says what is wrong with it.
    CheckConfig {
        /// TOML file; the defaults without it.
        #[arg(long)]
        config: Option<PathBuf>,
        /// One key, as section.key=value; wins over file and environment.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
}

/// Exit code of a configuration that cannot be used.
const UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    let Command::CheckConfig { config, settings } = Arguments::parse().command;
    let sources = Sources { file: config, environment: std::env::vars().collect(), flags: settings };
    match Config::load(&sources) {
        Ok(_) => {
            println!("the configuration is valid");
            ExitCode::SUCCESS
        }
        Err(cause) => {
            eprintln!("shipreid: {cause}");
            ExitCode::from(UNUSABLE)
        }
    }
}
