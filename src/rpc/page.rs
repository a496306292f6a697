//! Lists in pages, and the tokens that lead from one page to the next.

use crate::embedding::ModelDigest;
use crate::gallery::{GalleryName, RowId};
use crate::jobs::JobId;

use super::problem::Problem;

/// Items of a page, unless the caller says otherwise.
const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;

/// Where a page ends: the last item's place in its list, as a text that the next call brings back.
pub trait Place: Sized {
    fn token(&self) -> String;

    /// The place whose token this is. Other spellings of it, with a sign or zeros in front, are no tokens.
    fn of_token(token: &str) -> Option<Self> {
        Self::read(token).filter(|place| place.token() == token)
    }

    /// Reads a token at least as it was written.
    fn read(token: &str) -> Option<Self>;
}

impl Place for GalleryName {
    fn token(&self) -> String {
        self.to_string()
    }

    fn read(token: &str) -> Option<Self> {
        Self::new(token).ok()
    }
}

impl Place for RowId {
    fn token(&self) -> String {
        format!("{:x}", self.0)
    }

    fn read(token: &str) -> Option<Self> {
        u64::from_str_radix(token, 16).ok().map(Self)
    }
}

impl Place for JobId {
    fn token(&self) -> String {
        self.to_string()
    }

    fn read(token: &str) -> Option<Self> {
        token.parse().ok()
    }
}

/// A model's place among all, the oldest first: stays the same whatever is added and deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelPlace {
    /// Seconds since 1970.
    pub created_at: i64,
    pub digest: ModelDigest,
}

impl Place for ModelPlace {
    fn token(&self) -> String {
        format!("{}-{}", self.created_at, self.digest)
    }

    fn read(token: &str) -> Option<Self> {
        // A time before 1970 begins with a hyphen as well.
        let (created_at, digest) = token.rsplit_once('-')?;
        Some(Self { created_at: created_at.parse().ok()?, digest: digest.parse().ok()? })
    }
}

/// The place after which a page begins; `None` for the first page.
///
/// # Errors
/// No page ended with this token.
pub(super) fn after<P: Place>(token: &str) -> Result<Option<P>, Problem> {
    if token.is_empty() {
        return Ok(None);
    }
    let place = P::of_token(token).ok_or_else(|| {
        Problem::invalid("PAGE_TOKEN_INVALID", "page_token", "page_token comes from no earlier answer")
    })?;
    Ok(Some(place))
}

/// The token of the page behind the one that ends at `last`; empty where none follows.
pub(super) fn next_token<P: Place>(last: Option<&P>) -> String {
    last.map(Place::token).unwrap_or_default()
}

/// # Errors
/// More than a page may have.
pub(super) fn page_size(asked: u32) -> Result<usize, Problem> {
    match asked {
        0 => Ok(PAGE_DEFAULT as usize),
        1..=PAGE_MAX => Ok(asked as usize),
        _ => {
            let message = format!("page_size is {asked}, the limit is {PAGE_MAX}");
            Err(Problem::invalid("PAGE_SIZE_INVALID", "page_size", message).with_metadata("limit", PAGE_MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    fn check<P: Place + PartialEq + Debug>(place: P, token: &str) {
        assert_eq!(place.token(), token);
        assert_eq!(after(token).expect("a token"), Some(place));
    }

    fn check_refused<P: Place + Debug>(tokens: &[&str]) {
        for token in tokens {
            let problem = after::<P>(token).expect_err(token);
            assert_eq!(problem.reason, "PAGE_TOKEN_INVALID", "{token}");
        }
    }

    #[test]
    fn a_token_leads_back_to_its_place() {
        let digest = ModelDigest::new([0xab; 32]);
        check(GalleryName::new("harbour").expect("a name"), "harbour");
        check(RowId(0), "0");
        check(RowId(u64::MAX), "ffffffffffffffff");
        check("job-7".parse::<JobId>().expect("an id"), "job-7");
        for (created_at, text) in [(0, "0-"), (1_800_000_000, "1800000000-"), (-5, "-5-")] {
            check(ModelPlace { created_at, digest }, &format!("{text}{digest}"));
        }
        assert_eq!(after::<RowId>("").expect("the first page"), None);
    }

    #[test]
    fn another_spelling_of_a_token_is_refused() {
        check_refused::<GalleryName>(&["Harbour", "-", "a b"]);
        check_refused::<RowId>(&["+ff", "0ff", "FF", "-1", "10000000000000000", " 1"]);
        check_refused::<JobId>(&["job-07", "job-+7", "7", "job-"]);
        let digest = "ab".repeat(32);
        for head in ["+5-", "05-", "-0-", "", "5", "9223372036854775808-"] {
            check_refused::<ModelPlace>(&[&format!("{head}{digest}")]);
        }
        check_refused::<ModelPlace>(&[&format!("5-{}", digest.to_uppercase()), "5-", "-"]);
    }
}
