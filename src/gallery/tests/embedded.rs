//! The embedded store does what every store must do, across restarts and copies, and its files agree.

use std::collections::BTreeMap;

use super::conformance::{OPERATIONS, Trial};
use super::*;

const TENANT: &str = "a tenant / with a name";

struct Bench {
    folder: tempfile::TempDir,
    catalog: EmbeddedCatalog,
    /// Name of the gallery; imports give it another.
    name: GalleryName,
    trial: Trial,
}

impl Bench {
    fn new() -> Self {
        let folder = folder();
        let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("free");
        let name = name("first");
        let gallery = catalog.create(TENANT, &name, new_gallery()).expect("made");
        Self { folder, catalog, name, trial: Trial::new(gallery, 42) }
    }

    fn reopen(&mut self) {
        self.catalog.close();
        self.catalog = EmbeddedCatalog::open(self.folder.path(), settings()).expect("free again");
        self.trial.gallery = self.catalog.get(TENANT, &self.name).expect("there");
    }

    /// Continues with a copy. A shadow is not exported.
    fn copy(&mut self) {
        let exported = export(&self.trial.gallery, Chips::With);
        let copy = if self.name.as_str() == "first" { name("second") } else { name("first") };
        let gallery = import(&self.catalog, &copy, &exported);
        assert_eq!(export(&gallery, Chips::With), exported);
        self.catalog.delete(TENANT, &self.name).expect("there");
        (self.trial.gallery, self.name) = (gallery, copy);
        self.trial.model = self.trial.model.without_shadow();
    }

    fn copy_without_chips(&mut self) {
        let exported = export(&self.trial.gallery, Chips::Without);
        import(&self.catalog, &name("bare"), &exported);
        let mut expected = self.trial.model.without_shadow();
        expected.rows.values_mut().for_each(|kept| kept.chip = None);
        expected.check_embedded(&self.catalog.embedded(TENANT, &name("bare")).published());
        self.catalog.delete(TENANT, &name("bare")).expect("there");
    }
}

fn import(catalog: &EmbeddedCatalog, name: &GalleryName, exported: &[u8]) -> Gallery {
    let mut import = catalog.import(TENANT, name).expect("the name is free");
    exported.chunks(777).for_each(|piece| import.push(piece, &Cancellation::default()).expect("an export"));
    import.finish(&Cancellation::default()).expect("whole")
}

#[tokio::test]
async fn random_work_differs_nowhere_from_the_model() {
    let mut bench = Bench::new();
    let mut done = 0;
    let mut kinds: BTreeMap<u32, usize> = BTreeMap::new();
    while done < OPERATIONS {
        let kind = bench.trial.generator.0.random_range(0..40);
        match kind {
            0 => bench.reopen(),
            1 => bench.copy(),
            2 => bench.copy_without_chips(),
            _ => done += bench.trial.change().await,
        }
        *kinds.entry(kind.min(3)).or_default() += 1;
        bench.trial.check();
        let published = bench.catalog.embedded(TENANT, &bench.name).published();
        bench.trial.model.check_embedded(&published);
    }
    assert!(kinds.values().all(|times| *times > 3), "{kinds:?}");
    bench.catalog.close();
}
