//! `shipreid bench forward`: forward passes on demand, for timing next to those of another program.

use std::fs;
use std::io::{self, BufRead as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde_json::{Value, json};
use shipreid::app::{self, LoadedModel};
use shipreid::chip::{self, Chip, ImageLimits, Preprocessing, View};
use shipreid::embedding::Embedding;
use shipreid::encoder::{Batch, Encoder};
use shipreid::weights::native::tensor_bytes;
use shipreid::weights::tensors::{HostTensor, NamedTensors};

use super::bare::process_cpu;
use super::chips::{ChipFile, ChipFlags};
use super::destination::check_unused;
use super::{ConfigFlags, Failure, output, prepare};

#[derive(Args)]
#[command(after_help = "\
Answers lines on standard input: \"time CHIPS PASSES\" with the seconds of that many forward passes of so many
chips, which were decoded before, \"embed CHIPS\" with their embeddings. Its first line of output comes after the first
embedding.

Example: yes time 8 3 | head -5 | shipreid bench forward ../shared/data/hoss165/query --set model.preset=vit_base")]
pub struct Forward {
    #[command(flatten)]
    chips: ChipFlags,
    #[command(flatten)]
    config: ConfigFlags,
    /// Writes the model, and the chips as it reads them, into this new folder, for another program that computes the
    /// same.
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

impl Forward {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.config.load()?;
        self.write.as_deref().map_or(Ok(()), check_unused)?;
        prepare(app::threads_per_worker(&config))?;
        let model = app::open_model(&config).map_err(Failure::Unusable)?;
        let preprocessing = model.preprocessing();
        let limits = ImageLimits { bytes_max: config.chips.bytes_max, pixels_max: config.chips.pixels_max };
        let chips = decoded(&self.chips, &preprocessing, &limits)?;
        if let Some(folder) = &self.write {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            model.save(&folder.join("model"), "shipreid bench forward")?;
            write_chips(&folder.join("chips.safetensors"), &chips, &preprocessing)?;
        }
        let mut passes = Passes::new(app::put_on_device(&config, model).map_err(Failure::Unusable)?, chips)?;
        passes.embed(1)?;
        output::say(json!({ "cpu_seconds": process_cpu().as_secs_f64() }));
        for line in io::stdin().lock().lines() {
            output::say(passes.answer(&line?)?);
        }
        Ok(())
    }
}

fn decoded(
    files: &ChipFlags,
    preprocessing: &Preprocessing,
    limits: &ImageLimits,
) -> anyhow::Result<Vec<Chip>> {
    let decode = |file: ChipFile| {
        let view = View::plain(file.modality);
        let prepared = chip::prepare(&file.chip.image, &view, preprocessing.form(), limits);
        Ok(prepared.with_context(|| file.path.display().to_string())?.chip)
    };
    files.read()?.into_iter().map(decode).collect()
}

/// An encoder and the chips that it embeds.
struct Passes {
    encoder: Box<dyn Encoder>,
    model: LoadedModel,
    chips: Vec<Chip>,
}

impl Passes {
    fn new(model: LoadedModel, chips: Vec<Chip>) -> anyhow::Result<Self> {
        let encoder = (model.factory)(0).map_err(|cause| anyhow!(cause))?;
        Ok(Self { encoder, model, chips })
    }

    /// A batch of the first chips, from the beginning again where there are fewer.
    fn batch(&self, count: usize) -> Batch {
        let chips = self.chips.iter().cycle().take(count).cloned().map(Into::into);
        Batch { model: self.model.card.digest, chips: chips.collect() }
    }

    fn embed(&mut self, count: usize) -> anyhow::Result<Vec<Embedding>> {
        let batch = self.batch(count);
        Ok(self.encoder.forward(&batch)?)
    }

    fn answer(&mut self, line: &str) -> anyhow::Result<Value> {
        match line.parse()? {
            Request::Time { chips, passes } => self.timed(chips, passes),
            Request::Embed { chips } => {
                let embeddings = self.embed(chips)?;
                let embeddings: Vec<&[f32]> = embeddings.iter().map(Embedding::as_slice).collect();
                Ok(json!({ "embeddings": embeddings }))
            }
        }
    }

    fn timed(&mut self, chips: usize, passes: usize) -> anyhow::Result<Value> {
        let batch = self.batch(chips);
        let (started, cpu) = (Instant::now(), process_cpu());
        for _ in 0..passes {
            self.encoder.forward(&batch)?;
        }
        let (seconds, cpu) = (started.elapsed().as_secs_f64(), (process_cpu() - cpu).as_secs_f64());
        Ok(json!({ "images": chips * passes, "seconds": seconds, "cpu_seconds": cpu }))
    }
}

/// Writes `pixels` [B, 3, height, width], normalised, and `size_tokens` [B, 3] as safetensors.
fn write_chips(file: &Path, chips: &[Chip], preprocessing: &Preprocessing) -> anyhow::Result<()> {
    let (count, size) = (chips.len(), preprocessing.size);
    let pixels = HostTensor {
        shape: vec![count, 3, size.height, size.width],
        values: chips.iter().flat_map(|chip| planes(chip, preprocessing)).collect(),
    };
    let size_tokens =
        HostTensor { shape: vec![count, 3], values: chips.iter().flat_map(Chip::size_token).collect() };
    let tensors = NamedTensors::from([("pixels".into(), pixels), ("size_tokens".into(), size_tokens)]);
    fs::write(file, tensor_bytes(&tensors)).with_context(|| file.display().to_string())
}

/// [3, height, width], normalised.
fn planes(chip: &Chip, preprocessing: &Preprocessing) -> Vec<f32> {
    let plane = |channel| chip.pixels().iter().skip(channel).step_by(3).map(move |value| (*value, channel));
    (0..3).flat_map(plane).map(|(value, channel)| preprocessing.normalised(value, channel)).collect()
}

/// A line of standard input; every number is at least 1.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Request {
    Time { chips: usize, passes: usize },
    Embed { chips: usize },
}

impl FromStr for Request {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let mut words = line.split_whitespace();
        let verb = words.next();
        let numbers: Option<Vec<usize>> = words.map(|word| word.parse().ok().filter(|n| *n > 0)).collect();
        match (verb, numbers.as_deref()) {
            (Some("time"), Some(&[chips, passes])) => Ok(Self::Time { chips, passes }),
            (Some("embed"), Some(&[chips])) => Ok(Self::Embed { chips }),
            _ => bail!("{line:?} is neither \"time CHIPS PASSES\" nor \"embed CHIPS\", with numbers from 1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use shipreid::chip::{ChipSize, Modality};

    use super::*;

    #[test]
    fn a_line_asks_for_times_or_embeddings() {
        let parse = |line: &str| line.parse::<Request>();
        assert_eq!(parse("time 8 3").expect("valid"), Request::Time { chips: 8, passes: 3 });
        assert_eq!(parse("embed 8").expect("valid"), Request::Embed { chips: 8 });
        for line in [
            "",
            "time",
            "time 8",
            "time 8 0",
            "time 0 3",
            "time 8 3 1",
            "embed",
            "embed 0",
            "embed -1",
            "8 3",
        ] {
            let refused = parse(line).expect_err(line).to_string();
            assert!(refused.contains("is neither \"time CHIPS PASSES\""), "{refused}");
        }
    }

    #[test]
    fn pixels_are_written_plane_by_plane() {
        let size = ChipSize { height: 1, width: 2 };
        let chip = Chip::new(vec![0, 51, 102, 153, 204, 255], size, Modality::Optical, [0.0; 3]);
        let plain = Preprocessing { mean: [0.0; 3], deviation: [1.0; 3], ..Preprocessing::reference(size) };
        let expected = [0_u8, 153, 51, 204, 102, 255].map(|value| f32::from(value) / 255.0);
        assert_eq!(planes(&chip, &plain), expected);
    }
}
