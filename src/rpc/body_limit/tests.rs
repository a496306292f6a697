use std::task::Waker;

use futures_util::future::join;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic_types::StatusExt;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// In paused time; no bound is longer.
const END_MAX: Duration = Duration::from_secs(3600);

fn message(length: u32) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(length.to_be_bytes());
    bytes.extend(std::iter::repeat_n(7, length as usize));
    bytes
}

fn holder(connection: u64) -> Holder {
    Holder { tenant: "t".into(), connection: Some(connection) }
}

/// A server that is not shutting down, and the sender that makes it shut down.
fn drain() -> (watch::Sender<bool>, Drain) {
    let (stop, stopping) = watch::channel(false);
    (stop, Drain::new(stopping))
}

fn body_limit(message_max: usize, receiving_max: usize) -> BodyLimit {
    let limits = Limits {
        message_bytes_max: message_max,
        receiving_bytes_max: receiving_max,
        receiving_bytes_per_tenant_max: receiving_max,
        receiving_bytes_per_connection_max: receiving_max,
        message_seconds_max: 60.0,
        stream_idle_seconds_max: 600.0,
        ..Limits::default()
    };
    let (stop, drain) = drain();
    // Without a sender, the server would count as shutting down.
    std::mem::forget(stop);
    BodyLimit::new(&limits, drain)
}

fn body_of(body_limit: &BodyLimit, connection: u64) -> WeighedBody {
    WeighedBody::new(Body::empty(), body_limit.clone(), holder(connection), Activity::new())
}

/// A call whose bytes are sent by a test.
struct Call {
    pieces: Option<mpsc::Sender<Result<Vec<u8>, axum::Error>>>,
    body: WeighedBody,
    activity: Activity,
    begun: Instant,
}

impl Call {
    fn new(body_limit: &BodyLimit) -> Self {
        let (pieces, body) = mpsc::channel(8);
        let (body, activity) = (Body::from_stream(ReceiverStream::new(body)), Activity::new());
        let body = WeighedBody::new(body, body_limit.clone(), holder(1), activity.clone());
        Self { pieces: Some(pieces), body, activity, begun: Instant::now() }
    }

    async fn send(&self, bytes: &[u8]) {
        let pieces = self.pieces.as_ref().expect("not ended");
        pieces.send(Ok(bytes.to_vec())).await.expect("room");
    }

    /// The reason why the server ends the call, and after how many seconds.
    async fn reason(&mut self) -> (String, u64) {
        loop {
            let frame = tokio::time::timeout(END_MAX, self.body.frame()).await.expect("the server ends it");
            if let Err(status) = frame.expect("the caller goes on") {
                let details = status.get_error_details();
                let info = details.error_info().expect("every error has a reason");
                return (info.reason.clone(), self.begun.elapsed().as_secs());
            }
        }
    }
}

#[test]
fn messages_are_weighed_however_the_bytes_are_cut() {
    let stream: Vec<u8> = [message(0), message(10), message(3), message(10)].concat();
    for cut in 1..=stream.len() {
        let body_limit = body_limit(10, 10);
        let mut body = body_of(&body_limit, 1);
        for piece in stream.chunks(cut) {
            body.follow(piece).expect("within the limits");
        }
        assert!(!body.reading.has_begun());
        body_limit.receiving.share(holder(2)).grow(10).expect("everything is given back");
    }
}

#[test]
fn an_oversized_message_is_refused_on_its_length_alone() {
    let problem = body_of(&body_limit(10, 100), 1).follow(&[0, 0, 0, 0, 11]).expect_err("too long");
    assert_eq!(problem.reason.name(), "MESSAGE_TOO_LARGE");
}

#[test]
fn lengths_that_are_announced_take_nothing_from_others() {
    let body_limit = body_limit(10, 40);
    let mut announced: Vec<WeighedBody> = (0..8).map(|n| body_of(&body_limit, n)).collect();
    announced.iter_mut().for_each(|body| body.follow(&[0, 0, 0, 0, 10, 1]).expect("one byte"));
    body_of(&body_limit, 99).follow(&message(10)).expect("room for a whole message");
}

#[test]
fn half_received_messages_share_one_budget_and_give_it_back() {
    let body_limit = body_limit(10, 15);
    let mut first = body_of(&body_limit, 1);
    first.follow(&message(10)[..14]).expect("room");
    let mut second = body_of(&body_limit, 2);
    let problem = second.follow(&message(10)).expect_err("no room");
    assert_eq!(problem.reason.name(), "RECEIVING_TOO_MUCH");
    assert!(problem.retry_after.is_some());
    drop(first);
    body_of(&body_limit, 3).follow(&message(10)).expect("room again");
}

#[test]
fn what_is_no_message_is_the_callers_fault() {
    let body_limit = body_limit(10, 100);
    for flag in [1, 2, 255] {
        let problem = body_of(&body_limit, 1).follow(&[flag, 0, 0, 0, 1, 1]).expect_err("compressed");
        assert_eq!(problem.reason.name(), "MESSAGE_MALFORMED");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_breaks_off_is_malformed_and_a_caller_that_leaves_is_gone() {
    let body_limit = body_limit(10, 100);
    let mut short = Call::new(&body_limit);
    short.send(&message(10)[..8]).await;
    short.pieces = None;
    assert_eq!(short.reason().await.0, "MESSAGE_MALFORMED");
    assert!(!short.activity.has_left());
    let mut gone = Call::new(&body_limit);
    let pieces = gone.pieces.take().expect("not ended");
    pieces.send(Err(axum::Error::new(std::io::Error::other("reset")))).await.expect("room");
    assert_eq!(gone.reason().await.0, "CALLER_LEFT");
    assert!(gone.activity.has_left());
}

#[tokio::test(start_paused = true)]
async fn a_message_has_its_time_to_arrive_however_often_a_byte_of_it_does() {
    let mut call = Call::new(&body_limit(1000, 1000));
    let pieces = call.pieces.clone().expect("not ended");
    let trickle = async {
        for byte in message(1000) {
            if pieces.send(Ok(vec![byte])).await.is_err() {
                return;
            }
            tokio::time::sleep(SECOND).await;
        }
    };
    tokio::select! {
        () = trickle => panic!("the message is waited for to its end"),
        reason = call.reason() => assert_eq!(reason, ("MESSAGE_TOO_SLOW".into(), 60)),
    }
}

#[tokio::test(start_paused = true)]
async fn messages_that_arrive_in_time_may_go_on_for_ever() {
    let mut call = Call::new(&body_limit(10, 100));
    let pieces = call.pieces.take().expect("not ended");
    let sending = async {
        for _ in 0..100 {
            for half in message(10).chunks(8) {
                pieces.send(Ok(half.to_vec())).await.expect("the server waits");
                tokio::time::sleep(50 * SECOND).await;
            }
        }
        drop(pieces);
    };
    let reading = async {
        while let Some(frame) = call.body.frame().await {
            frame.expect("no message is too slow");
        }
    };
    join(sending, reading).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_on_which_nothing_happens_ends_and_an_answer_is_something() {
    let body_limit = body_limit(10, 100);
    assert_eq!(Call::new(&body_limit).reason().await, ("STREAM_IDLE".into(), 600));
    let mut call = Call::new(&body_limit);
    let activity = call.activity.clone();
    let answering = async {
        tokio::time::sleep(500 * SECOND).await;
        activity.answered();
    };
    let (reason, ()) = join(call.reason(), answering).await;
    assert_eq!(reason, ("STREAM_IDLE".into(), 1100));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_displaced_hears_of_it_at_once() {
    let mut call = Call::new(&body_limit(10, 100));
    let activity = call.activity.clone();
    let displacing = async {
        tokio::time::sleep(7 * SECOND).await;
        activity.displace();
    };
    let (reason, ()) = join(call.reason(), displacing).await;
    assert_eq!(reason, ("STREAM_DISPLACED".into(), 7));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_shuts_down_waits_for_who_sends_and_not_for_who_does_not() {
    let (stop, drain) = drain();
    let body_limit = BodyLimit { drain, ..body_limit(100, 100) };
    let (mut idle, mut busy) = (Call::new(&body_limit), Call::new(&body_limit));
    let pieces = busy.pieces.clone().expect("not ended");
    let sending = async {
        tokio::time::sleep(10 * SECOND).await;
        stop.send_replace(true);
        for byte in message(20) {
            pieces.send(Ok(vec![byte])).await.expect("the server waits");
            tokio::time::sleep(SECOND / 2).await;
        }
    };
    let (idle, busy, ()) = tokio::join!(idle.reason(), busy.reason(), sending);
    assert_eq!(idle, ("DRAINING".into(), 11));
    assert_eq!(busy, ("DRAINING".into(), 10 + 13));
}

#[tokio::test(start_paused = true)]
async fn the_server_waits_for_a_caller_only_while_it_has_read_everything() {
    let mut call = Call::new(&body_limit(10, 100));
    assert!(call.activity.idle_since().is_none());
    assert!(futures_util::poll!(call.body.frame()).is_pending());
    assert!(call.activity.idle_since().is_some());
    call.send(&message(3)).await;
    call.body.frame().await.expect("a frame").expect("a message");
    assert!(call.activity.idle_since().is_none());
    call.activity.wait(Waker::noop());
    call.pieces = None;
    assert!(call.body.frame().await.is_none());
    assert!(call.activity.idle_since().is_none(), "nothing more is waited for");
}
