//! One corrupted byte or file in the server's data other than galleries: the server still starts,
//! and reports the damage.

use std::path::{Path, PathBuf};

use shipreid::client::Client;
use shipreid::jobs::JOB_STORE;
use shipreid::registry::PROVENANCE;
use shipreid::weights::native;
use shipreid::wire::{
    ActivateModelRequest, CheckpointHints, GetGalleryRequest, GetModelRequest, ListTrainingJobsRequest,
};
use tempfile::TempDir;
use tonic::Code;

use crate::galleries::{GALLERY, create, data_in, refusal};
use crate::program::{GOLDEN, Server, imported};

/// The data folder of a server with a gallery and an activated model that differs from the configured one.
struct Place {
    folder: TempDir,
    configured: PathBuf,
    active: String,
}

impl Place {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let configured = imported(folder.path());
        let server = Server::start(&configured, &[&data_in(&folder)]);
        let client = Client::connect(&server.endpoint).await.unwrap();
        create(&client, GALLERY).await;
        let hints = CheckpointHints {
            heads: 2,
            image_height: 64,
            image_width: 32,
            feature_point: shipreid::wire::FeaturePoint::AfterNeck.into(),
            ..CheckpointHints::default()
        };
        let file = PathBuf::from(format!("{GOLDEN}/ckpt_wrapped.pth"));
        let other = client.import_model(&file, hints, |_| {}).await.unwrap().model.unwrap();
        let digest = other.digest.clone();
        client.models().activate_model(ActivateModelRequest { digest }).await.unwrap();
        server.terminate();
        Self { folder, configured, active: other.digest }
    }

    /// The server after `path` in the data folder was corrupted.
    async fn rotten(&self, path: &Path) -> (Server, Client) {
        let path = self.folder.path().join(path);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..].iter_mut().take(64).for_each(|byte| *byte ^= 0x55);
        bytes.iter_mut().take(64).for_each(|byte| *byte ^= 0x55);
        std::fs::write(&path, bytes).unwrap();
        self.serve().await
    }

    /// Starts the server, and checks that it serves its gallery.
    async fn serve(&self) -> (Server, Client) {
        let server = Server::start(&self.configured, &[&data_in(&self.folder)]);
        let client = Client::connect(&server.endpoint).await.unwrap();
        let get = GetGalleryRequest { name: GALLERY.into() };
        client.galleries().get_gallery(get).await.unwrap();
        (server, client)
    }
}

async fn active(client: &Client) -> String {
    let get = GetModelRequest::default();
    client.models().get_model(get).await.unwrap().into_inner().model.unwrap().digest
}

#[tokio::test]
async fn a_server_starts_and_serves_its_galleries_whatever_else_is_damaged() {
    let place = Place::new().await;
    let model = Path::new("models").join(&place.active);
    for (file, active_stays) in [
        (Path::new("models").join("active.toml"), true),
        (model.join(PROVENANCE), true),
        (model.join(native::TENSORS), false),
    ] {
        let (server, client) = place.rotten(&file).await;
        assert_eq!(active(&client).await == place.active, active_stays, "{}", file.display());
        server.terminate();
    }

    let store = Path::new("jobs").join(JOB_STORE);
    let (server, client) = place.rotten(&store).await;
    let rotten = std::fs::read(place.folder.path().join(&store)).unwrap();
    let listed = client.training_jobs().list_training_jobs(ListTrainingJobsRequest::default()).await;
    assert_eq!(refusal(listed), (Code::DataLoss, "JOB_STORE_DAMAGED".to_owned()));
    server.terminate();
    assert_eq!(std::fs::read(place.folder.path().join(&store)).unwrap(), rotten, "it is kept as it is");

    // A missing store does not affect other functions either.
    let path = place.folder.path().join(&store);
    std::fs::create_dir(path.with_file_name("job-7")).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (server, client) = place.serve().await;
    let listed = client.training_jobs().list_training_jobs(ListTrainingJobsRequest::default()).await;
    assert_eq!(refusal(listed), (Code::DataLoss, "JOB_STORE_DAMAGED".to_owned()));
    server.terminate();
    assert!(!path.exists() && path.with_file_name("job-7").exists());
}
