//! Caller identity: a key permits what its roles allow, in its tenant, for as long as it exists.

mod ending;
mod rejections;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::AUTHORIZATION;
use tokio::sync::watch;
use tonic::Status;

use super::context::{Note, Peer, Principal};
use super::method::{Access, Method};
use super::problem::Problem;
use super::reload::{FileError, Files};
use crate::config::Auth;
use crate::keys::{Key, KeyRing, Rejection};
use crate::metrics;
use crate::reason::Reason;
use rejections::Rejections;

/// How callers are identified.
#[derive(Clone, Debug)]
pub enum Identity {
    /// There are no keys: every caller may do everything, as one tenant.
    Anonymous,
    Keys {
        ring: watch::Receiver<Arc<KeyRing>>,
        rejections: Arc<Rejections>,
    },
}

impl Identity {
    /// Reads the keys, and keeps watching their file.
    ///
    /// # Errors
    /// A file cannot be read or holds an invalid block.
    pub async fn open(settings: &Auth) -> Result<Self, FileError> {
        if settings.keys_file.is_empty() {
            return Ok(Self::Anonymous);
        }
        let path = PathBuf::from(&settings.keys_file);
        let every = Duration::from_secs_f64(settings.reload_seconds);
        let files = Files { subject: "keys", paths: vec![path.clone()], every };
        let parse = move |contents: &[Vec<u8>]| {
            let text = String::from_utf8_lossy(&contents[0]);
            KeyRing::parse(&text).map_err(|problem| FileError::Invalid { path: path.clone(), problem })
        };
        let rejections = Arc::new(Rejections::new(settings.rejections_per_second_max));
        Ok(Self::Keys { ring: files.follow(parse).await?, rejections })
    }

    /// Whether callers have tenants of their own.
    pub fn tells_tenants_apart(&self) -> bool {
        match self {
            Self::Anonymous => false,
            Self::Keys { .. } => true,
        }
    }
}

/// Identifies the caller, and lets the call through if it is permitted. A call ends when its key does.
pub async fn establish(State(identity): State<Identity>, mut request: Request, next: Next) -> Response {
    let method = Method::of(request.uri().path());
    // The layers behind this one never see the secret.
    let header = request.headers_mut().remove(AUTHORIZATION);
    let Identity::Keys { ring: keys, rejections } = identity else {
        introduce(&mut request, Principal::anonymous());
        return next.run(request).await;
    };
    if method.access == Access::Open {
        introduce(&mut request, Principal::anonymous());
        return next.run(request).await;
    }
    let token = header.as_ref().and_then(|header| bearer(header.to_str().ok()?));
    // One caller must not lock out others that share a proxy's connection.
    let peer = request.extensions().get::<Peer>().filter(|peer| !peer.is_proxy);
    let connection = peer.map(|peer| peer.connection);
    if let Some(wait) = connection.and_then(|connection| rejections.wait(connection)) {
        return refused(guessing(wait));
    }
    let key = match known(&keys, token) {
        Ok(key) => key,
        Err(problem) => {
            connection
                .filter(|_| token.is_some())
                .into_iter()
                .for_each(|connection| rejections.note(connection));
            return refused(problem);
        }
    };
    introduce(&mut request, Principal::of(&key));
    if !method.access.is_granted_to(key.roles) {
        return refused(role_missing(method));
    }
    ending::until_over(keys, key, next.run(request)).await
}

/// Passes the caller's identity to the layers behind this one and to the audit layer before it.
fn introduce(request: &mut Request, principal: Principal) {
    if let Some(note) = request.extensions().get::<Note>() {
        note.is_of(principal.clone());
    }
    request.extensions_mut().insert(principal);
}

/// The token of an Authorization header.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn known(keys: &watch::Receiver<Arc<KeyRing>>, token: Option<&str>) -> Result<Arc<Key>, Problem> {
    let token = token.ok_or_else(|| {
        let message = "the call has no key: send the header \"authorization: Bearer KEY\"";
        Problem::new(Reason::KeyMissing, message)
    })?;
    keys.borrow().find(token, SystemTime::now()).cloned().map_err(rejected)
}

fn guessing(wait: Duration) -> Problem {
    let message = "too many keys were rejected over this connection";
    Problem::new(Reason::KeysRejected, message).retry_after(wait)
}

fn rejected(rejection: Rejection) -> Problem {
    match rejection {
        Rejection::Invalid => Problem::new(Reason::KeyInvalid, "the key is not known here"),
        Rejection::Expired => Problem::new(Reason::KeyExpired, "the key's time has passed"),
    }
}

fn role_missing(method: Method) -> Problem {
    let enough = match method.access {
        Access::Open | Access::AnyKey => &[],
        Access::OneOf(roles) => roles,
    };
    let names: Vec<&str> = enough.iter().map(|role| role.name()).collect();
    let message = format!("the key lacks the role for this: {}", names.join(" or "));
    Problem::new(Reason::RoleMissing, message).with_metadata("role", names.join(","))
}

fn refused(problem: Problem) -> Response {
    metrics::refused(problem.reason.name());
    Status::from(problem).into_http()
}
