//! `shipreid demo`: the whole workflow in one command.

mod trial;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use shipreid::app::{self, Running};
use shipreid::client::{Client, ClientError};
use shipreid::config::{Config, Sources};
use shipreid::job_page::{History, page};
use shipreid::synth::{self, SynthPlan};
use shipreid::train::TrainConfig;
use shipreid::wire::{ActivateModelRequest, JobState, TrainRequest, TrainingJob};
use shipreid::{metrics, telemetry};
use tokio::runtime::Runtime;
use tokio::signal;

use super::destination::ForceFlag;
use super::embed::progress;
use super::live::{INTERRUPTED, Notice, Screen, Until, Watched, watch};
use super::{Failure, output, prepare};
use trial::Trial;

/// The training configuration, without the data folder.
const CONFIG: &str = include_str!("../../../configs/train/demo.toml");
/// Views of each ship by either sensor; one of them is the query, the others are enrolled.
const VIEWS: u64 = 4;
const SEED: u64 = 1;
/// Location of the synthetic chips in the output of `synth`, and its contact sheet of them.
const SYNTHETIC: &str = "synthetic_hoss";
const SHIPS_PICTURE: &str = "synthetic_ships.png";
const REPORT: &str = "training.html";
/// Contact sheets of the rankings of synthetic and of real chips.
const RANKED: [&str; 2] = ["ranked.png", "ranked_real.png"];

/// Draws synthetic ships, starts a server, trains a model on half of them through it, activates the model, enrols the
/// other half, matches them, and compares the results with ranking by size alone and with an untrained model.
#[derive(Args)]
pub struct Demo {
    /// A folder with real chips in the HOSS layout, which are enrolled and matched as well.
    #[arg(long, value_name = "FOLDER")]
    chips: Option<PathBuf>,
    /// Where the pictures and the report of the training are written.
    #[arg(long, value_name = "FOLDER", default_value = "target/demo")]
    out: PathBuf,
    #[command(flatten)]
    force: ForceFlag,
    /// Number of synthetic ships; the model is trained on half of them.
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u64).range(8..=3000))]
    ships: u64,
    /// One key of configs/train/demo.toml, as section.key=value. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

impl Demo {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut training =
            TrainConfig::read(CONFIG, &self.settings).map_err(|cause| Failure::Unusable(cause.into()))?;
        self.written().try_for_each(|file| self.force.check_file(&file))?;
        let place = tempfile::tempdir()?;
        training.data.root = place.path().join("data").join(SYNTHETIC);
        let config = server_config(place.path())?;
        prepare(app::threads_per_worker(&config))?;
        telemetry::install(&config.telemetry)?;
        fs::create_dir_all(&self.out).with_context(|| self.out.display().to_string())?;
        Runtime::new()?.block_on(async {
            tokio::select! {
                done = self.mission(&config, &training) => Ok(done?),
                // Returning removes the data and ends the training process.
                Ok(()) = signal::ctrl_c() => Err(Failure::Told(INTERRUPTED)),
            }
        })
    }

    /// The files that the demo writes.
    fn written(&self) -> impl Iterator<Item = PathBuf> {
        let trials = 1 + usize::from(self.chips.is_some());
        let files = [SHIPS_PICTURE, REPORT].into_iter().chain(RANKED.into_iter().take(trials));
        files.map(|file| self.out.join(file))
    }

    async fn mission(&self, config: &Config, training: &TrainConfig) -> anyhow::Result<()> {
        let clock = Clock(Instant::now());
        clock.heading(&format!("{} synthetic ships, as a camera and a radar see them", self.ships));
        self.draw(training)?;
        clock.heading("A server with a tiny untrained TransOSS");
        let models = app::open_models(config, app::open_cluster(config).await?)?;
        let running = app::start(config, models, metrics::install()?).await?;
        output::say(format_args!(
            "gRPC on {}, metrics on http://{}/metrics",
            running.address, running.metrics_address
        ));
        let client = Client::connect(&format!("http://{}", running.address)).await?;
        let mut trials = self.trials(&training.data.root)?;

        clock.heading("What a model has to beat: ranking by size alone, and the untrained model");
        for trial in &mut trials {
            trial.rank_by_size()?;
            trial.rank(&client, "untrained model", "untrained").await?;
            trial.forget(&client, "untrained").await?;
        }
        clock.heading("Training over gRPC; the server does it in a process of its own");
        let job = self.train(&client, training).await?;
        clock.heading("Activation: the trained model answers from now on");
        activate(&client, &job.model).await?;
        clock.heading("Enrolment and matching with the trained model");
        for trial in &mut trials {
            trial.rank(&client, "trained model", "harbour").await?;
        }
        trials[0].show_answers(&client, "harbour").await?;
        clock.heading("How well ships are found that the model has never seen");
        self.tell(&trials)?;
        stop(running).await;
        output::say(format_args!(
            "\nThe server has stopped, {:.0} s after the start.",
            clock.0.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    fn draw(&self, training: &TrainConfig) -> anyhow::Result<()> {
        let data = training.data.root.parent().context("the data lies in a folder of its own")?;
        let plan = SynthPlan { ships: self.ships, pairs: 0, views: VIEWS, seed: SEED };
        let bar = progress(self.ships as usize);
        synth::write(&plan, data, &mut || bar.inc(1))?;
        bar.finish_and_clear();
        let picture = self.out.join(SHIPS_PICTURE);
        self.force.write_bytes(&picture, fs::read(data.join(SHIPS_PICTURE))?)?;
        output::say(format_args!(
            "{} to train on, the others to test with; some of them in {}",
            self.ships / 2,
            picture.display()
        ));
        Ok(())
    }

    fn trials(&self, synthetic: &Path) -> anyhow::Result<Vec<Trial>> {
        let mut trials = vec![Trial::read("synthetic ships", synthetic)?];
        if let Some(folder) = &self.chips {
            trials.push(Trial::read("real ships (HOSS)", folder)?);
        }
        Ok(trials)
    }

    /// Orders a job and watches it to its end; writes a report page about it.
    async fn train(&self, client: &Client, training: &TrainConfig) -> anyhow::Result<TrainingJob> {
        let request = TrainRequest {
            config_toml: toml::to_string(training)?,
            display_name: "demo: synthetic ships".into(),
            ..TrainRequest::default()
        };
        let (mut screen, mut history) = (Screen::new(), History::default());
        let mut see = |notice: Notice| {
            if let Notice::Event(event) = &notice {
                history.add(event);
            }
            screen.show(notice);
        };
        let watched = watch(&mut client.train(request), Until::End, &mut see).await;
        screen.finish();
        let Watched::Ended(job) = watched? else { bail!("the training was interrupted") };
        let report = self.out.join(REPORT);
        self.force.write_bytes(&report, page(&job, &history))?;
        output::say(format_args!("curves, evaluations and configuration in {}", report.display()));
        if job.state() != JobState::Finished {
            bail!("the training did not finish: {} ({})", job.failure_message, job.failure_reason);
        }
        Ok(*job)
    }

    /// Prints tables and writes pictures of every trial.
    fn tell(&self, trials: &[Trial]) -> anyhow::Result<()> {
        output::say(
            "all: both modalities; o2s: optical queries, SAR gallery; s2o: SAR queries, optical gallery; in percent",
        );
        for (trial, file) in trials.iter().zip(RANKED) {
            output::say(format_args!("\n{}\n{}", trial.title(), trial.table()));
            let path = self.out.join(file);
            self.force.write_picture(&path, &trial.sheet()?)?;
            output::say(format_args!("queries and what was found for them, best first: {}", path.display()));
        }
        if trials.len() > 1 {
            output::say(format_args!(
                "\nThe model was trained on synthetic ships alone: the real ones show how little of that carries over."
            ));
        }
        Ok(())
    }
}

/// A server for the demo only: free ports, all data in `place`.
fn server_config(place: &Path) -> Result<Config, Failure> {
    let flags = vec![
        "server.listen=127.0.0.1:0".to_owned(),
        "server.metrics_listen=127.0.0.1:0".to_owned(),
        // Of the architecture that is trained, so that only the training differs.
        "model.preset=tiny".to_owned(),
        "telemetry.log_filter=warn".to_owned(),
        // Whole rankings are scored.
        "matching.top_k_max=10000".to_owned(),
        format!("store.data_dir={}", place.join("server").display()),
        format!("training.data_roots={}", place.join("data").display()),
        // There are no calls to give way to.
        "training.nice=10".to_owned(),
    ];
    Config::load(&Sources { flags, ..Sources::default() }).map_err(|cause| Failure::Unusable(cause.into()))
}

async fn activate(client: &Client, model: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    let request = ActivateModelRequest { digest: model.to_owned() };
    client.models().activate_model(request).await.map_err(ClientError::from)?;
    let took = started.elapsed().as_secs_f64();
    output::say(format_args!(
        "model {} answers after {took:.1} s, without a restart",
        &model[..12.min(model.len())]
    ));
    Ok(())
}

async fn stop(running: Running) {
    // A server that is still busy must not block the command.
    let _ = tokio::time::timeout(Duration::from_secs(30), running.stop()).await;
}

/// When the demo began.
struct Clock(Instant);

impl Clock {
    fn heading(&self, text: &str) {
        output::say(format_args!("\n[{:>3.0} s] {text}", self.0.elapsed().as_secs_f64()));
    }
}
