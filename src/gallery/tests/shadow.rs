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
    gallery.begin_shadow(other_model(), OTHER_DIMENSION).await.expect("begun");
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
    gallery.begin_shadow(other_model(), OTHER_DIMENSION).await.expect("goes on");
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
    assert_eq!(gallery.begin_shadow(model(), DIMENSION).await, refused(model()));
    assert_eq!(gallery.fill_shadow(other_model(), vec![]).await.map(drop), refused(other_model()));
    assert_eq!(gallery.flip(other_model()).await.map(drop), refused(other_model()));
    gallery.begin_shadow(other_model(), OTHER_DIMENSION).await.expect("begun");
    let wrong = vec![(RowId(0), embedding(1))];
    let mismatch = StoreError::Dimension { expected: OTHER_DIMENSION, found: DIMENSION };
    assert_eq!(gallery.fill_shadow(other_model(), wrong).await, Err(mismatch));
    gallery.drop_shadow().await.expect("given up");
    assert_eq!(gallery.info().following, None);
    let bare = NewGallery { keeps_chips: false, ..new_gallery() };
    let bare = catalog.create("t", &name("bare"), bare).expect("made");
    assert_eq!(bare.begin_shadow(other_model(), OTHER_DIMENSION).await, refused(other_model()));
    catalog.close();
}
