//! Match: chips of queries are embedded, then queries are ranked against a gallery off the async threads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};

use super::context::CallContext;
use super::convert::{self, Details, MatchCall, QueryCall, SubjectCall};
use super::galleries::{GalleryAccess, SearchSize, with_model};
use super::problem::Problem;
use crate::chip::SourceChip;
use crate::config::{Limits, Matching};
use crate::embedding::ModelDigest;
use crate::encoder::{Caller, Embedded, ModelLease, Pipeline, Priority};
use crate::gallery::{About, GalleryReader, Observation, Readable, StoreError};
use crate::matching::{
    Calibrator, Matched, Plan, Query, QueryImage, Ranking, Tracklet, check_ranking, match_queries,
};
use crate::metrics;
use crate::reason::Reason;
use crate::registry::Registry;
use crate::wire;

/// Candidates for each query where a request does not say how many.
const TOP_K_DEFAULT: usize = 10;

/// The calibrator of each model: the configured one, else the one that is kept with the model.
#[derive(Clone, Debug, Default)]
pub struct Calibrators {
    configured: HashMap<ModelDigest, Arc<Calibrator>>,
    registry: Option<Arc<Registry>>,
}

impl Calibrators {
    pub fn new(configured: HashMap<ModelDigest, Arc<Calibrator>>, registry: Option<Arc<Registry>>) -> Self {
        Self { configured, registry }
    }

    fn of(&self, model: ModelDigest) -> Option<Arc<Calibrator>> {
        let configured = self.configured.get(&model).cloned();
        configured.or_else(|| self.registry.as_ref()?.calibrator(model))
    }
}

/// What Match needs, shared by its calls.
#[derive(Clone)]
pub struct Matcher {
    access: GalleryAccess,
    pipeline: Arc<Pipeline>,
    calibrators: Calibrators,
    limits: Matching,
    chips_max: usize,
}

impl Matcher {
    pub fn new(
        access: GalleryAccess,
        pipeline: Arc<Pipeline>,
        calibrators: Calibrators,
        matching: &Matching,
        limits: &Limits,
    ) -> Self {
        Self {
            access,
            pipeline,
            calibrators,
            limits: matching.clone(),
            chips_max: limits.chips_per_request_max,
        }
    }

    pub async fn answer(
        &self,
        request: wire::MatchRequest,
        context: &CallContext,
    ) -> Result<wire::MatchResponse, Problem> {
        let started = Instant::now();
        let call = MatchCall::parse(request, &self.limits, self.chips_max)?;
        let Readable { gallery, age } =
            self.access.readable(&context.tenant, &call.gallery, call.read).await?;
        let opening = gallery.opening();
        let (snapshot, lease) = with_model(&self.pipeline, &gallery);
        let size = search_size(&call, &*snapshot);
        let announced = self.access.admit(context, size)?;
        let about = snapshot.about().clone();
        let model = about.model;
        check_model(call.model, model)?;
        // Of the gallery's model, whichever is active: galleries change models one by one. Ensembles have none.
        let calibrator = self.calibrators.of(model).filter(|_| about.composition.is_none());
        let ranking = call.ranking.unwrap_or_else(|| Ranking::unless_named(&about, calibrator.as_deref()));
        let top_k = call.top_k.unwrap_or_else(|| self.top_k_default(&about));
        check_ranking(&about, ranking, top_k)?;
        let asked = self.embed(&call, lease, context).await?;
        let (queries, asked) = split(asked);
        let plan = Arc::new(Plan {
            queries,
            top_k,
            group: call.group,
            filter: call.filter,
            gate: call.gate,
            ranking,
            sharing: call.sharing,
            calibrator: calibrator.clone(),
            prior_unknown: call.prior_unknown,
            least: call.least,
        });
        // From here on it waits for its turn itself.
        drop(announced);
        let search = |snapshot| self.search(snapshot, (model, size), Arc::clone(&plan), context);
        let (matched, search, commit) = gallery.read_first(opening, snapshot, search).await?;
        let mut timings = convert::embed_timings(asked.iter().flat_map(|asked| &asked.embedded));
        timings.search = convert::duration(search);
        timings.total = convert::duration(started.elapsed());
        let ids = call.queries.into_iter().map(|query| query.id);
        Ok(wire::MatchResponse {
            results: results(ids, asked, matched, call.details),
            model: model.to_string(),
            calibrator: calibrator.map(|calibrator| calibrator.id().to_owned()).unwrap_or_default(),
            timings: Some(timings),
            gallery_commit: commit,
            gallery_age: convert::duration(age),
        })
    }

    /// As far as the server and the gallery's ensemble allow.
    fn top_k_default(&self, about: &About) -> usize {
        let most = TOP_K_DEFAULT.min(self.limits.top_k_max);
        about.composition.map_or(most, |composition| most.min(composition.depth()))
    }

    /// Embeds the chips of all tracklets; a chip that fails also fails its query.
    async fn embed(
        &self,
        call: &MatchCall,
        model: Result<ModelLease, Problem>,
        context: &CallContext,
    ) -> Result<Vec<EmbeddedQuery>, Problem> {
        let (count, bytes) = call.chips();
        if count == 0 {
            return Ok(call.queries.iter().map(EmbeddedQuery::without_chips).collect());
        }
        let model = model?;
        let caller = convert::caller(context, Priority::Interactive);
        let _place = self.pipeline.admit(&model, &caller, count, bytes)?;
        let asked = call.queries.iter().enumerate().map(async |(index, query)| match &query.subject {
            Ok(SubjectCall::Tracklet(chips)) => {
                EmbeddedQuery::of_tracklet(self.embed_tracklet(chips, &model, &caller, index).await)
            }
            _ => EmbeddedQuery::without_chips(query),
        });
        let asked = join_all(asked).await;
        let outcomes: Vec<Result<(), Problem>> =
            asked.iter().map(|asked| asked.query.as_ref().map(|_| ()).map_err(Problem::clone)).collect();
        super::status::whole_call(&outcomes)?;
        Ok(asked)
    }

    async fn embed_tracklet(
        &self,
        chips: &[(SourceChip, Observation)],
        model: &ModelLease,
        caller: &Caller,
        query: usize,
    ) -> Result<(Tracklet, Vec<Embedded>), Problem> {
        let embedded = try_join_all(chips.iter().enumerate().map(async |(index, (chip, _))| {
            let embedded = self.pipeline.embed(model, caller, chip.clone()).await;
            embedded.map_err(|cause| {
                Problem::from(cause).within(&format!("queries[{query}].tracklet.chips[{index}]"))
            })
        }))
        .await?;
        let images = chips.iter().zip(&embedded).map(|((chip, observation), embedded)| QueryImage {
            embedding: embedded.embedding.clone(),
            modality: Some(chip.view.modality),
            observation: observation.clone(),
            extent_m: Some(embedded.extent_m),
        });
        let tracklet = tracklet(images.collect(), &format!("queries[{query}].tracklet"))?;
        Ok((tracklet, embedded))
    }

    /// Ranks on a reader's thread, for as long as the caller waits. Returns the commit that was searched as well.
    async fn search(
        &self,
        snapshot: Arc<dyn GalleryReader>,
        (model, size): (ModelDigest, SearchSize),
        plan: Arc<Plan>,
        context: &CallContext,
    ) -> Result<(Vec<Result<Matched, Problem>>, Duration, u64), Problem> {
        if snapshot.about().model != model {
            // The gallery has moved to another model while its files were reopened.
            return Err(StoreError::Closed.into());
        }
        let asked = Instant::now();
        let span =
            tracing::debug_span!("search", ranking = plan.ranking.name(), queries = plan.queries.len());
        self.access
            .search(context, size, move |cancellation| {
                let _span = span.enter();
                let started = Instant::now();
                metrics::search_waited(started - asked);
                let matched = match_queries(&*snapshot, &plan, cancellation)?;
                let took = started.elapsed();
                metrics::searched(plan.ranking.name(), took);
                let matched = matched.into_iter().map(|matched| matched.map_err(Problem::from));
                Ok((matched.collect(), took, snapshot.commit()))
            })
            .await
    }
}

/// The size of a call's search, unless a filter reduces it.
fn search_size(call: &MatchCall, gallery: &dyn GalleryReader) -> SearchSize {
    let codes = gallery.entries() * gallery.about().dimension * call.queries.len();
    if call.filter.is_empty() { SearchSize(codes as u64) } else { SearchSize::default() }
}

/// A query after its chips were embedded.
struct EmbeddedQuery {
    query: Result<Query, Problem>,
    embedded: Vec<Embedded>,
}

impl EmbeddedQuery {
    fn of_tracklet(outcome: Result<(Tracklet, Vec<Embedded>), Problem>) -> Self {
        match outcome {
            Ok((tracklet, embedded)) => Self { query: Ok(Query::Tracklet(Box::new(tracklet))), embedded },
            Err(problem) => Self { query: Err(problem), embedded: Vec::new() },
        }
    }

    /// A query that has no chips, or is invalid.
    fn without_chips(call: &QueryCall) -> Self {
        let query = match &call.subject {
            Err(problem) => Err(problem.clone()),
            Ok(SubjectCall::Enrolled(id)) => Ok(Query::Enrolled(id.clone())),
            Ok(SubjectCall::Ready { embedding, modality, observation }) => {
                let image = QueryImage {
                    embedding: embedding.clone(),
                    modality: *modality,
                    observation: observation.clone(),
                    extent_m: None,
                };
                tracklet(vec![image], "embedding").map(|tracklet| Query::Tracklet(Box::new(tracklet)))
            }
            Ok(SubjectCall::Tracklet(_)) => Err(no_chips()),
        };
        Self { query, embedded: Vec::new() }
    }
}

fn no_chips() -> Problem {
    Problem::invalid(Reason::NoChips, "tracklet.chips", "tracklet.chips is empty")
}

fn tracklet(images: Vec<QueryImage>, field: &str) -> Result<Tracklet, Problem> {
    Tracklet::new(images)
        .map_err(|cause| Problem::invalid(Reason::TrackletCancels, field, format!("{field}: {cause}")))
}

/// Separates the queries that can be searched; what is left records which those are.
fn split(asked: Vec<EmbeddedQuery>) -> (Vec<Query>, Vec<Answerable>) {
    let mut queries = Vec::new();
    let asked = asked.into_iter().map(|EmbeddedQuery { query, embedded }| {
        let failure = match query {
            Ok(query) => {
                queries.push(query);
                None
            }
            Err(problem) => Some(problem),
        };
        Answerable { failure, embedded }
    });
    let asked = asked.collect();
    (queries, asked)
}

/// A query that was searched, unless it failed before.
struct Answerable {
    failure: Option<Problem>,
    embedded: Vec<Embedded>,
}

fn results(
    ids: impl Iterator<Item = String>,
    asked: Vec<Answerable>,
    matched: Vec<Result<Matched, Problem>>,
    details: Details,
) -> Vec<wire::MatchResult> {
    let mut matched = matched.into_iter();
    let result = |(id, asked): (String, Answerable)| {
        let warnings = asked.embedded.iter().flat_map(|chip| convert::warnings(&chip.warnings)).collect();
        let outcome = match asked.failure {
            Some(problem) => Err(problem),
            None => matched.next().expect("one answer for each query that was asked"),
        };
        convert::match_result(id, outcome, warnings, details)
    };
    ids.zip(asked).map(result).collect()
}

fn check_model(named: Option<ModelDigest>, gallerys: ModelDigest) -> Result<(), Problem> {
    match named {
        Some(named) if named != gallerys => {
            let message = format!("the gallery is of model {gallerys}, the request names {named}");
            Err(Problem::new(Reason::ModelMismatch, message)
                .with_metadata("gallery_model", gallerys)
                .with_metadata("request_model", named))
        }
        _ => Ok(()),
    }
}
