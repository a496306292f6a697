//! A database that cannot be used is refused in one line that says why.

use super::*;

/// What cannot be used is refused with the reason, before anything is changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_used_is_refused_in_one_line() {
    let Some(shared) = Shared::new().await else { return };
    let opened = shared.open().await;
    CatalogStore::close(&opened).await;
    let refused = async |url: String| {
        let folder = shared.folders.path().join("refused");
        let shared_settings = PostgresSettings { url, ..shared.settings() };
        let refused = PostgresCatalog::open(&shared_settings, &folder, settings()).await.map(drop);
        let message = refused.expect_err("it cannot be used").to_string();
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    };
    let wrong = refused(shared.url.replace("/postgres?", "/nowhere?")).await;
    assert!(wrong.contains("database \"nowhere\" does not exist"), "{wrong}");
    let wrong = refused(shared.url.replace(&format!("{}@", shared.schema), "nobody:secret@")).await;
    assert!(wrong.contains("role \"nobody\" does not exist") && !wrong.contains("secret"), "{wrong}");
    let wrong = refused("postgres://shipreid@127.0.0.1:1/postgres".into()).await;
    assert!(wrong.contains("cannot be reached"), "{wrong}");
    shared.execute("update shipreid set version = 99").await;
    let wrong = refused(shared.url.clone()).await;
    assert!(wrong.contains("version 99, this program knows up to version 1"), "{wrong}");
}
