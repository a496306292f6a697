//! The server that a command connects to, and the credentials it uses.

use std::env::{self, VarError};
use std::path::PathBuf;

use clap::Args;
use shipreid::client::{Access, ApiKey, Client};

use super::{ENDPOINT, Refusal};

/// Holds the key if no file is given.
const KEY_VARIABLE: &str = "SHIPREID_API_KEY";
/// Names the server if no flag does.
const ENDPOINT_VARIABLE: &str = "SHIPREID_ENDPOINT";

/// The server that a command talks to.
#[derive(Args)]
pub struct ServerFlag {
    /// The server, as host:port, http://host:port or https://host:port; default: that of the environment variable
    /// SHIPREID_ENDPOINT, else http://127.0.0.1:50051.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    #[command(flatten)]
    access: AccessFlags,
}

/// How to connect to a server. The key itself is not an argument, since every user of the machine can see those.
#[derive(Args)]
pub struct AccessFlags {
    /// Certificate authorities (PEM) for https:// servers; default: the system's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Client certificate (PEM), for a server that requires one.
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Key of the client certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
    /// File with the API key; default: the environment variable SHIPREID_API_KEY.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

impl ServerFlag {
    pub async fn connect(&self) -> anyhow::Result<Client> {
        self.access.connect(&self.endpoint()?).await
    }

    /// Another server, with the same credentials.
    pub async fn connect_to(&self, endpoint: &str) -> anyhow::Result<Client> {
        self.access.connect(endpoint).await
    }

    /// The address of the server.
    ///
    /// # Errors
    /// The environment variable that names it is not UTF-8.
    pub fn endpoint(&self) -> Result<String, Refusal> {
        let named = match &self.endpoint {
            Some(endpoint) => Some(endpoint.clone()),
            None => endpoint_of_environment()?,
        };
        Ok(named.unwrap_or_else(|| ENDPOINT.to_owned()))
    }
}

/// The server that SHIPREID_ENDPOINT names. Commands that work either locally or on a server use it only if their
/// arguments do not decide between the two.
///
/// # Errors
/// The variable is not UTF-8.
pub fn endpoint_of_environment() -> Result<Option<String>, Refusal> {
    variable(ENDPOINT_VARIABLE)
}

/// An environment variable; `None` if it is empty or not set.
///
/// # Errors
/// It is not UTF-8. The error does not contain its value, which may be a secret.
fn variable(name: &str) -> Result<Option<String>, Refusal> {
    match env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(Refusal(format!("the environment variable {name} is not UTF-8"))),
    }
}

impl AccessFlags {
    pub async fn connect(&self, endpoint: &str) -> anyhow::Result<Client> {
        let key = match &self.api_key_file {
            Some(path) => Some(ApiKey::read(path)?),
            None => variable(KEY_VARIABLE)?.map(|token| ApiKey::new(&token)).transpose()?,
        };
        let authorities = self.ca.clone();
        let identity = self.client_cert.clone().zip(self.client_key.clone());
        Ok(Client::connect_as(endpoint, &Access { authorities, identity, key }).await?)
    }
}
