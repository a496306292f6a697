//! Servers without memory for all of their galleries.

use super::*;

/// Enough for a few entries, of some 700 bytes each.
const FEW: u64 = 4000;

#[tokio::test(flavor = "multi_thread")]
async fn a_gallery_that_does_not_fit_is_refused_with_the_numbers_until_it_does_and_others_are_served() {
    let Some(shared) = Shared::new().await else { return };
    let whole = shared.open().await;
    let small = whole.create("t", &name("small"), new_gallery()).await.expect("made");
    small.enrol(enrolment("1", 1)).await.expect("enrolled");
    let large = whole.create("t", &name("large"), new_gallery()).await.expect("made");
    for seed in 0..20 {
        large.enrol(enrolment(&seed.to_string(), seed)).await.expect("enrolled");
    }
    let server = shared.open_as(MemberSettings { resident_bytes_max: FEW, ..shared.settings() }).await;
    let get = async |gallery: &str| CatalogStore::get(&server, "t", &name(gallery)).await;
    assert_eq!(get("small").await.expect("it fits").info().entries, 1);
    let refused = get("large").await.expect_err("it does not");
    let message = refused.to_string();
    assert_eq!(refused.reason().name(), "GALLERY_TOO_LARGE");
    for part in [
        "gallery \"large\" is not served: a copy of its 20 entries takes about ",
        " of the 4000 bytes of store.resident_bytes_max are left; give this server more memory, or ",
    ] {
        assert!(message.contains(part) && message.lines().count() == 1, "{message}");
    }
    assert_eq!((server.census().writable, server.census().refused), (1, 1));
    assert!(server.holds("t", &name("small")) && !server.holds("t", &name("large")));
    server.try_lacking_again().await.expect("reachable");
    assert_eq!(get("large").await.expect_err("as before").reason().name(), "GALLERY_TOO_LARGE");
    let listed = CatalogStore::list(&server, "t", None, 9).await.expect("reachable").galleries;
    assert_eq!(listed.iter().filter(|(_, slot)| slot.is_ok()).count(), 1);

    let all_but_one = (1..20).map(|seed: u64| id(&seed.to_string())).collect();
    large.delete(Selector::Ids(all_but_one)).await.expect("deleted");
    server.try_lacking_again().await.expect("reachable");
    assert_eq!(get("large").await.expect("it fits now").info().entries, 1);
    assert!(server.holds("t", &name("large")));
}
