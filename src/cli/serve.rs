//! `shipreid serve`: serves until a signal ends it.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use metrics_exporter_prometheus::PrometheusHandle;
use shipreid::app::{self, Drained, Running};
use shipreid::arithmetic::Timing;
use shipreid::config::Config;
use shipreid::model::Chosen;
use shipreid::processor::Processor;
use shipreid::telemetry::Traces;
use shipreid::{memory, metrics, telemetry};
use tokio::runtime::Runtime;

use super::signals::Signals;
use super::{ConfigFlags, Failure, output, prepare};

/// Extra time for shutdown beyond its bound, so that an overrun is reported first.
const MARGIN: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid serve --set model.preset=small
  shipreid serve --config configs/server.toml --set model.path=model.pth --set encoder.precision=bf16")]
pub struct Serve {
    #[command(flatten)]
    config: ConfigFlags,
    /// Checks the configuration, shows which kernels would run the model here, and starts nothing.
    #[arg(long)]
    check_config: bool,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.check_config {
            return self.check();
        }
        // Before all else: everything slow from here on can be interrupted.
        let signals = Signals::install().context("the signals that end a server cannot be caught")?;
        let config = self.config.load()?;
        signals.held_back(|| prepare(app::threads_per_worker(&config)))?;
        memory::share_arenas(app::cores());
        let runtime = Runtime::new()?;
        let traces = {
            let _runtime = runtime.enter();
            telemetry::install_lossy(&config.telemetry)?
        };
        match runtime.block_on(serve(&config, traces, &signals))? {
            // Loading has changed nothing so far; a thread that still reads is not waited for.
            Ended::BeforeItServed => exit_at_once(0),
            Ended::Drained(Drained::InOrder, until) => end(runtime, until),
            // What did not end in time would also block this process.
            Ended::Drained(Drained::CutShort, _) => exit_at_once(0),
        }
    }

    fn check(self) -> Result<(), Failure> {
        let config = self.config.load()?;
        prepare(app::threads_per_worker(&config))?;
        let report = kernels(&config).map_err(Failure::Unusable)?;
        output::say(format_args!("the configuration is valid\n{report}"));
        Ok(())
    }
}

/// How a server ended.
enum Ended {
    /// It was asked to end during startup.
    BeforeItServed,
    /// The process must have exited by this time.
    Drained(Drained, Instant),
}

/// The processor, the kernel for linear layers, and the timings that decided the choice.
fn kernels(config: &Config) -> anyhow::Result<String> {
    let processor = Processor::here();
    let mut lines = vec![
        format!("processor: {processor}"),
        format!("instruction sets: {}", processor.sets().collect::<Vec<_>>().join(" ")),
    ];
    if config.encoder.device == "cpu" {
        let (architecture, precision) = app::likely_network(config);
        let Chosen { choice, pace } = app::choose_kernels(config, precision, &architecture)?;
        let (precision, width) = (precision.name(), architecture.embed_dim());
        lines.push(format!("linear layers of width {width} in {precision}, by chips in a batch: {choice}"));
        for batch in choice.timings.chunk_by(|a, b| a.chips == b.chips) {
            let of_kernel = |timing: &Timing| format!("{} {:.2?}", timing.kernel.name(), timing.took);
            let timings = batch.iter().map(of_kernel).collect::<Vec<_>>().join(", ");
            lines.push(format!("  a batch of {}: {timings}", batch[0].chips));
        }
        lines.extend(pace.map(|pace| pace.to_string()));
    }
    Ok(lines.join("\n"))
}

async fn serve(config: &Config, traces: Traces, signals: &Signals) -> Result<Ended, Failure> {
    let Some(running) = start(config, signals).await? else { return Ok(Ended::BeforeItServed) };
    output::say_if_read(format_args!("gRPC on {}", running.address));
    output::say_if_read(format_args!("metrics on http://{}/metrics", running.metrics_address));
    signals.heard().await?;
    drain(running, config, traces).await
}

/// Starts the server, unless it is asked to end in the meantime.
async fn start(config: &Config, signals: &Signals) -> Result<Option<Running>, Failure> {
    let metrics = metrics::install()?;
    tokio::select! {
        biased;
        started = load_and_start(config, metrics) => Ok(Some(started.map_err(Failure::Unusable)?)),
        heard = signals.heard() => {
            heard?;
            tracing::info!("asked to end while it was starting");
            Ok(None)
        }
    }
}

/// Reads the models on a blocking thread, then starts the server.
async fn load_and_start(config: &Config, metrics: PrometheusHandle) -> anyhow::Result<Running> {
    let settings = config.clone();
    let cluster = app::open_cluster(config).await?;
    let models = tokio::task::spawn_blocking(move || app::open_models(&settings, cluster)).await??;
    app::start(config, models, metrics).await
}

async fn drain(running: Running, config: &Config, traces: Traces) -> Result<Ended, Failure> {
    let bound = Duration::from_secs_f64(config.server.drain_notice_seconds + config.server.drain_seconds_max);
    let until = Instant::now() + bound;
    end_after(bound + MARGIN)?;
    tracing::info!("draining; a second signal ends the process at once");
    let drained = running.drain().await;
    // Flushing blocks.
    let _ = tokio::task::spawn_blocking(|| traces.flush()).await;
    Ok(Ended::Drained(drained, until))
}

/// Waits for the runtime's threads while there is time. A thread that hangs, as on an unreachable network disk, would
/// otherwise keep the process alive forever.
fn end(runtime: Runtime, until: Instant) -> Result<(), Failure> {
    let left = until.saturating_duration_since(Instant::now());
    let began = Instant::now();
    runtime.shutdown_timeout(left);
    if began.elapsed() < left {
        return Ok(());
    }
    tracing::error!("a thread hangs; the process ends without it");
    exit_at_once(0)
}

/// Ends the process after this time, even if something hangs: it needs neither the runtime nor a reader of the log.
fn end_after(bound: Duration) -> io::Result<()> {
    let ending = move || {
        thread::sleep(bound);
        exit_at_once(0)
    };
    thread::Builder::new().name("drain bound".into()).spawn(ending).map(drop)
}

/// Ends the process without waiting for threads, and without exit handlers of libraries, which could interfere with
/// threads that still run.
fn exit_at_once(code: libc::c_int) -> ! {
    // SAFETY: it does not return, and nothing is left to be done in this process.
    unsafe { libc::_exit(code) }
}
