//! `shipreid train`: pretraining and fine-tuning in this process.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use shipreid::app;
use shipreid::config::{Config, Sources};
use shipreid::evaluate::{Protocol, Summary};
use shipreid::model::{self, Device};
use shipreid::telemetry;
use shipreid::train::{
    CheckpointChoice, Checkpoints, Course, Event, FitError, HossPart, IdentitySource, ObjectiveName,
    PairSource, Plan, PresetName, Reader, StartKind, Teaching, TorchLearner, TrainConfig, Validation, fit,
    hold_out, hoss, optisar_pairs,
};
use shipreid::weights::architecture::{Architecture, FeaturePoint};
use shipreid::weights::open::OpenModel;
use shipreid::weights::rules::{self, for_serving, start_from};
use shipreid::weights::seed::seeded;
use shipreid::weights::tensors::NamedTensors;
use shipreid::weights::{imagenet, native, pth};

use super::Failure;
use super::eval::{TestSet, table};

const CHECKPOINTS: &str = "checkpoints";
const MODEL: &str = "model";
const REPORT: &str = "report.json";

/// Examples:
///   shipreid train --local configs/train/hoss_transoss.toml --out runs/hoss
///
/// An interrupted run goes on from its newest checkpoint when the same command is given again.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Train {
    /// What to train, as TOML.
    #[arg(long, value_name = "FILE")]
    local: PathBuf,
    /// Folder for checkpoints, the trained model and its report.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// "cpu" or "cuda:N".
    #[arg(long, default_value = "cpu")]
    device: String,
}

impl Train {
    pub(super) fn run(self) -> Result<(), Failure> {
        let flags = vec![format!("encoder.device={}", self.device)];
        let server = Config::load(&Sources { flags, ..Sources::default() })
            .map_err(|cause| Failure::Unusable(cause.into()))?;
        model::wait_passively(app::cores());
        telemetry::install(&server.telemetry)?;
        let config = self.read_config().map_err(Failure::Unusable)?;
        let run = Run::prepare(&config, &self.out, &self.device).map_err(Failure::Unusable)?;
        let model = run.train()?;
        let place = self.out.join(MODEL);
        if place.exists() {
            // Of an earlier run in this folder; the checkpoints could give it again.
            fs::remove_dir_all(&place)?;
        }
        model.save(&place, &self.local.to_string_lossy())?;
        println!("model {} in {}", model.digest, place.display());
        self.evaluate(&config, &server, model)
    }

    fn read_config(&self) -> anyhow::Result<TrainConfig> {
        let name = || self.local.display().to_string();
        let text = fs::read_to_string(&self.local).with_context(name)?;
        TrainConfig::parse(&text).with_context(name)
    }

    /// Where the data set has a test set, what the model is worth on it.
    fn evaluate(&self, config: &TrainConfig, server: &Config, model: OpenModel) -> Result<(), Failure> {
        if config.objective == ObjectiveName::Contrastive {
            return Ok(());
        }
        let Ok(set) = TestSet::read(&config.data.root) else {
            println!("no test set in {}", config.data.root.display());
            return Ok(());
        };
        let report = set.embed_locally(&app::put_on_device(server, model)?)?.report(&Protocol::EVERY, false);
        fs::write(self.out.join(REPORT), format!("{report:#}\n"))?;
        println!("{}", table(&report));
        Ok(())
    }
}

/// Everything that was checked before the first step.
struct Run {
    architecture: Architecture,
    plan: Plan,
    data: DataSet,
    validation: Option<Validation>,
    learner: TorchLearner,
    checkpoints: Checkpoints,
}

enum DataSet {
    Identities(IdentitySource),
    Pairs(PairSource),
}

impl Run {
    fn prepare(config: &TrainConfig, out: &Path, device: &str) -> anyhow::Result<Self> {
        let mut architecture = Architecture {
            size_token: config.model.size_token,
            ..match config.model.preset {
                PresetName::Tiny => Architecture::tiny(),
                PresetName::Small => Architecture::small(),
                PresetName::VitBase => Architecture::vit_base(),
            }
        };
        let (data, validation) = open_data(config, &architecture)?;
        if let DataSet::Identities(source) = &data {
            architecture.classes = source.class_count();
        }
        let tensors = starting_tensors(config, &architecture)?;
        let learner =
            TorchLearner::new(&architecture, &tensors, Device::open(device)?, Teaching::from(config));
        let plan = Plan {
            seed: config.seed,
            schedule: config.schedule.schedule(),
            checkpoint_epochs: config.checkpoint.epochs,
            validation_epochs: config.validation.epochs,
            loaders: if config.data.loader_threads == 0 { app::cores() } else { config.data.loader_threads },
        };
        let CheckpointChoice { keep, keep_best, .. } = config.checkpoint;
        let checkpoints = Checkpoints::open(&out.join(CHECKPOINTS), keep, keep_best)?;
        Ok(Self { architecture, plan, data, validation, learner, checkpoints })
    }

    fn train(self) -> anyhow::Result<OpenModel> {
        let Self { architecture, data, mut learner, .. } = self;
        let (plan, validation, checkpoints) = (&self.plan, self.validation.as_ref(), &self.checkpoints);
        let stop = interrupted()?;
        let mut terminal = Terminal::new(stop);
        let state = match &data {
            DataSet::Identities(source) => {
                let course = Course { plan, source, validation, checkpoints };
                fit(&course, &mut learner, &mut |event| terminal.show(event))
            }
            DataSet::Pairs(source) => {
                let course = Course { plan, source, validation, checkpoints };
                fit(&course, &mut learner, &mut |event| terminal.show(event))
            }
        };
        let state = state.map_err(|cause| match cause {
            FitError::Stopped => anyhow!("stopped; give the same command again to go on"),
            other => other.into(),
        })?;
        let tensors = for_serving(&architecture, state.weights)?;
        Ok(OpenModel::new(architecture, FeaturePoint::BeforeNeck, tensors))
    }
}

/// What is learned from, and what is only looked at.
fn open_data(
    config: &TrainConfig,
    architecture: &Architecture,
) -> anyhow::Result<(DataSet, Option<Validation>)> {
    let (root, batch, size) = (&config.data.root, &config.batch, architecture.image);
    let reader = Reader::new(size, config.data.unreadable_max);
    let evaluates = config.validation.epochs > 0;
    Ok(match config.objective {
        ObjectiveName::FineTune => {
            let images = hoss(root, HossPart::Train)?;
            let source = IdentitySource::new(images, batch.images, batch.images_per_identity, reader)?;
            let test_set = || -> anyhow::Result<Validation> {
                let (queries, gallery) = (hoss(root, HossPart::Query)?, hoss(root, HossPart::Gallery)?);
                Ok(Validation::new(queries, gallery, size))
            };
            (DataSet::Identities(source), evaluates.then(test_set).transpose()?)
        }
        ObjectiveName::Contrastive => {
            let (pairs, held_out) = hold_out(optisar_pairs(root)?, config.validation.held_out);
            let validation = evaluates.then(|| Validation::of_pairs(&held_out, size));
            (DataSet::Pairs(PairSource::new(pairs, batch.images / 2, reader)), validation)
        }
    })
}

/// Seeded weights, replaced by those of the starting point as far as it has them.
fn starting_tensors(config: &TrainConfig, architecture: &Architecture) -> anyhow::Result<NamedTensors> {
    let mut tensors = seeded(architecture, config.seed);
    let path = &config.start.path;
    let name = || path.display().to_string();
    let taken = match config.start.from {
        StartKind::Scratch => return Ok(tensors),
        StartKind::Imagenet => {
            let checkpoint = pth::read(path, imagenet::WRAPPERS).with_context(name)?;
            imagenet::initialise(&mut tensors, architecture, checkpoint).with_context(name)?.overlay
        }
        StartKind::Model => {
            let checkpoint = if path.is_dir() {
                native::read(path)?.1
            } else {
                rules::without_module(pth::read(path, rules::WRAPPERS).with_context(name)?)?
            };
            start_from(&mut tensors, checkpoint).with_context(name)?
        }
    };
    println!("started from {}: {} tensors taken, {} kept", name(), taken.loaded.len(), taken.kept.len());
    Ok(tensors)
}

/// Becomes true at Ctrl-C or SIGTERM.
fn interrupted() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// One live bar, and a line an epoch.
struct Terminal {
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
}

impl Terminal {
    fn new(stop: Arc<AtomicBool>) -> Self {
        let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} steps, {msg}")
            .expect("a constant template");
        Self { stop, bar: ProgressBar::new(0).with_style(style) }
    }

    fn show(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Started { steps, epochs } if steps > 0 => {
                self.line(format!("going on after {steps} steps, to epoch {epochs}"));
            }
            Event::Started { .. } => {}
            Event::Step { progress, steps_in_epoch, terms, rates, images_per_second, seconds_left } => {
                self.bar.set_prefix(format!("epoch {}", progress.epoch));
                self.bar.set_length(steps_in_epoch);
                self.bar.set_position(progress.steps_of_epoch);
                let (loss, rate) = (terms.total, rates.weights);
                let left = HumanDuration(Duration::from_secs_f64(seconds_left));
                self.bar.set_message(format!(
                    "loss {loss:.3}, rate {rate:.1e}, {images_per_second:.0} images/s, {left:#} to the end"
                ));
            }
            Event::EpochDone { epoch, mean_loss, mean_accuracy } => {
                self.line(format!(
                    "epoch {epoch}: loss {mean_loss:.4}, accuracy {:.1} %",
                    mean_accuracy * 100.0
                ));
            }
            Event::Evaluated { epoch, summaries } => {
                for Summary {
                    protocol,
                    mean_average_precision: map,
                    hit_within_1: r1,
                    hit_within_5: r5,
                    hit_within_10: r10,
                    ..
                } in summaries
                {
                    let percent = [map, r1, r5, r10].map(|share| format!("{:.1}", share * 100.0)).join(" / ");
                    self.line(format!("epoch {epoch}: {protocol} mAP / R1 / R5 / R10 {percent} %"));
                }
            }
            Event::CheckpointSaved { .. } => {}
        }
        if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn line(&self, text: String) {
        self.bar.suspend(|| println!("{text}"));
    }
}
