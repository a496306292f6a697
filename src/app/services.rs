//! The services, on top of the model and the stores, behind the layers of every call.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::task::JoinHandle;

use super::observability::report_health;
use super::serving_model::ServingModel;
use super::shutdown::Shutdown;
use super::stores::Stores;
use super::threads::search_threads;
use crate::config::{Config, Matching};
use crate::embedding::ModelDigest;
use crate::gallery::search_pace;
use crate::matching::Calibrator;
use crate::rpc::listener::{self, Port};
use crate::rpc::{
    self, AuditLog, Calibrators, Drain, GalleriesService, GalleryAccess, Gate, Identity, Matcher,
    ModelsService, ServerRoles, Services, ShipReIdService, TrainingJobsService, UploadAccess, UploadsService,
};

/// The components that the services are made of.
pub struct Wired<'a> {
    pub config: &'a Config,
    pub model: &'a ServingModel,
    pub stores: &'a Stores,
    pub calibration: Calibration,
    pub shutdown: &'a Shutdown,
}

/// The calibrators of the configuration, by the model that they apply to.
#[derive(Default)]
pub struct Calibration(HashMap<ModelDigest, Arc<Calibrator>>);

/// The gRPC port while it is served.
pub struct Serving(JoinHandle<()>);

/// Reads the keys of callers and opens the audit log.
///
/// # Errors
/// Either file cannot be used; the error names it.
pub async fn gate(config: &Config, drain: Drain) -> anyhow::Result<Gate> {
    let identity = Identity::open(&config.auth).await?;
    let path = config.telemetry.audit_file.clone();
    let open = move || AuditLog::open(&path).with_context(|| format!("telemetry.audit_file {path}"));
    let audit = tokio::task::spawn_blocking(open).await??;
    Ok(Gate { identity, roles: ServerRoles::new(&config.server.roles), audit, drain })
}

/// Serves the port from now on, until the server shuts down.
pub fn serve(wired: Wired<'_>, gate: Gate, port: Port) -> Serving {
    let Wired { config, model, shutdown, .. } = wired;
    let (begun, calls_max, limits) = (shutdown.drain().begun(), shutdown.calls_max(), config.limits.clone());
    let health = model.watch_health();
    let (router, reporter) = rpc::router(services(wired), gate, &limits);
    tokio::spawn(report_health(reporter, health));
    Serving(tokio::spawn(async move { listener::serve(port, router, &limits, begun, calls_max).await }))
}

impl Serving {
    /// Waits for the calls in flight, once the server shuts down.
    pub async fn ended(self) {
        if let Err(cause) = self.0.await {
            tracing::error!(%cause, "the server task ended badly");
        }
    }
}

impl Calibration {
    /// Reads the configured calibrator, or those of a folder.
    ///
    /// # Errors
    /// A file cannot be read, is not a calibrator, or is a second one for the same model; the error names it.
    pub async fn read(matching: &Matching) -> anyhow::Result<Self> {
        let place = PathBuf::from(&matching.calibrators);
        if place.as_os_str().is_empty() {
            return Ok(Self::default());
        }
        tokio::task::spawn_blocking(move || read_calibrators(&place)).await?
    }
}

fn read_calibrators(place: &Path) -> anyhow::Result<Calibration> {
    let mut calibrators = HashMap::new();
    for file in calibrator_files(place).with_context(|| place.display().to_string())? {
        let named = || file.display().to_string();
        let text = fs::read_to_string(&file).with_context(named)?;
        let calibrator = Calibrator::parse(&text).with_context(named)?;
        let model = calibrator.model();
        if calibrators.insert(model, Arc::new(calibrator)).is_some() {
            bail!("{}: another calibrator holds for model {model} already", named());
        }
    }
    Ok(Calibration(calibrators))
}

fn calibrator_files(place: &Path) -> io::Result<Vec<PathBuf>> {
    if !place.is_dir() {
        return Ok(vec![place.to_owned()]);
    }
    let entries = fs::read_dir(place)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let mut files: Vec<_> =
        entries.into_iter().filter(|file| file.extension() == Some("toml".as_ref())).collect();
    files.sort();
    Ok(files)
}

fn services(wired: Wired<'_>) -> Services {
    let Wired { config, model, stores, calibration: Calibration(configured), shutdown } = wired;
    let Config { limits, matching, .. } = config;
    let (pipeline, jobs, drain) = (model.pipeline(), stores.jobs(), shutdown.drain());
    let access = GalleryAccess::new(stores.catalog(), search_threads(config), search_pace());
    let uploads = UploadAccess::new(stores.uploads(), limits);
    let registry = model.activator().map(|activator| Arc::clone(activator.registry()));
    let calibrators = Calibrators::new(configured, registry);
    let matcher = Matcher::new(access.clone(), Arc::clone(&pipeline), calibrators, matching, limits);
    Services {
        ship_re_id: ShipReIdService::new(Arc::clone(&pipeline), matcher, jobs.clone(), limits, drain.clone()),
        galleries: GalleriesService::new(access, Arc::clone(&pipeline), uploads.clone(), limits, drain),
        models: ModelsService::new(pipeline, model.activator(), uploads.clone()),
        training_jobs: TrainingJobsService::new(jobs),
        uploads: UploadsService::new(uploads),
    }
}
