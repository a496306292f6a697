//! A model that the configuration alone keeps: it is made anew whenever it is asked for.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::embedding::ModelDigest;
use crate::encoder::LoadError;
use crate::weights::open::OpenModel;

/// A model that is none of a registry's, and how it is made.
pub struct Preset {
    make: Box<dyn Fn() -> Result<OpenModel, LoadError> + Send + Sync>,
    /// Once it was made.
    digest: Mutex<Option<ModelDigest>>,
}

impl Preset {
    pub fn new(make: impl Fn() -> Result<OpenModel, LoadError> + Send + Sync + 'static) -> Self {
        Self { make: Box::new(make), digest: Mutex::default() }
    }

    /// Whether it has this digest. Takes as long as to load a model if it was never made.
    pub fn is(&self, digest: ModelDigest) -> bool {
        match self.digest() {
            Some(known) => known == digest,
            None => self.make(digest).is_some(),
        }
    }

    fn digest(&self) -> Option<ModelDigest> {
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model, if it is `wanted`. Takes as long as to load one.
    pub fn make(&self, wanted: ModelDigest) -> Option<OpenModel> {
        if self.digest().is_some_and(|digest| digest != wanted) {
            return None;
        }
        let made = (self.make)();
        let made =
            made.inspect_err(|cause| tracing::warn!(%cause, "the configured preset cannot be made")).ok()?;
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner) = Some(made.digest);
        Some(made).filter(|made| made.digest == wanted)
    }
}

impl fmt::Debug for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preset").field("digest", &self.digest()).finish_non_exhaustive()
    }
}
