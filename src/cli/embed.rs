//! `shipreid embed`: files in, embeddings out, as a table, JSON lines or a numpy array.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use npyz::WriterBuilder;
use shipreid::wire::embed_result::Outcome;
use shipreid::wire::{EmbedRequest, EmbedResponse, EmbedResult, EmbedStreamResponse, Priority};

use super::chips::{ChipFile, ChipFlags};
use super::destination::ForceFlag;
use super::json::json;
use super::number::seconds;
use super::{ServerFlag, digest, output};

/// Values of an embedding that a table shows.
const SHOWN: usize = 4;

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid embed 0003_RGB.tif 0003_SAR.tif
  shipreid embed --modality sar --pixel-size 1.25 chip.png --json
  shipreid embed chips/ --npy embeddings.npy")]
pub struct Embed {
    #[command(flatten)]
    chips: ChipFlags,
    #[command(flatten)]
    server: ServerFlag,
    /// Digest of the model, or at least its first 8 digits; default: the active model.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "DIGEST")]
    model: String,
    /// Chips in one call.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Seconds that one call may take.
    #[arg(long, default_value_t = 120.0, value_name = "SECONDS", value_parser = seconds)]
    timeout: f64,
    /// Prints a JSON object for each file: EmbedStreamResponse of the contract, with the file as chip_id.
    #[arg(long, conflicts_with = "npy")]
    json: bool,
    /// Writes a float32 array [files, dimension] for numpy, unless a chip fails.
    #[arg(long, value_name = "FILE")]
    npy: Option<PathBuf>,
    #[command(flatten)]
    force: ForceFlag,
}

impl Embed {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        self.npy.iter().try_for_each(|file| self.force.check(file))?;
        let chips = self.chips.read()?;
        let timeout = Duration::from_secs_f64(self.timeout);
        let client = self.server.connect().await?;
        let model = digest::resolve(&client, &self.model).await?;
        let progress = progress(chips.len());
        let mut results = Vec::new();
        for batch in chips.chunks(usize::from(self.batch)) {
            let request = EmbedRequest {
                chips: batch.iter().map(|file| file.chip.clone()).collect(),
                model: model.clone(),
                priority: Priority::Bulk.into(),
                ..EmbedRequest::default()
            };
            let answer = client.embed(request, Some(timeout)).await?;
            if self.json {
                progress.suspend(|| print_json(batch, &answer));
            }
            results.extend(answer.results);
            progress.set_position(results.len() as u64);
        }
        progress.finish_and_clear();
        let failed = results.iter().filter(|result| embedding(result).is_none()).count();
        match &self.npy {
            Some(path) if failed == 0 => {
                self.force.write(path, |file| write_npy(file, &results))?;
                output::remark(format_args!("wrote {} embeddings to {}", results.len(), path.display()));
            }
            _ if self.json => {}
            _ => output::say(table(&chips, &results)),
        }
        if failed > 0 {
            bail!("{failed} of {} chips have no embedding", chips.len());
        }
        Ok(())
    }
}

/// A progress bar on a terminal; hidden elsewhere or for work that finishes immediately.
pub(super) fn progress(chips: usize) -> ProgressBar {
    if chips < 2 {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} chips, {per_sec}, {eta} left")
        .expect("a constant template");
    ProgressBar::new(chips as u64).with_style(style)
}

fn embedding(result: &EmbedResult) -> Option<&[f32]> {
    match &result.outcome {
        Some(Outcome::Embedding(embedding)) => Some(&embedding.values),
        _ => None,
    }
}

/// The error of a chip, or its warnings.
fn remarks(result: &EmbedResult) -> Vec<String> {
    let warnings = result.warnings.iter().map(|warning| format!("{}: {}", warning.code, warning.message));
    let error = match &result.outcome {
        Some(Outcome::Error(error)) => Some(format!("{}: {}", error.reason, error.message)),
        _ => None,
    };
    error.into_iter().chain(warnings).collect()
}

fn table(files: &[ChipFile], results: &[EmbedResult]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["file", "modality", "embedding", "remarks"]);
    for (file, result) in files.iter().zip(results) {
        let values = embedding(result).map_or_else(String::new, |values| {
            let first: Vec<_> = values.iter().take(SHOWN).map(|value| format!("{value:+.4}")).collect();
            format!("{} … ({})", first.join(" "), values.len())
        });
        let remarks = remarks(result).join("\n");
        table.add_row([file.path.display().to_string(), file.modality.to_string(), values, remarks]);
    }
    table
}

fn print_json(files: &[ChipFile], answer: &EmbedResponse) {
    for (file, result) in files.iter().zip(&answer.results) {
        // A chip without an embedding was embedded by no model.
        let model = embedding(result).map_or_else(String::new, |_| answer.model.clone());
        let chip_id = file.path.display().to_string();
        let result = Some(result.clone());
        output::say(json(&EmbedStreamResponse { chip_id, result, model, timings: None }));
    }
}

fn write_npy(file: &mut BufWriter<File>, results: &[EmbedResult]) -> anyhow::Result<()> {
    let rows: Vec<&[f32]> = results.iter().filter_map(embedding).collect();
    let dimension = rows.first().map_or(0, |row| row.len());
    let shape = [rows.len() as u64, dimension as u64];
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
    writer.extend(rows.concat())?;
    Ok(writer.finish()?)
}
