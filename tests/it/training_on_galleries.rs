//! Training jobs that learn from the chips kept by a gallery.

use shipreid::wire::train_event::Event;
use shipreid::wire::{CreateGalleryRequest, EnrollRequest, JobState, TrainEvent, TrainRequest};
use tokio_stream::StreamExt;
use tonic::Code;

use crate::galleries::{GALLERY, create, enroll, refusal};
use crate::training::{TrainingFolder, Watcher};

#[tokio::test]
async fn a_job_learns_from_the_kept_chips_of_a_gallery_and_is_evaluated_on_some_of_its_vessels() {
    let place = TrainingFolder::new();
    let (server, client) = place.serve(&[]).await;
    create(&client, GALLERY).await;
    let unnamed = |sighting: &EnrollRequest| EnrollRequest {
        entry_id: "unnamed".into(),
        vessel_id: String::new(),
        ..sighting.clone()
    };
    let mut sightings = place.sightings();
    sightings.push(unnamed(&sightings[0]));
    let answers = enroll(&client, sightings).await;
    assert!(answers.len() == 33 && answers.iter().all(|answer| answer.error.is_none()));

    let request = TrainRequest {
        config_toml: place.config_without_root(),
        gallery: GALLERY.into(),
        ..TrainRequest::default()
    };
    let checked = TrainRequest { validate_only: true, ..request.clone() };
    assert!(client.ship_re_id().train(checked).await.unwrap().into_inner().next().await.unwrap().is_ok());
    let mut stream = client.ship_re_id().train(request).await.unwrap().into_inner();
    let mut watcher = Watcher::default();
    while let Some(event) = stream.next().await {
        watcher.events.push(event.unwrap());
    }
    server.terminate();
    let job = watcher.last_job();
    assert_eq!(job.state(), JobState::Finished, "{}", job.failure_message);
    assert!(!job.model.is_empty());
    let copies = place.folder().join("data/jobs").join(&job.job_id).join("chips");
    assert!(!copies.exists(), "they have done their service");
    let all = job.evaluations.iter().find(|result| result.protocol == "all").unwrap();
    // Two of eight vessels are held out, and one image of each is a query.
    assert_eq!((all.epoch, all.valid_queries), (5, 2));
    let copied =
        "learning from 32 chips of the gallery; left out: 1 entries without a vessel id, 0 without a chip";
    let is_copied = |event: &TrainEvent| matches!(&event.event, Some(Event::LogLine(line)) if line == copied);
    assert_eq!(watcher.events.iter().filter(|event| is_copied(event)).count(), 1);
}

#[tokio::test]
async fn a_job_for_a_gallery_that_cannot_be_learned_from_is_refused_also_where_it_is_only_checked() {
    let place = TrainingFolder::new();
    let (server, client) = place.serve(&[]).await;
    create(&client, "empty").await;
    let name = "chipless".to_owned();
    let chipless = CreateGalleryRequest { name, keep_chips: Some(false), ..CreateGalleryRequest::default() };
    client.galleries().create_gallery(chipless).await.unwrap();
    for validate_only in [false, true] {
        for (gallery, code, reason) in [
            ("Harbour", Code::InvalidArgument, "GALLERY_NAME_INVALID"),
            ("nowhere", Code::NotFound, "GALLERY_NOT_FOUND"),
            ("chipless", Code::FailedPrecondition, "GALLERY_WITHOUT_CHIPS"),
            ("empty", Code::InvalidArgument, "CONFIG_INVALID"),
            ("", Code::InvalidArgument, "CONFIG_INVALID"),
        ] {
            let config_toml = place.config_without_root();
            let request = TrainRequest {
                config_toml,
                gallery: gallery.into(),
                validate_only,
                ..TrainRequest::default()
            };
            let refused = refusal(client.ship_re_id().train(request).await);
            assert_eq!(refused, (code, reason.to_owned()), "{gallery}");
        }
    }
    server.terminate();
}
