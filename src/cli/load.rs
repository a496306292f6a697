//! `shipreid bench closed|open`: load on a running server.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shipreid::client::{Client, ClientError};
use shipreid::wire::embed_result::Outcome;
use shipreid::wire::{Chip, EmbedRequest, EmbedResponse};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::ServerFlag;
use super::chips::ChipFlags;
use super::number::{between, seconds};
use super::report::{Call, Report, ServerWatch};

/// What both kinds of load have in common.
#[derive(Args)]
pub struct LoadFlags {
    #[command(flatten)]
    chips: ChipFlags,
    #[command(flatten)]
    server: ServerFlag,
    /// Its metrics port, for the server's CPU time and memory.
    #[arg(long, default_value = "127.0.0.1:9090", value_name = "HOST:PORT")]
    metrics: String,
    /// Seconds to measure.
    #[arg(long, default_value_t = 20.0, value_name = "SECONDS", value_parser = seconds)]
    duration: f64,
    /// Seconds of warm-up before that.
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS", value_parser = between(0.0, 86_400.0))]
    warm_up: f64,
    /// Chips in one call.
    #[arg(long, default_value_t = 1)]
    chips_per_call: usize,
    /// Seconds that a call may take; it is sent to the server as the call's deadline.
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS", value_parser = seconds)]
    timeout: f64,
    /// Connections to spread the calls over. Each carries limits.streams_per_connection_max calls at once; further ones
    /// wait in this client.
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// Prints the figures as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "\
Example: shipreid bench closed ../shared/data/hoss165 --concurrency 16")]
pub struct Closed {
    #[command(flatten)]
    load: LoadFlags,
    /// Calls in flight.
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
}

#[derive(Args)]
#[command(after_help = "\
Example: shipreid bench open ../shared/data/hoss165 --rate 30 --timeout 2

Latencies count from the time at which a call was due, so that a slow server cannot hide its delay by
keeping the load away (coordinated omission).")]
pub struct Open {
    #[command(flatten)]
    load: LoadFlags,
    /// Calls per second, on average.
    #[arg(long, value_parser = between(0.001, 1e6))]
    rate: f64,
    /// Seed of the random times.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Closed {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let json = self.load.json;
        let source = Arc::new(Source::new(&self.load).await?);
        let mut callers = JoinSet::new();
        let run = Run::start(&self.load);
        for _ in 0..self.concurrency.max(1) {
            let (source, run) = (Arc::clone(&source), Arc::clone(&run));
            callers.spawn(async move {
                while Instant::now() < run.end {
                    run.record(source.call(Instant::now()).await);
                }
            });
        }
        let watch = ServerWatch::over(self.load.metrics, run.begin, run.end).await;
        callers.join_all().await;
        run.report(watch).print(json);
        Ok(())
    }
}

impl Open {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let json = self.load.json;
        let source = Arc::new(Source::new(&self.load).await?);
        let run = Run::start(&self.load);
        let watch = tokio::spawn(ServerWatch::over(self.load.metrics.clone(), run.begin, run.end));
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let (mut due, mut calls) = (Instant::now(), JoinSet::new());
        while due < run.end {
            sleep_until(due).await;
            let (source, run) = (Arc::clone(&source), Arc::clone(&run));
            calls.spawn(async move { run.record(source.call(due).await) });
            // Intervals between the calls of a Poisson process are exponentially distributed.
            let unit: f64 = random.random();
            due += Duration::from_secs_f64(-(1.0 - unit).ln() / self.rate);
            while calls.try_join_next().is_some() {}
        }
        calls.join_all().await;
        run.report(watch.await?).print(json);
        Ok(())
    }
}

/// The source of calls: chips in turn, connections in turn.
struct Source {
    clients: Vec<Client>,
    chips: Vec<Chip>,
    chips_per_call: usize,
    timeout: Duration,
    next: AtomicUsize,
}

impl Source {
    async fn new(flags: &LoadFlags) -> anyhow::Result<Self> {
        let chips = flags.chips.read()?.into_iter().map(|file| file.chip).collect();
        let mut clients = Vec::new();
        for _ in 0..flags.connections.max(1) {
            clients.push(flags.server.connect().await?);
        }
        let timeout = Duration::from_secs_f64(flags.timeout);
        Ok(Self {
            clients,
            chips,
            chips_per_call: flags.chips_per_call.max(1),
            timeout,
            next: AtomicUsize::new(0),
        })
    }

    /// One call that was due at `due`.
    async fn call(&self, due: Instant) -> Call {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let chips = (0..self.chips_per_call)
            .map(|chip| self.chips[(number * self.chips_per_call + chip) % self.chips.len()].clone())
            .collect();
        let request = EmbedRequest { chips, ..EmbedRequest::default() };
        let answer = self.clients[number % self.clients.len()].embed(request, Some(self.timeout)).await;
        let ended = Instant::now();
        Call { due, ended, outcome: outcome(answer) }
    }
}

/// The embedded chips and the model's time, or the error.
fn outcome(answer: Result<EmbedResponse, ClientError>) -> Result<(usize, Duration), String> {
    match answer {
        Ok(answer) => {
            let failed = answer.results.iter().find_map(|result| match &result.outcome {
                Some(Outcome::Error(error)) => Some(error.reason.clone()),
                _ => None,
            });
            let forward = answer.timings.and_then(|timings| timings.forward).unwrap_or_default();
            let forward = Duration::try_from(forward).unwrap_or_default();
            failed.map_or(Ok((answer.results.len(), forward)), Err)
        }
        Err(ClientError::Refused(status)) => Err(format!("{:?}", status.code())),
        Err(other) => Err(other.to_string()),
    }
}

/// The measured part of a run and its observations.
struct Run {
    begin: Instant,
    end: Instant,
    calls: Mutex<Vec<Call>>,
}

impl Run {
    fn start(flags: &LoadFlags) -> Arc<Self> {
        let begin = Instant::now() + Duration::from_secs_f64(flags.warm_up);
        let end = begin + Duration::from_secs_f64(flags.duration);
        Arc::new(Self { begin, end, calls: Mutex::default() })
    }

    fn record(&self, call: Call) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    fn report(&self, watch: ServerWatch) -> Report {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        Report::new(calls.iter(), self.begin, self.end, watch)
    }
}
