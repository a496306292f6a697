//! A catalog in PostgreSQL does what every catalog does, and the servers of one database see each other's commits.

use super::super::conformance::Trial;
use super::super::model::{Model, Operation};
use super::super::{catalog_conformance, generator};
use super::*;

fn operations() -> usize {
    std::env::var("SHIPREID_OPERATIONS").map_or(1000, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_in_postgres_does_what_every_catalog_does() {
    if Shared::new().await.is_none() {
        return;
    }
    let open = |quotas| -> Catalog {
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let shared = Shared::new().await.expect("it is installed");
                let catalog = shared.open_with(quotas).await;
                let _folders = shared.folders.keep();
                Arc::new(catalog)
            })
        })
    };
    catalog_conformance::check(open).await;
}

/// Servers take turns: each sees what the others have done as soon as it asks for the gallery, and what is held of an
/// earlier state stays as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_gallery_of_three_servers_is_one_gallery() {
    let Some(shared) = Shared::new().await else { return };
    let servers = [shared.open().await, shared.open().await, shared.open().await];
    let gallery = servers[0].create("t", &name("a"), new_gallery()).await.expect("made");
    let mut trial = Trial::new(gallery, 11);
    let (mut done, mut held) = (0, Vec::<(Model, Arc<dyn GalleryReader>)>::new());
    while done < operations() {
        let turn = trial.generator.0.random_range(0..servers.len());
        trial.gallery = CatalogStore::get(&servers[turn], "t", &name("a")).await.expect("there");
        trial.check();
        if done % 7 == 0 {
            held.push((trial.model.clone(), trial.gallery.snapshot()));
        }
        done += trial.change().await;
        trial.check();
    }
    for (model, snapshot) in held {
        model.check(&*snapshot);
    }
    let exports = futures_util::future::join_all(servers.iter().map(whole)).await;
    let fresh = shared.open().await;
    assert!(exports.iter().all(|export| *export == exports[0]), "all servers have the same");
    assert_eq!(whole(&fresh).await, exports[0], "and so has one that starts with nothing");
    trial.gallery = CatalogStore::get(&fresh, "t", &name("a")).await.expect("there");
    trial.check();
}

async fn whole(server: &PostgresCatalog) -> Vec<u8> {
    let gallery = CatalogStore::get(server, "t", &name("a")).await.expect("there");
    tokio::task::spawn_blocking(move || export(&gallery, Chips::With)).await.expect("no panic")
}

/// Writers of two servers at once: whatever the order, both come to what a third one reads from nothing.
#[tokio::test(flavor = "multi_thread")]
async fn writers_of_two_servers_at_once_come_to_one_state() {
    let Some(shared) = Shared::new().await else { return };
    let servers = [shared.open().await, shared.open().await];
    let first = servers[0].create("t", &name("a"), new_gallery()).await.expect("made");
    let second = CatalogStore::get(&servers[1], "t", &name("a")).await.expect("there");
    let mut generator = generator::OperationGenerator::new(13);
    let mut done = 0;
    while done < operations() {
        let count = generator.0.random_range(2..40);
        let asked: Vec<(Gallery, Operation)> = (0..count)
            .map(|_| {
                let gallery = if generator.0.random() { &first } else { &second };
                (Arc::clone(gallery), generator.operation())
            })
            .collect();
        done += asked.len();
        futures_util::future::join_all(
            asked.iter().map(|(gallery, operation)| operation.clone().ask(&**gallery)),
        )
        .await;
    }
    let fresh = shared.open().await;
    let expected = whole(&fresh).await;
    for server in &servers {
        assert_eq!(whole(server).await, expected);
    }
    assert!(first.info().entries > 0);
}

/// A server that was away takes in what has happened meanwhile: changes, galleries that came and went, and more than it
/// can follow.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_catches_up() {
    let Some(shared) = Shared::new().await else { return };
    let stays = shared.open().await;
    let away = shared.reopen(100, settings().quotas).await.expect("a catalog");
    let gallery = away.create("t", &name("a"), new_gallery()).await.expect("made");
    away.create("t", &name("gone"), new_gallery()).await.expect("made");
    for seed in 0..5 {
        gallery.enrol(enrolment(&seed.to_string(), seed)).await.expect("enrolled");
    }
    CatalogStore::close(&away).await;

    let gallery = CatalogStore::get(&stays, "t", &name("a")).await.expect("there");
    gallery.delete(Selector::Ids(vec![id("1"), id("3")])).await.expect("deleted");
    gallery.merge(vec![], VesselId::new("v").expect("an id")).await.expect("merged");
    gallery.enrol(enrolment("5", 5)).await.expect("enrolled");
    stays.delete("t", &name("gone")).await.expect("there");
    stays.create("t", &name("new"), new_gallery()).await.expect("made");
    let away = shared.reopen(100, settings().quotas).await.expect("its copies");
    assert_eq!(away.served().len(), 2);
    assert_eq!(whole(&away).await, whole(&stays).await);
    CatalogStore::close(&away).await;

    // What it would have to follow is forgotten, so its copy is loaded anew.
    gallery.delete(Selector::Ids(vec![id("0")])).await.expect("deleted");
    shared.execute("update galleries set removed_from = commit; delete from removed").await;
    let away = shared.reopen(100, settings().quotas).await.expect("a catalog");
    assert_eq!(whole(&away).await, whole(&stays).await);
    assert_eq!(CatalogStore::get(&away, "t", &name("a")).await.expect("there").info().entries, 3);
}

/// Two servers of which one does not know that the database was put back to an earlier state.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_restored_from_a_backup_is_what_counts() {
    let Some(shared) = Shared::new().await else { return };
    let server = shared.open().await;
    let gallery = server.create("t", &name("a"), new_gallery()).await.expect("made");
    gallery.enrol(enrolment("kept", 1)).await.expect("enrolled");
    shared
        .execute(
            "create table g as table galleries; create table e as table entries;
            create table v as table vectors; create table c as table chips",
        )
        .await;
    gallery.enrol(enrolment("lost", 2)).await.expect("enrolled");
    shared
        .execute(
            "begin; delete from galleries; delete from entries; delete from vectors; delete from chips;
            insert into galleries overriding system value select * from g;
            insert into entries select * from e; insert into vectors select * from v;
            insert into chips select * from c; commit",
        )
        .await;
    let gallery = CatalogStore::get(&server, "t", &name("a")).await.expect("there");
    assert_eq!(gallery.snapshot().find(&id("lost")), Ok(None));
    assert_eq!(gallery.info().entries, 1);
    assert_eq!(gallery.enrol(enrolment("next", 3)).await, Ok(Enrolled::Created));
}

/// Connections that the database ends, between calls or while they bring a row, fail what they were doing, and nothing after that.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_are_replaced() {
    let Some(shared) = Shared::new().await else { return };
    let server = shared.open().await;
    let gallery = server.create("t", &name("a"), new_gallery()).await.expect("made");
    let end_in_use = format!(
        "create sequence rows_seen;
        grant usage on sequence rows_seen to {};
        create function end_in_use() returns trigger language plpgsql as $$ begin
            if nextval('rows_seen') % 10 = 5 then perform pg_terminate_backend(pg_backend_pid()); end if;
            return new; end $$;
        create trigger end_in_use before insert on entries for each row execute function end_in_use()",
        shared.schema
    );
    shared.execute(&end_in_use).await;
    let mut unanswered = 0;
    for seed in 0..60_u64 {
        if seed % 10 == 9 {
            shared.end_connections().await;
        }
        let named = seed.to_string();
        let mut enrolled = gallery.enrol(enrolment(&named, seed)).await;
        // Asked again, it is there once.
        while matches!(enrolled, Err(StoreError::Unreachable(_))) {
            unanswered += 1;
            enrolled = gallery.enrol(enrolment(&named, seed)).await;
        }
        assert!(matches!(enrolled, Ok(Enrolled::Created | Enrolled::Unchanged)), "{enrolled:?}");
    }
    assert!(unanswered >= 7, "of 67 rows seven ended their connection, but {unanswered} calls failed");
    let gallery = CatalogStore::get(&shared.open().await, "t", &name("a")).await.expect("there");
    assert_eq!(gallery.info().entries, 60);
}
