//! The interface that takes over a model from the job that made it.

use std::fmt::Debug;
use std::path::Path;

use super::failure::Failure;
use crate::embedding::ModelDigest;
use crate::postgres::Fence;

/// Where finished models go.
pub trait ModelSink: Debug + Send + Sync {
    /// Takes over the model in `folder`, before its job counts as finished. Blocking. It may be called again with the
    /// same model, if a server stopped between this call and the end of the job. `fence` is the right to do so, where
    /// servers share jobs.
    ///
    /// # Errors
    /// The job fails with it; when resumed, it makes the same model from its last checkpoint.
    fn keep(&self, folder: &Path, model: ModelDigest, fence: Option<Fence>) -> Result<(), Failure>;
}

/// Leaves models in the folders of their jobs.
impl ModelSink for () {
    fn keep(&self, _: &Path, _: ModelDigest, _: Option<Fence>) -> Result<(), Failure> {
        Ok(())
    }
}
