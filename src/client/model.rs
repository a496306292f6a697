//! Models as a client uses them: streams of their files.

use std::path::Path;

use bytes::Bytes;
use futures_util::StreamExt;

use super::{Client, ClientError, Transport, transfer};
use crate::wire;
use crate::wire::models_client::ModelsClient;

impl Client {
    /// The generated client of the service `Models`, for methods that are not wrapped here.
    pub fn models(&self) -> ModelsClient<Transport> {
        self.models.clone()
    }

    /// Sends a packed model or a PyTorch checkpoint; `hints` state what a checkpoint does not contain.
    ///
    /// # Errors
    /// The server refuses, or the file cannot be read.
    pub async fn import_model(
        &self,
        file: &Path,
        hints: wire::CheckpointHints,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<wire::ImportModelResponse, ClientError> {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let first = wire::ImportModelRequest { file_name: name, hints: Some(hints), data: Bytes::new() };
        let answer = transfer::send(file, progress, async |pieces| {
            let rest = pieces.map(|data| wire::ImportModelRequest { data, ..Default::default() });
            self.models().import_model(futures_util::stream::iter([first]).chain(rest)).await
        });
        Ok(answer.await?.into_inner())
    }

    /// Writes a model to `file` as a zip of its folder, which appears when it is complete; returns its size in bytes.
    ///
    /// # Errors
    /// The server refuses, or the file cannot be written.
    pub async fn export_model(
        &self,
        digest: String,
        file: &Path,
        progress: impl Fn(u64),
    ) -> Result<u64, ClientError> {
        let pieces = self.models().export_model(wire::ExportModelRequest { digest }).await?.into_inner();
        transfer::receive(pieces.map(|piece| Ok(piece?.data)), file, progress).await
    }

    /// Every model that the server has, oldest first.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn list_models(&self) -> Result<Vec<wire::Model>, ClientError> {
        let mut models = Vec::new();
        let mut request = wire::ListModelsRequest::default();
        loop {
            let page = self.models().list_models(request).await?.into_inner();
            models.extend(page.models);
            if page.next_page_token.is_empty() {
                return Ok(models);
            }
            request = wire::ListModelsRequest { page_token: page.next_page_token, ..Default::default() };
        }
    }
}
