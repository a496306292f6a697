//! Galleries as a client uses them: streams of enrolments and of copies.

use std::path::Path;

use futures_util::{Stream, StreamExt};
use tonic::Streaming;

use super::{Client, ClientError, Transport, transfer};
use crate::wire;
use crate::wire::galleries_client::GalleriesClient;

impl Client {
    /// The generated client of the service `Galleries`, for what is not wrapped here.
    pub fn galleries(&self) -> GalleriesClient<Transport> {
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
        let pieces = self.galleries().export_gallery(request).await?.into_inner();
        transfer::receive(pieces.map(|piece| Ok(piece?.data)), file, |_| {}).await
    }

    /// Makes a gallery of a copy.
    ///
    /// # Errors
    /// What the server refuses, or a file that cannot be read.
    pub async fn import_gallery(&self, name: String, file: &Path) -> Result<wire::Gallery, ClientError> {
        let answer = transfer::send(
            file,
            |_| {},
            async |pieces| {
                let requests =
                    pieces.map(move |data| wire::ImportGalleryRequest { name: name.clone(), data });
                self.galleries().import_gallery(requests).await
            },
        );
        Ok(answer.await?.into_inner().gallery.unwrap_or_default())
    }
}
