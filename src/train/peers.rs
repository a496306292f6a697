//! What the processes of one run must do alike.

use std::fmt;
use std::time::Duration;

use super::learn::LearnError;

/// The other processes of a run, from the point of view of one.
pub trait Peers: fmt::Debug {
    /// Of this process, from 0. Rank 0 evaluates, and writes checkpoints and the model.
    fn rank(&self) -> usize;

    fn world_size(&self) -> usize;

    /// Whether any process says yes. All wait here for each other.
    ///
    /// # Errors
    /// Why the processes no longer train together.
    fn any(&self, yes: bool) -> Result<bool, LearnError>;

    /// The bytes that rank 0 has, for everyone.
    ///
    /// # Errors
    /// As for [`any`](Self::any).
    fn share(&self, bytes: Vec<u8>) -> Result<Vec<u8>, LearnError>;

    /// The time that this process has spent on the means of gradients over all processes, since the run began.
    fn all_reduced(&self) -> Duration;

    fn leads(&self) -> bool {
        self.rank() == 0
    }
}

/// A run of one process.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Peers for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn any(&self, yes: bool) -> Result<bool, LearnError> {
        Ok(yes)
    }

    fn share(&self, bytes: Vec<u8>) -> Result<Vec<u8>, LearnError> {
        Ok(bytes)
    }

    fn all_reduced(&self) -> Duration {
        Duration::ZERO
    }
}
