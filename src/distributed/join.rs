//! How processes find each other at a store, and make sure that they belong together.
//!
//! After a restart torchrun's store is the one from before, with the keys of ranks that have died. So rank 0 draws a
//! number for each attempt, under which everyone meets, and answers everyone who has come: what an earlier attempt left
//! gives no answer.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::c10d::{C10dError, Store};
use super::place::Place;
use super::rank_failure::RankFailure;

const ATTEMPT: &str = "shipreid/attempt";
/// How long a rank waits for an answer before it looks whether there is a newer attempt.
const ANSWER_WAIT: Duration = Duration::from_millis(500);
/// For the answer about a key that has a value, which takes this long only on a machine that is busy.
pub const PRESENT_WAIT: Duration = Duration::from_secs(60);
/// Between two looks of rank 0 for one that has come.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// What all ranks must have in common, as a digest or text each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub build: String,
    pub configuration: String,
    pub data: String,
    pub weights: String,
}

/// Why processes do not train together, or no longer do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorldError {
    #[error("{host}:{port}, where the ranks meet, cannot be reached: {cause}")]
    NoStore { host: String, port: u16, cause: String },
    #[error(
        "rank 0 cannot listen on port {port} of {host}, where the ranks meet: {cause}; if another run uses it, choose \
         another MASTER_PORT"
    )]
    NoPort { host: String, port: u16, cause: String },
    #[error("another run has begun at {host}:{port}, where the ranks of this one meet")]
    Contested { host: String, port: u16 },
    #[error("rank {rank} has not come within {} seconds", .waited.as_secs())]
    Absent { rank: usize, waited: Duration },
    #[error(
        "rank 0 has not answered within {} seconds: it was not started, or two runs use {host}:{port}", .waited.as_secs()
    )]
    NoAnswer { host: String, port: u16, waited: Duration },
    #[error("rank {rank} was started as one of {of_rank}, rank 0 as one of {of_first}")]
    OtherWorld { rank: usize, of_rank: String, of_first: usize },
    #[error("rank {rank} has another {what} than rank 0")]
    OtherIdentity { rank: usize, what: &'static str },
    #[error("this machine's address cannot be determined: {0}")]
    NoAddress(String),
    /// What a rank has said about itself, or another has noticed about it.
    #[error("{0}")]
    Lost(RankFailure),
    #[error("ranks cannot be connected: {0}")]
    Connection(#[from] C10dError),
}

/// Meets the other ranks of this attempt; returns the part of the store that is theirs.
///
/// # Errors
/// Some of them do not come in time, or were started for another world.
pub fn meet(store: &Store, place: &Place, wait_max: Duration) -> Result<Store, WorldError> {
    let until = Instant::now() + wait_max;
    let attempt = if place.rank == 0 {
        invite(store, place, until, wait_max)?
    } else {
        come(store, place, until, wait_max)?
    };
    Ok(store.prefixed(&prefix(&attempt))?)
}

fn prefix(attempt: &str) -> String {
    format!("shipreid/{attempt}/")
}

/// Rank 0 opens an attempt, and answers everyone who comes.
fn invite(store: &Store, place: &Place, until: Instant, waited: Duration) -> Result<String, WorldError> {
    let attempt = draw();
    let prefix = prefix(&attempt);
    store.set(ATTEMPT, attempt.as_bytes())?;
    let receive = |rank: usize| {
        let came = arrival(store, place, &attempt, rank, until)?;
        let came = came.ok_or(WorldError::Absent { rank, waited })?;
        let (token, of_rank) = split(&came);
        if of_rank != place.world_size.to_string() {
            return Err(WorldError::OtherWorld { rank, of_rank, of_first: place.world_size });
        }
        Ok(store.set(&format!("{prefix}answer/{token}"), b"come")?)
    };
    let received = (1..place.world_size).try_for_each(receive);
    let refusal = received.as_ref().err().map(WorldError::to_string).unwrap_or_default();
    store.set(&format!("{prefix}refused"), refusal.as_bytes())?;
    received.map(|()| attempt)
}

/// What a rank says as it comes to an attempt; `None` if it does not come in time.
///
/// # Errors
/// Another run opens an attempt at the same store meanwhile: a restart of this one would have ended this process.
fn arrival(
    store: &Store,
    place: &Place,
    attempt: &str,
    rank: usize,
    until: Instant,
) -> Result<Option<Vec<u8>>, WorldError> {
    let key = format!("{}came/{rank}", prefix(attempt));
    while Instant::now() < until {
        if store.has(&key)? {
            return Ok(Some(store.get(&key, PRESENT_WAIT)?));
        }
        // A wait that ends in vain would be a line in the log.
        thread::sleep(LOOK_PAUSE);
        if store.get(ATTEMPT, PRESENT_WAIT)? != attempt.as_bytes() {
            return Err(WorldError::Contested { host: place.master_host.clone(), port: place.master_port });
        }
    }
    Ok(None)
}

/// Another rank comes to the newest attempt that answers.
fn come(store: &Store, place: &Place, until: Instant, waited: Duration) -> Result<String, WorldError> {
    let token = draw();
    let mine = format!("{token} {}", place.world_size);
    while Instant::now() < until {
        let Ok(attempt) = store.get(ATTEMPT, left(until)) else { break };
        let attempt = String::from_utf8_lossy(&attempt).into_owned();
        let prefix = prefix(&attempt);
        let came = store.set_once(&format!("{prefix}came/{}", place.rank), mine.as_bytes())?;
        let is_mine = came == mine.as_bytes();
        let answer = store.get(&format!("{prefix}answer/{token}"), ANSWER_WAIT.min(left(until)));
        if is_mine && answer.is_ok() {
            // Rank 0 says so once it has heard from everyone, for whom it may have begun to wait later.
            let Ok(refused) = store.get(&format!("{prefix}refused"), waited + ANSWER_WAIT) else { break };
            let refused = String::from_utf8_lossy(&refused).into_owned();
            return if refused.is_empty() { Ok(attempt) } else { Err(WorldError::Lost(refused.into())) };
        }
        let refused = format!("{prefix}refused");
        if is_mine && store.has(&refused)? {
            let cause = store.get(&refused, PRESENT_WAIT)?;
            if !cause.is_empty() {
                return Err(WorldError::Lost(String::from_utf8_lossy(&cause).into_owned().into()));
            }
        }
    }
    Err(WorldError::NoAnswer { host: place.master_host.clone(), port: place.master_port, waited })
}

/// Makes sure that every rank is about to do the same.
///
/// # Errors
/// One differs from rank 0; every rank names the same one.
pub fn agree(
    store: &Store,
    place: &Place,
    identity: &Identity,
    wait_max: Duration,
) -> Result<(), WorldError> {
    let until = Instant::now() + wait_max;
    let Identity { build, configuration, data, weights } = identity;
    let parts = [build, configuration, data, weights].map(String::as_str);
    store.set(&format!("identity/{}", place.rank), parts.join("\n").as_bytes())?;
    let of = |rank: usize| {
        let identity = store.get(&format!("identity/{rank}"), left(until));
        identity.map_err(|_| WorldError::Absent { rank, waited: wait_max })
    };
    let first = of(0)?;
    for rank in 1..place.world_size {
        let other = of(rank)?;
        let lines = |bytes: &[u8]| -> Vec<String> {
            String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
        };
        let (first, other) = (lines(&first), lines(&other));
        let names = ["build", "configuration", "data set", "starting point"];
        let differing = names.iter().enumerate().find(|(part, _)| first.get(*part) != other.get(*part));
        if let Some((_, what)) = differing {
            return Err(WorldError::OtherIdentity { rank, what });
        }
    }
    Ok(())
}

/// 64 random bits in hexadecimal digits.
fn draw() -> String {
    let mut text = String::new();
    let _ = write!(text, "{:016x}", rand::rng().random::<u64>());
    text
}

fn left(until: Instant) -> Duration {
    // c10d takes a timeout of 0 as none at all.
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// A rank's random number, and the size of the world that it was started for.
fn split(came: &[u8]) -> (String, String) {
    let came = String::from_utf8_lossy(came);
    let (token, of_rank) = came.split_once(' ').unwrap_or((&came, ""));
    (token.to_owned(), of_rank.to_owned())
}
