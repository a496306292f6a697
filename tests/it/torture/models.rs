//! Models that are imported, activated and deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rand::RngExt;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;
use shipreid::client::{Client, ClientError};
use shipreid::registry::{Provenance, Registry, RegistryLimits};
use shipreid::weights::any::AnyModel;
use shipreid::weights::native::read_description;
use shipreid::weights::open::OpenModel;
use shipreid::weights::seed::seeded;
use shipreid::wire::{ActivateModelRequest, CheckpointHints, DeleteModelRequest};
use tonic::Status;

use super::Caller;

/// Digests and files of models that the server does not have initially.
pub type Files = BTreeMap<String, PathBuf>;

/// The folder in which [`exported`] leaves the models themselves.
pub const ELSEWHERE: &str = "elsewhere";

/// Models of the architecture of `model`, a folder, in the form that another server exports.
pub fn exported(model: &Path, folder: &Path) -> Files {
    let like = read_description(model).unwrap();
    let registry =
        Registry::open(&folder.join(ELSEWHERE), RegistryLimits { count_max: 9, bytes_max: 1 << 30 });
    let registry = registry.unwrap();
    let export = |seed: u64| {
        let architecture = like.architecture;
        let model = OpenModel::new(architecture, like.feature_point, seeded(&architecture, seed));
        let model = AnyModel::from(model);
        registry.add(&model, &Provenance::now(format!("seed {seed}"))).unwrap();
        let path = folder.join(format!("{seed}.zip"));
        registry.export(model.digest()).unwrap().write_to(std::fs::File::create(&path).unwrap()).unwrap();
        (model.digest().to_string(), path)
    };
    (1..=3).map(export).collect()
}

pub struct Owner {
    files: Files,
}

impl Owner {
    pub fn new(files: Files) -> Self {
        Self { files }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Models {
    kept: BTreeSet<String>,
    active: String,
}

pub enum Call {
    Import(String),
    Activate(String),
    Delete(String),
}

impl Caller for Owner {
    type Part = Models;
    type Call = Call;

    async fn observe(&mut self, client: &Client) -> Models {
        let models = client.list_models().await.unwrap();
        assert!(models.iter().all(|model| model.damage.is_empty()), "{models:?}");
        let active: Vec<_> =
            models.iter().filter(|model| model.active).map(|model| model.digest.clone()).collect();
        let [active] = <[String; 1]>::try_from(active).expect("one is active");
        let kept =
            models.into_iter().map(|model| model.digest).filter(|digest| self.files.contains_key(digest));
        Models { kept: kept.collect(), active }
    }

    fn draw(&mut self, models: &Models, random: &mut ChaCha8Rng) -> (Call, Models) {
        let mut after = models.clone();
        let idle: Vec<_> = models.kept.iter().filter(|digest| **digest != models.active).cloned().collect();
        let absent: Vec<_> =
            self.files.keys().filter(|digest| !models.kept.contains(*digest)).cloned().collect();
        let call = match random.random_range(0..3) {
            0 if !idle.is_empty() => {
                let digest = idle.into_iter().choose(random).expect("there is one");
                after.kept.remove(&digest);
                Call::Delete(digest)
            }
            1 if !absent.is_empty() => {
                let digest = absent.into_iter().choose(random).expect("there is one");
                after.kept.insert(digest.clone());
                Call::Import(digest)
            }
            _ => {
                let choice = models.kept.iter().chain([&models.active]).choose(random);
                after.active = choice.expect("the active one").clone();
                Call::Activate(after.active.clone())
            }
        };
        (call, after)
    }

    async fn perform(&mut self, client: &Client, call: Call) -> Result<(), Status> {
        match call {
            Call::Import(digest) => {
                let imported =
                    client.import_model(&self.files[&digest], CheckpointHints::default(), |_| {}).await;
                assert_eq!(imported.map_err(status)?.model.unwrap().digest, digest);
            }
            Call::Activate(digest) => {
                client.models().activate_model(ActivateModelRequest { digest }).await?;
            }
            Call::Delete(digest) => {
                client.models().delete_model(DeleteModelRequest { digest }).await?;
            }
        }
        Ok(())
    }
}

fn status(error: ClientError) -> Status {
    match error {
        ClientError::Refused(status) => *status,
        other => Status::unavailable(other.to_string()),
    }
}
