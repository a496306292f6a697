//! `shipreid train --job`: a server's training process. It knows its folder and nothing else about the server.

use std::any::Any;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use shipreid::config::Config;
use shipreid::distributed::RankFailure;
use shipreid::embedding::ModelDigest;
use shipreid::jobs::{
    CHECKPOINTS, CHIPS, ChildChannel, ChildMessage, EventMapper, ExitReport, Instructions, JobFailure, MODEL,
    Start, beat, confine, die_with_parent, io_reason, take_folder, tells_of_memory,
};
use shipreid::model::Device;
use shipreid::reason::FailureReason;
use shipreid::registry::{CALIBRATOR, Kept, PROVENANCE, Provenance, calibrator_file};
use shipreid::telemetry;
use shipreid::train::{
    CheckpointError, Checkpoints, DataRoots, FitError, FitEvent, HossPart, LearnError, ObjectiveName,
    Ranks as TrainingRanks, Run, RunError, StartKind, TrainConfig, TrainConfigError, Trained, TrainingInputs,
    Violation, fingerprint, hoss,
};
use shipreid::weights::native::{self, NativeError};
use shipreid::weights::open::OpenModel;

use super::Failure;
use super::signals::interrupted;
use super::train_ranks::{Joined, Ranks};

/// Trains in a job's folder, and reports on standard output what happens, including how it ends.
pub(super) fn run(folder: &Path) -> Result<(), Failure> {
    die_with_parent()?;
    if std::env::var_os("RANK").is_some() {
        return follow(folder);
    }
    let channel = ChildChannel::start()?;
    telemetry::install(&Config::default().telemetry)?;
    let report = match catch_unwind(AssertUnwindSafe(|| train(folder, &channel))) {
        Ok(Ok(model)) => ExitReport::Finished { model },
        Ok(Err(Ended::Stopped)) => ExitReport::Stopped,
        Ok(Err(Ended::Failed(failure))) => ExitReport::Failed(failure),
        Err(panic) => ExitReport::Failed(panicked(panic.as_ref())),
    };
    channel.say(&ChildMessage::Exit(report));
    Ok(())
}

/// Why there is no model.
enum Ended {
    Stopped,
    Failed(JobFailure),
}

/// Trains; returns the digest of the model in the folder.
fn train(folder: &Path, channel: &ChildChannel) -> Result<String, Ended> {
    let unusable = |cause: io::Error| failed(io_reason(&cause, FailureReason::ConfigInvalid), cause);
    let instructions = Instructions::read(folder).map_err(unusable)?;
    let stop = interrupted().map_err(|cause| failed(FailureReason::Crashed, cause))?;
    let wait_max = Duration::from_secs_f64(instructions.lock_seconds_max);
    let _folder = take_folder(folder, wait_max).map_err(Ended::Failed)?;
    confine(&instructions).map_err(unusable)?;
    let heartbeat = Duration::from_secs_f64(instructions.heartbeat_seconds);
    beat(channel.clone(), heartbeat).map_err(|cause| match cause.kind() {
        // There is no room for the thread's stack.
        io::ErrorKind::WouldBlock => failed(FailureReason::OutOfMemory, "a thread cannot be started"),
        _ => failed(FailureReason::Crashed, cause),
    })?;

    let ranks = ranks(&instructions)?;
    let Prepared { config, inputs, device, checkpoints } = prepare(folder, &instructions, &ranks)?;
    let fingerprint = fingerprint(&inputs.data).map_err(|cause| failed(FailureReason::DataMissing, cause))?;
    let start = inputs.start.as_ref().map(|start| Start::new(&config.start.path, start));
    inputs.start_report(&config).for_each(|line| println!("{line}"));
    let at_loss = channel.clone();
    let joined = ranks.join(&config, &inputs, folder, move |failure| {
        at_loss.say(&ChildMessage::Exit(ExitReport::Failed(of_rank(failure))));
    });
    let joined = connected(joined, device)?;
    let run = Run::new(&config, inputs, device, checkpoints.clone(), instructions.threads);
    let run = among(run, joined.as_ref(), &config);
    let mut event_mapper = EventMapper::new(config.objective, checkpoints, folder.to_owned(), start);
    // The store may be unavailable for long.
    let wait_until_stored = || match &joined {
        Some(joined) => joined.world.rest(|| channel.sync()),
        None => channel.sync(),
    };
    let trained = run.train(&mut |event| {
        // A checkpoint may follow: events before it must not be lost with the server.
        let must_be_stored = matches!(event, FitEvent::EpochDone { .. } | FitEvent::Evaluated { .. });
        let stops = stop.load(Ordering::Relaxed);
        event_mapper.tell(event).iter().for_each(|message| channel.say(message));
        if must_be_stored || stops {
            wait_until_stored();
        }
        if stops { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let trained = trained.map_err(|cause| ended_among(cause, joined.as_ref()))?;
    let Trained { model, delivered, calibration } =
        trained.ok_or_else(|| failed(FailureReason::Crashed, "no model"))?;
    event_mapper.deliver(&delivered).iter().for_each(|message| channel.say(message));
    event_mapper.calibrate(&calibration).iter().for_each(|message| channel.say(message));
    let calibrator = calibration.ok().map(|calibration| calibration.calibrator);
    let provenance = Provenance {
        tenant: Some(instructions.tenant),
        parent: parent(&config),
        configuration: Some(instructions.config_toml),
        data_fingerprint: Some(fingerprint),
        evaluations: event_mapper.evaluations().to_vec(),
        ..Provenance::now(instructions.name)
    };
    let kept = Kept { provenance: &provenance, calibrator: calibrator.as_ref() };
    leave(folder, &model, kept).map_err(|cause| Ended::Failed(unsaved_tensors(&cause)))?;
    Ok(model.digest.to_string())
}

/// Trains beside the process that reports to the server, and ends with it.
fn follow(folder: &Path) -> Result<(), Failure> {
    telemetry::install(&Config::default().telemetry)?;
    let followed = (|| {
        let unusable = |cause: io::Error| failed(io_reason(&cause, FailureReason::ConfigInvalid), cause);
        // Its limits and priority are those of the process that has started it.
        let instructions = Instructions::read(folder).map_err(unusable)?;
        let stop = interrupted().map_err(unusable)?;
        let ranks = ranks(&instructions)?;
        let Prepared { config, inputs, device, checkpoints } = prepare(folder, &instructions, &ranks)?;
        let joined =
            ranks.join(&config, &inputs, folder, |failure| tracing::error!(%failure, "a rank is lost"));
        let joined = connected(joined, device)?;
        let run = Run::new(&config, inputs, device, checkpoints, instructions.threads);
        let trained = among(run, joined.as_ref(), &config).train(&mut |_| {
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        trained.map(drop).map_err(|cause| ended_among(cause, joined.as_ref()))
    })();
    match followed {
        Ok(()) | Err(Ended::Stopped) => Ok(()),
        Err(Ended::Failed(failure)) => Err(anyhow::anyhow!(failure).into()),
    }
}

/// This process and those that train with it.
fn ranks(instructions: &Instructions) -> Result<Ranks, Ended> {
    // Before the server would give up on the job.
    let silence_max = Duration::from_secs_f64(2.0 * instructions.heartbeat_seconds);
    let ranks = Ranks::find(instructions.processes, silence_max);
    ranks.map_err(|cause| failed(FailureReason::NotStarted, format!("{cause:#}")))
}

/// The processes, ready to exchange gradients.
fn connected(joined: anyhow::Result<Option<Joined>>, device: Device) -> Result<Option<Joined>, Ended> {
    let connected = joined.and_then(|joined| joined.map(|joined| joined.connect(device)).transpose());
    connected.map_err(|cause| failed(FailureReason::NotStarted, format!("{cause:#}")))
}

/// What a run needs.
struct Prepared {
    config: TrainConfig,
    inputs: TrainingInputs,
    device: Device,
    checkpoints: Checkpoints,
}

fn prepare(folder: &Path, instructions: &Instructions, ranks: &Ranks) -> Result<Prepared, Ended> {
    let (config, roots) = configured(folder, instructions)?;
    let inputs = TrainingInputs::gather(&config, &roots, ranks.shard());
    let inputs = inputs.map_err(|found| Ended::Failed(unfit(found)))?;
    let device = Device::open(&ranks.device(&instructions.device));
    let device = device.map_err(|cause| failed(FailureReason::ConfigInvalid, cause))?;
    let (keep, keep_best) = (config.checkpoint.keep, config.keeps_best());
    let checkpoints = Checkpoints::open(&folder.join(CHECKPOINTS), keep, keep_best)
        .map_err(|cause| Ended::Failed(unsaved(&cause)))?;
    Ok(Prepared { config, inputs, device, checkpoints })
}

/// The run as one of several processes, if there are others.
fn among(run: Run, joined: Option<&Joined>, config: &TrainConfig) -> Run {
    match joined {
        Some(joined) => run.among(TrainingRanks::new(Arc::clone(&joined.world)), config.loss.gather_features),
        None => run,
    }
}

/// How a run without a model has ended, of which the other processes are told. Where one of them was lost, the reason of the
/// first that failed holds.
fn ended_among(cause: RunError, joined: Option<&Joined>) -> Ended {
    let is_other = matches!(cause, RunError::Fit(FitError::Learn(LearnError::Lost(_))));
    match (ended(cause), joined) {
        (Ended::Failed(failure), Some(joined)) => {
            let first = joined.tell_failure(failure.reason.name(), &failure.message);
            Ended::Failed(if is_other { of_rank(&first) } else { failure })
        }
        (ended, _) => ended,
    }
}

/// The configuration adapted to this process: no more threads than allowed, the chips in its folder if they are the
/// training data, and otherwise an evaluation of the result if the data set has a test set.
fn configured(folder: &Path, instructions: &Instructions) -> Result<(TrainConfig, DataRoots), Ended> {
    let config = TrainConfig::parse(&instructions.config_toml);
    let mut config = config.map_err(|cause| failed(FailureReason::ConfigInvalid, cause))?;
    let mut allowed = instructions.data_roots.clone();
    if instructions.from_chips {
        config.data.root = folder.join(CHIPS);
        allowed.push(folder.join(CHIPS));
        if config.validation.epochs == 0 {
            // Vessels are held out only for evaluation: without it, all are used for training.
            tracing::info!("no evaluation on the way or at the end: validation.epochs is 0");
        }
    }
    let roots = DataRoots::under(&allowed).map_err(|cause| failed(FailureReason::DataMissing, cause))?;
    config.data.loader_threads = config.data.loader_threads.min(instructions.threads);
    let has_test_set = |config: &TrainConfig| {
        config.objective == ObjectiveName::FineTune
            && roots.admit(&config.data.root).is_ok_and(|root| hoss(&root, HossPart::Query).is_ok())
    };
    if config.validation.epochs == 0 && has_test_set(&config) {
        config.validation.epochs = config.schedule.epochs;
    }
    Ok((config, roots))
}

/// The model that the run started from, if it was a native one.
fn parent(config: &TrainConfig) -> Option<ModelDigest> {
    match config.start.from {
        StartKind::Model => native::read_description(&config.start.path).ok()?.digest.parse().ok(),
        StartKind::Scratch | StartKind::Imagenet => None,
    }
}

/// Writes the model, its history and its calibrator to the job's folder.
fn leave(folder: &Path, model: &OpenModel, kept: Kept<'_>) -> Result<(), NativeError> {
    let Kept { provenance, calibrator } = kept;
    let place = folder.join(MODEL);
    let failed = |cause| NativeError::Io { path: place.clone(), cause };
    if place.exists() {
        // Left by an attempt that ended before it could report that.
        fs::remove_dir_all(&place).map_err(failed)?;
    }
    model.save(&place, &provenance.origin)?;
    fs::write(place.join(PROVENANCE), provenance.to_toml()).map_err(failed)?;
    match calibrator {
        Some(calibrator) => fs::write(place.join(CALIBRATOR), calibrator_file(calibrator)).map_err(failed),
        None => Ok(()),
    }
}

/// A thread that cannot be started is a panic of the standard library.
fn panicked(panic: &(dyn Any + Send)) -> JobFailure {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    crash(text.unwrap_or("the process panicked"))
}

fn failed(reason: FailureReason, cause: impl std::fmt::Display) -> Ended {
    Ended::Failed(JobFailure::new(reason, cause.to_string()))
}

/// The configuration was valid when it was submitted and no longer is: the data are gone, or something else has
/// changed.
fn unfit(violations: Vec<Violation>) -> JobFailure {
    let gone = |violation: &Violation| ["data.root", "start.path"].contains(&violation.field.as_str());
    let reason =
        if violations.iter().any(gone) { FailureReason::DataMissing } else { FailureReason::ConfigInvalid };
    JobFailure::new(reason, TrainConfigError::Invalid(violations).to_string())
}

fn ended(cause: RunError) -> Ended {
    let reason = match &cause {
        RunError::Fit(FitError::Stopped) => return Ended::Stopped,
        RunError::Fit(FitError::Checkpoint(cause)) => return Ended::Failed(unsaved(cause)),
        RunError::Fit(FitError::Learn(LearnError::OutOfMemory)) => FailureReason::OutOfMemory,
        RunError::Fit(FitError::Learn(LearnError::OtherModel(_)) | FitError::EmptyEpoch(_)) => {
            FailureReason::ConfigInvalid
        }
        RunError::Fit(FitError::Data(_)) => FailureReason::DataMissing,
        RunError::Fit(FitError::Diverged { .. } | FitError::Learn(LearnError::NotFinite { .. })) => {
            FailureReason::Diverged
        }
        RunError::Fit(FitError::Learn(LearnError::Lost(failure))) => return Ended::Failed(of_rank(failure)),
        RunError::Fit(FitError::Learn(LearnError::Failed(_))) | RunError::Weights(_) => {
            FailureReason::Crashed
        }
    };
    failed(reason, cause)
}

/// The failure of another rank: by its own account, or else what its last words tell of.
fn of_rank(RankFailure { kind, message }: &RankFailure) -> JobFailure {
    match FailureReason::named(kind).filter(|reason| *reason != FailureReason::Crashed) {
        Some(reason) => JobFailure::new(reason, message.clone()),
        None => crash(message),
    }
}

/// The failure that the last words of a process tell of.
fn crash(cause: &str) -> JobFailure {
    let reason = if tells_of_memory(cause) { FailureReason::OutOfMemory } else { FailureReason::Crashed };
    JobFailure::new(reason, cause)
}

fn unsaved(cause: &CheckpointError) -> JobFailure {
    match cause {
        CheckpointError::Io { cause: of, .. } => JobFailure::new(of_disk(of), cause.to_string()),
        CheckpointError::Tensors(cause) => unsaved_tensors(cause),
        CheckpointError::Progress { .. } | CheckpointError::Digest(_) => {
            JobFailure::new(FailureReason::Crashed, cause.to_string())
        }
    }
}

fn unsaved_tensors(cause: &NativeError) -> JobFailure {
    let reason = match cause {
        NativeError::Io { cause, .. } => of_disk(cause),
        _ => FailureReason::Crashed,
    };
    JobFailure::new(reason, cause.to_string())
}

fn of_disk(cause: &io::Error) -> FailureReason {
    io_reason(cause, FailureReason::Crashed)
}
