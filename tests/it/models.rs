//! Models of a running server: imported, listed, activated under load, exported, deleted.

mod calibrated;
mod ensemble;
mod following;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use shipreid::app::{KeptModels, LoadedModel, Running, ServedModels};
use shipreid::arithmetic::Precision;
use shipreid::chip::{ChipForm, ChipSize, ImageLimits, Modality, SarStretch, View, prepare};
use shipreid::client::{Client, ClientError, chip};
use shipreid::embedding::ModelDigest;
use shipreid::encoder::{Batch, Encoder, EncoderFactory, Health, ModelCard, PixelProjection};
use shipreid::registry::{Provenance, Registry, RegistryLimits};
use shipreid::weights::any::AnyModel;
use shipreid::weights::family::FeaturePoint;
use shipreid::weights::family::transoss::TransOssArchitecture;
use shipreid::weights::open::OpenModel;
use shipreid::weights::seed::seeded;
use shipreid::wire::embed_result::Outcome;
use shipreid::wire::enroll_request::Source;
use shipreid::wire::match_query::Subject;
use shipreid::wire::{
    ActivateModelRequest, CheckpointHints, CreateGalleryRequest, DeleteModelRequest, EmbedRequest,
    EnrollRequest, ExportModelRequest, Gallery, GetGalleryRequest, GetModelRequest, ImportModelRequest,
    ImportUploadedModelRequest, ListEntriesRequest, ListModelsRequest, MatchQuery, MatchRequest, Model,
    ReadyEmbedding, Tracklet,
};
use tonic::{Code, Status};

use crate::galleries::enroll;
use crate::server::{details, fixture, page, start_serving};
use crate::uploads::{append, create_upload, upload};

const SIZE: ChipSize = ChipSize { height: 64, width: 32 };
const IMAGE: &str = "0001_a_33x97_RGB.tif";

/// Models that differ only in their seed.
pub fn model(seed: u64) -> AnyModel {
    let vit = TransOssArchitecture::vit_base();
    let small = TransOssArchitecture { image: SIZE, embed_dim: 16, depth: 1, heads: 2, ..vit }.into();
    OpenModel::new(small, FeaturePoint::BeforeNeck, seeded(&small, seed)).into()
}

pub fn digest(seed: u64) -> String {
    model(seed).digest().to_string()
}

/// In place of a model, a projection seeded by its digest.
fn projection(digest: ModelDigest) -> PixelProjection {
    let [a, b, c, d, ..] = *digest.as_bytes();
    PixelProjection::new(16, u32::from_le_bytes([a, b, c, d]).into())
}

pub fn loaded(model: &AnyModel) -> LoadedModel {
    let digest = model.digest();
    let card = ModelCard {
        digest,
        dimension: 16,
        chip_size: SIZE,
        sar_stretch: model.preprocessing().sar_stretch,
        precision: Precision::F32,
        members: None,
    };
    let factory: EncoderFactory = Arc::new(move |_| Ok(Box::new(projection(digest)) as Box<dyn Encoder>));
    let loaded = LoadedModel { card, factory, workers: 2, bytes: 1 };
    match model {
        AnyModel::Network(_) => loaded,
        AnyModel::Ensemble(of) => ensemble::loaded_ensemble(of, &loaded),
    }
}

/// A server that keeps its models in `folder` and starts with the last activated one, or with seed 0.
async fn start(folder: &Path, settings: &[&str]) -> (Running, Client) {
    let limits = RegistryLimits { count_max: 4, bytes_max: 1 << 20 };
    let registry = Arc::new(Registry::open(&folder.join("models"), limits).unwrap());
    let first = registry.active().map_or_else(|| model(0), |active| registry.load(active.digest).unwrap());
    let kept = KeptModels { registry, loader: Arc::new(|model| Ok(loaded(&model))), preset: None };
    let data = format!("store.data_dir={}", folder.display());
    let settings: Vec<&str> = settings.iter().copied().chain([data.as_str()]).collect();
    start_serving(&settings, ServedModels { first: loaded(&first), kept: Some(kept) }).await
}

/// Models as files, as another server exports them.
pub fn exported(folder: &Path, seeds: &[u64]) -> Vec<PathBuf> {
    let limits = RegistryLimits { count_max: 9, bytes_max: 1 << 30 };
    let registry = Registry::open(&folder.join("elsewhere"), limits).unwrap();
    let file = |seed: &u64| {
        let provenance = Provenance { created_at: *seed, ..Provenance::now(format!("job {seed}")) };
        registry.add(&model(*seed), &provenance).unwrap();
        let path = folder.join(format!("{seed}.zip"));
        let file = fs::File::create(&path).unwrap();
        registry.export(model(*seed).digest()).unwrap().write_to(file).unwrap();
        path
    };
    seeds.iter().map(file).collect()
}

pub async fn import(client: &Client, file: &Path) -> Model {
    client.import_model(file, CheckpointHints::default(), |_| {}).await.unwrap().model.unwrap()
}

pub async fn activate(client: &Client, digest: String) -> Result<Model, Status> {
    let answer = client.models().activate_model(ActivateModelRequest { digest }).await?;
    Ok(answer.into_inner().model.unwrap())
}

pub fn request() -> EmbedRequest {
    let chips = vec![chip(fixture(IMAGE), Modality::Optical)];
    EmbedRequest { chips, ..EmbedRequest::default() }
}

fn expected(digest: ModelDigest) -> Vec<f32> {
    expected_of(digest, IMAGE, Modality::Optical, SarStretch::default())
}

fn expected_of(digest: ModelDigest, image: &str, modality: Modality, sar_stretch: SarStretch) -> Vec<f32> {
    let (view, form) = (View::plain(modality), ChipForm { size: SIZE, sar_stretch });
    let limits = ImageLimits { bytes_max: 1 << 20, pixels_max: 1 << 20 };
    let chips = vec![prepare(&fixture(image), &view, form, &limits).unwrap().chip.into()];
    projection(digest).forward(&Batch { model: digest, chips }).unwrap().remove(0).into_vec()
}

/// Embeds until stopped; returns the models that answered, each checked to use its own embedding.
async fn keep_embedding(client: Client, stop: Arc<AtomicBool>) -> Vec<ModelDigest> {
    let mut models: Vec<ModelDigest> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = client.embed(request(), None).await.unwrap();
        let model: ModelDigest = answer.model.parse().unwrap();
        let Some(Outcome::Embedding(embedding)) = &answer.results[0].outcome else { panic!("{answer:?}") };
        assert_eq!(embedding.values, expected(model));
        models.push(model);
    }
    models
}

fn refusal(error: ClientError) -> (Code, String, String) {
    let ClientError::Refused(status) = error else { panic!("{error}") };
    (status.code(), details(&status).0, status.message().to_owned())
}

#[tokio::test]
async fn a_configured_model_is_not_deleted_while_it_serves_and_can_be_activated_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let limits = RegistryLimits { count_max: 4, bytes_max: 1 << 20 };
    let registry = Registry::open(&folder.path().join("models"), limits).unwrap();
    registry.add(&model(0), &Provenance::now("configured")).unwrap();
    drop(registry);
    let (server, client) = start(folder.path(), &[]).await;
    let delete = DeleteModelRequest { digest: digest(0) };
    let refused = client.models().delete_model(delete).await.unwrap_err();
    assert_eq!((refused.code(), details(&refused).0.as_str()), (Code::FailedPrecondition, "MODEL_ACTIVE"));
    activate(&client, digest(0)).await.unwrap();
    server.stop().await;
    let registry = Registry::open(&folder.path().join("models"), limits).unwrap();
    assert_eq!(registry.active().unwrap().digest, model(0).digest());
}

#[tokio::test]
async fn a_model_that_has_left_is_in_no_metric_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    // No other test in this process uses these.
    let seeds = [81, 82, 83];
    for file in exported(folder.path(), &seeds) {
        import(&client, &file).await;
    }
    for seed in seeds {
        // The third can be loaded once the first is unloaded.
        activate(&client, digest(seed)).await.unwrap();
    }
    let page = page(server.metrics_address, "/metrics").await;
    let series = |digest: &str| page.lines().filter(|line| line.contains(digest)).collect::<Vec<_>>();
    let [left, active] = [seeds[0], seeds[2]].map(digest);
    assert_eq!(series(&left), [""; 0]);
    let labels = format!(r#"digest="{active}",precision="f32",device="cpu""#);
    assert_eq!(series(&active), [format!("shipreid_model_info{{{labels}}} 1")]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_activated_under_load_without_a_failed_or_wrong_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    for file in exported(folder.path(), &[1, 2]) {
        import(&client, &file).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> =
        (0..4).map(|_| tokio::spawn(keep_embedding(client.clone(), Arc::clone(&stop)))).collect();
    for seed in [1, 2, 1, 2, 1] {
        let active = activate(&client, digest(seed)).await.unwrap();
        assert_eq!((active.digest.as_str(), active.active), (digest(seed).as_str(), true));
        assert_eq!(client.embed(request(), None).await.unwrap().model, digest(seed));
        assert_eq!(server.health(), Health::Serving);
    }
    stop.store(true, Ordering::Relaxed);
    let mut answered = Vec::new();
    for caller in load {
        answered.extend(caller.await.unwrap());
    }
    answered.sort();
    answered.dedup();
    assert!(answered.len() >= 2, "{answered:?}");
    server.stop().await;

    let (server, client) = start(folder.path(), &[]).await;
    assert_eq!(client.embed(request(), None).await.unwrap().model, digest(1), "remembered");
    server.stop().await;
}

#[tokio::test]
async fn models_are_listed_in_pages_exported_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    let files = exported(folder.path(), &[1, 2, 3]);
    for file in &files {
        let model = import(&client, file).await;
        assert_eq!((model.active, model.resident, model.precision.as_str()), (false, false, ""));
    }
    let mut request = ListModelsRequest { page_size: 2, ..ListModelsRequest::default() };
    let mut listed = Vec::new();
    loop {
        let page = client.models().list_models(request.clone()).await.unwrap().into_inner();
        listed.extend(page.models);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let digests: Vec<_> = listed.iter().map(|model| model.digest.clone()).collect();
    assert_eq!(digests, [0, 1, 2, 3].map(digest), "oldest first, the configuration's before all");
    let first = &listed[0];
    assert_eq!((first.active, first.precision.as_str(), first.stored_bytes), (true, "f32", 0));
    let second = &listed[1];
    assert_eq!((second.origin.as_str(), second.dimension, second.image_height), ("job 1", 16, 64));
    assert_eq!(client.list_models().await.unwrap(), listed);

    let copy = folder.path().join("copy.zip");
    client.export_model(digest(2), &copy, |_| {}).await.unwrap();
    assert_eq!(fs::read(copy).unwrap(), fs::read(&files[1]).unwrap());

    activate(&client, digest(2)).await.unwrap();
    let get = GetModelRequest::default();
    let active = client.models().get_model(get).await.unwrap().into_inner().model.unwrap();
    assert_eq!(active.digest, digest(2));
    let mut models = client.models();
    let refused = models.delete_model(DeleteModelRequest { digest: digest(2) }).await.unwrap_err();
    assert_eq!((refused.code(), details(&refused).0.as_str()), (Code::FailedPrecondition, "MODEL_ACTIVE"));
    models.delete_model(DeleteModelRequest { digest: digest(3) }).await.unwrap();
    while client.list_models().await.unwrap().len() > 2 {
        // The first one was never stored, and is unloaded after its last call.
    }
    server.stop().await;
}

#[tokio::test]
async fn a_checkpoint_is_imported_with_what_it_does_not_say() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    let checkpoint = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ckpt_wrapped.pth"));
    let hints = CheckpointHints { heads: 2, image_height: 64, image_width: 32, ..Default::default() };
    let imported = client.import_model(checkpoint, hints, |_| {}).await.unwrap();
    assert_eq!(imported.dropped_tensors, ["base.fc.bias", "base.fc.weight"]);
    let model = imported.model.unwrap();
    assert_eq!((model.origin.as_str(), model.dimension), ("ckpt_wrapped.pth", 16));
    let (code, reason, _) =
        refusal(client.import_model(checkpoint, CheckpointHints::default(), |_| {}).await.unwrap_err());
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "MODEL_UNREADABLE"));
    let hints = CheckpointHints { image_height: 64, ..Default::default() };
    let (_, reason, _) = refusal(client.import_model(checkpoint, hints, |_| {}).await.unwrap_err());
    assert_eq!(reason, "IMAGE_SIZE_INCOMPLETE");
    let hints = CheckpointHints { sar_stretch: 9, ..Default::default() };
    let (_, reason, _) = refusal(client.import_model(checkpoint, hints, |_| {}).await.unwrap_err());
    assert_eq!(reason, "SAR_STRETCH_UNKNOWN");
    let sar_stretch = shipreid::wire::SarStretch::Denoised.into();
    let hints =
        CheckpointHints { heads: 2, image_height: 64, image_width: 32, sar_stretch, ..Default::default() };
    let denoised = client.import_model(checkpoint, hints.clone(), |_| {}).await.unwrap().model.unwrap();
    assert_eq!((denoised.sar_stretch, denoised.family.as_str()), (sar_stretch, "transoss"));
    assert_ne!(denoised.digest, model.digest, "the same weights that read other chips");
    let checkpoint = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sdf_net.pth"));
    let hints = CheckpointHints { sar_stretch: 0, ..hints };
    let sdf_net = client.import_model(checkpoint, hints, |_| {}).await.unwrap().model.unwrap();
    assert_eq!((sdf_net.dimension, sdf_net.family.as_str()), (16, "sdf_net"));

    // What the model was trained on is what it is served.
    activate(&client, denoised.digest.clone()).await.unwrap();
    let image = "0004_d_31x61_SAR.tif";
    let chips = vec![chip(fixture(image), Modality::Sar)];
    let answer = client.embed(EmbedRequest { chips, ..EmbedRequest::default() }, None).await.unwrap();
    let Some(Outcome::Embedding(embedding)) = &answer.results[0].outcome else { panic!("{answer:?}") };
    let expected = |stretch| expected_of(answer.model.parse().unwrap(), image, Modality::Sar, stretch);
    assert_eq!(answer.model, denoised.digest);
    assert_eq!(embedding.values, expected(SarStretch::Denoised));
    assert_ne!(embedding.values, expected(SarStretch::Maximum));
    server.stop().await;
}

#[tokio::test]
async fn a_model_is_imported_from_an_upload_as_from_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    let import = async |request: ImportUploadedModelRequest| {
        let imported = client.models().import_uploaded_model(request).await?;
        Ok::<_, Status>(imported.into_inner().model.unwrap())
    };
    let checkpoint = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ckpt_wrapped.pth")).unwrap();
    let upload_id = upload(&client, &checkpoint).await;
    let request = ImportUploadedModelRequest {
        upload_id: upload_id.clone(),
        file_name: "ckpt_wrapped.pth".into(),
        ..Default::default()
    };
    let status = import(request.clone()).await.unwrap_err();
    assert_eq!((status.code(), details(&status).0.as_str()), (Code::InvalidArgument, "MODEL_UNREADABLE"));
    assert_eq!(details(&status).1.bad_request().unwrap().field_violations[0].field, "upload_id");
    assert!(status.message().starts_with("ckpt_wrapped.pth: "), "{}", status.message());
    let hints = CheckpointHints { heads: 2, image_height: 64, image_width: 32, ..Default::default() };
    let request = ImportUploadedModelRequest { hints: Some(hints), ..request };
    let other = ImportUploadedModelRequest { sha256: "0".repeat(64), ..request.clone() };
    assert_eq!(details(&import(other).await.unwrap_err()).0, "SHA256_MISMATCH");
    let model = import(request.clone()).await.unwrap();
    assert_eq!((model.origin.as_str(), model.dimension), ("ckpt_wrapped.pth", 16));
    assert_eq!(details(&import(request).await.unwrap_err()).0, "UPLOAD_NOT_FOUND");

    let packed = fs::read(&exported(folder.path(), &[1])[0]).unwrap();
    let truncated = upload(&client, &packed[..packed.len() - 9]).await;
    let request = ImportUploadedModelRequest { upload_id: truncated.clone(), ..Default::default() };
    assert_eq!(details(&import(request.clone()).await.unwrap_err()).0, "MODEL_UNREADABLE");
    let rest = packed.len() - 9;
    append(&client, &truncated, rest as u64, &packed[rest..]).await.unwrap();
    assert_eq!(import(request).await.unwrap().digest, digest(1));
    assert_eq!(fs::read_dir(folder.path().join("models/incoming")).unwrap().count(), 0);
    // The limits of a stream apply as well.
    let too_large = vec![7; (1 << 20) + 1];
    let upload = create_upload(&client).await.unwrap();
    append(&client, &upload.upload_id, 0, &too_large).await.unwrap();
    let request = ImportUploadedModelRequest { upload_id: upload.upload_id, ..Default::default() };
    assert_eq!(details(&import(request).await.unwrap_err()).0, "MODELS_TOO_LARGE");
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_with_models_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    let mut models = client.models();
    let check = |refused: Result<(), Status>, code: Code, reason: &str| {
        let status = refused.unwrap_err();
        assert_eq!((status.code(), details(&status).0.as_str()), (code, reason), "{status:?}");
    };
    let activated = activate(&client, digest(9)).await.map(drop);
    check(activated, Code::NotFound, "MODEL_NOT_FOUND");
    check(activate(&client, "12".into()).await.map(drop), Code::InvalidArgument, "MODEL_MALFORMED");
    check(activate(&client, String::new()).await.map(drop), Code::InvalidArgument, "MODEL_MALFORMED");
    let absent = ExportModelRequest { digest: digest(9) };
    check(models.export_model(absent).await.map(drop), Code::NotFound, "MODEL_NOT_FOUND");
    let get = GetModelRequest { digest: digest(9) };
    check(models.get_model(get).await.map(drop), Code::NotFound, "MODEL_NOT_FOUND");
    let page = ListModelsRequest { page_token: "x".into(), ..Default::default() };
    check(models.list_models(page).await.map(drop), Code::InvalidArgument, "PAGE_TOKEN_INVALID");

    let junk = |bytes: usize| {
        let request = ImportModelRequest {
            file_name: "junk.pth".into(),
            data: vec![7; bytes].into(),
            ..Default::default()
        };
        tokio_stream::iter([request])
    };
    let status = models.import_model(junk(9)).await.unwrap_err();
    assert_eq!((status.code(), details(&status).0.as_str()), (Code::InvalidArgument, "MODEL_UNREADABLE"));
    assert!(status.message().starts_with("junk.pth: "), "no path of the server: {}", status.message());
    let too_large = models.import_model(junk((1 << 20) + 1)).await.map(drop);
    check(too_large, Code::ResourceExhausted, "MODELS_TOO_LARGE");

    import(&client, &exported(folder.path(), &[1])[0]).await;
    let tensors = folder.path().join("models").join(digest(1)).join("model.safetensors");
    let mut bytes = fs::read(&tensors).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(tensors, bytes).unwrap();
    check(activate(&client, digest(1)).await.map(drop), Code::DataLoss, "MODEL_DAMAGED");
    let get = GetModelRequest { digest: digest(1) };
    let damaged = models.get_model(get).await.unwrap().into_inner().model.unwrap();
    assert!(damaged.damage.contains("digest"), "{}", damaged.damage);
    assert_eq!(client.embed(request(), None).await.unwrap().model, digest(0), "the first one serves on");
    server.stop().await;
}

#[tokio::test]
async fn a_server_without_a_data_folder_serves_one_model_for_life() {
    let (server, client) = start_serving(&["store.data_dir="], loaded(&model(0))).await;
    let listed = client.list_models().await.unwrap();
    assert_eq!((listed.len(), listed[0].digest.as_str(), listed[0].active), (1, digest(0).as_str(), true));
    let status = activate(&client, digest(1)).await.unwrap_err();
    assert_eq!((status.code(), details(&status).0.as_str()), (Code::FailedPrecondition, "NO_DATA_DIR"));
    server.stop().await;
}

#[cfg(feature = "torch")]
mod program {
    use super::*;
    use crate::program::{GOLDEN, Server};

    /// The behaviour of `shipreid serve` with a preset, which is not one of the stored models.
    #[tokio::test]
    async fn a_preset_serves_again_after_another_model_and_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let unused = folder.path();
        let data = format!("store.data_dir={}", folder.path().join("data").display());
        let settings = ["model.path=", "model.preset=tiny", data.as_str()];
        let server = Server::start(unused, &settings);
        let client = Client::connect(&server.endpoint).await.unwrap();
        let preset = active(&client).await;
        let file = Path::new(GOLDEN).join("ckpt_wrapped.pth");
        let hints = CheckpointHints { heads: 2, image_height: 64, image_width: 32, ..Default::default() };
        let other = client.import_model(&file, hints, |_| {}).await.unwrap().model.unwrap().digest;
        for digest in [&other, &preset] {
            activate(&client, digest.clone()).await.unwrap();
            assert_eq!(active(&client).await, *digest);
        }
        server.terminate();
        let server = Server::start(unused, &settings);
        let client = Client::connect(&server.endpoint).await.unwrap();
        assert_eq!(active(&client).await, preset);
        activate(&client, other.clone()).await.unwrap();
        server.terminate();
        // This server has never served the preset.
        let server = Server::start(unused, &settings);
        let client = Client::connect(&server.endpoint).await.unwrap();
        assert_eq!(active(&client).await, other);
        activate(&client, preset.clone()).await.unwrap();
        assert_eq!(active(&client).await, preset);
        server.terminate();
    }

    async fn active(client: &Client) -> String {
        let listed = client.models().get_model(GetModelRequest::default()).await.unwrap();
        listed.into_inner().model.unwrap().digest
    }
}
