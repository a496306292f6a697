//! Why a rank has ended, as the others learn of it.

use std::fmt;

/// What a rank has said of its end, or what others have noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankFailure {
    /// Of what kind it is by the rank's own account, in the program's words; empty where it has given none.
    pub kind: String,
    /// For people; it names the rank.
    pub message: String,
}

impl RankFailure {
    /// As it is stored, for [`Self::of_bytes`].
    #[cfg(feature = "torch")]
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        format!("{}\n{}", self.kind, self.message).into_bytes()
    }

    #[cfg(feature = "torch")]
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (kind, message) = text.split_once('\n').unwrap_or(("", &text));
        Self { kind: kind.to_owned(), message: message.to_owned() }
    }
}

/// Of no kind.
impl From<String> for RankFailure {
    fn from(message: String) -> Self {
        Self { kind: String::new(), message }
    }
}

impl fmt::Display for RankFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
