//! What the service refuses, with which code and details, and that it continues to serve.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shipreid::chip::Modality;
use shipreid::client::{Client, ClientError, chip};
use shipreid::embedding::Embedding;
use shipreid::encoder::{Batch, Encoder, EncoderFactory, ForwardError, Health};
use shipreid::wire::EmbedRequest;
use tonic::{Code, Status};

use crate::server::{details, fixture, start, start_with};

fn request(chips: usize) -> EmbedRequest {
    let chip = chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical);
    EmbedRequest { chips: vec![chip; chips], ..EmbedRequest::default() }
}

async fn refused(client: &Client, request: EmbedRequest, timeout: Option<Duration>) -> Box<Status> {
    match client.embed(request, timeout).await {
        Err(ClientError::Refused(status)) => status,
        other => panic!("a refusal, not {other:?}"),
    }
}

#[tokio::test]
async fn requests_at_fault_name_the_field_and_the_limit() {
    let (server, client) = start(&["limits.chips_per_request_max=3"]).await;
    let unknown = EmbedRequest { model: "ab".repeat(32), ..request(1) };
    let malformed = EmbedRequest { model: "latest".into(), ..request(1) };
    let priority = EmbedRequest { priority: 9, ..request(1) };
    for (request, code, reason) in [
        (request(0), Code::InvalidArgument, "NO_CHIPS"),
        (request(4), Code::InvalidArgument, "TOO_MANY_CHIPS"),
        (malformed, Code::InvalidArgument, "MODEL_MALFORMED"),
        (priority, Code::InvalidArgument, "PRIORITY_UNKNOWN"),
        (unknown, Code::NotFound, "MODEL_NOT_FOUND"),
    ] {
        let status = refused(&client, request, None).await;
        let (found, details) = details(&status);
        assert_eq!((status.code(), found.as_str()), (code, reason));
        assert_eq!(details.bad_request().is_some(), code == Code::InvalidArgument);
    }
    client.embed(request(1), None).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn an_oversized_message_is_refused_with_the_limit() {
    let (server, client) = start(&["limits.message_bytes_max=4096"]).await;
    let mut large = request(1);
    large.chips[0].image = vec![0; 5000].into();
    let status = refused(&client, large, None).await;
    let (reason, details) = details(&status);
    assert_eq!((status.code(), reason.as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    assert_eq!(details.error_info().unwrap().metadata["limit"], "4096");
    server.stop().await;
}

/// An encoder that reports when a batch has entered it, and waits for the batch's outcome.
struct Scripted {
    entered: mpsc::Sender<usize>,
    outcomes: Arc<Mutex<mpsc::Receiver<Result<(), ForwardError>>>>,
    warming: usize,
}

impl Encoder for Scripted {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Embedding>, ForwardError> {
        if self.warming > 0 {
            self.warming -= 1;
        } else {
            self.entered.send(batch.chips.len()).unwrap();
            self.outcomes.lock().unwrap().recv().unwrap()?;
        }
        Ok(batch.chips.iter().map(|_| Embedding::from_feature(vec![1.0, 2.0]).unwrap()).collect())
    }
}

pub struct Script {
    entered: mpsc::Receiver<usize>,
    pub outcomes: mpsc::Sender<Result<(), ForwardError>>,
}

/// `buckets` is the number of warm-up batches.
pub fn scripted(buckets: usize) -> (EncoderFactory, Script) {
    let (entered_in, entered) = mpsc::channel();
    let (outcomes, outcomes_out) = mpsc::channel();
    let outcomes_out = Arc::new(Mutex::new(outcomes_out));
    let factory = move |_| {
        let outcomes = Arc::clone(&outcomes_out);
        Ok(Box::new(Scripted { entered: entered_in.clone(), outcomes, warming: buckets }) as Box<dyn Encoder>)
    };
    (Arc::new(factory), Script { entered, outcomes })
}

impl Script {
    /// Waits, off the runtime, until a batch is on the device, and returns its size.
    pub async fn entered(self) -> (Self, usize) {
        tokio::task::spawn_blocking(move || {
            let size = self.entered.recv().unwrap();
            (self, size)
        })
        .await
        .unwrap()
    }
}

#[tokio::test]
async fn a_full_server_refuses_chips_and_calls_at_once() {
    let (factory, script) = scripted(1);
    let settings = [
        "encoder.batch_max=1",
        "encoder.queue_items_max=2",
        "limits.chips_per_request_max=2",
        "limits.calls_max=2",
    ];
    let (server, client) = start_with(&settings, factory).await;
    let busy = tokio::spawn({
        let client = client.clone();
        async move { client.embed(request(2), None).await }
    });
    let (script, _) = script.entered().await;
    let status = refused(&client, request(1), None).await;
    let (reason, found) = details(&status);
    assert_eq!((status.code(), reason.as_str()), (Code::ResourceExhausted, "QUEUE_FULL"));
    assert!(found.retry_info().is_some());
    script.outcomes.send(Ok(())).unwrap();
    let (script, _) = script.entered().await;
    script.outcomes.send(Ok(())).unwrap();
    assert_eq!(busy.await.unwrap().unwrap().results.len(), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_deadline_is_answered_while_the_device_is_busy() {
    let (factory, script) = scripted(1);
    let (server, client) = start_with(&["encoder.batch_max=1"], factory).await;
    let busy = tokio::spawn({
        let client = client.clone();
        async move { client.embed(request(1), None).await }
    });
    let (script, _) = script.entered().await;
    let status = refused(&client, request(1), Some(Duration::from_millis(20))).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    script.outcomes.send(Ok(())).unwrap();
    busy.await.unwrap().unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_call_without_a_deadline_has_the_servers() {
    let (factory, script) = scripted(1);
    let settings = ["encoder.batch_max=1", "limits.deadline_seconds_default=0.02"];
    let (server, client) = start_with(&settings, factory).await;
    let status = refused(&client, request(1), None).await;
    assert_eq!((status.code(), details(&status).0.as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    script.outcomes.send(Ok(())).unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_caller_who_leaves_frees_his_places_while_the_device_is_still_at_his_chip() {
    let (factory, script) = scripted(1);
    let settings = [
        "encoder.batch_max=1",
        "encoder.queue_items_max=1",
        "limits.chips_per_request_max=1",
        "limits.calls_max=1",
    ];
    let (server, client) = start_with(&settings, factory).await;
    let leaving = tokio::spawn({
        let client = client.clone();
        async move { client.embed(request(1), None).await }
    });
    let (script, _) = script.entered().await;
    assert_eq!(refused(&client, request(1), None).await.code(), Code::ResourceExhausted);
    leaving.abort();
    // The call is admitted as soon as the server has noticed the cancellation, and waits for the device.
    loop {
        let status = refused(&client, request(1), Some(Duration::from_millis(20))).await;
        if status.code() == Code::DeadlineExceeded {
            break;
        }
        assert_eq!(status.code(), Code::ResourceExhausted);
    }
    script.outcomes.send(Ok(())).unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_failed_batch_fails_alone_and_a_lost_device_ends_service() {
    let (factory, script) = scripted(1);
    let (server, client) = start_with(&["encoder.batch_max=1"], factory).await;
    script.outcomes.send(Err(ForwardError::Failed("scripted".into()))).unwrap();
    let response = client.embed(request(1), None).await.unwrap();
    assert!(format!("{:?}", response.results[0].outcome).contains("FORWARD_FAILED"));
    script.outcomes.send(Ok(())).unwrap();
    client.embed(request(1), None).await.unwrap();
    script.outcomes.send(Err(ForwardError::DeviceLost("scripted".into()))).unwrap();
    let status = refused(&client, request(1), None).await;
    assert_eq!((status.code(), details(&status).0.as_str()), (Code::Unavailable, "DEVICE_LOST"));
    let status = refused(&client, request(1), None).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(server.health(), Health::DeviceLost);
    server.stop().await;
}
