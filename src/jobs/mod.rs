//! Training jobs: durable, supervised in a process of their own each, watched by whoever wants to.

mod attempt;
mod child;
mod confine;
mod desk;
mod ending;
mod event;
mod failure;
mod job;
mod lines;
mod record;
mod spawner;
mod state;
mod store;
mod supervisor;
mod watch;
