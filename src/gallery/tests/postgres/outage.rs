//! What the database does not do for a while: room that it lacks, and transactions of others that last.

use super::*;

/// The database refuses rows as it does where its disk is full. That is raised by a trigger: a tablespace cannot be made that
/// small without root.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_database_stops_writes_alone_and_loses_and_doubles_nothing() {
    let Some(shared) = Shared::new().await else { return };
    let server = shared.open().await;
    let gallery = server.create("t", &name("a"), new_gallery()).await.expect("made");
    gallery.enrol(enrolment("before", 1)).await.expect("enrolled");
    shared
        .execute(
            "create function full_disk() returns trigger language plpgsql as $$ begin
                raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
            create trigger full_disk before insert on entries execute function full_disk()",
        )
        .await;
    let refused = gallery.enrol(enrolment("during", 2)).await.expect_err("there is no room");
    assert_eq!(refused.reason().name(), "DATABASE_UNREACHABLE");
    assert!(refused.to_string().contains("(53100); reads go on"), "{refused}");
    let read = CatalogStore::get(&server, "t", &name("a")).await.expect("reads go on");
    assert_eq!((read.info().entries, read.info().read_only), (1, None));
    assert_eq!(gallery.delete(Selector::Ids(vec![id("before")])).await, Ok(1), "what needs no room goes on");
    shared.execute("drop trigger full_disk on entries").await;
    assert_eq!(gallery.enrol(enrolment("during", 2)).await, Ok(Enrolled::Created));
    assert_eq!(gallery.enrol(enrolment("during", 2)).await, Ok(Enrolled::Unchanged));
    assert_eq!(shared.open().await.served().len(), 1);
}

/// Copies follow by the numbers of commits, so that an old snapshot of somebody else holds up nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_transaction_of_somebody_else_holds_up_neither_writers_nor_followers() {
    let Some(shared) = Shared::new().await else { return };
    let (writer, reader) = (shared.open().await, shared.open().await);
    let gallery = writer.create("t", &name("a"), new_gallery()).await.expect("made");
    let (client, connection) =
        tokio_postgres::connect(&shared.admin_url, tokio_postgres::NoTls).await.expect("a server");
    let connection = tokio::spawn(connection);
    let begin = "begin isolation level repeatable read; create table mine as select count(*) from galleries";
    client.batch_execute(begin).await.expect("begun");
    for seed in 0..20 {
        let named = seed.to_string();
        gallery.enrol(enrolment(&named, seed)).await.expect("enrolled");
        let read = CatalogStore::get(&reader, "t", &name("a")).await.expect("there");
        assert!(read.snapshot().find(&id(&named)).expect("readable").is_some(), "{seed}");
    }
    client.batch_execute("commit").await.expect("it lasted");
    drop(client);
    connection.await.expect("no panic").expect("no error");
}
