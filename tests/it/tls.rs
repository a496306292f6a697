//! Encryption of the gRPC port, for callers with and without the right certificates.

use std::path::Path;

use shipreid::app::Running;
use shipreid::client::{Access, Client, ClientError};
use shipreid::wire::ListModelsRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::certificates::{Authority, Pair, Term};
use crate::server::{counted, start_alone};

/// An authority, and the certificates that it has issued.
struct Office {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Office {
    fn new(name: &str) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), authority: Authority::new(name) }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn issue(&self, name: &str, term: Term) -> Pair {
        self.authority.issue(self.path(), name, term)
    }

    /// A server with a certificate of validity `term`, and further settings.
    async fn server(&self, term: Term, settings: &[&str]) -> Running {
        let pair = self.issue("server", term).settings();
        let all: Vec<&str> = pair.iter().map(String::as_str).chain(settings.iter().copied()).collect();
        start_alone(&all).await
    }

    /// The credentials of a caller of this office, with its own certificate if it has one.
    fn access(&self, own: Option<Pair>) -> Access {
        Access {
            authorities: Some(self.authority.write(self.path().join("authority.pem"))),
            identity: own.map(|pair| (pair.certificate, pair.key)),
            key: None,
        }
    }
}

/// Calls over an encrypted connection.
async fn call(server: &Running, access: &Access) -> Result<(), ClientError> {
    let client = Client::connect_as(&format!("https://localhost:{}", server.address.port()), access).await?;
    client.models().list_models(ListModelsRequest::default()).await?;
    Ok(())
}

fn unreachable(outcome: Result<(), ClientError>, says: &str) {
    let cause = outcome.expect_err("no connection");
    assert!(matches!(cause, ClientError::Unreachable { .. }), "{cause:?}");
    assert!(cause.to_string().contains(says), "{cause}");
}

#[tokio::test]
async fn a_caller_trusts_the_server_that_its_authority_vouches_for_and_no_other() {
    let office = Office::new("office");
    let server = office.server(Term::Valid, &[]).await;
    call(&server, &office.access(None)).await.unwrap();
    let stranger = Office::new("stranger");
    unreachable(call(&server, &stranger.access(None)).await, "UnknownIssuer");
    server.stop().await;
    let expired = office.server(Term::Expired, &[]).await;
    unreachable(call(&expired, &office.access(None)).await, "certificate expired");
    expired.stop().await;
}

#[tokio::test]
async fn with_an_authority_for_callers_only_its_callers_are_served() {
    let office = Office::new("office");
    let access = office.access(None);
    let authority = format!("tls.client_ca={}", access.authorities.as_ref().unwrap().display());
    let server = office.server(Term::Valid, &[&authority]).await;
    call(&server, &office.access(Some(office.issue("caller", Term::Valid)))).await.unwrap();
    let before = counted("shipreid_refused_total{reason=\"HANDSHAKE_FAILED\"}");
    let stranger = Office::new("stranger");
    let of_stranger = stranger.issue("caller", Term::Valid);
    for own in [None, Some(office.issue("late", Term::Expired)), Some(of_stranger)] {
        call(&server, &office.access(own)).await.expect_err("not one of its callers");
    }
    assert!(counted("shipreid_refused_total{reason=\"HANDSHAKE_FAILED\"}") >= before + 3);
    server.stop().await;
}

#[tokio::test]
async fn a_revoked_caller_is_refused_and_the_connections_that_he_has_end() {
    const NEW_YEAR_2021: u64 = 1_609_459_200;
    let [office, branch] = [Office::new("office"), Office::new("branch")];
    let access = office.access(None);
    let authorities = office.path().join("authorities.pem");
    let pems = [&access, &branch.access(None)]
        .map(|access| std::fs::read_to_string(access.authorities.as_ref().unwrap()).unwrap());
    std::fs::write(&authorities, pems.concat()).unwrap();
    let crl = office.path().join("revoked.pem");
    // A rename, so that a partial file is never read.
    let put = |text: &str| {
        let new = office.path().join("revoked.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &crl).unwrap();
    };
    let none = branch.authority.revoke(&[], Term::Valid);
    put(&[office.authority.revoke(&[], Term::Valid), none.clone()].concat());
    let settings = [
        format!("tls.client_ca={}", authorities.display()),
        format!("tls.client_crl={}", crl.display()),
        "tls.reload_seconds=0.01".to_owned(),
    ];
    let server = office.server(Term::Valid, &settings.each_ref().map(String::as_str)).await;
    let [good, bad] = ["good", "bad"].map(|name| office.issue(name, Term::Valid));
    let of_branch = branch.issue("caller", Term::Valid);
    let as_branch = Access { authorities: access.authorities.clone(), ..branch.access(Some(of_branch)) };
    let endpoint = format!("https://localhost:{}", server.address.port());
    let [kept, ended] = [&good, &bad].map(|pair| office.access(Some(pair.clone())));
    let kept = Client::connect_as(&endpoint, &kept).await.unwrap();
    let ended = Client::connect_as(&endpoint, &ended).await.unwrap();
    for client in [&kept, &ended] {
        client.models().list_models(ListModelsRequest::default()).await.unwrap();
    }
    call(&server, &as_branch).await.expect("its authority revokes nobody");

    let failed = "shipreid_reloads_total{subject=\"certificates\",outcome=\"failed\"}";
    let before = counted(failed);
    put("no list");
    while counted(failed) == before {
        call(&server, &office.access(Some(bad.clone()))).await.expect("the old list stays in use");
    }
    let series = "shipreid_connections_ended_total{reason=\"DISTRUSTED\"}";
    let before = counted(series);
    // The list still applies after its next-update time.
    put(&[office.authority.revoke(&[&bad], Term::Expired), none].concat());
    while counted(series) == before {
        tokio::task::yield_now().await;
    }
    call(&server, &office.access(Some(bad))).await.expect_err("revoked");
    ended.models().list_models(ListModelsRequest::default()).await.expect_err("he comes back no more");
    kept.models().list_models(ListModelsRequest::default()).await.expect("his connection goes on");
    call(&server, &office.access(Some(good))).await.expect("he is still accepted");
    call(&server, &as_branch).await.expect("so is whoever is of the other authority");
    assert_eq!(counted("shipreid_revocations_end_timestamp_seconds"), NEW_YEAR_2021);

    put(&office.authority.revoke(&[], Term::Valid));
    while call(&server, &as_branch).await.is_ok() {}
    server.stop().await;
}

#[tokio::test]
async fn plain_text_to_the_encrypted_port_and_the_reverse_end_at_once() {
    let office = Office::new("office");
    let server = office.server(Term::Valid, &[]).await;
    let before = counted("shipreid_refused_total{reason=\"HANDSHAKE_FAILED\"}");
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let _ = plain.read_to_end(&mut Vec::new()).await;
    assert!(counted("shipreid_refused_total{reason=\"HANDSHAKE_FAILED\"}") > before);
    server.stop().await;
    let plain = start_alone(&[]).await;
    call(&plain, &office.access(None)).await.expect_err("no TLS there");
    plain.stop().await;
}

#[tokio::test]
async fn handshakes_are_bounded_in_number_and_time() {
    let office = Office::new("office");
    let limits = ["tls.handshakes_max=1", "tls.handshake_seconds_max=0.1"];
    let server = office.server(Term::Valid, &limits).await;
    let series = ["HANDSHAKES", "HANDSHAKE_TIME"]
        .map(|reason| format!("shipreid_refused_total{{reason=\"{reason}\"}}"));
    let before = series.each_ref().map(|series| counted(series));
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut second = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "the older one gives way");
    assert!(counted(&series[0]) > before[0]);
    assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
    assert!(counted(&series[1]) > before[1]);
    call(&server, &office.access(None)).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn handshakes_that_never_begin_keep_no_caller_out() {
    let office = Office::new("office");
    let server = office.server(Term::Valid, &["tls.handshakes_max=4"]).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        for _ in 0..8 {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        call(&server, &office.access(None)).await.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn a_new_certificate_holds_for_new_connections_and_a_broken_one_for_none() {
    let office = Office::new("office");
    let server = office.server(Term::Valid, &["tls.reload_seconds=0.01"]).await;
    let long_lived =
        Client::connect_as(&format!("https://localhost:{}", server.address.port()), &office.access(None))
            .await
            .unwrap();
    let failed = "shipreid_reloads_total{subject=\"certificates\",outcome=\"failed\"}";
    let before = counted(failed);
    std::fs::write(office.path().join("server.pem"), "no certificate").unwrap();
    while counted(failed) == before {
        call(&server, &office.access(None)).await.expect("the old one stays in use");
    }
    let other = Office::new("other");
    let pair = other.issue("server", Term::Valid);
    let before = counted(failed);
    std::fs::rename(pair.key, office.path().join("server.key")).unwrap();
    while counted(failed) == before {
        call(&server, &office.access(None)).await.expect("a key without its certificate changes nothing");
    }
    std::fs::rename(pair.certificate, office.path().join("server.pem")).unwrap();
    while call(&server, &other.access(None)).await.is_err() {}
    unreachable(call(&server, &office.access(None)).await, "UnknownIssuer");
    long_lived.models().list_models(ListModelsRequest::default()).await.expect("it lives on");
    drop(long_lived);
    server.stop().await;
}
