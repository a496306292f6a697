//! `shipreid demo`: the whole way once, in one command.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use futures_util::StreamExt;
use shipreid::chip::Modality;
use shipreid::client::{self, Client, ClientError};
use shipreid::config::{Config, Sources};
use shipreid::synth::{OpticalImage, SarImage, Ship};
use shipreid::wire::enroll_request::Source;
use shipreid::wire::match_query::Subject;
use shipreid::wire::{
    Chip, CreateGalleryRequest, EnrollRequest, MatchQuery, MatchRequest, MatchResponse, Tracklet,
};
use shipreid::{app, metrics, model, telemetry};
use tokio::runtime::Runtime;

use super::Failure;
use super::chips::images_in;
use super::ranked::result_text;

const GALLERY: &str = "harbour";
/// Ships that are asked about, and candidates for each.
const QUERIES: usize = 4;
const TOP: u32 = 5;
/// Synthetic ships, and views of each by either sensor.
const SHIPS: u64 = 12;
const VIEWS: u64 = 2;
const SEED: u64 = 1;

#[derive(Args)]
pub struct Demo {
    /// Folder with real chips in the HOSS layout; without it, synthetic ships.
    #[arg(long, value_name = "FOLDER")]
    chips: Option<PathBuf>,
}

/// A chip, and the vessel that it shows.
struct Sighting {
    name: String,
    vessel: String,
    chip: Chip,
}

impl Demo {
    pub(super) fn run(self) -> Result<(), Failure> {
        let data = tempfile::tempdir()?;
        let flags = vec![
            "server.listen=127.0.0.1:0".to_owned(),
            "server.metrics_listen=127.0.0.1:0".to_owned(),
            "model.preset=small".to_owned(),
            "telemetry.log_filter=warn".to_owned(),
            format!("store.data_dir={}", data.path().display()),
        ];
        let config = Config::load(&Sources { flags, ..Sources::default() })?;
        model::wait_passively(app::threads_per_worker(&config));
        telemetry::install(&config.telemetry)?;
        let (queries, gallery) = match &self.chips {
            Some(folder) => (real(folder, "query")?, real(folder, "bounding_box_test")?),
            None => synthetic(),
        };
        Runtime::new()?.block_on(async {
            let started = Instant::now();
            let model = app::load_model(&config).map_err(Failure::Unusable)?;
            let running = app::start(&config, model, metrics::install()?).await?;
            let took = started.elapsed().as_secs_f64();
            println!(
                "a server with a small untrained TransOSS is up on {} after {took:.1} s",
                running.address
            );
            let client = Client::connect(&format!("http://{}", running.address)).await?;
            let started = Instant::now();
            let (count, took) = (enrol(&client, gallery).await?, started.elapsed().as_secs_f64());
            println!(
                "{count} chips enrolled over gRPC in {took:.1} s, each on disk before it was acknowledged\n"
            );
            let started = Instant::now();
            let answer = ask(&client, &queries).await?;
            let took = started.elapsed().as_secs_f64() * 1e3;
            print(&queries, &answer);
            println!("{} SAR chips matched in {took:.0} ms", answer.results.len());
            println!(
                "The weights are random, so the ranking is worth nothing yet: a trained model tells ships apart."
            );
            running.stop().await;
            println!("the server has stopped");
            Ok(())
        })
    }
}

async fn enrol(client: &Client, sightings: Vec<Sighting>) -> anyhow::Result<usize> {
    let request = CreateGalleryRequest { name: GALLERY.into(), ..CreateGalleryRequest::default() };
    client.galleries().create_gallery(request).await.map_err(ClientError::from)?;
    let requests = sightings.into_iter().map(|sighting| EnrollRequest {
        gallery: GALLERY.into(),
        entry_id: sighting.name,
        vessel_id: sighting.vessel,
        source: Some(Source::Chip(sighting.chip)),
        ..EnrollRequest::default()
    });
    let mut answers = client.enroll(tokio_stream::iter(requests.collect::<Vec<_>>())).await?;
    let mut count = 0;
    while let Some(answer) = answers.next().await {
        let answer = answer.map_err(ClientError::from)?;
        if let Some(error) = answer.error {
            bail!("{} is not enrolled: {}", answer.entry_id, error.message);
        }
        count += 1;
    }
    Ok(count)
}

async fn ask(client: &Client, queries: &[Sighting]) -> anyhow::Result<MatchResponse> {
    let query = |sighting: &Sighting| MatchQuery {
        query_id: format!("{}, which shows {}", sighting.name, sighting.vessel),
        subject: Some(Subject::Tracklet(Tracklet { chips: vec![sighting.chip.clone()] })),
        ..MatchQuery::default()
    };
    let request = MatchRequest {
        gallery: GALLERY.into(),
        queries: queries.iter().map(query).collect(),
        top_k: Some(TOP),
        ..MatchRequest::default()
    };
    Ok(client.match_ships(request).await?)
}

fn print(queries: &[Sighting], answer: &MatchResponse) {
    let mut first = 0;
    for (sighting, result) in queries.iter().zip(&answer.results) {
        println!("{}\n", result_text(result, answer));
        first += usize::from(result.candidates.first().is_some_and(|best| best.vessel_id == sighting.vessel));
    }
    println!("right at the first rank: {first} of {}", queries.len());
}

/// SAR chips that ask, or everything that is searched, of a HOSS folder.
fn real(folder: &Path, part: &str) -> anyhow::Result<Vec<Sighting>> {
    let mut sightings = Vec::new();
    for path in images_in(&folder.join(part))? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let (Some((identity, _)), Some(modality)) = (name.split_once('_'), client::modality_of_name(&path))
        else {
            continue;
        };
        // HOSS gives distractors, which are many ships, the identity -1.
        let vessel = if identity.starts_with('-') { "" } else { identity }.to_owned();
        if part == "query" && (modality != Modality::Sar || sightings.len() == QUERIES) {
            continue;
        }
        let image = std::fs::read(&path).with_context(|| path.display().to_string())?;
        sightings.push(Sighting { vessel, chip: client::chip(image, modality), name });
    }
    if sightings.is_empty() {
        bail!("{} holds no chips in the HOSS layout", folder.display());
    }
    Ok(sightings)
}

/// The same of synthetic ships.
fn synthetic() -> (Vec<Sighting>, Vec<Sighting>) {
    let sar = |number: u64, view: u64| Sighting {
        name: format!("synthetic-{number}-{view}-sar"),
        vessel: format!("synthetic-{number}"),
        chip: client::chip(
            SarImage::of(&Ship::draw(SEED, number), SEED, number, view).to_tiff(),
            Modality::Sar,
        ),
    };
    let optical = |number: u64, view: u64| Sighting {
        name: format!("synthetic-{number}-{view}-optical"),
        vessel: format!("synthetic-{number}"),
        chip: client::chip(
            OpticalImage::of(&Ship::draw(SEED, number), SEED, number, view).to_tiff(),
            Modality::Optical,
        ),
    };
    let gallery = (0..SHIPS)
        .flat_map(|number| (1..=VIEWS).flat_map(move |view| [sar(number, view), optical(number, view)]));
    ((0..QUERIES as u64).map(|number| sar(number, 0)).collect(), gallery.collect())
}
