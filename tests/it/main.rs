//! The service as its callers see it: a real server on loopback, in this process, with a model-free encoder.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod embed;
mod refusals;
mod server;
