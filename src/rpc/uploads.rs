//! The service `Uploads`, and uploads as imports read them.

use bytes::Bytes;
use futures_util::{Stream, stream};
use prost_types::Timestamp;
use tonic::{Request, Response, Status};

use super::context::CallContext;
use super::page::{after, next_token, page_size};
use super::problem::Problem;
use crate::budget::Slots;
use crate::cancellation::{Cancellation, spawn_cancellable};
use crate::config::Limits;
use crate::reason::Reason;
use crate::uploads::{UploadEnd, UploadError, UploadId, UploadInfo, UploadLease, Uploads};
use crate::wire;

/// Calls that may read or write uploads on disk at the same time.
const DISK_PLACES: usize = 32;
/// Bytes of an `AppendToUploadRequest` besides its data, at most: the id, the offset, and three tags with lengths.
const CHUNK_FRAMING_BYTES: usize = 64;

/// The uploads of a server, for the services that need them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct UploadAccess {
    uploads: Option<Uploads>,
    chunk_bytes_max: usize,
    disk: Slots,
}

/// An upload that is being imported.
#[derive(Debug)]
pub struct UploadedFile {
    access: UploadAccess,
    id: UploadId,
    lease: UploadLease,
}

impl UploadAccess {
    /// Without uploads, everything is refused.
    pub fn new(uploads: Option<Uploads>, limits: &Limits) -> Self {
        let chunk_bytes_max = limits.message_bytes_max.saturating_sub(CHUNK_FRAMING_BYTES);
        Self { uploads, chunk_bytes_max, disk: Slots::new(DISK_PLACES) }
    }

    /// Takes an upload to import it, with its bytes. `sha256` is what the caller expects; empty, it is not checked.
    ///
    /// # Errors
    /// The tenant has no such upload, another call uses it, or it cannot be read.
    pub async fn take(
        &self,
        tenant: &str,
        upload_id: &str,
        sha256: &str,
    ) -> Result<(UploadedFile, impl Stream<Item = Result<Bytes, Problem>> + use<>), Problem> {
        let sha256 = digest(sha256)?;
        let (lease, id) = self.lease(tenant, upload_id)?;
        let (lease, contents) = self
            .run(move |_| {
                let contents = lease.contents(sha256)?;
                Ok((lease, contents))
            })
            .await?;
        let access = self.clone();
        let pieces = stream::try_unfold(contents, move |mut contents| {
            let access = access.clone();
            async move {
                let (piece, contents) = access.run(move |_| Ok((contents.read()?, contents))).await?;
                Ok(piece.map(|piece| (piece, contents)))
            }
        });
        Ok((UploadedFile { access: self.clone(), id, lease }, pieces))
    }

    fn uploads(&self) -> Result<&Uploads, Problem> {
        self.uploads.as_ref().ok_or_else(|| {
            Problem::new(Reason::NoDataDir, "this server takes no uploads: store.data_dir is empty")
        })
    }

    fn lease(&self, tenant: &str, upload_id: &str) -> Result<(UploadLease, UploadId), Problem> {
        let uploads = self.uploads()?;
        let id = self::upload_id(upload_id)?;
        Ok((uploads.lease(tenant, id)?, id))
    }

    /// Runs work that waits for the disk. What has begun ends even if the caller leaves.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cancellation) -> Result<T, UploadError> + Send + 'static,
    ) -> Result<T, Problem> {
        // The slots are never closed.
        let place = self.disk.take().await.ok();
        let working = spawn_cancellable(None, move |cancellation| {
            let _place = place;
            work(cancellation)
        });
        match working.await {
            Ok(worked) => Ok(worked?),
            Err(cause) => {
                tracing::error!(%cause, "reading or writing an upload panicked");
                Err(Problem::new(Reason::DataDirectoryUnusable, "the uploads cannot be read or written"))
            }
        }
    }

    fn described(&self, upload: UploadInfo) -> wire::Upload {
        wire::Upload {
            upload_id: upload.id.to_string(),
            size_bytes: upload.size,
            created_at: Some(Timestamp::from(upload.id.created_at())),
            expires_at: Some(Timestamp::from(upload.expires_at)),
            chunk_bytes_max: self.chunk_bytes_max as u64,
        }
    }
}

impl UploadedFile {
    /// Deletes the upload, whose content has its final place. If that fails, it expires.
    pub async fn imported(self) {
        let Self { access, id, lease } = self;
        if let Err(cause) = access.run(move |_| lease.discard(UploadEnd::Imported)).await {
            tracing::warn!(upload = %id, cause = cause.message, "an imported upload cannot be removed");
        }
    }
}

/// What is wrong with the data of a stream is wrong with the upload.
pub fn of_upload(problem: Problem) -> Problem {
    match problem.field.as_deref() {
        Some("data") => problem.with_field("upload_id"),
        _ => problem,
    }
}

fn upload_id(text: &str) -> Result<UploadId, Problem> {
    text.parse().map_err(|_| {
        let message = "upload_id is not 32 lower-case hexadecimal digits, as CreateUpload returned it";
        Problem::invalid(Reason::UploadIdMalformed, "upload_id", message)
    })
}

/// The expected SHA-256; `None` if the caller names none.
fn digest(text: &str) -> Result<Option<[u8; 32]>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut digest = [0; 32];
    hex::decode_to_slice(text, &mut digest).map_err(|_| {
        Problem::invalid(Reason::Sha256Malformed, "sha256", "sha256 is not 64 hexadecimal digits")
    })?;
    Ok(Some(digest))
}

/// Files that arrive in chunks.
#[derive(Clone)]
pub struct UploadsService {
    access: UploadAccess,
}

impl UploadsService {
    pub fn new(access: UploadAccess) -> Self {
        Self { access }
    }

    async fn create(&self, context: &CallContext) -> Result<wire::Upload, Problem> {
        let (uploads, tenant) = (self.access.uploads()?.clone(), context.tenant.clone());
        let upload = self.access.run(move |_| uploads.create(&tenant)).await?;
        context.concerns(upload.id);
        Ok(self.access.described(upload))
    }

    async fn append(
        &self,
        context: &CallContext,
        request: wire::AppendToUploadRequest,
    ) -> Result<wire::Upload, Problem> {
        let wire::AppendToUploadRequest { upload_id, offset, data } = request;
        context.concerns(&upload_id);
        let (mut lease, _) = self.access.lease(&context.tenant, &upload_id)?;
        let upload = self.access.run(move |_| lease.append(offset, &data)).await?;
        Ok(self.access.described(upload))
    }

    fn get(&self, context: &CallContext, upload_id: &str) -> Result<wire::Upload, Problem> {
        let uploads = self.access.uploads()?;
        Ok(self.access.described(uploads.get(&context.tenant, self::upload_id(upload_id)?)?))
    }

    fn list(
        &self,
        context: &CallContext,
        request: &wire::ListUploadsRequest,
    ) -> Result<wire::ListUploadsResponse, Problem> {
        let after = after::<UploadId>(&request.page_token)?;
        let size = page_size(request.page_size)?;
        let listing = self.access.uploads()?.list(&context.tenant, after, size);
        Ok(wire::ListUploadsResponse {
            uploads: listing.uploads.into_iter().map(|upload| self.access.described(upload)).collect(),
            next_page_token: next_token(listing.next.as_ref()),
        })
    }

    async fn delete(&self, context: &CallContext, upload_id: &str) -> Result<(), Problem> {
        context.concerns(upload_id);
        let (lease, _) = self.access.lease(&context.tenant, upload_id)?;
        self.access.run(move |_| lease.discard(UploadEnd::Deleted)).await
    }
}

#[tonic::async_trait]
impl wire::uploads_server::Uploads for UploadsService {
    async fn create_upload(
        &self,
        request: Request<wire::CreateUploadRequest>,
    ) -> Result<Response<wire::CreateUploadResponse>, Status> {
        let upload = self.create(&CallContext::of(&request)).await?;
        Ok(Response::new(wire::CreateUploadResponse { upload: Some(upload) }))
    }

    async fn append_to_upload(
        &self,
        request: Request<wire::AppendToUploadRequest>,
    ) -> Result<Response<wire::AppendToUploadResponse>, Status> {
        let context = CallContext::of(&request);
        let upload = self.append(&context, request.into_inner()).await?;
        Ok(Response::new(wire::AppendToUploadResponse { upload: Some(upload) }))
    }

    async fn get_upload(
        &self,
        request: Request<wire::GetUploadRequest>,
    ) -> Result<Response<wire::GetUploadResponse>, Status> {
        let upload = self.get(&CallContext::of(&request), &request.get_ref().upload_id)?;
        Ok(Response::new(wire::GetUploadResponse { upload: Some(upload) }))
    }

    async fn list_uploads(
        &self,
        request: Request<wire::ListUploadsRequest>,
    ) -> Result<Response<wire::ListUploadsResponse>, Status> {
        Ok(Response::new(self.list(&CallContext::of(&request), request.get_ref())?))
    }

    async fn delete_upload(
        &self,
        request: Request<wire::DeleteUploadRequest>,
    ) -> Result<Response<wire::DeleteUploadResponse>, Status> {
        self.delete(&CallContext::of(&request), &request.get_ref().upload_id).await?;
        Ok(Response::new(wire::DeleteUploadResponse {}))
    }
}
