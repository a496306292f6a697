//! A misbehaving client next to a well-behaved one, which sends one call after another and receives an answer
//! to each. Where a setting disables a defence, the same attack is shown to succeed without it.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{join_all, select_all};
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use shipreid::app::{Drained, Running};
use shipreid::chip::Modality;
use shipreid::client::{Client, ClientError, chip};
use shipreid::keys::Role;
use shipreid::wire::{EmbedRequest, EmbedStreamRequest, EmbedStreamResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status};

use crate::connections::{call, connect, open_stream, open_stream_of};
use crate::galleries::data_in;
use crate::identity::{Keys, caller};
use crate::server::{counted, details, fixture, page, start, start_alone};

/// Calls of the well-behaved client during an attack.
const CALLS: usize = 20;
/// The length prefix of a message without the message.
const ANNOUNCED: &[u8] = &[0, 0, 0x10, 0, 0];

/// The results of the well-behaved client's sequential calls.
pub async fn good_calls(client: &Client) -> Vec<Result<(), ClientError>> {
    let mut outcomes = Vec::new();
    for _ in 0..CALLS {
        let chip = chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical);
        let request = EmbedRequest { chips: vec![chip], ..EmbedRequest::default() };
        outcomes.push(client.embed(request, None).await.map(drop));
    }
    outcomes
}

pub fn all_answered(outcomes: Vec<Result<(), ClientError>>) {
    let failed: Vec<ClientError> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} of {CALLS}: {}", failed.len(), failed[0]);
}

/// Streams that were opened and are held, each sharing a connection with others.
struct HeldStreams {
    bodies: Vec<mpsc::UnboundedSender<Bytes>>,
    answers: Vec<http::Response<Incoming>>,
    connections: Vec<JoinHandle<hyper::Result<()>>>,
}

/// Opens `streams` calls on each of `connections`, sends `first` on each, and sends nothing more.
async fn hold(address: SocketAddr, connections: usize, streams: usize, first: &[u8]) -> HeldStreams {
    let mut held = HeldStreams { bodies: Vec::new(), answers: Vec::new(), connections: Vec::new() };
    for _ in 0..connections {
        let (mut sender, connection) = connect(address).await;
        held.connections.push(connection);
        for _ in 0..streams {
            let (body, request) = open_stream();
            body.send(Bytes::copy_from_slice(first)).unwrap();
            held.bodies.push(body);
            held.answers.push(sender.send_request(request).await.unwrap());
        }
    }
    held
}

/// The status of an answer, in headers or trailers.
async fn status(answer: http::Response<Incoming>) -> Status {
    let headers: HeaderMap = answer.headers().clone();
    let trailers = answer.into_body().collect().await.expect("an end in order").trailers().cloned();
    Status::from_header_map(&trailers.unwrap_or(headers)).expect("a status")
}

#[tokio::test]
async fn lengths_that_are_announced_and_never_sent_take_nothing_from_others() {
    let small = ["limits.message_bytes_max=1048576", "limits.receiving_bytes_max=2097152"];
    let (server, client) = start(&small).await;
    let _held = hold(server.address, 4, 8, &[ANNOUNCED, &[1]].concat()).await;
    all_answered(good_calls(&client).await);
    server.stop().await;
}

#[tokio::test]
async fn messages_that_are_never_finished_leave_room_for_others() {
    let small = ["limits.message_bytes_max=1048576", "limits.receiving_bytes_max=8388608"];
    let unbounded = [
        "limits.receiving_bytes_per_tenant_max=8388608",
        "limits.receiving_bytes_per_connection_max=8388608",
    ];
    let most = [ANNOUNCED, &vec![1; (1 << 20) - 1]].concat();
    for connections in [1, 4] {
        let (server, client) = start(&small).await;
        let _held = hold(server.address, connections, 9, &most).await;
        all_answered(good_calls(&client).await);
        server.stop().await;
    }

    let (server, client) = start(&[small, unbounded].concat()).await;
    let _held = hold(server.address, 1, 9, &most).await;
    // The bytes take some time to arrive; after that, all calls are refused.
    while good_calls(&client).await.iter().any(Result::is_ok) {}
    server.stop().await;
}

/// The well-behaved client's results while silent streams occupy every call slot.
async fn beside_silent_streams(setting: &str) -> (Vec<Result<(), ClientError>>, HeldStreams, Running) {
    let (server, client) = start(&["limits.calls_max=16", setting]).await;
    let held = hold(server.address, 1, 16, &[]).await;
    (good_calls(&client).await, held, server)
}

#[tokio::test]
async fn silent_streams_give_their_places_to_calls() {
    let (outcomes, held, server) = beside_silent_streams("limits.stream_yield_seconds=0").await;
    all_answered(outcomes);
    let first = held.answers.into_iter().next().unwrap();
    let displaced = status(first).await;
    let (reason, found) = details(&displaced);
    assert_eq!((displaced.code(), reason.as_str()), (Code::Unavailable, "STREAM_DISPLACED"));
    assert!(found.retry_info().is_some());
    drop((held.bodies, held.connections));
    server.stop().await;

    let (outcomes, held, server) = beside_silent_streams("limits.stream_yield_seconds=604800").await;
    let refused = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert_eq!(refused, CALLS, "without the defence, nobody is let in");
    drop(held);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_that_stays_silent_hears_that_it_is_over() {
    let server = start_alone(&["limits.stream_idle_seconds_max=0.1"]).await;
    let held = hold(server.address, 1, 1, &[]).await;
    let ended = status(held.answers.into_iter().next().unwrap()).await;
    let (reason, found) = details(&ended);
    assert_eq!((ended.code(), reason.as_str()), (Code::Unavailable, "STREAM_IDLE"));
    assert!(found.retry_info().is_some());
    server.stop().await;
}

#[tokio::test]
async fn connections_that_say_nothing_give_their_places_to_callers() {
    let server = start_alone(&["limits.connections_max=8"]).await;
    let mut silent = Vec::new();
    for _ in 0..CALLS {
        for _ in 0..8 {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        let client = Client::connect(&format!("http://{}", server.address)).await.unwrap();
        let chip = chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical);
        client.embed(EmbedRequest { chips: vec![chip], ..EmbedRequest::default() }, None).await.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn half_requests_to_the_status_pages_end_and_keep_nobody_out() {
    let server = start_alone(&[]).await;
    let half = async || {
        let mut stream = TcpStream::connect(server.metrics_address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: ").await.unwrap();
        stream
    };
    let halves = join_all((0..300).map(|_| half())).await;
    for _ in 0..CALLS {
        assert!(page(server.metrics_address, "/healthz").await.starts_with("HTTP/1.1 200"));
    }
    let ends = halves.into_iter().take(200).map(async |mut stream| {
        // An answer may arrive before the connection ends.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    join_all(ends).await;
    server.stop().await;
}

/// A key of a misbehaving tenant, and one of a well-behaved tenant.
fn two_tenants(folder: &tempfile::TempDir) -> (Keys, [String; 2]) {
    let mut keys = Keys::new(folder.path());
    let tokens = ["bad", "good"].map(|tenant| keys.add(tenant, tenant, &[Role::Embed]));
    (keys, tokens)
}

/// Streams that a client has open.
type Streams = Vec<(mpsc::UnboundedSender<EmbedStreamRequest>, tonic::Streaming<EmbedStreamResponse>)>;

/// Opens streams until the server refuses.
async fn take_all(client: &Client) -> Streams {
    let mut streams = Vec::new();
    loop {
        let (items, requests) = mpsc::unbounded_channel();
        match client.ship_re_id().embed_stream(UnboundedReceiverStream::new(requests)).await {
            Ok(answers) => streams.push((items, answers.into_inner())),
            Err(refused) => {
                assert_eq!(details(&refused).0, "TOO_MANY_CALLS");
                return streams;
            }
        }
    }
}

#[tokio::test]
async fn a_tenant_that_takes_every_place_it_gets_leaves_some_to_others() {
    let folder = tempfile::TempDir::new().unwrap();
    let (keys, [bad, good]) = two_tenants(&folder);
    let keys = keys.setting();
    // Streams that are never idle: no other defence applies.
    let settings = [&*keys, "limits.calls_max=16", "limits.stream_yield_seconds=604800"];
    let server = start_alone(&settings).await;
    let (bad_client, good_client) = (caller(&server, Some(&bad)).await, caller(&server, Some(&good)).await);
    let taken = take_all(&bad_client).await;
    assert_eq!(taken.len(), 12);
    all_answered(good_calls(&good_client).await);
    drop(taken);
    server.stop().await;

    let server = start_alone(&[&settings[..], &["limits.calls_per_tenant_max=16"]].concat()).await;
    let (bad_client, good_client) = (caller(&server, Some(&bad)).await, caller(&server, Some(&good)).await);
    let taken = take_all(&bad_client).await;
    assert_eq!(taken.len(), 16);
    let outcomes = good_calls(&good_client).await;
    assert!(outcomes.iter().all(Result::is_err), "without the defence, nobody is let in");
    drop(taken);
    server.stop().await;
}

#[tokio::test]
async fn whoever_guesses_keys_is_no_longer_answered_and_others_are() {
    let folder = tempfile::TempDir::new().unwrap();
    let (keys, [_, good]) = two_tenants(&folder);
    let keys = keys.setting();
    for (setting, ends_with) in [
        ("auth.rejections_per_second_max=0.001", "KEYS_REJECTED"),
        ("auth.rejections_per_second_max=0", "KEY_INVALID"),
    ] {
        let server = start_alone(&[&keys, setting]).await;
        let guesser = caller(&server, Some("srid_guessed")).await;
        let mut reasons = Vec::new();
        for _ in 0..120 {
            let refused = guesser.ship_re_id().embed(EmbedRequest::default()).await.unwrap_err();
            reasons.push(details(&refused).0);
        }
        assert_eq!((reasons[0].as_str(), reasons[119].as_str()), ("KEY_INVALID", ends_with));
        all_answered(good_calls(&caller(&server, Some(&good)).await).await);
        server.stop().await;
    }
}

#[tokio::test]
async fn a_proxy_carries_more_than_one_caller_could_send() {
    let bounds = [
        "limits.message_bytes_max=1048576",
        "limits.receiving_bytes_max=8388608",
        "limits.receiving_bytes_per_connection_max=1048576",
    ];
    // Two concurrent messages that are invalid once they are complete.
    let most = [ANNOUNCED, &vec![0xff; (1 << 20) - 1]].concat();
    let server = start_alone(&bounds).await;
    let held = hold(server.address, 1, 2, &most).await;
    let (first, ..) = select_all(held.answers.into_iter().map(|answer| status(answer).boxed())).await;
    assert_eq!(details(&first).0, "RECEIVING_TOO_MUCH");
    server.stop().await;

    let server = start_alone(&[&bounds[..], &["server.trusted_proxies=10.0.0.0/8,127.0.0.1"]].concat()).await;
    let held = hold(server.address, 1, 2, &most).await;
    held.bodies.iter().for_each(|body| body.send(Bytes::from_static(&[0xff])).unwrap());
    drop(held.bodies);
    for answer in held.answers {
        assert_eq!(details(&status(answer).await).0, "MESSAGE_MALFORMED");
    }
    server.stop().await;
}

#[tokio::test]
async fn everything_at_once_costs_the_good_neighbour_no_call() {
    let folder = tempfile::TempDir::new().unwrap();
    let (keys, [bad, good]) = two_tenants(&folder);
    let keys = keys.setting();
    let settings = [
        &*keys,
        "limits.calls_max=32",
        "limits.connections_max=32",
        "limits.message_bytes_max=1048576",
        "limits.receiving_bytes_max=8388608",
        "limits.stream_yield_seconds=0",
    ];
    let server = start_alone(&settings).await;
    let (address, pages) = (server.address, server.metrics_address);
    let good_client = caller(&server, Some(&good)).await;
    let bad_client = caller(&server, Some(&bad)).await;
    let wrong_client = caller(&server, Some(&bad.replace(|last: char| last.is_ascii_digit(), "x"))).await;
    let attacks = [
        tokio::spawn(async move {
            let mut silent = VecDeque::new();
            loop {
                silent.extend(TcpStream::connect(address).await);
                silent.extend(TcpStream::connect(pages).await);
                // Connections that the server has closed are no longer needed.
                silent.truncate(256);
                tokio::task::yield_now().await;
            }
        }),
        tokio::spawn(async move {
            loop {
                let (items, requests) = mpsc::unbounded_channel::<EmbedStreamRequest>();
                drop(bad_client.ship_re_id().embed_stream(UnboundedReceiverStream::new(requests)).await);
                // Every other stream is left open and leaked.
                std::mem::forget(items);
            }
        }),
        tokio::spawn(async move {
            loop {
                // Every call is answered, and every one is refused.
                wrong_client.ship_re_id().embed(EmbedRequest::default()).await.unwrap_err();
            }
        }),
        tokio::spawn(async move {
            loop {
                let half = [ANNOUNCED, &[1; 1000]].concat();
                let (Ok(stream), body) = (TcpStream::connect(address).await, half) else { continue };
                let io = hyper_util::rt::TokioIo::new(stream);
                let executor = hyper_util::rt::TokioExecutor::new();
                let Ok((mut sender, connection)) = hyper::client::conn::http2::handshake(executor, io).await
                else {
                    continue;
                };
                let connection = tokio::spawn(connection);
                let body = Full::new(Bytes::from(body)).boxed();
                // The result does not matter: the connection is aborted immediately.
                let _ = sender.send_request(call("/shipreid.v1.ShipReId/Embed", body)).await;
                connection.abort();
            }
        }),
    ];
    for _ in 0..10 {
        all_answered(good_calls(&good_client).await);
        assert!(page(pages, "/healthz").await.starts_with("HTTP/1.1 200"));
    }
    for attack in attacks {
        assert!(!attack.is_finished(), "it went on to the end");
        attack.abort();
    }
    server.stop().await;
}

/// How often a method has ended with a code.
fn ended(method: &str, code: &str) -> u64 {
    let (service, method) = method.split_once('/').unwrap();
    counted(&format!(
        "grpc_server_handled_total{{grpc_service=\"{service}\",grpc_method=\"{method}\",grpc_code=\"{code}\"}}"
    ))
}

#[tokio::test]
async fn garbage_is_the_callers_fault() {
    // No other test calls these incorrectly.
    const UNARY: &str = "shipreid.v1.Galleries/MergeVessels";
    const STREAM: &str = "shipreid.v1.Galleries/Enroll";
    let server = start_alone(&[]).await;
    let (mut sender, _connection) = connect(server.address).await;
    let garbage: [&[u8]; 6] = [
        b"",
        &[0, 0],
        &[0, 0, 0, 0, 9, 1],
        &[1, 0, 0, 0, 1, 1],
        &[9, 0, 0, 0, 1, 1],
        &[0, 0, 0, 0, 3, 0xff, 0xff, 0xff],
    ];
    for method in [UNARY, STREAM] {
        let before = ["Internal", "Unknown"].map(|code| ended(method, code));
        for bytes in garbage {
            let body = Full::new(Bytes::from_static(bytes)).boxed();
            let answer = sender.send_request(call(&format!("/{method}"), body)).await.unwrap();
            let status = status(answer).await;
            if (method, bytes.is_empty()) != (STREAM, true) {
                let reason = details(&status).0;
                let expected = (Code::InvalidArgument, "MESSAGE_MALFORMED");
                assert_eq!((status.code(), reason.as_str()), expected, "{method} {bytes:?}");
            }
        }
        assert_eq!(["Internal", "Unknown"].map(|code| ended(method, code)), before, "{method}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_caller_that_leaves_in_the_middle_counts_as_cancelled() {
    const METHOD: &str = "shipreid.v1.Galleries/ImportGallery";
    let before = ["Internal", "Unknown", "Canceled"].map(|code| ended(METHOD, code));
    let server = start_alone(&[]).await;
    for _ in 0..CALLS {
        let (mut sender, connection) = connect(server.address).await;
        let (body, request) = open_stream_of(&format!("/{METHOD}"));
        body.send(Bytes::copy_from_slice(&[ANNOUNCED, &[1]].concat())).unwrap();
        let so_far = begun(METHOD);
        let answer = tokio::spawn(sender.send_request(request));
        while begun(METHOD) == so_far {
            tokio::task::yield_now().await;
        }
        // Neither side closes the connection properly.
        connection.abort();
        answer.abort();
    }
    while ended(METHOD, "Canceled") < before[2] + CALLS as u64 {
        assert_eq!(["Internal", "Unknown"].map(|code| ended(METHOD, code)), before[..2]);
        tokio::task::yield_now().await;
    }
    server.stop().await;
}

/// How many calls of a method have arrived.
fn begun(method: &str) -> u64 {
    let (service, method) = method.split_once('/').unwrap();
    counted(&format!("grpc_server_started_total{{grpc_service=\"{service}\",grpc_method=\"{method}\"}}"))
}

#[tokio::test]
async fn idle_streams_of_every_kind_do_not_keep_a_server_from_going_down() {
    let folder = tempfile::TempDir::new().unwrap();
    let server = start_alone(&[&data_in(&folder), "server.drain_seconds_max=20"]).await;
    let (mut sender, _connection) = connect(server.address).await;
    let (_import, request) = open_stream_of("/shipreid.v1.Galleries/ImportGallery");
    let import = tokio::spawn(sender.send_request(request));
    let (_reflection, request) = open_stream_of("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
    let reflection = sender.send_request(request).await.unwrap();
    assert_eq!(server.stop().await, Drained::InOrder);
    let import = status(import.await.unwrap().expect("an answer, not a cut")).await;
    assert_eq!((import.code(), details(&import).0.as_str()), (Code::Unavailable, "DRAINING"));
    status(reflection).await;
}

/// The program's log, with and without a reader.
#[cfg(feature = "torch")]
mod program {
    use super::*;
    use crate::program::{Server, imported};

    #[tokio::test]
    async fn a_log_that_nobody_reads_keeps_neither_calls_nor_signals_waiting() {
        let folder = tempfile::TempDir::new().unwrap();
        let data = data_in(&folder);
        let settings = [&*data, "telemetry.log_filter=trace"];
        let server = Server::start_unread(&imported(folder.path()), &settings);
        let client = Client::connect(&server.endpoint).await.unwrap();
        for _ in 0..10 {
            all_answered(good_calls(&client).await);
        }
        assert!(page(server.metrics, "/healthz").await.starts_with("HTTP/1.1 200"));
        drop(client);
        tokio::task::spawn_blocking(|| server.terminate()).await.unwrap();
    }
}
