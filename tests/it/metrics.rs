//! The metrics page and the documented table of metrics agree.

use std::collections::{BTreeMap, BTreeSet};

use shipreid::chip::Modality;
use shipreid::client::chip;
use shipreid::metrics::table::{self, Kind, Metric};
use shipreid::wire::match_query::Subject;
use shipreid::wire::{DeleteUploadRequest, EmbedRequest, MatchQuery, MatchRequest, Observation};
use tempfile::TempDir;

use crate::galleries::{GALLERY, create, data_in, enroll, ready, vector};
use crate::server::{fixture, page, start};
use crate::uploads::create_upload;

/// Metrics that only appear for a server in trouble, or one that trains, changes its model, is
/// idle, shares its galleries, or has a real model.
const NOT_REACHED: &[&str] = &[
    table::REFUSED,
    table::CERTIFICATE_END,
    table::REVOCATIONS_END,
    table::DROPPED,
    table::CONNECTIONS_ENDED,
    table::LATE,
    table::OUT_OF_MEMORY,
    table::PANICS,
    table::SEARCH_STOPPED,
    table::CANARIES,
    table::LINEAR,
    table::LINEAR_TIME,
    table::ACTIVATIONS,
    table::ACTIVATION,
    table::FOLLOWING,
    table::FOLLOWING_LEFT,
    table::STALLED,
    table::REEMBEDDED,
    table::MODELS_STORED,
    table::MODELS_STORED_BYTES,
    table::DATABASE_REACHED,
    table::DATABASE_SKEW,
    table::DATABASE_CONNECTIONS,
    table::DATABASE_WAITING,
    table::DATABASE_FAILURES,
    table::LOCK_WAIT,
    table::COPY_LAG,
    table::COPY_AGE,
    table::COPIES_LOADED,
    table::MODEL_OUTDATED,
    table::JOB_STEP,
    table::JOB_IMAGES,
    table::JOB_LOSS,
    table::JOB_MAP,
];

/// The names on a page with their labels; the parts of a histogram count under its own name.
fn shown(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let kinds: BTreeMap<&str, &str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut shown: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase())) {
        let end = line.find(['{', ' ']).expect("a name ends");
        let mut name = &line[..end];
        for part in ["_bucket", "_sum", "_count"] {
            let whole = name.strip_suffix(part);
            name = whole.filter(|whole| kinds.get(whole) == Some(&"histogram")).unwrap_or(name);
        }
        let labels =
            line[end..].strip_prefix('{').and_then(|rest| rest.rsplit_once('}')).map(|(labels, _)| labels);
        let names = labels.into_iter().flat_map(|labels| labels.split("\",")).filter_map(|label| {
            let (name, _) = label.split_once("=\"")?;
            (name != "le").then(|| name.to_owned())
        });
        shown.entry(name.to_owned()).or_default().extend(names);
    }
    shown
}

#[tokio::test]
async fn every_metric_of_a_used_server_is_in_the_table_and_the_other_way_round() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    enroll(&client, vec![ready("a", "a", vector(0, 0.0), Observation::default())]).await;
    // All black and lying on its side: it raises warnings.
    let doubtful = chip(fixture("0011_k_8x8_SAR.tif"), Modality::Sar);
    let request = EmbedRequest { chips: vec![doubtful], ..EmbedRequest::default() };
    client.embed(request, None).await.unwrap();
    let query = MatchQuery {
        query_id: "q".into(),
        subject: Some(Subject::Embedding(vector(0, 0.0))),
        modality: shipreid::wire::Modality::Sar.into(),
        ..MatchQuery::default()
    };
    let request = MatchRequest { gallery: GALLERY.into(), queries: vec![query], ..MatchRequest::default() };
    client.match_ships(request).await.unwrap();

    let upload = create_upload(&client).await.unwrap();
    let request = DeleteUploadRequest { upload_id: upload.upload_id };
    client.uploads().delete_upload(request).await.unwrap();

    let page = page(server.metrics_address, "/metrics").await;
    let (headers, text) = page.split_once("\r\n\r\n").unwrap();
    assert!(headers.starts_with("HTTP/1.1 200"), "{headers}");
    let shown = shown(text);
    for (name, labels) in shown.iter().filter(|(name, _)| !name.starts_with("process_")) {
        let metric = table::all().find(|metric| metric.name == name);
        let Metric { kind, labels: known, .. } =
            metric.unwrap_or_else(|| panic!("{name} is not in the table"));
        let known: BTreeSet<String> = known.iter().map(|(label, _)| (*label).to_owned()).collect();
        assert_eq!(*labels, known, "{name}");
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind}");
    }
    for Metric { name, .. } in table::all().filter(|metric| !NOT_REACHED.contains(&metric.name)) {
        assert!(shown.contains_key(*name), "{name} is not shown");
    }
    server.stop().await;
}
