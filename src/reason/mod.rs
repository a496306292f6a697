//! Every stable name that programs meet in an answer: `Reason` of a call that failed, `FailureReason` of a training
//! job, `Warning` about a chip or an answer, `Removal` of a candidate. `docs/reasons.md` is written from these tables.

mod call;
mod failure;
mod warning;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use call::Reason;
pub use failure::FailureReason;
pub use warning::{Removal, Warning};

/// The status codes of gRPC, in the order of their numbers from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Ok,
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl Code {
    const EVERY: [Self; 17] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The code of a number; `Unknown` for a number that no code has.
    pub fn of(number: i32) -> Self {
        usize::try_from(number).ok().and_then(|at| Self::EVERY.get(at)).copied().unwrap_or(Self::Unknown)
    }

    /// As gRPC spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::DataLoss => "DATA_LOSS",
            Self::Unauthenticated => "UNAUTHENTICATED",
        }
    }
}

/// What a caller does about a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The request is at fault: the same one fails again.
    Correct,
    /// Something has to change first, which the message names.
    Resolve,
    /// Send it again, at the earliest after this time. Answers carry it as `RetryInfo`, longer where a longer wait is known.
    Wait(Duration),
    /// Send it again with more time, if the answer is still wanted.
    MoreTime,
    /// The server is at fault. Its log says more.
    Operator,
}

/// Writes an enum of stable names with what is known of each.
macro_rules! named {
    (
        $(#[$attribute:meta])*
        pub enum $kind:ident {
            $($group:literal: $($variant:ident $name:literal $facts:tt $meaning:literal;)+)+
        }
    ) => {
        $(#[$attribute])*
        pub enum $kind {
            $($(#[doc = $meaning] $variant,)+)+
        }

        impl $kind {
            /// All of them with the title of their group, in the order of the document.
            pub const EVERY: &'static [(&'static str, Self)] = &[$($(($group, Self::$variant),)+)+];

            /// As it stands in answers, labels and stores.
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$variant => $name,)+)+
                }
            }

            /// A sentence for people.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $($(Self::$variant => $meaning,)+)+
                }
            }

            const fn facts(self) -> Facts {
                match self {
                    $($(Self::$variant => facts! $facts,)+)+
                }
            }
        }
    };
}

use named;
