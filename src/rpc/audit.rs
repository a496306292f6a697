//! The audit log: one record of caller, change and outcome for every call that changes something.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use http_body_util::BodyExt;
use prost_types::Timestamp;
use serde_json::json;
use tonic::Status;
use tonic_types::StatusExt;

use super::activity::Activity;
use super::context::{Note, Peer};
use super::method::{Effect, Method};

/// Where records are written in addition to the log.
#[derive(Clone, Debug, Default)]
pub struct AuditLog(Option<Arc<Appended>>);

#[derive(Debug)]
struct Appended {
    path: PathBuf,
    file: Mutex<File>,
}

impl AuditLog {
    /// Opens the file that records are appended to; an empty path means no file.
    ///
    /// # Errors
    /// The file can be neither opened nor created.
    pub fn open(path: &str) -> io::Result<Self> {
        if path.is_empty() {
            return Ok(Self::default());
        }
        let file = Mutex::new(OpenOptions::new().append(true).create(true).open(path)?);
        Ok(Self(Some(Arc::new(Appended { path: path.into(), file }))))
    }

    /// Writes synchronously, as the log itself does: a line goes into the page cache.
    fn append(&self, line: &serde_json::Value) {
        let Some(appended) = &self.0 else { return };
        let written = {
            let mut file = appended.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.write_all(format!("{line}\n").as_bytes())
        };
        if let Err(cause) = written {
            tracing::error!(%cause, path = %appended.path.display(), "a record of the audit log is in the log alone");
        }
    }
}

/// Records a call that changes something once it has ended, whether the server or the caller ended it. Calls without an
/// identity are not recorded: unauthenticated callers must not be able to fill the disk.
pub async fn record(State(log): State<AuditLog>, mut request: Request, next: Next) -> Response {
    let method = Method::of(request.uri().path());
    if method.effect == Effect::Reads {
        return next.run(request).await;
    }
    let note = Note::default();
    request.extensions_mut().insert(note.clone());
    let peer = request.extensions().get::<Peer>().copied();
    let activity = request.extensions().get().cloned().unwrap_or_else(Activity::new);
    let mut record = Record { log, method, peer, note, activity, ended: None };
    let response = next.run(request).await;
    record.end(response.headers());
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let Some(trailers) = frame.trailers_ref() {
                record.end(trailers);
            }
            frame
        }))
    })
}

/// A call in progress; its record is written when the last holder of its answer is dropped.
struct Record {
    log: AuditLog,
    method: Method,
    peer: Option<Peer>,
    note: Note,
    activity: Activity,
    ended: Option<Status>,
}

impl Record {
    fn end(&mut self, trailers: &HeaderMap) {
        self.ended = Status::from_header_map(trailers).or(self.ended.take());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Some(principal) = self.note.principal() else { return };
        let (resource, items) = (self.note.resource(), self.note.items());
        let (key, tenant) = (principal.key_id.as_deref(), &*principal.tenant);
        let method = self.method.path;
        let peer = self.peer.map(|peer| peer.address.to_string());
        let ended = self.ended.take().filter(|_| !self.activity.has_left());
        let ended = ended.unwrap_or_else(|| Status::cancelled("the caller left"));
        let code = format!("{:?}", ended.code());
        let reason = ended.get_details_error_info().map(|info| info.reason);
        tracing::info!(target: "audit", key, tenant, peer, method, resource, items, code, reason, "call");
        self.log.append(&json!({
            "time": Timestamp::from(SystemTime::now()).to_string(),
            "key": key,
            "tenant": tenant,
            "peer": peer,
            "method": method,
            "resource": resource,
            "items": items,
            "code": code,
            "reason": reason,
        }));
    }
}
