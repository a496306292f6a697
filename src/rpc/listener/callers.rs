//! Which client certificates are accepted: those of known authorities that these have not revoked.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{Error, RootCertStore};
use x509_parser::parse_x509_crl;

use super::credentials::{Current, certificates, invalid};
use crate::gallery::Time;
use crate::metrics;
use crate::rpc::reload::FileError;

/// A file and its content.
pub type Content<'c> = (&'c Path, &'c [u8]);

/// A verifier from the client authorities and their revocation lists.
///
/// A list stays valid beyond its next update: an authority that is down must not lock out all callers. If there are any
/// lists, every authority in a caller's chain needs one; without any, nothing is revoked.
pub fn verifier(
    authorities: Content<'_>,
    revoked: Option<Content<'_>>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, FileError> {
    let (path, pem) = authorities;
    let mut roots = RootCertStore::empty();
    for authority in certificates(path, pem)? {
        roots.add(authority).map_err(|cause| invalid(path, cause))?;
    }
    let lists = revoked.map(lists).transpose()?.unwrap_or_default();
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = builder.with_crls(lists).build();
    verifier.map_err(|cause| match (&cause, revoked) {
        (VerifierBuilderError::InvalidCrl(_), Some((path, _))) => invalid(path, cause),
        _ => invalid(path, cause),
    })
}

fn lists((path, pem): Content<'_>) -> Result<Vec<CertificateRevocationListDer<'static>>, FileError> {
    let read: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let lists = read.ok().filter(|lists| !lists.is_empty());
    let lists = lists.ok_or_else(|| invalid(path, "holds no revocation list as PEM"))?;
    if let Some(at) = next_update(&lists) {
        metrics::revocations_end(at);
        let (now, _) = Time::now().unix();
        if at < now {
            tracing::warn!(file = %path.display(), "a revocation list is past its next update, and still in use");
        }
    }
    Ok(lists)
}

/// When the first of these lists should be replaced, in seconds of Unix time.
fn next_update(lists: &[CertificateRevocationListDer<'_>]) -> Option<i64> {
    let parsed = lists.iter().filter_map(|list| parse_x509_crl(list.as_ref()).ok());
    parsed.filter_map(|(_, list)| Some(list.next_update()?.timestamp())).min()
}

/// The certificate that a caller presented at its handshake, and what it is verified against.
#[derive(Debug)]
pub struct Standing {
    pub chain: Vec<CertificateDer<'static>>,
    pub current: watch::Receiver<Arc<Current>>,
}

impl Standing {
    /// Waits until the certificate would no longer be accepted: it was revoked, or its authority was removed. It is
    /// only verified again when the files change.
    pub async fn lost(mut self) -> Error {
        // Without a sender the server is shutting down, and nothing changes any more.
        while self.current.changed().await.is_ok() {
            let current = Arc::clone(&self.current.borrow_and_update());
            let (Some(callers), Some((own, others))) = (&current.callers, self.chain.split_first()) else {
                continue;
            };
            if let Err(cause) = callers.verify_client_cert(own, others, UnixTime::now()) {
                return cause;
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod,
        KeyPair, SerialNumber, date_time_ymd,
    };

    use super::*;

    fn list(year: i32) -> CertificateRevocationListDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = Issuer::new(params, KeyPair::generate().expect("a key"));
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&issuer).expect("signed").der().clone()
    }

    #[test]
    fn lists_are_as_old_as_the_oldest_of_them() {
        const NEW_YEAR_2030: i64 = 1_893_456_000;
        assert_eq!(next_update(&[list(2040), list(2030), list(2050)]), Some(NEW_YEAR_2030));
        assert_eq!(next_update(&[]), None);
    }
}
