//! How current a gallery must be for a call that reads it.

use super::super::problem::Problem;
use crate::gallery::{Consistency, Read};
use crate::reason::Reason;
use crate::wire;

/// The fields `read` and `min_commit` of a request.
pub fn read(number: i32, min_commit: u64) -> Result<Read, Problem> {
    let consistency = match wire::Read::try_from(number) {
        Ok(wire::Read::Unspecified | wire::Read::Strong) => Consistency::Strong,
        Ok(wire::Read::Local) => Consistency::Local,
        Err(_) => {
            let message = format!("read {number} is unknown: READ_STRONG is 1, READ_LOCAL is 2");
            return Err(Problem::invalid(Reason::ReadUnknown, "read", message));
        }
    };
    Ok(Read { consistency, min_commit })
}
