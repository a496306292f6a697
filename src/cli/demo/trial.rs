//! A test set that is matched on a server, and how well its ships are found by different methods.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use comfy_table::{Table, presets};
use futures_util::StreamExt;
use image::RgbImage;
use shipreid::chip::Modality;
use shipreid::client::{self, Client, ClientError};
use shipreid::evaluate::{Protocol, Ranked, Scores, Summary, evaluate_by_size, score_rankings};
use shipreid::train::Image;
use shipreid::wire::enroll_request::Source;
use shipreid::wire::match_query::Subject;
use shipreid::wire::{
    self, Chip, CreateGalleryRequest, DeleteGalleryRequest, EnrollRequest, EntryFilter, GroupBy, MatchQuery,
    MatchRequest, MatchResponse, Tracklet,
};

use super::super::embed::progress;
use super::super::eval::{TestSet, labelled, sizes};
use super::super::output;
use super::super::ranked::result_text;

/// The protocols that are measured.
const PROTOCOLS: [Protocol; 3] = [Protocol::All, Protocol::OpticalToSar, Protocol::SarToOptical];
/// Queries in one call.
const BATCH: usize = 16;
/// Queries whose answers are shown, and candidates for each.
const SHOWN: usize = 2;
const TOP: u32 = 5;

/// Query and gallery of a HOSS folder, and the scores so far.
pub struct Trial {
    name: &'static str,
    set: TestSet,
    /// The method of ranking, and the scores of each protocol that has queries.
    rows: Vec<(&'static str, Vec<Summary>)>,
    /// The last ranking of the whole gallery for all queries.
    ranked: Option<Ranked>,
}

impl Trial {
    pub fn read(name: &'static str, folder: &Path) -> anyhow::Result<Self> {
        let set = TestSet::read(folder).with_context(|| folder.display().to_string())?;
        Ok(Self { name, set, rows: Vec::new(), ranked: None })
    }

    pub fn title(&self) -> String {
        let (queries, gallery) = (self.set.queries.len(), self.set.gallery.len());
        format!("{}: {queries} queries, {gallery} enrolled chips", self.name)
    }

    /// Scores a ranking by width and length in metres.
    pub fn rank_by_size(&mut self) -> anyhow::Result<()> {
        let (queries, gallery) = (sizes(&self.set.queries)?, sizes(&self.set.gallery)?);
        self.add("size alone", |protocol| evaluate_by_size(protocol, &queries, &gallery));
        Ok(())
    }

    /// Enrols the gallery half with the active model, matches every query in every protocol, and scores the answers.
    pub async fn rank(&mut self, client: &Client, by: &'static str, gallery: &str) -> anyhow::Result<()> {
        let gallery = self.gallery(gallery);
        let started = Instant::now();
        let enrolled = enrol(client, &gallery, &self.set.gallery).await?;
        let took = started.elapsed().as_secs_f64();
        output::say(format_args!(
            "{}: {enrolled} chips enrolled in {took:.1} s, each on disk before it was acknowledged",
            self.name
        ));
        let started = Instant::now();
        let mut asker = Asker::new(client, &gallery, &self.set)?;
        let mut ranked = HashMap::new();
        for protocol in PROTOCOLS {
            if let Some(found) = asker.ask(protocol).await? {
                ranked.insert(protocol.name(), found);
            }
        }
        let took = started.elapsed().as_secs_f64();
        output::say(format_args!(
            "{}: {} queries matched in {took:.1} s, {} protocols",
            self.name,
            self.set.queries.len(),
            ranked.len()
        ));
        self.add(by, |protocol| ranked.get(protocol.name()).map(|ranked| ranked.scores.clone()));
        self.ranked = ranked.remove(Protocol::All.name());
        Ok(())
    }

    /// Deletes the gallery: otherwise it would be re-embedded for the next model, although it is no longer used.
    pub async fn forget(&self, client: &Client, gallery: &str) -> anyhow::Result<()> {
        let request = DeleteGalleryRequest { name: self.gallery(gallery) };
        client.galleries().delete_gallery(request).await.map_err(ClientError::from)?;
        Ok(())
    }

    /// Prints some answers as a caller of Match sees them.
    pub async fn show_answers(&self, client: &Client, gallery: &str) -> anyhow::Result<()> {
        let sar = self.set.queries.iter().filter(|image| image.modality() == Modality::Sar);
        let queries = sar.take(SHOWN).map(|image| {
            let query_id = format!("{}, a SAR chip of ship {}", name(image)?, image.identity);
            Ok(MatchQuery { query_id, ..query(image)? })
        });
        let request = MatchRequest {
            gallery: self.gallery(gallery),
            queries: queries.collect::<anyhow::Result<_>>()?,
            top_k: Some(TOP),
            ..MatchRequest::default()
        };
        let answer = client.match_ships(request).await?;
        answer
            .results
            .iter()
            .for_each(|result| output::say(format_args!("\n{}", result_text(result, &answer))));
        Ok(())
    }

    /// mAP and R1 of all methods.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let figures = |protocol: Protocol| [format!("{protocol} mAP"), "R1".to_owned()];
        table.set_header(["ranked by".to_owned()].into_iter().chain(PROTOCOLS.into_iter().flat_map(figures)));
        for (by, summaries) in &self.rows {
            let figures = |protocol: Protocol| {
                let summary = summaries.iter().find(|summary| summary.protocol == protocol.name());
                let shares = summary.map(|found| [found.mean_average_precision, found.hit_within_1]);
                shares.map_or_else(Default::default, |shares| {
                    shares.map(|share| format!("{:.1}", share * 100.0))
                })
            };
            table.add_row([(*by).to_owned()].into_iter().chain(PROTOCOLS.into_iter().flat_map(figures)));
        }
        table
    }

    /// A contact sheet of the last ranking.
    pub fn sheet(&self) -> anyhow::Result<RgbImage> {
        self.set.picture(self.ranked.as_ref().context("nothing was ranked")?)
    }

    fn add(&mut self, by: &'static str, scores: impl Fn(Protocol) -> Option<Scores>) {
        let summary = |protocol: &Protocol| Some(Summary::of(*protocol, &scores(*protocol)?));
        self.rows.push((by, PROTOCOLS.iter().filter_map(summary).collect()));
    }

    /// A separate name for each trial.
    fn gallery(&self, stem: &str) -> String {
        let first_word = self.name.split(' ').next().unwrap_or_default();
        format!("{stem}-{first_word}")
    }
}

/// Enrols every image under its file name; returns their number.
async fn enrol(client: &Client, gallery: &str, images: &[Image]) -> anyhow::Result<usize> {
    let request = CreateGalleryRequest { name: gallery.to_owned(), ..CreateGalleryRequest::default() };
    client.galleries().create_gallery(request).await.map_err(ClientError::from)?;
    let request = |image: &Image| {
        // HOSS gives the identity -1 to distractors, which are different ships.
        let vessel_id = if image.identity < 0 { String::new() } else { image.identity.to_string() };
        anyhow::Ok(EnrollRequest {
            gallery: gallery.to_owned(),
            entry_id: name(image)?,
            vessel_id,
            source: Some(Source::Chip(chip(image)?)),
            ..EnrollRequest::default()
        })
    };
    let requests = images.iter().map(request).collect::<anyhow::Result<Vec<_>>>()?;
    let bar = progress(requests.len());
    let mut answers = client.enroll(tokio_stream::iter(requests)).await?;
    let mut count = 0;
    while let Some(answer) = answers.next().await {
        let answer = answer.map_err(ClientError::from)?;
        if let Some(error) = answer.error {
            bail!("{} is not enrolled: {}", answer.entry_id, error.message);
        }
        count += 1;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(count)
}

/// Requests whole rankings: sends chips first, then the embeddings returned with the answers.
struct Asker<'a> {
    client: &'a Client,
    gallery: &'a str,
    set: &'a TestSet,
    queries: Vec<MatchQuery>,
    /// The index in the gallery half of each entry.
    places: HashMap<String, usize>,
}

impl<'a> Asker<'a> {
    fn new(client: &'a Client, gallery: &'a str, set: &'a TestSet) -> anyhow::Result<Self> {
        let place = |(place, image): (usize, &Image)| Ok((name(image)?, place));
        Ok(Self {
            client,
            gallery,
            set,
            queries: set.queries.iter().map(query).collect::<anyhow::Result<_>>()?,
            places: set.gallery.iter().enumerate().map(place).collect::<anyhow::Result<_>>()?,
        })
    }

    /// Ranks the searched entries for each query of the protocol; `None` if it has no queries.
    async fn ask(&mut self, protocol: Protocol) -> anyhow::Result<Option<Ranked>> {
        let asking: Vec<usize> = (0..self.queries.len())
            .filter(|place| protocol.asks(labelled(&self.set.queries[*place])))
            .collect();
        let searched = self.set.gallery.iter().filter(|image| protocol.searches(labelled(image))).count();
        if asking.is_empty() || searched == 0 {
            return Ok(None);
        }
        let bar = progress(asking.len());
        let mut rankings = Vec::with_capacity(asking.len());
        for batch in asking.chunks(BATCH) {
            let answer = self.client.match_ships(self.request(protocol, batch, searched)).await?;
            rankings.extend(self.take(batch, answer, searched)?);
            bar.inc(batch.len() as u64);
        }
        bar.finish_and_clear();
        let identities: Vec<i64> = asking.iter().map(|place| self.set.queries[*place].identity).collect();
        let gallery: Vec<i64> = self.set.gallery.iter().map(|image| image.identity).collect();
        let scores = score_rankings(&rankings, &identities, &gallery);
        Ok(Some(Ranked { queries: asking, rankings, scores }))
    }

    fn request(&self, protocol: Protocol, batch: &[usize], searched: usize) -> MatchRequest {
        let modality = match protocol {
            Protocol::All => None,
            Protocol::OpticalToSar => Some(wire::Modality::Sar),
            Protocol::SarToOptical | Protocol::OpticalToOptical => Some(wire::Modality::Optical),
        };
        let modalities = modality.into_iter().map(i32::from).collect();
        MatchRequest {
            gallery: self.gallery.to_owned(),
            queries: batch.iter().map(|place| self.queries[*place].clone()).collect(),
            top_k: u32::try_from(searched).ok(),
            group_by: GroupBy::Entry.into(),
            filter: Some(EntryFilter { modalities, ..EntryFilter::default() }),
            // What is compared is what models see, and later calls send embeddings, without sizes.
            ranking: wire::Ranking::Cosine.into(),
            ..MatchRequest::default()
        }
    }

    /// The rankings of a call; its embeddings make the next call cheaper.
    fn take(
        &mut self,
        batch: &[usize],
        answer: MatchResponse,
        searched: usize,
    ) -> anyhow::Result<Vec<Vec<usize>>> {
        let mut rankings = Vec::with_capacity(batch.len());
        for (place, result) in batch.iter().zip(answer.results) {
            if let Some(error) = result.error {
                bail!("{} is not matched: {}", result.query_id, error.message);
            }
            let entries =
                result.candidates.iter().map(|candidate| self.places.get(&candidate.entry_id).copied());
            let ranking: Vec<usize> =
                entries.collect::<Option<_>>().context("the server ranks what was not enrolled")?;
            if ranking.len() != searched {
                bail!("{} of {searched} entries are ranked for {}", ranking.len(), result.query_id);
            }
            rankings.push(ranking);
            let query = &mut self.queries[*place];
            query.modality = wire_modality(self.set.queries[*place].modality()).into();
            query.subject = result.embedding.map(Subject::Embedding).or(query.subject.take());
        }
        Ok(rankings)
    }
}

fn query(image: &Image) -> anyhow::Result<MatchQuery> {
    Ok(MatchQuery {
        query_id: name(image)?,
        subject: Some(Subject::Tracklet(Tracklet { chips: vec![chip(image)?] })),
        ..MatchQuery::default()
    })
}

fn chip(image: &Image) -> anyhow::Result<Chip> {
    let bytes = std::fs::read(&image.path).with_context(|| image.path.display().to_string())?;
    Ok(client::chip(bytes, image.modality()))
}

fn name(image: &Image) -> anyhow::Result<String> {
    let name = image.path.file_name().context("an image is a file")?;
    Ok(name.to_string_lossy().into_owned())
}

fn wire_modality(modality: Modality) -> wire::Modality {
    match modality {
        Modality::Optical => wire::Modality::Optical,
        Modality::Sar => wire::Modality::Sar,
    }
}
