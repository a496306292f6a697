//! `shipreid train`: pretraining and fine-tuning in this process, or on a server.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use shipreid::app;
use shipreid::cancellation::Cancellation;
use shipreid::config::{Config, Sources};
use shipreid::evaluate::{Protocol, Summary};
use shipreid::matching::{Calibration, Calibrator};
use shipreid::model::Device;
use shipreid::registry::{CALIBRATOR, calibrator_file};
use shipreid::telemetry;
use shipreid::train::{
    AuthorsConfig, CalibrationReport, Checkpoints, DataRoots, EventLog, FitError, FitEvent, Means,
    ObjectiveName, Ranks as TrainingRanks, Run, RunError, TrainConfig, TrainConfigError, Trained,
    TrainingInputs, Violation, other_world_size, pace_on_cpu, start_report,
};
use shipreid::weights::open::OpenModel;
use tokio::runtime::Runtime;

use super::access::endpoint_of_environment;
use super::destination::ForceFlag;
use super::eval::{Fused, TestSet, table};
use super::signals::interrupted;
use super::train_ranks::{Joined, Ranks};
use super::train_remotely::RemoteFlags;
use super::training_bar::{EpochPace, Step, TrainingBar};
use super::{Failure, Refusal, output, prepare_to_train, train_job};

const CHECKPOINTS: &str = "checkpoints";
const MODEL: &str = "model";
const REPORT: &str = "report.json";
/// Contains a JSON object for each step and evaluation.
const EVENTS: &str = "events.jsonl";

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid train --local configs/train/hoss_transoss.toml --out runs/hoss
  shipreid train --local configs/train/demo.toml --out runs/demo --set schedule.epochs=5
  shipreid train --local configs/train/demo.toml --validate-only
  shipreid train --local configs/train/hoss_transoss.toml --out runs/hoss --device cuda:0 --processes 4
  torchrun --nproc-per-node 4 --no-python -- shipreid train --local hoss.toml --out runs/hoss --device cuda:0
  shipreid train --from-yaml hoss_transoss.yml SOLVER.IMS_PER_BATCH 64 OUTPUT_DIR runs/hoss
  shipreid train --endpoint http://gpu-1:50051 configs/train/hoss_transoss.toml --name \"HOSS, authors' settings\"

An interrupted run resumes from its newest checkpoint when the same command is given again. On a server, Ctrl-C leaves
the job running; the exit code is 0 if the job finished, 1 if it failed, 3 if it was cancelled.")]
pub struct Train {
    /// What to train, as TOML.
    #[arg(long, value_name = "FILE", conflicts_with = "words")]
    local: Option<PathBuf>,
    /// What to train, as the authors' YAML.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["local", "settings"])]
    from_yaml: Option<PathBuf>,
    /// One key of the TOML, as section.key=value; overrides the file. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Folder for checkpoints, events, the trained model and its report; default: the YAML's OUTPUT_DIR.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Refuses data and starting points outside this folder. May be repeated.
    #[arg(long = "data-root", value_name = "FOLDER")]
    data_roots: Vec<PathBuf>,
    #[command(flatten)]
    force: ForceFlag,
    /// "cpu" or "cuda:N"; several processes use the devices from N on.
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: String,
    /// Processes that train together on this machine, each on a device or its share of the cores. Under torchrun, which
    /// starts them itself, leave it out.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    processes: u16,
    /// Of several processes: seconds without a sign of life after which one counts as lost, and the others end.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86400))]
    silence_max: u32,
    /// Folder of a job; servers start their training processes with it.
    #[arg(long, hide = true, value_name = "FOLDER", exclusive = true)]
    job: Option<PathBuf>,
    #[command(flatten)]
    remote: RemoteFlags,
    /// On a server: what to train, as TOML. With --from-yaml: keys and values that override those of the YAML.
    #[arg(value_name = "FILE | KEY VALUE")]
    words: Vec<String>,
}

impl Train {
    pub(super) fn run(self) -> Result<(), Failure> {
        if let Some(folder) = &self.job {
            return train_job::run(folder);
        }
        if let Some(endpoint) = self.endpoint()? {
            let config = self.remote_config().map_err(Failure::Unusable)?;
            return Runtime::new()?.block_on(self.remote.run(&endpoint, config));
        }
        if self.remote.validates_only() {
            prepare_to_train(app::cores(), 1)?;
            return self.validate().map_err(Failure::Unusable);
        }
        let ranks = Ranks::find(self.processes.into(), Duration::from_secs(self.silence_max.into()));
        let ranks = ranks.map_err(Failure::Unusable)?;
        prepare_to_train(app::cores(), ranks.on_this_machine())?;
        let flags = vec![format!("encoder.device={}", self.device)];
        let server = Config::load(&Sources { flags, ..Sources::default() })
            .map_err(|cause| Failure::Unusable(cause.into()))?;
        telemetry::install(&server.telemetry)?;
        let asked = self.asked().map_err(Failure::Unusable)?;
        if ranks.leads() {
            self.check_unfinished(&asked.out)?;
        }
        let (run, joined) = self.prepare(&asked, &ranks).map_err(Failure::Unusable)?;
        let trained = self.train(&asked, run, ranks.leads());
        let trained = trained.map_err(|cause| said(cause, joined.as_ref()));
        let Some(Trained { model, delivered, calibration }) = trained? else { return Ok(()) };
        output::say(delivered);
        let place = asked.out.join(MODEL);
        if place.exists() {
            // Of an earlier run in this folder, and replaced only if that is asked for.
            fs::remove_dir_all(&place)?;
        }
        model.save(&place, &asked.source.to_string_lossy())?;
        output::say(format_args!("model {} in {}", model.digest, place.display()));
        CalibrationReport(&calibration).lines().iter().for_each(output::say);
        let calibrator = calibration.ok().map(|Calibration { calibrator, .. }| calibrator);
        if let Some(calibrator) = &calibrator {
            fs::write(place.join(CALIBRATOR), calibrator_file(calibrator))?;
        }
        evaluate(&asked, &server, model, calibrator)
    }

    /// The server that trains; `None` if this machine does. The environment is only used if nothing else decides.
    fn endpoint(&self) -> Result<Option<String>, Refusal> {
        let is_local = self.local.is_some() || self.from_yaml.is_some();
        let named = self.remote.endpoint();
        if let (true, None, Some(flag)) = (is_local, &named, self.remote.only_on_a_server()) {
            return Err(Refusal(format!("{flag} is for training on a server: name one with --endpoint")));
        }
        if is_local || named.is_some() {
            return Ok(named);
        }
        let for_this_machine = [
            ("--out", self.out.is_some()),
            ("--data-root", !self.data_roots.is_empty()),
            ("--force", self.force.is_given()),
        ];
        if let Some((flag, _)) = for_this_machine.iter().find(|(_, given)| *given) {
            return Err(Refusal(format!("{flag} is for training on this machine: add --local FILE")));
        }
        endpoint_of_environment()?.map(Some).ok_or_else(|| {
            Refusal(
                "name what to train: --local FILE --out FOLDER trains on this machine, FILE on the server that \
                 --endpoint or SHIPREID_ENDPOINT names"
                    .to_owned(),
            )
        })
    }

    /// Checks, before the work, that no earlier run has left its model in the folder.
    fn check_unfinished(&self, out: &Path) -> Result<(), Refusal> {
        let model = out.join(MODEL);
        if self.force.is_given() || !model.exists() {
            return Ok(());
        }
        Err(Refusal(format!(
            "{} already has the model of a finished run: name another folder, or replace it with --force, which \
             continues from the checkpoints",
            model.display()
        )))
    }

    /// The configuration for a server: the file as it is, with its comments, unless flags change it.
    fn remote_config(&self) -> anyhow::Result<String> {
        let source = match (&self.from_yaml, self.words.as_slice()) {
            (Some(file), _) => file.clone(),
            (None, [file]) => PathBuf::from(file),
            (None, _) => bail!("name one configuration file, or give --from-yaml"),
        };
        if self.from_yaml.is_none() && self.settings.is_empty() {
            return fs::read_to_string(&source).with_context(|| source.display().to_string());
        }
        Ok(toml::to_string(&self.read_config(&source)?.0)?)
    }

    /// Reports whether the configuration would start a run here, and its starting point.
    fn validate(&self) -> anyhow::Result<()> {
        let source = self.source()?;
        let (config, _) = self.read_config(source)?;
        let checked = TrainingInputs::check(&config, &self.data_roots()?, &Cancellation::default());
        let start = self.with_pace(&config, &Device::open(&self.device)?, checked);
        let start = start.map_err(TrainConfigError::Invalid).with_context(|| source.display().to_string())?;
        output::say("the configuration is valid");
        start_report(&config, start.as_ref()).for_each(output::say);
        Ok(())
    }

    /// Adds a violation if the device is too slow for the configuration.
    fn with_pace<T>(
        &self,
        config: &TrainConfig,
        device: &Device,
        checked: Result<T, Vec<Violation>>,
    ) -> Result<T, Vec<Violation>> {
        let pace = if device.is_cpu() { pace_on_cpu(config) } else { None };
        match (checked, pace.and_then(|pace| config.too_slow(&pace))) {
            (Ok(checked), None) => Ok(checked),
            (checked, too_slow) => Err(checked.err().into_iter().flatten().chain(too_slow).collect()),
        }
    }

    fn source(&self) -> anyhow::Result<&PathBuf> {
        self.local.as_ref().or(self.from_yaml.as_ref()).context("no configuration")
    }

    fn asked(&self) -> anyhow::Result<RunRequest> {
        let source = self.source()?;
        let (config, out) = self.read_config(source)?;
        let out = self
            .out
            .clone()
            .or(out)
            .context("no folder to write to: give --out FOLDER, or OUTPUT_DIR in the YAML")?;
        Ok(RunRequest { source: source.clone(), config, out })
    }

    /// A file with the flags applied, and the output folder that it names.
    fn read_config(&self, source: &Path) -> anyhow::Result<(TrainConfig, Option<PathBuf>)> {
        let name = || source.display().to_string();
        let text = fs::read_to_string(source).with_context(name)?;
        if self.from_yaml.is_none() {
            return Ok((TrainConfig::read(&text, &self.settings).with_context(name)?, None));
        }
        let AuthorsConfig { config, out, ignored } =
            AuthorsConfig::read(&text, &self.words).with_context(name)?;
        for key in ignored {
            output::say(format_args!("ignored: {key}"));
        }
        Ok((config, out))
    }

    /// A run, with the processes that take part in it.
    fn prepare(
        &self,
        RunRequest { source, config, out }: &RunRequest,
        ranks: &Ranks,
    ) -> anyhow::Result<(Run, Option<Joined>)> {
        let device = Device::open(&ranks.device(&self.device))?;
        let gathered = TrainingInputs::gather(config, &self.data_roots()?, ranks.shard());
        let inputs = self.with_pace(config, &device, gathered);
        let inputs =
            inputs.map_err(TrainConfigError::Invalid).with_context(|| source.display().to_string())?;
        let (keep, keep_best) = (config.checkpoint.keep, config.keeps_best());
        let checkpoints = Checkpoints::open(&out.join(CHECKPOINTS), keep, keep_best)?;
        if ranks.leads() {
            inputs.start_report(config).for_each(output::say);
        }
        let joined =
            ranks.join(config, &inputs, out, |loss| output::remark(format_args!("shipreid: {loss}")))?;
        let joined = joined.map(|joined| joined.connect(device)).transpose()?;
        let run = Run::new(config, inputs, device, checkpoints, app::cores() / ranks.on_this_machine());
        let Some(joined) = joined else { return Ok((run, None)) };
        let others = TrainingRanks::new(Arc::clone(&joined.world));
        Ok((run.among(others, config.loss.gather_features), Some(joined)))
    }

    /// Trains; the process that leads shows and logs what happens.
    fn train(&self, asked: &RunRequest, run: Run, leads: bool) -> anyhow::Result<Option<Trained>> {
        let stop = interrupted()?;
        if !leads {
            let stops = || stop.load(Ordering::Relaxed);
            let trained =
                run.train(&mut |_| if stops() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
            return Ok(trained?);
        }
        let events = asked.out.join(EVENTS);
        let mut log = EventLog::open(&events).with_context(|| events.display().to_string())?;
        let mut terminal = Terminal::new(stop);
        let mut unwritten = None;
        let trained = run.train(&mut |event| {
            if let Err(cause) = log.add(&event) {
                unwritten.get_or_insert(cause);
                return ControlFlow::Break(());
            }
            terminal.show(event)
        });
        if let Some(cause) = unwritten {
            return Err(anyhow!(cause).context("the events of the run cannot be written"));
        }
        Ok(trained?)
    }

    fn data_roots(&self) -> anyhow::Result<DataRoots> {
        Ok(if self.data_roots.is_empty() { DataRoots::Anywhere } else { DataRoots::under(&self.data_roots)? })
    }
}

/// What a command says, here and to the other processes of a run, about a run that ended early.
fn said(cause: anyhow::Error, joined: Option<&Joined>) -> anyhow::Error {
    if let Some(RunError::Fit(FitError::Stopped)) = cause.downcast_ref() {
        // All of them know.
        return anyhow!("stopped; run the same command again to resume");
    }
    match joined {
        Some(joined) => anyhow!(joined.tell_failure("", &format!("{cause:#}"))),
        None => cause,
    }
}

/// The name of a device.
///
/// # Errors
/// It is neither the CPU nor a numbered GPU.
pub fn device(text: &str) -> Result<String, String> {
    let is_gpu = text.strip_prefix("cuda:").is_some_and(|number| number.parse::<u32>().is_ok());
    if text == "cpu" || is_gpu {
        Ok(text.to_owned())
    } else {
        Err("expected cpu or cuda:N, as cuda:0".to_owned())
    }
}

/// What to train and where to write it.
struct RunRequest {
    source: PathBuf,
    config: TrainConfig,
    out: PathBuf,
}

/// Evaluates the model, if the data set has a test set.
fn evaluate(
    asked: &RunRequest,
    server: &Config,
    model: OpenModel,
    calibrator: Option<Calibrator>,
) -> Result<(), Failure> {
    let RunRequest { config, out, .. } = asked;
    if config.objective == ObjectiveName::Contrastive {
        return Ok(());
    }
    let Ok(set) = TestSet::read(&config.data.root) else {
        output::say(format_args!("no test set in {}", config.data.root.display()));
        return Ok(());
    };
    let embedded = set.embed_locally(&app::put_on_device(server, model)?)?;
    let mut report = embedded.report(&Protocol::EVERY, false);
    let fused = Fused::of(&set, &embedded, calibrator)?;
    fused.add_to(&mut report);
    fs::write(out.join(REPORT), format!("{report:#}\n"))?;
    output::say(table(&report));
    fused.say();
    Ok(())
}

/// The live bar of a run in this process, which Ctrl-C stops.
struct Terminal {
    stop: Arc<AtomicBool>,
    bar: TrainingBar,
}

impl Terminal {
    fn new(stop: Arc<AtomicBool>) -> Self {
        Self { stop, bar: TrainingBar::new() }
    }

    fn show(&mut self, event: FitEvent) -> ControlFlow<()> {
        match event {
            FitEvent::PassedOver(checkpoint) => self.bar.line(&checkpoint.to_string()),
            FitEvent::OtherWorldSize { before, now, .. } => self.bar.line(&other_world_size(before, now)),
            FitEvent::Started { steps, epochs } if steps > 0 => {
                self.bar.line(&format!("resuming after step {steps}, up to epoch {epochs}"));
            }
            FitEvent::Step {
                progress,
                steps_in_epoch,
                terms,
                rates,
                images_per_second,
                seconds_left,
                ..
            } => {
                self.bar.show(&Step {
                    epoch: progress.epoch,
                    position: progress.steps_of_epoch,
                    length: steps_in_epoch,
                    loss: terms.total,
                    rate: rates.weights,
                    images_per_second,
                    seconds_left,
                });
            }
            FitEvent::EpochDone { epoch, means: Some(means) } => {
                let Means { loss, accuracy, images_per_second, all_reduce_share } = means;
                let pace = EpochPace { images_per_second, all_reduce_share };
                self.bar.epoch(epoch, loss, Some(accuracy), Some(pace));
            }
            FitEvent::Evaluated { epoch, summaries, .. } => {
                for summary in summaries {
                    let Summary { protocol, mean_average_precision: map, .. } = summary;
                    let within = [summary.hit_within_1, summary.hit_within_5, summary.hit_within_10];
                    self.bar.evaluation(epoch, protocol, [map, within[0], within[1], within[2]]);
                }
            }
            FitEvent::Started { .. }
            | FitEvent::EpochDone { means: None, .. }
            | FitEvent::CheckpointSaved { .. } => {}
        }
        if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
