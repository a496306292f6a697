//! Encryption of the gRPC port: rustls, with bounds on handshakes, and certificates that are reloaded when they change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;
use x509_parser::parse_x509_certificate;

use super::callers::{Content, Standing, verifier};
use super::counted_address;
use super::credentials::{Current, certificates, invalid};
use super::crowd::Crowd;
use crate::config;
use crate::metrics;
use crate::rpc::context::Peer;
use crate::rpc::reload::{FileError, Files};

/// gRPC is always HTTP/2.
const HTTP2: &[u8] = b"h2";

/// What connections go through before HTTP/2.
#[derive(Clone, Debug)]
pub enum Security {
    /// Unencrypted: on loopback, or where the configuration explicitly allows it.
    Plain,
    Tls(Tls),
}

/// Handshakes with the currently valid certificate.
#[derive(Clone, Debug)]
pub struct Tls {
    current: watch::Receiver<Arc<Current>>,
    pending: Crowd,
    handshake_max: Duration,
}

/// A connection after its handshake.
pub struct Encrypted {
    pub stream: TlsStream<TcpStream>,
    pub standing: Standing,
}

impl Security {
    /// Reads certificates and keys, and keeps watching them.
    ///
    /// # Errors
    /// A file cannot be read or holds no certificate or key, or a key belongs to another certificate.
    pub async fn open(settings: &config::Tls) -> Result<Self, FileError> {
        if !settings.is_on() {
            return Ok(Self::Plain);
        }
        let sources = [&settings.certificate, &settings.key, &settings.client_ca, &settings.client_crl];
        let paths: Vec<PathBuf> =
            sources.into_iter().filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        let every = Duration::from_secs_f64(settings.reload_seconds);
        let files = Files { subject: "certificates", paths: paths.clone(), every };
        let current = files.follow(move |contents| current(&paths, contents)).await?;
        Ok(Self::Tls(Tls {
            current,
            pending: Crowd::new(settings.handshakes_max, |_| {}),
            handshake_max: Duration::from_secs_f64(settings.handshake_seconds_max),
        }))
    }
}

impl Tls {
    /// Performs a handshake within limits on time and number; failures are counted. If there are too many handshakes,
    /// the oldest one gives way.
    pub async fn accept(&self, stream: TcpStream, peer: Peer) -> Option<Encrypted> {
        let begun = Instant::now();
        // A handshake can always be displaced, so there is always a slot.
        let mut place = self.pending.enter(counted_address(peer), move || Some(begun))?;
        // From here on a change of the files is noticed.
        let mut current = self.current.clone();
        let acceptor = TlsAcceptor::from(Arc::clone(&current.borrow_and_update().server));
        let handshake = tokio::select! {
            shaken = tokio::time::timeout(self.handshake_max, acceptor.accept(stream)) => shaken,
            () = place.lost() => {
                metrics::refused("HANDSHAKES");
                return None;
            }
        };
        match handshake {
            Ok(Ok(stream)) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                Some(Encrypted { stream, standing: Standing { chain, current } })
            }
            Ok(Err(cause)) => {
                metrics::refused("HANDSHAKE_FAILED");
                tracing::debug!(%cause, "a handshake failed");
                None
            }
            Err(_) => {
                metrics::refused("HANDSHAKE_TIME");
                None
            }
        }
    }
}

/// Builds the configuration from a certificate, its key and, for mutual TLS, the client authorities and their
/// revocation lists.
fn current(paths: &[PathBuf], contents: &[Vec<u8>]) -> Result<Current, FileError> {
    let content = |index: usize| -> Option<Content<'_>> {
        Some((paths.get(index)?.as_path(), contents.get(index)?.as_slice()))
    };
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(&paths[0], &contents[0])?;
    let key = PrivateKeyDer::from_pem_slice(&contents[1])
        .map_err(|_| invalid(&paths[1], "holds no private key as PEM"))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has what TLS 1.2 and 1.3 need");
    let callers = content(2).map(|authorities| verifier(authorities, content(3), provider)).transpose()?;
    let builder = match &callers {
        None => builder.with_no_client_auth(),
        Some(callers) => builder.with_client_cert_verifier(Arc::clone(callers)),
    };
    let end = end_of(&chain);
    let mut config = builder.with_single_cert(chain, key).map_err(|cause| match cause {
        rustls::Error::InconsistentKeys(_) => {
            invalid(&paths[1], format!("is not the key of {}", paths[0].display()))
        }
        cause => invalid(&paths[0], cause),
    })?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    end.into_iter().for_each(metrics::certificate_ends);
    // Sessions are stored by this configuration only, so that none outlives the revocation of its certificate.
    Ok(Current { server: Arc::new(config), callers })
}

/// When the first certificate of a chain expires, in seconds of Unix time.
fn end_of(chain: &[CertificateDer<'_>]) -> Option<i64> {
    let parsed = chain.iter().filter_map(|certificate| parse_x509_certificate(certificate).ok());
    parsed.map(|(_, certificate)| certificate.validity().not_after.timestamp()).min()
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use rcgen::{Certificate, CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    const NEW_YEAR_2030: i64 = 1_893_456_000;

    fn ending(year: i32) -> (Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        (params.self_signed(&key).expect("a certificate"), key)
    }

    #[test]
    fn a_chain_ends_with_the_first_of_its_certificates() {
        let chain = [2040, 2030, 2050].map(|year| ending(year).0.der().clone());
        assert_eq!(end_of(&chain), Some(NEW_YEAR_2030));
        assert_eq!(end_of(&[]), None);
    }

    #[test]
    fn a_metric_says_when_the_certificate_in_use_ends() {
        let (certificate, key) = ending(2030);
        let contents = [certificate.pem().into_bytes(), key.serialize_pem().into_bytes()];
        let paths = ["server.pem", "server.key"].map(PathBuf::from);
        let recorder = PrometheusBuilder::new().build_recorder();
        ::metrics::with_local_recorder(&recorder, || current(&paths, &contents)).expect("a pair");
        let expected = format!("{} {NEW_YEAR_2030}\n", metrics::table::CERTIFICATE_END);
        let page = recorder.handle().render();
        assert!(page.contains(&expected), "{page}");
    }
}
