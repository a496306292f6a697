//! Galleries that follow the active model while they are in use.

use super::*;

fn enrolment(gallery: &str, number: usize) -> EnrollRequest {
    EnrollRequest {
        gallery: gallery.into(),
        entry_id: format!("{number:03}"),
        source: Some(Source::Chip(chip(fixture(IMAGE), Modality::Optical))),
        ..EnrollRequest::default()
    }
}

/// Enrols numbered entries until stopped, and returns their number.
async fn keep_enrolling(client: Client, gallery: &'static str, stop: Arc<AtomicBool>) -> usize {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let answers = enroll(&client, vec![enrolment(gallery, count)]).await;
        assert_eq!(answers[0].error, None);
        count += 1;
    }
    count
}

/// Matches until stopped; returns the models that answered, each checked to use its own embedding
/// and its own entries.
async fn keep_matching(
    client: Client,
    gallery: &'static str,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
) -> Vec<ModelDigest> {
    let tracklet = Tracklet { chips: vec![chip(fixture(IMAGE), Modality::Optical)] };
    let query = MatchQuery { subject: Some(Subject::Tracklet(tracklet)), ..MatchQuery::default() };
    let request = MatchRequest {
        gallery: gallery.into(),
        queries: vec![query],
        top_k: Some(1000),
        ..Default::default()
    };
    let mut models: Vec<ModelDigest> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = client.ship_re_id().r#match(request.clone()).await.unwrap().into_inner();
        let (model, result) = (answer.model.parse().unwrap(), &answer.results[0]);
        assert_eq!(result.embedding.as_ref().unwrap().values, expected(model));
        // Every entry has the same chip as the query, so an embedding of another model would be less similar.
        assert!(result.exact && !result.candidates.is_empty(), "{result:?}");
        assert!(result.candidates.iter().all(|found| found.similarity > 0.999_99), "{result:?}");
        models.push(model);
        count.fetch_add(1, Ordering::Relaxed);
    }
    models
}

async fn described(client: &Client, name: &str) -> Gallery {
    let request = GetGalleryRequest { name: name.into() };
    client.galleries().get_gallery(request).await.unwrap().into_inner().gallery.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gallery_follows_the_active_model_while_chips_are_enrolled_and_matched() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    import(&client, &exported(folder.path(), &[1])[0]).await;
    for (name, keep_chips) in [("kept", true), ("bare", false)] {
        let request =
            CreateGalleryRequest { name: name.into(), keep_chips: Some(keep_chips), ..Default::default() };
        client.galleries().create_gallery(request).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(keep_enrolling(client.clone(), "kept", Arc::clone(&stop)));
    let embedding = tokio::spawn(keep_embedding(client.clone(), Arc::clone(&stop)));
    while described(&client, "kept").await.entries < 5 {}
    let matches = Arc::new(AtomicUsize::new(0));
    let matching = keep_matching(client.clone(), "kept", Arc::clone(&stop), Arc::clone(&matches));
    let matching = tokio::spawn(matching);
    let matched_at_least = async |count| {
        while matches.load(Ordering::Relaxed) < count && !matching.is_finished() {
            tokio::task::yield_now().await;
        }
    };
    matched_at_least(1).await;
    activate(&client, digest(1)).await.unwrap();
    while described(&client, "kept").await.model != digest(1) {}
    let flipped_at = described(&client, "kept").await.entries;
    // One match may have been in progress; the next one starts afterwards.
    matched_at_least(matches.load(Ordering::Relaxed) + 2).await;
    while described(&client, "kept").await.entries < flipped_at + 5 {}
    stop.store(true, Ordering::Relaxed);
    let (count, _) = (load.await.unwrap(), embedding.await.unwrap());
    let mut answered = matching.await.unwrap();
    answered.dedup();
    assert_eq!(answered, [0, 1].map(|seed| model(seed).digest()), "from one model to the other, once");

    let kept = described(&client, "kept").await;
    assert_eq!((kept.entries, kept.following), (count as u64, None));
    let request = ListEntriesRequest {
        gallery: "kept".into(),
        with_embeddings: true,
        page_size: 1000,
        ..Default::default()
    };
    let entries = client.galleries().list_entries(request).await.unwrap().into_inner().entries;
    let expected = expected(model(1).digest());
    assert!(entries.iter().all(|entry| entry.embedding.as_ref().unwrap().values == expected));

    // The gallery without chips stays with its model, and describes what to do once that is gone.
    assert_eq!(described(&client, "bare").await.model, digest(0));
    while client.list_models().await.unwrap().iter().any(|model| model.digest == digest(0)) {}
    let answers = enroll(&client, vec![enrolment("bare", 0)]).await;
    let error = answers[0].error.as_ref().unwrap();
    assert_eq!((error.code, error.reason.as_str()), (Code::FailedPrecondition as i32, "MODEL_NOT_RESIDENT"));
    assert!(error.message.contains("again"), "{}", error.message);
    server.stop().await;
}

#[tokio::test]
async fn a_gallery_follows_with_what_was_enrolled_from_a_match() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    import(&client, &exported(folder.path(), &[1])[0]).await;
    let request = CreateGalleryRequest { name: "kept".into(), ..Default::default() };
    client.galleries().create_gallery(request).await.unwrap();
    let seen = chip(fixture(IMAGE), Modality::Optical);
    let tracklet = Tracklet { chips: vec![seen.clone()] };
    let query = MatchQuery { subject: Some(Subject::Tracklet(tracklet)), ..Default::default() };
    let request = MatchRequest { gallery: "kept".into(), queries: vec![query], ..Default::default() };
    let answer = client.ship_re_id().r#match(request).await.unwrap().into_inner();
    let embedding = answer.results[0].embedding.clone();
    let ready = ReadyEmbedding { embedding, model: answer.model, chip: Some(seen), ..Default::default() };
    let request = EnrollRequest {
        gallery: "kept".into(),
        entry_id: "matched".into(),
        source: Some(Source::Embedding(ready)),
        ..Default::default()
    };
    assert_eq!(enroll(&client, vec![request]).await[0].error, None);
    activate(&client, digest(1)).await.unwrap();
    while described(&client, "kept").await.model != digest(1) {
        assert_eq!(described(&client, "kept").await.following.unwrap_or_default().stalled_reason, "");
    }
    let request = ListEntriesRequest { gallery: "kept".into(), with_embeddings: true, ..Default::default() };
    let entries = client.galleries().list_entries(request).await.unwrap().into_inner().entries;
    assert_eq!(entries[0].embedding.as_ref().unwrap().values, expected(model(1).digest()));
    server.stop().await;
}
