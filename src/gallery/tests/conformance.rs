//! What every store must do: all operations on a gallery, in random order, compared with the model.

use futures_util::future::join_all;
use tokio::task::unconstrained;

use super::generator::OperationGenerator;
use super::model::{Answer, Model};
use super::*;

pub const OPERATIONS: usize = 10_000;

/// A gallery under test, and the model of its expected state.
pub struct Trial {
    pub gallery: Gallery,
    pub model: Model,
    pub generator: OperationGenerator,
}

impl Trial {
    /// Starts with a gallery without entries.
    pub fn new(gallery: Gallery, seed: u64) -> Self {
        Self { gallery, model: Model::default(), generator: OperationGenerator::new(seed) }
    }

    /// Changes the gallery and returns how many operations that took.
    pub async fn change(&mut self) -> usize {
        match self.generator.0.random_range(0..10) {
            0 => self.turn().await,
            1 => self.fill().await,
            _ => self.operate().await,
        }
    }

    /// Checks that readers see what the model contains.
    pub fn check(&mut self) {
        self.model.check(&*self.gallery.snapshot());
        self.search();
        self.list();
        self.look_up();
    }

    /// Operations requested together, in this order, so that they share commits.
    async fn operate(&mut self) -> usize {
        let operations: Vec<_> =
            (0..self.generator.0.random_range(1..30)).map(|_| self.generator.operation()).collect();
        let expected: Vec<Answer> = operations.iter().map(|operation| self.model.apply(operation)).collect();
        let asked = operations.into_iter().map(|operation| unconstrained(operation.ask(&*self.gallery)));
        assert_eq!(join_all(asked).await, expected);
        expected.len()
    }

    async fn turn(&mut self) -> usize {
        let turn = self.generator.turn(&self.model);
        let before = self.gallery.snapshot();
        let held = self.model.clone();
        assert_eq!(turn.ask(&*self.gallery).await, self.model.turn(&turn));
        // Readers of an earlier state are unaffected.
        held.check(&*before);
        1
    }

    async fn fill(&mut self) -> usize {
        let fill = self.generator.fill(&self.model);
        let expected = self.model.apply(&fill);
        assert_eq!(fill.ask(&*self.gallery).await, expected);
        1
    }

    fn search(&mut self) {
        let snapshot = self.gallery.snapshot();
        let (filter, query) = (self.generator.filter(), embedding(self.generator.0.random_range(0..300)));
        let k = self.generator.0.random_range(1..20);
        let selection = snapshot.select(&filter).expect("readable");
        let admitted = self.model.admitted(&filter);
        assert_eq!(snapshot.rows(&selection, None, usize::MAX), admitted);
        let mut seen = Vec::new();
        snapshot.for_each_sighting(&selection, &mut |sighting| seen.push(sighting.row));
        assert_eq!(seen, admitted);
        for row in (0..self.model.next_row).map(RowId) {
            assert_eq!(snapshot.is_selected(&selection, row), admitted.contains(&row));
        }
        let none = VesselSet::default();
        let query =
            IndexQuery { vector: query.as_slice(), part: 0, k, without_row: None, without_vessels: &none };
        for (group, expected) in [
            (Group::Entry, self.model.best(&filter, query.vector).into_iter().map(|hit| (hit, 1)).collect()),
            (Group::Vessel, self.model.best_vessels(&filter, query.vector)),
        ] {
            let found = snapshot
                .search(&[query], &selection, group, &Cancellation::default())
                .expect("readable")
                .remove(0);
            let found = found.hits.iter().map(|hit| ((hit.row, hit.cosine), hit.entries));
            let expected: Vec<((RowId, f32), u32)> = expected;
            assert_eq!(found.collect::<Vec<_>>(), expected.into_iter().take(k).collect::<Vec<_>>());
        }
    }

    fn list(&mut self) {
        let snapshot = self.gallery.snapshot();
        let (filter, size) = (self.generator.filter(), self.generator.0.random_range(1..40));
        let (mut after, mut listed) = (None, Vec::new());
        loop {
            let page = snapshot.list(&filter, after, size, &Cancellation::default()).expect("readable");
            assert!(page.entries.len() == size || page.next.is_none());
            listed.extend(page.entries.into_iter().map(|(row, _)| row));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let admitted = self.model.admitted(&filter);
        assert_eq!(listed, admitted);
        let (mut after, mut vessels) = (None, Vec::new());
        loop {
            let page = snapshot.list_vessels(&filter, after.as_ref(), size.min(3), &Cancellation::default());
            let page = page.expect("readable");
            assert!(page.vessels.len() == size.min(3) || page.next.is_none());
            vessels.extend(page.vessels);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(vessels, self.model.vessel_summaries(|row| admitted.contains(&row)));
    }

    fn look_up(&mut self) {
        let ids = self.generator.ids();
        let snapshot = self.gallery.snapshot();
        let looked = snapshot.get(&ids, &Cancellation::default()).expect("readable");
        let (found, missing): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| self.model.row(id).is_some());
        assert_eq!(looked.missing, missing);
        assert_eq!(looked.found.iter().map(|(_, entry)| entry.id.clone()).collect::<Vec<_>>(), found);
        for (_, entry) in looked.found {
            assert_eq!(snapshot.is_enrolled(&entry.id, &entry.content), Ok(true));
            assert_eq!(snapshot.is_enrolled(&entry.id, &ContentHash::new([9; 32])), Ok(false));
        }
    }
}
