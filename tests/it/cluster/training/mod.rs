//! Training jobs and models of three servers on one database, of which some are killed, stopped and cut off while jobs run: a
//! job runs once at a time and ends once, and a model is on all servers or on none.

mod judge;
mod ledger;
mod simulated;
mod trail;

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::seq::{IndexedMutRandom, IndexedRandom, IteratorRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shipreid::client::Client;
use shipreid::wire::train_event::Event;
use shipreid::wire::{
    CancelTrainingJobRequest, DeleteModelRequest, JobState, TrainEvent, TrainRequest, WatchTrainingJobRequest,
};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use self::judge::{End, History, Telling, Told, judge};
use self::trail::{Mark, Trail};
use super::faults::{Fault, Nemesis};
use super::linearizability::{self, Verdict, check};
use super::registry::{self, Contents, Models};
use super::servers::Cluster;
use super::{SERVERS, seeds};
use crate::torture::models::{Files, exported};
use crate::training::{TrainingFolder, is_gone};

/// Times in a history that something fails.
const TROUBLES: usize = 2;
/// Calls about models of each caller before, in and after each of them.
const CALLS: usize = 10;
/// Faults that cost a server its jobs.
const LONG: [Fault; 4] = [Fault::KillServer, Fault::StopServer, Fault::Isolate, Fault::TerminateServer];
const SHORT: [Fault; 4] = [Fault::Cut, Fault::CutBeforeAnswer, Fault::KillDatabase, Fault::KillBackend];

/// Servers that train.
struct Trainers {
    cluster: Cluster,
    trail: Trail,
    place: TrainingFolder,
    /// Models that callers import.
    files: Files,
    /// How a job ends that nothing disturbs.
    undisturbed: End,
}

impl Trainers {
    async fn start() -> Option<Self> {
        let place = TrainingFolder::new();
        let trail = Trail::new(place.folder());
        let settings = [
            format!("training.data_roots={}", place.folder().display()),
            format!("training.program={}", trail.program.display()),
            "training.lease_seconds=3".into(),
            "training.attempts_max=1000".into(),
            "training.jobs_concurrent_max=2".into(),
            "training.threads=1".into(),
            // In the idle class, jobs would wait for whatever else this machine does.
            "training.nice=0".into(),
        ];
        let cluster = Cluster::start_with(SERVERS, settings.into()).await?;
        ledger::open(&cluster.database).await;
        let files = exported(&cluster.model, place.folder());
        let job = start(&cluster.client(0), "undisturbed", place.config(0)).await.unwrap();
        let undisturbed = undisturbed(&whole(&cluster.client(0), &job).await);
        Some(Self { cluster, trail, place, files, undisturbed })
    }

    /// One history of jobs and models.
    async fn judge(&mut self, seed: u64, tally: &mut Tally) {
        let random = &mut ChaCha8Rng::seed_from_u64(seed);
        self.trail.clear();
        let before = ledger::jobs(&self.cluster.database).await;
        let contents = self.contents().await;
        // Something always can happen to it.
        let config = self.place.config(0).replace("epochs = 5 ", "epochs = 10000 ");
        let endless = start(&self.cluster.client(0), &format!("{seed}-endless"), config).await.unwrap();
        let (jobs, models) = self.history(seed, random).await;
        let verdict = check(&contents, &models);
        if verdict != Verdict::Linearizable {
            let lines = models.iter().map(|event| format!("{event:?}\n"));
            let path = keep(&format!("models-{seed}"), &lines.collect::<String>());
            panic!("seed {seed}: {path}: {verdict:?}");
        }
        let request = CancelTrainingJobRequest { job_id: endless.clone() };
        self.surely(random, async |client| client.training_jobs().cancel_training_job(request.clone()).await)
            .await;
        tally.attempts += self.check_job(seed, &endless, &End::Cancelled).await;
        for job in &jobs {
            tally.attempts += self.check_job(seed, job, &self.undisturbed).await;
        }
        let count = ledger::jobs(&self.cluster.database).await - before;
        assert_eq!(count, jobs.len() as u64 + 1, "seed {seed}: each job is there once");
        self.check_model(random).await;
        tally.histories += 1;
        tally.jobs += jobs.len() + 1;
        tally.calls += models.len();
    }

    /// Jobs that are started and calls about models that are made through all servers, while something fails.
    async fn history(
        &mut self,
        seed: u64,
        random: &mut ChaCha8Rng,
    ) -> (Vec<String>, Vec<linearizability::Event<Models>>) {
        let models = Arc::new(registry::History::new(&self.files));
        let (calls, is_whole) = (Arc::new(Semaphore::new(0)), watch::Sender::new(true));
        let callers = self.cluster.servers.iter().map(|server| registry::Caller {
            history: Arc::clone(&models),
            server: server.client.subscribe(),
            is_whole: is_whole.subscribe(),
            calls: Arc::clone(&calls),
            random: ChaCha8Rng::from_rng(random),
        });
        let callers: JoinSet<_> = callers.map(registry::Caller::run).collect();
        let mut starting = JoinSet::new();
        for trouble in 0..TROUBLES {
            let servers = self.cluster.servers.iter().map(|server| server.client.subscribe()).collect();
            let (name, draws) = (format!("{seed}-{trouble}"), ChaCha8Rng::from_rng(random));
            starting.spawn(start_surely(servers, name, self.place.config(0), draws));
            calls.add_permits(SERVERS * CALLS);
            is_whole.send_replace(false);
            self.disturb(&calls, random).await;
            is_whole.send_replace(true);
            calls.add_permits(SERVERS * CALLS);
        }
        let jobs = starting.join_all().await;
        calls.close();
        callers.join_all().await;
        // Whatever was acknowledged shows everywhere.
        for server in 0..SERVERS {
            while models.call(&self.cluster.client(server), registry::Call::List).await.is_err() {}
        }
        (jobs, Arc::into_inner(models).expect("its callers are gone").into_events())
    }

    /// Something happens to the server of a job, and perhaps to another one, until the job is run again, or has ended.
    async fn disturb(&mut self, calls: &Semaphore, random: &mut ChaCha8Rng) {
        let running = loop {
            if let Some(running) = self.trail.running().into_iter().choose(random) {
                break running;
            }
            tokio::task::yield_now().await;
        };
        let victim = running.server;
        let others = [(victim + 1) % SERVERS, (victim + 2) % SERVERS];
        let fault = *LONG.choose(random).expect("some");
        let also = if random.random() { SHORT.choose(random).copied() } else { None };
        println!("{fault:?} of server {victim}, and {also:?}, under {running:?}");
        if fault == Fault::StopServer {
            self.trail.suspend(victim);
        }
        // Of these, nothing waits for the database or for answers.
        let (is_database_there, answered) = (watch::Sender::new(true), watch::Sender::new(0).subscribe());
        let draws = ChaCha8Rng::from_rng(random);
        let mut nemesis = Nemesis { cluster: &mut self.cluster, is_database_there, answered, random: draws };
        nemesis.begin(fault, victim).await;
        if let Some(also) = also {
            nemesis.begin(also, others[0]).await;
        }
        calls.add_permits(SERVERS * CALLS);
        let is_over = |event: &TrainEvent| {
            let state = state(event);
            let is_run_again = event.attempt > running.attempt && state == Some(JobState::Running);
            is_run_again || state.is_some_and(is_end)
        };
        let job = format!("job-{}", running.job);
        while watched(&nemesis.cluster.client(*others.choose(random).expect("two")), &job, is_over)
            .await
            .is_err()
        {}
        nemesis.end(fault, victim).await;
        if fault == Fault::StopServer {
            self.trail.wake(victim);
        }
    }

    /// A call to any server, until one answers.
    async fn surely<T>(&self, random: &mut ChaCha8Rng, call: impl AsyncFn(Client) -> Result<T, Status>) -> T {
        loop {
            match call(self.cluster.client(random.random_range(0..SERVERS))).await {
                Ok(answer) => return answer,
                Err(status) => check_passing(&status),
            }
        }
    }

    /// Judges a job once it has ended and its processes are gone. Returns its attempts.
    async fn check_job(&self, seed: u64, job: &str, end: &End) -> usize {
        let events = whole(&self.cluster.client(0), job).await;
        for server in 1..SERVERS {
            assert_eq!(whole(&self.cluster.client(server), job).await, events, "any server tells the same");
        }
        let number = job.trim_start_matches("job-").parse().expect("a number");
        let is_of_others = |mark: &Mark| matches!(mark, Mark::Process(deed) if deed.job != number);
        let is_left = |mark: &Mark| matches!(mark, Mark::Process(deed) if !is_gone(deed.pid));
        let trail = loop {
            let mut trail = self.trail.marks();
            trail.retain(|mark| !is_of_others(mark));
            if !trail.iter().any(is_left) {
                break trail;
            }
            tokio::task::yield_now().await;
        };
        let writes = ledger::writes(&self.cluster.database, number).await;
        let history = History { trail, writes, told: events.iter().map(Told::from).collect() };
        if let Err(cause) = judge(&history, end) {
            let path = keep(&format!("{job}-{seed}"), &format!("{history:#?}"));
            panic!("seed {seed}, {job}: {cause}: {path}");
        }
        history.told.last().map_or(0, |told| told.attempt as usize)
    }

    /// The model that all jobs have made is on every server, and on none once it is deleted.
    async fn check_model(&self, random: &mut ChaCha8Rng) {
        let End::Finished { model, .. } = &self.undisturbed else { panic!("it has finished") };
        self.check_listed(model, true).await;
        let request = DeleteModelRequest { digest: model.clone() };
        self.surely(random, async |client| match client.models().delete_model(request.clone()).await {
            // It had happened, and only the answer was lost.
            Err(status) if status.code() == Code::NotFound => Ok(()),
            answer => answer.map(drop),
        })
        .await;
        self.check_listed(model, false).await;
    }

    async fn check_listed(&self, digest: &str, is_kept: bool) {
        for server in 0..SERVERS {
            let models = loop {
                if let Ok(models) = self.cluster.client(server).list_models().await {
                    break models;
                }
            };
            let found = models.iter().find(|model| model.digest == digest);
            assert_eq!(found.is_some(), is_kept, "server {server}");
            assert!(found.is_none_or(|model| model.damage.is_empty()), "server {server}: {found:?}");
        }
    }

    /// The models that there are.
    async fn contents(&self) -> Contents {
        let models = registry::History::new(&self.files);
        let kept = models.kept(&self.cluster.client(0)).await.unwrap();
        let sql = "select encode(active, 'hex') from shipreid";
        let row = self.cluster.database.connect().await.query_one(sql, &[]).await.unwrap();
        let active = row.get::<_, Option<String>>(0).and_then(|digest| models.number(&digest));
        Contents { kept, active }
    }
}

/// What happened over all histories.
#[derive(Default)]
struct Tally {
    histories: usize,
    jobs: usize,
    attempts: usize,
    /// About models.
    calls: usize,
}

impl Tally {
    fn tell(&self) {
        let Self { histories, jobs, attempts, calls } = self;
        println!("{histories} histories, {jobs} jobs in {attempts} attempts, {calls} calls about models");
    }
}

/// Keeps a history that is rejected. Returns where.
fn keep(name: &str, history: &str) -> String {
    let path = format!("{}/{name}.history", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&path, history).unwrap();
    path
}

/// Starts a job, which has this name as the id of its request as well: asking again does not start another.
async fn start(client: &Client, name: &str, config_toml: String) -> Result<String, Status> {
    let (request_id, display_name) = (name.to_owned(), name.to_owned());
    let request = TrainRequest { config_toml, request_id, display_name, ..TrainRequest::default() };
    let mut events = client.ship_re_id().train(request).await?.into_inner();
    let first = events.message().await?;
    Ok(first.ok_or_else(|| Status::unavailable("no event"))?.job_id)
}

/// The same through any server that is there, until one answers.
async fn start_surely(
    mut servers: Vec<watch::Receiver<Option<Client>>>,
    name: String,
    config: String,
    mut random: ChaCha8Rng,
) -> String {
    loop {
        let server = servers.choose_mut(&mut random).expect("some");
        let client = server.wait_for(Option::is_some).await.expect("it comes back").clone();
        match start(&client.expect("it is there"), &name, config.clone()).await {
            Ok(job) => return job,
            Err(status) => check_passing(&status),
        }
    }
}

/// The events of a job from the first on, until one for which `until` holds, or its end.
///
/// # Errors
/// The server cannot tell that far.
async fn watched(
    client: &Client,
    job: &str,
    until: impl Fn(&TrainEvent) -> bool,
) -> Result<Vec<TrainEvent>, Status> {
    let request = WatchTrainingJobRequest { job_id: job.to_owned(), from_event: 1 };
    let mut stream = client.training_jobs().watch_training_job(request).await?.into_inner();
    let mut events = vec![];
    while let Some(event) = stream.message().await? {
        let is_reached = until(&event);
        events.push(event);
        if is_reached {
            return Ok(events);
        }
    }
    match events.last().and_then(state) {
        Some(last) if is_end(last) => Ok(events),
        _ => Err(Status::unavailable("the server ends")),
    }
}

/// All events of a job, once it has ended.
async fn whole(client: &Client, job: &str) -> Vec<TrainEvent> {
    loop {
        match watched(client, job, |_| false).await {
            Ok(events) => return events,
            Err(status) => check_passing(&status),
        }
    }
}

fn state(event: &TrainEvent) -> Option<JobState> {
    match &event.event {
        Some(Event::Job(job)) => Some(job.state()),
        _ => None,
    }
}

fn is_end(state: JobState) -> bool {
    matches!(state, JobState::Finished | JobState::Failed | JobState::Cancelled)
}

/// How a job ends that nothing disturbs.
fn undisturbed(events: &[TrainEvent]) -> End {
    let (mut all, mut made) = (BTreeMap::new(), None);
    for event in events {
        match Told::from(event).what {
            Telling::Progress(step, losses) => drop(all.insert(step, losses)),
            Telling::State(JobState::Finished, model) => made = Some(model),
            _ => {}
        }
    }
    End::Finished { losses: all, model: made.expect("it finishes") }
}

/// A call may fail while something else fails, and only then.
fn check_passing(status: &Status) {
    let is_passing = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
    assert!(is_passing.contains(&status.code()), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_once_at_a_time_and_a_model_is_everywhere_or_nowhere_whatever_fails() {
    let Some(mut trainers) = Trainers::start().await else { return };
    let mut tally = Tally::default();
    for seed in seeds("0..1") {
        trainers.judge(seed, &mut tally).await;
    }
    tally.tell();
}
