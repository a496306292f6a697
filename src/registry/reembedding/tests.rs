//! Galleries that move from one model to another.

mod stage;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc as sync;

use super::*;
use crate::cancellation::Cancellation;
use crate::gallery::{Chips, Export, GalleryName, NewGallery, Selector};
use crate::postgres::trial::Trial;

use stage::{DIMENSIONS, Gate, Life, arrival, check, chip, closed_gate, digest, enrol, id, open_gate};

#[tokio::test]
async fn galleries_follow_while_the_former_model_stays_for_their_searches() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (gate, comes, go) = closed_gate();
    let mut life = Life::begin(folder.path(), gate).await;
    let (first, second) = (life.gallery("first", 3, true).await, life.gallery("second", 2, true).await);
    let bare = life.gallery("bare", 2, false).await;
    let mut target = life.activate(1).await;
    let reembedder = life.reembedder.clone();
    let following = tokio::spawn(async move { reembedder.settle(&mut target).await });
    let _comes = arrival(comes).await;
    assert_eq!(first.info().following.expect("on its way").model, digest(1));
    // This one has the former model's embedding only, as from a call that began before the activation.
    enrol(&first, 3, Some(chip(3))).await;
    assert!(life.reembedder.pipeline.resolve(Some(digest(0))).is_ok());
    drop(go);
    following.await.expect("no panic");
    check(&first, 1, 4);
    check(&second, 1, 2);
    check(&bare, 0, 2);
    life.reembedder.pipeline.residency().gone(digest(0)).await;
    life.end().await;
}

#[tokio::test]
async fn what_was_embedded_before_a_restart_is_not_embedded_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let count = PIECE as u8 + 10;
    let (passed, (told, stuck)) = (Arc::new(AtomicUsize::new(0)), sync::channel());
    let gate: Gate = Arc::new({
        let passed = Arc::clone(&passed);
        move |chips| {
            // The second piece never completes.
            if passed.fetch_add(chips, Ordering::Relaxed) == PIECE {
                told.send(()).expect("the test listens");
                std::thread::park();
            }
        }
    });
    let mut life = Life::begin(folder.path(), gate).await;
    let gallery = life.gallery("g", count, true).await;
    let mut target = life.activate(1).await;
    let reembedder = life.reembedder.clone();
    let following = tokio::spawn(async move { reembedder.settle(&mut target).await });
    tokio::task::spawn_blocking(move || stuck.recv()).await.expect("no panic").expect("it comes");
    following.abort();
    assert!(following.await.expect_err("ended").is_cancelled());
    assert_eq!(gallery.info().following.expect("on its way").embedded, PIECE as u64);
    life.reembedder.catalog.close().await;
    drop((life, gallery));

    let embedded = Arc::new(AtomicUsize::new(0));
    let gate: Gate = Arc::new({
        let embedded = Arc::clone(&embedded);
        move |chips| {
            embedded.fetch_add(chips, Ordering::Relaxed);
        }
    });
    let life = Life::begin(folder.path(), gate).await;
    let mut target = life.reembedder.resumed().await;
    assert!(life.reembedder.pipeline.resolve(Some(digest(0))).is_ok(), "searches need it");
    life.reembedder.settle(&mut target).await;
    let (_, gallery) = life.reembedder.catalog.served().remove(0);
    check(&gallery, 1, count);
    assert_eq!(embedded.load(Ordering::Relaxed), 10);
    drop(target);
    assert!(life.reembedder.resumed().await.former.is_empty(), "nobody needs it any more");
    life.end().await;
}

#[tokio::test]
async fn a_gallery_with_entries_that_cannot_be_embedded_says_so_and_follows_without_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut life = Life::begin(folder.path(), open_gate()).await;
    let gallery = life.gallery("g", 2, true).await;
    enrol(&gallery, 2, None).await;
    enrol(&gallery, 3, Some(SourceChip { image: b"no image".as_slice().into(), ..chip(3) })).await;
    let mut target = life.activate(1).await;
    life.reembedder.settle(&mut target).await;
    let following = gallery.info().following.expect("on its way");
    assert_eq!(following.embedded, 2);
    let reason = following.stalled.expect("stalled");
    assert!(reason.starts_with("2 entries have no chip"), "{reason}");
    assert_eq!(gallery.info().about.model, digest(0));
    assert!(life.reembedder.pipeline.resolve(Some(digest(0))).is_ok(), "it is still searched with it");
    let refused = life.reembedder.activator.activate(digest(2)).await.expect_err("there is no place");
    assert_eq!(refused.reason().name(), "MODEL_NEEDED");
    assert!(refused.to_string().ends_with("they are t-t/g"), "{refused}");
    let reembedder = life.reembedder.clone();
    let (_changes, changes) = mpsc::unbounded_channel();
    tokio::time::pause();
    let running = tokio::spawn(reembedder.run(changes));
    // Nothing is activated and nothing is restarted.
    gallery.delete(Selector::Ids(vec![id(2), id(3)])).await.expect("deleted");
    while gallery.info().about.model != digest(1) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    check(&gallery, 1, 2);
    running.abort();
    life.end().await;
}

#[tokio::test]
async fn no_gallery_is_left_behind_by_a_model_that_is_not_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Model 0 is a preset, not in the registry.
    let mut life = Life::with_models(folder.path(), open_gate(), [1, 2]).await;
    life.gallery("first", 2, true).await;
    life.activate(1).await;
    life.reembedder.catalog.close().await;
    drop(life);

    let mut life = Life::begin(folder.path(), open_gate()).await;
    drop(life.reembedder.resumed().await);
    let mut target = life.activate(2).await;
    life.reembedder.settle(&mut target).await;
    let (_, gallery) = life.reembedder.catalog.served().remove(0);
    check(&gallery, 2, 2);
    life.end().await;
}

#[tokio::test]
async fn a_gallery_that_comes_later_follows_as_well() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut life = Life::begin(folder.path(), open_gate()).await;
    let made = life.gallery("made", 2, true).await;
    let export: Vec<_> =
        Export::new(made.snapshot(), Chips::With).collect::<Result<_, _>>().expect("readable");
    let mut target = life.activate(1).await;
    life.reembedder.settle(&mut target).await;
    let name = GalleryName::new("imported").expect("a name");
    let mut import = life.reembedder.catalog.import("other", &name).await.expect("free");
    export.iter().try_for_each(|piece| import.push(piece, &Cancellation::default())).expect("in order");
    let imported = import.finish(&Cancellation::default()).expect("whole");
    life.reembedder.settle(&mut target).await;
    check(&imported, 1, 2);
    life.end().await;
}

#[tokio::test]
async fn a_tenant_that_does_not_get_on_holds_up_no_other() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (gate, comes, go) = closed_gate();
    let mut life = Life::begin(folder.path(), gate).await;
    let stuck = life.gallery("stuck", 3, true).await;
    let name = GalleryName::new("empty").expect("a name");
    let new = NewGallery { model: digest(0), dimension: DIMENSIONS[0], composition: None, keeps_chips: true };
    let other = life.reembedder.catalog.create("z", &name, new).await.expect("made");
    let mut target = life.activate(1).await;
    let reembedder = life.reembedder.clone();
    let following = tokio::spawn(async move { reembedder.settle(&mut target).await });
    let _comes = arrival(comes).await;
    while other.info().about.model != digest(1) {
        tokio::task::yield_now().await;
    }
    assert_eq!(stuck.info().about.model, digest(0));
    drop(go);
    following.await.expect("no panic");
    check(&stuck, 1, 3);
    life.end().await;
}

#[tokio::test]
async fn a_gallery_that_cannot_even_begin_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut life = Life::begin(folder.path(), open_gate()).await;
    let gallery = life.gallery("g", 1, true).await;
    let mut target = life.activate(1).await;
    life.reembedder.catalog.close().await;
    life.reembedder.settle(&mut target).await;
    let following = gallery.info().following.expect("it should be on its way");
    assert_eq!((following.model, following.embedded), (digest(1), 0));
    assert_eq!(following.stalled.as_deref(), Some("the gallery is closed"));
    assert_eq!(target.stalls.len(), 1);
    // Back at the model that it has, it has nothing left to do.
    let former = target.active.clone();
    target.turn_to(life.reembedder.activator.lease(digest(0)).await.expect("resident"), former);
    assert_eq!(gallery.info().following, None);
    life.end().await;
}

#[tokio::test]
async fn a_server_that_stays_full_stalls_galleries_until_it_has_room() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut life = Life::begin(folder.path(), open_gate()).await;
    let gallery = life.gallery("g", 1, true).await;
    let mut target = life.activate(1).await;
    let pipeline = Arc::clone(&life.reembedder.pipeline);
    let caller = Caller { tenant: "t".into(), priority: Priority::Interactive, deadline: None };
    let everything = pipeline.admit(&target.active, &caller, 99, 0).expect("it is empty");
    tokio::time::pause();
    life.reembedder.settle(&mut target).await;
    let following = gallery.info().following.expect("on its way");
    assert_eq!(following.stalled.as_deref(), Some("the server had no room for its chips for 60 s"));
    drop(everything);
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::resume();
    life.reembedder.settle(&mut target).await;
    check(&gallery, 1, 1);
    life.end().await;
}

#[tokio::test]
async fn what_stalls_is_tried_ever_later_and_sooner_once_it_was_written_to() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let life = Life::begin(folder.path(), open_gate()).await;
    let gallery = life.gallery("g", 1, true).await;
    let (place, _) = life.reembedder.catalog.served().remove(0);
    tokio::time::pause();
    let mut stalls = Stalls::default();
    assert!(stalls.may_go_on(&place, &gallery));
    let mut waits = Vec::new();
    for _ in 0..11 {
        stalls.tell(place.clone(), &gallery, digest(1), Err(Stall::Panicked));
        let stalled = tokio::time::Instant::now();
        while !stalls.may_go_on(&place, &gallery) {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        waits.push(stalled.elapsed().as_secs());
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
    stalls.tell(place.clone(), &gallery, digest(1), Err(Stall::Panicked));
    gallery.delete(Selector::Ids(vec![id(0)])).await.expect("deleted");
    tokio::time::advance(Duration::from_secs(9)).await;
    assert!(!stalls.may_go_on(&place, &gallery));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(stalls.may_go_on(&place, &gallery));
    tokio::time::resume();
    life.end().await;
}

#[tokio::test]
async fn a_gallery_stays_when_its_model_becomes_active_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (gate, comes, go) = closed_gate();
    let mut life = Life::begin(folder.path(), gate).await;
    let gallery = life.gallery("g", 3, true).await;
    let (_, unused) = mpsc::unbounded_channel();
    let changes = std::mem::replace(&mut life.changes, unused);
    let running = tokio::spawn(life.reembedder.clone().run(changes));
    life.reembedder.activator.activate(digest(1)).await.expect("activated");
    let _comes = arrival(comes).await;
    life.reembedder.activator.activate(digest(0)).await.expect("activated again");
    drop(go);
    life.reembedder.pipeline.residency().gone(digest(1)).await;
    while gallery.info().following.is_some() {
        tokio::task::yield_now().await;
    }
    check(&gallery, 0, 3);
    running.abort();
    life.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_share_galleries_re_embed_different_ones_and_take_over_from_a_silent_one() {
    let Some(trial) = Trial::new().await else { return };
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let (gate, comes, go) = closed_gate();
    let mut silent = Life::sharing(&trial, folders[0].path(), gate).await;
    let mut other = Life::sharing(&trial, folders[1].path(), open_gate()).await;
    let first = silent.gallery("first", 3, true).await;
    silent.gallery("second", 2, true).await;
    let of_other = async |name: &str| {
        let name = GalleryName::new(name).expect("a name");
        other.reembedder.catalog.get("t", &name).await.expect("there")
    };
    let (first_there, second_there) = (of_other("first").await, of_other("second").await);

    let mut target = silent.activate(1).await;
    silent.reembedder.announce(digest(1), true).await;
    let reembedder = silent.reembedder.clone();
    let following = tokio::spawn(async move { reembedder.settle(&mut target).await });
    let _comes = arrival(comes).await;
    let mut target = other.activate(1).await;
    other.reembedder.settle(&mut target).await;
    check(&second_there, 1, 2);
    assert_eq!(first_there.info().about.model, digest(0), "the other one has it");

    // It may claim the gallery again just before the other server does.
    while first_there.info().about.model == digest(0) {
        trial.execute("update moves set held_until = now() - interval '1 second'").await;
        other.reembedder.settle(&mut target).await;
    }
    check(&first_there, 1, 3);
    drop(go);
    following.await.expect("no panic");
    let name = GalleryName::new("first").expect("a name");
    silent.reembedder.catalog.get("t", &name).await.expect("there");
    check(&first, 1, 3);
    silent.end().await;
    other.end().await;
}
