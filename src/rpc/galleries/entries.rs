//! GetEntries and ListEntries: the entries that a gallery contains.

use std::sync::Arc;

use super::super::context::CallContext;
use super::super::convert;
use super::super::page::{after, fitting, next_token, page_size};
use super::super::problem::Problem;
use super::{GalleriesService, bounded_count, filter};
use crate::cancellation::Cancellation;
use crate::gallery::{Entry, EntryId, GalleryReader, Readable, RowId};
use crate::wire;

impl GalleriesService {
    pub(super) async fn entries(
        &self,
        context: &CallContext,
        request: wire::GetEntriesRequest,
    ) -> Result<wire::GetEntriesResponse, Problem> {
        let read = convert::read(request.read, request.min_commit)?;
        let Readable { gallery, age } = self.access.readable(&context.tenant, &request.gallery, read).await?;
        bounded_count("entry_ids", request.entry_ids.len())?;
        let ids: Arc<[EntryId]> = convert::each("entry_ids", &request.entry_ids, convert::entry_id)?.into();
        let embeddings = Embeddings::of(request.with_embeddings);
        gallery
            .read(|snapshot| {
                let ids = Arc::clone(&ids);
                self.access.read(context, move |cancellation| {
                    let looked = snapshot.get(&ids, cancellation)?;
                    let missing = looked.missing.iter().map(ToString::to_string);
                    Ok(wire::GetEntriesResponse {
                        missing_entry_ids: missing.collect(),
                        entries: entries_to_wire(&*snapshot, looked.found, embeddings, cancellation)?,
                        gallery_commit: snapshot.commit(),
                        gallery_age: convert::duration(age),
                    })
                })
            })
            .await
    }

    pub(super) async fn page(
        &self,
        context: &CallContext,
        request: wire::ListEntriesRequest,
    ) -> Result<wire::ListEntriesResponse, Problem> {
        let read = convert::read(request.read, request.min_commit)?;
        let Readable { gallery, age } = self.access.readable(&context.tenant, &request.gallery, read).await?;
        let filter = Arc::new(filter(request.filter)?);
        let after = after::<RowId>(&request.page_token)?;
        let size = page_size(request.page_size)?;
        let embeddings = Embeddings::of(request.with_embeddings);
        gallery
            .read(|snapshot| {
                let filter = Arc::clone(&filter);
                self.access.read(context, move |cancellation| {
                    let page = snapshot.list(&filter, after, size, cancellation)?;
                    let entries = page.entries.into_iter().map(|(row, entry)| {
                        Ok((row, entry_to_wire(&*snapshot, (row, entry), embeddings, cancellation)?))
                    });
                    let (entries, end) = fitting::<_, _, Problem>(entries)?;
                    Ok(wire::ListEntriesResponse {
                        next_page_token: next_token(end.or(page.next).as_ref()),
                        entries,
                        gallery_commit: snapshot.commit(),
                        gallery_age: convert::duration(age),
                    })
                })
            })
            .await
    }
}

/// Whether entries are listed with their embeddings.
#[derive(Clone, Copy)]
enum Embeddings {
    With,
    Without,
}

impl Embeddings {
    fn of(with_embeddings: bool) -> Self {
        if with_embeddings { Self::With } else { Self::Without }
    }
}

fn entries_to_wire(
    snapshot: &dyn GalleryReader,
    entries: Vec<(RowId, Entry)>,
    embeddings: Embeddings,
    cancellation: &Cancellation,
) -> Result<Vec<wire::Entry>, Problem> {
    let entry = |entry| entry_to_wire(snapshot, entry, embeddings, cancellation);
    entries.into_iter().map(entry).collect()
}

fn entry_to_wire(
    snapshot: &dyn GalleryReader,
    (row, entry): (RowId, Entry),
    embeddings: Embeddings,
    cancellation: &Cancellation,
) -> Result<wire::Entry, Problem> {
    cancellation.check()?;
    let embedding = match embeddings {
        Embeddings::With => Some(snapshot.embedding(row)?),
        Embeddings::Without => None,
    };
    Ok(convert::entry(snapshot.about(), entry, embedding))
}
