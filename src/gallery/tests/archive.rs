//! Exports: consistent while the gallery goes on, and refused when they are not what they were.

use super::*;

fn export(gallery: &Gallery, chips: Chips) -> Vec<u8> {
    let pieces = Export::new(gallery.snapshot(), chips);
    pieces.flat_map(|piece| piece.expect("readable")).collect()
}

fn import(shelf: &Shelf, bytes: &[u8]) -> Result<Gallery, ImportError> {
    let mut import = shelf.import("default", &name("copy"))?;
    bytes.chunks(100).try_for_each(|piece| import.push(piece))?;
    import.finish()
}

async fn gallery_of(entries: u64) -> (tempfile::TempDir, Shelf, Gallery) {
    let folder = folder();
    let shelf = Shelf::open(folder.path(), settings()).expect("free");
    let gallery = shelf.create("default", &name("a"), new_gallery()).expect("made");
    for seed in 0..entries {
        gallery.enrol(enrolment(&format!("entry {seed}"), seed)).await.expect("enrolled");
    }
    (folder, shelf, gallery)
}

#[tokio::test]
async fn an_export_is_of_one_moment_while_writes_go_on() {
    let (_folder, shelf, gallery) = gallery_of(5).await;
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
    shelf.close();
}

#[tokio::test]
async fn what_is_no_whole_export_is_refused_for_its_reason_and_leaves_nothing() {
    let (folder, shelf, gallery) = gallery_of(3).await;
    let whole = export(&gallery, Chips::With);
    let check = |change: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        let refused = import(&shelf, &bytes).expect_err(expected).to_string();
        assert!(refused.contains(expected), "{refused}");
        assert!(shelf.get("default", &name("copy")).is_err());
        let names = std::fs::read_dir(folder.path().join("t-default")).expect("readable");
        assert_eq!(names.count(), 1);
    };
    check(&Vec::clear, "the export is cut off after 0 entries");
    check(&|bytes| bytes.truncate(5), "the export is cut off after 0 entries");
    check(&|bytes| bytes.truncate(bytes.len() - 1), "the export is cut off after 3 entries");
    check(&|bytes| bytes.truncate(bytes.len() / 2), "the export is cut off after 1 entries");
    check(&|bytes| bytes.push(0), "damaged after 3 entries: it goes on behind its end");
    check(&|bytes| bytes[0] = b'X', "this is no exported gallery");
    check(&|bytes| *bytes = b"PNG".to_vec(), "this is no exported gallery");
    check(&|bytes| bytes[16] = 2, "the export has version 2, this program reads up to version 1");
    check(&|bytes| bytes[23] = 0x7f, "limit");
    check(&with_the_last_row, "its rows go up to 18446744073709551615");
    let random = &mut ChaCha8Rng::seed_from_u64(1);
    for _ in 0..100 {
        let (at, bit) = (random.random_range(0..whole.len()), random.random_range(0..8));
        check(&|bytes| bytes[at] ^= 1 << bit, "");
    }
    import(&shelf, &whole).expect("whole");
    let taken = import(&shelf, &whole).expect_err("the name is taken");
    assert_eq!(taken.reason(), "GALLERY_EXISTS");
    shelf.close();
}

/// Makes the head say that the next row is the highest number there is; a gallery of it could take no entry.
fn with_the_last_row(bytes: &mut Vec<u8>) {
    let (frame, head) = (20, 25);
    let end = frame + 4 + usize::from(bytes[frame]);
    assert_eq!(bytes[end - 2..end], [0x20, 3], "the head ends with its next row");
    bytes.splice(end - 1..end, [0xff; 9].into_iter().chain([1]));
    bytes[frame] += 9;
    bytes[head] += 9;
}

#[tokio::test]
async fn an_import_is_bound_by_the_quotas() {
    let (_folder, shelf, gallery) = gallery_of(3).await;
    let whole = export(&gallery, Chips::With);
    let bytes = gallery.info().stored_bytes;
    for (entries, stored, expected) in
        [(2, 1 << 20, "EntriesFull { limit: 2 }"), (9, bytes - 1, "BytesFull"), (9, bytes, "")]
    {
        let folder = folder();
        let mut settings = settings();
        settings.quotas =
            Quotas { galleries_per_tenant: 1, entries_per_gallery: entries, bytes_per_tenant: stored };
        let shelf = Shelf::open(folder.path(), settings).expect("free");
        match import(&shelf, &whole) {
            Ok(copy) => assert_eq!((copy.info().stored_bytes, expected), (bytes, "")),
            Err(error) => {
                assert!(format!("{error:?}").contains(expected), "{error:?}");
                let taken = shelf.create("default", &name("copy"), new_gallery()).expect("made");
                let small = Enrolment { chip: None, ..enrolment("x", 1) };
                taken.enrol(small).await.expect("what the import took is given back");
            }
        }
        shelf.close();
    }
    shelf.close();
}

/// The export of three entries that version 1 was released with.
#[tokio::test]
async fn an_export_of_version_1_is_read() {
    let (_folder, shelf, gallery) = gallery_of(3).await;
    let bytes = fs::read(released("export-1").join("harbour.bin"));
    let bytes = bytes.expect("the fixture is in the tree");
    let expected = Inspected { model: model(), dimension: DIMENSION, keeps_chips: true, entries: 3 };
    assert_eq!(inspect(bytes.chunks(7)), Ok(expected));
    assert_eq!(inspect([&bytes[..bytes.len() - 1]]), Err(ArchiveError::Truncated { entries: 3 }));
    let copy = import(&shelf, &bytes).expect("of a known version");
    assert_eq!(export(&copy, Chips::With), export(&gallery, Chips::With));
    shelf.close();
}

#[tokio::test]
#[ignore = "writes the fixture of a version, once"]
async fn write_an_export_of_this_version() {
    let (_folder, shelf, gallery) = gallery_of(3).await;
    let place = released("export-1");
    fs::create_dir_all(&place).expect("writable");
    fs::write(place.join("harbour.bin"), export(&gallery, Chips::With)).expect("writable");
    shelf.close();
}
