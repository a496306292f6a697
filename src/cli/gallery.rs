//! `shipreid gallery`: the collections of known ships on a running server.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::bail;
use clap::Subcommand;
use shipreid::client::ClientError;
use shipreid::wire::{
    CreateGalleryRequest, DeleteEntriesRequest, DeleteGalleryRequest, EntryIds, EntryUpdate,
    ExportGalleryRequest, MergeVesselsRequest, UpdateEntriesRequest, delete_entries_request,
};

use super::chips::check_readable;
use super::confirm::ConfirmFlag;
use super::destination::ForceFlag;
use super::enroll::Enroll;
use super::gallery_list::{List, ListEntries, ListVessels, Show, galleries};
use super::labels::LabelFlags;
use super::migrate::Migrate;
use super::{Refusal, ServerFlag, digest, output};

#[derive(Subcommand)]
pub enum Gallery {
    /// Creates an empty gallery.
    Create {
        /// 1 to 64 of a-z, 0-9, "-" and "_", starting with a letter.
        name: String,
        /// Digest of its model, or at least its first 8 digits; default: the active model.
        #[arg(long, default_value = "", hide_default_value = true, value_name = "DIGEST")]
        model: String,
        /// Stores embeddings only: the gallery can never be re-embedded by another model.
        #[arg(long)]
        without_chips: bool,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Lists the galleries.
    List(List),
    /// Shows one gallery.
    Show(Show),
    /// Lists the entries of a gallery, all of them or some.
    ListEntries(ListEntries),
    /// Lists the vessels of a gallery with the number, times and modalities of their entries.
    ListVessels(ListVessels),
    /// Deletes a gallery, or some of its entries. Final.
    Delete {
        /// Name of the gallery.
        name: String,
        /// Deletes these entries instead of the gallery.
        #[arg(long = "entry", value_name = "ID")]
        entries: Vec<String>,
        #[command(flatten)]
        confirm: ConfirmFlag,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Enrols image files.
    ///
    /// Example: shipreid gallery enroll harbour HOSS/bounding_box_test --vessel-of-name
    #[command(verbatim_doc_comment)]
    Enroll(Enroll),
    /// Writes a consistent copy of a gallery to a file, while it is served.
    Export {
        /// Name of the gallery.
        name: String,
        /// The file to write.
        file: PathBuf,
        /// Embeddings only, without chips.
        #[arg(long)]
        without_chips: bool,
        #[command(flatten)]
        force: ForceFlag,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Creates a gallery from an exported file.
    Import {
        /// Name of the gallery to create.
        name: String,
        /// The exported file.
        file: PathBuf,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Copies galleries to another server while both serve, and compares the copies by digest.
    ///
    /// From a server with a data folder to servers that share a PostgreSQL database, or back. What the other server has
    /// already is compared and left, so that a run that was interrupted is repeated as it is. A gallery that is written
    /// meanwhile is copied again, three times at most. Nothing is deleted on the server that galleries come from.
    ///
    /// Example: shipreid gallery migrate harbour strait --to http://127.0.0.1:50052
    #[command(verbatim_doc_comment)]
    Migrate(Migrate),
    /// Updates the metadata of entries, for example when an AIS identity arrives days later.
    ///
    /// Given labels replace all labels of an entry.
    Update {
        /// Name of the gallery.
        name: String,
        /// Ids of the entries.
        #[arg(required = true, value_name = "ENTRY")]
        entries: Vec<String>,
        /// The vessel that they show; an empty string removes it.
        #[arg(long, value_name = "ID")]
        vessel: Option<String>,
        #[command(flatten)]
        labels: LabelFlags,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Merges vessels into one: their entries move to it.
    ///
    /// Example: shipreid gallery merge harbour 0003 0017 --into 0003
    #[command(verbatim_doc_comment)]
    Merge {
        /// Name of the gallery.
        name: String,
        /// The vessels to merge; the one that they become may be among them.
        #[arg(required = true, value_name = "VESSEL")]
        vessels: Vec<String>,
        /// The vessel that they become.
        #[arg(long, value_name = "VESSEL")]
        into: String,
        #[command(flatten)]
        server: ServerFlag,
    },
}

impl Gallery {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Create { name, model, without_chips, server } => {
                let client = server.connect().await?;
                let model = digest::resolve(&client, &model).await?;
                let request = CreateGalleryRequest { name, model, keep_chips: Some(!without_chips) };
                let answer = client.galleries().create_gallery(request).await;
                let made = answer.map_err(ClientError::from)?.into_inner().gallery;
                output::say(galleries(made.as_slice()));
                Ok(())
            }
            Self::List(list) => list.run().await,
            Self::Show(show) => show.run().await,
            Self::ListEntries(list) => list.run().await,
            Self::ListVessels(list) => list.run().await,
            Self::Delete { name, entries, confirm, server } => {
                confirm.confirm(&deletion(&name, &entries))?;
                delete(&server, name, entries).await
            }
            Self::Enroll(enroll) => enroll.run().await,
            Self::Export { name, file, without_chips, force, server } => {
                force.check_file(&file)?;
                let request = ExportGalleryRequest { gallery: name, with_chips: !without_chips };
                let bytes = server.connect().await?.export_gallery(request, &file).await?;
                output::say(format_args!("wrote {bytes} bytes to {}", file.display()));
                Ok(())
            }
            Self::Import { name, file, server } => {
                check_readable(&file)?;
                let made = server.connect().await?.import_gallery(name, &file).await?;
                output::say(galleries(&[made]));
                Ok(())
            }
            Self::Migrate(migrate) => migrate.run().await,
            Self::Update { name, entries, vessel, labels, server } => {
                update(&server, name, entries, vessel, labels.parse()?).await
            }
            Self::Merge { name, vessels, into, server } => merge(&server, name, vessels, into).await,
        }
    }
}

/// Describes what a command is about to delete.
fn deletion(name: &str, entries: &[String]) -> String {
    match entries {
        [] => format!("delete gallery {name} with all its entries"),
        [entry] => format!("delete entry {entry} of gallery {name}"),
        several => format!("delete {} entries of gallery {name}", several.len()),
    }
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
        bail!(Refusal("nothing to change: give --vessel or --label".to_owned()));
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
        bail!("no such entries: {}", answer.missing_entry_ids.join(", "));
    }
    Ok(())
}

async fn merge(
    server: &ServerFlag,
    gallery: String,
    vessels: Vec<String>,
    into: String,
) -> anyhow::Result<()> {
    let vessel_ids: Vec<String> = vessels.into_iter().filter(|vessel| *vessel != into).collect();
    if vessel_ids.is_empty() {
        bail!(Refusal(format!("nothing to merge: {into} is the only vessel")));
    }
    let request = MergeVesselsRequest { gallery, vessel_ids, into: into.clone() };
    let mut client = server.connect().await?.galleries();
    let answer = client.merge_vessels(request).await.map_err(ClientError::from)?.into_inner();
    output::say(format_args!("{} entries moved to {into}", answer.moved_entries));
    Ok(())
}
