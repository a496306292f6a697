//! `shipreid bench step`: training steps on demand, for timing next to those of another program.

use std::fs;
use std::io::{self, BufRead as _};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, anyhow};
use clap::Args;
use rand::RngExt;
use serde_json::json;
use shipreid::app;
use shipreid::chip::{ChipSize, Modality};
use shipreid::model::Device;
use shipreid::train::{Learner as _, Purpose, Samples, Teaching, TorchLearner, TrainConfig, stream};
use shipreid::weights::seed::seeded;

use super::bare::process_cpu;
use super::train::device;
use super::{Failure, output, prepare_to_train};

/// Identities of the synthetic data set; HOSS has about as many.
const CLASSES: usize = 360;

#[derive(Args)]
#[command(after_help = "\
Takes a step for each line on standard input and answers with its seconds, on seeded weights and noise.

Example: yes | head -5 | shipreid bench step configs/train/hoss_transoss.toml --set batch.images=8")]
pub struct Step {
    /// Training configuration with network, batch, optimizer and loss; its data and starting point are not read.
    #[arg(value_name = "FILE")]
    config: PathBuf,
    /// Overrides one key of it, as section.key=value. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// "cpu" or "cuda:N".
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: String,
}

impl Step {
    pub(super) fn run(self) -> Result<(), Failure> {
        prepare_to_train(app::cores(), 1)?;
        let (config, mut learner) = self.learner().map_err(Failure::Unusable)?;
        let batch = noise(&config, config.model.architecture().preprocessing().size);
        let rates = config.schedule.schedule().rates(config.schedule.epochs / 2);
        let mut step = |number: u64| {
            let mut random = stream(config.seed, 1, number, Purpose::StochasticDepth);
            learner.step(&batch, rates, &mut random)
        };
        // The first step also creates the optimizer's state.
        step(0)?;
        output::say("ready");
        for (number, line) in (1..).zip(io::stdin().lock().lines()) {
            line?;
            let (started, cpu) = (Instant::now(), process_cpu());
            let terms = step(number)?;
            let (seconds, cpu) = (started.elapsed().as_secs_f64(), (process_cpu() - cpu).as_secs_f64());
            output::say(json!({ "seconds": seconds, "cpu_seconds": cpu, "loss": terms.total }));
        }
        Ok(())
    }

    fn learner(&self) -> anyhow::Result<(TrainConfig, TorchLearner)> {
        let name = || self.config.display().to_string();
        let text = fs::read_to_string(&self.config).with_context(name)?;
        let config = TrainConfig::read(&text, &self.settings).with_context(name)?;
        if let Some(violation) = config.violations().first() {
            return Err(anyhow!("{violation}")).with_context(name);
        }
        let architecture = config.model.architecture().with_classes(CLASSES);
        let tensors = seeded(&architecture, config.seed);
        let learner =
            TorchLearner::new(&architecture, &tensors, Device::open(&self.device)?, Teaching::from(&config));
        Ok((config, learner))
    }
}

/// A batch with the shape of a real one: the first half optical, K images of each identity.
fn noise(config: &TrainConfig, size: ChipSize) -> Samples {
    let random = &mut stream(config.seed, 1, 0, Purpose::Augmentation);
    let images = config.batch.images;
    let modality = |image| if image < images / 2 { Modality::Optical } else { Modality::Sar };
    Samples {
        size,
        pixels: (0..images * 3 * size.height * size.width).map(|_| random.random_range(-2.0..2.0)).collect(),
        modalities: (0..images).map(modality).collect(),
        size_tokens: (0..images).map(|_| [0; 3].map(|_| random.random_range(-2.0..2.0))).collect(),
        labels: (0..images).map(|image| (image / config.batch.images_per_identity.max(1)) as i64).collect(),
    }
}
