//! Enroll: a stream of items in, an acknowledgement for each out, in their order. EnrollEntries answers its items by the
//! same [`EnrollCall`].

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::Notify;
use tonic::{Status, Streaming};

use super::super::context::CallContext;
use super::super::convert::{self, EnrollItem, EnrollSource};
use super::super::problem::Problem;
use super::super::{ResponseStream, deadline};
use super::GalleriesService;
use super::access::GalleryAccess;
use crate::arithmetic::Precision;
use crate::budget::{Slot, Slots};
use crate::chip::{Modality, SourceChip};
use crate::encoder::{Admitted, Caller, Embedded, Examined, ModelLease, Pipeline, Priority, Refusal};
use crate::gallery::{
    About, Conflict, ContentHash, Enrolled, Enrolment, Entry, EntryId, Gallery, GalleryReader, Labels,
    Observation, ShadowEmbedding, StoreError, Time, VesselId,
};
use crate::metrics;
use crate::reason::Reason;
use crate::wire;

impl GalleriesService {
    /// The response begins before the first item is available, for callers that wait for headers before they send.
    pub(super) fn enroll_all(
        self,
        context: CallContext,
        items: Streaming<wire::EnrollRequest>,
    ) -> ResponseStream<wire::EnrollResponse> {
        let deadline = context.deadline;
        let answers = stream::once(self.answers(context, items)).try_flatten();
        Box::pin(deadline::bounded(answers, deadline))
    }

    async fn answers(
        self,
        context: CallContext,
        items: Streaming<wire::EnrollRequest>,
    ) -> Result<ResponseStream<wire::EnrollResponse>, Status> {
        let mut items = Box::pin(self.drain.cut(items));
        let Some(first) = items.next().await.transpose()? else { return Ok(Box::pin(stream::empty())) };
        let call = self.enroll_call(context, &first.gallery).await?;
        let items = stream::once(async { Ok(first) }).chain(items);
        Ok(Box::pin(call.answers(items).map_ok(wire::EnrollResponse::from)))
    }

    /// A call that enrols into the gallery of this name.
    pub(super) async fn enroll_call(
        &self,
        context: CallContext,
        gallery: &str,
    ) -> Result<EnrollCall, Problem> {
        context.concerns(gallery);
        Ok(EnrollCall {
            gallery: self.access.gallery(&context.tenant, gallery).await?,
            name: gallery.into(),
            access: self.access.clone(),
            pipeline: Arc::clone(&self.pipeline),
            context,
            items_max: self.items_inflight_max,
            chips: Slots::new(self.chips_inflight_max),
            in_flight: InFlight::default(),
            room: None,
        })
    }
}

/// What the items of one call share.
#[derive(Clone)]
pub struct EnrollCall {
    access: GalleryAccess,
    pipeline: Arc<Pipeline>,
    context: CallContext,
    pub gallery: Gallery,
    /// As named by the call.
    name: Arc<str>,
    /// Items that may be in flight.
    items_max: usize,
    /// Chips that may be in flight.
    chips: Slots,
    in_flight: InFlight,
    /// Room for the images of all items, where they came at once.
    room: Option<Arc<Admitted>>,
}

/// An item whose turn has come.
struct Begun {
    entry_id: String,
    item: Result<EnrollItem, Problem>,
    _chip: Option<Slot>,
    _turn: HeldId,
}

/// What became of an item.
pub struct Answered {
    /// As the item has it.
    pub entry_id: String,
    pub outcome: Result<(Enrolled, Vec<wire::Warning>), Problem>,
    /// The gallery has it from this commit on, if not before; 0 where it is not stored.
    pub commit: u64,
}

impl EnrollCall {
    /// The same call, for `items` that are in memory already: their images take room until the last one is answered.
    ///
    /// # Errors
    /// There is no room for them.
    pub fn with_room_for(self, items: &[wire::EnrollRequest]) -> Result<Self, Refusal> {
        let bytes = items.iter().filter_map(chip).map(|chip| chip.image.len()).sum();
        let room = self.pipeline.admit_images(0, bytes)?;
        Ok(Self { room: Some(Arc::new(room)), ..self })
    }

    /// What becomes of each item, in their order. Items that have not finished when the stream is dropped are not stored.
    pub fn answers(
        self,
        items: impl Stream<Item = Result<wire::EnrollRequest, Status>> + Send,
    ) -> impl Stream<Item = Result<Answered, Status>> + Send {
        let (items_max, call) = (self.items_max, self.clone());
        items
            .then(move |item| call.clone().begin(item))
            .map(move |begun| self.clone().finish(begun).boxed())
            .buffered(items_max)
    }

    /// Reads an item and waits for its turn: for a slot, if it has a chip, and for an earlier item with the same id.
    /// Further items are read afterwards, so that the sender is slowed down and memory is bounded.
    async fn begin(self, request: Result<wire::EnrollRequest, Status>) -> Result<Begun, Status> {
        let request = request?;
        let entry_id = request.entry_id.clone();
        // The slots are never closed.
        let chip = if chip(&request).is_some() { self.chips.take().await.ok() } else { None };
        let turn = self.in_flight.turn(&entry_id).await;
        let item = if request.gallery.is_empty() || *request.gallery == *self.name {
            EnrollItem::parse(request)
        } else {
            let message = format!("the stream enrols into {}, not into {}", self.name, request.gallery);
            Err(Problem::invalid(Reason::GalleryChanged, "gallery", message))
        };
        Ok(Begun { entry_id, item, _chip: chip, _turn: turn })
    }

    /// Embeds and stores an item; an invalid item fails alone.
    async fn finish(self, begun: Result<Begun, Status>) -> Result<Answered, Status> {
        let Begun { entry_id, item, _chip, _turn } = begun?;
        let started = Instant::now();
        let outcome = match item {
            Ok(item) => self.store(item).await,
            Err(problem) => Err(problem),
        };
        let name = match &outcome {
            Ok((enrolled, _)) => {
                self.context.changed(u64::from(*enrolled != Enrolled::Unchanged));
                outcome_name(*enrolled)
            }
            Err(problem) => problem.reason.name(),
        };
        metrics::enrolled(name, started.elapsed());
        let commit = if outcome.is_ok() { self.gallery.snapshot().commit() } else { 0 };
        Ok(Answered { entry_id, outcome, commit })
    }

    async fn store(&self, item: EnrollItem) -> Result<(Enrolled, Vec<wire::Warning>), Problem> {
        let known = ItemFacts::of(&item);
        match item.source {
            EnrollSource::Ready { embedding, model, modality, chip: None } => {
                let entry = known.entry(modality, None, None);
                let (conflict, shadow) = (known.conflict, None);
                let enrolment = Enrolment { entry, embedding, model, shadow, chip: None, conflict };
                Ok((self.gallery.enrol(enrolment).await?, Vec::new()))
            }
            // Items with a chip are expensive.
            _ if self.is_enrolled(&known.id, known.content).await? => Ok((Enrolled::Unchanged, Vec::new())),
            EnrollSource::Ready { embedding, model, modality, chip: Some(chip) } => {
                let Examined { extent_m, warnings } = self.examine(&chip).await?;
                let entry = known.entry(modality, Some(extent_m), None);
                let (conflict, shadow) = (known.conflict, None);
                let enrolment = Enrolment { entry, embedding, model, shadow, chip: Some(chip), conflict };
                Ok((self.gallery.enrol(enrolment).await?, convert::warnings(&warnings)))
            }
            EnrollSource::Chip(chip) => self.store_chip(&known, &chip).await,
        }
    }

    async fn store_chip(
        &self,
        known: &ItemFacts,
        chip: &SourceChip,
    ) -> Result<(Enrolled, Vec<wire::Warning>), Problem> {
        let (enrolment, warnings) = self.enrolment(known, chip).await?;
        match self.gallery.enrol(enrolment).await {
            // The gallery moved to another model while the chip was embedded with the former one.
            Err(StoreError::Model { .. }) => {
                let (enrolment, warnings) = self.enrolment(known, chip).await?;
                Ok((self.gallery.enrol(enrolment).await?, warnings))
            }
            enrolled => Ok((enrolled?, warnings)),
        }
    }

    /// Embeds a chip with the gallery's model, and with the one that the gallery follows.
    async fn enrolment(
        &self,
        known: &ItemFacts,
        chip: &SourceChip,
    ) -> Result<(Enrolment, Vec<wire::Warning>), Problem> {
        let (snapshot, model) = with_model(&self.pipeline, &self.gallery);
        let model = model?;
        let followed =
            snapshot.about().shadow.and_then(|shadow| self.pipeline.resolve(Some(shadow.model)).ok());
        let shadow = async {
            // A failure here is repaired in the background.
            let followed = followed?;
            let embedded = self.embed(&followed, chip).await.ok()?;
            Some(ShadowEmbedding { embedding: embedded.embedding, model: followed.digest })
        };
        let (embedded, shadow) = tokio::join!(self.embed(&model, chip), shadow);
        let Embedded { embedding, extent_m, warnings, .. } = embedded?;
        let enrolment = Enrolment {
            entry: known.entry(chip.view.modality, Some(extent_m), Some(model.precision)),
            embedding,
            model: model.digest,
            shadow,
            chip: Some(chip.clone()),
            conflict: known.conflict,
        };
        Ok((enrolment, convert::warnings(&warnings)))
    }

    /// Whether storing would change nothing, so that the chip need not be embedded again.
    async fn is_enrolled(&self, id: &EntryId, content: ContentHash) -> Result<bool, Problem> {
        if !self.has_enrolled(id, content).await? {
            return Ok(false);
        }
        // Another server may have deleted it since.
        self.access.gallery(&self.context.tenant, &self.name).await?;
        self.has_enrolled(id, content).await
    }

    /// Whether this server's state of the gallery has this content.
    async fn has_enrolled(&self, id: &EntryId, content: ContentHash) -> Result<bool, Problem> {
        let enrolled = |snapshot: Arc<dyn GalleryReader>| {
            let id = id.clone();
            self.access.run(move |_| Ok(snapshot.is_enrolled(&id, &content)?))
        };
        self.gallery.read(enrolled).await
    }

    /// Decodes a chip that comes with its embedding.
    async fn examine(&self, chip: &SourceChip) -> Result<Examined, Problem> {
        let caller = convert::caller(&self.context, Priority::Bulk);
        let model = self.pipeline.active();
        let _place = self.admit(&model, &caller, chip)?;
        let examined = self.pipeline.examine(&model, &caller, chip.clone()).await;
        examined.map_err(|cause| Problem::from(cause).within("embedding.chip"))
    }

    fn admit(&self, model: &ModelLease, caller: &Caller, chip: &SourceChip) -> Result<Admitted, Refusal> {
        // An image has its room once.
        let image_bytes = if self.room.is_some() { 0 } else { chip.image.len() };
        self.pipeline.admit(model, caller, 1, image_bytes)
    }

    async fn embed(&self, model: &ModelLease, chip: &SourceChip) -> Result<Embedded, Problem> {
        let caller = convert::caller(&self.context, Priority::Bulk);
        let _place = self.admit(model, &caller, chip)?;
        let embedded = self.pipeline.embed(model, &caller, chip.clone()).await;
        embedded.map_err(|cause| Problem::from(cause).within("chip"))
    }
}

impl From<Answered> for wire::EnrollResponse {
    fn from(Answered { entry_id, outcome, commit }: Answered) -> Self {
        let response = Self { entry_id, gallery_commit: commit, ..Self::default() };
        match outcome {
            Ok((enrolled, warnings)) => {
                Self { outcome: outcome_to_wire(enrolled).into(), warnings, ..response }
            }
            Err(problem) => Self { error: Some(problem.into()), ..response },
        }
    }
}

fn chip(request: &wire::EnrollRequest) -> Option<&wire::Chip> {
    use wire::enroll_request::Source;
    match request.source.as_ref()? {
        Source::Chip(chip) => Some(chip),
        Source::Embedding(ready) => ready.chip.as_ref(),
    }
}

/// What an item states about its sighting, regardless of the source of its embedding.
struct ItemFacts {
    id: EntryId,
    vessel: Option<VesselId>,
    labels: Labels,
    observation: Observation,
    content: ContentHash,
    conflict: Conflict,
}

impl ItemFacts {
    fn of(item: &EnrollItem) -> Self {
        Self {
            id: item.id.clone(),
            vessel: item.vessel.clone(),
            labels: item.labels.clone(),
            observation: item.observation.clone(),
            content: item.content(),
            conflict: if item.overwrite { Conflict::Overwrite } else { Conflict::Refuse },
        }
    }

    fn entry(&self, modality: Modality, extent_m: Option<[f64; 2]>, precision: Option<Precision>) -> Entry {
        Entry {
            id: self.id.clone(),
            vessel: self.vessel.clone(),
            modality,
            observation: self.observation.clone(),
            labels: self.labels.clone(),
            extent_m,
            enrolled_at: Time::now(),
            precision,
            content: self.content,
        }
    }
}

/// A gallery as it is now, and its model where chips can be embedded with it.
pub fn with_model(
    pipeline: &Pipeline,
    gallery: &Gallery,
) -> (Arc<dyn GalleryReader>, Result<ModelLease, Problem>) {
    let snapshot = gallery.snapshot();
    let model = resident(pipeline, snapshot.about());
    let later = gallery.snapshot();
    if model.is_err() && later.about().model != snapshot.about().model {
        // It has moved to another model, and the former one is unloaded after its last use.
        let model = resident(pipeline, later.about());
        return (later, model);
    }
    (snapshot, model)
}

fn resident(pipeline: &Pipeline, about: &About) -> Result<ModelLease, Problem> {
    let model = about.model;
    pipeline.resolve(Some(model)).map_err(|_| {
        let active = pipeline.active().digest;
        let way_out = match about.shadow {
            Some(shadow) => format!(
                "it is being re-embedded by model {}: wait, or activate model {model} again",
                shadow.model
            ),
            None => {
                format!("activate model {model} again, or enrol the ships in a gallery of the active model")
            }
        };
        let message = format!(
            "the gallery is of model {model}, which is not resident; the active one is {active}; {way_out}"
        );
        Problem::new(Reason::ModelNotResident, message)
            .with_metadata("gallery_model", model)
            .with_metadata("active_model", active)
    })
}

/// Ids of items that have not finished, so that two items with one id are stored in the order in which they arrived.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Ids>);

#[derive(Debug, Default)]
struct Ids {
    taken: Mutex<HashSet<String>>,
    freed: Notify,
}

/// An id that is reserved until this is dropped.
#[derive(Debug)]
struct HeldId {
    ids: InFlight,
    id: String,
}

impl InFlight {
    async fn turn(&self, id: &str) -> HeldId {
        loop {
            let freed = self.0.freed.notified();
            if self.taken(|taken| taken.insert(id.to_owned())) {
                return HeldId { ids: self.clone(), id: id.to_owned() };
            }
            freed.await;
        }
    }

    fn taken<T>(&self, change: impl FnOnce(&mut HashSet<String>) -> T) -> T {
        change(&mut self.0.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for HeldId {
    fn drop(&mut self) {
        self.ids.taken(|taken| taken.remove(&self.id));
        self.ids.0.freed.notify_waiters();
    }
}

fn outcome_name(outcome: Enrolled) -> &'static str {
    match outcome {
        Enrolled::Created => "created",
        Enrolled::Replaced => "replaced",
        Enrolled::Unchanged => "unchanged",
    }
}

fn outcome_to_wire(outcome: Enrolled) -> wire::EnrollOutcome {
    match outcome {
        Enrolled::Created => wire::EnrollOutcome::Created,
        Enrolled::Replaced => wire::EnrollOutcome::Replaced,
        Enrolled::Unchanged => wire::EnrollOutcome::Unchanged,
    }
}
