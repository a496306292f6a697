//! What every catalog must do.

use super::*;

const TENANT: &str = "a tenant / with a name";
const AMPLE: Quotas = Quotas { galleries_per_tenant: 9, entries_per_gallery: 999, bytes_per_tenant: 1 << 30 };

/// Checks the catalogs that `open` returns, which must be empty.
pub async fn check(open: impl Fn(Quotas) -> Catalog) {
    galleries_come_and_go(open(AMPLE)).await;
    tenants_are_apart(open(AMPLE)).await;
    galleries_are_listed_by_name_in_parts(open(AMPLE)).await;
    galleries_of_a_tenant_are_bounded(open(Quotas { galleries_per_tenant: 2, ..AMPLE })).await;
    entries_are_bounded(open(Quotas { entries_per_gallery: 2, ..AMPLE })).await;
    bytes_of_a_tenant_are_bounded(&open).await;
    an_export_becomes_the_gallery_that_it_is_of(open(AMPLE)).await;
    an_import_that_does_not_come_to_its_end_leaves_nothing(open(AMPLE)).await;
    a_name_that_is_taken_is_not_imported(open(AMPLE)).await;
    an_import_is_bounded(&open).await;
    galleries_are_counted_and_their_models_known(open(AMPLE)).await;
    a_closed_catalog_takes_nothing(open(AMPLE)).await;
}

async fn galleries_come_and_go(catalog: Catalog) {
    let (tenant, name) = (TENANT, &name("harbour"));
    assert_eq!(refusal(catalog.get(tenant, name).await), "GALLERY_NOT_FOUND");
    assert_eq!(refusal(catalog.delete(tenant, name).await), "GALLERY_NOT_FOUND");
    let made = catalog.create(tenant, name, NewGallery { keeps_chips: false, ..new_gallery() }).await;
    let made = made.expect("the name is free");
    let about = made.info().about;
    assert_eq!((about.model, about.dimension, about.keeps_chips), (model(), DIMENSION, false));
    assert_eq!(refusal(catalog.create(tenant, name, new_gallery()).await), "GALLERY_EXISTS");

    assert_eq!(made.enrol(enrolment("a", 1)).await, Ok(Enrolled::Created));
    let found = catalog.get(tenant, name).await.expect("there");
    assert_eq!(found.info().entries, 1);
    let row = found.snapshot().find(&id("a")).expect("readable").expect("there");
    assert_eq!(found.snapshot().keeps_chip(row), Ok(false), "the gallery was made to keep none");

    catalog.delete(tenant, name).await.expect("there");
    assert_eq!(refusal(catalog.get(tenant, name).await), "GALLERY_NOT_FOUND");
    assert_eq!(made.enrol(enrolment("b", 2)).await, Err(StoreError::Closed));
    let again = catalog.create(tenant, name, new_gallery()).await.expect("the name is free again");
    assert_eq!(again.info().entries, 0);
    catalog.close().await;
}

async fn tenants_are_apart(catalog: Catalog) {
    let fleet = &name("fleet");
    for tenant in ["a", "A", "../a"] {
        catalog.create(tenant, fleet, new_gallery()).await.expect("made");
    }
    let gallery = catalog.get("A", fleet).await.expect("there");
    gallery.enrol(enrolment("x", 1)).await.expect("enrolled");
    catalog.delete("../a", fleet).await.expect("there");
    for (tenant, expected) in [("a", Some(0)), ("A", Some(1)), ("../a", None), ("b", None)] {
        let entries = catalog.get(tenant, fleet).await.ok().map(|gallery| gallery.info().entries);
        assert_eq!(entries, expected, "{tenant}");
    }
    catalog.close().await;
}

async fn galleries_are_listed_by_name_in_parts(catalog: Catalog) {
    for gallery in ["c", "a_", "d", "a-", "a0"] {
        catalog.create(TENANT, &name(gallery), new_gallery()).await.expect("made");
    }
    let list = async |tenant, after: Option<&str>, size| {
        let after = after.map(name);
        let Listing { galleries, next } = catalog.list(tenant, after.as_ref(), size).await.expect("readable");
        assert!(galleries.iter().all(|(_, slot)| slot.is_ok()));
        let names: Vec<String> = galleries.into_iter().map(|(name, _)| name.to_string()).collect();
        (names.join(" "), next.map(|next| next.to_string()))
    };
    assert_eq!(list(TENANT, None, 3).await, ("a- a0 a_".into(), Some("a_".into())));
    assert_eq!(list(TENANT, Some("a_"), 3).await, ("c d".into(), None));
    assert_eq!(list(TENANT, Some("b"), 1).await, ("c".into(), Some("c".into())));
    assert_eq!(list(TENANT, None, 5).await, ("a- a0 a_ c d".into(), None));
    assert_eq!(list("nobody", None, 5).await, (String::new(), None));
    catalog.close().await;
}

async fn galleries_of_a_tenant_are_bounded(catalog: Catalog) {
    let create = async |tenant, gallery: &str| catalog.create(tenant, &name(gallery), new_gallery()).await;
    create(TENANT, "a").await.expect("made");
    create(TENANT, "b").await.expect("made");
    assert_eq!(refusal(create(TENANT, "c").await), "GALLERIES_QUOTA");
    assert_eq!(refusal(catalog.import(TENANT, &name("c")).await), "GALLERIES_QUOTA");
    create("another", "c").await.expect("of a tenant of its own");
    catalog.delete(TENANT, &name("a")).await.expect("there");
    create(TENANT, "c").await.expect("there is room again");
    catalog.close().await;
}

async fn entries_are_bounded(catalog: Catalog) {
    let gallery = catalog.create(TENANT, &name("a"), new_gallery()).await.expect("made");
    for seed in 0..2 {
        assert_eq!(gallery.enrol(enrolment(&seed.to_string(), seed)).await, Ok(Enrolled::Created));
    }
    assert_eq!(gallery.enrol(enrolment("2", 2)).await, Err(StoreError::EntriesFull { limit: 2 }));
    assert_eq!(gallery.enrol(enrolment("1", 1)).await, Ok(Enrolled::Unchanged));
    let overwrite = Enrolment { conflict: Conflict::Overwrite, ..enrolment("1", 5) };
    assert_eq!(gallery.enrol(overwrite).await, Ok(Enrolled::Replaced));
    assert_eq!(gallery.delete(Selector::Ids(vec![id("0")])).await, Ok(1));
    assert_eq!(gallery.enrol(enrolment("2", 2)).await, Ok(Enrolled::Created));
    catalog.close().await;
}

async fn bytes_of_a_tenant_are_bounded(open: &impl Fn(Quotas) -> Catalog) {
    let limit = bytes_of_two_entries(&open(AMPLE)).await;
    let catalog = open(Quotas { bytes_per_tenant: limit, ..AMPLE });
    let first = catalog.create(TENANT, &name("a"), new_gallery()).await.expect("made");
    let second = catalog.create(TENANT, &name("b"), new_gallery()).await.expect("made");
    let other = catalog.create("another", &name("a"), new_gallery()).await.expect("made");
    for gallery in [&first, &second, &other] {
        assert_eq!(gallery.enrol(enrolment("1", 1)).await, Ok(Enrolled::Created));
    }
    assert_eq!(first.enrol(enrolment("2", 2)).await, Err(StoreError::BytesFull { limit }));
    assert_eq!(other.enrol(enrolment("2", 2)).await, Ok(Enrolled::Created));
    catalog.delete(TENANT, &name("b")).await.expect("there");
    assert_eq!(first.enrol(enrolment("2", 2)).await, Ok(Enrolled::Created));
    catalog.close().await;
}

async fn an_export_becomes_the_gallery_that_it_is_of(catalog: Catalog) {
    let original = three_entries(&catalog).await;
    assert_eq!(original.delete(Selector::Ids(vec![id("1"), id("2")])).await, Ok(2));
    for chips in [Chips::With, Chips::Without] {
        let exported = export(&original, chips);
        let copy = import(&catalog, TENANT, "copy", exported.clone()).await.expect("an export");
        assert_eq!(export(&copy, chips), exported);
        assert_eq!(copy.snapshot().next_row(), original.snapshot().next_row());
        let found = catalog.get(TENANT, &name("copy")).await.expect("there");
        assert_eq!(found.enrol(enrolment("0", 0)).await, Ok(Enrolled::Unchanged));
        assert_eq!(found.enrol(enrolment("4", 4)).await, Ok(Enrolled::Created));
        catalog.delete(TENANT, &name("copy")).await.expect("there");
    }
    let exported = export(&original, Chips::With);
    let elsewhere = import(&catalog, "another", "harbour", exported).await.expect("a tenant of its own");
    assert_eq!(elsewhere.info().entries, 1);
    catalog.close().await;
}

async fn an_import_that_does_not_come_to_its_end_leaves_nothing(catalog: Catalog) {
    let original = three_entries(&catalog).await;
    let bytes = catalog.census().bytes;
    let whole = export(&original, Chips::With);
    let cut = import(&catalog, TENANT, "copy", whole[..whole.len() - 1].to_vec()).await;
    assert_eq!(cut.expect_err("cut off").reason().name(), "EXPORT_TRUNCATED");

    let (cancellation, guard) = Cancellation::at(None);
    let begun = catalog.import(TENANT, &name("copy")).await.expect("the name is free");
    let begun = push(begun, whole.clone()).await.expect("an export");
    drop(guard);
    let left = finish(begun, cancellation).await.expect_err("nobody waits for it");
    assert_eq!(left.reason().name(), "CANCELLED");

    let begun = catalog.import(TENANT, &name("copy")).await.expect("the name is free");
    drop(push(begun, whole.clone()).await.expect("an export"));
    assert_eq!(refusal(catalog.get(TENANT, &name("copy")).await), "GALLERY_NOT_FOUND");
    assert_eq!(catalog.census().bytes, bytes);
    import(&catalog, TENANT, "copy", whole).await.expect("the name is still free");
    catalog.close().await;
}

async fn a_name_that_is_taken_is_not_imported(catalog: Catalog) {
    let original = three_entries(&catalog).await;
    let whole = export(&original, Chips::With);
    let taken = import(&catalog, TENANT, "harbour", whole.clone()).await.expect_err("the original's");
    assert_eq!(taken.reason().name(), "GALLERY_EXISTS");
    let begun = catalog.import(TENANT, &name("copy")).await.expect("the name is free");
    let begun = push(begun, whole).await.expect("an export");
    catalog.create(TENANT, &name("copy"), new_gallery()).await.expect("nobody sees what is being made");
    let late = finish(begun, Cancellation::default()).await.expect_err("taken meanwhile");
    assert_eq!(late.reason().name(), "GALLERY_EXISTS");
    assert_eq!(catalog.get(TENANT, &name("copy")).await.expect("there").info().entries, 0);
    catalog.close().await;
}

async fn an_import_is_bounded(open: &impl Fn(Quotas) -> Catalog) {
    let source = open(AMPLE);
    let gallery = three_entries(&source).await;
    let (whole, bytes) = (export(&gallery, Chips::With), gallery.info().stored_bytes);
    for (entries_per_gallery, bytes_per_tenant, expected) in
        [(2, bytes, Some("ENTRIES_QUOTA")), (3, bytes - 1, Some("BYTES_QUOTA")), (3, bytes, None)]
    {
        let catalog = open(Quotas { entries_per_gallery, bytes_per_tenant, ..AMPLE });
        let made = import(&catalog, TENANT, "copy", whole.clone()).await;
        assert_eq!(made.as_ref().err().map(|error| error.reason().name()), expected);
        if expected.is_some() {
            let small = catalog.create(TENANT, &name("copy"), new_gallery()).await.expect("made");
            let entry = small.enrol(enrolment("0", 0)).await;
            assert_eq!(entry, Ok(Enrolled::Created), "what the import took is given back");
        }
        catalog.close().await;
    }
    source.close().await;
}

async fn galleries_are_counted_and_their_models_known(catalog: Catalog) {
    assert_eq!(catalog.census(), Census::default());
    let harbour = three_entries(&catalog).await;
    let other = NewGallery { model: other_model(), ..new_gallery() };
    catalog.create("another", &name("offshore"), other).await.expect("made");
    let bare = NewGallery { keeps_chips: false, ..new_gallery() };
    catalog.create(TENANT, &name("bare"), bare).await.expect("made");
    let bytes = harbour.info().stored_bytes;
    assert_eq!(catalog.census(), Census { writable: 3, read_only: 0, refused: 0, entries: 3, bytes });
    let names = |places: Vec<Place>| {
        let mut names: Vec<String> = places.into_iter().map(|place| place.name.to_string()).collect();
        names.sort();
        names.join(" ")
    };
    let served = catalog.served().into_iter().map(|(place, _)| place).collect();
    assert_eq!(names(served), "bare harbour offshore");
    assert_eq!(names(catalog.need(model())), "harbour");
    assert_eq!(names(catalog.need(other_model())), "offshore");
    catalog.delete(TENANT, &name("harbour")).await.expect("there");
    assert_eq!(names(catalog.need(model())), "");
    assert_eq!(catalog.census(), Census { writable: 2, ..Census::default() });
    catalog.close().await;
}

async fn a_closed_catalog_takes_nothing(catalog: Catalog) {
    let gallery = three_entries(&catalog).await;
    let begun = catalog.import(TENANT, &name("copy")).await.expect("the name is free");
    let begun = push(begun, export(&gallery, Chips::With)).await.expect("an export");
    catalog.close().await;
    catalog.close().await;
    assert_eq!(gallery.enrol(enrolment("3", 3)).await, Err(StoreError::Closed));
    assert_eq!(refusal(catalog.create(TENANT, &name("new"), new_gallery()).await), "GALLERY_CLOSED");
    assert_eq!(refusal(catalog.import(TENANT, &name("new")).await), "GALLERY_CLOSED");
    assert_eq!(refusal(catalog.delete(TENANT, &name("harbour")).await), "GALLERY_CLOSED");
    let late = finish(begun, Cancellation::default()).await.expect_err("it came too late");
    assert_eq!(late.reason().name(), "GALLERY_CLOSED");
}

async fn three_entries(catalog: &Catalog) -> Gallery {
    let gallery = catalog.create(TENANT, &name("harbour"), new_gallery()).await.expect("made");
    for seed in 0..3 {
        gallery.enrol(enrolment(&seed.to_string(), seed)).await.expect("enrolled");
    }
    gallery
}

async fn bytes_of_two_entries(catalog: &Catalog) -> u64 {
    let gallery = catalog.create(TENANT, &name("harbour"), new_gallery()).await.expect("made");
    for seed in 1..3 {
        gallery.enrol(enrolment(&seed.to_string(), seed)).await.expect("enrolled");
    }
    catalog.close().await;
    gallery.info().stored_bytes
}

async fn import(catalog: &Catalog, tenant: &str, copy: &str, bytes: Vec<u8>) -> Result<Gallery, ImportError> {
    let begun = catalog.import(tenant, &name(copy)).await?;
    finish(push(begun, bytes).await?, Cancellation::default()).await
}

/// In pieces of odd lengths.
async fn push(mut import: Import, bytes: Vec<u8>) -> Result<Import, ImportError> {
    off_the_runtime(move || {
        bytes.chunks(777).try_for_each(|piece| import.push(piece, &Cancellation::default()))?;
        Ok(import)
    })
    .await
}

async fn finish(import: Import, cancellation: Cancellation) -> Result<Gallery, ImportError> {
    off_the_runtime(move || import.finish(&cancellation)).await
}

async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

fn refusal<T>(answer: Result<T, CatalogError>) -> &'static str {
    answer.err().map_or("none", |error| error.reason().name())
}
