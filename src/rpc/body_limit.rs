//! Limits on what a call may send and how long it may take: messages are measured as they arrive.
//!
//! An oversized message is refused by its announced length. The bytes received of other messages count towards budgets,
//! so that announcing a length costs other callers nothing. A caller that keeps the server waiting is disconnected: in
//! the middle of a message, after too long between two messages, when another call needs the slot, or when the server
//! shuts down.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::activity::Activity;
use super::context::Holder;
use super::drain::{Drain, draining};
use super::fair_budget::{Bounds, FairBudget, Full, Scope, Share};
use super::permit::displaced;
use super::problem::Problem;
use crate::config::Limits;
use crate::metrics;
use crate::reason::Reason;

/// The compression flag and length in front of each message.
const PREFIX: usize = 5;
/// A caller that sends nothing for this long during shutdown is no longer waited for.
const DRAIN_IDLE_MAX: Duration = Duration::from_secs(1);

/// Bounds on messages that are being received.
#[derive(Clone, Debug)]
pub struct BodyLimit {
    bounds: BodyBounds,
    receiving: Arc<FairBudget>,
    drain: Drain,
}

#[derive(Clone, Copy, Debug)]
struct BodyBounds {
    /// Bytes of one message.
    message_max: usize,
    /// From the first byte of a message to its last, counting only the time the server waits for it.
    arrival_max: Duration,
    /// Without a byte from the caller or an answer.
    idle_max: Duration,
}

impl BodyLimit {
    pub fn new(limits: &Limits, drain: Drain) -> Self {
        let receiving = Bounds {
            server: limits.receiving_bytes_max,
            tenant: limits.receiving_of_tenant(),
            connection: limits.receiving_of_connection(),
        };
        let bounds = BodyBounds {
            message_max: limits.message_bytes_max,
            arrival_max: Duration::from_secs_f64(limits.message_seconds_max),
            idle_max: Duration::from_secs_f64(limits.stream_idle_seconds_max),
        };
        Self { bounds, receiving: FairBudget::new(receiving, metrics::receiving), drain }
    }
}

/// Measures and times what a call sends.
pub async fn guard(State(body_limit): State<BodyLimit>, request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let activity = extensions.get().cloned().unwrap_or_else(Activity::new);
    let holder = Holder::behind(extensions);
    let weighed = |body| Body::new(WeighedBody::new(body, body_limit, holder, activity.clone()));
    let response = next.run(request.map(weighed)).await;
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            activity.answered();
            frame
        }))
    })
}

fn oversized(bytes: usize, limit: usize) -> Problem {
    Problem::new(
        Reason::MessageTooLarge,
        format!("the message has {bytes} bytes, the limit is {limit} bytes"),
    )
    .with_metadata("limit", limit)
}

fn crowded(full: Full) -> Problem {
    let whose = match full.scope {
        Scope::Server => "the server",
        Scope::Tenant => "the tenant",
        Scope::Connection => "the connection",
    };
    let message = format!("{whose} is receiving as much as it may already, of {} bytes", full.limit);
    Problem::new(Reason::ReceivingTooMuch, message)
        .with_metadata("limit", full.limit)
        .with_metadata("scope", full.scope.name())
}

fn slow(bounds: BodyBounds) -> Problem {
    let seconds = bounds.arrival_max.as_secs_f64();
    let message = format!("the message took longer than {seconds} s to arrive");
    Problem::new(Reason::MessageTooSlow, message)
}

fn idle(bounds: BodyBounds) -> Problem {
    let seconds = bounds.idle_max.as_secs_f64();
    let message =
        format!("nothing was sent for {seconds} s; open the stream again when there is something to send");
    Problem::new(Reason::StreamIdle, message)
}

/// The caller disconnected in the middle of a message. The answer is never read, and the call counts as cancelled; a
/// separate code keeps handlers from mistaking the break for an end.
fn broken_off() -> Problem {
    Problem::new(Reason::CallerLeft, "the caller left")
}

fn malformed(message: impl Into<String>) -> Problem {
    Problem::new(Reason::MessageMalformed, message)
}

struct WeighedBody {
    inner: Body,
    body_limit: BodyLimit,
    activity: Activity,
    reading: Reading,
    share: Share,
    /// Since when the server has been waiting for the caller, while it is.
    waiting: Option<Instant>,
    /// How long the server waited for the current message before that.
    waited: Duration,
    alarm: Option<Alarm>,
}

impl fmt::Debug for WeighedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeighedBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// What can end a wait other than the caller; created at the first wait.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// Absent once draining has begun.
    drain: Option<BoxFuture<'static, ()>>,
    drained: Option<Instant>,
}

#[derive(Debug)]
enum Reading {
    Prefix { bytes: [u8; PREFIX], filled: usize },
    Message { left: usize },
}

impl WeighedBody {
    fn new(inner: Body, body_limit: BodyLimit, holder: Holder, activity: Activity) -> Self {
        let share = body_limit.receiving.share(holder);
        let (reading, waited) = (Reading::start(), Duration::ZERO);
        Self { inner, body_limit, activity, reading, share, waiting: None, waited, alarm: None }
    }

    /// Tracks the message frames through a piece of the body.
    fn follow(&mut self, mut data: &[u8]) -> Result<(), Problem> {
        while !data.is_empty() {
            match &mut self.reading {
                Reading::Prefix { bytes, filled } => {
                    let taken = data.len().min(PREFIX - *filled);
                    bytes[*filled..*filled + taken].copy_from_slice(&data[..taken]);
                    *filled += taken;
                    data = &data[taken..];
                    if *filled == PREFIX {
                        let length = announced(*bytes, self.body_limit.bounds.message_max)?;
                        self.reading = Reading::Message { left: length };
                    }
                }
                Reading::Message { left } => {
                    let taken = data.len().min(*left);
                    self.share.grow(taken).map_err(|full| {
                        metrics::refused("RECEIVING_BYTES");
                        crowded(full)
                    })?;
                    *left -= taken;
                    data = &data[taken..];
                }
            }
            if let Reading::Message { left: 0 } = self.reading {
                self.reading = Reading::start();
                self.share.clear();
                self.waited = Duration::ZERO;
            }
        }
        Ok(())
    }

    /// Checks whether the server may keep waiting for the caller; if so, the task is woken when the limit is reached.
    fn wait(&mut self, context: &mut Context<'_>) -> Result<(), Problem> {
        let now = Instant::now();
        let since = *self.waiting.get_or_insert(now);
        self.activity.wait(context.waker());
        if self.activity.is_displaced() {
            return Err(displaced());
        }
        let drain = &self.body_limit.drain;
        let alarm = self.alarm.get_or_insert_with(|| Alarm {
            sleep: Box::pin(tokio::time::sleep_until(now + DRAIN_IDLE_MAX)),
            drain: Some(drain.clone().begun().boxed()),
            drained: None,
        });
        if let Some(drain) = &mut alarm.drain
            && drain.as_mut().poll(context).is_ready()
        {
            alarm.drain = None;
            alarm.drained = Some(now);
        }
        let bounds = self.body_limit.bounds;
        let mut ends = vec![(self.activity.last().max(since) + bounds.idle_max, End::Idle)];
        if self.reading.has_begun() {
            ends.push((since + bounds.arrival_max.saturating_sub(self.waited), End::Slow));
        }
        ends.extend(alarm.drained.map(|drained| (drained.max(since) + DRAIN_IDLE_MAX, End::Drain)));
        let Some((at, end)) = ends.into_iter().min_by_key(|(at, _)| *at) else { return Ok(()) };
        // A timer that fires early is set again; one that would fire late is moved to the earlier time.
        while Instant::now() < at {
            if alarm.sleep.deadline() > at || alarm.sleep.is_elapsed() {
                alarm.sleep.as_mut().reset(at);
            }
            if alarm.sleep.as_mut().poll(context).is_pending() {
                return Ok(());
            }
        }
        Err(match end {
            End::Idle => idle(bounds),
            End::Slow => slow(bounds),
            End::Drain => draining(),
        })
    }

    /// Notes that the caller has sent something, or has finished sending.
    fn heard(&mut self) {
        if let Some(since) = self.waiting.take()
            && self.reading.has_begun()
        {
            self.waited += since.elapsed();
        }
    }

    fn ended(&self) -> Result<(), Problem> {
        self.activity.ended();
        match self.reading.has_begun() {
            true => Err(malformed("the last message ends before its length")),
            false => Ok(()),
        }
    }
}

/// Why a wait ends.
#[derive(Clone, Copy)]
enum End {
    Idle,
    Slow,
    Drain,
}

impl Reading {
    fn start() -> Self {
        Self::Prefix { bytes: [0; PREFIX], filled: 0 }
    }

    /// Whether part of a message has been received.
    fn has_begun(&self) -> bool {
        !matches!(self, Self::Prefix { filled: 0, .. })
    }
}

/// The length of the message after a prefix.
fn announced(prefix: [u8; PREFIX], message_max: usize) -> Result<usize, Problem> {
    let [flag, length @ ..] = prefix;
    if flag != 0 {
        return Err(malformed(format!(
            "the message is compressed (flag {flag}), which this server does not read"
        )));
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > message_max {
        metrics::refused("MESSAGE_SIZE");
        return Err(oversized(length, message_max));
    }
    Ok(length)
}

impl http_body::Body for WeighedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Pending => match this.wait(context) {
                Ok(()) => Poll::Pending,
                Err(problem) => {
                    metrics::refused(problem.reason.name());
                    Poll::Ready(Some(Err(problem.into())))
                }
            },
            Poll::Ready(None) => Poll::Ready(this.ended().err().map(|problem| Err(problem.into()))),
            Poll::Ready(Some(Err(_))) => {
                this.activity.leave();
                Poll::Ready(Some(Err(broken_off().into())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.heard();
                this.activity.received();
                let followed = match frame.data_ref() {
                    Some(data) => this.follow(data),
                    None => this.ended(),
                };
                Poll::Ready(Some(followed.map(|()| frame).map_err(Status::from)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        // A truncated message is reported as an error, which is not polled for after the end of the stream.
        self.inner.is_end_stream() && !self.reading.has_begun()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
