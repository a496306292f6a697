//! From the configuration's `[model]` and `[encoder]` to encoders that can be put on the device threads.

use std::path::Path;

use anyhow::bail;

use super::{LoadedModel, threads_per_worker, worker_count};
use crate::config::{self, Config, Linear, Precision, Preset};
use crate::encoder::ModelCard;
use crate::model::{Device, Kernel, SharedWeights, TorchSettings};
use crate::weights::architecture::{Architecture, ArchitectureHints, FeaturePoint};
use crate::weights::open::{Hints, OpenModel};
use crate::weights::seed::seeded;

/// Reads the configured model and puts it on its device.
///
/// # Errors
/// No model is configured, it cannot be read or does not fit together, or its device is not there.
pub fn load_model(config: &Config) -> anyhow::Result<LoadedModel> {
    let model = open_model(config)?;
    put_on_device(config, model)
}

/// Puts a model on the configured device.
///
/// # Errors
/// The device is not there, or cannot run what `[encoder]` asks for.
pub fn put_on_device(config: &Config, model: OpenModel) -> anyhow::Result<LoadedModel> {
    let device = Device::open(&config.encoder.device)?;
    let card = ModelCard {
        digest: model.digest,
        dimension: model.architecture.embed_dim,
        chip_size: model.architecture.image,
    };
    let settings = TorchSettings {
        device,
        bf16: config.encoder.precision == Precision::Bf16,
        kernel: match config.encoder.linear {
            Linear::Auto => None,
            Linear::Aten => Some(Kernel::Aten),
            Linear::Onednn if config.encoder.device == "cpu" => Some(Kernel::OneDnn),
            Linear::Onednn => bail!("encoder.linear \"onednn\" needs encoder.device \"cpu\""),
        },
        threads: threads_per_worker(config),
        batch_max: config.encoder.batch_max,
        feature_point: model.feature_point,
    };
    let workers = worker_count(config);
    let bytes = resident_bytes(&model, &settings, workers);
    let weights = SharedWeights::new(model.architecture, model.tensors, settings);
    Ok(LoadedModel { card, factory: weights.factory(), workers, bytes })
}

/// The weights, and a copy for each worker where oneDNN may reorder them for itself.
fn resident_bytes(model: &OpenModel, settings: &TorchSettings, workers: usize) -> u64 {
    let reorders = settings.device.is_cpu() && settings.kernel != Some(Kernel::Aten);
    let copies = if reorders { 1 + workers } else { 1 };
    let bytes = if settings.bf16 { 2 } else { 4 };
    model.architecture.parameters().saturating_mul(bytes).saturating_mul(copies as u64)
}

fn open_model(config: &Config) -> anyhow::Result<OpenModel> {
    let feature_point = match config.model.feature {
        config::Feature::BeforeNeck => FeaturePoint::BeforeNeck,
        config::Feature::AfterNeck => FeaturePoint::AfterNeck,
    };
    let seeded_model = |architecture: Architecture| {
        let tensors = seeded(&architecture, config.model.seed);
        OpenModel::new(architecture, feature_point, tensors)
    };
    match (config.model.path.as_str(), config.model.preset) {
        ("", Preset::None) => bail!("no model: set model.path, or model.preset to try the service untrained"),
        ("", Preset::Small) => Ok(seeded_model(Architecture::small())),
        ("", Preset::VitBase) => Ok(seeded_model(Architecture::vit_base())),
        (path, _) => {
            let heads = Some(config.model.heads).filter(|heads| *heads > 0);
            let architecture = ArchitectureHints { heads, ..ArchitectureHints::default() };
            Ok(OpenModel::open(Path::new(path), &Hints { feature_point, architecture })?)
        }
    }
}
