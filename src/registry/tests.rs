//! What the registry stores, and what happens when a writer is killed or a file is changed.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::cancellation::Stopped;
use crate::durable::faults::flip;
use crate::durable::faults::tally::{Tally, rounds};
use crate::matching::{Appearance, CalibratorParts, FittedData, ModalityPair, PairCalibration};
use crate::weights::ensemble::Ensemble;
use crate::weights::family::transoss::TransOssArchitecture;
use crate::weights::family::{ArchitectureHints, Family, FeaturePoint, Preset};
use crate::weights::golden;
use crate::weights::native;
use crate::weights::open::OpenModel;
use crate::weights::seed::seeded;

pub(super) const LIMITS: RegistryLimits = RegistryLimits { count_max: 3, bytes_max: 10 << 20 };

pub(super) fn model(seed: u64) -> AnyModel {
    let architecture = TransOssArchitecture { classes: 0, ..golden::MICRO }.into();
    OpenModel::new(architecture, FeaturePoint::BeforeNeck, seeded(&architecture, seed)).into()
}

/// A provenance that `seed` orders in time.
pub(super) fn provenance(seed: u64) -> Provenance {
    Provenance {
        parent: Some(model(0).digest()),
        data_fingerprint: Some(format!("data {seed}")),
        created_at: seed,
        ..Provenance::now(format!("job {seed}"))
    }
}

/// A calibrator of model `seed`.
pub(super) fn calibrator(seed: u64) -> Calibrator {
    let appearance = Appearance { offset: -9.0, cosine: 10.0 };
    let pair = PairCalibration { same_pairs: 30, other_pairs: 900, appearance, size: None };
    let parts = CalibratorParts {
        id: format!("calibrator {seed}"),
        model: model(seed).digest(),
        prior_unknown: 0.2,
        fitted_on: "ships".into(),
        data: Some(FittedData { fingerprint: "sha256:5".into(), ships: 30, ships_held_out: 12 }),
        kinematics: None,
        pairs: [(ModalityPair::OpticalSar, pair)].into(),
    };
    Calibrator::new(parts).expect("a calibrator")
}

/// Adds model `seed` with the calibrator of model `of`.
pub(super) fn add_calibrated(registry: &Registry, seed: u64, of: u64) -> Result<Added, RegistryError> {
    let (provenance, calibrator) = (provenance(seed), calibrator(of));
    registry.add(&model(seed), Kept { provenance: &provenance, calibrator: Some(&calibrator) })
}

/// The record of an activation of model `seed` after that of seed 9.
fn active(seed: u64) -> ActiveModel {
    ActiveModel { digest: model(seed).digest(), former: model(9).digest() }
}

fn opened(folder: &Path) -> Registry {
    Registry::open(folder, LIMITS).expect("a registry")
}

fn filled(folder: &Path, seeds: &[u64]) -> Registry {
    let registry = opened(folder);
    for seed in seeds {
        assert_eq!(registry.add(&model(*seed), &provenance(*seed)).expect("room"), Added::New);
    }
    registry
}

fn packed(registry: &Registry, digest: ModelDigest) -> Vec<u8> {
    let mut bytes = Vec::new();
    registry.export(digest).expect("there").write_to(&mut bytes).expect("in memory");
    bytes
}

fn received(registry: &Registry, bytes: &[u8]) -> Incoming {
    let mut incoming = registry.receive().expect("room");
    for piece in bytes.chunks(1000) {
        incoming.write(piece).expect("within the limits");
    }
    incoming
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("readable");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn models_and_the_active_one_are_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let registry = filled(folder.path(), &[2, 1]);
    assert_eq!(registry.active(), None);
    registry.set_active(active(1)).expect("there");
    registry.set_active(active(2)).expect("there");
    let listed = registry.list();
    drop(registry);

    let registry = opened(folder.path());
    assert_eq!(registry.list(), listed);
    assert_eq!(
        listed.iter().map(|stored| stored.digest).collect::<Vec<_>>(),
        [1, 2].map(|n| model(n).digest())
    );
    let Condition::Intact(facts) = &listed[0].condition else { panic!("intact") };
    assert_eq!(facts.provenance, provenance(1));
    assert_eq!(registry.active(), Some(active(2)));
    assert_eq!(registry.load(model(1).digest()).expect("intact"), model(1));
}

#[test]
fn a_model_that_is_there_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let registry = filled(folder.path(), &[1]);
    let stored = registry.get(model(1).digest()).expect("there");
    assert_eq!(registry.add(&model(1), &provenance(9)).expect("known"), Added::Known);
    assert_eq!(registry.list(), [stored]);
}

fn import(registry: &Registry, bytes: &[u8], name: &str, hints: &Hints) -> Result<Imported, RegistryError> {
    registry.import(received(registry, bytes), name, hints, &Cancellation::default())
}

#[test]
fn a_model_travels_with_its_history_and_a_checkpoint_gets_a_new_one() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [here, there] = folders.each_ref().map(|folder| opened(folder.path()));
    here.add(&model(1), &provenance(1)).expect("room");
    let bytes = packed(&here, model(1).digest());
    assert_eq!(bytes, packed(&here, model(1).digest()), "equal models give equal bytes");
    let imported = import(&there, &bytes, "x.zip", &Hints::default()).expect("a packed model");
    let stored = here.get(model(1).digest()).expect("there");
    assert_eq!(imported, Imported { model: stored, added: Added::New, dropped: vec![] });
    let again = import(&there, &bytes, "x.zip", &Hints::default()).expect("again");
    assert_eq!(again, Imported { added: Added::Known, ..imported });

    let architecture =
        ArchitectureHints { heads: Some(2), image: Some(golden::MICRO.image), ..Default::default() };
    let hints = Hints { architecture, ..Hints::default() };
    let checkpoint = golden::bytes("ckpt_wrapped.pth");
    let imported = import(&there, &checkpoint, "ckpt_wrapped.pth", &hints).expect("a checkpoint");
    assert_eq!(imported.dropped, ["base.fc.bias", "base.fc.weight"]);
    let Condition::Intact(facts) = imported.model.condition else { panic!("intact") };
    assert_eq!((facts.provenance.origin.as_str(), facts.provenance.parent), ("ckpt_wrapped.pth", None));
    let malicious = golden::bytes("ckpt_malicious.pth");
    assert!(matches!(import(&there, &malicious, "x", &hints), Err(RegistryError::NoModel(_))));
    assert!(names(&folders[1].path().join(incoming::FOLDER)).is_empty(), "nothing received stays behind");
}

#[test]
fn a_calibrator_is_kept_with_its_model_and_travels_with_it() {
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [here, there, other] = folders.each_ref().map(|folder| opened(folder.path()));
    let digest = model(1).digest();
    assert_eq!(add_calibrated(&here, 1, 1).expect("room"), Added::New);
    here.add(&model(2), &provenance(2)).expect("room");
    assert_eq!(here.calibrator(digest).as_deref(), Some(&calibrator(1)));
    let stored = here.get(digest).expect("there");
    let bytes = packed(&here, digest);
    drop(here);

    let here = opened(folders[0].path());
    assert_eq!(here.get(digest).expect("there"), stored, "after a restart");
    here.load(digest).expect("intact");
    assert_eq!(here.calibrator(digest).as_deref(), Some(&calibrator(1)), "after it was read as a whole");
    for without in [model(2), model(3)] {
        assert_eq!(here.calibrator(without.digest()), None, "an older model, and none");
    }
    import(&there, &bytes, "x.zip", &Hints::default()).expect("a packed model");
    assert_eq!(there.get(digest).expect("there"), stored);
    // As a job leaves it.
    other.adopt(&folders[0].path().join(digest.to_string()), None).expect("room");
    assert_eq!(other.get(digest).expect("there"), stored);
    other.delete(digest).expect("not active");
    assert_eq!(other.calibrator(digest), None);
}

#[test]
fn a_calibrator_of_another_model_is_refused_and_a_damaged_one_is_missed() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [here, there] = folders.each_ref().map(|folder| opened(folder.path()));
    let digest = model(1).digest();
    let refused = add_calibrated(&here, 1, 2).expect_err("the calibrator of another model");
    assert_eq!(refused.reason().name(), "CALIBRATOR_MISMATCH");
    assert!(refused.to_string().contains(&model(2).digest().to_string()), "{refused}");
    assert_eq!(here.list(), []);
    add_calibrated(&here, 1, 1).expect("room");
    drop(here);

    let file = folders[0].path().join(digest.to_string()).join(CALIBRATOR);
    let sealed = calibrator_file(&calibrator(1));
    assert_eq!(fs::read_to_string(&file).expect("there"), sealed);
    for (content, reason) in [
        (calibrator_file(&calibrator(2)), "CALIBRATOR_MISMATCH"),
        (sealed.replace("offset = -9.0", "offset = -8.0"), "MODEL_UNREADABLE"),
        ("= no TOML".to_owned(), "MODEL_UNREADABLE"),
    ] {
        fs::write(&file, content).expect("writable");
        let here = opened(folders[0].path());
        assert!(matches!(here.get(digest).expect("there").condition, Condition::Intact(_)), "{reason}");
        assert_eq!(here.calibrator(digest), None, "{reason}");
        let bytes = packed(&here, digest);
        let refused = import(&there, &bytes, "x.zip", &Hints::default()).expect_err("no calibrator of it");
        assert_eq!(refused.reason().name(), reason, "{refused}");
        let left = folders[0].path().join(digest.to_string());
        assert_eq!(there.adopt(&left, None).expect_err("the same").reason().name(), reason);
    }
    assert_eq!(there.list(), []);
}

#[test]
fn a_model_of_another_family_is_kept_and_travels_like_any_other() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [here, there] = folders.each_ref().map(|folder| opened(folder.path()));
    let architecture = Family::Toy.preset(Preset::Tiny);
    let toy = AnyModel::from(OpenModel::new(architecture, FeaturePoint::AfterNeck, seeded(&architecture, 1)));
    here.add(&toy, &provenance(1)).expect("room");
    drop(here);
    let here = opened(folders[0].path());
    assert_eq!(here.load(toy.digest()).expect("intact"), toy);
    let bytes = packed(&here, toy.digest());
    let imported = there.import(received(&there, &bytes), "x", &Hints::default(), &Cancellation::default());
    let stored = imported.expect("a packed model").model;
    assert!(
        matches!(stored.condition, Condition::Intact(facts) if facts.networks[0].architecture == architecture)
    );
}

#[test]
fn an_ensemble_is_one_model_with_all_of_its_members() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [here, there] = folders.each_ref().map(|folder| opened(folder.path()));
    let members = [1, 2].map(|seed| model(seed).networks()[0].clone()).to_vec();
    let ensemble = AnyModel::from(Ensemble::new(members, &[1.0, 0.5], 3, 100).expect("an ensemble"));
    let digest = ensemble.digest();
    assert_eq!(here.add(&ensemble, &provenance(1)).expect("room"), Added::New);
    let bytes = packed(&here, digest);
    let imported = there.import(received(&there, &bytes), "x", &Hints::default(), &Cancellation::default());
    let stored = imported.expect("a packed ensemble").model;
    assert_eq!(stored, here.get(digest).expect("there"));
    drop((here, there));
    let [here, there] = folders.each_ref().map(|folder| opened(folder.path()));
    for registry in [&here, &there] {
        assert_eq!(registry.list(), std::slice::from_ref(&stored), "its members are no models of their own");
        assert_eq!(registry.load(digest).expect("intact"), ensemble);
    }
    let file = folders[0].path().join(digest.to_string()).join("members/1").join(native::TENSORS);
    fs::write(file, b"junk").expect("writable");
    assert!(matches!(here.load(digest), Err(RegistryError::Damaged { .. })));
    assert_eq!(here.add(&ensemble, &provenance(1)).expect("repaired"), Added::New);
    assert_eq!(here.load(digest).expect("repaired"), ensemble);
    here.delete(digest).expect("removable");
    assert!(here.list().is_empty());
}

#[test]
fn a_model_that_nobody_waits_for_any_more_is_not_added() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [here, there] = folders.each_ref().map(|folder| opened(folder.path()));
    here.add(&model(1), &provenance(1)).expect("room");
    let bytes = packed(&here, model(1).digest());
    let (cancellation, guard) = Cancellation::at(None);
    // While another model is being added, which keeps all others waiting.
    let writing = there.writing();
    std::thread::scope(|scope| {
        let importing =
            scope.spawn(|| there.import(received(&there, &bytes), "x.zip", &Hints::default(), &cancellation));
        drop(guard);
        drop(writing);
        let imported = importing.join().expect("no panic");
        assert!(matches!(imported, Err(RegistryError::Stopped(Stopped::Cancelled))), "{imported:?}");
    });
    assert_eq!(there.list(), []);
    assert!(names(&folders[1].path().join(incoming::FOLDER)).is_empty());
}

#[test]
fn a_model_that_a_job_has_left_is_taken_over_with_its_history() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let (registry, left) = (opened(&place.path().join("models")), place.path().join("left"));
    let refused = registry.adopt(&left, None).expect_err("there is nothing");
    assert_eq!(refused.reason().name(), "MODEL_UNREADABLE");
    model(1).save(&left, "job 1").expect("writable");
    assert_eq!(registry.adopt(&left, None).expect_err("no history").reason().name(), "MODEL_UNREADABLE");
    assert!(registry.list().is_empty());

    fs::write(left.join(PROVENANCE), provenance(1).to_toml()).expect("writable");
    assert_eq!(registry.adopt(&left, None).expect("room"), (model(1).digest(), Added::New));
    assert_eq!(registry.adopt(&left, None).expect("known"), (model(1).digest(), Added::Known));
    let stored = registry.get(model(1).digest()).expect("there").condition;
    assert!(matches!(stored, Condition::Intact(facts) if facts.provenance == provenance(1)));
}

#[test]
fn the_active_model_is_not_deleted_and_a_deleted_one_is_gone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let registry = filled(folder.path(), &[1, 2]);
    registry.set_active(active(1)).expect("there");
    assert!(matches!(registry.delete(model(1).digest()), Err(RegistryError::Active(_))));
    // Sending continues to the end.
    let export = registry.export(model(2).digest()).expect("there");
    registry.delete(model(2).digest()).expect("not active");
    export.write_to(io::sink()).expect("sent");
    for registry in [registry].into_iter().chain(std::iter::once_with(|| opened(folder.path()))) {
        let absent = model(2).digest();
        assert!(matches!(registry.delete(absent), Err(RegistryError::NotFound(_))));
        assert!(matches!(registry.set_active(active(2)), Err(RegistryError::NotFound(_))));
        assert!(matches!(registry.load(absent), Err(RegistryError::NotFound(_))));
        assert_eq!(registry.list().len(), 1);
    }
}

#[test]
fn limits_are_met_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let registry = filled(folder.path(), &[1, 2, 3]);
    assert!(matches!(registry.add(&model(4), &provenance(4)), Err(RegistryError::TooMany { limit: 3 })));
    registry.delete(model(3).digest()).expect("not active");
    let one = registry.get(model(1).digest()).expect("there").bytes;
    drop(registry);
    let bytes_max = 2 * one + one / 2;
    let registry = Registry::open(folder.path(), RegistryLimits { bytes_max, ..LIMITS }).expect("opens");
    match registry.add(&model(3), &provenance(3)) {
        Err(RegistryError::TooLarge { used, limit, .. }) => assert_eq!((used, limit), (2 * one, bytes_max)),
        other => panic!("{other:?}"),
    }
    // What several calls receive counts together, until it is dropped.
    let piece = vec![0; (one / 3) as usize];
    let (mut first, mut second) =
        (registry.receive().expect("a place"), registry.receive().expect("a place"));
    first.write(&piece).expect("room");
    assert!(matches!(second.write(&piece), Err(RegistryError::TooLarge { .. })));
    drop(first);
    second.write(&piece).expect("room again");
    let more: Vec<_> = std::iter::from_fn(|| registry.receive().ok()).collect();
    assert_eq!(more.len(), 3);
    assert!(matches!(registry.receive(), Err(RegistryError::TooManyIncoming { limit: 4 })));
    assert_eq!(registry.list().len(), 2);
}

#[test]
fn a_damaged_model_is_refused_by_name_and_repaired_by_adding_it_again() {
    let change = |name: &'static str, change: fn(&Path)| (name, change);
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).expect("readable");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).expect("writable");
    };
    for (name, change) in [
        change(native::TENSORS, |path| fs::remove_file(path).expect("there")),
        change(native::TENSORS, |path| fs::write(path, b"junk").expect("writable")),
        change(native::TENSORS, flip),
        change(native::DESCRIPTION, |path| fs::write(path, b"format = 2").expect("writable")),
        change(native::DESCRIPTION, |path| {
            let text = fs::read_to_string(path).expect("readable");
            fs::write(path, text.replace(&model(1).digest().to_string(), &model(2).digest().to_string()))
                .expect("writable");
        }),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let digest = model(1).digest();
        let place = filled(folder.path(), &[1, 2]).place(digest);
        change(&place.join(name));
        let registry = opened(folder.path());
        let error = registry.load(digest).map(|model| model.digest());
        let error = error.expect_err("damaged").to_string();
        assert!(error.contains(&digest.to_string()) && error.contains("damaged"), "{name}: {error}");
        assert!(matches!(registry.get(digest).expect("listed").condition, Condition::Damaged(_)));
        assert!(matches!(registry.set_active(active(1)), Err(RegistryError::Damaged { .. })));
        assert!(matches!(registry.export(digest), Err(RegistryError::Damaged { .. })));
        registry.load(model(2).digest()).expect("the other one is not touched");
        assert_eq!(registry.add(&model(1), &provenance(1)).expect("repaired"), Added::New);
        assert_eq!(registry.load(digest).expect("repaired"), model(1));
    }
}

#[test]
fn what_killed_writers_left_is_gone_after_a_restart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let registry = filled(folder.path(), &[1]);
    registry.set_active(active(1)).expect("there");
    let before = names(folder.path());
    std::mem::forget(received(&registry, b"half of a mod"));
    drop(registry);
    // As left by an interrupted addition, deletion or change of the active model.
    let digest = model(2).digest().to_string();
    for partial in [format!(".partial-{digest}-new-1-0"), format!(".partial-{digest}-gone-1-1")] {
        fs::create_dir(folder.path().join(&partial)).expect("writable");
        fs::write(folder.path().join(&partial).join(native::TENSORS), b"torn").expect("writable");
    }
    fs::write(folder.path().join("active.toml.new"), b"forma").expect("writable");
    let registry = opened(folder.path());
    assert_eq!(registry.active(), Some(active(1)));
    registry.set_active(active(1)).expect("there");
    assert_eq!(names(folder.path()), before);
    assert!(names(&folder.path().join(incoming::FOLDER)).is_empty());
}

#[test]
fn a_record_of_the_active_model_is_repaired_from_its_copy_or_kept_and_missed() {
    for text in ["", "format = 9\ndigest = \"\"", "format = 1\ndigest = \"12\"", "\u{1}"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        filled(folder.path(), &[1, 2]).set_active(active(1)).expect("there");
        let path = folder.path().join("active.toml");
        fs::write(&path, text).expect("writable");
        // The second time, it is intact again.
        for _ in 0..2 {
            let registry = opened(folder.path());
            assert_eq!((registry.active(), registry.active_damage()), (Some(active(1)), None));
        }
        let kept = || fs::read_to_string(folder.path().join("active.damaged.toml")).expect("kept");
        assert_eq!(kept(), text);

        fs::remove_file(folder.path().join("active.copy.toml")).expect("there");
        fs::write(&path, "rotten").expect("writable");
        let registry = opened(folder.path());
        assert_eq!(registry.active(), None);
        let damage = registry.active_damage().expect("it cannot be read");
        assert!(damage.starts_with("active.toml: "), "{damage}");
        assert_eq!(registry.list().len(), 2);
        assert_eq!(fs::read_to_string(&path).expect("kept"), "rotten");
        registry.set_active(active(2)).expect("there");
        assert_eq!(kept(), "rotten");
        drop(registry);
        assert_eq!(opened(folder.path()).active(), Some(active(2)));
    }
}

#[test]
fn a_model_whose_history_is_damaged_is_served_and_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let registry = filled(folder.path(), &[1]);
    let digest = model(1).digest();
    let path = registry.place(digest).join(PROVENANCE);
    drop(registry);
    for text in [Some("rotten"), None] {
        match text {
            Some(text) => fs::write(&path, text).expect("writable"),
            None => fs::remove_file(&path).expect("there"),
        }
        let registry = opened(folder.path());
        assert_eq!(registry.load(digest).expect("its numbers are intact"), model(1));
        let Condition::Intact(facts) = registry.get(digest).expect("listed").condition else {
            panic!("intact")
        };
        let expected = format!("unknown ({digest}/{PROVENANCE}: ");
        assert!(facts.provenance.origin.starts_with(&expected), "{}", facts.provenance.origin);
        registry.set_active(active(1)).expect("it can be served");
        let bytes = packed(&registry, digest);
        assert_eq!(import(&registry, &bytes, "x", &Hints::default()).expect("whole").added, Added::Known);
    }
}

#[test]
fn whichever_byte_of_a_models_files_is_flipped_nothing_is_silently_wrong() {
    let fresh = tempfile::tempdir().expect("a temporary folder");
    filled(fresh.path(), &[1, 2]).set_active(active(1)).expect("there");
    let digests = [1, 2].map(|seed| model(seed).digest());
    let mut files = vec!["active.toml".to_owned(), "active.copy.toml".to_owned()];
    for digest in digests {
        files.extend(
            names(&fresh.path().join(digest.to_string())).iter().map(|name| format!("{digest}/{name}")),
        );
    }
    const OUTCOMES: [&str; 3] = ["refused", "named in use", "unaffected or repaired"];
    let mut tally = Tally::new("flip, files of models");
    for seed in 0..2 * rounds(30) as u64 {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for digest in digests {
            fs::create_dir(folder.path().join(digest.to_string())).expect("writable");
        }
        for file in &files {
            fs::copy(fresh.path().join(file), folder.path().join(file)).expect("a copy");
        }
        let file = &files[seed as usize % files.len()];
        let what = flip(&folder.path().join(file), &mut ChaCha8Rng::seed_from_u64(seed));
        let registry = opened(folder.path());
        assert_eq!(registry.active(), Some(active(1)), "{what}");
        let [refused, named, unaffected] = OUTCOMES;
        let mut outcome = unaffected;
        for (seed, digest) in [1, 2].into_iter().zip(digests) {
            match registry.load(digest) {
                Ok(found) => assert_eq!(found, model(seed), "{what}"),
                Err(cause) => {
                    assert!(matches!(cause, RegistryError::Damaged { .. }), "{what}: {cause}");
                    assert!(file.starts_with(&digest.to_string()), "{what}");
                    outcome = refused;
                    continue;
                }
            }
            let Condition::Intact(facts) = registry.get(digest).expect("listed").condition else {
                panic!("{what}")
            };
            if facts.provenance != provenance(seed) {
                assert!(facts.provenance.origin.starts_with("unknown ("), "{what}");
                outcome = named;
            }
        }
        tally.count(outcome);
        tally.round();
    }
    assert!(OUTCOMES.iter().all(|outcome| tally.counted(outcome) > 0), "{tally:?}");
    tally.tell();
}

/// The models that the first release was released with.
const RELEASED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models-1");

#[test]
fn models_of_the_first_release_are_read() {
    let [fresh, old] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let digest = model(1).digest();
    let there = old.path().join(digest.to_string());
    fs::create_dir(&there).expect("writable");
    for file in names(&Path::new(RELEASED).join(digest.to_string())) {
        fs::copy(Path::new(RELEASED).join(digest.to_string()).join(&file), there.join(file))
            .expect("writable");
    }
    fs::copy(Path::new(RELEASED).join("active.toml"), old.path().join("active.toml")).expect("writable");
    let registry = opened(old.path());
    let conditions =
        |registry: &Registry| registry.list().into_iter().map(|stored| stored.condition).collect::<Vec<_>>();
    assert_eq!(conditions(&registry), conditions(&filled(fresh.path(), &[1])));
    assert_eq!(registry.active(), Some(active(1)));
    assert_eq!(registry.load(digest).expect("intact"), model(1));
    let description = |folder: &Path| {
        let text = fs::read_to_string(folder.join(digest.to_string()).join(native::DESCRIPTION));
        text.expect("readable")
    };
    assert_eq!(description(fresh.path()), description(Path::new(RELEASED)), "it is still written so");
}

#[test]
#[ignore = "writes the fixture of a release, once"]
fn write_the_models_of_this_release() {
    let folder = Path::new(RELEASED);
    fs::create_dir_all(folder).expect("writable");
    filled(folder, &[1]).set_active(active(1)).expect("there");
}
