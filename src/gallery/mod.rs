//! Enrolled ships in memory: int8 codes that are scanned, and the proof that a ranking is the exact one.

mod codes;
mod dot;
mod scan;

pub use codes::{Bounds, Code, Codes};
pub use scan::{Hit, search};
