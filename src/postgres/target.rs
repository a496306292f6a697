//! The URL of a database as libpq reads it, with what tokio-postgres leaves out: the authority behind its certificate.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::failure::{Unreachable, failed};

/// What a URL says.
#[derive(Debug)]
pub struct Target {
    pub config: Config,
    /// The file of the authorities that are trusted; `None` for those that the system trusts.
    pub authority: Option<PathBuf>,
}

impl Target {
    /// With TLS, the certificate and its name are always checked, so that `sslmode` `require`, `verify-ca` and
    /// `verify-full` mean the same. An authority without a mode means `require`.
    ///
    /// # Errors
    /// It is no URL of a database.
    pub fn parse(url: &str) -> Result<Self, Unreachable> {
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut authority, mut verifies, mut kept) = (None, false, Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslrootcert", file)) => authority = Some(decoded(file)?),
                Some(("sslmode", "verify-ca" | "verify-full")) => verifies = true,
                _ => kept.push(parameter),
            }
        }
        let has_mode = kept.iter().any(|parameter| parameter.starts_with("sslmode="));
        let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
        let mut config: Config = format!("{place}{query}").parse().map_err(|cause| failed(&cause))?;
        if verifies || (authority.is_some() && !has_mode) {
            config.ssl_mode(SslMode::Require);
        }
        let authority = authority.filter(|file| file != "system").map(PathBuf::from);
        Ok(Self { config, authority })
    }
}

fn decoded(text: &str) -> Result<String, Unreachable> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| Unreachable("sslrootcert is not UTF-8".into()))?.into_owned())
}

/// Trusts the authorities in a file, or else those that the system trusts. Without any, only connections without TLS come
/// about.
///
/// # Errors
/// The file holds no certificate.
pub fn connector(authority: Option<&Path>) -> Result<MakeRustlsConnect, Unreachable> {
    let trusting = |roots: RootCertStore| {
        let config = ClientConfig::builder().with_root_certificates(roots);
        MakeRustlsConnect::new(config.with_no_client_auth())
    };
    let Some(file) = authority else {
        let native = MakeRustlsConnect::with_native_certs();
        return Ok(native.map_or_else(|_| trusting(RootCertStore::empty()), |(tls, _)| tls));
    };
    let unusable = |cause: String| Unreachable(format!("sslrootcert {}: {cause}", file.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|cause| unusable(cause.to_string()))? {
        let certificate = certificate.map_err(|cause| unusable(cause.to_string()))?;
        roots.add(certificate).map_err(|cause| unusable(cause.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("it holds no certificate".into()));
    }
    Ok(trusting(roots))
}
