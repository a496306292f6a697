//! A page token that is taken is the one that its place has, and each place has one that leads back to it.

#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use shipreid::embedding::ModelDigest;
use shipreid::gallery::{GalleryName, RowId};
use shipreid::jobs::JobId;
use shipreid::page::{ModelPlace, PageCursor};
use shipreid_fuzz::{Bound, watched};

const BOUND: Bound = Bound { bytes: 1 << 10, per_input_byte: 4 };

fuzz_target!(|data: &[u8]| {
    if let Ok(token) = str::from_utf8(data) {
        check::<GalleryName>(token);
        check::<RowId>(token);
        check::<JobId>(token);
        check::<ModelPlace>(token);
    }
    if let Some((number, rest)) = data.split_first_chunk::<8>() {
        leads_back(RowId::from_u64(u64::from_le_bytes(*number)));
        if let Some((digest, _)) = rest.split_first_chunk::<32>() {
            let (created_at, digest) = (i64::from_le_bytes(*number), ModelDigest::new(*digest));
            leads_back(ModelPlace { created_at, digest });
        }
    }
});

fn check<P: PageCursor + PartialEq + Debug>(token: &str) {
    if let Some(place) = watched(BOUND, token.len(), || P::of_token(token)) {
        assert_eq!(place.token(), token);
        leads_back(place);
    }
}

fn leads_back<P: PageCursor + PartialEq + Debug>(place: P) {
    assert_eq!(P::of_token(&place.token()), Some(place));
}
