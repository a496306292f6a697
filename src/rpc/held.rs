//! What lasts as long as an answer: until its last byte is gone, or nobody waits for it any more.

use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt;

/// Drops `held` together with the answer's body.
pub fn until_answered<T: Send + Sync + 'static>(response: Response, held: T) -> Response {
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            // A closure keeps what it names.
            let _held = &held;
            frame
        }))
    })
}
