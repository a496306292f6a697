//! Galleries by name: made, found, refused, deleted.

use super::*;

fn open(folder: &tempfile::TempDir) -> Shelf {
    Shelf::open(folder.path(), settings()).expect("the directory is free")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[tokio::test]
async fn what_is_enrolled_is_there_after_the_next_opening() {
    let folder = folder();
    let shelf = open(&folder);
    let gallery = shelf.create("default", &name("harbour"), new_gallery()).expect("made");
    assert_eq!(gallery.enrol(enrolment("a", 1)).await, Ok(Enrolled::Created));
    assert_eq!(gallery.enrol(enrolment("a", 1)).await, Ok(Enrolled::Unchanged));
    assert_eq!(gallery.enrol(enrolment("a", 2)).await, Err(StoreError::AlreadyExists(id("a"))));
    let overwrite = Enrolment { conflict: Conflict::Overwrite, ..enrolment("a", 2) };
    assert_eq!(gallery.enrol(overwrite).await, Ok(Enrolled::Replaced));
    assert_eq!(gallery.enrol(enrolment("b", 3)).await, Ok(Enrolled::Created));
    assert_eq!(gallery.delete(Selector::Ids(vec![id("b"), id("c")])).await, Ok(1));
    let before = gallery.info();
    shelf.close();
    assert_eq!(gallery.enrol(enrolment("d", 4)).await, Err(StoreError::Closed));
    drop((shelf, gallery));

    let shelf = open(&folder);
    let gallery = shelf.get("default", &name("harbour")).expect("there");
    assert_eq!(gallery.info(), before);
    let snapshot = gallery.snapshot();
    let looked = snapshot.get(&[id("b"), id("a")]).expect("readable");
    assert_eq!(looked.missing, [id("b")]);
    let (row, entry) = &looked.found[0];
    assert_eq!(*entry, enrolment("a", 2).entry);
    assert_eq!(snapshot.embedding(*row), Ok(embedding(2)));
    assert_eq!(snapshot.chip(*row), Ok(Some(chip(2))));
    shelf.close();
}
