//! `shipreid calibrate`: maps similarities to probabilities, learned from ships whose identity is known.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use comfy_table::{Table, presets};
use serde_json::json;
use shipreid::app;
use shipreid::matching::{Calibration, FitSettings, PairReport, Reliability, calibrate, reliability_diagram};

use super::destination::ForceFlag;
use super::eval::TestSet;
use super::number::between;
use super::{ConfigFlags, Failure, output, prepare};

#[derive(Args)]
#[command(after_help = "\
Every pair of images of the test set is one vessel or two. A logistic regression turns the similarity of a pair, and
the sizes of the two ships, into a log-likelihood ratio, for each pair of modalities. It is measured on ships that it
has not seen.

Example: shipreid calibrate --data HOSS --set model.path=models/transoss --out calibrators/transoss.toml")]
pub struct Calibrate {
    /// The folder that holds query and bounding_box_test: ships that the model was not trained on.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// File to write, for matching.calibrators.
    #[arg(long, value_name = "FILE.toml")]
    out: PathBuf,
    /// Writes a reliability diagram: observed against predicted frequency of same-vessel pairs.
    #[arg(long, value_name = "FILE.png")]
    picture: Option<PathBuf>,
    #[command(flatten)]
    force: ForceFlag,
    /// Name of the calibrator in responses; default: the file's.
    #[arg(long)]
    id: Option<String>,
    /// Share of the ships held out for evaluation.
    #[arg(long, default_value_t = FitSettings::HELD_OUT, value_name = "SHARE", value_parser = between(0.0, 1.0))]
    held_out: f64,
    /// Prior probability that a ship is not in the gallery.
    #[arg(long, default_value_t = FitSettings::PRIOR_UNKNOWN, value_name = "PROBABILITY", value_parser = between(0.0, 1.0))]
    prior_unknown: f64,
    /// Seed of the choice of held-out ships.
    #[arg(long, default_value_t = FitSettings::SEED)]
    seed: u64,
    #[command(flatten)]
    config: ConfigFlags,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Calibrate {
    pub(super) fn run(self) -> Result<(), Failure> {
        [&self.out].into_iter().chain(&self.picture).try_for_each(|file| self.force.check(file))?;
        let set = TestSet::read(&self.data).map_err(Failure::Unusable)?;
        let config = self.config.clone().load()?;
        prepare(app::threads_per_worker(&config))?;
        let loaded = app::load_model(&config).map_err(Failure::Unusable)?;
        if loaded.card.members.is_some() {
            let model = loaded.card.digest;
            let cause = "galleries of ensembles are ranked by reciprocal rank, which no calibrator judges";
            return Err(Failure::Unusable(anyhow!("model {model} is an ensemble: {cause}")));
        }
        let (queries, gallery) = set.labelled(&set.embed_locally(&loaded)?)?;
        let images = [queries, gallery].concat();
        let stem = self.out.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let settings = FitSettings {
            id: self.id.clone().unwrap_or(stem),
            model: loaded.card.digest,
            fitted_on: self.data.display().to_string(),
            data_fingerprint: set.fingerprint()?,
            prior_unknown: self.prior_unknown,
            kinematics: None,
            held_out: self.held_out,
            seed: self.seed,
        };
        let Calibration { calibrator, pairs } = calibrate(&images, &settings)?;
        self.force.write_bytes(&self.out, calibrator.to_toml())?;
        if let Some(picture) = &self.picture {
            let measured = pairs.iter().filter_map(PairReport::measured);
            self.force.write_picture(picture, &reliability_diagram(measured))?;
        }
        if self.json {
            output::say(
                json!({ "id": calibrator.id(), "model": calibrator.model().to_string(), "pairs": pairs }),
            );
        } else {
            output::say(table(&pairs));
            output::say(format_args!("calibrator {} in {}", calibrator.id(), self.out.display()));
        }
        Ok(())
    }
}

fn table(pairs: &[PairReport]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["pair", "of one vessel", "of two", "log-loss", "with size", "of the prior", "remarks"]);
    for pair in pairs {
        let loss = |reliability: Option<&Reliability>| {
            reliability.map_or_else(|| "-".to_owned(), |reliability| format!("{:.4}", reliability.log_loss))
        };
        let held_out = pair.held_out.as_ref();
        let remarks = [&pair.skipped, &pair.size_skipped].into_iter().flatten().map(ToString::to_string);
        table.add_row([
            pair.pair.to_owned(),
            pair.same_pairs.to_string(),
            pair.other_pairs.to_string(),
            loss(held_out.map(|held_out| &held_out.appearance)),
            loss(held_out.and_then(|held_out| held_out.with_size.as_ref())),
            held_out.map_or_else(
                || "-".to_owned(),
                |held_out| format!("{:.4}", held_out.appearance.log_loss_of_prior),
            ),
            remarks.collect::<Vec<_>>().join("; "),
        ]);
    }
    table
}
