//! EnrollEntries: the items of one message, stored like those of an Enroll stream.

use futures_util::{TryStreamExt, stream};
use tonic::Status;

use super::super::context::CallContext;
use super::super::problem::Problem;
use super::super::status;
use super::GalleriesService;
use super::enroll::Answered;
use crate::gallery::{StoreError, TEXT_BYTES_MAX};
use crate::message::{bounded, excerpt};
use crate::reason::Reason;
use crate::wire;

/// Entries of one batch: the errors of as many fit a response.
const ENTRIES_MAX: usize = 1000;

impl GalleriesService {
    pub(super) async fn enroll_batch(
        &self,
        context: CallContext,
        request: wire::EnrollEntriesRequest,
    ) -> Result<wire::EnrollEntriesResponse, Status> {
        check(&request)?;
        let wire::EnrollEntriesRequest { gallery, entries } = request;
        let call = self.enroll_call(context, &gallery).await?;
        if let Some(reason) = call.gallery.info().read_only {
            return Err(Problem::from(StoreError::ReadOnly { reason }).into());
        }
        let call = call.with_room_for(&entries).map_err(Problem::from)?;
        let answered: Vec<Answered> =
            call.answers(stream::iter(entries.into_iter().map(Ok))).try_collect().await?;
        status::whole_call(answered.iter().map(|item| &item.outcome))?;
        Ok(wire::EnrollEntriesResponse { results: answered.into_iter().enumerate().map(result).collect() })
    }
}

/// Refuses a batch of which nothing is to be stored.
fn check(request: &wire::EnrollEntriesRequest) -> Result<(), Problem> {
    let wire::EnrollEntriesRequest { gallery, entries } = request;
    if entries.is_empty() {
        let message = format!("entries is empty: send 1 to {ENTRIES_MAX} of them");
        return Err(Problem::invalid(Reason::NoEntries, "entries", message));
    }
    if entries.len() > ENTRIES_MAX {
        let message = format!(
            "entries has {} elements, the limit is {ENTRIES_MAX}: send several batches, or the stream Enroll",
            entries.len()
        );
        let problem = Problem::invalid(Reason::TooManyEntries, "entries", message);
        return Err(problem.with_metadata("limit", ENTRIES_MAX));
    }
    let is_other = |entry: &wire::EnrollRequest| !entry.gallery.is_empty() && entry.gallery != *gallery;
    let other = entries.iter().enumerate().find(|(_, entry)| is_other(entry));
    let Some((index, entry)) = other else { return Ok(()) };
    let message = format!(
        "the call enrols into \"{}\", not into \"{}\": leave the gallery of entries empty, and send a batch for each gallery",
        excerpt(gallery),
        excerpt(&entry.gallery)
    );
    Err(Problem::invalid(Reason::GalleryChanged, format!("entries[{index}].gallery"), message))
}

/// The result of the entry at `index`.
fn result((index, answered): (usize, Answered)) -> wire::EnrollResponse {
    let Answered { entry_id, outcome, commit } = answered;
    let outcome = outcome.map_err(|problem| problem.within(&format!("entries[{index}]")));
    Answered { entry_id: bounded(&entry_id, TEXT_BYTES_MAX).into_owned(), outcome, commit }.into()
}
