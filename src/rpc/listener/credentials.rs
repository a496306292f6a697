//! Certificates as their files contain them, and the TLS objects made from them.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;

use crate::rpc::reload::FileError;

/// The content of the files.
#[derive(Debug)]
pub struct Current {
    pub server: Arc<ServerConfig>,
    /// Absent where callers need no certificate.
    pub callers: Option<Arc<dyn ClientCertVerifier>>,
}

pub fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(invalid(path, "holds no certificate as PEM")),
    }
}

pub fn invalid(path: &Path, problem: impl ToString) -> FileError {
    FileError::Invalid { path: path.to_owned(), problem: problem.to_string() }
}
