//! Galleries as a client uses them: streams of enrolments and of copies.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Client, ClientError};
use crate::wire;
use crate::wire::galleries_client::GalleriesClient;

/// Bytes of a copy in one message.
const PIECE_BYTES: usize = 1 << 20;

impl Client {
    /// The generated client of the service `Galleries`, for what is not wrapped here.
    pub fn galleries(&self) -> GalleriesClient<Channel> {
        self.galleries.clone()
    }

    /// Enrols as `requests` come; the answers follow in their order.
    ///
    /// # Errors
    /// When the call as a whole is refused; an item that fails alone is in its answer.
    pub async fn enroll(
        &self,
        requests: impl Stream<Item = wire::EnrollRequest> + Send + 'static,
    ) -> Result<Streaming<wire::EnrollResponse>, ClientError> {
        Ok(self.galleries().enroll(requests).await?.into_inner())
    }

    /// # Errors
    /// What the server refuses.
    pub async fn match_ships(&self, request: wire::MatchRequest) -> Result<wire::MatchResponse, ClientError> {
        Ok(self.ship_re_id().r#match(request).await?.into_inner())
    }

    /// Writes a copy of a gallery to `file`, which appears when it is complete; says how many bytes it has.
    ///
    /// # Errors
    /// What the server refuses, or a file that cannot be written.
    pub async fn export_gallery(
        &self,
        request: wire::ExportGalleryRequest,
        file: &Path,
    ) -> Result<u64, ClientError> {
        let mut pieces = self.galleries().export_gallery(request).await?.into_inner();
        let partial = file.with_added_extension("partial");
        let named = |cause| ClientError::File { path: file.to_owned(), cause };
        let mut out = File::create(&partial).map_err(named)?;
        let mut bytes = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece?.data;
            out.write_all(&piece).map_err(named)?;
            bytes += piece.len() as u64;
        }
        out.sync_all().and_then(|()| fs::rename(&partial, file)).map_err(named)?;
        Ok(bytes)
    }

    /// Makes a gallery of a copy.
    ///
    /// # Errors
    /// What the server refuses, or a file that cannot be read.
    pub async fn import_gallery(&self, name: String, file: &Path) -> Result<wire::Gallery, ClientError> {
        let named = |cause| ClientError::File { path: file.to_owned(), cause };
        let mut copy = File::open(file).map_err(named)?;
        let (sender, requests) = mpsc::channel(2);
        let reading = tokio::task::spawn_blocking(move || {
            loop {
                let mut piece = Vec::with_capacity(PIECE_BYTES);
                let read = Read::by_ref(&mut copy).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
                let request = wire::ImportGalleryRequest { name: name.clone(), data: Bytes::from(piece) };
                // A server that has refused the copy reads no further.
                if sender.blocking_send(request).is_err() || read < PIECE_BYTES {
                    return Ok(());
                }
            }
        });
        let answer = self.galleries().import_gallery(ReceiverStream::new(requests)).await;
        match reading.await {
            Ok(read) => read.map_err(named)?,
            Err(cause) => return Err(named(cause.into())),
        }
        Ok(answer?.into_inner().gallery.unwrap_or_default())
    }
}
