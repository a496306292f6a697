//! The service from its callers' point of view: a real server on loopback, in this process, with an encoder
//! that needs no model; the program from its users' point of view; and the structure of the source.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod certificates;
mod clients;
#[cfg(feature = "torch")]
mod cluster;
#[cfg(feature = "torch")]
mod command;
mod connections;
mod contract;
mod dashboards;
#[cfg(feature = "torch")]
mod deployment;
#[cfg(feature = "torch")]
mod descriptors;
mod documents;
mod drain;
mod embed;
mod enroll_entries;
mod foreign;
mod galleries;
mod gallery_files;
mod georeferenced;
#[cfg(feature = "torch")]
mod gpu_check;
mod hostile;
mod identity;
mod layers;
mod listing;
mod matching;
#[cfg(all(feature = "torch", target_env = "gnu"))]
mod memory;
mod metrics;
#[cfg(feature = "torch")]
mod migrate;
mod models;
mod names;
#[cfg(feature = "torch")]
mod pipes;
mod preview;
#[cfg(all(feature = "torch", target_arch = "x86_64"))]
mod processors;
#[cfg(feature = "torch")]
mod program;
#[cfg(feature = "torch")]
mod ranks;
mod reading;
mod refusals;
#[cfg(feature = "torch")]
mod restarts;
mod roles;
#[cfg(feature = "torch")]
mod rot;
#[cfg(feature = "torch")]
mod runs;
mod server;
#[cfg(feature = "torch")]
mod signals;
mod starting;
#[cfg(feature = "torch")]
mod storage;
mod telemetry;
mod tls;
mod tools;
#[cfg(feature = "torch")]
mod torture;
#[cfg(feature = "torch")]
mod training;
#[cfg(feature = "torch")]
mod training_on_galleries;
#[cfg(feature = "torch")]
mod typed;
mod uploads;
#[cfg(feature = "torch")]
mod usage;
