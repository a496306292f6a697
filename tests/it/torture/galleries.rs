//! Galleries that are created, filled, exported, deleted and imported again, each by its own caller.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use shipreid::client::Client;
use shipreid::wire::{
    CreateGalleryRequest, DeleteGalleryRequest, ExportGalleryRequest, GetGalleryRequest, ImportGalleryRequest,
};
use tonic::{Code, Status};

use super::Caller;
use super::entries::{self, Change, Entries};

const EXPORT_PIECE_BYTES: usize = 1000;

pub struct Owner {
    name: &'static str,
    model: String,
    /// An export, and the entries in it.
    export: Option<(Vec<u8>, Entries)>,
}

pub enum Call {
    Create,
    Import(Vec<u8>),
    Change(Change),
    Delete,
}

impl Owner {
    pub fn new(name: &'static str) -> Self {
        Self { name, model: String::new(), export: None }
    }
}

impl Caller for Owner {
    /// `None` if the gallery does not exist.
    type Part = Option<Entries>;
    type Call = Call;

    async fn observe(&mut self, client: &Client) -> Option<Entries> {
        let get = GetGalleryRequest { name: self.name.into() };
        match client.galleries().get_gallery(get).await {
            Ok(_) => {
                let found = entries::observe(client, self.name, "").await;
                let request = ExportGalleryRequest { gallery: self.name.into(), with_chips: true };
                let mut pieces = client.galleries().export_gallery(request).await.unwrap().into_inner();
                let mut export = Vec::new();
                while let Some(piece) = pieces.message().await.unwrap() {
                    export.extend(piece.data);
                }
                self.export = Some((export, found.clone()));
                Some(found)
            }
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status}");
                None
            }
        }
    }

    fn draw(&mut self, part: &Option<Entries>, random: &mut ChaCha8Rng) -> (Call, Option<Entries>) {
        match (part, &self.export) {
            (Some(_), _) if random.random_ratio(1, 12) => (Call::Delete, None),
            (Some(entries), _) => {
                let (change, after) = entries::draw(entries, "", random);
                (Call::Change(change), Some(after))
            }
            (None, Some((export, entries))) if random.random_bool(0.7) => {
                (Call::Import(export.clone()), Some(entries.clone()))
            }
            (None, _) => (Call::Create, Some(Entries::new())),
        }
    }

    async fn perform(&mut self, client: &Client, call: Call) -> Result<(), Status> {
        let name = self.name.to_owned();
        match call {
            Call::Create => {
                let request = CreateGalleryRequest { name, ..CreateGalleryRequest::default() };
                let made = client.galleries().create_gallery(request).await?.into_inner();
                self.model = made.gallery.expect("it is there").model;
            }
            Call::Import(export) => {
                let first = ImportGalleryRequest { name, data: Vec::new().into() };
                let piece =
                    |data: &[u8]| ImportGalleryRequest { name: String::new(), data: data.to_vec().into() };
                let pieces: Vec<_> = export.chunks(EXPORT_PIECE_BYTES).map(piece).collect();
                let requests = tokio_stream::iter([first].into_iter().chain(pieces));
                client.galleries().import_gallery(requests).await?;
            }
            Call::Delete => {
                client.galleries().delete_gallery(DeleteGalleryRequest { name }).await?;
            }
            Call::Change(change) => {
                if self.model.is_empty() {
                    let made = client.galleries().get_gallery(GetGalleryRequest { name }).await?.into_inner();
                    self.model = made.gallery.expect("it is there").model;
                }
                entries::perform(client, self.name, &self.model, change).await?;
            }
        }
        Ok(())
    }
}
