//! Lifetime and number of connections, and limits on what a peer may do on one.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::galleries::data_in;
use crate::server::{counted, start_alone};

pub type Body = BoxBody<Bytes, Infallible>;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// A HEADERS frame of 100 bytes on stream 1, of which only four are present.
const HALF_OF_THE_HEADERS: &[u8] = &[0, 0, 100, 1, 0, 0, 0, 0, 1, 0x83, 0x87, 0x84, 0x41];
/// An empty message of gRPC.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

/// One connection, until it ends.
pub async fn connect(address: std::net::SocketAddr) -> (SendRequest<Body>, JoinHandle<hyper::Result<()>>) {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn health() -> Request<Body> {
    call("/grpc.health.v1.Health/Check", Full::new(Bytes::from_static(EMPTY_MESSAGE)).boxed())
}

pub fn call(path: &str, body: Body) -> Request<Body> {
    let request = Request::post(format!("http://server{path}")).header("content-type", "application/grpc");
    request.header("te", "trailers").body(body).unwrap()
}

/// A call whose messages are sent later.
pub fn open_stream() -> (mpsc::UnboundedSender<Bytes>, Request<Body>) {
    open_stream_of("/shipreid.v1.ShipReId/EmbedStream")
}

/// The same with another method.
pub fn open_stream_of(path: &str) -> (mpsc::UnboundedSender<Bytes>, Request<Body>) {
    let (messages, body) = mpsc::unbounded_channel();
    let body = UnboundedReceiverStream::new(body).map(|message| Ok(Frame::data(message)));
    (messages, call(path, StreamBody::new(body).boxed()))
}

#[tokio::test]
async fn a_connection_watches_health_a_few_times_and_is_answered_all_the_same() {
    let server = start_alone(&[]).await;
    let (mut sender, connection) = connect(server.address).await;
    let mut watch = async || {
        let call = call("/grpc.health.v1.Health/Watch", Full::new(Bytes::from_static(EMPTY_MESSAGE)).boxed());
        let response = sender.send_request(call).await.unwrap();
        if response.headers().contains_key("grpc-status") { Err(response) } else { Ok(response) }
    };
    let mut held = Vec::new();
    let refused = loop {
        match watch().await {
            Ok(watching) => held.push(watching),
            Err(refused) => break refused,
        }
    };
    assert_eq!((held.len(), &refused.headers()["grpc-status"]), (4, &"8".parse().unwrap()));
    held.pop();
    while watch().await.is_err() {}
    answered(sender.send_request(health()).await.unwrap()).await;
    drop((held, sender));
    connection.abort();
    server.stop().await;
}

/// Waits until a call is answered completely.
async fn answered(response: http::Response<Incoming>) {
    let answer = response.into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_peer_that_says_nothing_or_half_of_it_is_sent_away() {
    let server = start_alone(&["limits.header_seconds_max=0.1"]).await;
    let before = counted("shipreid_connections_ended_total{reason=\"NO_CALL\"}");
    let silent = [PREFACE, EMPTY_SETTINGS].concat();
    let half = [&silent, HALF_OF_THE_HEADERS].concat();
    let said: [&[u8]; 4] = [b"", &PREFACE[..10], &silent, &half];
    let ends = said.map(async |said| {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        // Answers may arrive before the connection ends.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    join_all(ends).await;
    assert!(counted("shipreid_connections_ended_total{reason=\"NO_CALL\"}") >= before + 4);
    server.stop().await;
}

#[tokio::test]
async fn a_connection_without_calls_ends_in_order() {
    let server = start_alone(&["limits.idle_seconds_max=0.1"]).await;
    let (mut sender, connection) = connect(server.address).await;
    answered(sender.send_request(health()).await.unwrap()).await;
    connection.await.unwrap().expect("a GOAWAY without an error");
    server.stop().await;
}

#[tokio::test]
async fn a_connection_of_age_takes_no_further_calls_and_finishes_those_it_has() {
    let server = start_alone(&["limits.connection_seconds_max=0.1"]).await;
    let (mut sender, connection) = connect(server.address).await;
    let (messages, request) = open_stream();
    let stream = sender.send_request(request).await.unwrap();
    while let Ok(response) = sender.send_request(health()).await {
        answered(response).await;
    }
    drop(messages);
    answered(stream).await;
    connection.await.unwrap().expect("a GOAWAY without an error");
    server.stop().await;
}

#[tokio::test]
async fn calls_that_outlast_the_grace_of_a_connection_of_age_are_cut_off() {
    let limits = ["limits.connection_seconds_max=0.1", "limits.connection_grace_seconds=0.1"];
    let server = start_alone(&limits).await;
    let (mut sender, connection) = connect(server.address).await;
    let (_messages, request) = open_stream();
    let stream = sender.send_request(request).await.unwrap();
    stream.into_body().collect().await.expect_err("cut off");
    let _ = connection.await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_connection_too_many_takes_the_place_of_an_idle_one_and_never_of_a_busy_one() {
    let server = start_alone(&["limits.connections_max=1"]).await;
    let (mut sender, busy) = connect(server.address).await;
    let (messages, request) = open_stream();
    let stream = sender.send_request(request).await.unwrap();
    let mut other = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(other.read(&mut [0]).await.unwrap(), 0, "it is closed at once");
    drop(messages);
    answered(stream).await;
    // The busy connection becomes idle as soon as the server has written its answer.
    loop {
        let (mut sender, _connection) = connect(server.address).await;
        if let Ok(response) = sender.send_request(health()).await {
            answered(response).await;
            break;
        }
    }
    busy.await.unwrap().expect("a GOAWAY without an error");
    server.stop().await;
}

#[tokio::test]
async fn a_storm_of_cancelled_calls_ends_its_own_connection_alone() {
    let server = start_alone(&["limits.pending_resets_max=4"]).await;
    let (mut sender, connection) = connect(server.address).await;
    answered(sender.send_request(health()).await.unwrap()).await;
    // Started and dropped before the server runs: this test and the server share a thread.
    let mut storm = 0;
    while !connection.is_finished() {
        let begun: Vec<_> = (0..64).map(|_| sender.send_request(health())).collect();
        tokio::task::yield_now().await;
        drop(begun);
        tokio::task::yield_now().await;
        storm += 1;
        assert!(storm < 10_000, "the storm is endured");
    }
    connection.await.unwrap().expect_err("an attack is told to calm down");
    let (mut sender, _connection) = connect(server.address).await;
    answered(sender.send_request(health()).await.unwrap()).await;
    server.stop().await;
}

#[tokio::test]
async fn balancers_may_ask_for_the_status_pages_over_http_2() {
    let server = start_alone(&[]).await;
    let (mut sender, _connection) = connect(server.metrics_address).await;
    let request = Request::get("http://server/healthz").body(Full::new(Bytes::new()).boxed()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
    server.stop().await;
}

/// Kind and payload of the next HTTP/2 frame.
async fn frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await.unwrap();
    (head[3], payload)
}

#[tokio::test]
async fn a_peer_is_told_the_limits_of_its_connection() {
    let limits = [
        "limits.streams_per_connection_max=7",
        "limits.stream_window_bytes=70000",
        "limits.connection_window_bytes=300000",
        "limits.header_bytes_max=2000",
    ];
    let server = start_alone(&limits).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[PREFACE, EMPTY_SETTINGS].concat()).await.unwrap();
    let (kind, settings) = frame(&mut stream).await;
    assert_eq!(kind, 4, "the first frame is SETTINGS");
    let told = |id: u8| {
        let found = settings.chunks_exact(6).find(|setting| setting[..2] == [0, id]).unwrap();
        u32::from_be_bytes(found[2..].try_into().unwrap())
    };
    const STREAMS: u8 = 3;
    const WINDOW: u8 = 4;
    const HEADERS: u8 = 6;
    assert_eq!((told(STREAMS), told(WINDOW), told(HEADERS)), (7, 70_000, 2000));
    const WINDOW_UPDATE: u8 = 8;
    let increment = loop {
        if let (WINDOW_UPDATE, increment) = frame(&mut stream).await {
            break u32::from_be_bytes(increment.try_into().unwrap());
        }
    };
    assert_eq!(increment, 300_000 - 65_535, "beyond what every connection begins with");
    server.stop().await;
}

#[tokio::test]
async fn a_caller_that_compresses_is_told_what_the_server_reads() {
    let server = start_alone(&[]).await;
    let (mut sender, _connection) = connect(server.address).await;
    for encoding in ["gzip", "zstd", "br"] {
        let mut compressed =
            call("/shipreid.v1.ShipReId/Embed", Full::new(Bytes::from_static(EMPTY_MESSAGE)).boxed());
        compressed.headers_mut().insert("grpc-encoding", encoding.parse().unwrap());
        let refused = sender.send_request(compressed).await.unwrap();
        assert_eq!(refused.headers()["grpc-status"], "12", "{encoding}");
        assert_eq!(refused.headers()["grpc-accept-encoding"], "identity", "{encoding}");
        assert!(refused.headers().contains_key("grpc-status-details-bin"), "{encoding}");
    }
    server.stop().await;
}

#[tokio::test]
async fn headers_beyond_their_limit_are_refused_and_the_connection_goes_on() {
    let server = start_alone(&["limits.header_bytes_max=2000"]).await;
    let (mut sender, _connection) = connect(server.address).await;
    let mut large = health();
    large.headers_mut().insert("x-large", "x".repeat(3000).parse().unwrap());
    let refused = sender.send_request(large).await;
    let status = refused.map(|response| response.status());
    assert!(
        status.as_ref().map_or(true, |status| *status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        "{status:?}"
    );
    answered(sender.send_request(health()).await.unwrap()).await;
    server.stop().await;
}

/// Concurrent streams, and repetitions: together more than the 1,024 stream errors that h2
/// tolerates on one connection.
const AT_ONCE: usize = 100;
const TIMES: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_outlasts_streams_that_are_refused_before_they_have_ended() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_alone(&[&data_in(&folder)]).await;
    let (sender, _connection) = connect(server.address).await;
    // Refused for its first message, which names no gallery, and before any further message is read.
    for (method, status) in [("ImportGallery", "3"), ("Unknown", "12")] {
        for _ in 0..TIMES {
            let calls = (0..AT_ONCE).map(|_| {
                let mut sender = sender.clone();
                async move {
                    let (messages, request) = open_stream_of(&format!("/shipreid.v1.Galleries/{method}"));
                    messages.send(Bytes::from_static(EMPTY_MESSAGE)).unwrap();
                    let refused = sender.send_request(request).await.unwrap();
                    assert_eq!(refused.headers()["grpc-status"], status);
                    // The sender may or may not have received the refusal yet.
                    let _ = messages.send(Bytes::from_static(EMPTY_MESSAGE));
                }
            });
            join_all(calls).await;
        }
    }
    let mut sender = sender;
    answered(sender.send_request(health()).await.unwrap()).await;
    server.stop().await;
}
