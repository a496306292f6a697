//! gRPC: one file per service and one per layer around them. The only place, other than the client, that knows wire
//! types.

mod activity;
mod audit;
mod context;
mod convert;
mod deadline;
mod drain;
mod fair_budget;
mod galleries;
mod health;
mod held;
mod identity;
mod body_limit;
pub mod listener;
mod matching;
mod method;
mod models;
mod observe;
mod page;
mod permit;
mod problem;
mod rate;
mod reload;
mod roles;
mod ship_re_id;
mod sparing;
mod status;
pub mod status_page;
mod trace;
mod train;
mod training_jobs;
mod uploads;

use std::pin::Pin;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use futures_util::Stream;
use tonic::Status;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

pub use audit::AuditLog;
pub use drain::Drain;
pub use galleries::{GalleriesService, GalleryAccess};
pub use identity::Identity;
pub use matching::{Calibrators, Matcher};
pub use method::services;
pub use models::ModelsService;
pub use roles::ServerRoles;
pub use ship_re_id::ShipReIdService;
pub use train::JobAccess;
pub use training_jobs::TrainingJobsService;
pub use uploads::{UploadAccess, UploadsService};

use crate::config::Limits;
use crate::wire::FILE_DESCRIPTOR_SET;
use crate::wire::galleries_server::GalleriesServer;
use crate::wire::models_server::ModelsServer;
use crate::wire::ship_re_id_server::ShipReIdServer;
use crate::wire::training_jobs_server::TrainingJobsServer;
use crate::wire::uploads_server::UploadsServer;

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the server offers.
pub struct Services {
    pub ship_re_id: ShipReIdService,
    pub galleries: GalleriesService,
    pub models: ModelsService,
    pub training_jobs: TrainingJobsService,
    pub uploads: UploadsService,
}

/// What decides which calls get through to the services.
pub struct Gate {
    pub identity: Identity,
    pub roles: ServerRoles,
    pub audit: AuditLog,
    pub drain: Drain,
}

/// Every service behind its layers. A call passes them in this order: observed, audited, refused during shutdown,
/// identified, refused where it is another server's business, counted for its tenant, permitted, given its deadline,
/// measured as it is received, handled.
pub fn router(services: Services, gate: Gate, limits: &Limits) -> (Router, HealthReporter) {
    let (reporter, health) = health::service();
    // Python's grpcio-reflection asks for v1alpha only, grpcurl for v1 first.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // grpcurl shows the details of an error only if it finds their types here.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let built = "the descriptors are part of this program";
    let message_max = limits.message_bytes_max;
    let ship_re_id = ShipReIdServer::new(services.ship_re_id)
        .max_decoding_message_size(message_max)
        .max_encoding_message_size(message_max);
    let galleries = GalleriesServer::new(services.galleries)
        .max_decoding_message_size(message_max)
        .max_encoding_message_size(message_max);
    let models = ModelsServer::new(services.models)
        .max_decoding_message_size(message_max)
        .max_encoding_message_size(message_max);
    let training_jobs = TrainingJobsServer::new(services.training_jobs)
        .max_decoding_message_size(message_max)
        .max_encoding_message_size(message_max);
    let uploads = UploadsServer::new(services.uploads)
        .max_decoding_message_size(message_max)
        .max_encoding_message_size(message_max);
    let body_limit = body_limit::BodyLimit::new(limits, gate.drain.clone());
    let permits = permit::CallPermits::new(limits, gate.identity.tells_tenants_apart());
    let router = Routes::new(reflection().build_v1().expect(built))
        .add_service(reflection().build_v1alpha().expect(built))
        .add_service(health)
        .add_service(ship_re_id)
        .add_service(galleries)
        .add_service(models)
        .add_service(training_jobs)
        .add_service(uploads)
        .into_axum_router()
        .layer(from_fn_with_state(body_limit, body_limit::guard))
        .layer(from_fn_with_state(deadline::Deadlines::new(limits), deadline::enforce))
        .layer(from_fn_with_state(permits, permit::take))
        .layer(from_fn_with_state(rate::RateLimit::new(limits), rate::limit))
        .layer(from_fn_with_state(gate.roles, roles::check))
        .layer(from_fn_with_state(gate.identity, identity::establish))
        .layer(from_fn_with_state(gate.drain, drain::gate))
        .layer(from_fn_with_state(gate.audit, audit::record))
        .layer(from_fn(observe::record));
    (router, reporter)
}
