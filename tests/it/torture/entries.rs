//! Entries of a gallery: each caller enrols, changes, merges and deletes its own among those of others.

use std::collections::{BTreeMap, HashMap};

use rand::RngExt;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;
use shipreid::client::{Client, chip};
use shipreid::wire::delete_entries_request::Selection;
use shipreid::wire::enroll_request::Source;
use shipreid::wire::{
    DeleteEntriesRequest, Embedding, EnrollRequest, EntryFilter, EntryIds, EntryUpdate, GetGalleryRequest,
    ListEntriesRequest, MergeVesselsRequest, Modality, ReadyEmbedding, UpdateEntriesRequest,
};
use tokio_stream::StreamExt;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use super::{Caller, GALLERY};
use crate::server::details;

/// The metadata of an entry: its vessel, and a label.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    vessel: String,
    label: String,
}

pub type Entries = BTreeMap<String, Told>;

pub enum Change {
    Enroll {
        id: String,
        told: Told,
        overwrite: bool,
    },
    /// All in one call.
    Update(BTreeMap<String, Told>),
    Merge {
        vessels: Vec<String>,
        into: String,
    },
    DeleteIds(Vec<String>),
    DeleteVessel(String),
}

const LABEL: &str = "note";
/// Enough that files grow.
const LABEL_BYTES: usize = 200;
/// Vessels per caller: few enough that some have several entries.
const VESSELS: usize = 5;

/// Draws a change of `entries`, whose names all begin with `prefix`.
pub fn draw(entries: &Entries, prefix: &str, random: &mut ChaCha8Rng) -> (Change, Entries) {
    let mut after = entries.clone();
    let some = |entries: &Entries, random: &mut ChaCha8Rng| -> Vec<String> {
        let count = random.random_range(1..4);
        entries.keys().cloned().sample(random, count)
    };
    let change = match random.random_range(0..10) {
        4 if !entries.is_empty() => {
            let updates: Entries =
                some(entries, random).into_iter().map(|id| (id, told(prefix, random))).collect();
            after.extend(updates.clone());
            Change::Update(updates)
        }
        5 if !entries.is_empty() => {
            let vessels = entries.values().map(|told| told.vessel.clone()).sample(random, 2);
            let into = vessel(prefix, random);
            for told in after.values_mut().filter(|told| vessels.contains(&told.vessel)) {
                told.vessel.clone_from(&into);
            }
            Change::Merge { vessels, into }
        }
        6 | 7 if !entries.is_empty() => {
            let ids = some(entries, random);
            after.retain(|id, _| !ids.contains(id));
            Change::DeleteIds(ids)
        }
        8 if entries.len() > 20 => {
            let vessel = vessel(prefix, random);
            after.retain(|_, told| told.vessel != vessel);
            Change::DeleteVessel(vessel)
        }
        9 if !entries.is_empty() => {
            let id = entries.keys().choose(random).expect("there is one").clone();
            let told = told(prefix, random);
            after.insert(id.clone(), told.clone());
            Change::Enroll { id, told, overwrite: true }
        }
        _ => {
            let id = format!("{prefix}{:016x}", random.random::<u64>());
            let told = told(prefix, random);
            after.insert(id.clone(), told.clone());
            Change::Enroll { id, told, overwrite: false }
        }
    };
    (change, after)
}

fn vessel(prefix: &str, random: &mut ChaCha8Rng) -> String {
    format!("{prefix}vessel-{}", random.random_range(0..VESSELS))
}

fn told(prefix: &str, random: &mut ChaCha8Rng) -> Told {
    let label = format!("{}{}", random.random_range(0..1000), "x".repeat(LABEL_BYTES));
    Told { vessel: vessel(prefix, random), label }
}

pub async fn perform(client: &Client, gallery: &str, model: &str, change: Change) -> Result<(), Status> {
    let gallery = gallery.to_owned();
    match change {
        Change::Enroll { id, told, overwrite } => {
            let request = enroll_request(gallery, model, id, told, overwrite);
            let answer = client.enroll(tokio_stream::once(request)).await;
            let mut answers = answer.map_err(|error| Status::unavailable(error.to_string()))?;
            let answer = answers.next().await.unwrap_or_else(|| Err(Status::unavailable("no answer")))?;
            if let Some(error) = answer.error {
                let details = ErrorDetails::with_error_info(error.reason, "shipreid", HashMap::new());
                return Err(Status::with_error_details(error.code.into(), error.message, details));
            }
        }
        Change::Update(updates) => {
            let updates: Vec<_> = updates.into_iter().map(|(id, told)| update(id, told)).collect();
            let (count, paths) = (updates.len() as u64, vec!["vessel_id".into(), "labels".into()]);
            let request = UpdateEntriesRequest {
                gallery,
                updates,
                update_mask: Some(prost_types::FieldMask { paths }),
            };
            assert_eq!(client.galleries().update_entries(request).await?.into_inner().updated, count);
        }
        Change::Merge { vessels, into } => {
            let request = MergeVesselsRequest { gallery, vessel_ids: vessels, into };
            client.galleries().merge_vessels(request).await?;
        }
        Change::DeleteIds(entry_ids) => {
            let count = entry_ids.len() as u64;
            let selection = Some(Selection::Ids(EntryIds { entry_ids }));
            let request = DeleteEntriesRequest { gallery, selection };
            assert_eq!(client.galleries().delete_entries(request).await?.into_inner().deleted, count);
        }
        Change::DeleteVessel(vessel) => {
            let filter = EntryFilter { vessel_ids: vec![vessel], ..EntryFilter::default() };
            let request = DeleteEntriesRequest { gallery, selection: Some(Selection::Filter(filter)) };
            client.galleries().delete_entries(request).await?;
        }
    }
    Ok(())
}

fn enroll_request(gallery: String, model: &str, id: String, told: Told, overwrite: bool) -> EnrollRequest {
    // The micro model's dimension; the direction is irrelevant here.
    let mut values = vec![0.0; 16];
    values[id.len() % 16] = 1.0;
    EnrollRequest {
        gallery,
        entry_id: id,
        vessel_id: told.vessel,
        labels: [(LABEL.to_owned(), told.label)].into(),
        source: Some(Source::Embedding(ReadyEmbedding {
            embedding: Some(Embedding { values }),
            model: model.to_owned(),
            modality: Modality::Sar.into(),
            observation: None,
            chip: None,
        })),
        overwrite,
    }
}

/// One of many entries without a chip.
pub fn ready(gallery: &str, number: usize, model: &str) -> EnrollRequest {
    let told = Told { vessel: format!("vessel-{}", number % VESSELS), label: "x".repeat(LABEL_BYTES) };
    enroll_request(gallery.into(), model, format!("{number:04}"), told, false)
}

/// An entry with a chip.
pub fn pictured(gallery: &str, id: &str, image: Vec<u8>) -> EnrollRequest {
    EnrollRequest {
        gallery: gallery.into(),
        entry_id: id.into(),
        source: Some(Source::Chip(chip(image, shipreid::chip::Modality::Optical))),
        ..EnrollRequest::default()
    }
}

fn update(entry_id: String, told: Told) -> EntryUpdate {
    let labels = [(LABEL.to_owned(), told.label)].into();
    EntryUpdate { entry_id, vessel_id: told.vessel, labels, observation: None }
}

/// The entries of a gallery whose names begin with `prefix`.
pub async fn observe(client: &Client, gallery: &str, prefix: &str) -> Entries {
    let mut found = Entries::new();
    let mut request = ListEntriesRequest { gallery: gallery.into(), page_size: 1000, ..Default::default() };
    loop {
        let page = match client.galleries().list_entries(request.clone()).await {
            Ok(page) => page.into_inner(),
            // A gallery that a full disk made read-only is being reopened; calls in the meantime
            // must be retried.
            Err(status) if details(&status).0 == "GALLERY_CLOSED" => continue,
            Err(status) => panic!("{status}"),
        };
        for mut entry in page.entries.into_iter().filter(|entry| entry.entry_id.starts_with(prefix)) {
            let label = entry.labels.remove(LABEL).unwrap_or_default();
            let told = Told { vessel: entry.vessel_id, label };
            assert_eq!(found.insert(entry.entry_id, told), None, "an entry is there once");
        }
        if page.next_page_token.is_empty() {
            return found;
        }
        request.page_token = page.next_page_token;
    }
}

/// One of several callers of the same gallery.
pub struct Sharer {
    prefix: String,
    model: String,
}

impl Sharer {
    pub fn new(number: usize) -> Self {
        Self { prefix: format!("{number}-"), model: String::new() }
    }
}

impl Caller for Sharer {
    type Part = Entries;
    type Call = Change;

    async fn observe(&mut self, client: &Client) -> Entries {
        let get = GetGalleryRequest { name: GALLERY.into() };
        self.model = client.galleries().get_gallery(get).await.unwrap().into_inner().gallery.unwrap().model;
        observe(client, GALLERY, &self.prefix).await
    }

    fn draw(&mut self, entries: &Entries, random: &mut ChaCha8Rng) -> (Change, Entries) {
        draw(entries, &self.prefix, random)
    }

    async fn perform(&mut self, client: &Client, change: Change) -> Result<(), Status> {
        perform(client, GALLERY, &self.model, change).await
    }
}
