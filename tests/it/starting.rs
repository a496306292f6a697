//! Failing starts: each phase reports what has failed.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;

use shipreid::app::ServedModels;
use tempfile::TempDir;

use crate::galleries::data_in;
use crate::server::{model, projection, refused};

/// A start with `setting` fails, with one line that begins with `subject`.
async fn check(setting: &str, models: impl Into<ServedModels>, subject: &str) {
    let message = refused(&[setting], models).await;
    assert!(message.starts_with(subject), "{setting}: {message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for port in ["listen", "metrics_listen"] {
        let subject = format!("cannot listen on {address}: ");
        check(&format!("server.{port}={address}"), projection(), &subject).await;
    }
}

#[tokio::test]
async fn galleries_that_cannot_be_opened_are_named() {
    let folder = TempDir::new().unwrap();
    let galleries = folder.path().join("galleries");
    fs::write(&galleries, "no folder").unwrap();
    check(&data_in(&folder), projection(), &format!("{}: ", galleries.display())).await;
}

#[tokio::test]
async fn jobs_that_cannot_be_opened_are_named() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("jobs"), "no folder").unwrap();
    check(&data_in(&folder), projection(), "the training jobs cannot be opened: ").await;
}

#[tokio::test]
async fn a_calibrator_that_cannot_be_read_is_named() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("calibrator.toml");
    let setting = format!("matching.calibrators={}", file.display());
    let subject = format!("{}: ", file.display());
    check(&setting, projection(), &subject).await;
    for content in ["= no TOML", "format = 0"] {
        fs::write(&file, content).unwrap();
        check(&setting, projection(), &subject).await;
    }
}

#[tokio::test]
async fn a_model_that_cannot_run_is_named() {
    let broken = model(Arc::new(|_| Err("no such device".to_owned())));
    check("store.data_dir=", broken, "the model cannot be warmed: no such device").await;
    let mut large = projection();
    large.bytes = u64::MAX;
    check("store.data_dir=", large, &format!("model {} takes ", crate::server::digest())).await;
}
