//! A database that cannot be used is refused in one line that says why; TLS, roles and grants are as docs/scaling.md sets
//! them up.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use super::*;

impl Shared {
    /// What a server says that cannot use the database.
    async fn refused(&self, settings_of: MemberSettings) -> String {
        let folder = self.folders.path().join("refused");
        let refused = settings_of.open(&folder, settings()).await.map(drop);
        let message = refused.expect_err("it cannot be used").to_string();
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.starts_with("the database of the galleries cannot be used: "), "{message}");
        message
    }

    async fn refused_url(&self, url: String) -> String {
        self.refused(MemberSettings { url, ..self.settings() }).await
    }

    /// The same database over TCP.
    fn over_tcp(&self, user: &str, host: &str, more: &str) -> String {
        let port = server().expect("it runs").port;
        format!("postgres://{user}@{host}:{port}/postgres?options=-csearch_path%3D{}{more}", self.schema)
    }
}

fn certificate(name: &str) -> String {
    server().expect("it runs").folder.join(name).to_str().expect("text").replace('/', "%2F")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_used_is_refused_in_one_line() {
    let Some(shared) = Shared::new().await else { return };
    let opened = shared.open().await;
    CatalogStore::close(&opened).await;
    let user = format!("{}@", shared.schema);
    for (url, expected) in [
        (shared.url.replace("/postgres?", "/nowhere?"), "database \"nowhere\" does not exist"),
        (shared.url.replace(&user, "nobody:secret@"), "role \"nobody\" does not exist"),
        ("postgres://shipreid@127.0.0.1:1/postgres".into(), "error connecting to server: Connection refused"),
        (format!("{}&sslcert=a", shared.url), "unknown option `sslcert`"),
    ] {
        let message = shared.refused_url(url).await;
        assert!(message.contains(expected) && !message.contains("secret"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_a_newer_release_are_refused_unless_it_left_them_usable() {
    let Some(shared) = Shared::new().await else { return };
    let server = shared.open().await;
    let gallery = server.create("t", &name("a"), new_gallery()).await.expect("made");
    gallery.enrol(enrolment("1", 1)).await.expect("enrolled");
    // A newer release has added what this one need not know.
    shared.execute("update shipreid set version = 99").await;
    let other = shared.open().await;
    assert_eq!(CatalogStore::get(&other, "t", &name("a")).await.expect("there").info().entries, 1);
    // And now what it must know.
    shared.execute("update shipreid set usable_from = 98").await;
    let told = "a newer release has changed its tables to version 98, this one knows up to version 4";
    let message = shared.refused(shared.settings()).await;
    assert!(message.contains(told), "{message}");
    let refused = CatalogStore::get(&server, "t", &name("a")).await.expect_err("it runs still").to_string();
    assert!(refused.contains(told), "{refused}");
    let refused = gallery.enrol(enrolment("2", 2)).await.expect_err("it runs still").to_string();
    assert!(refused.contains(told), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_tell_tenants_apart_in_another_way_are_refused() {
    let Some(shared) = Shared::new().await else { return };
    shared.open().await;
    let message = shared.refused(MemberSettings { tenancy: Tenancy::ByKeys, ..shared.settings() }).await;
    assert!(
        message.contains(
            "its servers have no keys and one tenant (tenancy \"one\"), this one has auth.keys_file"
        ),
        "{message}"
    );
    // All servers are stopped, and have keys from now on.
    shared.execute("update shipreid set tenancy = null").await;
    shared.open_as(MemberSettings { tenancy: Tenancy::ByKeys, ..shared.settings() }).await;
    let message = shared.refused(shared.settings()).await;
    assert!(
        message.contains(
            "its servers tell tenants apart by keys (tenancy \"keys\"), this one has no auth.keys_file"
        ),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_trusts_the_authority_that_the_url_names_and_no_other() {
    let Some(shared) = Shared::new().await else { return };
    let (user, ca, other) = (shared.schema.as_str(), certificate("ca.pem"), certificate("other.pem"));
    for mode in ["", "&sslmode=require", "&sslmode=verify-full", "&sslmode=verify-ca"] {
        let url = shared.over_tcp(
            user,
            "localhost",
            &format!("&sslrootcert={ca}{mode}&application_name=tls_{user}"),
        );
        let server = shared.open_as(MemberSettings { url, ..shared.settings() }).await;
        let encrypted = format!(
            "do $$ begin assert (select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid)
            where application_name = 'tls_{user}'); end $$"
        );
        shared.execute(&encrypted).await;
        CatalogStore::close(&server).await;
    }
    for (host, more, expected) in [
        ("localhost", format!("&sslrootcert={other}"), "UnknownIssuer"),
        ("localhost", "&sslmode=require".into(), "UnknownIssuer"),
        ("127.0.0.1", format!("&sslrootcert={ca}"), "not valid for name"),
        ("localhost", "&sslrootcert=%2Fnowhere.pem".into(), "sslrootcert /nowhere.pem: "),
        ("localhost", format!("&sslrootcert={}", certificate("server.key")), "it holds no certificate"),
    ] {
        let message = shared.refused_url(shared.over_tcp(user, host, &more)).await;
        assert!(message.contains(expected), "{message}");
    }
}

/// The statements of docs/scaling.md, for roles and a schema of this test.
fn documented(schema: &str) -> String {
    let document = include_str!("../../../../docs/scaling.md");
    let (_, block) = document.split_once("```sql\n").expect("the set-up");
    let (block, _) = block.split_once("```").expect("its end");
    // The role keeps its name in the database of the document, and there is one of it.
    block.replace("shipreid", schema)
}

async fn connected(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("it may connect");
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_roles_may_do_what_they_should_and_nothing_else() {
    let Some(shared) = Shared::new().await else { return };
    let schema = format!("documented_{}", shared.schema);
    shared.execute(&documented(&schema)).await;
    let of = |user: &str, password: &str| {
        let port = server().expect("it runs").port;
        format!("postgres://{user}:{password}@127.0.0.1:{port}/postgres?sslmode=disable")
    };
    shared
        .execute(&format!(
            "do $$ begin if not exists (select from pg_roles where rolname = 'secret') then create role secret; end if; end $$;
            grant secret to {schema}, {schema}_reader"
        ))
        .await;
    let url = of(&schema, "change-me");
    let catalog = shared.open_as(MemberSettings { url: url.clone(), ..shared.settings() }).await;
    let gallery = catalog.create("t", &name("a"), new_gallery()).await.expect("made");
    gallery.enrol(enrolment("1", 1)).await.expect("enrolled");

    let reader = connected(&of(&format!("{schema}_reader"), "change-me-too")).await;
    let joined = "select e.entry_id from entries e join galleries g on g.id = e.gallery where g.name = 'a'";
    assert_eq!(reader.query(joined, &[]).await.expect("it may read").len(), 1);
    // Not even where it says that it wants to write.
    reader.batch_execute("set default_transaction_read_only = off").await.expect("a setting");
    for statement in [
        "update galleries set commit = 0",
        "insert into removed values (1, 1, 1)",
        "delete from entries",
        "truncate vectors",
        "drop table chips",
        "create table mine (id int)",
        "alter table entries disable trigger all",
    ] {
        let refused = reader.batch_execute(statement).await.expect_err(statement);
        assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}");
    }
    let message = shared.refused_url(of(&format!("{schema}_reader"), "change-me-too")).await;
    assert!(message.contains("does not allow writes"), "{message}");
    let message = shared.refused_url(url.replace("change-me", "wrong")).await;
    assert!(
        message.contains("password authentication failed for user") && !message.contains("wrong"),
        "{message}"
    );
    // A role that may write elsewhere, and one that may only look.
    let elsewhere = format!("search_path%3D{}", shared.schema);
    let foreign = shared.url.replace(&elsewhere, &format!("search_path%3D{schema}"));
    for code in ["(3F000)", "(42501)"] {
        let message = shared.refused_url(foreign.clone()).await;
        let expected = format!("{code}; the user of store.url must own the schema (docs/scaling.md)");
        assert!(message.ends_with(&expected), "{message}");
        shared.execute(&format!("grant usage on schema {schema} to {}", shared.schema)).await;
    }
}
