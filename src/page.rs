//! Tokens that lead from one page of a list to the next.

use crate::embedding::ModelDigest;
use crate::gallery::{GalleryName, RowId, VesselId};
use crate::jobs::JobId;
use crate::uploads::UploadId;

/// Where a page ends: the position of its last item in the list, as a text that the next call sends back.
pub trait PageCursor: Sized {
    fn token(&self) -> String;

    /// The position that this token stands for. Other spellings, with a sign or leading zeros, are not tokens.
    fn of_token(token: &str) -> Option<Self> {
        Self::read(token).filter(|place| place.token() == token)
    }

    /// Parses a token that is exactly as it was written.
    fn read(token: &str) -> Option<Self>;
}

impl PageCursor for GalleryName {
    fn token(&self) -> String {
        self.to_string()
    }

    fn read(token: &str) -> Option<Self> {
        Self::new(token).ok()
    }
}

impl PageCursor for RowId {
    fn token(&self) -> String {
        format!("{:x}", self.to_u64())
    }

    fn read(token: &str) -> Option<Self> {
        u64::from_str_radix(token, 16).ok().map(Self::from_u64)
    }
}

/// Distinguishes cursors of vessels, whose ids may be any text, from cursors of other lists.
const VESSEL: &str = "vessel:";

impl PageCursor for VesselId {
    fn token(&self) -> String {
        format!("{VESSEL}{self}")
    }

    fn read(token: &str) -> Option<Self> {
        Self::new(token.strip_prefix(VESSEL)?).ok()
    }
}

impl PageCursor for JobId {
    fn token(&self) -> String {
        self.to_string()
    }

    fn read(token: &str) -> Option<Self> {
        token.parse().ok()
    }
}

/// Distinguishes cursors of uploads from those of rows.
const UPLOAD: &str = "upload:";

impl PageCursor for UploadId {
    fn token(&self) -> String {
        format!("{UPLOAD}{self}")
    }

    fn read(token: &str) -> Option<Self> {
        token.strip_prefix(UPLOAD)?.parse().ok()
    }
}

/// A model's position among all, oldest first: unaffected by additions and deletions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelPlace {
    /// Seconds since 1970.
    pub created_at: i64,
    pub digest: ModelDigest,
}

impl PageCursor for ModelPlace {
    fn token(&self) -> String {
        format!("{}-{}", self.created_at, self.digest)
    }

    fn read(token: &str) -> Option<Self> {
        // A time before 1970 begins with a hyphen as well.
        let (created_at, digest) = token.rsplit_once('-')?;
        Some(Self { created_at: created_at.parse().ok()?, digest: digest.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    fn check<P: PageCursor + PartialEq + Debug>(place: P, token: &str) {
        assert_eq!(place.token(), token);
        assert_eq!(P::of_token(token), Some(place));
    }

    fn check_refused<P: PageCursor>(tokens: &[&str]) {
        for token in tokens {
            assert!(P::of_token(token).is_none(), "{token}");
        }
    }

    #[test]
    fn a_token_leads_back_to_its_place() {
        let digest = ModelDigest::new([0xab; 32]);
        check(GalleryName::new("harbour").expect("a name"), "harbour");
        check(RowId::from_u64(0), "0");
        check(RowId::from_u64(u64::MAX), "ffffffffffffffff");
        check(VesselId::new("job-7").expect("an id"), "vessel:job-7");
        check("job-7".parse::<JobId>().expect("an id"), "job-7");
        let id = "0".repeat(31) + "7";
        check(id.parse::<UploadId>().expect("an id"), &format!("upload:{id}"));
        for (created_at, text) in [(0, "0-"), (1_800_000_000, "1800000000-"), (-5, "-5-")] {
            check(ModelPlace { created_at, digest }, &format!("{text}{digest}"));
        }
    }

    #[test]
    fn a_token_of_another_list_is_none() {
        let digest = ModelDigest::new([0xab; 32]);
        let others = ["harbour", "ff", "job-7", &format!("5-{digest}")];
        check_refused::<VesselId>(&others);
        let vessel = [&*VesselId::new("5").expect("an id").token()];
        check_refused::<GalleryName>(&vessel);
        check_refused::<RowId>(&vessel);
        check_refused::<JobId>(&vessel);
        check_refused::<ModelPlace>(&vessel);
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
