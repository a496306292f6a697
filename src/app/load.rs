//! Turns the configuration's `[model]` and `[encoder]` into encoders that can be put on the device threads.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::{anyhow, bail};

use super::threads::{threads_per_worker, worker_count};
use super::{KeptModels, LoadedModel, ServedModels};
use crate::arithmetic::{Choice, Kernel, Pace, Precision};
use crate::chip::ChipForm;
use crate::config::{self, Config, Linear};
use crate::embedding::ModelDigest;
use crate::encoder::{EncoderFactory, LoadError, Members, ModelCard};
use crate::metrics;
use crate::model::{ChoiceError, Chosen, Device, LayerShape, SharedWeights, TorchSettings, Wanted, choose};
use crate::postgres::Cluster;
use crate::processor::Processor;
use crate::registry::{
    ActiveModel, Condition, Kept, Preset, Provenance, Registry, RegistryError, RegistryLimits,
    calibrator_beside,
};
use crate::weights::any::{AnyDescription, AnyModel};
use crate::weights::ensemble::Ensemble;
use crate::weights::family::{self, Architecture, ArchitectureHints, Family, FeaturePoint};
use crate::weights::native::Description;
use crate::weights::open::{Hints, OpenModel};
use crate::weights::quantized::check_family;
use crate::weights::seed::seeded;
use crate::weights::wrapper::WeightsChoice;

/// Folder of the models within the data folder.
const MODELS: &str = "models";
/// Folder of the copies of shared models within the data folder.
const MODEL_COPIES: &str = "model-copies";

/// Opens the models under the data folder, which are copies if servers share them in `cluster`, and chooses the one that
/// serves first: the one that was activated last, or the configured one if none ever was. A configured model that is not
/// a preset is stored with the others.
///
/// # Errors
/// The models cannot be opened, the chosen one cannot be read or verified, or its device is not available.
pub fn open_models(config: &Config, cluster: Option<Cluster>) -> anyhow::Result<ServedModels> {
    let kernels = Arc::new(Kernels::default());
    if config.store.data_dir.is_empty() {
        let _early = kernels.choose_early(config, likely_network(config));
        return Ok(kernels.put_on_device(config, open_model(config)?)?.into());
    }
    let limits = RegistryLimits { count_max: config.models.count_max, bytes_max: config.models.bytes_max };
    let data_dir = Path::new(&config.store.data_dir);
    let registry = match cluster {
        Some(cluster) => Registry::share(&data_dir.join(MODEL_COPIES), limits, cluster)?,
        None => Registry::open(&data_dir.join(MODELS), limits)?,
    };
    let active = registry.active().and_then(|active| stored_network(config, &registry, active.digest));
    let _early = kernels.choose_early(config, active.unwrap_or_else(|| likely_network(config)));
    let model = match registry.active() {
        Some(active) => activated_model(config, &registry, active)?,
        None => {
            if let Some(cause) = registry.active_damage() {
                tracing::error!(cause, "it is not known which model was activated last");
            }
            configured_model(config, &registry)?
        }
    };
    let first = kernels.put_on_device(config, model)?;
    log_choice(config, &registry, first.card.digest);
    let settings = config.clone();
    let loader =
        move |model| kernels.put_on_device(&settings, model).map_err(|cause| LoadError(format!("{cause:#}")));
    let kept = KeptModels { registry: Arc::new(registry), loader: Arc::new(loader), preset: preset(config) };
    Ok(ServedModels { first, kept: Some(kept) })
}

/// The configured preset, which is not in the registry: it can be rebuilt at any time.
fn preset(config: &Config) -> Option<Preset> {
    let made = config.clone();
    let make = move || open_model(&made).map_err(|cause| LoadError(format!("{cause:#}")));
    (config.model.path.is_empty() && config.model.preset != config::Preset::None).then(|| Preset::new(make))
}

/// The network of a stored model and its precision, as far as the registry knows.
fn stored_network(
    config: &Config,
    registry: &Registry,
    digest: ModelDigest,
) -> Option<(Architecture, Precision)> {
    match registry.get(digest).ok()?.condition {
        Condition::Intact(facts) => facts.networks.first().map(|network| described_network(config, network)),
        Condition::Damaged(_) => None,
    }
}

fn described_network(config: &Config, described: &Description) -> (Architecture, Precision) {
    let precision = described.quantization.as_ref().map_or(config.encoder.precision, |_| Precision::Int8);
    (described.architecture, precision)
}

/// A model that the registry stores, or the rebuilt preset.
fn model_of(config: &Config, registry: &Registry, digest: ModelDigest) -> Result<AnyModel, RegistryError> {
    let preset = preset(config).filter(|_| registry.get(digest).is_err());
    preset.and_then(|preset| preset.make(digest)).map_or_else(|| registry.load(digest), Ok)
}

/// The model that was activated last. If it is damaged, the model before it or the configured one is used instead, so
/// that galleries and everything else that does not need it can be served.
fn activated_model(config: &Config, registry: &Registry, active: ActiveModel) -> anyhow::Result<AnyModel> {
    let ActiveModel { digest, former } = active;
    let cause = match model_of(config, registry, digest) {
        Ok(model) => return Ok(model),
        Err(cause) => cause,
    };
    tracing::error!(model = %digest, %cause, "the model that was activated last cannot be served");
    if former != digest
        && let Ok(model) = model_of(config, registry, former)
    {
        tracing::error!(model = %former, "serving the model that was active before it");
        return Ok(model);
    }
    configured_model(config, registry).map_err(|other| {
        anyhow!(
            "the model that was activated last cannot be served ({cause}), nor the configured one ({other:#})"
        )
    })
}

fn configured_model(config: &Config, registry: &Registry) -> anyhow::Result<AnyModel> {
    let model = open_model(config)?;
    if let Some(name) = Path::new(&config.model.path).file_name() {
        let calibrator = calibrator_beside(Path::new(&config.model.path), model.digest())?;
        let provenance = Provenance::now(name.to_string_lossy());
        registry.add(&model, Kept { provenance: &provenance, calibrator: calibrator.as_ref() })?;
    }
    Ok(model)
}

fn log_choice(config: &Config, registry: &Registry, model: ModelDigest) {
    let is_configured = !config.model.path.is_empty() || config.model.preset != config::Preset::None;
    match registry.active() {
        Some(active) if active.digest != model => {
            tracing::error!(%model, "serving another model than the one that was activated last");
        }
        Some(_) if is_configured => {
            tracing::info!(%model, "serving the model that was activated last, not the one of section [model]");
        }
        Some(_) => tracing::info!(%model, "serving the model that was activated last"),
        None if registry.active_damage().is_some() => tracing::warn!(%model, "serving the configured model"),
        None => tracing::info!(%model, "serving the configured model: none was ever activated"),
    }
}

/// Reads the configured model and puts it on its device.
///
/// # Errors
/// No model is configured, it cannot be read or is inconsistent, or its device is not available.
pub fn load_model(config: &Config) -> anyhow::Result<LoadedModel> {
    let model = open_model(config)?;
    put_on_device(config, model)
}

/// Puts a model on the configured device.
///
/// # Errors
/// The device is not available, or cannot run what `[encoder]` asks for.
pub fn put_on_device(config: &Config, model: impl Into<AnyModel>) -> anyhow::Result<LoadedModel> {
    Kernels::default().put_on_device(config, model.into())
}

/// Kernels by the shape of their layers and their precision, each chosen once: later models of a shape are loaded while the server runs.
#[derive(Default)]
struct Kernels(Mutex<HashMap<(LayerShape, Precision), Chosen>>);

/// A choice on a thread of its own, which is waited for: libtorch must not compute while the process exits.
struct EarlyChoice(Option<JoinHandle<()>>);

impl Drop for EarlyChoice {
    fn drop(&mut self) {
        // A panic in it is that of whoever needs the choice.
        let _ = self.0.take().map(JoinHandle::join);
    }
}

impl Kernels {
    /// Chooses the kernels of the model that will probably be served while it is still being read. Whoever needs them
    /// waits; where the guess was wrong, or the choice fails, they choose themselves.
    fn choose_early(
        self: &Arc<Self>,
        config: &Config,
        (likely, precision): (Architecture, Precision),
    ) -> EarlyChoice {
        if config.encoder.device != "cpu" {
            return EarlyChoice(None);
        }
        let (kernels, config, (begun, has_begun)) = (Arc::clone(self), config.clone(), mpsc::channel());
        let choose = move || {
            let known = kernels.0.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = begun.send(());
            // An error is that of whoever needs the choice.
            let _ = Self::choose_among(known, &config, precision, &likely);
        };
        // Without the thread, they are chosen later.
        let thread = thread::Builder::new().name("kernels".into()).spawn(choose).ok();
        if thread.is_some() {
            let _ = has_begun.recv();
        }
        EarlyChoice(thread)
    }

    fn put_on_device(&self, config: &Config, model: AnyModel) -> anyhow::Result<LoadedModel> {
        match model {
            AnyModel::Network(model) => self.put_network_on_device(config, model),
            AnyModel::Ensemble(ensemble) => self.put_ensemble_on_device(config, ensemble),
        }
    }

    fn put_ensemble_on_device(&self, config: &Config, ensemble: Ensemble) -> anyhow::Result<LoadedModel> {
        let Ensemble { digest, members, composition } = ensemble;
        let known = Arc::new(Members::new(composition, members.iter().map(|member| member.digest)));
        let loaded = members.into_iter().map(|member| self.put_network_on_device(config, member));
        let loaded = loaded.collect::<anyhow::Result<Vec<LoadedModel>>>()?;
        // Members read the same chips, in the same precision.
        let LoadedModel { card, workers, .. } = &loaded[0];
        let (dimension, members) = (composition.dimension(), Some(Arc::clone(&known)));
        let card = ModelCard { digest, dimension, members, ..card.clone() };
        let (workers, bytes) = (*workers, loaded.iter().map(|member| member.bytes).sum());
        let factory = known.encoder(loaded.into_iter().map(|member| member.factory).collect());
        Ok(LoadedModel { card, factory, workers, bytes })
    }

    fn put_network_on_device(&self, config: &Config, model: OpenModel) -> anyhow::Result<LoadedModel> {
        let device = Device::open(&config.encoder.device)?;
        let precision = precision_of(config, &model);
        let ChipForm { size: chip_size, sar_stretch } = model.architecture.preprocessing().form();
        let card = ModelCard {
            digest: model.digest,
            dimension: model.architecture.embed_dim(),
            chip_size,
            sar_stretch,
            precision,
            members: None,
        };
        let chosen =
            device.is_cpu().then(|| self.choose(config, precision, &model.architecture)).transpose()?;
        let settings = TorchSettings {
            device,
            precision,
            kernels: match &chosen {
                Some(chosen) => chosen.choice.clone(),
                None => on_gpu(config, &model)?,
            },
            threads: threads_per_worker(config),
            feature_point: model.feature_point,
        };
        let workers = worker_count(config);
        let bytes = resident_bytes(&model, &settings);
        let layers = model.quantized.map(|quantized| quantized.layers).unwrap_or_default();
        let weights = SharedWeights::with_layers(model.architecture, model.tensors, &layers, settings);
        let (make, told) = (weights.factory(), Once::new());
        let factory: EncoderFactory = Arc::new(move |worker| {
            let encoder = make(worker)?;
            // Only now is it certain that the model will be used.
            told.call_once(|| chosen.iter().for_each(|chosen| tell(precision, chosen)));
            Ok(encoder)
        });
        Ok(LoadedModel { card, factory, workers, bytes })
    }

    fn choose(
        &self,
        config: &Config,
        precision: Precision,
        architecture: &Architecture,
    ) -> anyhow::Result<Chosen> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Self::choose_among(known, config, precision, architecture)
    }

    fn choose_among(
        mut known: MutexGuard<'_, HashMap<(LayerShape, Precision), Chosen>>,
        config: &Config,
        precision: Precision,
        architecture: &Architecture,
    ) -> anyhow::Result<Chosen> {
        let shape = LayerShape::of(architecture);
        if let Some(chosen) = known.get(&(shape, precision)) {
            return Ok(chosen.clone());
        }
        let chosen = choose_kernels(config, precision, architecture)?;
        known.insert((shape, precision), chosen.clone());
        Ok(chosen)
    }
}

/// A model in int8 is computed in it, whatever is configured for others.
fn precision_of(config: &Config, model: &OpenModel) -> Precision {
    if model.quantized.is_some() { Precision::Int8 } else { config.encoder.precision }
}

fn on_gpu(config: &Config, model: &OpenModel) -> anyhow::Result<Choice> {
    if model.quantized.is_some() {
        bail!("model {} is in int8, which needs encoder.device \"cpu\"", model.digest);
    }
    if config.encoder.precision == Precision::Int8 {
        bail!("encoder.precision \"int8\" needs encoder.device \"cpu\"");
    }
    let only_here = match config.encoder.linear {
        Linear::Auto | Linear::Aten => None,
        Linear::Onednn => Some(Kernel::OneDnn),
        Linear::Tiles => Some(Kernel::Tiles),
    };
    if let Some(kernel) = only_here {
        bail!("encoder.linear \"{}\" needs encoder.device \"cpu\"", kernel.name());
    }
    Ok(Choice::only(Kernel::Aten, config.encoder.batch_max))
}

/// Chooses the kernel for the linear layers of a network in `precision` on the CPU, as `[encoder]` asks.
///
/// # Errors
/// The network has no layers in that precision, no kernel is usable, or only one so slow that it cannot have been
/// intended.
pub fn choose_kernels(
    config: &Config,
    precision: Precision,
    architecture: &Architecture,
) -> anyhow::Result<Chosen> {
    if precision == Precision::Int8 {
        check_family(architecture).map_err(|cause| anyhow!("{cause}; set encoder.precision to \"f32\""))?;
    }
    let wanted = Wanted {
        precision,
        kernel: match config.encoder.linear {
            Linear::Auto => None,
            Linear::Aten => Some(Kernel::Aten),
            Linear::Onednn => Some(Kernel::OneDnn),
            Linear::Tiles => Some(Kernel::Tiles),
        },
        threads: threads_per_worker(config),
        batch_max: config.encoder.batch_max,
        speed_min: config.encoder.precision_speed_min,
    };
    choose(LayerShape::of(architecture), &wanted).map_err(|cause| {
        let way_out = match cause {
            ChoiceError::NotHere(_) => "set encoder.linear to \"auto\", or encoder.precision to \"f32\"",
            ChoiceError::None { .. } => "set encoder.precision to \"f32\"",
            ChoiceError::TooSlow(_) => {
                "set encoder.precision to \"f32\", or encoder.precision_speed_min to 0 to serve all the same"
            }
        };
        anyhow!("{cause}; {way_out}")
    })
}

/// The network of the configured model and its precision, as far as they can be determined without reading its weights;
/// otherwise the authors' network.
pub fn likely_network(config: &Config) -> (Architecture, Precision) {
    let preset = |preset| (Family::default().preset(preset), config.encoder.precision);
    match config.model.preset {
        config::Preset::Tiny => preset(family::Preset::Tiny),
        config::Preset::Small => preset(family::Preset::Small),
        config::Preset::None if config.model.path.is_empty() => preset(family::Preset::VitBase),
        config::Preset::None | config::Preset::VitBase => {
            let described = AnyDescription::read(Path::new(&config.model.path)).ok();
            let first = described.as_ref().and_then(|described| described.networks.first());
            first.map_or(preset(family::Preset::VitBase), |network| described_network(config, network))
        }
    }
}

/// Reports in log and metrics which kernel computes linear layers, and why.
fn tell(precision: Precision, Chosen { choice, pace }: &Chosen) {
    let (processor, level) = (Processor::here(), Processor::here().level());
    let sets = processor.sets().collect::<Vec<_>>().join(" ");
    let timings: Vec<String> = choice
        .timings
        .iter()
        .map(|timing| format!("{} {} {:.2?}", timing.kernel.name(), timing.chips, timing.took))
        .collect();
    tracing::info!(
        processor = processor.name(), isa = %level, sets, precision = precision.name(), kernels = %choice,
        timings = timings.join(", "), "chose how linear layers are computed"
    );
    if let Some(pace) = pace.filter(Pace::is_slow) {
        tracing::warn!(%pace, "encoder.precision = \"f32\" would be faster");
    }
    for timing in &choice.timings {
        metrics::linear_timing(timing.kernel.name(), precision.name(), timing.chips, timing.took);
    }
    for (chips, chosen) in choice.kernels() {
        for kernel in Kernel::of(precision) {
            metrics::linear_kernel(kernel.name(), precision.name(), level.name(), *chips, kernel == chosen);
        }
    }
}

/// The weights, once for each kernel that reads them in an order of its own. Workers share them.
fn resident_bytes(model: &OpenModel, settings: &TorchSettings) -> u64 {
    let kernels = Kernel::of(settings.precision).iter();
    let used = kernels.filter(|kernel| settings.kernels.largest(**kernel).is_some());
    let bytes: u64 = used.map(|kernel| kernel.weight_bytes(settings.precision)).sum();
    model.architecture.parameters().saturating_mul(bytes)
}

/// Reads the configured model, or makes the configured preset from its seed.
///
/// # Errors
/// No model is configured, it cannot be read, or it is inconsistent.
pub fn open_model(config: &Config) -> anyhow::Result<AnyModel> {
    let feature_point = match config.model.feature {
        config::Feature::Auto => None,
        config::Feature::BeforeNeck => Some(FeaturePoint::BeforeNeck),
        config::Feature::AfterNeck => Some(FeaturePoint::AfterNeck),
    };
    let seeded_model = |preset| {
        let architecture = Family::default().preset(preset);
        let tensors = seeded(&architecture, config.model.seed);
        let feature_point = feature_point.unwrap_or_else(|| architecture.feature_point());
        OpenModel::new(architecture, feature_point, tensors).into()
    };
    match (config.model.path.as_str(), config.model.preset) {
        ("", config::Preset::None) => {
            bail!("no model: set model.path, or model.preset to try the service untrained")
        }
        ("", config::Preset::Tiny) => Ok(seeded_model(family::Preset::Tiny)),
        ("", config::Preset::Small) => Ok(seeded_model(family::Preset::Small)),
        ("", config::Preset::VitBase) => Ok(seeded_model(family::Preset::VitBase)),
        (path, _) => {
            let heads = Some(config.model.heads).filter(|heads| *heads > 0);
            let architecture = ArchitectureHints { heads, ..ArchitectureHints::default() };
            let hints =
                Hints { feature_point, architecture, weights: WeightsChoice::new(&config.model.weights) };
            let (model, origin) = AnyModel::open_with_origin(Path::new(path), &hints)?;
            if !origin.is_plain() {
                tracing::info!(path, "the weights are {origin}");
            }
            Ok(model)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_chosen_early_are_there_for_whoever_asks_next_and_a_wrong_guess_changes_nothing() {
        let mut config = Config::default();
        config.encoder.batch_max = 1;
        let [tiny, small] = [family::Preset::Tiny, family::Preset::Small];
        let [tiny, small] = [tiny, small].map(|preset| Family::default().preset(preset));
        let kernels = Arc::new(Kernels::default());
        drop(kernels.choose_early(&config, (tiny, Precision::F32)));
        let early =
            kernels.0.lock().expect("no panic").get(&(LayerShape::of(&tiny), Precision::F32)).cloned();
        // Another choice would have other timings.
        let chosen = |architecture| kernels.choose(&config, Precision::F32, architecture);
        assert_eq!(chosen(&tiny).expect("f32 runs everywhere"), early.expect("chosen"));
        chosen(&small).expect("another shape is timed when it is needed");
        assert_eq!(kernels.0.lock().expect("no panic").len(), 2);
    }
}
