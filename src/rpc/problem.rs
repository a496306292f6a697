//! An error as this API reports it: a stable reason with its code, a text for people, the invalid field.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::message::{bounded, excerpt};
use crate::reason::{Reason, Retry};
use crate::wire;

/// The domain of every `ErrorInfo` of this service.
pub const DOMAIN: &str = "shipreid";

/// Bytes of a text in a response. It appears there up to three times, twice in base64, and some clients refuse trailers
/// beyond 8 KiB.
const MESSAGE_MAX: usize = 2048;
/// Bytes of the description of one field.
const VIOLATION_MAX: usize = 512;
/// Bytes of the descriptions of all further fields together.
const VIOLATIONS_MAX: usize = 1024;

/// One error, before it is known whether a whole call or one item of a batch fails with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub reason: Reason,
    pub message: String,
    /// Path of the invalid field in the request.
    pub field: Option<String>,
    /// Further invalid fields, each with a description of what is wrong with it.
    pub violations: Vec<(String, String)>,
    /// When a retry can help.
    pub retry_after: Option<Duration>,
    pub metadata: Vec<(&'static str, String)>,
}

impl Problem {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let retry_after = match reason.retry() {
            Retry::Wait(least) => Some(least),
            Retry::Correct | Retry::Resolve | Retry::MoreTime | Retry::Operator => None,
        };
        Self {
            reason,
            message: message.into(),
            field: None,
            violations: Vec::new(),
            retry_after,
            metadata: Vec::new(),
        }
    }

    /// The caller sent something invalid.
    pub fn invalid(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(reason, message).with_field(field)
    }

    pub fn code(&self) -> Code {
        Code::from(self.reason.code() as i32)
    }

    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    pub fn with_violation(mut self, field: impl Into<String>, problem: impl Into<String>) -> Self {
        self.violations.push((field.into(), problem.into()));
        self
    }

    /// Sets a delay that is more accurate than the reason's default.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    pub fn with_metadata(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// Prefixes a field path that is relative to a chip with the chip's path, as in `chips[3].image`.
    pub fn within(mut self, prefix: &str) -> Self {
        self.field = self.field.map(|field| format!("{prefix}.{field}"));
        self
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let code = problem.code();
        let metadata: HashMap<String, String> =
            problem.metadata.into_iter().map(|(key, value)| (key.to_owned(), excerpt(&value))).collect();
        let mut details = ErrorDetails::with_error_info(problem.reason.name(), DOMAIN, metadata);
        if let Some(field) = problem.field.filter(|_| code == Code::InvalidArgument) {
            details.add_bad_request_violation(excerpt(&field), bounded(&problem.message, VIOLATION_MAX));
        }
        let mut room = VIOLATIONS_MAX;
        for (field, violation) in problem.violations {
            let (field, violation) = (excerpt(&field), bounded(&violation, VIOLATION_MAX));
            let Some(left) = room.checked_sub(field.len() + violation.len()) else { break };
            room = left;
            details.add_bad_request_violation(field, violation);
        }
        if let Some(delay) = problem.retry_after {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(code, bounded(&problem.message, MESSAGE_MAX), details)
    }
}

impl From<Problem> for wire::ItemError {
    fn from(problem: Problem) -> Self {
        Self {
            code: problem.reason.code() as i32,
            reason: problem.reason.name().into(),
            message: bounded(&problem.message, MESSAGE_MAX).into_owned(),
            field: problem.field.as_deref().map(excerpt).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    #[test]
    fn an_error_fits_the_trailers_that_clients_take_whatever_it_repeats() {
        let long = "x".repeat(1 << 20);
        let problem = Problem::invalid(Reason::UpdateMaskUnknown, long.clone(), long.clone());
        let problem = problem.with_metadata("gallery_model", &long).with_metadata("request_model", &long);
        let problem = (0..1000).fold(problem, |problem, number| {
            problem.with_violation(format!("config_toml.key{number}"), "is no number".repeat(20))
        });
        let item = wire::ItemError::from(problem.clone());
        assert!(item.message.len() <= MESSAGE_MAX, "{}", item.message.len());
        assert!(item.field.len() <= 128, "{}", item.field.len());
        let status = Status::from(problem);
        let faults = status.get_details_bad_request().expect("the fields").field_violations;
        assert!(faults.len() > 2 && faults[1].field == "config_toml.key0", "{faults:?}");
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers).expect("trailers");
        let bytes: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(bytes < 8 << 10, "{bytes}");
    }
}
