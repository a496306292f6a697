//! Models that come with a calibrator: galleries of theirs are ranked by all evidence.

use shipreid::matching::{Appearance, Calibrator, CalibratorParts, ModalityPair, PairCalibration};
use shipreid::registry::{CALIBRATOR, Kept, calibrator_file};
use shipreid::wire::{MatchResponse, Ranking};

use super::*;

const GALLERY: &str = "kept";

fn calibrator(seed: u64, id: &str) -> Calibrator {
    let appearance = Appearance { offset: -9.0, cosine: 10.0 };
    let pair = PairCalibration { same_pairs: 30, other_pairs: 900, appearance, size: None };
    Calibrator::new(CalibratorParts {
        id: id.into(),
        model: model(seed).digest(),
        prior_unknown: 0.2,
        fitted_on: "ships".into(),
        data: None,
        kinematics: None,
        pairs: [(ModalityPair::OpticalOptical, pair)].into(),
    })
    .unwrap()
}

/// A model with its calibrator, as another server exports it, after `spoil` has changed its files.
fn exported_calibrated(folder: &Path, seed: u64, spoil: impl Fn(&Path)) -> PathBuf {
    let place = folder.join(format!("calibrated-{seed}"));
    let limits = RegistryLimits { count_max: 1, bytes_max: 1 << 30 };
    let registry = Registry::open(&place, limits).unwrap();
    let (provenance, calibrator) = (Provenance::now("job"), calibrator(seed, "of the model"));
    registry.add(&model(seed), Kept { provenance: &provenance, calibrator: Some(&calibrator) }).unwrap();
    spoil(&place.join(digest(seed)));
    let file = folder.join(format!("calibrated-{seed}.zip"));
    registry.export(model(seed).digest()).unwrap().write_to(fs::File::create(&file).unwrap()).unwrap();
    file
}

/// Creates the gallery with two ships.
async fn enrol_ships(client: &Client) {
    let create = CreateGalleryRequest { name: GALLERY.into(), keep_chips: Some(true), ..Default::default() };
    client.galleries().create_gallery(create).await.unwrap();
    let enrolment = |number: usize| EnrollRequest {
        gallery: GALLERY.into(),
        entry_id: format!("{number}"),
        source: Some(Source::Chip(chip(fixture(IMAGE), Modality::Optical))),
        ..EnrollRequest::default()
    };
    assert!(enroll(client, vec![enrolment(0), enrolment(1)]).await.iter().all(|done| done.error.is_none()));
}

async fn matched(client: &Client, ranking: Ranking) -> MatchResponse {
    let tracklet = Tracklet { chips: vec![chip(fixture(IMAGE), Modality::Optical)] };
    let request = MatchRequest {
        gallery: GALLERY.into(),
        queries: vec![MatchQuery { subject: Some(Subject::Tracklet(tracklet)), ..MatchQuery::default() }],
        ranking: ranking.into(),
        ..MatchRequest::default()
    };
    client.ship_re_id().r#match(request).await.unwrap().into_inner()
}

/// The model that answered, the calibrator, and what ranked the candidates.
fn told(answer: &MatchResponse) -> (String, &str, Ranking) {
    let result = &answer.results[0];
    assert_eq!(result.error, None);
    let is_calibrated = !answer.calibrator.is_empty();
    assert_eq!(result.unknown_probability.is_some(), is_calibrated);
    assert!(result.candidates.iter().all(|found| found.probability.is_some() == is_calibrated));
    (answer.model.clone(), &answer.calibrator, result.ranking())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_and_its_calibrator_are_activated_together() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    let calibrated = import(&client, &exported_calibrated(folder.path(), 1, |_| ())).await;
    assert_eq!(calibrated.calibrator, "of the model");
    assert_eq!(import(&client, &exported(folder.path(), &[2])[0]).await.calibrator, "");
    enrol_ships(&client).await;
    let unsaid = Ranking::Unspecified;
    let expected = [
        (digest(0), "", Ranking::Cosine),
        (digest(1), "of the model", Ranking::Fused),
        (digest(2), "", Ranking::Cosine),
    ];
    assert_eq!(told(&matched(&client, unsaid).await), expected[0]);
    for step in [1, 2] {
        activate(&client, digest(step as u64)).await.unwrap();
        // The gallery changes its model, and its calibrator with it, while it is searched.
        loop {
            let answer = matched(&client, unsaid).await;
            if told(&answer) == expected[step] {
                break;
            }
            assert_eq!(told(&answer), expected[step - 1]);
        }
        if step == 1 {
            let by_cosine = matched(&client, Ranking::Cosine).await;
            assert_eq!(told(&by_cosine), (digest(1), "of the model", Ranking::Cosine));
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_configured_calibrator_comes_before_the_one_that_the_model_has() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own.toml");
    fs::write(&own, calibrator(1, "configured").to_toml()).unwrap();
    for (setting, expected) in
        [(String::new(), "of the model"), (format!("matching.calibrators={}", own.display()), "configured")]
    {
        let settings: Vec<&str> =
            Some(setting.as_str()).filter(|setting| !setting.is_empty()).into_iter().collect();
        let (server, client) = start(folder.path(), &settings).await;
        if settings.is_empty() {
            import(&client, &exported_calibrated(folder.path(), 1, |_| ())).await;
            activate(&client, digest(1)).await.unwrap();
            enrol_ships(&client).await;
        }
        let answer = matched(&client, Ranking::Unspecified).await;
        assert_eq!(told(&answer), (digest(1), expected, Ranking::Fused));
        server.stop().await;
    }
}

#[tokio::test]
async fn a_model_with_the_calibrator_of_another_is_not_imported() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    let file = exported_calibrated(folder.path(), 1, |place| {
        fs::write(place.join(CALIBRATOR), calibrator_file(&calibrator(2, "of another"))).unwrap();
    });
    let imported = client.import_model(&file, CheckpointHints::default(), |_| {}).await;
    let (code, reason, message) = refusal(imported.unwrap_err());
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "CALIBRATOR_MISMATCH"));
    assert!(message.contains(&digest(1)) && message.contains(&digest(2)), "{message}");
    assert_eq!(client.list_models().await.unwrap().len(), 1, "the one that serves");
    server.stop().await;
}
