//! A follower against a server that fails on demand.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::client::error::OLDEST_EVENT;
use crate::wire;
use crate::wire::JobState;
use crate::wire::ship_re_id_server::{ShipReId, ShipReIdServer};
use crate::wire::training_jobs_server::{TrainingJobs, TrainingJobsServer};

const JOB: &str = "job-1";
/// Events of the job.
const LAST: u64 = 9;

/// What a stream does.
#[derive(Clone, Debug)]
enum Play {
    Refuse(Status),
    /// These events, then an error.
    Break(Vec<u64>, Status),
    /// These events, then a normal end.
    End(Vec<u64>),
    /// These events, then silence.
    Hang(Vec<u64>),
}

/// Plays its streams one after the other.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    plays: VecDeque<Play>,
    /// The requests: the first event, or a request id.
    asked: Vec<String>,
    /// The job, for each request in turn; then a finished one.
    jobs: VecDeque<TrainingJob>,
}

type Events = stream::BoxStream<'static, Result<TrainEvent, Status>>;

impl Scripted {
    fn playing(plays: impl IntoIterator<Item = Play>) -> Self {
        let script = Script { plays: plays.into_iter().collect(), ..Script::default() };
        Self(Arc::new(Mutex::new(script)))
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().expect("whole").asked.clone()
    }

    fn play(&self, asked: String) -> Result<Response<Events>, Status> {
        let mut script = self.0.lock().expect("whole");
        script.asked.push(asked);
        let events = |numbers: Vec<u64>| stream::iter(numbers.into_iter().map(|number| Ok(event(number))));
        Ok(Response::new(match script.plays.pop_front().expect("a play for each stream") {
            Play::Refuse(status) => return Err(status),
            Play::Break(numbers, status) => events(numbers).chain(stream::iter([Err(status)])).boxed(),
            Play::End(numbers) => events(numbers).boxed(),
            Play::Hang(numbers) => events(numbers).chain(stream::pending()).boxed(),
        }))
    }
}

fn event(number: u64) -> TrainEvent {
    TrainEvent { job_id: JOB.into(), number, ..TrainEvent::default() }
}

fn job(state: JobState) -> TrainingJob {
    TrainingJob { job_id: JOB.into(), state: state.into(), last_event: LAST, ..TrainingJob::default() }
}

#[tonic::async_trait]
impl TrainingJobs for Scripted {
    type WatchTrainingJobStream = Events;

    async fn watch_training_job(
        &self,
        request: Request<WatchTrainingJobRequest>,
    ) -> Result<Response<Events>, Status> {
        let request = request.into_inner();
        assert_eq!(request.job_id, JOB);
        self.play(request.from_event.to_string())
    }

    async fn get_training_job(
        &self,
        _: Request<wire::GetTrainingJobRequest>,
    ) -> Result<Response<wire::GetTrainingJobResponse>, Status> {
        let known = self.0.lock().expect("whole").jobs.pop_front();
        let job = Some(known.unwrap_or_else(|| job(JobState::Finished)));
        Ok(Response::new(wire::GetTrainingJobResponse { job }))
    }

    async fn list_training_jobs(
        &self,
        _: Request<wire::ListTrainingJobsRequest>,
    ) -> Result<Response<wire::ListTrainingJobsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_training_job(
        &self,
        _: Request<wire::CancelTrainingJobRequest>,
    ) -> Result<Response<wire::CancelTrainingJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn resume_training_job(
        &self,
        _: Request<wire::ResumeTrainingJobRequest>,
    ) -> Result<Response<wire::ResumeTrainingJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete_training_job(
        &self,
        _: Request<wire::DeleteTrainingJobRequest>,
    ) -> Result<Response<wire::DeleteTrainingJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl ShipReId for Scripted {
    type EmbedStreamStream = stream::BoxStream<'static, Result<wire::EmbedStreamResponse, Status>>;
    type TrainStream = Events;

    async fn train(&self, request: Request<TrainRequest>) -> Result<Response<Events>, Status> {
        self.play(request.into_inner().request_id)
    }

    async fn embed(&self, _: Request<wire::EmbedRequest>) -> Result<Response<wire::EmbedResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn embed_stream(
        &self,
        _: Request<tonic::Streaming<wire::EmbedStreamRequest>>,
    ) -> Result<Response<Self::EmbedStreamStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn r#match(&self, _: Request<wire::MatchRequest>) -> Result<Response<wire::MatchResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// Serves a script, and returns its address.
async fn serve(script: &Scripted) -> SocketAddr {
    let (listener, address) = listen().await;
    let server = Server::builder()
        .add_service(TrainingJobsServer::new(script.clone()))
        .add_service(ShipReIdServer::new(script.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

async fn client(address: SocketAddr) -> Client {
    Client::connect(&format!("http://{address}")).await.expect("a server")
}

fn at_once(follower: Follower) -> Follower {
    follower.with_backoff(BACKOFF.with_min_delay(Duration::ZERO).with_max_delay(Duration::ZERO))
}

/// Everything that is returned up to the job's end: numbers of events, losses, and the state at the end.
async fn told(mut follower: Follower) -> Result<(Vec<u64>, usize, JobState), ClientError> {
    let (mut numbers, mut losses) = (Vec::new(), 0);
    loop {
        match follower.next().await? {
            Followed::Event(event) => numbers.push(event.number),
            Followed::Lost { .. } => losses += 1,
            Followed::Ended(job) => return Ok((numbers, losses, job.state())),
        }
    }
}

async fn watched(plays: impl IntoIterator<Item = Play>, beginning: Beginning) -> (Scripted, Told) {
    let script = Scripted::playing(plays);
    let client = client(serve(&script).await).await;
    let told = told(at_once(client.watch_training(JOB, beginning))).await;
    (script, told)
}

type Told = Result<(Vec<u64>, usize, JobState), ClientError>;

fn broken(code: Code) -> Status {
    Status::new(code, "broken")
}

fn refusal(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
    let metadata: HashMap<_, _> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let details = ErrorDetails::with_error_info(reason, "shipreid", metadata);
    Status::with_error_details(code, "refused", details)
}

fn overloaded() -> Status {
    let mut details = ErrorDetails::with_error_info("CALLS", "shipreid", HashMap::new());
    details.set_retry_info(Some(Duration::ZERO));
    Status::with_error_details(Code::ResourceExhausted, "too many calls", details)
}

#[tokio::test]
async fn each_event_is_told_once_and_in_order_wherever_the_stream_breaks() {
    let plays = [
        Play::Break((1..=3).collect(), broken(Code::Unavailable)),
        Play::Refuse(broken(Code::Unavailable)),
        Play::Break(vec![], broken(Code::Unknown)),
        // A server that begins earlier than requested.
        Play::Break((2..=6).collect(), broken(Code::Internal)),
        Play::Refuse(overloaded()),
        Play::End((7..=7).collect()),
        Play::End((8..=9).collect()),
    ];
    let (script, told) = watched(plays, Beginning::Oldest).await;
    assert_eq!(told.expect("to the end"), ((1..=9).collect(), 6, JobState::Finished));
    assert_eq!(script.asked(), ["1", "4", "4", "4", "7", "7", "8"]);
}

#[tokio::test]
async fn events_that_are_skipped_are_asked_for_again_and_told_of_when_they_are_gone() {
    let skips = || Play::Hang(vec![1, 2, 5, 6]);
    let (script, told) = watched([skips(), Play::End((3..=9).collect())], Beginning::Oldest).await;
    assert_eq!(told.expect("to the end"), ((1..=9).collect(), 1, JobState::Finished));
    assert_eq!(script.asked(), ["1", "3"]);
    let (_, told) = watched([skips(), Play::Hang(vec![5, 6])], Beginning::Oldest).await;
    let lost = told.expect_err("events are missing");
    assert!(matches!(lost, ClientError::EventsLost { expected: 3, found: 5 }), "{lost}");
}

#[tokio::test]
async fn a_connection_that_is_cut_is_made_anew() {
    let script = Scripted::playing([Play::Hang((1..=4).collect()), Play::End((5..=9).collect())]);
    let server = serve(&script).await;
    let (listener, address) = listen().await;
    let (cut, mut cutting) = tokio::sync::mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let mut relayed = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let mut near = accepted.expect("a connection").0;
                    let mut far = TcpStream::connect(server).await.expect("a server");
                    relayed.spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
                }
                Some(()) = cutting.recv() => relayed.shutdown().await,
            }
        }
    });
    let mut follower = at_once(client(address).await.watch_training(JOB, Beginning::Oldest));
    for number in 1..=4 {
        assert_eq!(follower.next().await.expect("told"), Followed::Event(Box::new(event(number))));
    }
    cut.send(()).await.expect("a relay");
    assert!(matches!(follower.next().await.expect("passing"), Followed::Lost { .. }));
    let (numbers, _, _) = told(follower).await.expect("to the end");
    assert_eq!(numbers, [5, 6, 7, 8, 9]);
}

#[tokio::test]
async fn a_job_whose_stream_ends_is_followed_until_it_has_ended_itself() {
    let script = Scripted::playing([Play::End((1..=5).collect()), Play::End((6..=9).collect())]);
    script.0.lock().expect("whole").jobs = [job(JobState::Interrupted), job(JobState::Cancelled)].into();
    let client = client(serve(&script).await).await;
    let told = told(at_once(client.watch_training(JOB, Beginning::Oldest))).await;
    assert_eq!(told.expect("to the end"), ((1..=9).collect(), 1, JobState::Cancelled));
}

#[tokio::test]
async fn an_order_whose_answer_was_lost_is_given_again_under_the_same_request_id() {
    let plays = [
        Play::Refuse(broken(Code::Unavailable)),
        Play::Break(vec![], broken(Code::Unknown)),
        Play::Break((1..=2).collect(), broken(Code::Unavailable)),
        Play::End((3..=9).collect()),
    ];
    let script = Scripted::playing(plays);
    let client = client(serve(&script).await).await;
    let told = told(at_once(client.train(TrainRequest::default()))).await;
    assert_eq!(told.expect("to the end"), ((1..=9).collect(), 3, JobState::Finished));
    let asked = script.asked();
    assert_eq!((asked[0].len(), &asked[1], &asked[2]), (32, &asked[0], &asked[0]));
    assert_eq!(asked[3], "3");
}

#[tokio::test]
async fn what_is_refused_for_good_ends_the_watch() {
    for (code, reason) in [
        (Code::NotFound, "JOB_NOT_FOUND"),
        (Code::OutOfRange, "EVENT_IN_THE_FUTURE"),
        (Code::Internal, "STORE_FAILED"),
        (Code::ResourceExhausted, "JOBS_FULL"),
    ] {
        let plays = [Play::Refuse(refusal(code, reason, &[]))];
        let (_, told) = watched(plays, Beginning::Event(3)).await;
        assert!(told.expect_err("refused").to_string().contains(reason));
    }
    let unknown = broken(Code::Unimplemented);
    let (_, told) = watched([Play::Refuse(unknown)], Beginning::Oldest).await;
    assert!(told.is_err());
}

#[tokio::test]
async fn a_watch_from_the_oldest_event_begins_with_the_oldest_that_is_left() {
    let gone = || Play::Refuse(refusal(Code::OutOfRange, "EVENTS_DROPPED", &[(OLDEST_EVENT, "6")]));
    let (script, told) = watched([gone(), Play::End((6..=9).collect())], Beginning::Oldest).await;
    assert_eq!(
        (told.expect("to the end").0, script.asked()),
        (vec![6, 7, 8, 9], vec!["1".into(), "6".into()])
    );
    let (_, told) = watched([gone()], Beginning::Event(2)).await;
    assert!(told.expect_err("refused").to_string().contains("EVENTS_DROPPED"));
}

#[test]
fn waits_grow_to_their_bound_and_watchers_do_not_come_back_together() {
    let first: Vec<_> = BACKOFF.build().take(7).collect();
    for (wait, seconds) in first.iter().zip([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0]) {
        let wait = wait.as_secs_f64();
        assert!((seconds / 2.0..=seconds).contains(&wait), "{wait} of {seconds}");
    }
    let second: Vec<_> = BACKOFF.build().take(7).collect();
    assert_ne!(first, second);
}
