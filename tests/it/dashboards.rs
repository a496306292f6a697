//! Monitoring of the server: a real Prometheus scrapes it and evaluates every panel and rule that we ship.

use std::path::Path;
use std::process::Stdio;

use shipreid::chip::Modality;
use shipreid::client::{Client, chip};
use shipreid::embedding::ModelDigest;
use shipreid::wire::enroll_request::Source;
use shipreid::wire::match_query::Subject;
use shipreid::wire::{EmbedRequest, EnrollRequest, MatchQuery, MatchRequest};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::galleries::{GALLERY, create, data_in, enroll, vector};
use crate::server::{fixture, projection, start_serving};
use crate::tools::{missing, skipped};

/// Work of every kind that has a panel: valid and invalid chips, an enrolment, a search.
async fn give_work(client: &Client, round: usize) {
    let good = chip(fixture("0003_c_25x110_SAR.tif"), Modality::Sar);
    let bad = chip(b"no image".to_vec(), Modality::Optical);
    let chips = vec![good.clone(), bad];
    client.ship_re_id().embed(EmbedRequest { chips, ..EmbedRequest::default() }).await.unwrap();
    let item = EnrollRequest {
        gallery: GALLERY.into(),
        entry_id: format!("e{round}"),
        source: Some(Source::Chip(good)),
        ..EnrollRequest::default()
    };
    assert!(enroll(client, vec![item]).await[0].error.is_none());
    let query = MatchQuery { subject: Some(Subject::Embedding(vector(0, 0.1))), ..MatchQuery::default() };
    let request = MatchRequest { gallery: GALLERY.into(), queries: vec![query], ..MatchRequest::default() };
    client.match_ships(request).await.unwrap();
}

#[tokio::test]
async fn every_panel_and_rule_asks_a_real_prometheus_for_what_the_server_has() {
    if let Some(program) = missing(&["python3", "prometheus", "promtool"]) {
        skipped("dashboards.py", &format!("no {program} (make operators)"));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // All servers of this process share one recorder, and those of other tests add and remove a
    // model with the same name.
    let mut model = projection();
    model.card.digest = ModelDigest::new([8; 32]);
    let (server, client) = start_serving(&[&data_in(&folder)], model).await;
    create(&client, GALLERY).await;

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/dashboards.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(server.metrics_address.to_string()).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut errors = process.stderr.take().unwrap();
    let said = tokio::spawn(async move {
        let mut text = String::new();
        errors.read_to_string(&mut text).await.map(|_| text)
    });
    let mut answers = process.stdin.take().unwrap();
    let mut wishes = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut round = 0;
    while let Some(wish) = wishes.next_line().await.unwrap() {
        assert_eq!(wish, "calls");
        give_work(&client, round).await;
        round += 1;
        answers.write_all(b"done\n").await.unwrap();
    }
    let status = process.wait().await.unwrap();
    assert!(status.success(), "{}", said.await.unwrap().unwrap());
    server.stop().await;
}
