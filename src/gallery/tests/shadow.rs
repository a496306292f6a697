//! A gallery that moves to another model while it is in use.

use super::*;

const OTHER_DIMENSION: usize = 8;

fn other(seed: u64) -> Embedding {
    let values = (0..OTHER_DIMENSION as u64).map(|at| ((seed * 31 + at * 7) % 13) as f32 - 6.0).collect();
    Embedding::from_feature(values).expect("a direction")
}

fn by_both(name: &str, seed: u64) -> Enrolment {
    let shadow = Some(ShadowEmbedding { embedding: other(seed), model: other_model() });
    Enrolment { shadow, ..enrolment(name, seed) }
}

#[tokio::test]
async fn a_gallery_flips_once_every_entry_has_an_embedding_by_the_other_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("opens");
    let gallery = catalog.create("t", &name("g"), new_gallery()).expect("made");
    for seed in 0..4 {
        gallery.enrol(enrolment(&format!("e{seed}"), seed)).await.expect("enrolled");
    }
    gallery.begin_shadow(target(other_model(), OTHER_DIMENSION)).await.expect("begun");
    let before = gallery.snapshot();
    let rows = before.rows_to_shadow(None, 3).expect("readable");
    assert_eq!(before.rows_to_shadow(rows.last().copied(), 3).expect("readable").len(), 1);
    let filled = rows.iter().map(|row| (*row, other(row.0))).collect();
    assert_eq!(gallery.fill_shadow(other_model(), filled).await, Ok(3));
    gallery.enrol(by_both("e4", 4)).await.expect("enrolled");
    gallery.delete(Selector::Ids(vec![id("e0")])).await.expect("deleted");
    assert_eq!(gallery.flip(other_model()).await, Ok(Flip::Incomplete { missing: 1 }));
    let following = Following { model: other_model(), embedded: 3, stalled: None };
    assert_eq!(gallery.info().following, Some(following.clone()));

    catalog.close();
    drop((catalog, gallery));
    let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("opens");
    let gallery = catalog.get("t", &name("g")).expect("there");
    assert_eq!(gallery.info().following, Some(following), "it goes on where it was");
    gallery.begin_shadow(target(other_model(), OTHER_DIMENSION)).await.expect("goes on");
    let rows = gallery.snapshot().rows_to_shadow(None, 9).expect("readable");
    let filled = rows.iter().map(|row| (*row, other(row.0))).collect();
    assert_eq!(gallery.fill_shadow(other_model(), filled).await, Ok(1));
    let before = gallery.snapshot();
    assert_eq!(gallery.flip(other_model()).await, Ok(Flip::Done));

    let info = gallery.info();
    assert_eq!((info.about.model, info.about.dimension), (other_model(), OTHER_DIMENSION));
    assert_eq!((info.entries, info.following), (4, None));
    let row = before.find(&id("e2")).expect("readable").expect("there");
    assert_eq!(before.embedding(row), Ok(embedding(2)), "who searches goes on with what there was");
    assert_eq!(gallery.snapshot().embedding(row), Ok(other(2)));
    // Enrolments with embeddings of both models are accepted before and after; those with the former model alone are
    // not.
    gallery.enrol(by_both("e5", 5)).await.expect("enrolled");
    let late = gallery.enrol(enrolment("e6", 6)).await;
    assert_eq!(late, Err(StoreError::Model { expected: other_model(), found: model() }));
    catalog.close();
}

#[tokio::test]
async fn a_gallery_follows_no_model_that_it_cannot_follow() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("opens");
    let gallery = catalog.create("t", &name("g"), new_gallery()).expect("made");
    let refused = |found| Err(StoreError::Model { expected: model(), found });
    assert_eq!(gallery.begin_shadow(target(model(), DIMENSION)).await, refused(model()));
    assert_eq!(gallery.fill_shadow(other_model(), vec![]).await.map(drop), refused(other_model()));
    assert_eq!(gallery.flip(other_model()).await.map(drop), refused(other_model()));
    gallery.begin_shadow(target(other_model(), OTHER_DIMENSION)).await.expect("begun");
    let wrong = vec![(RowId(0), embedding(1))];
    let mismatch = StoreError::Dimension { expected: OTHER_DIMENSION, found: DIMENSION };
    assert_eq!(gallery.fill_shadow(other_model(), wrong).await, Err(mismatch));
    gallery.drop_shadow().await.expect("given up");
    assert_eq!(gallery.info().following, None);
    let bare = NewGallery { keeps_chips: false, ..new_gallery() };
    let bare = catalog.create("t", &name("bare"), bare).expect("made");
    assert_eq!(bare.begin_shadow(target(other_model(), OTHER_DIMENSION)).await, refused(other_model()));
    catalog.close();
}

#[tokio::test]
async fn a_gallery_knows_in_which_precision_each_embedding_was_computed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("opens");
    let gallery = catalog.create("t", &name("g"), new_gallery()).expect("made");
    let precisions = |gallery: &Gallery| -> Vec<Option<Precision>> {
        let snapshot = gallery.snapshot();
        let page = snapshot.list(&Filter::default(), None, 10, &Cancellation::default()).expect("readable");
        page.entries.iter().map(|(_, entry)| snapshot.about().precision_of(entry)).collect()
    };
    let enrolled = async |gallery: &Gallery, name: &str, precision, by: ModelDigest, of: Embedding| {
        let mut enrolment = enrolment(name, 0);
        (enrolment.entry.precision, enrolment.entry.enrolled_at) = (precision, Time::now());
        gallery.enrol(Enrolment { model: by, embedding: of, ..enrolment }).await.expect("enrolled");
    };
    enrolled(&gallery, "ready", None, model(), embedding(0)).await;
    enrolled(&gallery, "f32", Some(Precision::F32), model(), embedding(1)).await;
    assert_eq!(precisions(&gallery), [None, Some(Precision::F32)]);

    let int8 = ShadowTarget { precision: Precision::Int8, ..target(other_model(), OTHER_DIMENSION) };
    gallery.begin_shadow(int8).await.expect("begun");
    let rows = gallery.snapshot().rows_to_shadow(None, 10).expect("readable");
    let filled = rows.iter().map(|row| (*row, other(row.0))).collect();
    gallery.fill_shadow(other_model(), filled).await.expect("filled");
    assert_eq!(gallery.flip(other_model()).await, Ok(Flip::Done));
    enrolled(&gallery, "bf16", Some(Precision::Bf16), other_model(), other(9)).await;
    let expected = [Some(Precision::Int8), Some(Precision::Int8), Some(Precision::Bf16)];
    assert_eq!(precisions(&gallery), expected);

    // It is kept on disk and in exports.
    let exported = export(&gallery, Chips::With);
    catalog.close();
    drop((gallery, catalog));
    let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("opens");
    let again = catalog.get("t", &name("g")).expect("there");
    assert_eq!(precisions(&again), expected);
    let mut import = catalog.import("t", &name("copy")).expect("the name is free");
    import.push(&exported, &Cancellation::default()).expect("an export");
    let imported = import.finish(&Cancellation::default()).expect("whole");
    assert_eq!(precisions(&imported), expected);
    catalog.close();
}

#[tokio::test]
async fn a_shadow_that_two_precisions_fill_is_of_none() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("opens");
    let gallery = catalog.create("t", &name("g"), new_gallery()).expect("made");
    gallery.enrol(enrolment("e", 0)).await.expect("enrolled");
    let f32 = target(other_model(), OTHER_DIMENSION);
    for (precision, expected) in
        [(Precision::F32, Some(Precision::F32)), (Precision::Int8, None), (Precision::Int8, None)]
    {
        gallery.begin_shadow(ShadowTarget { precision, ..f32 }).await.expect("begun");
        let shadow = gallery.info().about.shadow.expect("it has one");
        assert_eq!(shadow.precision, expected);
    }
}
