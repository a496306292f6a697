//! The content of a server's galleries, as tables and as JSON.

use std::collections::HashMap;

use clap::Args;
use comfy_table::{Table, presets};
use prost_types::Timestamp;
use shipreid::client::{Client, ClientError};
use shipreid::wire::{
    Entry, Gallery, GetGalleryRequest, ListEntriesRequest, ListGalleriesRequest, ListVesselsRequest,
    Modality, Observation, Vessel,
};

use super::filter::FilterFlags;
use super::json::{JsonFlag, json};
use super::{ServerFlag, output};

/// The largest page that the contract allows.
const PAGE: u32 = 1000;

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    json: JsonFlag,
    #[command(flatten)]
    server: ServerFlag,
}

#[derive(Args)]
pub struct Show {
    /// Name of the gallery.
    name: String,
    #[command(flatten)]
    json: JsonFlag,
    #[command(flatten)]
    server: ServerFlag,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid gallery list-entries harbour --vessel 0003
  shipreid gallery list-entries harbour --among sar --from 2026-03-01T00:00:00Z --area 51.5,3.0,52.5,4.5 --json")]
pub struct ListEntries {
    /// Name of the gallery.
    gallery: String,
    #[command(flatten)]
    json: JsonFlag,
    #[command(flatten)]
    server: ServerFlag,
    #[command(flatten)]
    filter: FilterFlags,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid gallery list-vessels harbour
  shipreid gallery list-vessels harbour --among sar --from 2026-03-01T00:00:00Z --json")]
pub struct ListVessels {
    /// Name of the gallery.
    gallery: String,
    #[command(flatten)]
    json: JsonFlag,
    #[command(flatten)]
    server: ServerFlag,
    #[command(flatten)]
    filter: FilterFlags,
}

impl List {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut client = self.server.connect().await?.galleries();
        let mut request = ListGalleriesRequest { page_size: PAGE, ..Default::default() };
        let mut found = Vec::new();
        loop {
            let page = client.list_galleries(request.clone()).await.map_err(ClientError::from)?.into_inner();
            found.extend(page.galleries);
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        self.json.print(&found, galleries);
        Ok(())
    }
}

impl Show {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let found = get(&self.server.connect().await?, &self.name).await?;
        self.json.print(&[found], galleries);
        Ok(())
    }
}

impl ListEntries {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let filter = self.filter.filter()?;
        let client = self.server.connect().await?;
        // A gallery without entries and one that does not exist give the same empty list.
        get(&client, &self.gallery).await?;
        let mut request =
            ListEntriesRequest { gallery: self.gallery, filter, page_size: PAGE, ..Default::default() };
        let mut rows = Vec::new();
        loop {
            let page = client.galleries().list_entries(request.clone()).await.map_err(ClientError::from)?;
            let page = page.into_inner();
            if self.json.is_given() {
                // A gallery may have more entries than fit into memory.
                page.entries.iter().for_each(|entry| output::say(json(entry)));
            } else {
                rows.extend(page.entries);
            }
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        if !self.json.is_given() {
            output::say(entries(&rows));
        }
        Ok(())
    }
}

impl ListVessels {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let filter = self.filter.filter()?;
        let mut client = self.server.connect().await?.galleries();
        let mut request =
            ListVesselsRequest { gallery: self.gallery, filter, page_size: PAGE, ..Default::default() };
        let mut rows = Vec::new();
        loop {
            let page = client.list_vessels(request.clone()).await.map_err(ClientError::from)?.into_inner();
            if self.json.is_given() {
                page.vessels.iter().for_each(|vessel| output::say(json(vessel)));
            } else {
                rows.extend(page.vessels);
            }
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        if !self.json.is_given() {
            output::say(vessels(&rows));
        }
        Ok(())
    }
}

async fn get(client: &Client, name: &str) -> Result<Gallery, ClientError> {
    let answer = client.galleries().get_gallery(GetGalleryRequest { name: name.to_owned() }).await?;
    Ok(answer.into_inner().gallery.unwrap_or_default())
}

/// Galleries for people.
pub fn galleries(galleries: &[Gallery]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["gallery", "entries", "vessels", "MiB", "chips", "model", "remarks"]);
    for gallery in galleries {
        let remarks = remarks(gallery);
        table.add_row([
            gallery.name.clone(),
            gallery.entries.to_string(),
            gallery.vessels.to_string(),
            format!("{:.1}", gallery.stored_bytes as f64 / f64::from(1 << 20)),
            if gallery.keeps_chips { "kept" } else { "none" }.to_owned(),
            gallery.model.chars().take(12).collect(),
            remarks,
        ]);
    }
    table
}

/// What prevents writes to a gallery, and the progress of its move to another model.
fn remarks(gallery: &Gallery) -> String {
    let following = gallery.following.as_ref().map(|following| {
        let model: String = following.model.chars().take(12).collect();
        let done = format!("{} of {} entries", following.embedded_entries, gallery.entries);
        match following.stalled_reason.as_str() {
            "" => format!("re-embedding with model {model}: {done}"),
            reason => format!("re-embedding with model {model} has stopped ({done}): {reason}"),
        }
    });
    let read_only = Some(gallery.read_only_reason.clone()).filter(|reason| !reason.is_empty());
    read_only.into_iter().chain(following).collect::<Vec<_>>().join("; ")
}

fn entries(entries: &[Entry]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["entry", "vessel", "modality", "observed at", "position", "labels"]);
    for entry in entries {
        let observation = entry.observation.clone().unwrap_or_default();
        table.add_row([
            entry.entry_id.clone(),
            entry.vessel_id.clone(),
            modality(entry.modality()),
            time(observation.observed_at),
            position(&observation),
            labels(&entry.labels),
        ]);
    }
    table
}

fn vessels(vessels: &[Vessel]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["vessel", "entries", "modalities", "first observed", "last observed"]);
    for vessel in vessels {
        table.add_row([
            vessel.vessel_id.clone(),
            vessel.entries.to_string(),
            vessel.modalities().map(modality).collect::<Vec<_>>().join(", "),
            time(vessel.first_observed_at),
            time(vessel.last_observed_at),
        ]);
    }
    table
}

/// A modality for people; nothing if it is unknown.
pub fn modality(modality: Modality) -> String {
    match modality {
        Modality::Unspecified => String::new(),
        Modality::Optical => "optical".to_owned(),
        Modality::Sar => "sar".to_owned(),
    }
}

/// A time in UTC.
pub fn time(time: Option<Timestamp>) -> String {
    time.map_or_else(String::new, |time| time.to_string())
}

/// Latitude and longitude in degrees.
pub fn position(observation: &Observation) -> String {
    let position = observation.latitude.zip(observation.longitude);
    position.map_or_else(String::new, |(latitude, longitude)| format!("{latitude:.4}, {longitude:.4}"))
}

/// Labels in the order of their names.
pub fn labels(labels: &HashMap<String, String>) -> String {
    let mut labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    labels.join(" ")
}

#[cfg(test)]
mod tests {
    use shipreid::wire::Following;

    use super::*;

    #[test]
    fn remarks_say_what_holds_a_gallery_up() {
        assert_eq!(remarks(&Gallery::default()), "");
        let following = Following { model: "4f2c".repeat(16), embedded_entries: 2, ..Following::default() };
        let on_its_way = Gallery { entries: 3, following: Some(following.clone()), ..Gallery::default() };
        assert_eq!(remarks(&on_its_way), "re-embedding with model 4f2c4f2c4f2c: 2 of 3 entries");
        let stalled = Following { stalled_reason: "1 entries have no chip".into(), ..following };
        let held_up = Gallery {
            read_only_reason: "writing gallery.redb: no storage space".into(),
            following: Some(stalled),
            ..on_its_way
        };
        assert_eq!(
            remarks(&held_up),
            "writing gallery.redb: no storage space; re-embedding with model 4f2c4f2c4f2c has stopped (2 of \
             3 entries): 1 entries have no chip"
        );
    }
}
