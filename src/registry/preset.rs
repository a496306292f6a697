//! A model that exists only in the configuration and is made again whenever it is needed.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::embedding::ModelDigest;
use crate::encoder::LoadError;
use crate::weights::any::AnyModel;

/// A model that is not in a registry, and how it is made.
pub struct Preset {
    make: Box<dyn Fn() -> Result<AnyModel, LoadError> + Send + Sync>,
    /// Known once it was made.
    digest: Mutex<Option<ModelDigest>>,
}

impl Preset {
    pub fn new(make: impl Fn() -> Result<AnyModel, LoadError> + Send + Sync + 'static) -> Self {
        Self { make: Box::new(make), digest: Mutex::default() }
    }

    /// Whether it has this digest. If it was never made, this takes as long as loading a model.
    pub fn is(&self, digest: ModelDigest) -> bool {
        match self.digest() {
            Some(known) => known == digest,
            None => self.make(digest).is_some(),
        }
    }

    fn digest(&self) -> Option<ModelDigest> {
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model, if it has the digest `wanted`. Takes as long as loading a model.
    pub fn make(&self, wanted: ModelDigest) -> Option<AnyModel> {
        if self.digest().is_some_and(|digest| digest != wanted) {
            return None;
        }
        let made = (self.make)();
        let made =
            made.inspect_err(|cause| tracing::warn!(%cause, "the configured preset cannot be made")).ok()?;
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner) = Some(made.digest());
        Some(made).filter(|made| made.digest() == wanted)
    }
}

impl fmt::Debug for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preset").field("digest", &self.digest()).finish_non_exhaustive()
    }
}
