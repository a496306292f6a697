//! Servers that hold some of the galleries.

use super::*;

fn holding(patterns: &[&str]) -> Holding {
    Holding::new(patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect())
}

fn reason(refused: CatalogError) -> &'static str {
    refused.reason().name()
}

/// The galleries that a server has open, by tenant and name.
fn places(server: &PostgresCatalog) -> String {
    server.served().iter().map(|(place, _)| place.to_string()).collect::<Vec<_>>().join(" ")
}

/// How many copies are in the folder of a server.
fn copies(folder: &Path) -> usize {
    let clusters = fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path());
    let clusters = clusters.filter(|path| path.is_dir());
    clusters.map(|cluster| fs::read_dir(cluster).expect("readable").count()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_has_copies_of_the_galleries_that_it_holds_and_refuses_calls_for_others() {
    let Some(shared) = Shared::new().await else { return };
    let whole = shared.open().await;
    for (tenant, gallery) in [("t", "harbour"), ("t", "strait"), ("u", "harbour")] {
        let made = whole.create(tenant, &name(gallery), new_gallery()).await.expect("made");
        made.enrol(enrolment("1", 1)).await.expect("enrolled");
    }
    let folder = folder();
    let part = MemberSettings { holding: holding(&["harb*"]), ..shared.settings() };
    let part = part.open(folder.path(), settings()).await.expect("a catalog");
    assert_eq!((places(&part).as_str(), copies(folder.path())), ("t-t/harbour t-u/harbour", 2));
    let held = CatalogStore::get(&part, "t", &name("harbour")).await.expect("it is held");
    assert_eq!(held.info().entries, 1);

    let refused = CatalogStore::get(&part, "t", &name("strait")).await.expect_err("others hold it");
    let told = "gallery \"strait\" is not served: this server does not hold it (matching.galleries); send the call to a server that does";
    assert_eq!((refused.to_string().as_str(), reason(refused)), (told, "GALLERY_NOT_HELD"));
    let local = Read { consistency: Consistency::Local, min_commit: 0 };
    let refused = part.get_for("t", &name("strait"), local).await.expect_err("others hold it");
    assert_eq!(reason(refused), "GALLERY_NOT_HELD");
    let refused = part.create("t", &name("quay"), new_gallery()).await.expect_err("nor would it hold this");
    assert_eq!(reason(refused), "GALLERY_NOT_HELD");
    let refused = part.import("t", &name("quay")).await.expect_err("nor would it hold this");
    assert_eq!(reason(refused), "GALLERY_NOT_HELD");
    let absent = CatalogStore::get(&whole, "t", &name("quay")).await.expect_err("nothing was made");
    assert_eq!(reason(absent), "GALLERY_NOT_FOUND");

    // Every server lists and deletes all of them.
    let listed = CatalogStore::list(&part, "t", None, 9).await.expect("reachable").galleries;
    let listed: Vec<_> =
        listed.into_iter().map(|(name, slot)| (name, slot.err().map(|cause| cause.kind))).collect();
    assert_eq!(listed, [(name("harbour"), None), (name("strait"), Some(UnservedKind::NotHeld))]);
    part.delete("t", &name("strait")).await.expect("deleted");
    let absent = CatalogStore::get(&whole, "t", &name("strait")).await.expect_err("it is deleted");
    assert_eq!(reason(absent), "GALLERY_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_no_longer_holds_is_removed_from_its_disk() {
    let Some(shared) = Shared::new().await else { return };
    let folder = folder();
    let open = async |patterns: &[&str]| {
        let part = MemberSettings { holding: holding(patterns), ..shared.settings() };
        part.open(folder.path(), settings()).await.expect("a catalog")
    };
    let server = open(&[]).await;
    for (tenant, gallery) in [("t", "a"), ("t", "b"), ("u", "a")] {
        server.create(tenant, &name(gallery), new_gallery()).await.expect("made");
    }
    assert_eq!(copies(folder.path()), 3);
    CatalogStore::close(&server).await;
    let server = open(&["u/*", "b"]).await;
    assert_eq!((places(&server).as_str(), copies(folder.path())), ("t-t/b t-u/a", 2));
    CatalogStore::close(&server).await;
    let server = open(&["t/a"]).await;
    assert_eq!((places(&server).as_str(), copies(folder.path())), ("t-t/a", 1));
}
