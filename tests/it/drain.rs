//! Shutdown of a server: what its callers observe, and that it completes.

use shipreid::app::Drained;
use shipreid::chip::Modality;
use shipreid::client::{ClientError, chip};
use shipreid::encoder::Health;
use shipreid::wire::{EmbedRequest, EmbedStreamRequest, EnrollOutcome, Observation};
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::galleries::{GALLERY, create, data_in, ready, vector};
use crate::refusals::scripted;
use crate::server::{details, fixture, page, start, start_with};

fn request() -> EmbedRequest {
    let chip = chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical);
    EmbedRequest { chips: vec![chip], ..EmbedRequest::default() }
}

#[tokio::test]
async fn a_server_says_that_it_goes_down_before_it_refuses_calls() {
    let (server, client) = start(&["server.drain_notice_seconds=600"]).await;
    let (address, pages) = (server.address, server.metrics_address);
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let check = HealthCheckRequest { service: "shipreid.v1.ShipReId".into() };
    let mut watched = health.watch(check).await.unwrap().into_inner();
    assert_eq!(watched.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let check = HealthCheckRequest { service: "shipreid.v1.Sink".into() };
    let mut unknown = health.watch(check).await.unwrap().into_inner();
    assert_eq!(unknown.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    assert!(page(pages, "/readyz").await.starts_with("HTTP/1.1 200"));

    let draining = tokio::spawn(server.drain());
    assert_eq!(watched.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(page(pages, "/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(page(pages, "/healthz").await.starts_with("HTTP/1.1 200"));
    client.embed(request(), None).await.unwrap();

    // A stream that only watches is ended as soon as calls are refused, and not before.
    draining.abort();
    assert_eq!(watched.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert_eq!(unknown.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_stream_is_answered_for_what_is_in_flight_and_then_sent_away() {
    let (factory, script) = scripted(1);
    let (server, client) = start_with(&["encoder.batch_max=1"], factory).await;
    let (chips, requests) = tokio::sync::mpsc::channel(4);
    let item = EmbedStreamRequest {
        chip_id: "in flight".into(),
        chip: request().chips.pop(),
        ..EmbedStreamRequest::default()
    };
    chips.send(item).await.unwrap();
    let answers = client.ship_re_id().embed_stream(ReceiverStream::new(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    let (script, _) = script.entered().await;
    let stopping = tokio::spawn(server.stop());
    script.outcomes.send(Ok(())).unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().chip_id, "in flight");
    let status = answers.next().await.unwrap().unwrap_err();
    let (reason, found) = details(&status);
    assert_eq!((status.code(), reason.as_str()), (Code::Unavailable, "DRAINING"));
    assert!(found.retry_info().is_some());
    assert_eq!(stopping.await.unwrap(), Drained::InOrder);
}

#[tokio::test]
async fn an_enrolment_is_acknowledged_and_kept_before_its_stream_is_sent_away() {
    let folder = TempDir::new().unwrap();
    let data = data_in(&folder);
    let (server, client) = start(&[&data]).await;
    create(&client, GALLERY).await;
    let (items, requests) = tokio::sync::mpsc::channel(4);
    items.send(ready("a", "a", vector(0, 0.0), Observation::default())).await.unwrap();
    let mut answers = client.enroll(ReceiverStream::new(requests)).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().outcome(), EnrollOutcome::Created);
    let stopping = tokio::spawn(server.stop());
    let status = answers.next().await.unwrap().unwrap_err();
    assert_eq!((status.code(), details(&status).0.as_str()), (Code::Unavailable, "DRAINING"));
    assert_eq!(stopping.await.unwrap(), Drained::InOrder);

    let (server, client) = start(&[&data]).await;
    let again = ready("a", "a", vector(0, 0.0), Observation::default());
    let again = crate::galleries::enroll(&client, vec![again]).await;
    assert_eq!(again[0].outcome(), EnrollOutcome::Unchanged);
    server.stop().await;
}

#[tokio::test]
async fn a_device_that_hangs_does_not_keep_a_server_from_going_down() {
    let (factory, script) = scripted(1);
    let settings = ["encoder.batch_max=1", "server.drain_seconds_max=0.1"];
    let (server, client) = start_with(&settings, factory).await;
    let hanging = tokio::spawn({
        let client = client.clone();
        async move { client.embed(request(), None).await }
    });
    let (script, _) = script.entered().await;
    assert_eq!(server.stop().await, Drained::CutShort);
    script.outcomes.send(Ok(())).unwrap();
    // The call may even be answered, although the server is shutting down.
    let _ = hanging.await.unwrap();
}

#[tokio::test]
async fn a_server_whose_passes_fail_says_so_until_one_comes_through() {
    let (factory, script) = scripted(1);
    let settings = ["encoder.batch_max=1", "encoder.canary_seconds=1"];
    let (server, client) = start_with(&settings, factory).await;
    let failed = shipreid::encoder::ForwardError::Failed("scripted".into());
    script.outcomes.send(Err(failed)).unwrap();
    let (script, chips) = script.entered().await;
    assert_eq!(chips, 1, "a canary, since nobody has called");
    while server.health() != Health::Failing {
        tokio::task::yield_now().await;
    }
    assert!(page(server.metrics_address, "/readyz").await.starts_with("HTTP/1.1 503"));
    script.outcomes.send(Ok(())).unwrap();
    script.outcomes.send(Ok(())).unwrap();
    match client.embed(request(), None).await {
        Ok(answer) => assert_eq!(answer.results.len(), 1),
        Err(ClientError::Refused(status)) => panic!("{status}"),
        Err(other) => panic!("{other}"),
    }
    assert_eq!(server.health(), Health::Serving);
    server.stop().await;
}

/// The program itself.
#[cfg(feature = "torch")]
mod signals {
    use shipreid::client::Client;

    use super::*;
    use crate::program::{Server, imported};

    #[tokio::test]
    async fn a_second_signal_ends_the_program_at_once() {
        let folder = TempDir::new().unwrap();
        let data = data_in(&folder);
        let model = imported(folder.path());
        let server = Server::start(&model, &[&data, "server.drain_notice_seconds=600"]);
        let client = Client::connect(&server.endpoint).await.unwrap();
        server.signal(libc::SIGTERM);
        while page(server.metrics, "/readyz").await.starts_with("HTTP/1.1 200") {
            tokio::task::yield_now().await;
        }
        client.embed(request(), None).await.unwrap();
        server.signal(libc::SIGTERM);
        let ended = tokio::task::spawn_blocking(|| server.ended()).await.unwrap();
        assert_eq!(ended.code(), Some(3));
    }

    #[tokio::test]
    async fn a_signal_ends_the_program_in_order_however_long_a_call_would_go_on() {
        let folder = TempDir::new().unwrap();
        let data = data_in(&folder);
        let server = Server::start(&imported(folder.path()), &[&data]);
        let client = Client::connect(&server.endpoint).await.unwrap();
        let (_chips, requests) = tokio::sync::mpsc::channel::<EmbedStreamRequest>(4);
        let answers = client.ship_re_id().embed_stream(ReceiverStream::new(requests)).await;
        let mut answers = answers.unwrap().into_inner();
        server.signal(libc::SIGTERM);
        assert_eq!(answers.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
        let ended = tokio::task::spawn_blocking(|| server.ended()).await.unwrap();
        assert_eq!(ended.code(), Some(0));
    }
}
