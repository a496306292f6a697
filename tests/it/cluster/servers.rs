//! Servers that share a database, each through a network of its own.

use std::fs;
use std::path::{Path, PathBuf};

use shipreid::client::Client;
use shipreid::wire::CreateGalleryRequest;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::block_in_place;

use super::database::Database;
use super::proxy::Proxy;
use crate::program::{Server, imported};
use crate::tools::skipped;

pub struct Cluster {
    pub database: Database,
    /// It takes over when the database fails.
    pub standby: Option<Database>,
    pub servers: Vec<Member>,
    folder: TempDir,
    /// What they serve.
    pub model: PathBuf,
    /// Of every server, beside those that tell it from the others.
    settings: Vec<String>,
}

/// One server, which may be down.
pub struct Member {
    pub name: String,
    pub proxy: Proxy,
    to_standby: Option<Proxy>,
    process: Option<Server>,
    /// A connection to it while it is up.
    pub client: watch::Sender<Option<Client>>,
    data: PathBuf,
}

impl Cluster {
    /// `None` where PostgreSQL is not installed.
    pub async fn start(servers: usize) -> Option<Self> {
        Self::start_with(servers, vec![]).await
    }

    /// The same with these settings.
    pub async fn start_with(servers: usize, settings: Vec<String>) -> Option<Self> {
        let Some(database) = Database::start(&[]) else {
            skipped("tests/it/cluster", "no PostgreSQL (make operators)");
            return None;
        };
        Some(Self::start_on(database, None, servers, settings).await)
    }

    /// The same with a standby that has every commit before it is acknowledged.
    pub async fn start_with_standby(servers: usize) -> Option<Self> {
        let Some(database) = Database::start(&["synchronous_commit=remote_apply"]) else {
            skipped("tests/it/cluster", "no PostgreSQL (make operators)");
            return None;
        };
        let standby = database.standby();
        database.replicate().await;
        Some(Self::start_on(database, Some(standby), servers, vec![]).await)
    }

    async fn start_on(
        database: Database,
        standby: Option<Database>,
        servers: usize,
        settings: Vec<String>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = imported(folder.path());
        let mut cluster = Self { database, standby, servers: vec![], folder, model, settings };
        for number in 0..servers {
            let proxy = Proxy::start(cluster.database.socket()).await;
            let to_standby = match &cluster.standby {
                Some(standby) => Some(Proxy::start(standby.socket()).await),
                None => None,
            };
            let (name, data) = (format!("server-{number}"), cluster.folder.path().join(number.to_string()));
            let client = watch::Sender::new(None);
            cluster.servers.push(Member { name, proxy, to_standby, process: None, client, data });
            cluster.start_server(number).await;
        }
        cluster
    }

    pub async fn start_server(&mut self, number: usize) {
        let Self { servers, model, settings, .. } = self;
        servers[number].start(model, settings).await;
    }

    pub fn client(&self, number: usize) -> Client {
        self.servers[number].client.borrow().clone().expect("it is up")
    }

    /// Makes a gallery, and returns its model.
    pub async fn create(&self, name: &str) -> String {
        let request = CreateGalleryRequest { name: name.into(), ..CreateGalleryRequest::default() };
        let made = self.client(0).galleries().create_gallery(request).await.unwrap().into_inner();
        made.gallery.unwrap().model
    }
}

impl Member {
    async fn start(&mut self, model: &Path, settings: &[String]) {
        let hosts = [Some(&self.proxy), self.to_standby.as_ref()].into_iter().flatten();
        let hosts: Vec<_> = hosts.map(|proxy| format!("127.0.0.1:{}", proxy.port)).collect();
        let url = format!(
            "store.url=postgres://shipreid@{}/postgres?sslmode=disable&application_name={}",
            hosts.join(","),
            self.name
        );
        let data = format!("store.data_dir={}", self.data.display());
        let settings: Vec<&str> = [&url, &data].into_iter().chain(settings).map(String::as_str).collect();
        let server = block_in_place(|| Server::start(model, &settings));
        let client = Client::connect(&server.endpoint).await.unwrap();
        self.process = Some(server);
        self.client.send_replace(Some(client));
    }

    pub fn kill(&mut self) {
        // Calls that cannot reach it would say nothing.
        self.client.send_replace(None);
        self.process.take().expect("it is up").kill();
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(&mut self) {
        self.client.send_replace(None);
        self.process.take().expect("it is up").terminate();
    }

    pub fn signal(&self, signal: libc::c_int) {
        self.process.as_ref().expect("it is up").signal(signal);
    }

    /// Removes its copies of the galleries, as a lost disk does.
    pub fn lose_disk(&self) {
        fs::remove_dir_all(&self.data).unwrap();
    }
}
