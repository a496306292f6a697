//! `shipreid serve`: until a signal ends it.

use clap::Args;
use shipreid::app;
use shipreid::{metrics, model, telemetry};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigFlags, Failure};

/// Examples:
///   shipreid serve --set model.preset=small
///   shipreid serve --config configs/server.toml --set model.path=model.pth --set encoder.precision=bf16
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Serve {
    #[command(flatten)]
    config: ConfigFlags,
    /// Says whether the configuration is valid, and starts nothing.
    #[arg(long)]
    check_config: bool,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.config.load()?;
        if self.check_config {
            println!("the configuration is valid");
            return Ok(());
        }
        model::wait_passively(app::threads_per_worker(&config));
        telemetry::install(&config.telemetry)?;
        let metrics = metrics::install()?;
        let models = app::open_models(&config).map_err(Failure::Unusable)?;
        Runtime::new()?.block_on(async {
            let running = app::start(&config, models, metrics).await.map_err(Failure::Unusable)?;
            println!("gRPC on {}", running.address);
            println!("metrics on http://{}/metrics", running.metrics_address);
            signalled().await?;
            tracing::info!("draining; a second signal ends the process at once");
            tokio::select! {
                () = running.stop() => Ok(()),
                second = signalled() => {
                    second?;
                    Err(anyhow::anyhow!("ended by a second signal, with calls in flight").into())
                }
            }
        })
    }
}

/// SIGTERM or SIGINT.
async fn signalled() -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
