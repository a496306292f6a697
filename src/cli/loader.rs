//! `shipreid bench loader`: how fast training batches are loaded from files, without training.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::{Value, json};
use shipreid::app;
use shipreid::train::{
    DataRoots, DataSet, Shard, Source, TrainConfig, TrainConfigError, TrainingInputs, in_order,
};

use super::bare::process_cpu;
use super::number::seconds;
use super::{Failure, output};

#[derive(Args)]
#[command(after_help = "\
Example: shipreid bench loader configs/train/demo.toml --set data.root=data/synthetic/synthetic_hoss")]
pub struct Loader {
    /// Training configuration with data set, batch and augmentation.
    #[arg(value_name = "FILE")]
    config: PathBuf,
    /// Overrides one key of it, as section.key=value. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Seconds to measure.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = seconds)]
    duration: f64,
}

impl Loader {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (config, inputs) = self.prepare().map_err(Failure::Unusable)?;
        let duration = Duration::from_secs_f64(self.duration);
        let measured = match &inputs.data {
            DataSet::Identities(source) => measure(&config, source, duration)?,
            DataSet::Pairs(source) => measure(&config, source, duration)?,
        };
        output::say(measured);
        Ok(())
    }

    fn prepare(&self) -> anyhow::Result<(TrainConfig, TrainingInputs)> {
        let name = || self.config.display().to_string();
        let text = fs::read_to_string(&self.config).with_context(name)?;
        let config = TrainConfig::read(&text, &self.settings).with_context(name)?;
        let inputs = TrainingInputs::gather(&config, &DataRoots::Anywhere, Shard::default());
        let inputs = inputs.map_err(TrainConfigError::Invalid).with_context(name)?;
        Ok((config, inputs))
    }
}

/// Loads epoch after epoch until the time is over.
fn measure<S: Source>(config: &TrainConfig, source: &S, duration: Duration) -> anyhow::Result<Value> {
    let threads = if config.data.loader_threads == 0 { app::cores() } else { config.data.loader_threads };
    let (started, cpu) = (Instant::now(), process_cpu());
    let mut images = 0;
    for epoch in 1.. {
        let items = source.epoch(config.seed, epoch);
        if items.is_empty() {
            return Err(anyhow!("the data set gives no batch"));
        }
        let make = |item: &S::Item| source.batch(item, config.seed, epoch);
        let flow = in_order(&items, threads, make, |batch| match batch {
            Err(cause) => ControlFlow::Break(Err(anyhow!(cause))),
            Ok(batch) => {
                images += batch.len();
                if started.elapsed() < duration {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(Ok(()))
                }
            }
        });
        if let ControlFlow::Break(ended) = flow {
            ended?;
            break;
        }
    }
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), (process_cpu() - cpu).as_secs_f64());
    Ok(json!({
        "threads": threads,
        "images": images,
        "images_per_second": images as f64 / seconds,
        "images_per_cpu_second": images as f64 / cpu,
    }))
}
