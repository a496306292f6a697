//! Exports: consistent while the gallery stays in use, and refused when they were changed.

use super::*;
use crate::embedding::{Composition, Part};
use crate::gallery::embedded::schema::CODES;

fn import(catalog: &EmbeddedCatalog, bytes: &[u8]) -> Result<Gallery, ImportError> {
    let mut import = catalog.import("default", &name("copy"))?;
    bytes.chunks(100).try_for_each(|piece| import.push(piece, &Cancellation::default()))?;
    import.finish(&Cancellation::default())
}

async fn gallery_of(entries: u64) -> (tempfile::TempDir, EmbeddedCatalog, Gallery) {
    let folder = folder();
    let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("free");
    let gallery = catalog.create("default", &name("a"), new_gallery()).expect("made");
    for seed in 0..entries {
        gallery.enrol(enrolment(&format!("entry {seed}"), seed)).await.expect("enrolled");
    }
    (folder, catalog, gallery)
}

#[tokio::test]
async fn an_export_is_of_one_moment_while_writes_go_on() {
    let (_folder, catalog, gallery) = gallery_of(5).await;
    let before = export(&gallery, Chips::With);
    let mut pieces = Export::new(gallery.snapshot(), Chips::With);
    let mut exported = pieces.next().expect("a first piece").expect("readable").to_vec();
    gallery.delete(Selector::Ids(vec![id("entry 3")])).await.expect("deleted");
    gallery.enrol(enrolment("later", 9)).await.expect("enrolled");
    exported.extend(pieces.flat_map(|piece| piece.expect("readable")));
    assert_eq!(exported, before);
    let after = export(&gallery, Chips::With);
    let contains = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(!contains(&after, "entry 3") && contains(&after, "later"));
    catalog.close();
}

#[tokio::test]
async fn what_is_no_whole_export_is_refused_for_its_reason_and_leaves_nothing() {
    let (folder, catalog, gallery) = gallery_of(3).await;
    let whole = export(&gallery, Chips::With);
    let check = |change: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        let refused = import(&catalog, &bytes).expect_err(expected).to_string();
        assert!(refused.contains(expected), "{refused}");
        assert!(catalog.get("default", &name("copy")).is_err());
        let names = std::fs::read_dir(folder.path().join("t-default")).expect("readable");
        assert_eq!(names.count(), 1);
    };
    check(&Vec::clear, "the export is cut off after 0 entries");
    check(&|bytes| bytes.truncate(5), "the export is cut off after 0 entries");
    check(&|bytes| bytes.truncate(bytes.len() - 1), "the export is cut off after 3 entries");
    check(&|bytes| bytes.truncate(bytes.len() / 2), "the export is cut off after 1 entries");
    check(&|bytes| bytes.push(0), "damaged after 3 entries: it goes on behind its end");
    check(&|bytes| bytes[0] = b'X', "this is not an exported gallery");
    check(&|bytes| *bytes = b"PNG".to_vec(), "this is not an exported gallery");
    check(&|bytes| bytes[16] = 3, "the export has version 3, this program reads up to version 2");
    check(&|bytes| bytes[23] = 0x7f, "limit");
    check(&with_the_last_row, "its rows go up to 18446744073709551615");
    let random = &mut ChaCha8Rng::seed_from_u64(1);
    for _ in 0..100 {
        let (at, bit) = (random.random_range(0..whole.len()), random.random_range(0..8));
        check(&|bytes| bytes[at] ^= 1 << bit, "");
    }
    import(&catalog, &whole).expect("whole");
    let taken = import(&catalog, &whole).expect_err("the name is taken");
    assert_eq!(taken.reason().name(), "GALLERY_EXISTS");
    catalog.close();
}

#[tokio::test]
async fn a_gallery_of_an_ensemble_keeps_its_parts_on_disk_and_in_exports() {
    let part = |dimension, weight| Part { dimension, weight };
    let parts = [part(3, 1.0), part(DIMENSION - 3, 0.5)];
    let composition = Composition::new(&parts, 3, 50).expect("an ensemble");
    let (folder, query) = (folder(), composition.unit_parts(embedding(7).as_slice()).swap_remove(1));
    // By cosine with the query in the second part.
    let order = |gallery: &Gallery| -> Vec<String> {
        let (snapshot, none) = (gallery.snapshot(), VesselSet::default());
        assert_eq!(snapshot.about().composition, Some(composition));
        let selection = snapshot.select(&Filter::default()).expect("readable");
        let query = IndexQuery { vector: &query, part: 1, k: 9, without_row: None, without_vessels: &none };
        let found = snapshot.search(&[query], &selection, Group::Entry, &Cancellation::default());
        let hits = found.expect("readable").remove(0).hits.into_iter();
        hits.map(|hit| snapshot.entry(hit.row).expect("readable").id.to_string()).collect()
    };
    let expected: Vec<String> = {
        let second = |seed: u64| composition.unit_parts(embedding(seed).as_slice()).swap_remove(1);
        let mut seeds: Vec<u64> = (0..5).collect();
        seeds.sort_by(|a, b| cosine(&query, &second(*b)).total_cmp(&cosine(&query, &second(*a))));
        seeds.iter().map(ToString::to_string).collect()
    };
    let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("free");
    let new = NewGallery { composition: Some(composition), ..new_gallery() };
    let gallery = catalog.create("default", &name("a"), new).expect("made");
    for seed in 0..5 {
        gallery.enrol(enrolment(&seed.to_string(), seed)).await.expect("enrolled");
    }
    let bytes = export(&gallery, Chips::With);
    assert_eq!(bytes[16], 2, "a version that earlier releases refuse");
    assert_eq!(order(&gallery), expected);
    assert_eq!(order(&import(&catalog, &bytes).expect("an export")), expected);
    drop(gallery);
    catalog.close();
    // With the index that was saved, and without it.
    for keeps_index in [true, false] {
        if !keeps_index {
            fs::remove_file(folder.path().join("t-default/a").join(CODES)).expect("written at a clean end");
        }
        let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("free");
        assert_eq!(order(&catalog.get("default", &name("a")).expect("served")), expected);
        catalog.close();
    }
    let (_folder, catalog, gallery) = gallery_of(1).await;
    assert_eq!(export(&gallery, Chips::Without)[16], 1, "other galleries are exported as before");
    catalog.close();
}

#[tokio::test]
async fn what_enrolling_would_not_take_is_not_imported() {
    let (_folder, catalog, gallery) = gallery_of(1).await;
    let observed = |observation| {
        let made = enrolment("odd", 7);
        Enrolment { entry: Entry { observation, ..made.entry }, ..made }
    };
    let plain = Observation::default();
    let extent = |extent_m| {
        let made = enrolment("odd", 7);
        Enrolment { entry: Entry { extent_m: Some(extent_m), ..made.entry }, ..made }
    };
    let image = |bytes: usize| {
        let made = enrolment("odd", 7);
        let chip = made.chip.map(|chip| SourceChip { image: vec![1; bytes].into(), ..chip });
        Enrolment { chip, ..made }
    };
    let limit = settings().imports.image_bytes_max;
    for (odd, expected) in [
        (observed(Observation { length_m: Some(f64::NAN), ..plain.clone() }), "length_m is NaN"),
        (observed(Observation { width_m: Some(-3.0), ..plain.clone() }), "width_m is -3, it must be above 0"),
        (observed(Observation { sensor: "S\u{1b}[2J".into(), ..plain.clone() }), "sensor contains a control"),
        (observed(Observation { scene_id: "x".repeat(257), ..plain.clone() }), "scene_id has 257 bytes"),
        (observed(Observation { detection_id: "x".repeat(9999), ..plain.clone() }), "detection_id has 9999"),
        (extent([0.0, 30.0]), "the width of the chip is 0, it must be above 0"),
        (extent([30.0, f64::INFINITY]), "the length of the chip is inf"),
        (image(limit + 1), "the image of its chip has 1048577 bytes, the limit is 1048576"),
        (image(limit + (1 << 20)), "a record has"),
    ] {
        gallery.enrol(odd).await.expect("the store leaves it to its callers");
        let refused = import(&catalog, &export(&gallery, Chips::With)).expect_err(expected);
        assert_eq!(refused.reason().name(), "EXPORT_UNACCEPTABLE");
        let message = refused.to_string();
        assert!(message.contains(expected) && message.contains("after 1 entries"), "{message}");
        gallery.delete(Selector::Ids(vec![id("odd")])).await.expect("deleted");
    }
    gallery.enrol(image(limit)).await.expect("enrolled");
    let mut bytes = export(&gallery, Chips::With);
    import(&catalog, &bytes).expect("within every bound");
    catalog.delete("default", &name("copy")).expect("there");
    // Makes the head say that no chips are kept.
    let keeps = bytes.windows(3).position(|part| part == [0x18, 1, 0x20]).expect("it says that they are");
    bytes[keeps + 1] = 0;
    let refused = import(&catalog, &bytes).expect_err("a chip in a gallery without").to_string();
    assert!(refused.contains("entry \"entry 0\": it has a chip, and the gallery keeps none"), "{refused}");
    catalog.close();
}

#[tokio::test]
async fn records_on_their_way_are_held_to_memory_and_quota() {
    let (_folder, _catalog, gallery) = gallery_of(1).await;
    let image = vec![1; settings().imports.image_bytes_max].into();
    let made = enrolment("large", 7);
    let chip = made.chip.map(|chip| SourceChip { image, ..chip });
    gallery.enrol(Enrolment { chip, ..made }).await.expect("enrolled");
    let whole = export(&gallery, Chips::With);
    let half = &whole[..whole.len() - (100 << 10)];

    let folder = folder();
    let bounds = ImportBounds { bytes_max: 4608 << 10, ..settings().imports };
    let settings = EmbeddedSettings { imports: bounds, ..settings() };
    let catalog = EmbeddedCatalog::open(folder.path(), settings).expect("free");
    let begin = |tenant: &str, number: usize| {
        let mut import = catalog.import(tenant, &name(&format!("copy{number}"))).expect("free");
        import.push(half, &Cancellation::default()).map(|()| import)
    };
    let held: Vec<Import> = (0..2).map(|number| begin("default", number).expect("there is memory")).collect();
    let full = begin("default", 2).expect_err("its half is taken");
    assert_eq!(full.reason().name(), "IMPORTING_TOO_MUCH");
    let of_others: Vec<Import> = (0..2).map(|number| begin("other", number).expect("its own half")).collect();
    assert_eq!(begin("third", 0).expect_err("all is taken").reason().name(), "IMPORTING_TOO_MUCH");
    drop((held, of_others));
    begin("default", 2).expect("given back");

    let bytes_per_tenant = 100 << 10;
    let quotas = Quotas { bytes_per_tenant, ..settings.quotas };
    let small = super::folder();
    let catalog = EmbeddedCatalog::open(small.path(), EmbeddedSettings { quotas, ..settings }).expect("free");
    let mut import = catalog.import("default", &name("copy")).expect("free");
    let announced = whole.len() - (1 << 20);
    let refused =
        import.push(&whole[..announced], &Cancellation::default()).expect_err("the record cannot be stored");
    assert_eq!(refused.reason().name(), "BYTES_QUOTA");
}

/// Makes the head say that the next row is the highest number there is; a gallery from it could not accept an entry.
fn with_the_last_row(bytes: &mut Vec<u8>) {
    let (frame, head) = (20, 25);
    let end = frame + 4 + usize::from(bytes[frame]);
    assert_eq!(bytes[end - 2..end], [0x20, 3], "the head ends with its next row");
    bytes.splice(end - 1..end, [0xff; 9].into_iter().chain([1]));
    bytes[frame] += 9;
    bytes[head] += 9;
}

#[tokio::test]
async fn a_listing_that_nobody_waits_for_any_more_is_not_gone_on_with() {
    let (_folder, catalog, gallery) = gallery_of(3).await;
    let snapshot = gallery.snapshot();
    let (cancellation, guard) = Cancellation::at(None);
    let ids = [id("entry 0"), id("entry 1")];
    assert_eq!(snapshot.get(&ids, &cancellation).expect("he waits").found.len(), 2);
    drop(guard);
    let stopped = StoreError::Stopped(Stopped::Cancelled);
    assert_eq!(snapshot.get(&ids, &cancellation), Err(stopped.clone()));
    assert_eq!(snapshot.list(&Filter::default(), None, 9, &cancellation), Err(stopped));
    catalog.close();
}

#[tokio::test]
async fn an_import_that_nobody_waits_for_any_more_becomes_no_gallery() {
    let (_folder, catalog, gallery) = gallery_of(3).await;
    let whole = export(&gallery, Chips::With);
    let (cancellation, guard) = Cancellation::at(None);
    let mut left = catalog.import("default", &name("left")).expect("free");
    left.push(&whole, &cancellation).expect("an export");
    let mut early = catalog.import("default", &name("early")).expect("free");
    drop(guard);
    for stopped in [
        left.finish(&cancellation).expect_err("he has left"),
        early.push(&whole, &cancellation).expect_err("as well"),
    ] {
        assert_eq!(stopped.reason().name(), "CANCELLED");
    }
    drop(early);
    assert!(catalog.get("default", &name("left")).is_err());
    let bytes = catalog.census().bytes;
    assert_eq!(bytes, gallery.info().stored_bytes, "nothing of it is counted");
    catalog.close();
}

#[tokio::test]
async fn an_import_is_bound_by_the_quotas() {
    let (_folder, catalog, gallery) = gallery_of(3).await;
    let whole = export(&gallery, Chips::With);
    let bytes = gallery.info().stored_bytes;
    for (entries, stored, expected) in
        [(2, 1 << 20, "EntriesFull { limit: 2 }"), (9, bytes - 1, "BytesFull"), (9, bytes, "")]
    {
        let folder = folder();
        let mut settings = settings();
        settings.quotas =
            Quotas { galleries_per_tenant: 1, entries_per_gallery: entries, bytes_per_tenant: stored };
        let catalog = EmbeddedCatalog::open(folder.path(), settings).expect("free");
        match import(&catalog, &whole) {
            Ok(copy) => assert_eq!((copy.info().stored_bytes, expected), (bytes, "")),
            Err(error) => {
                assert!(format!("{error:?}").contains(expected), "{error:?}");
                let taken = catalog.create("default", &name("copy"), new_gallery()).expect("made");
                let small = Enrolment { chip: None, ..enrolment("x", 1) };
                taken.enrol(small).await.expect("what the import took is given back");
            }
        }
        catalog.close();
    }
    catalog.close();
}

/// The export of three entries that version 1 was released with.
#[tokio::test]
async fn an_export_of_version_1_is_read() {
    let (_folder, catalog, gallery) = gallery_of(3).await;
    let bytes = fs::read(released("export-1").join("harbour.bin"));
    let bytes = bytes.expect("the fixture is in the tree");
    let expected = Inspected { model: model(), dimension: DIMENSION, keeps_chips: true, entries: 3 };
    assert_eq!(inspect(bytes.chunks(7)), Ok(expected));
    assert_eq!(inspect([&bytes[..bytes.len() - 1]]), Err(ArchiveError::Truncated { entries: 3 }));
    let copy = import(&catalog, &bytes).expect("of a known version");
    assert_eq!(export(&copy, Chips::With), export(&gallery, Chips::With));
    catalog.close();
}

#[tokio::test]
#[ignore = "writes the fixture of a version, once"]
async fn write_an_export_of_this_version() {
    let (_folder, catalog, gallery) = gallery_of(3).await;
    let place = released("export-1");
    fs::create_dir_all(&place).expect("writable");
    fs::write(place.join("harbour.bin"), export(&gallery, Chips::With)).expect("writable");
    catalog.close();
}
