//! `shipreid calibrate`: from cosines to probabilities.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use comfy_table::{Table, presets};
use serde_json::json;
use shipreid::evaluate::Seen;
use shipreid::matching::{
    Calibration, FitSettings, Kinematics, Labelled, Outline, PairReport, Reliability, calibrate,
    reliability_diagram,
};

use super::eval::TestSet;
use super::{ConfigFlags, Failure};

/// Fits on all pairs of images of most ships, reports on all pairs of the rest, and writes a calibrator that holds for
/// the model that made the embeddings.
///
/// Examples:
///   shipreid calibrate --data HOSS --set model.path=runs/hoss/model --out hoss.toml --picture hoss.png
///   shipreid calibrate --data HOSS --endpoint http://127.0.0.1:50051 --out hoss.toml
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Calibrate {
    /// The folder that holds query and bounding_box_test.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// The calibrator's file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A reliability diagram, as PNG.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// What answers name the calibrator; the file's name without it.
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,
    /// Share of the ships that the fit does not see.
    #[arg(long, default_value_t = 0.3, value_parser = share)]
    held_out: f64,
    /// Of the choice of those ships.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Probability, before looking, that a ship is not in the gallery, where a request does not say.
    #[arg(long, default_value_t = 0.5, value_parser = share)]
    prior_unknown: f64,
    /// A running server in the place of a model in this process.
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "settings"])]
    endpoint: Option<String>,
    #[command(flatten)]
    config: ConfigFlags,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Calibrate {
    pub(super) fn run(self) -> Result<(), Failure> {
        let set = TestSet::read(&self.data)?;
        let extents = set.extents()?;
        let embedded = set.embed(self.endpoint.as_deref(), self.config)?;
        let labelled = |((seen, embedding), [width, length]): (&(Seen, _), [f64; 2])| Labelled {
            // Distractors share the identity -1, not the ship.
            identity: Some(seen.identity).filter(|identity| *identity >= 0),
            embedding: Clone::clone(embedding),
            outline: Outline { modality: seen.modality, length_m: Some(length), width_m: Some(width) },
        };
        let images: Vec<Labelled> = embedded.images().zip(extents).map(labelled).collect();
        let calibration = calibrate(
            &images,
            &FitSettings {
                id: self.id.unwrap_or_else(|| stem(&self.out)),
                model: embedded.model().parse()?,
                fitted_on: format!("{} images of {}", images.len(), stem(&self.data)),
                prior_unknown: self.prior_unknown,
                kinematics: Some(Kinematics::default()),
                held_out: self.held_out,
                seed: self.seed,
            },
        )?;
        let file = || self.out.display().to_string();
        std::fs::write(&self.out, calibration.calibrator.to_toml()).with_context(file)?;
        if let Some(picture) = &self.picture {
            let file = || picture.display().to_string();
            reliability_diagram(&calibration.pairs).save(picture).with_context(file)?;
        }
        if self.json {
            let model = calibration.calibrator.model().to_string();
            println!(
                "{}",
                json!({ "id": calibration.calibrator.id(), "model": model, "pairs": calibration.pairs })
            );
        } else {
            println!("{}", table(&calibration));
        }
        Ok(())
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().map_err(|_| "it is no number".to_owned())?;
    if share > 0.0 && share < 1.0 { Ok(share) } else { Err("it must be above 0 and below 1".into()) }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A report for people.
fn table(calibration: &Calibration) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["pair", "same", "other", "held out", "prior", "appearance", "with size", ""]);
    for pair in &calibration.pairs {
        let held_out = pair.held_out.as_ref();
        let alone = held_out.map(|held_out| &held_out.appearance);
        let with_size = held_out.and_then(|held_out| held_out.with_size.as_ref());
        let loss = |loss: Option<f64>| loss.map_or_else(String::new, |loss| format!("{loss:.4}"));
        let held = |of: &Reliability| format!("{} + {}", of.same_pairs, of.other_pairs);
        table.add_row([
            pair.pair.to_owned(),
            pair.same_pairs.to_string(),
            pair.other_pairs.to_string(),
            alone.map(held).unwrap_or_default(),
            loss(alone.map(|of| of.log_loss_of_prior)),
            loss(alone.map(|of| of.log_loss)),
            loss(with_size.map(|of| of.log_loss)),
            remark(pair),
        ]);
    }
    table
}

fn remark(pair: &PairReport) -> String {
    match (&pair.skipped, &pair.size_skipped) {
        (Some(reason), _) => format!("left out: {reason}"),
        (None, Some(reason)) => format!("without size: {reason}"),
        (None, None) => String::new(),
    }
}
