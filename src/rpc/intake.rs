//! What a call may send: every message is weighed by its frame header, before its bytes arrive.
//!
//! tonic reserves memory for a message as soon as it has read the message's length, and answers
//! OUT_OF_RANGE for one that is too long. This body reads the same five bytes first, so that an oversized
//! message and a server that is full of half-received ones are both refused with a precise error.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{Code, Status};

use super::permit::RETRY_AFTER;
use super::problem::Problem;
use crate::metrics;

/// Compression flag and length, before each message.
const PREFIX: usize = 5;

/// Bounds on messages that are being received.
#[derive(Clone, Debug)]
pub struct Intake {
    message_max: usize,
    receiving: Arc<AtomicUsize>,
    receiving_max: usize,
}

impl Intake {
    /// At most `message_max` bytes a message, and `receiving_max` bytes over all of them.
    pub fn new(message_max: usize, receiving_max: usize) -> Self {
        Self { message_max, receiving: Arc::default(), receiving_max }
    }

    fn weigh(&self, bytes: usize) -> Result<Share, Problem> {
        if bytes > self.message_max {
            metrics::refused("MESSAGE_SIZE");
            return Err(oversized(bytes, self.message_max));
        }
        let grow = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= self.receiving_max);
        match self.receiving.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow) {
            Ok(before) => {
                metrics::receiving(before + bytes);
                Ok(Share { receiving: Arc::clone(&self.receiving), bytes })
            }
            Err(_) => {
                metrics::refused("RECEIVING_BYTES");
                Err(crowded(self.receiving_max))
            }
        }
    }
}

/// Weighs what a call sends.
pub async fn guard(State(intake): State<Intake>, request: Request, next: Next) -> Response {
    next.run(request.map(|body| Body::new(WeighedBody::new(body, intake)))).await
}

fn oversized(bytes: usize, limit: usize) -> Problem {
    Problem::new(
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
        format!("the message has {bytes} bytes, the limit is {limit} bytes"),
    )
    .with_metadata("limit", limit)
}

fn crowded(limit: usize) -> Problem {
    Problem::new(
        Code::ResourceExhausted,
        "RECEIVING_TOO_MUCH",
        format!("messages of {limit} bytes are being received already"),
    )
    .with_metadata("limit", limit)
    .retry_after(RETRY_AFTER)
}

/// A message's part of the receiving budget, given back when it has arrived.
#[derive(Debug)]
struct Share {
    receiving: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        metrics::receiving(self.receiving.fetch_sub(self.bytes, Ordering::AcqRel) - self.bytes);
    }
}

#[derive(Debug)]
struct WeighedBody {
    inner: Body,
    intake: Intake,
    reading: Reading,
}

#[derive(Debug)]
enum Reading {
    Prefix { bytes: [u8; PREFIX], filled: usize },
    Message { left: usize, _share: Share },
}

impl WeighedBody {
    fn new(inner: Body, intake: Intake) -> Self {
        Self { inner, intake, reading: Reading::start() }
    }

    /// Follows the message frames through a piece of the body.
    fn follow(&mut self, mut data: &[u8]) -> Result<(), Problem> {
        while !data.is_empty() {
            match &mut self.reading {
                Reading::Prefix { bytes, filled } => {
                    let taken = data.len().min(PREFIX - *filled);
                    bytes[*filled..*filled + taken].copy_from_slice(&data[..taken]);
                    *filled += taken;
                    data = &data[taken..];
                    if *filled == PREFIX {
                        let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
                        let share = self.intake.weigh(length)?;
                        self.reading = Reading::message(length, share);
                    }
                }
                Reading::Message { left, .. } => {
                    let taken = data.len().min(*left);
                    *left -= taken;
                    data = &data[taken..];
                    if *left == 0 {
                        self.reading = Reading::start();
                    }
                }
            }
        }
        Ok(())
    }
}

impl Reading {
    fn start() -> Self {
        Self::Prefix { bytes: [0; PREFIX], filled: 0 }
    }

    fn message(length: usize, share: Share) -> Self {
        if length == 0 { Self::start() } else { Self::Message { left: length, _share: share } }
    }
}

impl http_body::Body for WeighedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Err(cause)) => return Poll::Ready(Some(Err(Status::from_error(cause.into())))),
            Some(Ok(frame)) => frame,
        };
        let weighed = frame.data_ref().map_or(Ok(()), |data| self.follow(data));
        Poll::Ready(Some(weighed.map(|()| frame).map_err(Status::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.extend(std::iter::repeat_n(7, length as usize));
        bytes
    }

    #[test]
    fn messages_are_weighed_however_the_bytes_are_cut() {
        let stream: Vec<u8> = [message(0), message(10), message(3), message(10)].concat();
        for cut in 1..=stream.len() {
            let intake = Intake::new(10, 10);
            let mut body = WeighedBody::new(Body::empty(), intake.clone());
            for piece in stream.chunks(cut) {
                body.follow(piece).expect("within the limits");
            }
            assert_eq!(intake.receiving.load(Ordering::Acquire), 0);
        }
    }

    #[test]
    fn an_oversized_message_is_refused_on_its_length_alone() {
        let mut body = WeighedBody::new(Body::empty(), Intake::new(10, 100));
        let problem = body.follow(&[0, 0, 0, 0, 11]).expect_err("too long");
        assert_eq!((problem.code, problem.reason), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    }

    #[test]
    fn half_received_messages_share_one_budget_and_give_it_back() {
        let intake = Intake::new(10, 15);
        let mut first = WeighedBody::new(Body::empty(), intake.clone());
        first.follow(&[0, 0, 0, 0, 10, 1]).expect("room");
        let mut second = WeighedBody::new(Body::empty(), intake);
        assert_eq!(second.follow(&message(10)).expect_err("no room").reason, "RECEIVING_TOO_MUCH");
        drop(first);
        let mut third = WeighedBody::new(Body::empty(), second.intake.clone());
        third.follow(&message(10)).expect("room again");
    }
}
