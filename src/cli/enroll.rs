//! `shipreid gallery enroll`: enrols files into a gallery; safe to repeat.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use futures_util::StreamExt;
use indicatif::ProgressBar;
use shipreid::client::{self, Client, ClientError};
use shipreid::manifest::ManifestEntry;
use shipreid::wire::enroll_request::Source;
use shipreid::wire::{EnrollOutcome, EnrollRequest, EnrollResponse, ItemError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::chips::{ChipFlags, FoundFile, is_standard_input};
use super::embed::progress;
use super::known::known_of;
use super::labels::LabelFlags;
use super::{Refusal, ServerFlag, output};

/// Refusals of a busy server that a retry may avoid.
const RETRYABLE: [i32; 2] = [client::RESOURCE_EXHAUSTED, client::UNAVAILABLE];
/// Attempts at items that a busy server refuses, each after twice the delay.
const ATTEMPTS_MAX: u32 = 7;
/// Files read into memory ahead of the server.
const READ_AHEAD: usize = 16;
const FIRST_DELAY: Duration = Duration::from_millis(250);

/// The entry's id is the file's name, so an interrupted command can be repeated: existing entries are neither embedded
/// nor stored again.
#[derive(Args)]
pub struct Enroll {
    /// Name of the gallery.
    gallery: String,
    #[command(flatten)]
    chips: ChipFlags,
    /// Vessel that all files show.
    #[arg(long, value_name = "ID", conflicts_with = "vessel_of_name")]
    vessel: Option<String>,
    /// Takes the vessel from HOSS names: 0003_s05c2_SAR.tif shows vessel 0003; -1 stands for an unknown one.
    #[arg(long)]
    vessel_of_name: bool,
    #[command(flatten)]
    labels: LabelFlags,
    /// JSON lines with metadata of single files: file, entry_id, vessel_id, labels, scene_id, detection_id,
    /// sensor, observed_at, latitude, longitude, position_sigma_m, heading_deg, length_m, width_m, ...; - reads them from
    /// standard input.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Replaces entries whose content differs.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    server: ServerFlag,
}

/// Counts of the outcomes.
#[derive(Default)]
struct Tally {
    created: usize,
    replaced: usize,
    unchanged: usize,
    /// File and reason.
    failed: Vec<String>,
    /// Of the failed ones, those that exist with other content.
    differing: usize,
    warned: Vec<String>,
}

impl Enroll {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let upload = Arc::new(Upload::prepare(self)?);
        let mut left = upload.items()?;
        let client = upload.flags.server.connect().await?;
        let bar = progress(left.len());
        let mut tally = Tally::default();
        let mut delay = FIRST_DELAY;
        for attempt in 1..=ATTEMPTS_MAX {
            let refused = upload.send(&client, left, &mut tally, &bar).await?;
            if refused.is_empty() {
                break;
            }
            if attempt == ATTEMPTS_MAX {
                refused.iter().for_each(|(item, error)| tally.fail(item, error));
                break;
            }
            left = refused.into_iter().map(|(item, _)| item).collect();
            tokio::time::sleep(delay).await;
            delay *= 2;
        }
        bar.finish_and_clear();
        tally.print(&upload.flags.gallery);
        if tally.failed.is_empty() {
            return Ok(());
        }
        let way_out =
            if tally.differing > 0 { "; --overwrite replaces entries whose content differs" } else { "" };
        bail!("{} of {} files were not enrolled{way_out}", tally.failed.len(), tally.done())
    }
}

/// A file and the entry that it becomes.
#[derive(Clone)]
struct Item {
    entry_id: String,
    file: FoundFile,
    known: ManifestEntry,
}

struct Upload {
    flags: Enroll,
    labels: HashMap<String, String>,
}

impl Upload {
    fn prepare(flags: Enroll) -> anyhow::Result<Self> {
        let labels = flags.labels.parse()?;
        Ok(Self { flags, labels })
    }

    fn items(&self) -> anyhow::Result<Vec<Item>> {
        let mut seen = HashSet::new();
        let files = self.flags.chips.found()?;
        let known = known_of(self.flags.manifest.as_deref(), &files)?;
        let item = |(file, known): (FoundFile, ManifestEntry)| {
            if is_standard_input(&file.path) {
                bail!(Refusal(
                    "standard input cannot be enrolled: an entry is named after its file".to_owned()
                ));
            }
            let entry_id = known.entry_id.clone().unwrap_or_else(|| file.name.clone());
            if !seen.insert(entry_id.clone()) {
                bail!(Refusal(format!(
                    "two files have the entry id {entry_id}: give the folder that holds both, or a manifest"
                )));
            }
            Ok(Item { entry_id, file, known })
        };
        files.into_iter().zip(known).map(item).collect()
    }

    /// Sends `items` in one stream; returns those that a busy server refused. Files are read only when they are next.
    async fn send(
        self: &Arc<Self>,
        client: &Client,
        items: Vec<Item>,
        tally: &mut Tally,
        bar: &ProgressBar,
    ) -> anyhow::Result<Vec<(Item, ItemError)>> {
        let mut waiting: HashMap<String, Item> =
            items.iter().map(|item| (item.entry_id.clone(), item.clone())).collect();
        let (sender, requests) = mpsc::channel(READ_AHEAD);
        let upload = Arc::clone(self);
        let reading = tokio::spawn(async move { upload.read(items, sender).await });
        let mut answers = client.enroll(ReceiverStream::new(requests)).await?;
        let mut refused = Vec::new();
        while let Some(answer) = answers.next().await {
            let answer = answer.map_err(ClientError::from)?;
            let Some(item) = waiting.remove(&answer.entry_id) else { continue };
            match &answer.error {
                Some(error) if RETRYABLE.contains(&error.code) => refused.push((item, error.clone())),
                Some(error) => tally.fail(&item, error),
                None => tally.count(&item, &answer),
            }
            bar.set_position(tally.done() as u64);
        }
        tally.failed.extend(reading.await?);
        Ok(refused)
    }

    /// Sends a request for each readable file; returns the errors of the others.
    async fn read(&self, items: Vec<Item>, requests: mpsc::Sender<EnrollRequest>) -> Vec<String> {
        let mut failed = Vec::new();
        for item in items {
            match self.request(&item) {
                Ok(request) => {
                    if requests.send(request).await.is_err() {
                        // The call has ended; the answers report its error.
                        break;
                    }
                }
                Err(cause) => failed.push(format!("{cause:#}")),
            }
        }
        failed
    }

    fn request(&self, item: &Item) -> anyhow::Result<EnrollRequest> {
        let known = item.known.clone();
        let mut chip = self.flags.chips.read_one(item.file.clone())?.chip;
        chip.observation = known.observation();
        chip.pixel_size_x_m = known.pixel_size_x_m.or(chip.pixel_size_x_m);
        chip.pixel_size_y_m = known.pixel_size_y_m.or(chip.pixel_size_y_m);
        let vessel = known.vessel_id.or_else(|| self.flags.vessel.clone());
        let vessel = vessel.or_else(|| vessel_of_name(&item.file.path).filter(|_| self.flags.vessel_of_name));
        Ok(EnrollRequest {
            gallery: self.flags.gallery.clone(),
            entry_id: item.entry_id.clone(),
            vessel_id: vessel.unwrap_or_default(),
            labels: self.labels.clone().into_iter().chain(known.labels).collect(),
            source: Some(Source::Chip(chip)),
            overwrite: self.flags.overwrite,
        })
    }
}

/// The identity in a HOSS name; none for distractors, which are different ships.
fn vessel_of_name(path: &Path) -> Option<String> {
    let (identity, _) = path.file_stem()?.to_str()?.split_once('_')?;
    (!identity.starts_with('-')).then(|| identity.to_owned())
}

impl Tally {
    fn count(&mut self, item: &Item, answer: &EnrollResponse) {
        match answer.outcome() {
            EnrollOutcome::Unchanged => self.unchanged += 1,
            EnrollOutcome::Replaced => self.replaced += 1,
            EnrollOutcome::Created | EnrollOutcome::Unspecified => self.created += 1,
        }
        let warnings = answer.warnings.iter();
        self.warned.extend(warnings.map(|w| format!("{}: {} ({})", item.file.name, w.message, w.code)));
    }

    fn fail(&mut self, item: &Item, error: &ItemError) {
        self.failed.push(format!("{}: {} ({})", item.file.name, error.message, error.reason));
        self.differing += usize::from(error.code == client::ALREADY_EXISTS);
    }

    fn done(&self) -> usize {
        self.created + self.replaced + self.unchanged + self.failed.len()
    }

    fn print(&self, gallery: &str) {
        self.warned.iter().chain(&self.failed).for_each(output::remark);
        output::say(format_args!(
            "{gallery}: {} entries created, {} replaced, {} unchanged",
            self.created, self.replaced, self.unchanged
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hoss_name_tells_the_vessel_but_for_distractors() {
        for (name, expected) in
            [("a/0003_s05c2_SAR.tif", Some("0003")), ("-1_0081_RGB.tif", None), ("ship.png", None)]
        {
            assert_eq!(vessel_of_name(Path::new(name)).as_deref(), expected, "{name}");
        }
    }
}
