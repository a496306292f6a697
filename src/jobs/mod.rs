//! Training jobs: durable, supervised in a process of their own each, watched by whoever wants to.

mod event;
mod failure;
mod job;
mod record;
mod state;
mod store;
