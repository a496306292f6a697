//! Calls that read a shared gallery: up to date, or a local copy that is recent enough.

use super::*;
use crate::reason::Retry;

const LOCAL: Read = Read { consistency: Consistency::Local, min_commit: 0 };

async fn read(server: &PostgresCatalog, read: Read) -> Result<Readable, CatalogError> {
    server.get_for("t", &name("a"), read).await
}

/// Ends the connections of a server, and lets it have no more.
async fn cut_off(shared: &Shared) {
    // Other tests share the database server, so that it cannot be stopped.
    shared.execute(&format!("alter role {} nologin", shared.schema)).await;
    shared.end_connections().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_read_asks_the_database_for_nothing() {
    let Some(shared) = Shared::new().await else { return };
    let server = shared.open().await;
    let gallery = server.create("t", &name("a"), new_gallery()).await.expect("made");
    gallery.enrol(enrolment("1", 1)).await.expect("enrolled");
    let strong = read(&server, Read::default()).await.expect("up to date");
    assert_eq!((strong.age, strong.gallery.snapshot().commit()), (Duration::ZERO, 2));
    cut_off(&shared).await;
    let refused = read(&server, Read::default()).await.expect_err("there is no database");
    assert_eq!(refused.reason().name(), "DATABASE_UNREACHABLE");
    let local = read(&server, LOCAL).await.expect("recent enough");
    assert_eq!(local.gallery.snapshot().commit(), 2);
    assert!(local.age > Duration::ZERO && local.age < LOCAL_AGE_MAX, "{:?}", local.age);
    let refused = gallery.enrol(enrolment("2", 2)).await.expect_err("there is no database");
    assert!(matches!(refused, StoreError::Unreachable(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_read_beyond_the_bound_is_refused_if_the_copy_cannot_be_brought_up_to_date() {
    let Some(shared) = Shared::new().await else { return };
    let local_age_max = Duration::from_millis(100);
    let server = shared.open_as(MemberSettings { local_age_max, ..shared.settings() }).await;
    server.create("t", &name("a"), new_gallery()).await.expect("made");
    read(&server, LOCAL).await.expect("up to date");
    cut_off(&shared).await;
    // Until then it answers from the copy.
    let refused = loop {
        match read(&server, LOCAL).await {
            Ok(local) => assert!(local.age <= local_age_max, "{:?}", local.age),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.reason().name(), "GALLERY_STALE");
    assert!(matches!(refused.reason().retry(), Retry::Wait(_)));
    let message = refused.to_string();
    assert!(message.starts_with("this server's copy of the gallery is older than 0.100 s"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_needs_a_commit_gets_it_on_any_server() {
    let Some(shared) = Shared::new().await else { return };
    let (writer, reader) = (shared.open().await, shared.open().await);
    let gallery = writer.create("t", &name("a"), new_gallery()).await.expect("made");
    read(&reader, Read::default()).await.expect("there");
    for seed in 0..50 {
        gallery.enrol(enrolment(&seed.to_string(), seed)).await.expect("enrolled");
        let min_commit = gallery.snapshot().commit();
        let consistency = if seed % 2 == 0 { Consistency::Local } else { Consistency::Strong };
        let got = read(&reader, Read { consistency, min_commit }).await.expect("it follows");
        let snapshot = got.gallery.snapshot();
        assert!(snapshot.commit() >= min_commit);
        assert!(snapshot.find(&id(&seed.to_string())).expect("readable").is_some(), "{seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_there_is_not_is_refused_in_every_store() {
    let Some(shared) = Shared::new().await else { return };
    let folder = folder();
    let embedded = EmbeddedCatalog::open(folder.path(), settings()).expect("free");
    let catalogs: [Catalog; 2] = [Arc::new(shared.open().await), Arc::new(embedded)];
    for catalog in catalogs {
        let gallery = catalog.create("t", &name("a"), new_gallery()).await.expect("made");
        gallery.enrol(enrolment("1", 1)).await.expect("enrolled");
        for consistency in [Consistency::Strong, Consistency::Local] {
            let read =
                async |min_commit| catalog.get_for("t", &name("a"), Read { consistency, min_commit }).await;
            let commit = gallery.snapshot().commit();
            read(commit).await.expect("it is there");
            let refused = read(commit + 1).await.expect_err("nobody has committed it");
            assert_eq!(refused.reason().name(), "COMMIT_UNKNOWN");
            let expected =
                format!("the gallery is at commit {commit}, the request needs commit {}", commit + 1);
            assert_eq!(refused.to_string(), expected);
        }
    }
}

/// What is deleted is gone from local reads as soon as the server has heard of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gallery_that_another_server_deleted_and_made_again_is_the_new_one() {
    let Some(shared) = Shared::new().await else { return };
    let (other, reader) = (shared.open().await, shared.open().await);
    let gallery = other.create("t", &name("a"), new_gallery()).await.expect("made");
    gallery.enrol(enrolment("1", 1)).await.expect("enrolled");
    read(&reader, Read::default()).await.expect("there");
    other.delete("t", &name("a")).await.expect("there");
    assert_eq!(read(&other, LOCAL).await.expect_err("deleted").reason().name(), "GALLERY_NOT_FOUND");
    assert_eq!(
        read(&reader, Read::default()).await.expect_err("deleted").reason().name(),
        "GALLERY_NOT_FOUND"
    );
    while read(&reader, LOCAL).await.is_ok() {
        tokio::task::yield_now().await;
    }
    other.create("t", &name("a"), new_gallery()).await.expect("made");
    let again = read(&reader, LOCAL).await.expect("made again");
    assert_eq!(again.gallery.info().entries, 0);
}
