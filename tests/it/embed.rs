//! The answers of Embed and EmbedStream.

use shipreid::chip::Modality;
use shipreid::client::chip;
use shipreid::wire::embed_result::Outcome;
use shipreid::wire::{EmbedRequest, EmbedResult, EmbedStreamRequest, EmbedStreamResponse};
use tokio_stream::StreamExt;

use crate::server::{DIMENSION, digest, fixture, start};

fn embedding(result: &EmbedResult) -> &[f32] {
    match result.outcome.as_ref() {
        Some(Outcome::Embedding(embedding)) => &embedding.values,
        other => panic!("an embedding, not {other:?}"),
    }
}

#[tokio::test]
async fn a_batch_is_embedded_in_order_and_says_by_which_model() {
    let (server, client) = start(&[]).await;
    let optical = chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical);
    let sar = chip(fixture("0003_c_25x110_SAR.tif"), Modality::Sar);
    let request =
        EmbedRequest { chips: vec![optical.clone(), sar, optical.clone()], ..EmbedRequest::default() };
    let batch = client.embed(request, None).await.unwrap();
    assert_eq!(batch.model, digest().to_string());
    let alone = EmbedRequest { chips: vec![optical], model: batch.model.clone(), ..EmbedRequest::default() };
    let alone = client.embed(alone, None).await.unwrap();
    let [first, second, third] = &batch.results[..] else { panic!("three results") };
    assert_eq!(embedding(first).len(), DIMENSION);
    assert_eq!(embedding(first), embedding(third));
    assert_eq!(embedding(first), embedding(&alone.results[0]));
    assert_ne!(embedding(first), embedding(second));
    let length: f32 = embedding(second).iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5);
    server.stop().await;
}

#[tokio::test]
async fn a_bad_chip_fails_alone_and_names_its_field() {
    let (server, client) = start(&[]).await;
    let good = chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical);
    let mut bad = vec![good.clone(); 6];
    bad[1].image = b"no image at all".as_slice().into();
    bad[2].modality = 9;
    bad[3].pixel_size_x_m = Some(-1.0);
    bad[4].image = bytes::Bytes::new();
    bad[5].oriented_box = Some(shipreid::wire::OrientedBox::default());
    let request = EmbedRequest { chips: bad, ..EmbedRequest::default() };
    let response = client.embed(request, None).await.unwrap();
    embedding(&response.results[0]);
    for (index, reason, field) in [
        (1, "IMAGE_FORMAT_UNKNOWN", "chips[1].image"),
        (2, "MODALITY_UNKNOWN", "chips[2].modality"),
        (3, "PIXEL_SIZE_INVALID", "chips[3].pixel_size_x_m"),
        (4, "IMAGE_EMPTY", "chips[4].image"),
        (5, "ORIENTED_BOX_INVALID", "chips[5].oriented_box"),
    ] {
        let Some(Outcome::Error(error)) = &response.results[index].outcome else { panic!("an error") };
        assert_eq!((error.reason.as_str(), error.field.as_str()), (reason, field));
        assert_eq!(error.code, tonic::Code::InvalidArgument as i32);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_stream_answers_in_order_and_carries_its_ids() {
    let (server, client) = start(&["limits.stream_inflight_max=2"]).await;
    let image = fixture("0001_a_33x97_RGB.tif");
    let requests = (0..9).map(move |number| EmbedStreamRequest {
        chip_id: format!("chip-{number}"),
        chip: Some(chip(image.clone(), Modality::Optical)),
        ..EmbedStreamRequest::default()
    });
    let mut answers =
        client.ship_re_id().embed_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    for number in 0..9 {
        let answer = answers.next().await.expect("an answer").unwrap();
        assert_eq!(answer.chip_id, format!("chip-{number}"));
        embedding(answer.result.as_ref().unwrap());
    }
    assert!(answers.next().await.is_none());
    server.stop().await;
}

#[tokio::test]
async fn a_chip_of_a_stream_fails_alone_whatever_the_reason() {
    // Enough memory for one small chip and its pixels, but not for one of 100,000 bytes.
    let (server, client) = start(&["encoder.queue_bytes_max=60000", "chips.bytes_max=60000"]).await;
    let good = EmbedStreamRequest {
        chip: Some(chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical)),
        ..EmbedStreamRequest::default()
    };
    let bad = |image: &'static [u8]| Some(chip(image.to_vec(), Modality::Optical));
    let items = [
        good.clone(),
        EmbedStreamRequest { model: "ab".repeat(32), ..good.clone() },
        EmbedStreamRequest { model: "latest".into(), ..good.clone() },
        EmbedStreamRequest { priority: 9, ..good.clone() },
        EmbedStreamRequest { chip_id: "x".repeat(257), ..good.clone() },
        EmbedStreamRequest { chip: None, ..good.clone() },
        EmbedStreamRequest { chip: bad(b"no image"), ..good.clone() },
        EmbedStreamRequest { chip: bad(&[0; 100_000]), ..good.clone() },
        good,
    ];
    let answers = client.ship_re_id().embed_stream(tokio_stream::iter(items)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    let outcome =
        |answer: &EmbedStreamResponse| match answer.result.as_ref().unwrap().outcome.clone().unwrap() {
            Outcome::Embedding(_) => (String::new(), String::new()),
            Outcome::Error(error) => (error.reason, error.field),
        };
    let outcomes: Vec<_> = answers.iter().map(outcome).collect();
    let expected = [
        ("", ""),
        ("MODEL_NOT_FOUND", "model"),
        ("MODEL_MALFORMED", "model"),
        ("PRIORITY_UNKNOWN", "priority"),
        ("TEXT_TOO_LONG", "chip_id"),
        ("NO_CHIPS", "chip"),
        ("IMAGE_FORMAT_UNKNOWN", "chip.image"),
        ("QUEUE_BYTES_FULL", ""),
        ("", ""),
    ];
    assert_eq!(outcomes, expected.map(|(reason, field)| (reason.to_owned(), field.to_owned())));
    assert_eq!((answers[0].model.as_str(), answers[1].model.as_str()), (&*digest().to_string(), ""));
    server.stop().await;
}

#[tokio::test]
async fn a_doubtful_chip_is_embedded_with_a_warning() {
    let (server, client) = start(&[]).await;
    let request = EmbedRequest {
        chips: vec![chip(fixture("0011_k_8x8_SAR.tif"), Modality::Sar)],
        ..EmbedRequest::default()
    };
    let response = client.embed(request, None).await.unwrap();
    embedding(&response.results[0]);
    let codes: Vec<_> = response.results[0].warnings.iter().map(|warning| warning.code.as_str()).collect();
    assert!(codes.contains(&"ALL_ZERO") && codes.contains(&"NOT_UPRIGHT"), "{codes:?}");
    server.stop().await;
}
