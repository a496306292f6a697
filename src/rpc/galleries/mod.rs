//! The service `Galleries`.

mod access;
mod enroll;
mod enroll_entries;
mod entries;
mod export;
mod import;
mod preview;
mod turns;
mod vessels;

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

pub use access::{GalleryAccess, gallery_name};
pub use enroll::with_model;
pub use turns::SearchSize;

use super::ResponseStream;
use super::context::CallContext;
use super::convert;
use super::deadline;
use super::drain::Drain;
use super::page::{after, next_token, page_size};
use super::problem::Problem;
use super::uploads::UploadAccess;
use crate::config::Limits;
use crate::encoder::Pipeline;
use crate::gallery::{Export, Filter, Gallery, GalleryName, Info, NewGallery, VesselId};
use crate::reason::Reason;
use crate::wire;

/// Entries that one call may name.
const ENTRIES_MAX: usize = 10_000;

/// The gallery service, backed by stored galleries.
#[derive(Clone)]
pub struct GalleriesService {
    access: GalleryAccess,
    pipeline: Arc<Pipeline>,
    uploads: UploadAccess,
    chips_inflight_max: usize,
    items_inflight_max: usize,
    drain: Drain,
}

impl GalleriesService {
    pub fn new(
        access: GalleryAccess,
        pipeline: Arc<Pipeline>,
        uploads: UploadAccess,
        limits: &Limits,
        drain: Drain,
    ) -> Self {
        Self {
            access,
            pipeline,
            uploads,
            chips_inflight_max: limits.stream_inflight_max,
            items_inflight_max: limits.enroll_inflight_max,
            drain,
        }
    }

    async fn create(
        &self,
        context: CallContext,
        request: wire::CreateGalleryRequest,
    ) -> Result<wire::Gallery, Problem> {
        context.concerns(&request.name);
        let catalog = self.access.catalog()?;
        let name = gallery_name("name", &request.name)?;
        let card = self.pipeline.resolve(convert::model_digest(&request.model)?)?;
        let new = NewGallery {
            model: card.digest,
            dimension: card.dimension,
            composition: card.composition(),
            keeps_chips: request.keep_chips.unwrap_or(true),
        };
        let made = catalog.create(&context.tenant, &name, new).await?;
        Ok(convert::gallery(name.as_str(), described(&made)))
    }

    async fn list(
        &self,
        context: &CallContext,
        request: &wire::ListGalleriesRequest,
    ) -> Result<wire::ListGalleriesResponse, Problem> {
        let after = after::<GalleryName>(&request.page_token)?;
        let size = page_size(request.page_size)?;
        let listing = self.access.catalog()?.list(&context.tenant, after.as_ref(), size).await?;
        let described = listing.galleries.into_iter().map(|(name, slot)| match slot {
            Ok(gallery) => convert::gallery(name.as_str(), described(&gallery)),
            // The gallery exists, which a caller that wants to delete it must see.
            Err(cause) => wire::Gallery {
                name: name.to_string(),
                read_only_reason: format!("not served: {cause}"),
                ..wire::Gallery::default()
            },
        });
        Ok(wire::ListGalleriesResponse {
            galleries: described.collect(),
            next_page_token: next_token(listing.next.as_ref()),
        })
    }

    async fn delete_some(
        &self,
        context: &CallContext,
        request: wire::DeleteEntriesRequest,
    ) -> Result<wire::DeleteEntriesResponse, Problem> {
        context.concerns(&request.gallery);
        let gallery = self.access.gallery(&context.tenant, &request.gallery).await?;
        let selector = convert::selector(request.selection)?;
        let deleted = gallery.delete(selector).await?;
        context.changed(deleted);
        Ok(wire::DeleteEntriesResponse { deleted, gallery_commit: gallery.snapshot().commit() })
    }

    async fn update(
        &self,
        context: &CallContext,
        request: wire::UpdateEntriesRequest,
    ) -> Result<wire::UpdateEntriesResponse, Problem> {
        context.concerns(&request.gallery);
        let gallery = self.access.gallery(&context.tenant, &request.gallery).await?;
        bounded_count("updates", request.updates.len())?;
        let (updates, fields) = convert::updates(request)?;
        let updated = gallery.update(updates, fields).await?;
        context.changed(updated.updated);
        Ok(wire::UpdateEntriesResponse {
            updated: updated.updated,
            missing_entry_ids: updated.missing.iter().map(ToString::to_string).collect(),
            gallery_commit: gallery.snapshot().commit(),
        })
    }

    async fn merge(
        &self,
        context: &CallContext,
        request: wire::MergeVesselsRequest,
    ) -> Result<wire::MergeVesselsResponse, Problem> {
        context.concerns(&request.gallery);
        let gallery = self.access.gallery(&context.tenant, &request.gallery).await?;
        bounded_count("vessel_ids", request.vessel_ids.len())?;
        let vessels = convert::each("vessel_ids", &request.vessel_ids, named_vessel)?;
        let moved_entries = gallery.merge(vessels, named_vessel("into", &request.into)?).await?;
        context.changed(moved_entries);
        Ok(wire::MergeVesselsResponse { moved_entries, gallery_commit: gallery.snapshot().commit() })
    }
}

/// A gallery, and its last commit.
fn described(gallery: &Gallery) -> (Info, u64) {
    (gallery.info(), gallery.snapshot().commit())
}

fn filter(filter: Option<wire::EntryFilter>) -> Result<Filter, Problem> {
    convert::filter(filter.unwrap_or_default()).map_err(|problem| problem.within("filter"))
}

fn named_vessel(field: &str, id: &str) -> Result<VesselId, Problem> {
    convert::vessel_id(field, id)?
        .ok_or_else(|| Problem::invalid(Reason::TextEmpty, field, format!("{field} names no vessel")))
}

fn bounded_count(field: &str, count: usize) -> Result<(), Problem> {
    if count <= ENTRIES_MAX {
        return Ok(());
    }
    let message = format!("{field} has {count} elements, the limit is {ENTRIES_MAX}");
    Err(Problem::invalid(Reason::TooManyEntries, field, message).with_metadata("limit", ENTRIES_MAX))
}

#[tonic::async_trait]
impl wire::galleries_server::Galleries for GalleriesService {
    async fn create_gallery(
        &self,
        request: Request<wire::CreateGalleryRequest>,
    ) -> Result<Response<wire::CreateGalleryResponse>, Status> {
        let context = CallContext::of(&request);
        let gallery = self.create(context, request.into_inner()).await?;
        Ok(Response::new(wire::CreateGalleryResponse { gallery: Some(gallery) }))
    }

    async fn get_gallery(
        &self,
        request: Request<wire::GetGalleryRequest>,
    ) -> Result<Response<wire::GetGalleryResponse>, Status> {
        let context = CallContext::of(&request);
        let name = request.into_inner().name;
        let found = self.access.catalog()?.get(&context.tenant, &gallery_name("name", &name)?).await;
        let gallery = convert::gallery(&name, described(&found.map_err(Problem::from)?));
        Ok(Response::new(wire::GetGalleryResponse { gallery: Some(gallery) }))
    }

    async fn list_galleries(
        &self,
        request: Request<wire::ListGalleriesRequest>,
    ) -> Result<Response<wire::ListGalleriesResponse>, Status> {
        Ok(Response::new(self.list(&CallContext::of(&request), request.get_ref()).await?))
    }

    async fn delete_gallery(
        &self,
        request: Request<wire::DeleteGalleryRequest>,
    ) -> Result<Response<wire::DeleteGalleryResponse>, Status> {
        let context = CallContext::of(&request);
        context.concerns(&request.get_ref().name);
        let name = gallery_name("name", &request.get_ref().name)?;
        self.access.catalog()?.delete(&context.tenant, &name).await.map_err(Problem::from)?;
        Ok(Response::new(wire::DeleteGalleryResponse {}))
    }

    async fn enroll_entries(
        &self,
        request: Request<wire::EnrollEntriesRequest>,
    ) -> Result<Response<wire::EnrollEntriesResponse>, Status> {
        let context = CallContext::of(&request);
        Ok(Response::new(self.enroll_batch(context, request.into_inner()).await?))
    }

    type EnrollStream = ResponseStream<wire::EnrollResponse>;

    async fn enroll(
        &self,
        request: Request<Streaming<wire::EnrollRequest>>,
    ) -> Result<Response<Self::EnrollStream>, Status> {
        let context = CallContext::of(&request);
        Ok(Response::new(self.clone().enroll_all(context, request.into_inner())))
    }

    async fn get_entries(
        &self,
        request: Request<wire::GetEntriesRequest>,
    ) -> Result<Response<wire::GetEntriesResponse>, Status> {
        let context = CallContext::of(&request);
        Ok(Response::new(self.entries(&context, request.into_inner()).await?))
    }

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        let context = CallContext::of(&request);
        Ok(Response::new(self.page(&context, request.into_inner()).await?))
    }

    async fn get_chip_preview(
        &self,
        request: Request<wire::GetChipPreviewRequest>,
    ) -> Result<Response<wire::GetChipPreviewResponse>, Status> {
        let context = CallContext::of(&request);
        Ok(Response::new(self.preview(&context, request.into_inner()).await?))
    }

    async fn list_vessels(
        &self,
        request: Request<wire::ListVesselsRequest>,
    ) -> Result<Response<wire::ListVesselsResponse>, Status> {
        let context = CallContext::of(&request);
        Ok(Response::new(self.vessels(&context, request.into_inner()).await?))
    }

    async fn delete_entries(
        &self,
        request: Request<wire::DeleteEntriesRequest>,
    ) -> Result<Response<wire::DeleteEntriesResponse>, Status> {
        let context = CallContext::of(&request);
        Ok(Response::new(self.delete_some(&context, request.into_inner()).await?))
    }

    async fn update_entries(
        &self,
        request: Request<wire::UpdateEntriesRequest>,
    ) -> Result<Response<wire::UpdateEntriesResponse>, Status> {
        let context = CallContext::of(&request);
        Ok(Response::new(self.update(&context, request.into_inner()).await?))
    }

    async fn merge_vessels(
        &self,
        request: Request<wire::MergeVesselsRequest>,
    ) -> Result<Response<wire::MergeVesselsResponse>, Status> {
        let context = CallContext::of(&request);
        Ok(Response::new(self.merge(&context, request.into_inner()).await?))
    }

    type ExportGalleryStream = ResponseStream<wire::ExportGalleryResponse>;

    async fn export_gallery(
        &self,
        request: Request<wire::ExportGalleryRequest>,
    ) -> Result<Response<Self::ExportGalleryStream>, Status> {
        let context = CallContext::of(&request);
        let request = request.into_inner();
        let gallery = self.access.gallery(&context.tenant, &request.gallery).await?;
        let export = Export::new(gallery.snapshot(), convert::chips(request.with_chips));
        let pieces = export::pieces(gallery, export);
        Ok(Response::new(Box::pin(deadline::bounded(pieces, context.deadline))))
    }

    async fn import_gallery(
        &self,
        request: Request<Streaming<wire::ImportGalleryRequest>>,
    ) -> Result<Response<wire::ImportGalleryResponse>, Status> {
        let context = CallContext::of(&request);
        let gallery = self.import_streamed(&context, request.into_inner()).await?;
        Ok(Response::new(wire::ImportGalleryResponse { gallery: Some(gallery) }))
    }

    async fn import_uploaded_gallery(
        &self,
        request: Request<wire::ImportUploadedGalleryRequest>,
    ) -> Result<Response<wire::ImportUploadedGalleryResponse>, Status> {
        let context = CallContext::of(&request);
        let gallery = self.import_uploaded(&context, request.into_inner()).await?;
        Ok(Response::new(wire::ImportUploadedGalleryResponse { gallery: Some(gallery) }))
    }
}
