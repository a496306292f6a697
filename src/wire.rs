//! The messages and service traits of `proto/shipreid/v1`, and their descriptors.

#![allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    reason = "generated code; the documentation stands in the proto files"
)]

include!(concat!(env!("OUT_DIR"), "/shipreid.v1.rs"));

/// Every proto file of the package, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
