//! The configuration: one typed structure, read from file, environment and flags, in that order.

mod settings;
mod violations;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::arithmetic::{PRECISION_SPEED_MIN, Precision};
use settings::Settings;

/// Environment variables `SHIPREID__SECTION__KEY` override the file.
const ENVIRONMENT_PREFIX: &str = "SHIPREID__";

/// Everything that an operator can set. `configs/server.toml` documents every key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub server: Server,
    pub tls: Tls,
    pub auth: Auth,
    pub model: Model,
    pub models: Models,
    pub encoder: Encoder,
    pub chips: Chips,
    pub store: Store,
    pub matching: Matching,
    pub training: Training,
    pub limits: Limits,
    pub telemetry: Telemetry,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    pub listen: SocketAddr,
    pub metrics_listen: SocketAddr,
    pub plaintext: Plaintext,
    pub drain_notice_seconds: f64,
    pub drain_seconds_max: f64,
}

/// From where calls may come unencrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plaintext {
    Loopback,
    Everywhere,
}

/// Encryption of the gRPC port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tls {
    pub certificate: String,
    pub key: String,
    pub client_ca: String,
    pub handshake_seconds_max: f64,
    pub handshakes_max: usize,
    pub reload_seconds: f64,
}

/// Who may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Auth {
    pub keys_file: String,
    pub reload_seconds: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    pub path: String,
    pub preset: Preset,
    pub seed: u64,
    pub feature: Feature,
    pub heads: usize,
    pub weights: String,
}

/// Models on disk and in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Models {
    pub count_max: usize,
    pub bytes_max: u64,
    pub resident_bytes_max: u64,
}

/// Untrained weights to try the service with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    None,
    Tiny,
    Small,
    VitBase,
}

/// Which feature becomes the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    BeforeNeck,
    AfterNeck,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Encoder {
    pub device: String,
    pub precision: Precision,
    pub precision_speed_min: f64,
    pub linear: Linear,
    pub workers: usize,
    pub threads_per_worker: usize,
    pub batch_max: usize,
    pub queue_items_max: usize,
    pub queue_bytes_max: usize,
    pub canary_seconds: f64,
}

/// Which matrix multiplication the linear layers use on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Linear {
    Auto,
    Aten,
    Onednn,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chips {
    pub bytes_max: usize,
    pub pixels_max: u64,
    pub decode_threads: usize,
}

/// Galleries on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Store {
    pub data_dir: String,
    pub galleries_max: usize,
    pub entries_max: u64,
    pub bytes_max: u64,
    pub cache_bytes: usize,
}

/// Searching galleries and ranking what is found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Matching {
    pub search_threads: usize,
    pub queries_max: usize,
    pub top_k_max: usize,
    pub calibrators: String,
}

/// Training jobs in processes of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    pub jobs_concurrent_max: usize,
    pub jobs_max: usize,
    pub data_roots: Vec<PathBuf>,
    pub device: String,
    pub threads: usize,
    pub nice: i32,
    pub memory_bytes_max: u64,
    pub heartbeat_seconds_max: f64,
    pub cancel_grace_seconds: f64,
    pub attempts_max: u32,
    pub events_retained_max: u64,
    pub program: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub message_bytes_max: usize,
    pub receiving_bytes_max: usize,
    pub chips_per_request_max: usize,
    pub calls_max: usize,
    pub calls_per_second_max: u32,
    pub calls_burst_max: u32,
    pub deadline_seconds_default: f64,
    pub deadline_seconds_max: f64,
    pub stream_inflight_max: usize,
    pub enroll_inflight_max: usize,
    pub connections_max: usize,
    pub header_seconds_max: f64,
    pub idle_seconds_max: f64,
    pub connection_seconds_max: f64,
    pub connection_grace_seconds: f64,
    pub pending_resets_max: usize,
    pub streams_per_connection_max: u32,
    pub header_bytes_max: u32,
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    pub keepalive_seconds: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    pub log_format: LogFormat,
    pub log_filter: String,
    pub otlp_endpoint: String,
    pub otlp_sample_ratio: f64,
    pub service_name: String,
    pub audit_file: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50051)),
            metrics_listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            plaintext: Plaintext::Loopback,
            drain_notice_seconds: 3.0,
            drain_seconds_max: 30.0,
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: String::new(),
            key: String::new(),
            client_ca: String::new(),
            handshake_seconds_max: 10.0,
            handshakes_max: 64,
            reload_seconds: 10.0,
        }
    }
}

impl Tls {
    /// Whether the gRPC port is encrypted.
    pub fn is_on(&self) -> bool {
        !self.certificate.is_empty()
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self { keys_file: String::new(), reload_seconds: 10.0 }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            path: String::new(),
            preset: Preset::None,
            seed: 0,
            feature: Feature::BeforeNeck,
            heads: 0,
            weights: String::new(),
        }
    }
}

impl Default for Models {
    fn default() -> Self {
        Self { count_max: 100, bytes_max: 64 << 30, resident_bytes_max: 32 << 30 }
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            device: "cpu".into(),
            precision: Precision::F32,
            precision_speed_min: PRECISION_SPEED_MIN,
            linear: Linear::Auto,
            workers: 0,
            threads_per_worker: 0,
            batch_max: 8,
            queue_items_max: 512,
            queue_bytes_max: 512 << 20,
            canary_seconds: 30.0,
        }
    }
}

impl Default for Chips {
    fn default() -> Self {
        Self { bytes_max: 16 << 20, pixels_max: 16 << 20, decode_threads: 0 }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            data_dir: "shipreid-data".into(),
            galleries_max: 100,
            entries_max: 10_000_000,
            bytes_max: 100 << 30,
            cache_bytes: 64 << 20,
        }
    }
}

impl Default for Matching {
    fn default() -> Self {
        Self { search_threads: 0, queries_max: 64, top_k_max: 1000, calibrators: String::new() }
    }
}

impl Default for Training {
    fn default() -> Self {
        Self {
            jobs_concurrent_max: 1,
            jobs_max: 1000,
            data_roots: Vec::new(),
            device: "cpu".into(),
            threads: 0,
            nice: 10,
            memory_bytes_max: 0,
            heartbeat_seconds_max: 120.0,
            cancel_grace_seconds: 20.0,
            attempts_max: 3,
            events_retained_max: 100_000,
            program: String::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 64 << 20,
            receiving_bytes_max: 512 << 20,
            chips_per_request_max: 64,
            calls_max: 256,
            calls_per_second_max: 0,
            calls_burst_max: 100,
            deadline_seconds_default: 60.0,
            deadline_seconds_max: 600.0,
            stream_inflight_max: 32,
            enroll_inflight_max: 1024,
            connections_max: 1000,
            header_seconds_max: 30.0,
            idle_seconds_max: 900.0,
            connection_seconds_max: 0.0,
            connection_grace_seconds: 60.0,
            pending_resets_max: 256,
            streams_per_connection_max: 128,
            header_bytes_max: 16 << 10,
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 8 << 20,
            keepalive_seconds: 30.0,
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Text,
            log_filter: "info".into(),
            otlp_endpoint: String::new(),
            otlp_sample_ratio: 1.0,
            service_name: "shipreid".into(),
            audit_file: String::new(),
        }
    }
}

/// A configuration that cannot be used. Every message is one line that names the key.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {cause}")]
    Unreadable { path: PathBuf, cause: String },
    #[error("{source_name} is not valid TOML: {cause}")]
    Syntax { source_name: String, cause: String },
    #[error("{source_name} sets the unknown key {key}{}", settings::hint(.nearest.as_deref()))]
    UnknownKey { source_name: String, key: String, nearest: Option<String> },
    #[error("{source_name} gives {key} {cause}")]
    WrongType { source_name: String, key: String, cause: String },
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
}

/// Where settings come from besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// Environment of the process, or a test's.
    pub environment: Vec<(String, String)>,
    /// `section.key=value` in the order given; the last wins.
    pub flags: Vec<String>,
}

impl Config {
    /// Defaults, then file, then environment, then flags; checked as a whole.
    ///
    /// # Errors
    /// The first source that cannot be read or names an unknown key, or every value out of bounds at once.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut settings = Settings::new();
        if let Some(path) = &sources.file {
            settings.apply_file(path)?;
        }
        for (name, value) in &sources.environment {
            if let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) {
                settings.apply_text(name, &rest.to_lowercase().replace("__", "."), value)?;
            }
        }
        for flag in &sources.flags {
            let (key, value) = flag.split_once('=').ok_or_else(|| ConfigError::WrongType {
                source_name: format!("--set {flag}"),
                key: flag.clone(),
                cause: "no value: write section.key=value".into(),
            })?;
            settings.apply_text(&format!("--set {flag}"), key, value)?;
        }
        settings.finish()?.checked()
    }

    /// Defaults and then `text`, which is called `source_name`; checked as a whole.
    ///
    /// # Errors
    /// The text is no TOML or names an unknown key, or every value out of bounds at once.
    pub fn parse(source_name: &str, text: &str) -> Result<Self, ConfigError> {
        let mut settings = Settings::new();
        settings.apply_toml(source_name, text)?;
        settings.finish()?.checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let violations = violations::violations(&self);
        if violations.is_empty() { Ok(self) } else { Err(ConfigError::Invalid(violations)) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use toml::{Table, Value};

    use super::*;

    fn load(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("server.toml");
        std::fs::write(&path, file).expect("a file");
        Config::load(&Sources {
            file: Some(path),
            environment: environment.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            flags: flags.iter().map(|flag| (*flag).into()).collect(),
        })
    }

    #[test]
    fn later_sources_win() {
        let file = "[encoder]\nbatch_max = 4\nworkers = 3\nprecision = \"bf16\"";
        let config =
            load(file, &[("SHIPREID__ENCODER__BATCH_MAX", "16"), ("HOME", "x")], &["encoder.batch_max=32"])
                .expect("valid");
        assert_eq!(config.encoder.batch_max, 32);
        assert_eq!(config.encoder.workers, 3);
        assert_eq!(config.encoder.precision, Precision::Bf16);
    }

    #[test]
    fn a_list_is_written_with_colons_outside_of_files() {
        let roots = |file: &str, flags: &[&str]| load(file, &[], flags).expect("valid").training.data_roots;
        assert_eq!(
            roots("[training]\ndata_roots = [\"/a\", \"/b\"]", &[]),
            [Path::new("/a"), Path::new("/b")]
        );
        assert_eq!(roots("", &["training.data_roots=/a:/b c"]), [Path::new("/a"), Path::new("/b c")]);
        assert!(roots("", &["training.data_roots="]).is_empty());
    }

    #[test]
    fn an_unknown_key_names_the_nearest_valid_one() {
        for (file, environment, key, nearest) in [
            ("[encoder]\nbatch_maximum = 4", None, "encoder.batch_maximum", "encoder.batch_max"),
            ("[encodr]\nbatch_max = 4", None, "encodr", "encoder"),
            ("", Some("SHIPREID__SERVER__LISTN"), "server.listn", "server.listen"),
        ] {
            let environment: Vec<_> = environment.map(|name| (name, "1")).into_iter().collect();
            match load(file, &environment, &[]) {
                Err(ConfigError::UnknownKey { key: found, nearest: Some(hint), .. }) => {
                    assert_eq!((found.as_str(), hint.as_str()), (key, nearest));
                }
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_wrong_value_names_its_key_and_source() {
        for (file, flags, part) in [
            ("[encoder]\nbatch_max = \"many\"", &[][..], "encoder.batch_max"),
            ("", &["encoder.batch_max=many"][..], "encoder.batch_max"),
            ("[encoder]\nprecision = \"f16\"", &[][..], "encoder.precision"),
            ("[server]\nlisten = \"nowhere\"", &[][..], "server.listen"),
            ("", &["encoder.batch_max"][..], "section.key=value"),
            ("[encoder]\nprecision = \"a\\nb\"", &[][..], "encoder.precision"),
            ("[encoder]\n\"a\\nb\" = 1", &[][..], "unknown key encoder.a b"),
        ] {
            let message = load(file, &[], flags).expect_err("a wrong value").to_string();
            assert!(message.contains(part) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn every_violation_is_reported_at_once() {
        let flags = ["encoder.batch_max=0", "limits.calls_max=0", "encoder.device=tpu"];
        match load("", &[], &flags) {
            Err(ConfigError::Invalid(violations)) => assert_eq!(violations.len(), 3, "{violations:?}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn beyond_loopback_it_is_tls_or_words() {
        let listen = "server.listen=0.0.0.0:50051";
        match load("", &[], &[listen]) {
            Err(ConfigError::Invalid(violations)) => assert_eq!(violations.len(), 1, "{violations:?}"),
            other => panic!("{other:?}"),
        }
        load("", &[], &[listen, "server.plaintext=everywhere"]).expect("said in words");
        load("", &[], &[listen, "tls.certificate=a.pem", "tls.key=a.key"]).expect("encrypted");
        load("", &[], &["server.listen=[::1]:50051"]).expect("loopback");
    }

    #[test]
    fn the_shipped_file_is_the_defaults_and_comments_every_key() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/server.toml");
        let config =
            Config::load(&Sources { file: Some(path.clone()), ..Sources::default() }).expect("valid");
        assert_eq!(config, Config::default());
        let text = std::fs::read_to_string(path).expect("valid");
        let lines: Vec<&str> = text.lines().collect();
        let present: Vec<&str> = lines
            .iter()
            .enumerate()
            .filter(|(_, line)| line.contains(" = ") && !line.starts_with('#'))
            .map(|(number, line)| {
                assert!(lines[number - 1].starts_with("# "), "no comment above {line}");
                line.split(" = ").next().expect("valid")
            })
            .collect();
        let wanted = Settings::new().into_table();
        let wanted: usize = wanted.values().filter_map(Value::as_table).map(Table::len).sum();
        assert_eq!(present.len(), wanted, "every key once");
    }
}
