//! The command line; one file per subcommand.

mod access;
mod bare;
mod calibrate;
mod chips;
mod confirm;
mod demo;
mod destination;
mod digest;
mod embed;
mod enroll;
mod ensemble;
mod eval;
mod filter;
mod forward;
mod gallery;
mod gallery_list;
mod jobs;
mod json;
mod key;
mod known;
mod labels;
mod live;
mod load;
mod loader;
mod manual;
mod migrate;
mod model;
mod model_file;
mod number;
mod output;
mod quantize;
mod ranked;
mod report;
mod serve;
mod signals;
mod step;
mod synth;
mod train;
mod train_job;
mod train_ranks;
mod train_remotely;
mod training_bar;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use shipreid::client::ClientError;
use shipreid::config::{Config, Sources};
use shipreid::model::{prepare_process, prepare_training};
use shipreid::processor;
use tokio::runtime::Runtime;

use access::ServerFlag;

/// The name of the executable.
const NAME: &str = "shipreid";

/// The default address of a server.
const ENDPOINT: &str = "http://127.0.0.1:50051";

/// Exit code of a command that failed.
const FAILED: u8 = 1;

/// Exit code for an unusable configuration or model, and for a command that was refused before it began.
const UNUSABLE: u8 = 2;

/// Ship re-identification in optical and SAR satellite images.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves a model over gRPC.
    Serve(serve::Serve),
    /// Embeds image files through a running server.
    Embed(embed::Embed),
    /// Creates, fills, changes, copies and deletes galleries of a running server.
    #[command(subcommand)]
    Gallery(gallery::Gallery),
    /// Ranks the ships of a gallery by their similarity to image files, on a running server.
    Match(ranked::Match),
    /// Imports, inspects and quantizes models; lists, exports, activates and deletes those of a running server.
    #[command(subcommand)]
    Model(model::Model),
    /// Creates API keys.
    #[command(subcommand)]
    Key(key::Key),
    /// Benchmarks a running server, the model without a server, or training.
    #[command(subcommand)]
    Bench(Bench),
    /// Trains a model on this machine, or on a running server.
    Train(train::Train),
    /// Lists, watches, stops, resumes and describes training jobs of a running server.
    #[command(subcommand)]
    Jobs(jobs::Jobs),
    /// Evaluates how well a model ranks a HOSS test set.
    Eval(eval::Eval),
    /// Fits a calibrator on a HOSS test set, so that responses carry probabilities.
    Calibrate(calibrate::Calibrate),
    /// Draws data sets of synthetic ships.
    Synth(synth::Synth),
    /// Draws ships, trains on them through a server, activates the model, enrols, matches: the whole mission.
    Demo(demo::Demo),
    /// Prints a completion script for a shell.
    Completions(manual::Completions),
    /// Writes a manual page for every command.
    Man(manual::Man),
}

#[derive(Subcommand)]
enum Bench {
    /// Keeps a fixed number of calls in flight; the next starts when one ends.
    Closed(load::Closed),
    /// Calls at random times (Poisson), whether or not earlier ones have ended, as real callers do.
    Open(load::Open),
    /// Decodes and embeds in a loop in this process: what the service is measured against.
    Bare(bare::Bare),
    /// Embeds decoded chips on demand, without the service.
    Forward(forward::Forward),
    /// Loads training batches from files without training on them.
    Loader(loader::Loader),
    /// Takes training steps on demand.
    Step(step::Step),
}

/// Where a server's configuration comes from.
#[derive(Args, Clone)]
pub struct ConfigFlags {
    /// TOML file; default: built-in defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One key, as section.key=value; overrides file and environment. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

impl ConfigFlags {
    fn is_given(&self) -> bool {
        self.config.is_some() || !self.settings.is_empty()
    }

    fn load(self) -> Result<Config, Failure> {
        let environment = std::env::vars().collect();
        let sources = Sources { file: self.config, environment, flags: self.settings };
        Config::load(&sources).map_err(|cause| Failure::Unusable(cause.into()))
    }
}

/// Why a command failed.
enum Failure {
    /// Configuration or model: nothing was started.
    Unusable(anyhow::Error),
    /// Everything else.
    Failed(anyhow::Error),
    /// The error was printed already; this is the exit code.
    Told(u8),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(cause: E) -> Self {
        let cause = cause.into();
        if is_refusal(&cause) { Self::Unusable(cause) } else { Self::Failed(cause) }
    }
}

/// A command was refused before it did anything: one line that names the argument and a remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// Whether a command did nothing because its arguments cannot be valid on any server.
fn is_refusal(cause: &anyhow::Error) -> bool {
    let of_client = cause.downcast_ref::<ClientError>().is_some_and(|cause| match cause {
        ClientError::Endpoint { .. } | ClientError::NotEncrypted { .. } | ClientError::KeyMalformed => true,
        ClientError::Unencrypted { .. }
        | ClientError::Unreachable { .. }
        | ClientError::Refused(_)
        | ClientError::File { .. }
        | ClientError::EventsLost { .. }
        | ClientError::StreamEnded => false,
    });
    of_client || cause.is::<Refusal>()
}

/// Preparation for every command that runs a model or a search in this process.
fn prepare(threads_per_worker: usize) -> Result<(), Failure> {
    processor::check().map_err(|cause| Failure::Unusable(cause.into()))?;
    prepare_process(threads_per_worker);
    Ok(())
}

/// The same for a command that trains in this process, one of several on this machine.
fn prepare_to_train(threads: usize, processes: usize) -> Result<(), Failure> {
    processor::check().map_err(|cause| Failure::Unusable(cause.into()))?;
    prepare_training(threads, processes);
    Ok(())
}

/// Every command with its flags.
fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the command of this process.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(told) => return explain(&told),
    };
    let done = match arguments.command {
        Command::Serve(serve) => serve.run(),
        Command::Embed(embed) => block_on(embed.run()),
        Command::Gallery(gallery) => block_on(gallery.run()),
        Command::Match(matching) => block_on(matching.run()),
        Command::Model(model) => model.run(),
        Command::Key(key) => key.run().map_err(Failure::from),
        Command::Bench(Bench::Closed(bench)) => block_on(bench.run()),
        Command::Bench(Bench::Open(bench)) => block_on(bench.run()),
        Command::Bench(Bench::Bare(bench)) => bench.run(),
        Command::Bench(Bench::Forward(bench)) => bench.run(),
        Command::Bench(Bench::Loader(bench)) => bench.run(),
        Command::Bench(Bench::Step(bench)) => bench.run(),
        Command::Train(train) => train.run(),
        Command::Jobs(jobs) => {
            Runtime::new().map_err(Failure::from).and_then(|runtime| runtime.block_on(jobs.run()))
        }
        Command::Eval(eval) => eval.run(),
        Command::Calibrate(calibrate) => calibrate.run(),
        Command::Synth(synth) => synth.run(),
        Command::Demo(demo) => demo.run(),
        Command::Completions(completions) => {
            completions.run();
            Ok(())
        }
        Command::Man(man) => man.run().map_err(Failure::from),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Unusable(cause)) => {
            output::remark(format_args!("shipreid: {cause:#}"));
            ExitCode::from(UNUSABLE)
        }
        Err(Failure::Failed(cause)) => {
            output::remark(format_args!("shipreid: {cause:#}"));
            ExitCode::from(FAILED)
        }
        Err(Failure::Told(code)) => ExitCode::from(code),
    }
}

/// Prints help, the version, or what is wrong with the arguments.
fn explain(told: &clap::Error) -> ExitCode {
    let is_help = matches!(
        told.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if !is_help {
        output::remark(format_args!("{NAME}: {}", usage::line(told)));
        return ExitCode::from(UNUSABLE);
    }
    match told.print() {
        Err(cause) if !told.use_stderr() => output::end(&cause),
        // The message cannot be printed; the exit code still reports the error.
        _ => ExitCode::from(if told.use_stderr() { UNUSABLE } else { 0 }),
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> Result<(), Failure> {
    Ok(Runtime::new()?.block_on(work)?)
}
