//! From the configuration's `[model]` and `[encoder]` to encoders that can be put on the device threads.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};

use super::{KeptModels, LoadedModel, ServedModels, threads_per_worker, worker_count};
use crate::config::{self, Config, Linear, Precision, Preset};
use crate::embedding::ModelDigest;
use crate::encoder::{LoadError, ModelCard};
use crate::model::{Device, Kernel, SharedWeights, TorchSettings};
use crate::registry::{Provenance, Registry, RegistryLimits};
use crate::weights::architecture::{Architecture, ArchitectureHints, FeaturePoint};
use crate::weights::open::{Hints, OpenModel};
use crate::weights::seed::seeded;
use crate::weights::wrapper::Choice;

/// Folder of the models within the data folder.
const MODELS: &str = "models";

/// Opens the models under the data folder and chooses the one that serves first: the one that was activated last, or
/// the configured one where none ever was. A configured model that is not a preset is kept with the others.
///
/// # Errors
/// The models cannot be opened, the chosen one cannot be read or verified, or its device is not there.
pub fn open_models(config: &Config) -> anyhow::Result<ServedModels> {
    if config.store.data_dir.is_empty() {
        return Ok(load_model(config)?.into());
    }
    let limits = RegistryLimits { count_max: config.models.count_max, bytes_max: config.models.bytes_max };
    let registry = Registry::open(&Path::new(&config.store.data_dir).join(MODELS), limits)?;
    let model = match registry.active() {
        Some(active) => activated_model(&registry, active.digest)?,
        None => configured_model(config, &registry)?,
    };
    let first = put_on_device(config, model)?;
    log_choice(config, &registry, first.card.digest);
    let settings = config.clone();
    let loader =
        move |model| put_on_device(&settings, model).map_err(|cause| LoadError(format!("{cause:#}")));
    let kept = KeptModels { registry: Arc::new(registry), loader: Arc::new(loader) };
    Ok(ServedModels { first, kept: Some(kept) })
}

fn activated_model(registry: &Registry, active: ModelDigest) -> anyhow::Result<OpenModel> {
    registry.load(active).with_context(|| {
        format!(
            "the model that was activated last cannot be served; remove {MODELS}/active.toml from \
             store.data_dir to serve what section [model] says"
        )
    })
}

fn configured_model(config: &Config, registry: &Registry) -> anyhow::Result<OpenModel> {
    let model = open_model(config)?;
    if let Some(name) = Path::new(&config.model.path).file_name() {
        registry.add(&model, &Provenance::now(name.to_string_lossy()))?;
    }
    Ok(model)
}

fn log_choice(config: &Config, registry: &Registry, model: ModelDigest) {
    let is_configured = !config.model.path.is_empty() || config.model.preset != Preset::None;
    match registry.active() {
        None => tracing::info!(%model, "serving the configured model: none was ever activated"),
        Some(_) if is_configured => {
            tracing::info!(%model, "serving the model that was activated last, not the one of section [model]");
        }
        Some(_) => tracing::info!(%model, "serving the model that was activated last"),
    }
}

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
        ("", Preset::Tiny) => Ok(seeded_model(Architecture::tiny())),
        ("", Preset::Small) => Ok(seeded_model(Architecture::small())),
        ("", Preset::VitBase) => Ok(seeded_model(Architecture::vit_base())),
        (path, _) => {
            let heads = Some(config.model.heads).filter(|heads| *heads > 0);
            let architecture = ArchitectureHints { heads, ..ArchitectureHints::default() };
            let hints = Hints { feature_point, architecture, weights: Choice::new(&config.model.weights) };
            let (model, origin) = OpenModel::open_with_origin(Path::new(path), &hints)?;
            if !origin.is_plain() {
                tracing::info!(path, "the weights are {origin}");
            }
            Ok(model)
        }
    }
}
