//! A server on free ports, with a seeded pixel projection in place of a model.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use metrics_exporter_prometheus::PrometheusHandle;
use shipreid::app::{self, LoadedModel, Running, ServedModels};
use shipreid::arithmetic::Precision;
use shipreid::chip::{ChipSize, SarStretch};
use shipreid::client::Client;
use shipreid::config::{Config, Sources};
use shipreid::embedding::ModelDigest;
use shipreid::encoder::{Encoder, EncoderFactory, ModelCard, PixelProjection};
use shipreid::metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

pub const DIMENSION: usize = 32;

/// Digest with which the projection is served.
pub fn digest() -> ModelDigest {
    ModelDigest::new([7; 32])
}

/// Starts a server with settings in the form `section.key=value`.
pub async fn start(settings: &[&str]) -> (Running, Client) {
    start_serving(settings, projection()).await
}

pub async fn start_with(settings: &[&str], factory: EncoderFactory) -> (Running, Client) {
    start_serving(settings, model(factory)).await
}

pub fn projection() -> LoadedModel {
    model(Arc::new(|_| Ok(Box::new(PixelProjection::new(DIMENSION, 1)) as Box<dyn Encoder>)))
}

/// The encoder that `factory` creates, in place of the projection.
pub fn model(factory: EncoderFactory) -> LoadedModel {
    let chip_size = ChipSize { height: 64, width: 32 };
    let card = ModelCard {
        digest: digest(),
        dimension: DIMENSION,
        chip_size,
        sar_stretch: SarStretch::default(),
        precision: Precision::F32,
        members: None,
    };
    LoadedModel { card, factory, workers: 1, bytes: 1 }
}

pub async fn start_serving(settings: &[&str], models: impl Into<ServedModels>) -> (Running, Client) {
    let running = serve(settings, models).await;
    let client = Client::connect(&format!("http://{}", running.address)).await.unwrap();
    (running, client)
}

/// Starts a server to which a test connects on its own.
pub async fn start_alone(settings: &[&str]) -> Running {
    serve(settings, projection()).await
}

async fn serve(settings: &[&str], models: impl Into<ServedModels>) -> Running {
    app::start(&config(settings), models, recorder()).await.unwrap()
}

/// The program's error message when a server cannot start.
pub async fn refused(settings: &[&str], models: impl Into<ServedModels>) -> String {
    let started = app::start(&config(settings), models, recorder()).await;
    format!("{:#}", started.err().expect("it cannot start"))
}

fn config(settings: &[&str]) -> Config {
    let defaults = ["server.listen=127.0.0.1:0", "server.metrics_listen=127.0.0.1:0", "store.data_dir="];
    let flags = defaults.iter().chain(settings).map(|setting| (*setting).to_owned()).collect();
    Config::load(&Sources { flags, ..Sources::default() }).unwrap()
}

/// One recorder for all servers of this process.
fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER.get_or_init(|| metrics::install().unwrap()).clone()
}

/// The value of a counter, whichever server of this process it comes from; `series` is its name
/// with its labels.
pub fn counted(series: &str) -> u64 {
    let page = recorder().render();
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

/// The details of an error, which every error of this API carries.
pub fn details(status: &Status) -> (String, ErrorDetails) {
    let details = status.get_error_details();
    let info = details.error_info().expect("every error has an ErrorInfo");
    assert_eq!(info.domain, "shipreid");
    (info.reason.clone(), details)
}

/// A golden image of the reference.
pub fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/golden/images/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The answer of a page of the second port, including headers.
pub async fn page(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
