//! FUSED beside COSINE in the report of a test set: who judges its queries, and whether the judgements come true.

use anyhow::{anyhow, bail};
use comfy_table::{Table, presets};
use image::RgbImage;
use serde_json::{Value, json};
use shipreid::embedding::{Embedding, ModelDigest};
use shipreid::evaluate::{LabelledImage, Protocol, Summary, rank};
use shipreid::matching::{
    CalibrateError, Calibrator, FitSettings, HeldOut, Judges, Labelled, ModalityPair, reliability_diagram,
};

use super::super::output;
use super::{Embedded, TestSet};

/// A test set as calibrators judge it, or why there is no judge.
pub struct Fused(Result<Judged, CalibrateError>);

struct Judged {
    judges: Judges,
    origin: Origin,
    queries: Vec<(LabelledImage, Labelled)>,
    gallery: Vec<(LabelledImage, Labelled)>,
    /// By pair of modalities.
    measured: Vec<(ModalityPair, HeldOut)>,
}

/// Where the calibrators come from.
enum Origin {
    /// One that is not known to have been fitted on this set.
    Other { id: String, is_known: bool },
    /// Fitted on this set, each without the ships that it judges; `instead_of` one that was fitted on all of them.
    CrossFitted { instead_of: Option<String> },
}

impl Fused {
    /// Judges by `calibrator`, unless it was fitted on the same set: then, and if there is none, by calibrators that are
    /// fitted here, on ships other than those that they judge.
    ///
    /// # Errors
    /// The calibrator belongs to another model, or an image cannot be read.
    pub fn of(set: &TestSet, embedded: &Embedded, calibrator: Option<Calibrator>) -> anyhow::Result<Self> {
        let model: ModelDigest = embedded.model.parse()?;
        if let Some(of) = calibrator.as_ref().map(Calibrator::model).filter(|of| *of != model) {
            bail!("the calibrator is of model {of}, and the model is {model}");
        }
        let (queries, gallery) = set.labelled(embedded)?;
        let fingerprint = set.fingerprint()?;
        let is_of_this_set =
            |calibrator: &Calibrator| calibrator.data().is_some_and(|data| data.fingerprint == fingerprint);
        let (judges, origin) = match calibrator {
            Some(calibrator) if !is_of_this_set(&calibrator) => {
                let (id, is_known) = (calibrator.id().to_owned(), calibrator.data().is_some());
                (Judges::one(calibrator, queries.len()), Origin::Other { id, is_known })
            }
            own => {
                let instead_of = own.map(|calibrator| calibrator.id().to_owned());
                match Judges::cross_fitted(&queries, &gallery, &settings(model, fingerprint)) {
                    Ok(judges) => (judges, Origin::CrossFitted { instead_of }),
                    Err(cause) => return Ok(Self(Err(cause))),
                }
            }
        };
        let measured = judges.measure(&queries, &gallery);
        let with_labels = |labels: &[(LabelledImage, Embedding)], images: Vec<Labelled>| -> Vec<_> {
            labels.iter().map(|(label, _)| *label).zip(images).collect()
        };
        Ok(Self(Ok(Judged {
            judges,
            origin,
            queries: with_labels(&embedded.queries, queries),
            gallery: with_labels(&embedded.gallery, gallery),
            measured,
        })))
    }

    /// Adds to the report by cosine the ranking by evidence of each protocol, and how well probabilities come true.
    pub fn add_to(&self, report: &mut Value) {
        match &self.0 {
            Ok(judged) => judged.add_to(report),
            Err(cause) => {
                report["calibration"] = json!({ "by": "nothing", "reason": cause.to_string() });
            }
        }
    }

    /// Prints who has judged, and how well.
    pub fn say(&self) {
        match &self.0 {
            Ok(judged) => judged.say(),
            Err(cause) => output::say(format_args!("fused: not measured, {cause}")),
        }
    }

    /// Observed against predicted frequency of pairs of one vessel.
    ///
    /// # Errors
    /// There is no judge.
    pub fn picture(&self) -> anyhow::Result<RgbImage> {
        let judged = self.0.as_ref().map_err(|cause| anyhow!("there is nothing to draw: {cause}"))?;
        Ok(reliability_diagram(judged.measured.iter().map(|(pair, measured)| (pair.name(), measured))))
    }
}

impl Judged {
    fn add_to(&self, report: &mut Value) {
        for row in report["protocols"].as_array_mut().into_iter().flatten() {
            let protocol = row["protocol"].as_str().and_then(|name| name.parse().ok());
            if let Some(Summary {
                mean_average_precision, hit_within_1, hit_within_5, hit_within_10, ..
            }) = protocol.and_then(|protocol| self.summary(protocol))
            {
                row["fused"] = json!({
                    "mAP": mean_average_precision, "R1": hit_within_1, "R5": hit_within_5, "R10": hit_within_10,
                });
            }
        }
        let (by, calibrator, fitted_on_this_set) = match &self.origin {
            Origin::Other { id, is_known } => ("calibrator", Some(id), is_known.then_some(false)),
            Origin::CrossFitted { instead_of } => {
                ("cross_fitting", instead_of.as_ref(), instead_of.as_ref().map(|_| true))
            }
        };
        let pairs = self.measured.iter().map(|(pair, HeldOut { appearance, with_size })| {
            json!({ "pair": pair.name(), "appearance": appearance, "with_size": with_size })
        });
        report["calibration"] = json!({
            "by": by,
            "calibrator": calibrator,
            "fitted_on_this_set": fitted_on_this_set,
            "pairs": pairs.collect::<Vec<_>>(),
        });
    }

    fn say(&self) {
        output::say(self.origin.text());
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["pair", "of one vessel", "of two", "log-loss", "with size", "of the prior"]);
        for (pair, HeldOut { appearance, with_size }) in &self.measured {
            let with_size = with_size.as_ref().map(|found| format!("{:.4}", found.log_loss));
            table.add_row([
                pair.name().to_owned(),
                appearance.same_pairs.to_string(),
                appearance.other_pairs.to_string(),
                format!("{:.4}", appearance.log_loss),
                with_size.unwrap_or_else(|| "-".to_owned()),
                format!("{:.4}", appearance.log_loss_of_prior),
            ]);
        }
        output::say(table);
    }

    fn summary(&self, protocol: Protocol) -> Option<Summary> {
        let ranked =
            rank(protocol, &numbered(&self.queries), &numbered(&self.gallery), |queries, gallery| {
                let gallery: Vec<&Labelled> = gallery.iter().map(|(_, image)| *image).collect();
                queries.iter().map(|(number, query)| self.judges.rank(*number, query, &gallery)).collect()
            });
        Some(Summary::of(protocol, &ranked?.scores))
    }
}

impl Origin {
    fn text(&self) -> String {
        let here = format!(
            "fused: by {} calibrators that are fitted here, each on ships other than those that it judges",
            Judges::PARTS
        );
        match self {
            Self::Other { id, is_known: true } => {
                format!("fused: by calibrator {id}, which was fitted on another set of images")
            }
            Self::Other { id, is_known: false } => format!(
                "fused: by calibrator {id}, which does not tell on which images it was fitted; on these, it would seem too good"
            ),
            Self::CrossFitted { instead_of: Some(id) } => {
                format!("{here}; calibrator {id} was fitted on these images")
            }
            Self::CrossFitted { instead_of: None } => format!("{here}; there is none of the model"),
        }
    }
}

/// Images with their indices.
fn numbered(images: &[(LabelledImage, Labelled)]) -> Vec<(LabelledImage, (usize, &Labelled))> {
    images.iter().enumerate().map(|(number, (label, image))| (*label, (number, image))).collect()
}

fn settings(model: ModelDigest, data_fingerprint: String) -> FitSettings {
    FitSettings {
        id: "cross-fitted".into(),
        model,
        fitted_on: "a part of a test set".into(),
        data_fingerprint,
        prior_unknown: FitSettings::PRIOR_UNKNOWN,
        kinematics: None,
        held_out: FitSettings::HELD_OUT,
        seed: FitSettings::SEED,
    }
}
