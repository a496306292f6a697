//! Refuses calls that this server's roles leave to other servers.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tonic::Status;

use super::method::Method;
use super::problem::Problem;
use crate::config::ServerRole;
use crate::reason::Reason;

/// What this server does. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerRoles(Arc<[ServerRole]>);

impl ServerRoles {
    pub fn new(roles: &[ServerRole]) -> Self {
        Self(roles.into())
    }
}

/// The refusal of a call to a server without this role.
pub fn not_served(role: ServerRole) -> Problem {
    let message = format!(
        "this server leaves this to others: server.roles does not name \"{}\"; send the call to a server with that role",
        role.name()
    );
    Problem::new(Reason::RoleNotServed, message).with_metadata("role", role.name())
}

/// Lets a call through, or refuses it.
pub async fn check(State(ServerRoles(roles)): State<ServerRoles>, request: Request, next: Next) -> Response {
    match Method::of(request.uri().path()).role() {
        Some(role) if !roles.contains(&role) => Status::from(not_served(role)).into_http(),
        _ => next.run(request).await,
    }
}
