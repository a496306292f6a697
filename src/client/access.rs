//! How a client reaches a server and identifies itself.

use std::fmt;
use std::path::{Path, PathBuf};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use super::ClientError;

/// The transport that every call of a client passes through.
pub type Transport = InterceptedService<Channel, Credentials>;

/// What a client needs in addition to an endpoint, if the server requires it.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// PEM authorities, one of which must have signed the server's certificate; the system's if absent.
    pub authorities: Option<PathBuf>,
    /// The client's own certificate and its key, as PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    pub key: Option<ApiKey>,
}

/// The secret that identifies a caller to a server. It is never displayed.
#[derive(Clone)]
pub struct ApiKey(MetadataValue<Ascii>);

/// Adds the key, if there is one, to every call.
#[derive(Clone, Debug, Default)]
pub struct Credentials(Option<ApiKey>);

impl ApiKey {
    /// A key as `shipreid key new` prints it; surrounding white space is ignored.
    ///
    /// # Errors
    /// The text contains characters that no key has.
    pub fn new(token: &str) -> Result<Self, ClientError> {
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", token.trim()).parse().map_err(|_| ClientError::KeyMalformed)?;
        // Printed headers show "Sensitive" in its place.
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// # Errors
    /// The file cannot be read, or does not contain a key.
    pub fn read(path: &Path) -> Result<Self, ClientError> {
        Self::new(&String::from_utf8_lossy(&contents(path)?))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(...)")
    }
}

impl Access {
    /// The credentials for every call to `endpoint`. A key is not sent over an unencrypted network.
    pub(super) fn credentials(&self, endpoint: &Endpoint) -> Result<Credentials, ClientError> {
        if self.key.is_some() && !is_encrypted(endpoint) && !is_here(endpoint) {
            return Err(ClientError::Unencrypted { endpoint: endpoint.uri().to_string() });
        }
        Ok(Credentials(self.key.clone()))
    }

    /// The endpoint with encryption, if its scheme asks for it.
    pub(super) fn secured(&self, endpoint: Endpoint) -> Result<Endpoint, ClientError> {
        if !is_encrypted(&endpoint) {
            return match (&self.authorities, &self.identity) {
                (None, None) => Ok(endpoint),
                _ => Err(ClientError::NotEncrypted { endpoint: endpoint.uri().to_string() }),
            };
        }
        let mut tls = match &self.authorities {
            None => ClientTlsConfig::new().with_native_roots(),
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(contents(path)?)),
        };
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(contents(certificate)?, contents(key)?));
        }
        let named = endpoint.uri().to_string();
        endpoint
            .tls_config(tls)
            .map_err(|cause| ClientError::Unreachable { endpoint: named, cause: super::root_cause(&cause) })
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(ApiKey(value)) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

fn is_encrypted(endpoint: &Endpoint) -> bool {
    endpoint.uri().scheme_str() == Some("https")
}

/// Whether the server is on this machine.
fn is_here(endpoint: &Endpoint) -> bool {
    let host = endpoint.uri().host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn contents(path: &Path) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|cause| ClientError::File { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        let access = Access { key: Some(ApiKey::new("secret\n").expect("a key")), ..Access::default() };
        let shown = format!("{access:?} {:?}", access.key.as_ref().map(|key| &key.0));
        assert!(!shown.contains("secret"), "{shown}");
        assert!(ApiKey::new("a\nb").is_err());
    }

    #[test]
    fn a_key_travels_encrypted_or_not_at_all() {
        let access = Access { key: Some(ApiKey::new("secret").expect("a key")), ..Access::default() };
        for (endpoint, sent) in [
            ("https://ships.example:50051", true),
            ("http://127.0.0.1:50051", true),
            ("http://localhost:50051", true),
            ("http://[::1]:50051", true),
            ("http://ships.example:50051", false),
            ("http://10.0.0.7:50051", false),
        ] {
            let endpoint = Endpoint::from_static(endpoint);
            assert_eq!(access.credentials(&endpoint).is_ok(), sent, "{}", endpoint.uri());
            assert!(Access::default().credentials(&endpoint).is_ok());
        }
    }
}
