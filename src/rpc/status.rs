//! Every error of the domain as a [`Problem`], and problems as gRPC answers. The only such map.

use tonic::Code;

use super::deadline;
use super::drain::{RETRY_AFTER_DRAIN, draining};
use super::permit::RETRY_AFTER;
use super::problem::Problem;
use crate::cancellation::Stopped;
use crate::chip::{BoxError, PixelSizeError, PrepareError};
use crate::encoder::{EmbedError, EncodeError, Refusal, ResidencyError, UnknownModel};
use crate::gallery::{ArchiveError, CatalogError, ImportError, NumberError, StoreError, UnservedKind};
use crate::jobs::{AddError, GalleryError, JobError, JobRejection, JobStoreError, Refused, WatchError};
use crate::matching::{MatchError, QueryError};
use crate::registry::{ActivationError, RegistryError};

impl From<PrepareError> for Problem {
    fn from(cause: PrepareError) -> Self {
        Self::invalid(cause.reason(), cause.field(), cause.to_string())
    }
}

impl From<PixelSizeError> for Problem {
    fn from(cause: PixelSizeError) -> Self {
        Self::invalid("PIXEL_SIZE_INVALID", cause.field(), cause.to_string())
    }
}

impl From<BoxError> for Problem {
    fn from(cause: BoxError) -> Self {
        Self::invalid("ORIENTED_BOX_INVALID", "oriented_box", cause.to_string())
    }
}

impl From<NumberError> for Problem {
    fn from(cause: NumberError) -> Self {
        Self::invalid("NUMBER_OUT_OF_BOUNDS", cause.field, cause.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(cause: StoreError) -> Self {
        let code = match &cause {
            StoreError::AlreadyExists(_) => Code::AlreadyExists,
            StoreError::Model { .. } => Code::FailedPrecondition,
            StoreError::Dimension { .. } => Code::FailedPrecondition,
            StoreError::EntriesFull { .. } | StoreError::BytesFull { .. } => Code::ResourceExhausted,
            StoreError::ReadOnly { .. } => Code::FailedPrecondition,
            StoreError::Closed => Code::Unavailable,
            StoreError::Unreadable(_) => Code::DataLoss,
            StoreError::Stopped(stopped) => return (*stopped).into(),
        };
        let problem = Self::new(code, cause.reason(), cause.to_string());
        match cause {
            StoreError::EntriesFull { limit } | StoreError::BytesFull { limit } => {
                problem.with_metadata("limit", limit)
            }
            StoreError::Closed => problem.retry_after(RETRY_AFTER_DRAIN),
            StoreError::AlreadyExists(_)
            | StoreError::Model { .. }
            | StoreError::Dimension { .. }
            | StoreError::ReadOnly { .. }
            | StoreError::Unreadable(_)
            | StoreError::Stopped(_) => problem,
        }
    }
}

impl From<Stopped> for Problem {
    fn from(cause: Stopped) -> Self {
        match cause {
            Stopped::Deadline => deadline::exceeded(),
            // Nobody is there to read it.
            Stopped::Cancelled => Self::new(Code::Cancelled, cause.reason(), cause.to_string()),
        }
    }
}

impl From<CatalogError> for Problem {
    fn from(cause: CatalogError) -> Self {
        let (reason, message) = (cause.reason(), cause.to_string());
        match cause {
            CatalogError::NotFound(_) => Self::new(Code::NotFound, reason, message),
            CatalogError::Exists(_) => Self::new(Code::AlreadyExists, reason, message),
            CatalogError::GalleriesFull { limit } => {
                Self::new(Code::ResourceExhausted, reason, message).with_metadata("limit", limit)
            }
            CatalogError::ImportsFull { limit } => Self::new(Code::ResourceExhausted, reason, message)
                .with_metadata("limit", limit)
                .retry_after(RETRY_AFTER_DRAIN),
            CatalogError::Refused { cause, .. } => {
                let code = match cause.kind {
                    UnservedKind::Damaged => Code::DataLoss,
                    UnservedKind::Newer | UnservedKind::Unreadable => Code::FailedPrecondition,
                };
                Self::new(code, reason, message)
            }
            CatalogError::Store(cause) => cause.into(),
            CatalogError::DiskFull => Self::new(Code::ResourceExhausted, reason, message),
            CatalogError::Io(_) | CatalogError::Failed => Self::new(Code::Internal, reason, message),
        }
    }
}

impl From<MatchError> for Problem {
    fn from(cause: MatchError) -> Self {
        match cause {
            MatchError::Uncalibrated { .. } => {
                Self::new(Code::FailedPrecondition, "UNCALIBRATED", cause.to_string())
            }
            MatchError::Store(cause) => cause.into(),
        }
    }
}

impl From<QueryError> for Problem {
    fn from(cause: QueryError) -> Self {
        let code = match &cause {
            QueryError::UnknownEntry(_) => Code::NotFound,
            QueryError::Dimension { .. } => Code::FailedPrecondition,
        };
        Self::new(code, cause.reason(), cause.to_string())
    }
}

impl From<ImportError> for Problem {
    fn from(cause: ImportError) -> Self {
        let (reason, message) = (cause.reason(), cause.to_string());
        match cause {
            ImportError::Archive(
                ArchiveError::Foreign
                | ArchiveError::Newer { .. }
                | ArchiveError::Truncated { .. }
                | ArchiveError::Damaged { .. }
                | ArchiveError::Unacceptable { .. },
            ) => Self::invalid(reason, "data", message),
            ImportError::Catalog(cause) => cause.into(),
        }
    }
}

impl From<JobRejection> for Problem {
    fn from(cause: JobRejection) -> Self {
        let message = cause.to_string();
        match cause {
            JobRejection::Syntax(_) => Self::invalid("CONFIG_MALFORMED", "config_toml", message),
            JobRejection::Invalid(violations) => {
                let problem = Self::new(Code::InvalidArgument, "CONFIG_INVALID", message);
                violations.into_iter().fold(problem, |problem, violation| {
                    problem.with_violation(format!("config_toml.{}", violation.field), violation.problem)
                })
            }
            JobRejection::Gallery(GalleryError::Catalog(cause)) => Self::from(cause).with_field("gallery"),
            JobRejection::Gallery(GalleryError::NoChips(_)) => {
                Self::new(Code::FailedPrecondition, "GALLERY_WITHOUT_CHIPS", message).with_field("gallery")
            }
            JobRejection::Draining => draining(),
            JobRejection::Stopped(cause) => cause.into(),
            JobRejection::Add(AddError::OtherOrder(id)) => {
                Self::new(Code::AlreadyExists, "REQUEST_ID_TAKEN", message).with_metadata("job_id", id)
            }
            JobRejection::Add(AddError::Full { max }) => {
                Self::new(Code::ResourceExhausted, "JOBS_FULL", message).with_metadata("limit", max)
            }
            JobRejection::Add(AddError::Store(cause)) => cause.into(),
        }
    }
}

impl From<JobError> for Problem {
    fn from(cause: JobError) -> Self {
        match cause {
            JobError::Unknown => Self::new(Code::NotFound, "JOB_NOT_FOUND", cause.to_string()),
            JobError::Refused(refused) => {
                let reason = match refused {
                    Refused::Finished => "JOB_FINISHED",
                    Refused::Failed => "JOB_FAILED",
                    Refused::Cancelled => "JOB_CANCELLED",
                    Refused::Cancelling => "JOB_CANCELLING",
                    Refused::Active => "JOB_ACTIVE",
                };
                Self::new(Code::FailedPrecondition, reason, refused.to_string())
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
            WatchError::Gone { oldest, .. } => Self::new(Code::OutOfRange, "EVENT_NOT_RETAINED", message)
                .with_metadata("oldest_event", oldest),
            WatchError::Future { next, .. } => {
                Self::new(Code::OutOfRange, "EVENT_IN_FUTURE", message).with_metadata("next_event", next)
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
                Self::new(Code::ResourceExhausted, "DISK_FULL", message)
            }
            JobStoreError::Unavailable(_) | JobStoreError::Pending(_) => {
                Self::new(Code::Unavailable, "JOB_STORE_UNAVAILABLE", message).retry_after(RETRY_AFTER_DRAIN)
            }
            JobStoreError::Damaged(_) => Self::new(Code::DataLoss, "JOB_STORE_DAMAGED", message),
            JobStoreError::DamagedJob { id, .. } => {
                Self::new(Code::DataLoss, "JOB_DAMAGED", message).with_metadata("job_id", id)
            }
            JobStoreError::Newer { .. } => Self::new(Code::FailedPrecondition, "JOB_STORE_NEWER", message),
        }
    }
}

impl From<UnknownModel> for Problem {
    fn from(cause: UnknownModel) -> Self {
        Self::new(Code::NotFound, "MODEL_NOT_FOUND", cause.to_string()).with_field("model")
    }
}

impl From<Refusal> for Problem {
    fn from(cause: Refusal) -> Self {
        let problem = Self::new(Code::ResourceExhausted, cause.reason(), cause.to_string());
        match cause {
            Refusal::Items { limit } | Refusal::Bytes { limit } => {
                problem.with_metadata("limit", limit).retry_after(RETRY_AFTER)
            }
            Refusal::Deadline { expected, .. } => problem.retry_after(expected),
        }
    }
}

impl From<EncodeError> for Problem {
    fn from(cause: EncodeError) -> Self {
        match cause {
            EncodeError::DeadlineExceeded => deadline::exceeded(),
            EncodeError::Failed => Self::new(Code::Internal, "FORWARD_FAILED", "the forward pass failed"),
            EncodeError::OutOfMemory => {
                Self::new(Code::ResourceExhausted, "DEVICE_OUT_OF_MEMORY", "the device has not enough memory")
                    .retry_after(RETRY_AFTER)
            }
            EncodeError::DeviceLost => Self::new(
                Code::Unavailable,
                "DEVICE_LOST",
                "the device is lost; the server must be restarted",
            )
            .retry_after(RETRY_AFTER_DRAIN),
            EncodeError::Closed => draining(),
            EncodeError::UnknownModel => {
                Self::new(Code::NotFound, "MODEL_NOT_FOUND", "the model is not resident any more")
            }
        }
    }
}

impl From<EmbedError> for Problem {
    fn from(cause: EmbedError) -> Self {
        match cause {
            EmbedError::Prepare(cause) => cause.into(),
            EmbedError::Prepared(cause) => Self::invalid(cause.reason(), "pixels", cause.to_string()),
            EmbedError::Encode(cause) => cause.into(),
            EmbedError::Panicked => Self::new(Code::Internal, "DECODE_FAILED", "decoding the image failed"),
        }
    }
}

impl From<RegistryError> for Problem {
    fn from(cause: RegistryError) -> Self {
        let (reason, message, is_full) = (cause.reason(), cause.to_string(), cause.is_full());
        match cause {
            RegistryError::NotFound(_) => Self::new(Code::NotFound, reason, message),
            RegistryError::Damaged { .. } => Self::new(Code::DataLoss, reason, message),
            RegistryError::Active(_) => Self::new(Code::FailedPrecondition, reason, message),
            RegistryError::TooMany { limit } => {
                Self::new(Code::ResourceExhausted, reason, message).with_metadata("limit", limit)
            }
            RegistryError::TooLarge { limit, .. } => {
                Self::new(Code::ResourceExhausted, reason, message).with_metadata("limit", limit)
            }
            RegistryError::TooManyIncoming { limit } => Self::new(Code::ResourceExhausted, reason, message)
                .with_metadata("limit", limit)
                .retry_after(RETRY_AFTER_DRAIN),
            RegistryError::NoModel(_) => Self::invalid(reason, "data", message),
            RegistryError::Stopped(cause) => cause.into(),
            RegistryError::Io { .. } if is_full => {
                Self::new(Code::ResourceExhausted, reason, "the disk of the models is full")
            }
            RegistryError::Lock(_) | RegistryError::Io { .. } => {
                tracing::error!(cause = message, "the models cannot be read or written");
                Self::new(Code::Internal, reason, "the models cannot be read or written")
            }
        }
    }
}

impl From<ResidencyError> for Problem {
    fn from(cause: ResidencyError) -> Self {
        let (reason, message) = (cause.reason(), cause.to_string());
        match cause {
            ResidencyError::Full { .. } => Self::new(Code::FailedPrecondition, reason, message),
            ResidencyError::TooLarge { limit, .. } => {
                Self::new(Code::ResourceExhausted, reason, message).with_metadata("limit", limit)
            }
            ResidencyError::Load(_) => not_runnable(reason),
        }
    }
}

impl From<ActivationError> for Problem {
    fn from(cause: ActivationError) -> Self {
        let (reason, message) = (cause.reason(), cause.to_string());
        match cause {
            ActivationError::Busy => Self::new(Code::Aborted, reason, message).retry_after(RETRY_AFTER_DRAIN),
            ActivationError::Registry(cause) => cause.into(),
            ActivationError::Residency(cause) => cause.into(),
            ActivationError::Load { .. } => not_runnable(reason),
            ActivationError::Needed { .. } => Self::new(Code::FailedPrecondition, reason, message),
            ActivationError::Panicked => Self::new(Code::Internal, reason, message),
        }
    }
}

/// What the device said stays in the log.
fn not_runnable(reason: &'static str) -> Problem {
    Problem::new(Code::FailedPrecondition, reason, "the model cannot run on this server; its log says why")
}

/// A call fails as a whole when none of its chips has an embedding and all for the server's reasons, so
/// that a retry policy sees one code and not a batch of errors.
pub fn whole_call<T>(outcomes: &[Result<T, Problem>]) -> Result<(), Problem> {
    let servers_fault =
        |problem: &Problem| problem.retry_after.is_some() || problem.code == Code::DeadlineExceeded;
    match outcomes.first() {
        Some(Err(first)) if outcomes.iter().all(|outcome| outcome.as_ref().is_err_and(servers_fault)) => {
            Err(Problem { field: None, ..first.clone() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn problem(code: Code) -> Problem {
        Problem::new(code, "TEST", "a test")
    }

    #[test]
    fn a_queue_that_is_too_long_says_when_to_come_back() {
        let (expected, left) = (Duration::from_secs(3), Duration::from_secs(2));
        let problem = Problem::from(Refusal::Deadline { expected, left });
        assert_eq!((problem.code, problem.reason), (Code::ResourceExhausted, "QUEUE_TOO_LONG"));
        assert_eq!(problem.retry_after, Some(expected));
        assert_eq!(problem.message, "the queue would take 3.0s, the call's deadline is in 2.0s");
    }

    #[test]
    fn a_watcher_that_is_sent_away_knows_the_last_event() {
        let problem = Problem::from(WatchError::Closing { next: 8 });
        assert_eq!((problem.code, problem.reason), (Code::Unavailable, "DRAINING"));
        assert!(problem.retry_after.is_some() && problem.metadata.contains(&("last_event", "7".into())));
    }

    #[test]
    fn a_batch_that_nobody_could_serve_fails_as_a_call() {
        let full = || problem(Code::ResourceExhausted).retry_after(RETRY_AFTER);
        let bad = || problem(Code::InvalidArgument);
        assert!(whole_call::<()>(&[Err(full()), Err(full())]).is_err());
        assert!(whole_call::<()>(&[Err(full()), Err(bad())]).is_ok());
        assert!(whole_call(&[Err(full()), Ok(())]).is_ok());
        assert!(whole_call::<()>(&[Err(bad())]).is_ok());
    }
}
