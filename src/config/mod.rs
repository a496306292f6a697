//! The configuration: one typed structure, read from file, environment and flags, in that order.

mod limits;
mod network;
mod settings;
mod violations;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use limits::Limits;
pub use network::Network;

use crate::arithmetic::{PRECISION_SPEED_MIN, Precision};
use crate::holding::GalleryPattern;
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
    pub uploads: Uploads,
    pub matching: Matching,
    pub training: Training,
    pub limits: Limits,
    pub telemetry: Telemetry,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    pub roles: Vec<ServerRole>,
    pub listen: SocketAddr,
    pub metrics_listen: SocketAddr,
    pub plaintext: Plaintext,
    pub trusted_proxies: Vec<Network>,
    pub drain_notice_seconds: f64,
    pub drain_seconds_max: f64,
}

/// What a server does, beside others that share its galleries, jobs and models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerRole {
    /// Embeds chips for callers.
    Encode,
    /// Has galleries and searches them.
    Match,
    /// Runs training jobs.
    Train,
}

impl ServerRole {
    pub const ALL: [Self; 3] = [Self::Encode, Self::Match, Self::Train];

    /// As in `server.roles`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Encode => "encode",
            Self::Match => "match",
            Self::Train => "train",
        }
    }
}

impl Server {
    pub fn has(&self, role: ServerRole) -> bool {
        self.roles.contains(&role)
    }
}

/// From which addresses calls may be unencrypted.
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
    pub client_crl: String,
    pub handshake_seconds_max: f64,
    pub handshakes_max: usize,
    pub reload_seconds: f64,
}

/// Who may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Auth {
    pub keys_file: String,
    pub rejections_per_second_max: f64,
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

/// Untrained weights for trying out the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    None,
    Tiny,
    Small,
    VitBase,
}

/// Which feature is used as the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// As its family's authors evaluate.
    Auto,
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
    Tiles,
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
    pub url: String,
    pub local_read_seconds_max: f64,
    pub galleries_max: usize,
    pub entries_max: u64,
    pub bytes_max: u64,
    pub cache_bytes: usize,
    pub resident_bytes_max: u64,
}

/// Files that arrive in chunks, to be imported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Uploads {
    pub count_max: u64,
    pub bytes_max: u64,
    pub idle_seconds_max: f64,
}

/// Searching galleries and ranking the results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Matching {
    pub search_threads: usize,
    pub queries_max: usize,
    pub top_k_max: usize,
    pub calibrators: String,
    pub galleries: Vec<GalleryPattern>,
}

/// Training jobs in processes of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    pub jobs_concurrent_max: usize,
    pub jobs_max: usize,
    pub data_roots: Vec<PathBuf>,
    pub device: String,
    pub threads: usize,
    pub processes: usize,
    pub nice: i32,
    pub memory_bytes_max: u64,
    pub heartbeat_seconds_max: f64,
    pub cancel_grace_seconds: f64,
    pub attempts_max: u32,
    pub lease_seconds: f64,
    pub events_retained_max: u64,
    pub program: String,
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
            roles: ServerRole::ALL.to_vec(),
            listen: SocketAddr::from(([127, 0, 0, 1], 50051)),
            metrics_listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            plaintext: Plaintext::Loopback,
            trusted_proxies: Vec::new(),
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
            client_crl: String::new(),
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
        Self { keys_file: String::new(), rejections_per_second_max: 10.0, reload_seconds: 10.0 }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            path: String::new(),
            preset: Preset::None,
            seed: 0,
            feature: Feature::Auto,
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
            url: String::new(),
            local_read_seconds_max: 1.0,
            galleries_max: 100,
            entries_max: 10_000_000,
            bytes_max: 100 << 30,
            cache_bytes: 64 << 20,
            resident_bytes_max: 0,
        }
    }
}

impl Default for Uploads {
    fn default() -> Self {
        Self { count_max: 64, bytes_max: 32 << 30, idle_seconds_max: 86_400.0 }
    }
}

impl Default for Matching {
    fn default() -> Self {
        Self {
            search_threads: 0,
            queries_max: 64,
            top_k_max: 1000,
            calibrators: String::new(),
            galleries: Vec::new(),
        }
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
            processes: 1,
            nice: 20,
            memory_bytes_max: 0,
            heartbeat_seconds_max: 120.0,
            cancel_grace_seconds: 20.0,
            attempts_max: 3,
            lease_seconds: 30.0,
            events_retained_max: 100_000,
            program: String::new(),
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

/// An invalid configuration. Every message is one line that names the key.
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

/// Sources of settings in addition to the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// Environment of the process, or one supplied by a test.
    pub environment: Vec<(String, String)>,
    /// `section.key=value` in the order given; the last wins.
    pub flags: Vec<String>,
}

impl Config {
    /// Defaults, then file, then environment, then flags; checked as a whole.
    ///
    /// # Errors
    /// The first source that cannot be read or has an unknown key, or every value out of bounds at once.
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

    /// Defaults and then `text`, which messages call `source_name`; checked as a whole.
    ///
    /// # Errors
    /// The text is not valid TOML or has an unknown key, or every value out of bounds at once.
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
mod tests;
