//! Training in several processes: started here, by torchrun or by Kubernetes.

use std::fs;
use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use shipreid::distributed::{Identity, Patience, Place, World, WorldError};
use shipreid::jobs::die_with_parent;
use shipreid::train::{Shard, TrainConfig, TrainingInputs, fingerprint};
use shipreid::weights::native::tensor_bytes;

use super::{FAILED, output};

/// Where torchrun expects to read why a process has failed.
const ERROR_FILE: &str = "TORCHELASTIC_ERROR_FILE";
/// How long the other processes may take to end after this one, and the pause between two looks.
const FAREWELL: Duration = Duration::from_secs(30);
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// This process and those that train with it.
#[derive(Debug, Default)]
pub struct Ranks {
    /// `None`: this process trains alone.
    place: Option<Place>,
    /// Those that this one has started.
    others: Others,
}

#[derive(Debug, Default)]
struct Others(Vec<(usize, Child)>);

impl Ranks {
    /// The place that a launcher has given this process, or rank 0 of `processes`, of which it starts the others.
    ///
    /// # Errors
    /// The environment contradicts itself or the flag, or a process cannot be started.
    pub fn start(processes: usize) -> anyhow::Result<Self> {
        if let Some(place) = Place::of_environment(|name| std::env::var(name).ok())? {
            // Killing torchrun leaves its processes.
            die_with_parent()?;
            return Ok(Self { place: Some(place), others: Others::default() });
        }
        if processes <= 1 {
            return Ok(Self::default());
        }
        let place = Place::first_of(processes)?;
        let mut others = Others::default();
        for rank in 1..processes {
            let environment = Place { rank, local_rank: rank, ..place.clone() }.environment();
            let mut command = Command::new(std::env::current_exe()?);
            command.args(std::env::args_os().skip(1)).envs(environment);
            // A terminal reaches them through this process, and what they print is that of rank 0.
            command.stdin(Stdio::null()).stdout(Stdio::null());
            others.0.push((rank, command.spawn()?));
        }
        Ok(Self { place: Some(place), others })
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
        let told = std::env::var("LOCAL_WORLD_SIZE").ok().and_then(|size| size.parse().ok());
        told.unwrap_or(1 + self.others.0.len()).max(1)
    }

    /// The device of this process, where `device` is that of the first one on this machine.
    pub fn device(&self, device: &str) -> String {
        let local_rank = self.place.as_ref().map_or(0, |place| place.local_rank);
        match device.strip_prefix("cuda:").and_then(|number| number.parse::<usize>().ok()) {
            Some(first) => format!("cuda:{}", first + local_rank),
            None => device.to_owned(),
        }
    }

    /// Meets the others; `None` if this process trains alone.
    ///
    /// # Errors
    /// Why they do not train together.
    pub fn join(&self, config: &TrainConfig, inputs: &TrainingInputs) -> anyhow::Result<Option<Arc<World>>> {
        let Some(place) = &self.place else { return Ok(None) };
        let identity = Identity {
            build: env!("SHIPREID_BUILD").to_owned(),
            configuration: digest(toml::to_string(config)?.as_bytes()),
            data: fingerprint(&inputs.data)?,
            weights: digest(&tensor_bytes(&inputs.tensors)),
        };
        let rank = place.rank;
        let on_loss = Box::new(move |loss: &str| {
            leave_error(rank, loss);
            output::remark(format_args!("shipreid: {loss}"));
            // The thread that trains waits for ranks that will not answer.
            std::process::exit(FAILED.into());
        });
        let joined = World::join(place, &identity, Patience::default(), on_loss);
        Ok(Some(Arc::new(joined.inspect_err(|cause: &WorldError| leave_error(rank, &cause.to_string()))?)))
    }
}

impl Drop for Others {
    /// They end by themselves once the run has, for whatever reason; those that do not are killed.
    fn drop(&mut self) {
        let until = Instant::now() + FAREWELL;
        for (rank, child) in &mut self.0 {
            match wait(child, until) {
                Ok(status) if status.success() => {}
                Ok(status) => tracing::debug!(rank, %status, "a rank has ended"),
                Err(cause) => tracing::warn!(rank, %cause, "a rank has not ended"),
            }
        }
    }
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

/// Tells the others, and torchrun, why this process ends. Returns the reason of the first one that failed.
pub fn tell_failure(world: &World, failure: &str) -> String {
    let reason = world.fail(failure);
    leave_error(world.rank(), &reason);
    reason
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
