//! Everything that can be done to galleries, at random, beside the model.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use tokio::task::unconstrained;

use super::model::{Answer, Model, Work};
use super::*;

const OPERATIONS: usize = 10_000;
const TENANT: &str = "a tenant / with a name";

struct Bench {
    folder: tempfile::TempDir,
    shelf: Shelf,
    gallery: Gallery,
    /// Of the gallery; imports give it another.
    name: GalleryName,
    model: Model,
    work: Work,
}

impl Bench {
    fn new() -> Self {
        let folder = folder();
        let shelf = Shelf::open(folder.path(), settings()).expect("free");
        let name = name("first");
        let gallery = shelf.create(TENANT, &name, new_gallery()).expect("made");
        Self { folder, shelf, gallery, name, model: Model::default(), work: Work::new(42) }
    }

    /// Operations that are asked for together, in this order, so that they share commits.
    async fn change(&mut self) -> usize {
        let operations: Vec<_> =
            (0..self.work.0.random_range(1..30)).map(|_| self.work.operation()).collect();
        let expected: Vec<Answer> = operations.iter().map(|operation| self.model.apply(operation)).collect();
        let asked = operations.into_iter().map(|operation| unconstrained(operation.ask(&self.gallery)));
        assert_eq!(join_all(asked).await, expected);
        expected.len()
    }

    fn search(&mut self) {
        let snapshot = self.gallery.snapshot();
        let (filter, query) = (self.work.filter(), embedding(self.work.0.random_range(0..300)));
        let k = self.work.0.random_range(1..20);
        let selection = snapshot.select(&filter).expect("readable");
        let admitted = self.model.admitted(&filter);
        assert_eq!(snapshot.index().rows(&selection).collect::<Vec<_>>(), admitted);
        let none = VesselSet::default();
        let query = IndexQuery { vector: query.as_slice(), k, without_row: None, without_vessels: &none };
        for (group, expected) in [
            (Group::Entry, self.model.best(&filter, query.vector).into_iter().map(|hit| (hit, 1)).collect()),
            (Group::Vessel, self.model.best_vessels(&filter, query.vector)),
        ] {
            let found = snapshot
                .search(&[query], &selection, group, &Patience::default())
                .expect("readable")
                .remove(0);
            let found = found.hits.iter().map(|hit| ((hit.row, hit.cosine), hit.entries));
            let expected: Vec<((RowId, f32), u32)> = expected;
            assert_eq!(found.collect::<Vec<_>>(), expected.into_iter().take(k).collect::<Vec<_>>());
        }
    }

    fn list(&mut self) {
        let snapshot = self.gallery.snapshot();
        let (filter, size) = (self.work.filter(), self.work.0.random_range(1..40));
        let (mut after, mut listed) = (None, Vec::new());
        loop {
            let page = snapshot.list(&filter, after, size).expect("readable");
            assert!(page.entries.len() == size || page.next.is_none());
            listed.extend(page.entries.into_iter().map(|(row, _)| row));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(listed, self.model.admitted(&filter));
    }

    fn look_up(&mut self) {
        let ids = self.work.ids();
        let snapshot = self.gallery.snapshot();
        let looked = snapshot.get(&ids).expect("readable");
        let (found, missing): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| self.model.row(id).is_some());
        assert_eq!(looked.missing, missing);
        assert_eq!(looked.found.iter().map(|(_, entry)| entry.id.clone()).collect::<Vec<_>>(), found);
        for (_, entry) in looked.found {
            assert_eq!(snapshot.is_enrolled(&entry.id, &entry.content), Ok(true));
            assert_eq!(snapshot.is_enrolled(&entry.id, &ContentHash::new([9; 32])), Ok(false));
        }
    }

    fn reopen(&mut self) {
        self.shelf.close();
        self.shelf = Shelf::open(self.folder.path(), settings()).expect("free again");
        self.gallery = self.shelf.get(TENANT, &self.name).expect("there");
    }

    /// Goes on with a copy.
    fn copy(&mut self) {
        let exported = export(&self.gallery, Chips::With);
        let copy = if self.name.as_str() == "first" { name("second") } else { name("first") };
        let gallery = import(&self.shelf, &copy, &exported);
        assert_eq!(export(&gallery, Chips::With), exported);
        self.shelf.delete(TENANT, &self.name).expect("there");
        (self.gallery, self.name) = (gallery, copy);
    }

    fn copy_without_chips(&mut self) {
        let exported = export(&self.gallery, Chips::Without);
        let gallery = import(&self.shelf, &name("bare"), &exported);
        let mut expected = self.model.clone();
        expected.rows.values_mut().for_each(|kept| kept.chip = None);
        expected.check(&gallery.snapshot());
        self.shelf.delete(TENANT, &name("bare")).expect("there");
    }
}

fn export(gallery: &Gallery, chips: Chips) -> Vec<u8> {
    let pieces = Export::new(gallery.snapshot(), chips);
    pieces.flat_map(|piece| piece.expect("readable")).collect()
}

fn import(shelf: &Shelf, name: &GalleryName, exported: &[u8]) -> Gallery {
    let mut import = shelf.import(TENANT, name).expect("the name is free");
    exported.chunks(777).for_each(|piece| import.push(piece).expect("an export"));
    import.finish().expect("whole")
}

#[tokio::test]
async fn random_work_differs_nowhere_from_the_model() {
    let mut bench = Bench::new();
    let mut done = 0;
    let mut kinds: BTreeMap<u32, usize> = BTreeMap::new();
    while done < OPERATIONS {
        let kind = bench.work.0.random_range(0..40);
        match kind {
            0 => bench.reopen(),
            1 => bench.copy(),
            2 => bench.copy_without_chips(),
            _ => done += bench.change().await,
        }
        *kinds.entry(kind.min(3)).or_default() += 1;
        bench.model.check(&bench.gallery.snapshot());
        bench.search();
        bench.list();
        bench.look_up();
    }
    assert!(kinds.values().all(|times| *times > 3), "{kinds:?}");
    bench.shelf.close();
}
