//! Models in files: what checkpoints leave open, what a folder has, and what people are told about it.

use std::path::Path;

use clap::Args;
use shipreid::chip::{ChipSize, SarStretch};
use shipreid::matching::Calibrator;
use shipreid::weights::any::AnyModel;
use shipreid::weights::checkpoint::Origin;
use shipreid::weights::coded::Quantized;
use shipreid::weights::family::{ArchitectureHints, FeaturePoint};
use shipreid::weights::native;
use shipreid::weights::open::{Hints, OpenModel};
use shipreid::weights::tensors::printable;
use shipreid::weights::wrapper::WeightsChoice;
use shipreid::wire::{self, CheckpointHints};

use super::destination::{ForceFlag, check_unused};
use super::{Failure, Refusal, output};

/// What a checkpoint does not store.
#[derive(Args)]
pub struct HintFlags {
    /// Which feature becomes the embedding; default: as its authors evaluate it, TransOSS before the neck, SDF-Net after.
    #[arg(long, value_parser = feature_point, value_name = "before-neck|after-neck")]
    feature: Option<FeaturePoint>,
    /// Attention heads; default: embedding width / 64.
    #[arg(long)]
    heads: Option<usize>,
    /// Pixels of a chip, as HEIGHTxWIDTH; default: 256x128.
    #[arg(long, value_parser = chip_size, value_name = "HxW")]
    image: Option<ChipSize>,
    /// Distance between patches.
    #[arg(long)]
    stride: Option<usize>,
    /// Factor of the modality embedding; default: 3.
    #[arg(long)]
    mie_coefficient: Option<f32>,
    /// Amplitudes of SAR images: "maximum" (from 0 to it) or "denoised" (from the 5th percentile, as MOS); default: maximum.
    #[arg(long, value_parser = sar_stretch, value_name = "maximum|denoised")]
    sar_stretch: Option<SarStretch>,
    /// Which of several weights in the file: "ema" for averaged ones, or their key; default: the model's own.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ema|KEY")]
    weights: String,
}

impl HintFlags {
    fn hints(&self) -> Hints {
        let architecture = ArchitectureHints {
            image: self.image,
            stride: self.stride,
            heads: self.heads,
            mie_coefficient: self.mie_coefficient,
            sar_stretch: self.sar_stretch,
        };
        Hints { feature_point: self.feature, architecture, weights: WeightsChoice::new(&self.weights) }
    }

    pub fn to_wire(&self) -> CheckpointHints {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let feature_point = match self.feature {
            None => wire::FeaturePoint::Unspecified,
            Some(FeaturePoint::BeforeNeck) => wire::FeaturePoint::BeforeNeck,
            Some(FeaturePoint::AfterNeck) => wire::FeaturePoint::AfterNeck,
        };
        let sar_stretch = match self.sar_stretch {
            None => wire::SarStretch::Unspecified,
            Some(SarStretch::Maximum) => wire::SarStretch::Maximum,
            Some(SarStretch::Denoised) => wire::SarStretch::Denoised,
        };
        CheckpointHints {
            feature_point: feature_point.into(),
            image_height: self.image.map_or(0, |image| number(image.height)),
            image_width: self.image.map_or(0, |image| number(image.width)),
            stride: self.stride.map_or(0, number),
            heads: self.heads.map_or(0, number),
            mie_coefficient: self.mie_coefficient,
            weights: self.weights.clone(),
            sar_stretch: sar_stretch.into(),
        }
    }
}

/// Reads a model that is no ensemble, with what the file leaves open.
///
/// # Errors
/// It cannot be read, or is no model.
pub fn open(path: &Path, flags: &HintFlags) -> Result<(OpenModel, Origin), Failure> {
    OpenModel::open_with_origin(path, &flags.hints()).map_err(|cause| Failure::Unusable(cause.into()))
}

/// Reads a model with what the file leaves open.
///
/// # Errors
/// It cannot be read, or is no model.
pub fn open_any(path: &Path, flags: &HintFlags) -> Result<(AnyModel, Origin), Failure> {
    AnyModel::open_with_origin(path, &flags.hints()).map_err(|cause| Failure::Unusable(cause.into()))
}

/// Prints what is known about a model, or about an ensemble and each of its members.
pub fn describe_any(model: &AnyModel, origin: &Origin) {
    let ensemble = match model {
        AnyModel::Network(model) => return describe(model, origin),
        AnyModel::Ensemble(ensemble) => ensemble,
    };
    let (composition, parameters) =
        (&ensemble.composition, |model: &OpenModel| model.architecture.parameters());
    let sum: u64 = ensemble.members.iter().map(parameters).sum();
    output::say(format_args!("digest      {}", ensemble.digest));
    output::say(format_args!("ensemble    {} members with {sum} numbers", ensemble.members.len()));
    output::say(format_args!(
        "fusion      weight / ({} + rank), to rank {}",
        composition.k(),
        composition.depth()
    ));
    output::say(format_args!("embedding   {}", composition.dimension()));
    for (number, (member, part)) in (1..).zip(ensemble.members.iter().zip(composition.parts())) {
        let share = 100.0 * parameters(member) as f64 / sum as f64;
        output::say(format_args!(
            "\nmember {number}, of weight {}, with {share:.0} % of the numbers",
            part.weight
        ));
        describe(member, &Origin::default());
    }
}

/// Prints what is known about a model.
pub fn describe(model: &OpenModel, origin: &Origin) {
    let architecture = &model.architecture;
    let layers = || model.quantized.iter().flat_map(|quantized| quantized.layers.values());
    let codes: usize = layers().map(|layer| layer.codes().len()).sum();
    let parameters: usize = model.tensors.values().map(|tensor| tensor.values.len()).sum();
    let feature = match model.feature_point {
        FeaturePoint::BeforeNeck => "before the neck",
        FeaturePoint::AfterNeck => "after the neck",
    };
    output::say(format_args!("digest      {}", model.digest));
    output::say(format_args!("family      {}", architecture.family().title()));
    for (title, value) in architecture.description() {
        output::say(format_args!("{title:<11} {value}"));
    }
    output::say(format_args!("feature     {feature}"));
    output::say(format_args!("classes     {}", architecture.classes()));
    if !origin.is_plain() {
        output::say(format_args!("weights     {origin}"));
    }
    if let Some(Quantized { origin, .. }) = &model.quantized {
        output::say(format_args!("in int8     {} layers with {codes} codes", layers().count()));
        output::say(format_args!("made from   {} by {}", origin.source, printable(&origin.tool)));
    }
    output::say(format_args!("tensors     {} with {parameters} numbers", model.tensors.len()));
    if !origin.dropped.is_empty() {
        output::say(dropped(&origin.dropped));
    }
}

/// The tensors of a file that serving does not read, on one line.
pub fn dropped(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| printable(name)).collect();
    format!("not kept    {}: nothing reads them in serving", names.join(", "))
}

/// Prints what is known about the calibrator that comes with a model, if there is one.
pub fn describe_calibrator(calibrator: Option<&Calibrator>) {
    let Some(calibrator) = calibrator else { return };
    let pairs = calibrator.pairs().map(|(pair, fitted)| {
        let sizes = if fitted.size.is_some() { " and sizes" } else { "" };
        format!("{} by looks{sizes}", pair.name())
    });
    let pairs = pairs.collect::<Vec<_>>().join(", ");
    let ships = calibrator.data().map(|data| format!(", fitted on {} ships", data.ships)).unwrap_or_default();
    output::say(format_args!("calibrator  {}{ships}: {pairs}", printable(calibrator.id())));
}

/// Whether the model in the folder is to be replaced.
///
/// # Errors
/// There is one and it may not be, or the folder contains more than a model.
pub fn replaces(folder: &Path, force: &ForceFlag) -> Result<bool, Refusal> {
    let Err(used) = check_unused(folder) else { return Ok(false) };
    match (folder.join(native::DESCRIPTION).is_file(), force.is_given()) {
        (true, true) => Ok(true),
        (true, false) => Err(Refusal(format!("{used}, or replace the model in it with --force"))),
        (false, _) => Err(used),
    }
}

fn feature_point(text: &str) -> Result<FeaturePoint, String> {
    match text {
        "before-neck" => Ok(FeaturePoint::BeforeNeck),
        "after-neck" => Ok(FeaturePoint::AfterNeck),
        _ => Err("expected before-neck or after-neck".into()),
    }
}

fn sar_stretch(text: &str) -> Result<SarStretch, String> {
    match text {
        "maximum" => Ok(SarStretch::Maximum),
        "denoised" => Ok(SarStretch::Denoised),
        _ => Err("expected maximum or denoised".into()),
    }
}

fn chip_size(text: &str) -> Result<ChipSize, String> {
    let sides = text.split_once('x').and_then(|(h, w)| Some((h.parse().ok()?, w.parse().ok()?)));
    sides
        .map(|(height, width)| ChipSize { height, width })
        .ok_or_else(|| "expected HEIGHTxWIDTH, for example 256x128".into())
}
