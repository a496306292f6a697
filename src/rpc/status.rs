//! Maps every error of the domain to a [`Problem`], and problems to gRPC responses. This is the only such map.

use super::deadline;
use super::drain::draining;
use super::problem::Problem;
use crate::cancellation::Stopped;
use crate::chip::{BoxError, PixelSizeError, PrepareError};
use crate::encoder::{EmbedError, EncodeError, Refusal, ResidencyError, UnknownModel};
use crate::gallery::{CatalogError, ImportError, NumberError, StoreError};
use crate::jobs::{AddError, GalleryError, JobError, JobRejection, JobStoreError, Refused, WatchError};
use crate::matching::{MatchError, QueryError};
use crate::reason::Reason;
use crate::registry::{ActivationError, RegistryError};
use crate::uploads::UploadError;

impl From<PrepareError> for Problem {
    fn from(cause: PrepareError) -> Self {
        Self::invalid(cause.reason(), cause.field(), cause.to_string())
    }
}

impl From<PixelSizeError> for Problem {
    fn from(cause: PixelSizeError) -> Self {
        Self::invalid(Reason::PixelSizeInvalid, cause.field(), cause.to_string())
    }
}

impl From<BoxError> for Problem {
    fn from(cause: BoxError) -> Self {
        Self::invalid(Reason::OrientedBoxInvalid, "oriented_box", cause.to_string())
    }
}

impl From<NumberError> for Problem {
    fn from(cause: NumberError) -> Self {
        Self::invalid(Reason::NumberOutOfBounds, cause.field, cause.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(cause: StoreError) -> Self {
        match cause {
            StoreError::Stopped(stopped) => stopped.into(),
            StoreError::EntriesFull { limit } | StoreError::BytesFull { limit } => {
                Self::new(cause.reason(), cause.to_string()).with_metadata("limit", limit)
            }
            _ => Self::new(cause.reason(), cause.to_string()),
        }
    }
}

impl From<Stopped> for Problem {
    fn from(cause: Stopped) -> Self {
        match cause {
            Stopped::Deadline => deadline::exceeded(),
            // No caller is left to read it.
            Stopped::Cancelled => Self::new(cause.reason(), cause.to_string()),
        }
    }
}

impl From<CatalogError> for Problem {
    fn from(cause: CatalogError) -> Self {
        let problem = Self::new(cause.reason(), cause.to_string());
        match cause {
            CatalogError::GalleriesFull { limit } => problem.with_metadata("limit", limit),
            CatalogError::ImportsFull { limit } => problem.with_metadata("limit", limit),
            CatalogError::CommitUnknown { commit, .. } => problem.with_metadata("gallery_commit", commit),
            CatalogError::Store(cause) => cause.into(),
            _ => problem,
        }
    }
}

impl From<MatchError> for Problem {
    fn from(cause: MatchError) -> Self {
        match cause {
            MatchError::Uncalibrated { model, .. } => {
                Self::new(Reason::Uncalibrated, cause.to_string()).with_metadata("gallery_model", model)
            }
            MatchError::Ensemble { model, .. } | MatchError::NoEnsemble { model } => {
                Self::new(Reason::RankingUnavailable, cause.to_string()).with_metadata("gallery_model", model)
            }
            MatchError::BeyondDepth { depth, .. } => {
                Self::new(Reason::TopKBeyondDepth, cause.to_string()).with_metadata("limit", depth)
            }
            MatchError::Store(cause) => cause.into(),
        }
    }
}

impl From<QueryError> for Problem {
    fn from(cause: QueryError) -> Self {
        Self::new(cause.reason(), cause.to_string())
    }
}

impl From<ImportError> for Problem {
    fn from(cause: ImportError) -> Self {
        match cause {
            ImportError::Archive(_) => Self::invalid(cause.reason(), "data", cause.to_string()),
            ImportError::Catalog(cause) => cause.into(),
        }
    }
}

impl From<JobRejection> for Problem {
    fn from(cause: JobRejection) -> Self {
        let message = cause.to_string();
        match cause {
            JobRejection::Syntax(_) => Self::invalid(Reason::ConfigMalformed, "config_toml", message),
            JobRejection::Invalid(violations) => {
                let problem = Self::new(Reason::ConfigInvalid, message);
                violations.into_iter().fold(problem, |problem, violation| {
                    problem.with_violation(format!("config_toml.{}", violation.field), violation.problem)
                })
            }
            JobRejection::Gallery(GalleryError::Catalog(cause)) => Self::from(cause).with_field("gallery"),
            JobRejection::Gallery(GalleryError::NoChips(_)) => {
                Self::new(Reason::GalleryWithoutChips, message).with_field("gallery")
            }
            JobRejection::Draining => draining(),
            JobRejection::Stopped(cause) => cause.into(),
            JobRejection::Add(AddError::OtherOrder(id)) => {
                Self::new(Reason::RequestIdTaken, message).with_metadata("job_id", id)
            }
            JobRejection::Add(AddError::Full { max }) => {
                Self::new(Reason::JobsFull, message).with_metadata("limit", max)
            }
            JobRejection::Add(AddError::Store(cause)) => cause.into(),
        }
    }
}

impl From<JobError> for Problem {
    fn from(cause: JobError) -> Self {
        match cause {
            JobError::Unknown => Self::new(Reason::JobNotFound, cause.to_string()),
            JobError::Refused(refused) => {
                let reason = match refused {
                    Refused::Finished => Reason::JobFinished,
                    Refused::Failed => Reason::JobFailed,
                    Refused::Cancelled => Reason::JobCancelled,
                    Refused::Cancelling => Reason::JobCancelling,
                    Refused::Active => Reason::JobActive,
                };
                Self::new(reason, refused.to_string())
            }
            JobError::Draining => draining(),
            JobError::Store(cause) => cause.into(),
        }
    }
}

impl From<WatchError> for Problem {
    fn from(cause: WatchError) -> Self {
        let message = cause.to_string();
        match cause {
            WatchError::Unknown => JobError::Unknown.into(),
            WatchError::Gone { oldest, .. } => {
                Self::new(Reason::EventNotRetained, message).with_metadata("oldest_event", oldest)
            }
            WatchError::Future { next, .. } => {
                Self::new(Reason::EventInFuture, message).with_metadata("next_event", next)
            }
            WatchError::Closing { next } => Self { message, ..draining() }
                .with_metadata("last_event", next - 1)
                .with_metadata("next_event", next),
            WatchError::Store(cause) => cause.into(),
        }
    }
}

impl From<JobStoreError> for Problem {
    fn from(cause: JobStoreError) -> Self {
        let (message, is_full) = (cause.to_string(), cause.is_full());
        match cause {
            JobStoreError::Unavailable(_) | JobStoreError::Pending(_) if is_full => {
                Self::new(Reason::DiskFull, message)
            }
            JobStoreError::Unavailable(_) | JobStoreError::Pending(_) => {
                Self::new(Reason::JobStoreUnavailable, message)
            }
            JobStoreError::Damaged(_) => Self::new(Reason::JobStoreDamaged, message),
            JobStoreError::DamagedJob { id, .. } => {
                Self::new(Reason::JobDamaged, message).with_metadata("job_id", id)
            }
            JobStoreError::Newer { .. } => Self::new(Reason::JobStoreNewer, message),
            JobStoreError::Unreachable(_) => Self::new(Reason::DatabaseUnreachable, message),
        }
    }
}

impl From<UnknownModel> for Problem {
    fn from(cause: UnknownModel) -> Self {
        Self::new(Reason::ModelNotFound, cause.to_string()).with_field("model")
    }
}

impl From<Refusal> for Problem {
    fn from(cause: Refusal) -> Self {
        let problem = Self::new(cause.reason(), cause.to_string());
        match cause {
            Refusal::Items { limit } | Refusal::Bytes { limit } => problem.with_metadata("limit", limit),
            Refusal::Deadline { expected, .. } => problem.retry_after(expected),
            Refusal::TooShort { .. } => problem,
        }
    }
}

impl From<EncodeError> for Problem {
    fn from(cause: EncodeError) -> Self {
        let message = match cause {
            EncodeError::DeadlineExceeded => return deadline::exceeded(),
            EncodeError::Closed => return draining(),
            EncodeError::Failed => "the forward pass failed",
            EncodeError::OutOfMemory => "the device has not enough memory",
            EncodeError::DeviceLost => "the device is lost; the server must be restarted",
            EncodeError::UnknownModel => "the model is not resident any more",
        };
        Self::new(cause.reason(), message)
    }
}

impl From<EmbedError> for Problem {
    fn from(cause: EmbedError) -> Self {
        match cause {
            EmbedError::Prepare(cause) => cause.into(),
            EmbedError::Prepared(cause) => Self::invalid(cause.reason(), "pixels", cause.to_string()),
            EmbedError::Encode(cause) => cause.into(),
            EmbedError::Panicked => Self::new(cause.reason(), "decoding the image failed"),
        }
    }
}

impl From<RegistryError> for Problem {
    fn from(cause: RegistryError) -> Self {
        let (reason, message, is_full) = (cause.reason(), cause.to_string(), cause.is_full());
        match cause {
            RegistryError::NotFound(_) | RegistryError::Damaged { .. } | RegistryError::Active(_) => {
                Self::new(reason, message)
            }
            RegistryError::TooMany { limit } | RegistryError::TooManyIncoming { limit } => {
                Self::new(reason, message).with_metadata("limit", limit)
            }
            RegistryError::TooLarge { limit, .. } => Self::new(reason, message).with_metadata("limit", limit),
            RegistryError::OtherSource { digest, .. } => {
                Self::new(reason, message).with_metadata("model", digest)
            }
            RegistryError::OtherCalibrator { model, of } => {
                Self::new(reason, message).with_metadata("model", model).with_metadata("calibrator_model", of)
            }
            RegistryError::NoModel(_) => Self::invalid(reason, "data", message),
            RegistryError::Stopped(cause) => cause.into(),
            RegistryError::Database(_) => Self::new(reason, message),
            RegistryError::Io { .. } if is_full => Self::new(reason, "the disk of the models is full"),
            RegistryError::Lock(_) | RegistryError::Io { .. } | RegistryError::Lost => {
                tracing::error!(cause = message, "the models cannot be read or written");
                Self::new(reason, "the models cannot be read or written")
            }
        }
    }
}

impl From<UploadError> for Problem {
    fn from(cause: UploadError) -> Self {
        let (reason, message) = (cause.reason(), cause.to_string());
        match cause {
            UploadError::NotFound(_) | UploadError::Busy(_) | UploadError::Damaged => {
                Self::new(reason, message)
            }
            UploadError::EmptyChunk => Self::invalid(reason, "data", message),
            UploadError::Offset { size, .. } | UploadError::Differs { size, .. } => {
                Self::new(reason, message).with_field("offset").with_metadata("size_bytes", size)
            }
            UploadError::TooMany { scope, limit } | UploadError::TooLarge { scope, limit } => {
                Self::new(reason, message).with_metadata("limit", limit).with_metadata("scope", scope.name())
            }
            UploadError::Sha256 { .. } => Self::invalid(reason, "sha256", message),
            UploadError::Stopped(cause) => cause.into(),
            UploadError::Io { .. } if reason == Reason::DiskFull => {
                Self::new(reason, "the disk of the uploads is full")
            }
            UploadError::Lock(_) | UploadError::Io { .. } => {
                tracing::error!(cause = message, "the uploads cannot be read or written");
                Self::new(reason, "the uploads cannot be read or written")
            }
        }
    }
}

impl From<ResidencyError> for Problem {
    fn from(cause: ResidencyError) -> Self {
        let problem = Self::new(cause.reason(), cause.to_string());
        match cause {
            ResidencyError::Full { .. } => problem,
            ResidencyError::TooLarge { limit, .. } => problem.with_metadata("limit", limit),
            ResidencyError::Load(_) => not_runnable(),
        }
    }
}

impl From<ActivationError> for Problem {
    fn from(cause: ActivationError) -> Self {
        match cause {
            ActivationError::Registry(cause) => cause.into(),
            ActivationError::Residency(cause) => cause.into(),
            ActivationError::Load { .. } => not_runnable(),
            _ => Self::new(cause.reason(), cause.to_string()),
        }
    }
}

/// The device's own message stays in the log.
fn not_runnable() -> Problem {
    Problem::new(Reason::ModelNotRunnable, "the model cannot run on this server; its log says why")
}

/// A call fails as a whole when none of its items succeeded and all failed for reasons that are not their own, so that a
/// retry policy sees one code and not a batch of errors.
pub fn whole_call<'a, T: 'a>(
    outcomes: impl IntoIterator<Item = &'a Result<T, Problem>>,
) -> Result<(), Problem> {
    let mut first = None;
    for outcome in outcomes {
        match outcome {
            Err(problem) if is_of_the_call(problem) => _ = first.get_or_insert(problem),
            _ => return Ok(()),
        }
    }
    first.map_or(Ok(()), |first| Err(Problem { field: None, ..first.clone() }))
}

/// Whether the server, the deadline or the gallery is at fault, and not an item.
fn is_of_the_call(problem: &Problem) -> bool {
    problem.retry_after.is_some()
        || matches!(problem.reason, Reason::DeadlineExceeded | Reason::GalleryReadOnly)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn problem(reason: Reason) -> Problem {
        Problem::new(reason, "a test")
    }

    #[test]
    fn a_queue_that_is_too_long_says_when_to_come_back() {
        let (expected, left) = (Duration::from_secs(3), Duration::from_secs(2));
        let problem = Problem::from(Refusal::Deadline { expected, left });
        assert_eq!(problem.reason, Reason::QueueTooLong);
        assert_eq!(problem.retry_after, Some(expected));
        assert_eq!(problem.message, "the queue would take 3.0s, the call's deadline is in 2.0s");
    }

    #[test]
    fn a_deadline_that_no_queue_could_meet_is_no_reason_to_come_back() {
        let (expected, left) = (Duration::from_secs(3), Duration::from_secs(2));
        let problem = Problem::from(Refusal::TooShort { expected, left });
        assert_eq!((problem.reason, problem.retry_after), (Reason::DeadlineExceeded, None));
        assert_eq!(problem.message, "an idle device would take 3.0s, the call's deadline is in 2.0s");
    }

    #[test]
    fn a_watcher_that_is_sent_away_knows_the_last_event() {
        let problem = Problem::from(WatchError::Closing { next: 8 });
        assert_eq!(problem.reason, Reason::Draining);
        assert!(problem.retry_after.is_some() && problem.metadata.contains(&("last_event", "7".into())));
    }

    #[test]
    fn a_batch_that_nobody_could_serve_fails_as_a_call() {
        let full = || problem(Reason::QueueFull);
        let bad = || problem(Reason::ImageEmpty);
        assert!(whole_call::<()>(&[Err(full()), Err(full())]).is_err());
        assert!(whole_call::<()>(&[Err(full()), Err(bad())]).is_ok());
        assert!(whole_call(&[Err(full()), Ok(())]).is_ok());
        assert!(whole_call::<()>(&[Err(bad())]).is_ok());
        assert!(whole_call::<()>(&[]).is_ok());
        let read_only = || Err(problem(Reason::GalleryReadOnly).with_field("a.b"));
        let told = whole_call::<()>(&[read_only(), Err(full())]).expect_err("nothing was stored");
        assert_eq!((told.reason, told.field), (Reason::GalleryReadOnly, None));
        assert!(whole_call(&[read_only(), Ok(())]).is_ok());
    }
}
