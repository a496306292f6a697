//! Deadlines: `grpc-timeout` becomes an instant that every stage sees, and the response is sent in time.
//!
//! tonic's own server answers CANCELLED when a timeout passes, so this layer handles timeouts instead.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::{Stream, StreamExt, stream};
use http::HeaderMap;
use tokio::time::Instant;
use tonic::Status;

use super::context::CallContext;
use super::method::{Method, Shape};
use super::problem::Problem;
use crate::config::Limits;
use crate::reason::Reason;

/// The time limit of a call with one request and one response; streams, activations and imports have only the limit that their
/// caller sets.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Used where the caller sets none.
    pub default: Option<Duration>,
    pub max: Duration,
}

impl Deadlines {
    pub fn new(limits: &Limits) -> Self {
        let default = Duration::from_secs_f64(limits.deadline_seconds_default);
        let max = Duration::from_secs_f64(limits.deadline_seconds_max);
        Self { default: Some(default).filter(|default| !default.is_zero()), max }
    }

    fn apply(self, asked: Option<Duration>, shape: Shape) -> Option<Duration> {
        match shape {
            Shape::Unary => asked.or(self.default).map(|timeout| timeout.min(self.max)),
            Shape::Lengthy | Shape::Streaming => asked,
        }
    }
}

/// Attaches the [`CallContext`], and ends a call whose response has not begun by its deadline. Dropping the handler
/// removes its chips from the queue.
pub async fn enforce(State(deadlines): State<Deadlines>, mut request: Request, next: Next) -> Response {
    let Method { shape, .. } = Method::of(request.uri().path());
    let timeout = match timeout(request.headers()) {
        Ok(asked) => deadlines.apply(asked, shape),
        Err(problem) => return Status::from(problem).into_http(),
    };
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let context = CallContext::new(request.extensions(), deadline);
    request.extensions_mut().insert(context);
    match deadline {
        None => next.run(request).await,
        Some(deadline) => tokio::time::timeout_at(deadline, next.run(request))
            .await
            .unwrap_or_else(|_| Status::from(exceeded()).into_http()),
    }
}

/// Ends a response stream with its first error, or with DEADLINE_EXCEEDED when its deadline has passed.
pub fn bounded<T: Send>(
    answers: impl Stream<Item = Result<T, Status>> + Send,
    deadline: Option<Instant>,
) -> impl Stream<Item = Result<T, Status>> + Send {
    stream::unfold(Some(Box::pin(answers)), move |answers| async move {
        let mut answers = answers?;
        let answer = match deadline {
            None => answers.next().await,
            Some(deadline) => tokio::time::timeout_at(deadline, answers.next())
                .await
                .unwrap_or_else(|_| Some(Err(exceeded().into()))),
        }?;
        let more = answer.is_ok().then_some(answers);
        Some((answer, more))
    })
}

/// The response to a call whose deadline has passed.
pub fn exceeded() -> Problem {
    Problem::new(Reason::DeadlineExceeded, "the call's deadline has passed")
}

/// At most eight digits and a unit, as the gRPC protocol over HTTP/2 defines it.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let malformed =
        || Problem::invalid(Reason::TimeoutMalformed, "grpc-timeout", "grpc-timeout is malformed");
    let text = value.to_str().map_err(|_| malformed())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(malformed)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let count: u64 = digits.parse().map_err(|_| malformed())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return Err(malformed()),
    }))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_at_its_deadline_or_with_its_last_answer() {
        let deadline = Some(Instant::now() + Duration::from_secs(1));
        let endless = stream::iter([Ok(1)]).chain(stream::pending());
        let answers: Vec<_> = bounded(endless, deadline).collect().await;
        assert_eq!(answers.len(), 2);
        assert_eq!(answers[1].as_ref().expect_err("the deadline").code(), Code::DeadlineExceeded);
        let answers: Vec<_> = bounded(stream::iter([Ok(1), Ok(2)]), deadline).collect().await;
        assert_eq!(answers.len(), 2);
        assert!(answers.iter().all(Result::is_ok));
    }

    #[test]
    fn a_unary_call_has_a_deadline_and_a_stream_the_one_it_asks_for() {
        let [one, ten, hour] = [1, 10, 3600].map(Duration::from_secs);
        let deadlines = Deadlines { default: Some(one), max: ten };
        for (asked, shape, expected) in [
            (None, Shape::Unary, Some(one)),
            (Some(ten), Shape::Unary, Some(ten)),
            (Some(hour), Shape::Unary, Some(ten)),
            (None, Shape::Lengthy, None),
            (Some(hour), Shape::Lengthy, Some(hour)),
            (None, Shape::Streaming, None),
            (Some(hour), Shape::Streaming, Some(hour)),
        ] {
            assert_eq!(deadlines.apply(asked, shape), expected, "{asked:?} {shape:?}");
        }
        assert_eq!(Deadlines { default: None, max: ten }.apply(None, Shape::Unary), None);
    }

    #[test]
    fn a_timeout_is_read_as_the_protocol_defines_it() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a header value"));
            timeout(&headers)
        };
        for (text, expected) in [
            ("250m", Duration::from_millis(250)),
            ("2S", Duration::from_secs(2)),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(read(text), Ok(Some(expected)), "{text}");
        }
        for text in ["", "S", "1", "1x", "123456789S", "-1S", "1.5S", "+1S"] {
            assert!(read(text).is_err(), "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
    }
}
