//! The service `Models`.

use std::io::{self, Write};
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::context::CallContext;
use super::page::{after, next_token, page_size};
use super::problem::Problem;
use super::uploads::{UploadAccess, of_upload};
use super::{ResponseStream, convert, deadline};
use crate::cancellation::{Cancellation, spawn_cancellable};
use crate::embedding::ModelDigest;
use crate::encoder::{ModelLease, Pipeline};
use crate::page::ModelPlace;
use crate::reason::Reason;
use crate::registry::{Activator, Export, Imported, Incoming, Registry, RegistryError, StoredModel};
use crate::wire;

/// Bytes of a model in one message.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces of a model buffered between the disk and a slow reader.
const PIECES_AHEAD: usize = 4;

/// The models on disk and in memory.
#[derive(Clone)]
pub struct ModelsService {
    pipeline: Arc<Pipeline>,
    /// Absent in a server without a data directory, which serves one model for its lifetime.
    activator: Option<Activator>,
    uploads: UploadAccess,
}

impl ModelsService {
    pub fn new(pipeline: Arc<Pipeline>, activator: Option<Activator>, uploads: UploadAccess) -> Self {
        Self { pipeline, activator, uploads }
    }

    fn activator(&self) -> Result<&Activator, Problem> {
        self.activator.as_ref().ok_or_else(|| {
            Problem::new(
                Reason::NoDataDir,
                "the server keeps no models: set store.data_dir and start it again",
            )
        })
    }

    fn registry(&self) -> Result<Arc<Registry>, Problem> {
        Ok(Arc::clone(self.activator()?.registry()))
    }

    /// Takes in what other servers have done with models before this call.
    async fn refresh(&self) -> Result<(), Problem> {
        let Some(activator) =
            self.activator.as_ref().filter(|activator| activator.registry().cluster().is_some())
        else {
            return Ok(());
        };
        let registry = Arc::clone(activator.registry());
        blocking(move |_| Ok(registry.sync()?)).await
    }

    fn list(
        &self,
        request: &wire::ListModelsRequest,
        caller: &CallContext,
    ) -> Result<wire::ListModelsResponse, Problem> {
        let size = page_size(request.page_size)?;
        let after = after::<ModelPlace>(&request.page_token)?;
        let models = self.known_models(caller);
        let first = models.partition_point(|model| after.is_some_and(|after| place_in_list(model) <= after));
        let end = models.len().min(first + size);
        let page = models[first..end]
            .iter()
            .map(|model| wire::Model { config_toml: String::new(), ..model.clone() });
        let last = models.get(end).and(models.get(end.wrapping_sub(1))).map(place_in_list);
        Ok(wire::ListModelsResponse { models: page.collect(), next_page_token: next_token(last.as_ref()) })
    }

    /// Every model, oldest first; one that is resident but not stored, as a configuration's preset, before all others.
    fn known_models(&self, caller: &CallContext) -> Vec<wire::Model> {
        let stored = self.activator.as_ref().map(|activator| activator.registry().list()).unwrap_or_default();
        let resident = self.pipeline.residency().leases();
        let not_kept = resident.iter().filter(|lease| stored.iter().all(|kept| kept.digest != lease.digest));
        let not_kept = not_kept.map(|lease| self.with_residence(convert::resident_model(lease), Some(lease)));
        let mut models: Vec<_> =
            not_kept.chain(stored.iter().map(|stored| self.stored(stored, caller))).collect();
        models.sort_by_key(place_in_list);
        models
    }

    fn get(&self, digest: &str, caller: &CallContext) -> Result<wire::Model, Problem> {
        let digest = convert::model_digest(digest)?.unwrap_or_else(|| self.pipeline.active().digest);
        let known = self.known_models(caller).into_iter().find(|model| model.digest == digest.to_string());
        known.ok_or_else(|| RegistryError::NotFound(digest).into())
    }

    fn stored(&self, stored: &StoredModel, caller: &CallContext) -> wire::Model {
        let lease = self.pipeline.residency().lease(stored.digest);
        self.with_residence(convert::stored_model(stored, caller), lease.as_ref())
    }

    fn with_residence(&self, model: wire::Model, lease: Option<&ModelLease>) -> wire::Model {
        let model = match lease {
            Some(lease) => convert::with_costs(model, lease),
            None => model,
        };
        wire::Model {
            active: lease.is_some_and(|lease| lease.digest == self.pipeline.active().digest),
            resident: lease.is_some(),
            precision: lease.map(|lease| lease.precision.name().to_owned()).unwrap_or_default(),
            ..model
        }
    }

    async fn import_streamed(
        &self,
        caller: &CallContext,
        mut messages: Streaming<wire::ImportModelRequest>,
    ) -> Result<wire::ImportModelResponse, Status> {
        let first = messages.message().await?.unwrap_or_default();
        let pieces = stream::iter([Ok(first.data)]).chain(messages.map_ok(|message| message.data));
        self.import(caller, (first.file_name, first.hints), pieces).await
    }

    /// Deletes the upload once the server has the model.
    async fn import_uploaded(
        &self,
        caller: &CallContext,
        request: wire::ImportUploadedModelRequest,
    ) -> Result<wire::ImportModelResponse, Problem> {
        let wire::ImportUploadedModelRequest { upload_id, file_name, hints, sha256 } = request;
        let (upload, pieces) = self.uploads.take(&caller.tenant, &upload_id, &sha256).await?;
        let imported = self.import(caller, (file_name, hints), pieces).await.map_err(of_upload)?;
        upload.imported().await;
        Ok(imported)
    }

    /// Receives a file of this name piece by piece; a call that ends early leaves nothing behind.
    async fn import<E: From<Problem>>(
        &self,
        caller: &CallContext,
        (file_name, hints): (String, Option<wire::CheckpointHints>),
        pieces: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<wire::ImportModelResponse, E> {
        let registry = self.registry()?;
        convert::bounded_text("file_name", &file_name)?;
        let hints = convert::hints(&hints.unwrap_or_default())?;
        let mut incoming = blocking({
            let registry = Arc::clone(&registry);
            move |_| Ok(registry.receive()?)
        })
        .await?;
        let mut pieces = pin!(pieces);
        while let Some(data) = pieces.try_next().await? {
            incoming = blocking(move |_| written(incoming, &data)).await?;
        }
        let name = if file_name.is_empty() { "the file".to_owned() } else { file_name };
        let Imported { model, dropped: dropped_tensors, .. } =
            blocking(move |cancellation| Ok(registry.import(incoming, &name, &hints, cancellation)?)).await?;
        Ok(wire::ImportModelResponse { model: Some(self.stored(&model, caller)), dropped_tensors })
    }

    /// A model, read from the disk as fast as the caller receives it.
    async fn export(
        &self,
        digest: &str,
    ) -> Result<ReceiverStream<Result<wire::ExportModelResponse, Status>>, Problem> {
        let (registry, digest) = (self.registry()?, required_digest(digest)?);
        self.refresh().await?;
        let export = blocking(move |_| Ok(registry.export(digest)?)).await?;
        let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
        tokio::task::spawn_blocking(move || send(export, digest, pieces));
        Ok(ReceiverStream::new(receiver))
    }

    async fn activate(&self, digest: &str, caller: &CallContext) -> Result<wire::Model, Problem> {
        let digest = required_digest(digest)?;
        let activator = self.activator()?;
        self.refresh().await?;
        activator.activate(digest).await?;
        self.get(&digest.to_string(), caller)
    }

    async fn delete(&self, digest: &str) -> Result<(), Problem> {
        let (registry, digest) = (self.registry()?, required_digest(digest)?);
        if digest == self.pipeline.active().digest {
            // This includes a model chosen by the configuration, which the registry does not know.
            return Err(RegistryError::Active(digest).into());
        }
        if self.pipeline.residency().lease(digest).is_some() {
            let message = format!(
                "model {digest} is still in use: by calls, or by galleries that are being re-embedded"
            );
            return Err(Problem::new(Reason::ModelInUse, message));
        }
        blocking(move |_| Ok(registry.delete(digest)?)).await
    }
}

#[tonic::async_trait]
impl wire::models_server::Models for ModelsService {
    async fn list_models(
        &self,
        request: Request<wire::ListModelsRequest>,
    ) -> Result<Response<wire::ListModelsResponse>, Status> {
        self.refresh().await?;
        Ok(Response::new(self.list(request.get_ref(), &CallContext::of(&request))?))
    }

    async fn get_model(
        &self,
        request: Request<wire::GetModelRequest>,
    ) -> Result<Response<wire::GetModelResponse>, Status> {
        self.refresh().await?;
        let model = self.get(&request.get_ref().digest, &CallContext::of(&request))?;
        Ok(Response::new(wire::GetModelResponse { model: Some(model) }))
    }

    async fn import_model(
        &self,
        request: Request<Streaming<wire::ImportModelRequest>>,
    ) -> Result<Response<wire::ImportModelResponse>, Status> {
        let context = CallContext::of(&request);
        let imported = self.import_streamed(&context, request.into_inner()).await?;
        imported.model.iter().for_each(|model| context.concerns(&model.digest));
        Ok(Response::new(imported))
    }

    async fn import_uploaded_model(
        &self,
        request: Request<wire::ImportUploadedModelRequest>,
    ) -> Result<Response<wire::ImportUploadedModelResponse>, Status> {
        let context = CallContext::of(&request);
        let wire::ImportModelResponse { model, dropped_tensors } =
            self.import_uploaded(&context, request.into_inner()).await?;
        model.iter().for_each(|model| context.concerns(&model.digest));
        Ok(Response::new(wire::ImportUploadedModelResponse { model, dropped_tensors }))
    }

    type ExportModelStream = ResponseStream<wire::ExportModelResponse>;

    async fn export_model(
        &self,
        request: Request<wire::ExportModelRequest>,
    ) -> Result<Response<Self::ExportModelStream>, Status> {
        let deadline = CallContext::of(&request).deadline;
        let pieces = self.export(&request.get_ref().digest).await?;
        Ok(Response::new(Box::pin(deadline::bounded(pieces, deadline))))
    }

    async fn activate_model(
        &self,
        request: Request<wire::ActivateModelRequest>,
    ) -> Result<Response<wire::ActivateModelResponse>, Status> {
        let context = CallContext::of(&request);
        context.concerns(&request.get_ref().digest);
        let model = self.activate(&request.get_ref().digest, &context).await?;
        Ok(Response::new(wire::ActivateModelResponse { model: Some(model) }))
    }

    async fn delete_model(
        &self,
        request: Request<wire::DeleteModelRequest>,
    ) -> Result<Response<wire::DeleteModelResponse>, Status> {
        CallContext::of(&request).concerns(&request.get_ref().digest);
        self.delete(&request.get_ref().digest).await?;
        Ok(Response::new(wire::DeleteModelResponse {}))
    }
}

/// Runs work that reads and writes the disk where it may block, for as long as the caller waits for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Cancellation) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let panicked = || Problem::new(Reason::ModelStoreFailed, "the models cannot be read or written");
    spawn_cancellable(None, work).await.unwrap_or_else(|_| Err(panicked()))
}

fn written(mut incoming: Incoming, piece: &[u8]) -> Result<Incoming, Problem> {
    incoming.write(piece)?;
    Ok(incoming)
}

fn send(
    export: Export,
    digest: ModelDigest,
    pieces: mpsc::Sender<Result<wire::ExportModelResponse, Status>>,
) {
    let mut out = Pieces { filling: BytesMut::new(), sender: pieces };
    if let Err(cause) = export.write_to(&mut out).and_then(|()| out.send())
        && !out.sender.is_closed()
    {
        tracing::error!(model = %digest, %cause, "a model cannot be read from disk");
        let problem = Problem::new(Reason::ModelDamaged, "the model cannot be read from disk");
        // A caller that has disconnected in the meantime needs no response.
        let _ = out.sender.blocking_send(Err(problem.into()));
    }
}

/// Bytes that become messages of a stream.
struct Pieces {
    filling: BytesMut,
    sender: mpsc::Sender<Result<wire::ExportModelResponse, Status>>,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        let data = self.filling.split().freeze();
        let sent = self.sender.blocking_send(Ok(wire::ExportModelResponse { data }));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE_BYTES - self.filling.len());
        self.filling.extend_from_slice(&bytes[..taken]);
        if self.filling.len() == PIECE_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn required_digest(text: &str) -> Result<ModelDigest, Problem> {
    convert::model_digest(text)?
        .ok_or_else(|| Problem::invalid(Reason::ModelMalformed, "digest", "digest is empty"))
}

fn place_in_list(model: &wire::Model) -> ModelPlace {
    ModelPlace {
        created_at: model.created_at.map_or(0, |at| at.seconds),
        digest: model.digest.parse().expect("a model is named by its digest"),
    }
}
