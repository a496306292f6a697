//! `shipreid eval`: measures how well a model ranks a HOSS test set.

mod ensemble;
mod fused;

use std::convert::Infallible;
use std::fs;
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
use shipreid::matching::{Calibrator, Labelled, Outline};
use shipreid::registry::calibrator_beside;
use shipreid::train::{Extent, HossPart, Image, RankedLists, fingerprint_of, hoss, read_chip};
use shipreid::wire::embed_result::Outcome;
use shipreid::wire::{EmbedRequest, Priority};
use tokio::runtime::Runtime;

use super::access::{AccessFlags, endpoint_of_environment};
use super::destination::ForceFlag;
use super::embed::progress;
use super::{ConfigFlags, Failure, Refusal, output, prepare};

pub use fused::Fused;

use ensemble::Makeup;

/// Chips in one pass or call.
const BATCH: usize = 16;
/// The size of a contact sheet.
const SHEET: Extent = Extent { queries: 20, ranks: 10 };
/// The figures of a ranking, as reports name them.
const FIGURES: [&str; 4] = ["mAP", "R1", "R5", "R10"];
/// The size that a chip is resized to if only its extent is needed.
const SIZED: ChipSize = ChipSize { height: 2, width: 1 };

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid eval --data ../shared/data/hoss165 --set model.path=models/transoss
  shipreid eval --data HOSS --endpoint http://127.0.0.1:50051 --json
  shipreid eval --data HOSS --set model.path=models/transoss --picture reliability.png
  shipreid eval --data HOSS --by-size

FUSED ranks by all evidence that a calibrator finds in looks and sizes, as Match does by default where a model has one. A
calibrator that was fitted on the images of the test set is not measured on them: then, and without one, each query is
judged by a calibrator that is fitted here on other ships.

An ensemble is ranked by its members' ranks, as Match does, and each member is reported alone as well.")]
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
    /// The calibrator for FUSED; default: the one that comes with the model in this process.
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["by_size", "rerank"])]
    calibrator: Option<PathBuf>,
    /// Writes a reliability diagram: observed against predicted frequency of same-vessel pairs.
    #[arg(long, value_name = "FILE.png", conflicts_with_all = ["by_size", "rerank"])]
    picture: Option<PathBuf>,
    #[command(flatten)]
    force: ForceFlag,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub(super) fn run(self) -> Result<(), Failure> {
        let protocols = self.protocol.map_or(Protocol::EVERY.to_vec(), |protocol| vec![protocol]);
        self.sheet.iter().chain(&self.picture).try_for_each(|file| self.force.check(file))?;
        let set = TestSet::read(&self.data).map_err(Failure::Unusable)?;
        if self.by_size {
            return self.print(&set.report_by_size(&protocols)?);
        }
        let named = self.calibrator.as_deref().map(read_calibrator).transpose();
        let named = named.map_err(Failure::Unusable)?;
        let (embedded, own) = self.embed(&set)?;
        if embedded.makeup.is_some() {
            self.check_ensemble()?;
        }
        let mut report = embedded.report(&protocols, self.rerank);
        if self.rerank || embedded.makeup.is_some() {
            self.print(&report)?;
        } else {
            let fused = Fused::of(&set, &embedded, named.or(own)).map_err(Failure::Unusable)?;
            fused.add_to(&mut report);
            self.print(&report)?;
            self.show(&fused)?;
        }
        if let (Some(path), Some(protocol)) = (&self.sheet, protocols.first()) {
            let ranked = embedded
                .ranked(*protocol, self.rerank)
                .context("the test set has no queries for the protocol")?;
            self.force.write_picture(path, &set.picture(&ranked)?)?;
            output::remark(format_args!("ranked lists of protocol {protocol} in {}", path.display()));
        }
        Ok(())
    }

    /// Embeds the set; also returns the calibrator that comes with a model in this process.
    fn embed(&self, set: &TestSet) -> Result<(Embedded, Option<Calibrator>), Failure> {
        if let Some(endpoint) = self.endpoint()? {
            let embedded = Runtime::new()?
                .block_on(async { set.embed_remotely(&self.access.connect(&endpoint).await?).await })?;
            return Ok((embedded, None));
        }
        let config = self.config.clone().load()?;
        prepare(app::threads_per_worker(&config))?;
        let model = app::load_model(&config).map_err(Failure::Unusable)?;
        let path = &config.model.path;
        let own = calibrator_beside(Path::new(path), model.card.digest).with_context(|| path.clone());
        let own = own.map_err(Failure::Unusable)?;
        Ok((set.embed_locally(&model)?, own))
    }

    /// # Errors
    /// What is asked for does not apply to ensembles.
    fn check_ensemble(&self) -> Result<(), Failure> {
        if self.rerank || self.calibrator.is_some() || self.picture.is_some() {
            let cause = "--rerank, --calibrator and --picture do not apply to it";
            return Err(Failure::Unusable(anyhow!(
                "the model is an ensemble, ranked by its members' ranks: {cause}"
            )));
        }
        Ok(())
    }

    /// Prints and draws how well the judgements of FUSED come true.
    fn show(&self, fused: &Fused) -> Result<(), Failure> {
        if !self.json {
            fused.say();
        }
        if let Some(path) = &self.picture {
            self.force.write_picture(path, &fused.picture()?)?;
            output::remark(format_args!("reliability diagram in {}", path.display()));
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
            return Ok(());
        }
        output::say(table(report));
        for member in report["ensemble"]["members"].as_array().into_iter().flatten() {
            let digest = member["model"].as_str().unwrap_or_default();
            output::say(format_args!("\nmember {digest} of weight {}, alone", member["weight"]));
            output::say(table(member));
        }
        Ok(())
    }
}

fn read_calibrator(file: &Path) -> anyhow::Result<Calibrator> {
    let named = || file.display().to_string();
    let text = fs::read_to_string(file).with_context(named)?;
    Calibrator::parse(&text).with_context(named)
}

/// Query and gallery of a HOSS folder.
pub struct TestSet {
    pub queries: Vec<Image>,
    pub gallery: Vec<Image>,
}

/// A test set with its embeddings.
pub struct Embedded {
    model: String,
    /// Of an ensemble.
    makeup: Option<Makeup>,
    queries: Vec<(LabelledImage, Embedding)>,
    gallery: Vec<(LabelledImage, Embedding)>,
}

impl TestSet {
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        Ok(Self { queries: hoss(root, HossPart::Query)?, gallery: hoss(root, HossPart::Gallery)? })
    }

    /// Names the images, as a calibrator tells of those that it was fitted on.
    pub fn fingerprint(&self) -> std::io::Result<String> {
        fingerprint_of(self.queries.iter().chain(&self.gallery))
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
        let makeup = Makeup::of_loaded(model);
        Ok(Embedded { model: model.card.digest.to_string(), makeup, queries, gallery })
    }

    async fn embed_remotely(&self, client: &Client) -> anyhow::Result<Embedded> {
        let bar = progress(self.queries.len() + self.gallery.len());
        let (model, queries) = embed_images(client, &self.queries, &bar).await?;
        let (other, gallery) = embed_images(client, &self.gallery, &bar).await?;
        bar.finish_and_clear();
        if model != other {
            bail!("the server changed its model while it was measured");
        }
        let makeup = Makeup::of_served(client, &model).await?;
        Ok(Embedded { model, makeup, queries, gallery })
    }

    /// Queries and gallery as calibrators see them. Each distractor is a ship of its own.
    ///
    /// # Errors
    /// An image cannot be read.
    pub fn labelled(&self, embedded: &Embedded) -> anyhow::Result<(Vec<Labelled>, Vec<Labelled>)> {
        let part = |images: &[Image], embedded: &[(LabelledImage, Embedding)]| {
            let sizes = sizes(images)?.into_iter().map(|(_, size)| size.map(Some));
            let seen = images.iter().zip(sizes).zip(embedded);
            let labelled = seen.map(|((image, [width_m, length_m]), (_, embedding))| Labelled {
                identity: image.known_identity(),
                embedding: embedding.clone(),
                outline: Outline { modality: image.modality(), length_m, width_m },
            });
            anyhow::Ok(labelled.collect())
        };
        Ok((part(&self.queries, &embedded.queries)?, part(&self.gallery, &embedded.gallery)?))
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
            ..EmbedRequest::default()
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
        let mut report = json!({ "model": self.model, "reranked": reranked, "protocols": rows });
        if let Some(makeup) = &self.makeup {
            report["ensemble"] = makeup.report(self, protocols);
        }
        report
    }

    /// Every image, queries first.
    pub fn images(&self) -> impl Iterator<Item = &(LabelledImage, Embedding)> {
        self.queries.iter().chain(&self.gallery)
    }

    fn ranked(&self, protocol: Protocol, reranked: bool) -> Option<Ranked> {
        rank(protocol, &self.queries, &self.gallery, |queries, gallery| {
            if reranked {
                rerank(queries, gallery, &RerankSettings::default()).rankings()
            } else if let Some(makeup) = &self.makeup {
                makeup.rank(queries, gallery)
            } else {
                search(queries, gallery)
            }
        })
    }
}

/// Ranks all of `gallery` for each query, with the search that serves galleries.
fn search<V: AsRef<[f32]>>(queries: &[&V], gallery: &[&V]) -> Vec<Vec<usize>> {
    let mut index = Index::new(gallery.first().map_or(0, |vector| vector.as_ref().len()));
    for (row, vector) in (0..).zip(gallery) {
        index.push(RowId::from_u64(row), &Code::new(vector.as_ref()), &anonymous());
    }
    let without = VesselSet::default();
    let queries = queries.iter().map(|vector| IndexQuery {
        vector: vector.as_ref(),
        part: 0,
        k: gallery.len(),
        without_row: None,
        without_vessels: &without,
    });
    let queries: Vec<_> = queries.collect();
    let everything = index.select(&Filter::default(), None, &[]);
    let vector = |row: RowId, values: &mut [f32]| -> Result<(), Infallible> {
        values.copy_from_slice(gallery[row.to_u64() as usize].as_ref());
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

/// A report for people. Where it has rankings by evidence, these follow those by cosine.
pub fn table(report: &Value) -> Table {
    let rows: Vec<&Value> = report["protocols"].as_array().into_iter().flatten().collect();
    let has_fused = rows.iter().any(|row| !row["fused"].is_null());
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let fused = ["fused mAP", "R1", "R5", "R10"].into_iter().filter(|_| has_fused);
    table.set_header(["protocol", "queries"].into_iter().chain(FIGURES).chain(fused));
    for row in rows {
        let percents = |of: &Value| FIGURES.map(|what| percent(&of[what]));
        let queries = format!("{} of {}", row["queries_with_a_match"], row["queries"]);
        let name = row["protocol"].as_str().unwrap_or_default().to_owned();
        let fused = percents(&row["fused"]).into_iter().filter(|_| has_fused);
        table.add_row([name, queries].into_iter().chain(percents(row)).chain(fused));
    }
    table
}

/// Empty where there is no figure.
fn percent(figure: &Value) -> String {
    figure.as_f64().map_or_else(String::new, |figure| format!("{:.1}", figure * 100.0))
}
