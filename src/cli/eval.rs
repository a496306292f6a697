//! `shipreid eval`: measures how well a model ranks a HOSS test set.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use comfy_table::{Table, presets};
use image::RgbImage;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use shipreid::app::{self, LoadedModel};
use shipreid::chip::{ChipForm, ChipSize, Modality, Resampling};
use shipreid::client::{self, Client};
use shipreid::embedding::Embedding;
use shipreid::encoder::{Batch, EncoderInput};
use shipreid::evaluate::{
    LabelledImage, Protocol, Ranked, RerankSettings, Scores, Summary, evaluate_by_size, rank, rerank,
};
use shipreid::gallery::{
    Code, ContentHash, Entry, EntryId, Filter, Group, Index, IndexQuery, Labels, Observation, RowId, Time,
    VesselSet,
};
use shipreid::train::{Extent, HossPart, Image, RankedLists, hoss, read_chip};
use shipreid::wire::embed_result::Outcome;
use shipreid::wire::{EmbedRequest, Priority};
use tokio::runtime::Runtime;

use super::access::{AccessFlags, endpoint_of_environment};
use super::destination::ForceFlag;
use super::embed::progress;
use super::{ConfigFlags, Failure, Refusal, output, prepare};

/// Chips in one pass or call.
const BATCH: usize = 16;
/// The size of a contact sheet.
const SHEET: Extent = Extent { queries: 20, ranks: 10 };
/// The size that a chip is resized to if only its extent is needed.
const SIZED: ChipSize = ChipSize { height: 2, width: 1 };

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid eval --data ../shared/data/hoss165 --set model.path=models/transoss
  shipreid eval --data HOSS --endpoint http://127.0.0.1:50051 --json
  shipreid eval --data HOSS --by-size")]
pub struct Eval {
    /// The folder that holds query and bounding_box_test.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// One of all, o2s, s2o, o2o; default: every one.
    #[arg(long)]
    protocol: Option<Protocol>,
    /// Re-ranks with k-reciprocal encoding (k1 50, k2 15, lambda 0.3).
    #[arg(long)]
    rerank: bool,
    /// Evaluates a running server instead of a model in this process; default without --config and --set:
    /// SHIPREID_ENDPOINT.
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "settings"])]
    endpoint: Option<String>,
    #[command(flatten)]
    access: AccessFlags,
    /// Ranks by the size of the chips alone, a baseline for models.
    #[arg(long, conflicts_with_all = ["config", "settings", "endpoint", "rerank"])]
    by_size: bool,
    #[command(flatten)]
    config: ConfigFlags,
    /// Draws ranked lists: one query per row, framed in white, then the ten best, correct in green, wrong in red.
    #[arg(long, value_name = "FILE.png", conflicts_with = "by_size")]
    sheet: Option<PathBuf>,
    #[command(flatten)]
    force: ForceFlag,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub(super) fn run(self) -> Result<(), Failure> {
        let protocols = self.protocol.map_or(Protocol::EVERY.to_vec(), |protocol| vec![protocol]);
        self.sheet.iter().try_for_each(|sheet| self.force.check(sheet))?;
        let set = TestSet::read(&self.data).map_err(Failure::Unusable)?;
        if self.by_size {
            return self.print(&set.report_by_size(&protocols)?);
        }
        let embedded = match self.endpoint()? {
            Some(endpoint) => Runtime::new()?
                .block_on(async { set.embed_remotely(&self.access.connect(&endpoint).await?).await })?,
            None => {
                let config = self.config.clone().load()?;
                prepare(app::threads_per_worker(&config))?;
                set.embed_locally(&app::load_model(&config).map_err(Failure::Unusable)?)?
            }
        };
        self.print(&embedded.report(&protocols, self.rerank))?;
        if let (Some(path), Some(protocol)) = (&self.sheet, protocols.first()) {
            let ranked = embedded
                .ranked(*protocol, self.rerank)
                .context("the test set has no queries for the protocol")?;
            self.force.write_picture(path, &set.picture(&ranked)?)?;
            output::remark(format_args!("ranked lists of protocol {protocol} in {}", path.display()));
        }
        Ok(())
    }

    /// The server to measure; `None` for a model in this process.
    fn endpoint(&self) -> Result<Option<String>, Refusal> {
        if self.endpoint.is_some() || self.config.is_given() {
            return Ok(self.endpoint.clone());
        }
        endpoint_of_environment()
    }

    fn print(&self, report: &Value) -> Result<(), Failure> {
        if self.json {
            output::say(report);
        } else {
            output::say(table(report));
        }
        Ok(())
    }
}

/// Query and gallery of a HOSS folder.
pub struct TestSet {
    pub queries: Vec<Image>,
    pub gallery: Vec<Image>,
}

/// A test set with its embeddings.
pub struct Embedded {
    model: String,
    queries: Vec<(LabelledImage, Embedding)>,
    gallery: Vec<(LabelledImage, Embedding)>,
}

impl TestSet {
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        Ok(Self { queries: hoss(root, HossPart::Query)?, gallery: hoss(root, HossPart::Gallery)? })
    }

    /// Embeds with a model in this process, with the encoder that a server runs.
    pub fn embed_locally(&self, model: &LoadedModel) -> anyhow::Result<Embedded> {
        let mut encoder = (model.factory)(0).map_err(|cause| anyhow!(cause))?;
        let bar = progress(self.queries.len() + self.gallery.len());
        let mut embed = |images: &[Image]| -> anyhow::Result<Vec<(LabelledImage, Embedding)>> {
            let mut embedded = Vec::new();
            for images in images.chunks(BATCH) {
                let chip = |image: &Image| {
                    read_chip(image, model.card.chip_form(), Resampling::Bilinear).map(EncoderInput::from)
                };
                let chips =
                    images.iter().map(chip).collect::<Result<Vec<_>, _>>().map_err(|cause| anyhow!(cause))?;
                let embeddings = encoder.forward(&Batch { model: model.card.digest, chips })?;
                embedded.extend(images.iter().map(labelled).zip(embeddings));
                bar.inc(images.len() as u64);
            }
            Ok(embedded)
        };
        let (queries, gallery) = (embed(&self.queries)?, embed(&self.gallery)?);
        bar.finish_and_clear();
        Ok(Embedded { model: model.card.digest.to_string(), queries, gallery })
    }

    async fn embed_remotely(&self, client: &Client) -> anyhow::Result<Embedded> {
        let bar = progress(self.queries.len() + self.gallery.len());
        let (model, queries) = embed_images(client, &self.queries, &bar).await?;
        let (other, gallery) = embed_images(client, &self.gallery, &bar).await?;
        bar.finish_and_clear();
        if model != other {
            bail!("the server changed its model while it was measured");
        }
        Ok(Embedded { model, queries, gallery })
    }

    /// Some queries, each with its best matches.
    pub fn picture(&self, ranked: &Ranked) -> anyhow::Result<RgbImage> {
        let lists = RankedLists::of(ranked, &self.queries, &self.gallery, SHEET);
        lists.picture().map_err(|cause| anyhow!(cause))
    }

    fn report_by_size(&self, protocols: &[Protocol]) -> anyhow::Result<Value> {
        let (queries, gallery) = (sizes(&self.queries)?, sizes(&self.gallery)?);
        let rows = rows(protocols, |protocol| evaluate_by_size(protocol, &queries, &gallery));
        Ok(json!({ "model": "size alone", "reranked": false, "protocols": rows }))
    }

    /// Width and length in metres of every image, queries first.
    pub fn sizes(&self) -> anyhow::Result<impl Iterator<Item = [f64; 2]>> {
        Ok(sizes(&self.queries)?.into_iter().chain(sizes(&self.gallery)?).map(|(_, size)| size))
    }
}

/// Width and length of each image in metres.
pub fn sizes(images: &[Image]) -> anyhow::Result<Vec<(LabelledImage, [f64; 2])>> {
    let size = |image: &Image| {
        let chip = read_chip(image, ChipForm::reference(SIZED), Resampling::Bilinear);
        Ok((labelled(image), chip.map_err(|cause| anyhow!(cause))?.extent_m()))
    };
    images.iter().map(size).collect()
}

/// The mAP and CMC of each protocol that has queries.
fn rows(protocols: &[Protocol], scores: impl Fn(Protocol) -> Option<Scores>) -> Value {
    let row = |protocol: &Protocol| Some(json!(Summary::of(*protocol, &scores(*protocol)?)));
    protocols.iter().filter_map(row).collect()
}

pub fn labelled(image: &Image) -> LabelledImage {
    LabelledImage { identity: image.identity, modality: image.modality() }
}

/// The model's digest, and every image's embedding.
async fn embed_images(
    client: &Client,
    images: &[Image],
    bar: &ProgressBar,
) -> anyhow::Result<(String, Vec<(LabelledImage, Embedding)>)> {
    let (mut model, mut embedded) = (String::new(), Vec::new());
    for images in images.chunks(BATCH) {
        let chip = |image: &Image| {
            let bytes = std::fs::read(&image.path).with_context(|| image.path.display().to_string())?;
            let mut chip = client::chip(bytes, image.modality());
            // Sent explicitly, so that the server does not use the file's own: a data set is read by the reference's
            // rule.
            [chip.pixel_size_x_m, chip.pixel_size_y_m] = image.view.pixel_size.axes();
            anyhow::Ok(chip)
        };
        let request = EmbedRequest {
            chips: images.iter().map(chip).collect::<Result<_, _>>()?,
            model: model.clone(),
            priority: Priority::Bulk.into(),
        };
        let answer = client.embed(request, None).await?;
        for (image, result) in images.iter().zip(answer.results) {
            match result.outcome {
                Some(Outcome::Embedding(embedding)) => {
                    embedded.push((labelled(image), Embedding::from_feature(embedding.values)?));
                }
                other => bail!("{} has no embedding: {other:?}", image.path.display()),
            }
        }
        model = answer.model;
        bar.inc(images.len() as u64);
    }
    Ok((model, embedded))
}

impl Embedded {
    /// mAP and CMC of each protocol that has queries.
    pub fn report(&self, protocols: &[Protocol], reranked: bool) -> Value {
        let rows = rows(protocols, |protocol| self.ranked(protocol, reranked).map(|ranked| ranked.scores));
        json!({ "model": self.model, "reranked": reranked, "protocols": rows })
    }

    /// Every image, queries first.
    pub fn images(&self) -> impl Iterator<Item = &(LabelledImage, Embedding)> {
        self.queries.iter().chain(&self.gallery)
    }

    fn ranked(&self, protocol: Protocol, reranked: bool) -> Option<Ranked> {
        rank(protocol, &self.queries, &self.gallery, |queries, gallery| {
            if reranked {
                rerank(queries, gallery, &RerankSettings::default()).rankings()
            } else {
                search(queries, gallery)
            }
        })
    }
}

/// Ranks all of `gallery` for each query, with the search that serves galleries.
fn search(queries: &[&Embedding], gallery: &[&Embedding]) -> Vec<Vec<usize>> {
    let mut index = Index::new(gallery.first().map_or(0, |embedding| embedding.dimension()));
    for (row, embedding) in (0..).zip(gallery) {
        index.push(RowId::from_u64(row), &Code::new(embedding.as_slice()), &anonymous());
    }
    let without = VesselSet::default();
    let queries = queries.iter().map(|embedding| IndexQuery {
        vector: embedding.as_slice(),
        k: gallery.len(),
        without_row: None,
        without_vessels: &without,
    });
    let queries: Vec<_> = queries.collect();
    let everything = index.select(&Filter::default(), None, &[]);
    let vector = |row: RowId, values: &mut [f32]| -> Result<(), Infallible> {
        values.copy_from_slice(gallery[row.to_u64() as usize].as_slice());
        Ok(())
    };
    let Ok(found) = index.search(&queries, &everything, Group::Entry, vector);
    found.into_iter().map(|found| found.hits.iter().map(|hit| hit.row.to_u64() as usize).collect()).collect()
}

/// An entry without metadata, since rankings only need vectors.
fn anonymous() -> Entry {
    Entry {
        id: EntryId::new("image").expect("a constant"),
        vessel: None,
        modality: Modality::Optical,
        observation: Observation::default(),
        labels: Labels::default(),
        extent_m: None,
        enrolled_at: Time::from_nanos(0),
        precision: None,
        content: ContentHash::new([0; 32]),
    }
}

/// A report for people.
pub fn table(report: &Value) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["protocol", "queries", "mAP", "R1", "R5", "R10"]);
    for row in report["protocols"].as_array().into_iter().flatten() {
        let percent = |what: &str| format!("{:.1}", row[what].as_f64().unwrap_or(f64::NAN) * 100.0);
        let queries = format!("{} of {}", row["queries_with_a_match"], row["queries"]);
        let name = row["protocol"].as_str().unwrap_or_default().to_owned();
        table.add_row([name, queries, percent("mAP"), percent("R1"), percent("R5"), percent("R10")]);
    }
    table
}
