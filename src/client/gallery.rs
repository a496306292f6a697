//! Galleries as a client uses them: streams of enrolments and of copies.

use std::path::Path;

use futures_util::{Stream, StreamExt};
use tonic::{Code, Streaming};

use super::{Client, ClientError, Transport, transfer};
use crate::wire;
use crate::wire::galleries_client::GalleriesClient;

impl Client {
    /// The generated client of the service `Galleries`, for methods that are not wrapped here.
    pub fn galleries(&self) -> GalleriesClient<Transport> {
        self.galleries.clone()
    }

    /// Enrols each request as it arrives; the responses follow in the same order.
    ///
    /// # Errors
    /// The call as a whole is refused; the error of an item that fails alone is in its response.
    pub async fn enroll(
        &self,
        requests: impl Stream<Item = wire::EnrollRequest> + Send + 'static,
    ) -> Result<Streaming<wire::EnrollResponse>, ClientError> {
        Ok(self.galleries().enroll(requests).await?.into_inner())
    }

    /// # Errors
    /// The server refuses.
    pub async fn match_ships(&self, request: wire::MatchRequest) -> Result<wire::MatchResponse, ClientError> {
        Ok(self.ship_re_id().r#match(request).await?.into_inner())
    }

    /// A gallery, if the server has it.
    ///
    /// # Errors
    /// The server refuses for another reason.
    pub async fn find_gallery(&self, name: &str) -> Result<Option<wire::Gallery>, ClientError> {
        match self.galleries().get_gallery(wire::GetGalleryRequest { name: name.to_owned() }).await {
            Ok(answer) => Ok(answer.into_inner().gallery),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// Writes a copy of a gallery to `file`, which appears when it is complete; returns its size in bytes.
    ///
    /// # Errors
    /// The server refuses, or the file cannot be written.
    pub async fn export_gallery(
        &self,
        request: wire::ExportGalleryRequest,
        file: &Path,
    ) -> Result<u64, ClientError> {
        let pieces = self.galleries().export_gallery(request).await?.into_inner();
        transfer::receive(pieces.map(|piece| Ok(piece?.data)), file, |_| {}).await
    }

    /// Creates a gallery from a copy.
    ///
    /// # Errors
    /// The server refuses, or the file cannot be read.
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
