//! `shipreid serve`: until a signal ends it.

use clap::Args;
use shipreid::app::{self, Drained};
use shipreid::arithmetic::Timing;
use shipreid::config::Config;
use shipreid::model::Chosen;
use shipreid::processor::Processor;
use shipreid::telemetry::Traces;
use shipreid::{metrics, telemetry};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{ConfigFlags, Failure, prepare};

/// Exit code of a server that a second signal has ended.
const INTERRUPTED: libc::c_int = 3;

/// Examples:
///   shipreid serve --set model.preset=small
///   shipreid serve --config configs/server.toml --set model.path=model.pth --set encoder.precision=bf16
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Serve {
    #[command(flatten)]
    config: ConfigFlags,
    /// Says whether the configuration is valid and what computes the model here, and starts nothing.
    #[arg(long)]
    check_config: bool,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.config.load()?;
        prepare(app::threads_per_worker(&config))?;
        if self.check_config {
            let report = kernels(&config).map_err(Failure::Unusable)?;
            println!("the configuration is valid\n{report}");
            return Ok(());
        }
        let runtime = Runtime::new()?;
        let traces = {
            let _runtime = runtime.enter();
            telemetry::install(&config.telemetry)?
        };
        match runtime.block_on(serve(&config, traces))? {
            Drained::InOrder => Ok(()),
            // What did not end in time would also keep this process.
            Drained::CutShort => exit_at_once(0),
        }
    }
}

/// The processor, what computes linear layers on it, and by which timings that was chosen.
fn kernels(config: &Config) -> anyhow::Result<String> {
    let processor = Processor::here();
    let mut lines = vec![
        format!("processor: {processor}"),
        format!("instruction sets: {}", processor.sets().collect::<Vec<_>>().join(" ")),
    ];
    if config.encoder.device == "cpu" {
        let architecture = app::likely_architecture(config);
        let Chosen { choice, pace } = app::choose_kernels(config, &architecture)?;
        let (precision, width) = (config.encoder.precision.name(), architecture.embed_dim);
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

async fn serve(config: &Config, traces: Traces) -> Result<Drained, Failure> {
    let metrics = metrics::install()?;
    let models = app::open_models(config).map_err(Failure::Unusable)?;
    let running = app::start(config, models, metrics).await.map_err(Failure::Unusable)?;
    let mut signals = Signals::new()?;
    println!("gRPC on {}", running.address);
    println!("metrics on http://{}/metrics", running.metrics_address);
    signals.next().await;
    tracing::info!("draining; a second signal ends the process at once");
    tokio::select! {
        drained = running.drain() => {
            // It blocks.
            let _ = tokio::task::spawn_blocking(|| traces.flush()).await;
            Ok(drained)
        }
        () = signals.next() => {
            eprintln!("shipreid: ended by a second signal, with calls in flight");
            exit_at_once(INTERRUPTED)
        }
    }
}

/// SIGTERM and SIGINT. They are caught from here on, so that none is lost between two.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Ends the process without waiting for a thread: neither for one that hangs, nor for what libraries would tidy up
/// beneath those that still run.
fn exit_at_once(code: libc::c_int) -> ! {
    // SAFETY: it does not return, and nothing is left to be done in this process.
    unsafe { libc::_exit(code) }
}
