//! Training in several processes: started here, by torchrun or by Kubernetes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use shipreid::distributed::{Identity, Patience, Place, RankFailure, World};
use shipreid::jobs::die_with_parent;
use shipreid::model::Device;
use shipreid::train::{Shard, TrainConfig, TrainingInputs, fingerprint};
use shipreid::weights::native::tensor_bytes;

use super::{FAILED, output};

/// Where torchrun expects to read why a process has failed.
const ERROR_FILE: &str = "TORCHELASTIC_ERROR_FILE";
/// Processes on one machine, as torchrun tells them.
const LOCAL_WORLD_SIZE: &str = "LOCAL_WORLD_SIZE";
/// How long the other processes may take to end after this one, and the pause between two looks.
const FAREWELL: Duration = Duration::from_secs(30);
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// How long this process may take to learn from a rank that has ended why the ranks do not train together.
const REASON_WAIT: Duration = Duration::from_secs(5);
/// Of a rank's log, with which it is set aside at the next start.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// This process and those that train with it.
#[derive(Debug)]
pub struct Ranks {
    /// `None`: this process trains alone.
    place: Option<Place>,
    /// Whether this process starts the others.
    starts_others: bool,
    patience: Patience,
}

/// Processes that this one has started. They end by themselves once the run has, for whatever reason.
#[derive(Debug, Default)]
pub struct Others(Vec<Other>);

#[derive(Debug)]
struct Other {
    rank: usize,
    child: Child,
    log: PathBuf,
    /// What its log had before it was started.
    log_bytes: usize,
}

impl Ranks {
    /// The place that a launcher has given this process, or rank 0 of `processes`, of which it starts the others. One that
    /// shows no sign of life for `silence_max` is lost.
    ///
    /// # Errors
    /// The environment contradicts itself, or there is no free port.
    pub fn find(processes: usize, silence_max: Duration) -> anyhow::Result<Self> {
        let patience = Patience { silence_max, ..Patience::default() };
        if let Some(place) = Place::of_environment(|name| std::env::var(name).ok())? {
            // Killing torchrun leaves its processes.
            die_with_parent()?;
            return Ok(Self { place: Some(place), starts_others: false, patience });
        }
        let place = if processes > 1 { Some(Place::first_of(processes)?) } else { None };
        Ok(Self { place, starts_others: processes > 1, patience })
    }

    /// Starts the others, if that is up to this process. What one logs is in `folder`.
    fn start_others(&self, first: &Place, folder: &Path) -> anyhow::Result<Others> {
        let mut others = Others::default();
        if !self.starts_others {
            return Ok(others);
        }
        fs::create_dir_all(folder)?;
        for rank in 1..first.world_size {
            let name = format!("rank-{rank}.log");
            let log = folder.join(&name);
            let file = open_log(&log).with_context(|| log.display().to_string())?;
            let log_bytes = file.metadata()?.len() as usize;
            let mut command = Command::new(std::env::current_exe()?);
            command.args(std::env::args_os().skip(1));
            command.envs(Place { rank, local_rank: rank, ..first.clone() }.environment());
            command.env(LOCAL_WORLD_SIZE, first.world_size.to_string());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
            let child = command.spawn()?;
            output::say(format_args!("rank {rank} is process {}; its log is {name}", child.id()));
            others.0.push(Other { rank, child, log, log_bytes });
        }
        Ok(others)
    }

    pub fn shard(&self) -> Shard {
        let shard = self.place.as_ref().map(|place| Shard::new(place.rank, place.world_size));
        shard.and_then(Result::ok).unwrap_or_default()
    }

    /// Whether this process writes what the run leaves.
    pub fn leads(&self) -> bool {
        self.place.as_ref().is_none_or(|place| place.rank == 0)
    }

    /// How many of them are on this machine, as far as this process knows.
    pub fn on_this_machine(&self) -> usize {
        let told = std::env::var(LOCAL_WORLD_SIZE).ok().and_then(|size| size.parse().ok());
        let started = self.place.as_ref().filter(|_| self.starts_others).map(|place| place.world_size);
        started.or(told).unwrap_or(1).max(1)
    }

    /// The device of this process, where `device` is that of the first one on this machine.
    pub fn device(&self, device: &str) -> String {
        let local_rank = self.place.as_ref().map_or(0, |place| place.local_rank);
        match device.strip_prefix("cuda:").and_then(|number| number.parse::<usize>().ok()) {
            Some(first) => format!("cuda:{}", first + local_rank),
            None => device.to_owned(),
        }
    }

    /// Meets the others, which leave their logs in `folder`; `None` if this process trains alone. `on_loss` gets the
    /// reason before this process ends because another is lost.
    ///
    /// # Errors
    /// Why they do not train together.
    pub fn join(
        &self,
        config: &TrainConfig,
        inputs: &TrainingInputs,
        folder: &Path,
        on_loss: impl Fn(&RankFailure) + Send + Sync + 'static,
    ) -> anyhow::Result<Option<Joined>> {
        let Some(place) = &self.place else { return Ok(None) };
        let mut others = self.start_others(place, folder)?;
        let identity = Identity {
            build: env!("SHIPREID_BUILD").to_owned(),
            configuration: digest(toml::to_string(config)?.as_bytes()),
            data: fingerprint(&inputs.data)?,
            weights: digest(&tensor_bytes(&inputs.tensors)),
        };
        let rank = place.rank;
        let on_loss = Arc::new(move |failure: &RankFailure| {
            leave_error(rank, &failure.message);
            on_loss(failure);
            // The thread that joins or trains waits for ranks that will not answer.
            std::process::exit(FAILED.into());
        });
        let has_joined = AtomicBool::new(false);
        let joined = thread::scope(|scope| {
            scope.spawn(|| {
                if let Some(failure) = others.ended_before(&has_joined, REASON_WAIT) {
                    on_loss(&failure);
                }
            });
            let on_loss = Arc::clone(&on_loss);
            let joined =
                World::join(place, &identity, self.patience, Box::new(move |failure| on_loss(failure)));
            has_joined.store(true, Ordering::Relaxed);
            joined
        });
        let world = joined.inspect_err(|cause| leave_error(rank, &cause.to_string()))?;
        tracing::info!(rank, processes = world.size(), "the ranks have met");
        Ok(Some(Joined { world: Arc::new(world), _others: others }))
    }
}

/// The processes of a run that has begun.
#[derive(Debug)]
pub struct Joined {
    pub world: Arc<World>,
    /// Waited for at last.
    _others: Others,
}

impl Joined {
    /// Lets gradients go from GPU to GPU where every rank has one.
    ///
    /// # Errors
    /// Why they cannot; the others know.
    pub fn connect(self, device: Device) -> anyhow::Result<Self> {
        let connected = self.world.connect_gpus(!device.is_cpu());
        let connected = connected.map_err(|cause| anyhow!(self.tell_failure("", &cause.to_string())))?;
        tracing::info!(by = if connected { "NCCL" } else { "gloo" }, "gradients are averaged");
        Ok(self)
    }

    /// Tells the others, and torchrun, why this process ends, and of what [kind](RankFailure::kind) that is. Returns the reason
    /// of the first one that failed.
    pub fn tell_failure(&self, kind: &str, failure: &str) -> RankFailure {
        let first = self.world.fail(kind, failure);
        leave_error(self.world.rank(), &first.message);
        first
    }
}

impl Others {
    /// Why one of them has ended before this process `has_joined`; `None` once that is so, or if there are none.
    fn ended_before(&mut self, has_joined: &AtomicBool, reason_wait: Duration) -> Option<RankFailure> {
        let mut ended = None;
        while !has_joined.load(Ordering::Relaxed) && !self.0.is_empty() {
            match &ended {
                Some((at, failure)) if Instant::elapsed(at) > reason_wait => {
                    return Some(RankFailure::clone(failure));
                }
                Some(_) => {}
                None => {
                    ended = self.0.iter_mut().find_map(Other::ended).map(|failure| (Instant::now(), failure))
                }
            }
            thread::sleep(LOOK_PAUSE);
        }
        None
    }
}

impl Other {
    /// Why it has ended, which is the last line of its log if it has written one.
    fn ended(&mut self) -> Option<RankFailure> {
        let status = self.child.try_wait().ok()??;
        let said = fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(said.get(self.log_bytes..).unwrap_or_default());
        let cause = said.lines().last().map_or_else(|| status.to_string(), str::to_owned);
        Some(format!("rank {} has ended before it joined: {cause}", self.rank).into())
    }
}

impl Drop for Others {
    /// Those that have not ended by then are killed.
    fn drop(&mut self) {
        let until = Instant::now() + FAREWELL;
        for Other { rank, child, .. } in &mut self.0 {
            match wait(child, until) {
                Ok(status) if status.success() => {}
                Ok(status) => tracing::debug!(rank, %status, "a rank has ended"),
                Err(cause) => tracing::warn!(rank, %cause, "a rank has not ended"),
            }
        }
    }
}

/// The log of a rank, which continues that of an earlier start unless that has become long.
fn open_log(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
        fs::rename(path, path.with_extension("1.log"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

fn wait(child: &mut Child, until: Instant) -> io::Result<ExitStatus> {
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(LOOK_PAUSE);
    }
    child.kill()?;
    child.wait()
}

/// Writes why this rank fails to the file that torchrun shows.
fn leave_error(rank: usize, reason: &str) {
    let Some(path) = std::env::var_os(ERROR_FILE).filter(|path| !path.is_empty()) else { return };
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let extra = json!({ "timestamp": since_1970.as_secs().to_string(), "rank": rank });
    let text = json!({ "message": { "message": reason, "extraInfo": extra } });
    if let Err(cause) = fs::write(&path, text.to_string()) {
        tracing::warn!(%cause, path = %path.display(), "torchrun will not show why this process ends");
    }
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(script: &str, folder: &Path) -> Other {
        let log = folder.join("rank-1.log");
        fs::write(&log, "an earlier start\n").unwrap();
        let file = open_log(&log).unwrap();
        let log_bytes = file.metadata().unwrap().len() as usize;
        let child = Command::new("sh").args(["-c", script]).stderr(file).spawn().unwrap();
        Other { rank: 1, child, log, log_bytes }
    }

    fn failure_of(script: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let mut others = Others(vec![started(script, folder.path())]);
        others.0[0].child.wait().unwrap();
        others.ended_before(&AtomicBool::new(false), Duration::ZERO).expect("it has ended").message
    }

    #[test]
    fn a_rank_that_ends_before_it_joins_is_named_with_its_last_words() {
        let failure = failure_of("echo starting >&2; echo 'no such device' >&2; exit 1");
        assert_eq!(failure, "rank 1 has ended before it joined: no such device");
        let failure = failure_of("kill -9 $$");
        assert_eq!(failure, "rank 1 has ended before it joined: signal: 9 (SIGKILL)");
    }

    #[test]
    fn ranks_that_have_joined_are_not_watched() {
        let folder = tempfile::tempdir().unwrap();
        let mut others = Others(vec![started("exit 1", folder.path())]);
        assert_eq!(others.ended_before(&AtomicBool::new(true), Duration::ZERO), None);
    }
}
