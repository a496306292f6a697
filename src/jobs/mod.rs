//! Training jobs: durable, supervised in a process of their own each, watched by whoever wants to.

mod attempt;
mod child;
mod chips;
mod confine;
mod desk;
mod edit;
mod ending;
mod event;
mod failure;
mod job;
mod keeper;
mod lines;
mod narrator;
mod paths;
mod rankings;
mod record;
mod report;
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

pub use child::{CHECKPOINTS, CHIPS, INSTRUCTIONS, Instructions, MODEL, Saying, Speaker};
pub use chips::GalleryError;
pub use confine::{beat, confine, die_with_parent, take_folder};
pub use ending::tells_of_memory;
pub use event::{Happening, JobEvent};
pub use failure::{Failure as JobFailure, Reason};
pub use job::{Job, JobId, JobIdError, JobKey, Order};
pub use keeper::Keeper;
pub use narrator::Narrator;
pub use report::{Evaluation, Progress, Rankings, Saved, Shape, Start, UntakenTensor};
pub use service::{JobError, Jobs, OrderError};
pub use settings::Settings;
pub use state::{Change, JobState, Refused, StateName};
pub use store::{AddError, Bounds, FILE as JOB_STORE, Listing, Page, StoreError as JobStoreError};
pub use watch::{WatchError, WatchFrom};
