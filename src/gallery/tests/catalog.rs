//! The catalog of a data directory: what every catalog must do, and what happens to its files.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use super::*;
use crate::gallery::embedded::schema::{CHIPS, CODES, GALLERY};

fn open(folder: &tempfile::TempDir) -> EmbeddedCatalog {
    EmbeddedCatalog::open(folder.path(), settings()).expect("the directory is free")
}

fn path(folder: &tempfile::TempDir, gallery: &str, file: &str) -> PathBuf {
    folder.path().join("t-default").join(gallery).join(file)
}

/// Two closed galleries of three entries each.
async fn two_galleries() -> tempfile::TempDir {
    let folder = folder();
    let catalog = open(&folder);
    for gallery in ["harbour", "offshore"] {
        let gallery = catalog.create("default", &name(gallery), new_gallery()).expect("made");
        for seed in 0..3 {
            gallery.enrol(enrolment(&seed.to_string(), seed)).await.expect("enrolled");
        }
    }
    catalog.close();
    folder
}

#[tokio::test]
async fn a_data_directory_does_what_every_catalog_has_to_do() {
    let folders = Mutex::new(vec![]);
    catalog_conformance::check(|quotas| {
        let folder = folder();
        let catalog = EmbeddedCatalog::open(folder.path(), EmbeddedSettings { quotas, ..settings() });
        folders.lock().expect("one thread").push(folder);
        Arc::new(catalog.expect("the directory is free"))
    })
    .await;
}

#[tokio::test]
async fn what_is_enrolled_is_there_after_the_next_opening() {
    let folder = folder();
    let catalog = open(&folder);
    let gallery = catalog.create("default", &name("harbour"), new_gallery()).expect("made");
    assert_eq!(gallery.enrol(enrolment("a", 1)).await, Ok(Enrolled::Created));
    assert_eq!(gallery.enrol(enrolment("a", 1)).await, Ok(Enrolled::Unchanged));
    assert_eq!(gallery.enrol(enrolment("a", 2)).await, Err(StoreError::AlreadyExists(id("a"))));
    let overwrite = Enrolment { conflict: Conflict::Overwrite, ..enrolment("a", 2) };
    assert_eq!(gallery.enrol(overwrite).await, Ok(Enrolled::Replaced));
    assert_eq!(gallery.enrol(enrolment("b", 3)).await, Ok(Enrolled::Created));
    assert_eq!(gallery.delete(Selector::Ids(vec![id("b"), id("c")])).await, Ok(1));
    let before = gallery.info();
    catalog.close();
    assert_eq!(gallery.enrol(enrolment("d", 4)).await, Err(StoreError::Closed));
    drop((catalog, gallery));

    let catalog = open(&folder);
    let gallery = catalog.get("default", &name("harbour")).expect("there");
    assert_eq!(gallery.info(), before);
    let snapshot = gallery.snapshot();
    let looked = snapshot.get(&[id("b"), id("a")], &Cancellation::default()).expect("readable");
    assert_eq!(looked.missing, [id("b")]);
    let (row, entry) = &looked.found[0];
    assert_eq!(*entry, enrolment("a", 2).entry);
    assert_eq!(snapshot.embedding(*row), Ok(embedding(2)));
    assert_eq!(snapshot.chip(*row), Ok(Some(chip(2))));
    catalog.close();
}

#[test]
fn a_data_directory_has_one_catalog_at_a_time() {
    let folder = folder();
    let catalog = open(&folder);
    let refused = EmbeddedCatalog::open(folder.path(), settings()).expect_err("in use").to_string();
    assert!(refused.contains("is in use by another process"), "{refused}");
    catalog.close();
    open(&folder).close();
}

/// A gallery with a damaged file is refused when it is asked for; nothing else is affected.
async fn check_refused(file: &str, spoil: impl Fn(&mut Vec<u8>), expected: &str) {
    let folder = two_galleries().await;
    let spoilt = path(&folder, "harbour", file);
    let mut bytes = fs::read(&spoilt).expect("there");
    spoil(&mut bytes);
    fs::write(&spoilt, bytes).expect("writable");
    let catalog = open(&folder);
    let refused = catalog.get("default", &name("harbour")).expect_err("spoilt").to_string();
    assert!(refused.starts_with("gallery \"harbour\" is not served: "), "{refused}");
    assert!(refused.contains(file) && refused.contains(expected), "{refused}");
    assert!(refused.ends_with("or delete the gallery"), "{refused}");
    let listed = catalog.list("default", None, 9).galleries;
    assert!(listed.len() == 2 && listed[0].1.is_err() && listed[1].1.is_ok());
    let other = catalog.get("default", &name("offshore")).expect("whole");
    assert_eq!(other.enrol(enrolment("another", 9)).await, Ok(Enrolled::Created));
    catalog.delete("default", &name("harbour")).expect("deletable");
    catalog.create("default", &name("harbour"), new_gallery()).expect("the name is free again");
    catalog.close();
}

#[tokio::test]
async fn a_damaged_gallery_is_refused_by_name_and_the_others_serve() {
    check_refused(GALLERY, Vec::clear, "damaged").await;
    check_refused(GALLERY, |bytes| bytes.truncate(bytes.len() / 2), "damaged").await;
    check_refused(GALLERY, |bytes| bytes.fill(0), "damaged").await;
    check_refused(GALLERY, |bytes| bytes[..9].copy_from_slice(b"something"), "damaged").await;
    check_refused(CHIPS, |bytes| bytes.truncate(100), "damaged").await;
}

#[tokio::test]
async fn a_gallery_without_its_file_is_refused() {
    let folder = two_galleries().await;
    fs::remove_file(path(&folder, "harbour", CHIPS)).expect("there");
    let catalog = open(&folder);
    let refused = catalog.get("default", &name("harbour")).expect_err("incomplete").to_string();
    assert!(refused.contains("chips.redb cannot be read: No such file"), "{refused}");
    catalog.close();
}

#[tokio::test]
async fn no_changed_byte_is_believed() {
    let folder = two_galleries().await;
    let file = path(&folder, "harbour", GALLERY);
    let whole = fs::read(&file).expect("there");
    let codes = path(&folder, "harbour", CODES);
    let whole_codes = fs::read(&codes).expect("there");
    let random = &mut ChaCha8Rng::seed_from_u64(5);
    let (mut refused, mut unreadable) = (0, 0);
    let mut check = |read: Result<bool, StoreError>| match read {
        Err(StoreError::Unreadable(_)) => unreadable += 1,
        read => assert_eq!(read, Ok(true)),
    };
    for _ in 0..300 {
        let mut bytes = whole.clone();
        let at = random.random_range(0..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
        fs::write(&file, bytes).expect("writable");
        fs::write(&codes, &whole_codes).expect("writable");
        let catalog = open(&folder);
        match catalog.get("default", &name("harbour")) {
            Err(CatalogError::Refused { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
            Ok(gallery) => {
                let snapshot = gallery.snapshot();
                for seed in 0..3 {
                    let expected = enrolment(&seed.to_string(), seed);
                    let row = RowId(seed);
                    check(snapshot.find(&expected.entry.id).map(|found| found == Some(row)));
                    check(snapshot.entry(row).map(|entry| entry == expected.entry));
                    check(snapshot.embedding(row).map(|embedding| embedding == expected.embedding));
                }
            }
        }
        catalog.close();
    }
    assert!(refused > 0 && unreadable > 0, "{refused} {unreadable}");
}

#[tokio::test]
async fn a_newer_gallery_is_refused_by_its_version() {
    use crate::gallery::embedded::record::AboutRecord;
    use crate::gallery::embedded::schema::ABOUT;
    use crate::gallery::record::encode;
    let folder = two_galleries().await;
    let database = redb::Database::open(path(&folder, "harbour", GALLERY)).expect("whole");
    let transaction = database.begin_write().expect("writable");
    let newer = AboutRecord { schema: 3, ..AboutRecord::default() };
    let mut table = transaction.open_table(ABOUT).expect("there");
    table.insert("gallery", encode(&newer).as_slice()).expect("writable");
    drop(table);
    transaction.commit().expect("writable");
    drop(database);
    let catalog = open(&folder);
    let refused = catalog.get("default", &name("harbour")).expect_err("newer").to_string();
    assert_eq!(
        refused,
        "gallery \"harbour\" is not served: gallery.redb has schema version 3, this program reads up to \
         version 2; start the program that wrote it, or delete the gallery"
    );
    catalog.close();
}

#[tokio::test]
async fn what_was_half_made_or_half_deleted_is_removed() {
    let folder = two_galleries().await;
    let tenant = folder.path().join("t-default");
    fs::rename(tenant.join("harbour"), tenant.join(".partial-harbour-gone-1-0")).expect("writable");
    fs::create_dir(tenant.join(".partial-new-new-1-1")).expect("writable");
    let catalog = open(&folder);
    assert!(catalog.get("default", &name("harbour")).is_err());
    assert!(catalog.get("default", &name("offshore")).is_ok());
    assert_eq!(fs::read_dir(&tenant).expect("readable").count(), 1);
    catalog.close();
}

#[tokio::test]
async fn quotas_are_met_exactly_and_named() {
    let folder = folder();
    let mut settings = settings();
    settings.quotas = Quotas { galleries_per_tenant: 2, entries_per_gallery: 2, bytes_per_tenant: 2000 };
    let catalog = EmbeddedCatalog::open(folder.path(), settings).expect("free");
    let first = catalog.create("default", &name("a"), new_gallery()).expect("made");
    let second = catalog.create("default", &name("b"), new_gallery()).expect("made");
    let full = catalog.create("default", &name("c"), new_gallery()).expect_err("one too many");
    assert_eq!(full.to_string(), "the tenant has 2 galleries, which is the limit");
    catalog.create("other", &name("c"), new_gallery()).expect("another tenant");

    for seed in 0..2 {
        assert_eq!(first.enrol(enrolment(&seed.to_string(), seed)).await, Ok(Enrolled::Created));
    }
    assert_eq!(first.enrol(enrolment("2", 2)).await, Err(StoreError::EntriesFull { limit: 2 }));
    assert_eq!(first.enrol(enrolment("1", 1)).await, Ok(Enrolled::Unchanged));
    let overwrite = Enrolment { conflict: Conflict::Overwrite, ..enrolment("1", 5) };
    assert_eq!(first.enrol(overwrite).await, Ok(Enrolled::Replaced));

    let each = first.info().stored_bytes / 2;
    let mut large = enrolment("large", 7);
    let room = 2000 - 3 * each;
    let image = |bytes: u64| Bytes::from(vec![1; bytes as usize]);
    large.chip.as_mut().expect("a chip").image = image(160 + room);
    let refused = second.enrol(large.clone()).await.expect_err("two bytes more than there is room for");
    assert_eq!(refused, StoreError::BytesFull { limit: 2000 });
    large.chip.as_mut().expect("a chip").image = image(100 + room);
    assert_eq!(second.enrol(large).await, Ok(Enrolled::Created));
    assert_eq!(first.delete(Selector::Filter(Box::default())).await, Ok(2));
    assert_eq!(second.enrol(enrolment("next", 8)).await, Ok(Enrolled::Created));
    catalog.close();
    drop((catalog, first, second));

    settings.quotas.bytes_per_tenant = 1000;
    let catalog = EmbeddedCatalog::open(folder.path(), settings).expect("free");
    let second = catalog.get("default", &name("b")).expect("a lowered limit refuses nothing that is there");
    assert_eq!(second.delete(Selector::Ids(vec![id("next")])).await, Ok(1));
    assert_eq!(second.enrol(enrolment("9", 9)).await, Err(StoreError::BytesFull { limit: 1000 }));
    catalog.close();
}

#[tokio::test]
async fn files_that_grow_far_beyond_what_is_stored_count() {
    let folder = folder();
    let mut settings = settings();
    settings.quotas.bytes_per_tenant = 4 << 20;
    let catalog = EmbeddedCatalog::open(folder.path(), settings).expect("free");
    let gallery = catalog.create("default", &name("a"), new_gallery()).expect("made");
    let overwrite = |seed: u64| {
        let made = enrolment("a", seed);
        let chip = made.chip.map(|chip| SourceChip { image: vec![seed as u8; 1 << 20].into(), ..chip });
        Enrolment { conflict: Conflict::Overwrite, chip, ..made }
    };
    gallery.enrol(overwrite(0)).await.expect("there is room");
    let reader = gallery.snapshot();
    let mut refused = None;
    for seed in 1..200 {
        refused = gallery.enrol(overwrite(seed)).await.err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused, Some(StoreError::BytesFull { limit: 4 << 20 }));
    assert!(reader.stored_bytes() < 2 << 20 && gallery.file_bytes() < 100 << 20);
    // Deleting is always possible, and frees the tenant's room.
    drop(reader);
    gallery.delete(Selector::Filter(Box::default())).await.expect("deleted");
    catalog.close();
    drop((catalog, gallery));
    let catalog = EmbeddedCatalog::open(folder.path(), settings).expect("free");
    let gallery = catalog.get("default", &name("a")).expect("there");
    assert_eq!(gallery.enrol(overwrite(0)).await, Ok(Enrolled::Created));
    catalog.close();
}

#[tokio::test]
async fn operations_of_a_group_fail_each_on_its_own() {
    let folder = folder();
    let catalog = open(&folder);
    let gallery = catalog.create("default", &name("a"), new_gallery()).expect("made");
    let wide = Embedding::from_feature(vec![1.0; DIMENSION + 1]).expect("a direction");
    let other = ModelDigest::new([8; 32]);
    let (created, exists, dimension, mismatch, deleted, last) = tokio::join!(
        gallery.enrol(enrolment("a", 1)),
        gallery.enrol(enrolment("a", 2)),
        gallery.enrol(Enrolment { embedding: wide, ..enrolment("b", 3) }),
        gallery.enrol(Enrolment { model: other, ..enrolment("c", 4) }),
        gallery.delete(Selector::Ids(vec![id("a")])),
        gallery.enrol(enrolment("a", 2)),
    );
    assert_eq!(created, Ok(Enrolled::Created));
    assert_eq!(exists, Err(StoreError::AlreadyExists(id("a"))));
    assert_eq!(dimension, Err(StoreError::Dimension { expected: DIMENSION, found: DIMENSION + 1 }));
    assert_eq!(mismatch, Err(StoreError::Model { expected: model(), found: other }));
    assert_eq!(deleted, Ok(1));
    assert_eq!(last, Ok(Enrolled::Created));
    assert_eq!(gallery.info().entries, 1);
    catalog.close();
}

#[tokio::test]
async fn a_deleted_gallery_answers_at_once() {
    let folder = folder();
    let catalog = open(&folder);
    let gallery = catalog.create("default", &name("a"), new_gallery()).expect("made");
    gallery.enrol(enrolment("a", 1)).await.expect("enrolled");
    catalog.delete("default", &name("a")).expect("there");
    assert_eq!(gallery.enrol(enrolment("b", 2)).await, Err(StoreError::Closed));
    assert_eq!(fs::read_dir(folder.path().join("t-default")).expect("readable").count(), 0);
    catalog.close();
}

#[tokio::test]
async fn codes_of_another_gallery_are_passed_over() {
    let folder = folder();
    let catalog = open(&folder);
    for (gallery, seed) in [("a", 1), ("b", 2)] {
        let gallery = catalog.create("default", &name(gallery), new_gallery()).expect("made");
        gallery.enrol(enrolment("x", seed)).await.expect("enrolled");
    }
    catalog.close();
    fs::copy(path(&folder, "a", CODES), path(&folder, "b", CODES)).expect("writable");
    let catalog = open(&folder);
    let snapshot = catalog.embedded("default", &name("b")).published();
    let (_, code) = snapshot.index().codes().next().expect("one entry");
    assert_eq!(Some(code), Code::new(embedding(2).as_slice()).parts().next());
    catalog.close();
}

/// The gallery of three entries that schema version 1 was released with.
#[tokio::test]
async fn a_gallery_of_schema_version_1_opens() {
    let folder = folder();
    let there = folder.path().join("t-default").join("harbour");
    fs::create_dir_all(&there).expect("writable");
    let fixture = released("gallery-1");
    for file in [GALLERY, CHIPS, CODES] {
        fs::copy(fixture.join(file), there.join(file)).expect("the fixture is in the tree");
    }
    let catalog = open(&folder);
    let gallery = catalog.get("default", &name("harbour")).expect("of a version that is known");
    let mut expected = model::Model { next_row: 3, ..model::Model::default() };
    for seed in 0..3 {
        let Enrolment { entry, embedding, chip, .. } = enrolment(&seed.to_string(), seed);
        expected.rows.insert(RowId(seed), model::Kept { entry, embedding, shadow: None, chip });
    }
    expected.check_embedded(&catalog.embedded("default", &name("harbour")).published());
    assert_eq!(gallery.enrol(enrolment("another", 9)).await, Ok(Enrolled::Created));
    catalog.close();
}
