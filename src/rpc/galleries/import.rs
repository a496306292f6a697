//! Galleries created from exports, which come as a stream or as an upload.

use std::pin::pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tonic::{Status, Streaming};

use super::{CallContext, GalleriesService, Problem, convert, described, gallery_name};
use crate::rpc::uploads::of_upload;
use crate::wire;

impl GalleriesService {
    pub(super) async fn import_streamed(
        &self,
        context: &CallContext,
        mut messages: Streaming<wire::ImportGalleryRequest>,
    ) -> Result<wire::Gallery, Status> {
        let first = messages.message().await?.unwrap_or_default();
        let name = first.name.clone();
        let pieces = stream::iter([Ok(first)]).chain(messages).map_ok(|message| message.data);
        self.import(context, &name, pieces).await
    }

    /// Deletes the upload once the gallery exists.
    pub(super) async fn import_uploaded(
        &self,
        context: &CallContext,
        request: wire::ImportUploadedGalleryRequest,
    ) -> Result<wire::Gallery, Problem> {
        let wire::ImportUploadedGalleryRequest { name, upload_id, sha256 } = request;
        context.concerns(&name);
        let (upload, pieces) = self.uploads.take(&context.tenant, &upload_id, &sha256).await?;
        let gallery = self.import(context, &name, pieces).await.map_err(of_upload)?;
        upload.imported().await;
        Ok(gallery)
    }

    /// Receives a copy piece by piece; a call that ends early leaves nothing behind.
    async fn import<E: From<Problem>>(
        &self,
        context: &CallContext,
        name: &str,
        pieces: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<wire::Gallery, E> {
        context.concerns(name);
        let name = gallery_name("name", name)?;
        let catalog = self.access.catalog()?;
        let mut import = catalog.import(&context.tenant, &name).await.map_err(Problem::from)?;
        let mut pieces = pin!(pieces);
        while let Some(data) = pieces.try_next().await? {
            import = self
                .access
                .run(move |cancellation| {
                    import.push(&data, cancellation)?;
                    Ok(import)
                })
                .await?;
        }
        let made = self.access.run(move |cancellation| Ok(import.finish(cancellation)?)).await?;
        Ok(convert::gallery(name.as_str(), described(&made)))
    }
}
