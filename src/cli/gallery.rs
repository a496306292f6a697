//! `shipreid gallery`: the collections of known ships on a running server.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::bail;
use clap::Subcommand;
use comfy_table::{Table, presets};
use shipreid::client::ClientError;
use shipreid::wire::{
    CreateGalleryRequest, DeleteEntriesRequest, DeleteGalleryRequest, Entry, EntryIds, EntryUpdate,
    ExportGalleryRequest, Gallery as Description, GetGalleryRequest, ListEntriesRequest,
    ListGalleriesRequest, UpdateEntriesRequest, delete_entries_request,
};

use super::enroll::Enroll;
use super::labels::LabelFlags;
use super::{ServerFlag, output};

#[derive(Subcommand)]
pub enum Gallery {
    /// Makes an empty gallery for the active model.
    Create {
        /// 1 to 64 of a-z, 0-9, "-" and "_", starting with a letter.
        name: String,
        /// Digest of its model; default: the active model.
        #[arg(long, default_value = "", hide_default_value = true, value_name = "DIGEST")]
        model: String,
        /// Keeps embeddings alone: the gallery can never follow another model.
        #[arg(long)]
        without_chips: bool,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Lists the galleries, or the entries of one.
    List {
        name: Option<String>,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Deletes a gallery, or some of its entries. Final.
    Delete {
        name: String,
        /// These entries, and not the gallery.
        #[arg(long = "entry", value_name = "ID")]
        entries: Vec<String>,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Enrols image files.
    ///
    /// Example: shipreid gallery enroll harbour HOSS/bounding_box_test --vessel-of-name
    #[command(verbatim_doc_comment)]
    Enroll(Enroll),
    /// Writes a consistent copy of a gallery into a file, while it serves.
    Export {
        name: String,
        file: PathBuf,
        /// Embeddings alone.
        #[arg(long)]
        without_chips: bool,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Creates a gallery from an exported file.
    Import {
        name: String,
        file: PathBuf,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Changes what is known about entries, as when an AIS identity arrives days later.
    ///
    /// Labels that are given take the place of all that an entry had.
    Update {
        name: String,
        #[arg(required = true, value_name = "ENTRY")]
        entries: Vec<String>,
        /// Vessel that they show; the empty text makes it unknown.
        #[arg(long, value_name = "ID")]
        vessel: Option<String>,
        #[command(flatten)]
        labels: LabelFlags,
        #[command(flatten)]
        server: ServerFlag,
    },
}

impl Gallery {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Create { name, model, without_chips, server } => {
                let request = CreateGalleryRequest { name, model, keep_chips: Some(!without_chips) };
                let answer = server.connect().await?.galleries().create_gallery(request).await;
                let made = answer.map_err(ClientError::from)?.into_inner().gallery;
                output::say(galleries(made.into_iter()));
                Ok(())
            }
            Self::List { name: None, server } => list(&server).await,
            Self::List { name: Some(name), server } => list_entries(&server, name).await,
            Self::Delete { name, entries, server } => delete(&server, name, entries).await,
            Self::Enroll(enroll) => enroll.run().await,
            Self::Export { name, file, without_chips, server } => {
                let request = ExportGalleryRequest { gallery: name, with_chips: !without_chips };
                let bytes = server.connect().await?.export_gallery(request, &file).await?;
                output::say(format_args!("{bytes} bytes in {}", file.display()));
                Ok(())
            }
            Self::Import { name, file, server } => {
                let made = server.connect().await?.import_gallery(name, &file).await?;
                output::say(galleries(std::iter::once(made)));
                Ok(())
            }
            Self::Update { name, entries, vessel, labels, server } => {
                update(&server, name, entries, vessel, labels.parse()?).await
            }
        }
    }
}

async fn list(server: &ServerFlag) -> anyhow::Result<()> {
    let mut client = server.connect().await?.galleries();
    let (mut found, mut request) = (Vec::new(), ListGalleriesRequest::default());
    loop {
        let page = client.list_galleries(request).await.map_err(ClientError::from)?.into_inner();
        found.extend(page.galleries);
        if page.next_page_token.is_empty() {
            break;
        }
        request = ListGalleriesRequest { page_token: page.next_page_token, ..Default::default() };
    }
    output::say(galleries(found.into_iter()));
    Ok(())
}

async fn list_entries(server: &ServerFlag, gallery: String) -> anyhow::Result<()> {
    let mut client = server.connect().await?.galleries();
    client.get_gallery(GetGalleryRequest { name: gallery.clone() }).await.map_err(ClientError::from)?;
    let mut request = ListEntriesRequest { gallery, page_size: 1000, ..Default::default() };
    let mut rows = Vec::new();
    loop {
        let page = client.list_entries(request.clone()).await.map_err(ClientError::from)?.into_inner();
        rows.extend(page.entries);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    output::say(entries(&rows));
    Ok(())
}

async fn delete(server: &ServerFlag, name: String, entries: Vec<String>) -> anyhow::Result<()> {
    let mut client = server.connect().await?.galleries();
    if entries.is_empty() {
        client
            .delete_gallery(DeleteGalleryRequest { name: name.clone() })
            .await
            .map_err(ClientError::from)?;
        output::say(format_args!("{name} is deleted"));
        return Ok(());
    }
    let selection = delete_entries_request::Selection::Ids(EntryIds { entry_ids: entries });
    let request = DeleteEntriesRequest { gallery: name, selection: Some(selection) };
    let answer = client.delete_entries(request).await.map_err(ClientError::from)?.into_inner();
    output::say(format_args!("{} entries deleted", answer.deleted));
    Ok(())
}

async fn update(
    server: &ServerFlag,
    gallery: String,
    entries: Vec<String>,
    vessel: Option<String>,
    labels: HashMap<String, String>,
) -> anyhow::Result<()> {
    let mut paths = Vec::new();
    paths.extend(vessel.is_some().then(|| "vessel_id".to_owned()));
    paths.extend((!labels.is_empty()).then(|| "labels".to_owned()));
    if paths.is_empty() {
        bail!("nothing to change: give --vessel or --label");
    }
    let vessel_id = vessel.unwrap_or_default();
    let update = |entry_id| EntryUpdate {
        entry_id,
        vessel_id: vessel_id.clone(),
        labels: labels.clone(),
        observation: None,
    };
    let request = UpdateEntriesRequest {
        gallery,
        updates: entries.into_iter().map(update).collect(),
        update_mask: Some(prost_types::FieldMask { paths }),
    };
    let mut client = server.connect().await?.galleries();
    let answer = client.update_entries(request).await.map_err(ClientError::from)?.into_inner();
    output::say(format_args!("{} entries updated", answer.updated));
    if !answer.missing_entry_ids.is_empty() {
        bail!("not there: {}", answer.missing_entry_ids.join(", "));
    }
    Ok(())
}

fn galleries(galleries: impl Iterator<Item = Description>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["gallery", "entries", "vessels", "MiB", "chips", "model", "remarks"]);
    for gallery in galleries {
        let remarks = remarks(&gallery);
        table.add_row([
            gallery.name,
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

/// What keeps a gallery from being written to, and how far it is on its way to another model.
fn remarks(gallery: &Description) -> String {
    let following = gallery.following.as_ref().map(|following| {
        let model: String = following.model.chars().take(12).collect();
        let done = format!("{} of {} entries", following.embedded_entries, gallery.entries);
        match following.stalled_reason.as_str() {
            "" => format!("follows model {model}: {done}"),
            reason => format!("does not get to model {model} ({done}): {reason}"),
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
        let position = observation.latitude.zip(observation.longitude);
        let mut labels: Vec<_> = entry.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        labels.sort();
        table.add_row([
            entry.entry_id.clone(),
            entry.vessel_id.clone(),
            entry.modality().as_str_name().trim_start_matches("MODALITY_").to_lowercase(),
            observation.observed_at.map_or_else(String::new, |time| time.to_string()),
            position
                .map_or_else(String::new, |(latitude, longitude)| format!("{latitude:.4}, {longitude:.4}")),
            labels.join(" "),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use shipreid::wire::Following;

    use super::*;

    #[test]
    fn remarks_say_what_holds_a_gallery_up() {
        assert_eq!(remarks(&Description::default()), "");
        let following = Following { model: "4f2c".repeat(16), embedded_entries: 2, ..Following::default() };
        let on_its_way =
            Description { entries: 3, following: Some(following.clone()), ..Description::default() };
        assert_eq!(remarks(&on_its_way), "follows model 4f2c4f2c4f2c: 2 of 3 entries");
        let stalled = Following { stalled_reason: "1 entries have no chip".into(), ..following };
        let held_up = Description {
            read_only_reason: "writing gallery.redb: no storage space".into(),
            following: Some(stalled),
            ..on_its_way
        };
        assert_eq!(
            remarks(&held_up),
            "writing gallery.redb: no storage space; does not get to model 4f2c4f2c4f2c (2 of 3 entries): 1 entries have \
             no chip"
        );
    }
}
