//! Values that live as long as a response: until its last byte is sent or the caller is gone.

use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt;

/// Drops `held` together with the response's body.
pub fn until_answered<T: Send + Sync + 'static>(response: Response, held: T) -> Response {
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            // A closure captures what it names.
            let _held = &held;
            frame
        }))
    })
}
