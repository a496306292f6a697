//! A file that states its pixel size, in every kind of request.

use shipreid::chip::Modality;
use shipreid::client::chip;
use shipreid::wire::enroll_request::Source;
use shipreid::wire::match_query::Subject;
use shipreid::wire::{
    Chip, EmbedRequest, EnrollOutcome, EnrollRequest, MatchQuery, MatchRequest, Tracklet, Warning,
};

use crate::galleries::{GALLERY, create, data_in, enroll};
use crate::server::start;

/// A gray TIFF of 40 x 160 pixels with steps of 0.5 m in UTM zone 48N.
fn georeferenced() -> Vec<u8> {
    let (width, height) = (40_u32, 160_u32);
    let doubles =
        |numbers: &[f64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let keys = [1_u16, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32648];
    let data = [
        (33550, 12, 3, doubles(&[0.5, 0.5, 0.0])),
        (33922, 12, 6, doubles(&[0.0, 0.0, 0.0, 500_000.0, 132_000.0, 0.0])),
        (34735, 3, 12, keys.iter().flat_map(|key| key.to_le_bytes()).collect()),
    ];
    let pixels = (0..width * height).map(|index| (index / width + index % width) as u8).collect::<Vec<u8>>();
    let plain = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (277, 1),
        (278, height),
        (279, width * height),
    ];
    let mut at = 8 + 2 + 12 * (plain.len() + 1 + data.len()) as u32 + 4;
    let mut entries: Vec<(u16, u16, u32, u32)> =
        plain.iter().map(|(tag, value)| (*tag, 4, 1, *value)).collect();
    let mut rest = Vec::new();
    for (tag, kind, count, bytes) in data {
        entries.push((tag, kind, count, at));
        at += bytes.len() as u32;
        rest.extend(bytes);
    }
    entries.push((273, 4, 1, at));
    entries.sort();
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    file.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        file.extend(
            [&tag.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), &value.to_le_bytes()]
                .concat(),
        );
    }
    file.extend([0; 4]);
    [file, rest, pixels].concat()
}

fn asked(x_m: Option<f64>, y_m: Option<f64>) -> Chip {
    Chip { pixel_size_x_m: x_m, pixel_size_y_m: y_m, ..chip(georeferenced(), Modality::Optical) }
}

/// Codes of the remarks about the pixel size.
fn codes(warnings: &[Warning]) -> Vec<&str> {
    warnings
        .iter()
        .map(|warning| warning.code.as_str())
        .filter(|code| code.starts_with("PIXEL_SIZE"))
        .collect()
}

#[tokio::test]
async fn embed_says_whose_pixel_size_was_used() {
    let (server, client) = start(&[]).await;
    let chips = vec![
        asked(None, None),
        asked(Some(0.5), Some(0.5)),
        asked(Some(0.75), Some(0.75)),
        asked(Some(0.75), None),
    ];
    let response = client.embed(EmbedRequest { chips, ..EmbedRequest::default() }, None).await.unwrap();
    let expected = [
        &["PIXEL_SIZE_FROM_FILE"][..],
        &[],
        &["PIXEL_SIZE_CONTRADICTS"],
        &["PIXEL_SIZE_FROM_FILE", "PIXEL_SIZE_CONTRADICTS"],
    ];
    for (result, expected) in response.results.iter().zip(expected) {
        assert_eq!(codes(&result.warnings), expected);
    }
    let sentences: Vec<&str> = response.results[3].warnings.iter().map(|w| w.message.as_str()).collect();
    assert!(sentences[0].contains("pixel_size_y_m 0.5002"), "{sentences:?}");
    assert!(sentences[1].contains("pixel_size_x_m 0.75 (the file: 0.5002)"), "{sentences:?}");
    server.stop().await;
}

#[tokio::test]
async fn an_enrolment_is_told_by_what_was_asked_and_match_reads_the_file_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let request = |chip| EnrollRequest {
        gallery: GALLERY.into(),
        entry_id: "a".into(),
        source: Some(Source::Chip(chip)),
        ..EnrollRequest::default()
    };
    // One stream each: within a stream, entries with the same name may be answered in any order.
    for (chip, expected) in [
        (asked(None, None), Ok((EnrollOutcome::Created, &["PIXEL_SIZE_FROM_FILE"][..]))),
        (asked(None, None), Ok((EnrollOutcome::Unchanged, &[]))),
        // The default, but stated explicitly: this is different content, since the file states another size.
        (asked(Some(0.75), Some(0.75)), Err("ENTRY_EXISTS")),
    ] {
        let answers = enroll(&client, vec![request(chip)]).await;
        let found = match &answers[0].error {
            None => Ok((answers[0].outcome(), codes(&answers[0].warnings))),
            Some(error) => Err(error.reason.as_str()),
        };
        assert_eq!(found, expected.map(|(outcome, codes)| (outcome, codes.to_vec())));
    }
    let query = MatchQuery {
        query_id: "q".into(),
        subject: Some(Subject::Tracklet(Tracklet { chips: vec![asked(None, None)] })),
        ..MatchQuery::default()
    };
    let request = MatchRequest { gallery: GALLERY.into(), queries: vec![query], ..MatchRequest::default() };
    let response = client.match_ships(request).await.unwrap();
    assert_eq!(codes(&response.results[0].warnings), ["PIXEL_SIZE_FROM_FILE"]);
    assert_eq!(response.results[0].candidates[0].entry_id, "a");
    server.stop().await;
}
