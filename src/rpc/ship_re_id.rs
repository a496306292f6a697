//! The service `ShipReId`: Embed, EmbedStream, Match and Train.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::future::join_all;
use tonic::{Request, Response, Status, Streaming};

use super::context::CallContext;
use super::convert::{self, EmbedCall, EmbedItem, MemberVectors};
use super::drain::Drain;
use super::matching::Matcher;
use super::problem::Problem;
use super::train::{self, JobAccess};
use super::{ResponseStream, deadline, status};
use crate::config::Limits;
use crate::encoder::{Embedded, ModelLease, Pipeline};
use crate::wire;

/// Embeds chips through the pipeline that every service shares.
#[derive(Clone)]
pub struct ShipReIdService {
    pipeline: Arc<Pipeline>,
    matcher: Matcher,
    chips_max: usize,
    inflight_max: usize,
    jobs: JobAccess,
    drain: Drain,
}

impl ShipReIdService {
    pub fn new(
        pipeline: Arc<Pipeline>,
        matcher: Matcher,
        jobs: JobAccess,
        limits: &Limits,
        drain: Drain,
    ) -> Self {
        Self {
            pipeline,
            matcher,
            chips_max: limits.chips_per_request_max,
            inflight_max: limits.stream_inflight_max,
            jobs,
            drain,
        }
    }

    async fn embed_chips(
        &self,
        request: wire::EmbedRequest,
        context: &CallContext,
    ) -> Result<wire::EmbedResponse, Problem> {
        let started = Instant::now();
        let call = EmbedCall::parse(request, self.chips_max)?;
        let model = self.pipeline.resolve(call.model)?;
        let caller = convert::caller(context, call.priority);
        let _place = self.pipeline.admit(&model, &caller, call.chips.len(), call.image_bytes())?;
        let outcomes = join_all(call.chips.into_iter().enumerate().map(async |(index, chip)| {
            let chip = chip?;
            let embedded = self.pipeline.embed(&model, &caller, chip).await;
            embedded.map_err(|cause| Problem::from(cause).within(&format!("chips[{index}]")))
        }))
        .await;
        status::whole_call(&outcomes)?;
        Ok(convert::embed_response(outcomes, &model, call.members, started.elapsed()))
    }

    /// Answers one chip of a stream; a chip that is invalid or for which there is no room fails alone.
    async fn embed_item(
        self,
        item: Result<wire::EmbedStreamRequest, Status>,
        context: CallContext,
    ) -> Result<wire::EmbedStreamResponse, Status> {
        let (item, started) = (item?, Instant::now());
        let chip_id = item.chip_id.clone();
        let outcome = self.embed_one(item, &context).await;
        Ok(convert::embed_stream_response(chip_id, outcome, started.elapsed()))
    }

    async fn embed_one(
        &self,
        item: wire::EmbedStreamRequest,
        context: &CallContext,
    ) -> Result<(Embedded, ModelLease, MemberVectors), Problem> {
        let EmbedItem { chip, model, priority, members } = EmbedItem::parse(item)?;
        let model = self.pipeline.resolve(model)?;
        let caller = convert::caller(context, priority);
        let _place = self.pipeline.admit(&model, &caller, 1, chip.image.len())?;
        let embedded = self.pipeline.embed(&model, &caller, chip).await;
        let embedded = embedded.map_err(|cause| Problem::from(cause).within("chip"))?;
        Ok((embedded, model, members))
    }
}

#[tonic::async_trait]
impl wire::ship_re_id_server::ShipReId for ShipReIdService {
    async fn embed(
        &self,
        request: Request<wire::EmbedRequest>,
    ) -> Result<Response<wire::EmbedResponse>, Status> {
        let context = CallContext::of(&request);
        let response = self.embed_chips(request.into_inner(), &context).await?;
        Ok(Response::new(response))
    }

    type EmbedStreamStream = ResponseStream<wire::EmbedStreamResponse>;

    async fn embed_stream(
        &self,
        request: Request<Streaming<wire::EmbedStreamRequest>>,
    ) -> Result<Response<Self::EmbedStreamStream>, Status> {
        let context = CallContext::of(&request);
        let service = self.clone();
        let deadline = context.deadline;
        let answers = self
            .drain
            .cut(request.into_inner())
            .map(move |item| service.clone().embed_item(item, context.clone()))
            .buffered(self.inflight_max);
        Ok(Response::new(Box::pin(deadline::bounded(answers, deadline))))
    }

    async fn r#match(
        &self,
        request: Request<wire::MatchRequest>,
    ) -> Result<Response<wire::MatchResponse>, Status> {
        let context = CallContext::of(&request);
        Ok(Response::new(self.matcher.answer(request.into_inner(), &context).await?))
    }

    type TrainStream = ResponseStream<wire::TrainEvent>;

    async fn train(
        &self,
        request: Request<wire::TrainRequest>,
    ) -> Result<Response<Self::TrainStream>, Status> {
        let context = CallContext::of(&request);
        Ok(Response::new(train::train(&self.jobs, &context, request.into_inner()).await?))
    }
}
