//! `shipreid demo`: the whole way once, in one command.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use comfy_table::{Table, presets};
use shipreid::chip::Modality;
use shipreid::client::{self, Client};
use shipreid::config::{Config, Sources};
use shipreid::embedding::Embedding;
use shipreid::synth::{OpticalImage, SarImage, Ship};
use shipreid::wire::embed_result::Outcome;
use shipreid::wire::{Chip, EmbedRequest};
use shipreid::{app, metrics, model, telemetry};
use tokio::runtime::Runtime;

use super::Failure;
use super::chips::images_in;

/// Ships that the table compares, each seen by either sensor.
const SHIPS: usize = 4;
const SEED: u64 = 1;

#[derive(Args)]
pub struct Demo {
    /// Folder with real chips in the HOSS layout; without it, synthetic ships.
    #[arg(long, value_name = "FOLDER")]
    chips: Option<PathBuf>,
}

impl Demo {
    pub(super) fn run(self) -> Result<(), Failure> {
        let flags = [
            "server.listen=127.0.0.1:0",
            "server.metrics_listen=127.0.0.1:0",
            "model.preset=small",
            "telemetry.log_filter=warn",
        ];
        let flags = flags.map(str::to_owned).to_vec();
        let config = Config::load(&Sources { flags, ..Sources::default() })?;
        model::wait_passively(app::threads_per_worker(&config));
        telemetry::install(&config.telemetry)?;
        let chips = match &self.chips {
            Some(folder) => real_chips(folder)?,
            None => synthetic_chips(),
        };
        Runtime::new()?.block_on(async {
            let started = Instant::now();
            let model = app::load_model(&config).map_err(Failure::Unusable)?;
            let running = app::start(&config, model, metrics::install()?).await?;
            let took = started.elapsed().as_secs_f64();
            println!("a server with a small untrained TransOSS is up on {} after {took:.1} s", running.address);
            let client = Client::connect(&format!("http://{}", running.address)).await?;
            let started = Instant::now();
            let embeddings = embed(&client, &chips).await?;
            let took = started.elapsed().as_secs_f64() * 1e3;
            println!("{} chips embedded over gRPC in {took:.0} ms; cosine similarities:\n", chips.len());
            println!("{}\n", similarities(&chips, &embeddings));
            println!("The weights are random: ships of one modality look alike to it. A trained model tells them apart.");
            running.stop().await;
            println!("the server has stopped");
            Ok(())
        })
    }
}

/// A chip and its column's title.
struct Named {
    name: String,
    chip: Chip,
}

async fn embed(client: &Client, chips: &[Named]) -> anyhow::Result<Vec<Embedding>> {
    let request = EmbedRequest {
        chips: chips.iter().map(|named| named.chip.clone()).collect(),
        ..EmbedRequest::default()
    };
    let answer = client.embed(request, None).await?;
    answer
        .results
        .into_iter()
        .map(|result| match result.outcome {
            Some(Outcome::Embedding(embedding)) => Ok(Embedding::from_feature(embedding.values)?),
            other => bail!("no embedding: {other:?}"),
        })
        .collect()
}

fn similarities(chips: &[Named], embeddings: &[Embedding]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(std::iter::once("").chain(chips.iter().map(|chip| chip.name.as_str())));
    for (chip, a) in chips.iter().zip(embeddings) {
        let cells = embeddings.iter().map(|b| format!("{:+.2}", a.cosine(b)));
        table.add_row(std::iter::once(chip.name.clone()).chain(cells));
    }
    table
}

/// The first ships of a HOSS folder that either sensor has seen.
fn real_chips(folder: &Path) -> anyhow::Result<Vec<Named>> {
    let mut seen: Vec<(String, Option<PathBuf>, Option<PathBuf>)> = Vec::new();
    for path in images_in(folder)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (Some((identity, _)), Some(modality)) = (name.split_once('_'), client::modality_of_name(&path))
        else {
            continue;
        };
        // HOSS gives distractors, which are many ships, the identity -1.
        if identity.starts_with('-') {
            continue;
        }
        let place = seen.iter().position(|(other, ..)| other == identity).unwrap_or_else(|| {
            seen.push((identity.to_owned(), None, None));
            seen.len() - 1
        });
        let slot = match modality {
            Modality::Optical => &mut seen[place].1,
            Modality::Sar => &mut seen[place].2,
        };
        slot.get_or_insert(path);
    }
    let mut chips = Vec::new();
    let both = seen.into_iter().filter_map(|(identity, optical, sar)| Some((identity, optical?, sar?)));
    for (identity, optical, sar) in both.take(SHIPS) {
        for (path, modality) in [(optical, Modality::Optical), (sar, Modality::Sar)] {
            let image = std::fs::read(&path).with_context(|| path.display().to_string())?;
            chips.push(Named { name: format!("{identity} {modality}"), chip: client::chip(image, modality) });
        }
    }
    if chips.is_empty() {
        bail!("{} holds no ship that both sensors have seen", folder.display());
    }
    Ok(chips)
}

/// Synthetic ships, each seen once by either sensor.
fn synthetic_chips() -> Vec<Named> {
    let views = |number: u64| {
        let ship = Ship::draw(SEED, number);
        [
            (Modality::Optical, OpticalImage::of(&ship, SEED, number, 0).to_tiff()),
            (Modality::Sar, SarImage::of(&ship, SEED, number, 0).to_tiff()),
        ]
        .map(|(modality, image)| Named {
            name: format!("synthetic {} {modality}", number + 1),
            chip: client::chip(image, modality),
        })
    };
    (0..SHIPS as u64).flat_map(views).collect()
}
