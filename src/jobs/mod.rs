//! Training jobs: durable, each supervised in its own process, and watchable by callers.

mod attempt;
mod child;
mod chips;
mod confine;
mod edit;
mod event;
mod event_mapper;
mod failure;
mod follow;
mod hold;
mod job;
mod lease;
mod lines;
mod model_sink;
mod outcome;
mod paths;
mod rankings;
mod record;
mod report;
mod repository;
mod retries;
mod service;
mod settings;
mod slot;
mod spawner;
mod state;
mod store;
mod supervisor;
#[cfg(test)]
mod tests;
mod watch;

pub use child::{
    CHECKPOINTS, CHIPS, ChildChannel, ChildMessage, ExitReport, INSTRUCTIONS, Instructions, MODEL,
};
pub use chips::GalleryError;
pub use confine::{beat, confine, die_with_parent, take_folder};
pub use event::{EventPayload, JobEvent};
pub use event_mapper::EventMapper;
pub use failure::{Failure as JobFailure, io_reason};
pub use job::{Job, JobId, JobIdError, JobKey, JobSpec};
pub use model_sink::ModelSink;
pub use outcome::tells_of_memory;
pub use report::{
    DeliveredCheckpoint, Progress, Rankings, RunEvent, SavedCheckpoint, Start, TensorShape, UntakenTensor,
};
pub use service::{JobError, JobRejection, Jobs};
pub use settings::{RETRY_PAUSE, Settings};
pub use state::{Change, JobState, Refused, StateName};
pub use store::{AddError, Bounds, FILE as JOB_STORE, Listing, Page, StoreError as JobStoreError};
pub use watch::{WatchError, WatchFrom};
