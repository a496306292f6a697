//! `shipreid model quantize`: writes a model whose linear layers are in int8.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use shipreid::app;
use shipreid::arithmetic::{COSINE_MEAN_MIN, COSINE_MIN};
use shipreid::config::Config;
use shipreid::embedding::Embedding;
use shipreid::registry::{PROVENANCE, Provenance};
use shipreid::synth::{self, SynthPlan};
use shipreid::weights::open::OpenModel;
use shipreid::weights::quantize::quantize;

use super::destination::ForceFlag;
use super::eval::TestSet;
use super::model_file::{HintFlags, describe, open, replaces};
use super::{Failure, output, prepare};

/// What is embedded in both precisions, unless a test set is named: half of the ships are its test set.
const SYNTHETIC: SynthPlan = SynthPlan { ships: 16, pairs: 0, views: 2, seed: 1 };

#[derive(Args)]
#[command(after_help = "\
Example: shipreid model quantize models/transoss --out models/transoss-int8

The model is one of its own, with its own digest, which depends on its source's. It runs in int8 whatever
encoder.precision says.")]
pub struct Quantize {
    /// A .pth, a .safetensors, a model folder or an exported model, in f32.
    model: PathBuf,
    /// The folder to create.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    force: ForceFlag,
    /// A HOSS test set to compare both models on; default: 32 synthetic chips.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    #[command(flatten)]
    hints: HintFlags,
}

impl Quantize {
    pub(super) fn run(self) -> Result<(), Failure> {
        let replaces = replaces(&self.out, &self.force)?;
        let config = config();
        prepare(app::threads_per_worker(&config))?;
        let (source, origin) = open(&self.model, &self.hints)?;
        let rounded = quantize(source.clone()).with_context(|| self.model.display().to_string());
        let rounded = rounded.map_err(Failure::Unusable)?;
        let cosines = self.compare(&config, source, rounded.clone())?;
        cosines.check().map_err(Failure::Unusable)?;
        if replaces {
            fs::remove_dir_all(&self.out).with_context(|| self.out.display().to_string())?;
        }
        self.write(&rounded)?;
        describe(&rounded, &origin);
        output::say(format_args!("cosine      {cosines}"));
        output::say(format_args!("written to  {}", self.out.display()));
        Ok(())
    }

    /// Compares both models on the test set that was named, or on synthetic chips.
    fn compare(&self, config: &Config, source: OpenModel, rounded: OpenModel) -> Result<Cosines, Failure> {
        if let Some(folder) = &self.data {
            let set = TestSet::read(folder).map_err(Failure::Unusable)?;
            return Ok(Cosines::measure(config, source, rounded, &set)?);
        }
        let folder = tempfile::tempdir()?;
        let out = folder.path().join("chips");
        synth::write(&SYNTHETIC, &out, &mut || ())?;
        Ok(Cosines::measure(config, source, rounded, &TestSet::read(&out.join("synthetic_hoss"))?)?)
    }

    fn write(&self, model: &OpenModel) -> anyhow::Result<()> {
        let name = self.model.file_name().unwrap_or("model".as_ref()).to_string_lossy();
        let provenance = Provenance {
            parent: model.quantized.as_ref().map(|quantized| quantized.origin.source),
            ..Provenance::now(format!("{name} in int8"))
        };
        model.save(&self.out, &provenance.origin)?;
        let file = self.out.join(PROVENANCE);
        fs::write(&file, provenance.to_toml()).with_context(|| file.display().to_string())
    }
}

/// The defaults, on the CPU; how fast int8 is here does not matter.
fn config() -> Config {
    let mut config = Config::default();
    config.encoder.precision_speed_min = 0.0;
    config
}

/// How near the embeddings of two models are, chip by chip.
struct Cosines {
    chips: usize,
    mean: f32,
    lowest: f32,
}

impl Cosines {
    fn measure(
        config: &Config,
        source: OpenModel,
        rounded: OpenModel,
        set: &TestSet,
    ) -> anyhow::Result<Self> {
        let embed = |model| -> anyhow::Result<Vec<Embedding>> {
            let embedded = set.embed_locally(&app::put_on_device(config, model)?)?;
            Ok(embedded.images().map(|(_, embedding)| embedding.clone()).collect())
        };
        let (exact, rounded) = (embed(source)?, embed(rounded)?);
        let cosines: Vec<f32> = exact.iter().zip(&rounded).map(|(a, b)| a.cosine(b)).collect();
        let chips = cosines.len();
        let mean = cosines.iter().sum::<f32>() / chips.max(1) as f32;
        Ok(Self { chips, mean, lowest: cosines.into_iter().fold(1.0, f32::min) })
    }

    /// # Errors
    /// The models differ too much for one to stand for the other.
    fn check(&self) -> anyhow::Result<()> {
        // The comparison also refuses a mean that is not a number.
        if self.mean >= COSINE_MEAN_MIN && self.lowest >= COSINE_MIN {
            return Ok(());
        }
        Err(anyhow!(
            "in int8 the model differs too much from its source: cosine {self}, where {COSINE_MEAN_MIN} and {COSINE_MIN} \
             are needed; serve the source in f32 or bf16"
        ))
    }
}

impl std::fmt::Display for Cosines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { chips, mean, lowest } = self;
        write!(f, "{mean:.5} on average, {lowest:.5} at least, on {chips} chips")
    }
}
