//! Servers that do a part of what a server can do.

use shipreid::chip::Modality;
use shipreid::client::{Client, chip};
use shipreid::wire::{
    EmbedRequest, GetTrainingJobRequest, ListGalleriesRequest, ListModelsRequest, MatchRequest, TrainRequest,
};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::galleries::data_in;
use crate::server::{details, fixture, start};

/// What each kind of call is answered: "served", if it is refused for its content alone, or the role that is missing.
async fn answers(client: &Client) -> [String; 5] {
    let said = |status: Option<Status>| {
        let Some(status) = status else { return "served".to_owned() };
        let (reason, details) = details(&status);
        if reason != "ROLE_NOT_SERVED" {
            return "served".to_owned();
        }
        assert_eq!(status.code(), Code::FailedPrecondition);
        details.error_info().expect("it has a reason").metadata["role"].clone()
    };
    let chips = vec![chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical)];
    let embed = client.ship_re_id().embed(EmbedRequest { chips, ..EmbedRequest::default() }).await;
    let matched = client.ship_re_id().r#match(MatchRequest::default()).await;
    let galleries = client.galleries().list_galleries(ListGalleriesRequest::default()).await;
    let train = client.ship_re_id().train(TrainRequest::default()).await;
    let job = client.training_jobs().get_training_job(GetTrainingJobRequest { job_id: "job-1".into() }).await;
    client.models().list_models(ListModelsRequest::default()).await.unwrap();
    [said(embed.err()), said(matched.err()), said(galleries.err()), said(train.err()), said(job.err())]
}

#[tokio::test]
async fn a_server_refuses_what_its_roles_leave_to_others() {
    for (roles, expected) in [
        ("encode,match,train", ["served"; 5]),
        ("encode", ["served", "match", "match", "train", "train"]),
        ("match", ["encode", "served", "served", "train", "train"]),
        ("train", ["encode", "match", "match", "served", "served"]),
    ] {
        let folder = TempDir::new().unwrap();
        let (server, client) = start(&[&format!("server.roles={roles}"), &data_in(&folder)]).await;
        assert_eq!(answers(&client).await, expected, "{roles}");
        let has_galleries = folder.path().join("galleries").exists();
        assert_eq!(has_galleries, roles != "encode", "{roles}");
        server.stop().await;
    }
}
