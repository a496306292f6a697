//! Names of uploads.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// Random bits of an id, below its time.
const RANDOM_BITS: u32 = 80;

/// Names an upload: milliseconds since 1970, followed by 80 random bits. In the order of ids, older uploads come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(u128);

/// The text is not 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an upload id is 32 hexadecimal digits")]
pub struct UploadIdError;

impl UploadId {
    /// The bounds of all ids.
    pub const MIN: Self = Self(0);
    pub const MAX: Self = Self(u128::MAX);

    /// An id for an upload that begins now.
    pub fn generate() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let random = rand::random::<u128>() & ((1 << RANDOM_BITS) - 1);
        Self(since_1970.as_millis() << RANDOM_BITS | random)
    }

    pub fn created_at(self) -> SystemTime {
        let millis = u64::try_from(self.0 >> RANDOM_BITS).expect("48 bits");
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for UploadId {
    type Err = UploadIdError;

    fn from_str(text: &str) -> Result<Self, UploadIdError> {
        let id = u128::from_str_radix(text, 16).map(Self).ok();
        // Every upload has exactly one name.
        id.filter(|id| id.to_string() == text).ok_or(UploadIdError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_has_one_name_which_tells_its_time() {
        let id = UploadId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.created_at() <= SystemTime::now());
        assert!(SystemTime::now().duration_since(id.created_at()).expect("past") < Duration::from_secs(60));
        assert_ne!(id, UploadId::generate());
        let digits = "0".repeat(31);
        for text in [
            "",
            "7",
            "..",
            &format!("+{digits}"),
            &format!("{digits}00"),
            &format!("{digits}A"),
            &format!("{digits}g"),
        ] {
            assert_eq!(text.parse::<UploadId>(), Err(UploadIdError), "{text}");
        }
    }
}
