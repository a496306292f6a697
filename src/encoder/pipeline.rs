//! From encoded bytes to an embedding: the steps that Embed, Enroll and Match share.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::EncoderInput;
use super::admission::{Admission, Admitted, Refusal};
use super::residency::{ModelLease, Residency};
use super::schedule::Priority;
use super::types::{EncodeError, EncodeJob, Encoded};
use crate::budget::Slots;
use crate::cancellation::{Stopped, spawn_cancellable};
use crate::chip::{
    ChipForm, ChipSize, ChipWarning, ImageLimits, PrepareError, Prepared, PreparedError, PreparedPixels,
    Preview, SourceChip,
};
use crate::embedding::{Embedding, ModelDigest};
use crate::metrics;
use crate::reason::Reason;

/// The expected time is a mean: with this margin, admitted chips are rarely late.
const CAUTION: f64 = 1.25;

/// The caller, and the deadline after which an answer is useless.
#[derive(Clone, Debug)]
pub struct Caller {
    pub tenant: Arc<str>,
    pub priority: Priority,
    pub deadline: Option<tokio::time::Instant>,
}

/// A chip's embedding, the warnings about it, and its cost.
#[derive(Clone, Debug)]
pub struct Embedded {
    pub embedding: Embedding,
    /// Width and height of the chip in metres.
    pub extent_m: [f64; 2],
    pub warnings: Vec<ChipWarning>,
    pub decode: Duration,
    pub queued: Duration,
    pub forward: Duration,
}

/// Facts about a chip that was not embedded.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Width and height in metres.
    pub extent_m: [f64; 2],
    pub warnings: Vec<ChipWarning>,
}

/// Why a chip has no embedding.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EmbedError {
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Prepared(#[from] PreparedError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("decoding panicked")]
    Panicked,
}

/// The digest names no resident model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("model {0} is not resident")]
pub struct UnknownModel(pub ModelDigest);

/// Admission, decoding and the models of one server.
#[derive(Debug)]
pub struct Pipeline {
    admission: Admission,
    /// A thread each.
    decoding: Slots,
    limits: ImageLimits,
    residency: Residency,
    active: RwLock<ModelLease>,
}

impl Pipeline {
    /// Serves the models of `residency`, `active` if a call names none, and decodes on at most `decode_threads`
    /// threads.
    pub fn new(
        admission: Admission,
        limits: ImageLimits,
        decode_threads: usize,
        residency: Residency,
        active: ModelLease,
    ) -> Self {
        let decoding = Slots::with_gauge(decode_threads, metrics::decoding);
        Self { admission, decoding, limits, residency, active: RwLock::new(active) }
    }

    /// The model that a call runs on from start to end: the named one if it is resident, or the active one.
    ///
    /// # Errors
    /// The named model is not resident.
    pub fn resolve(&self, named: Option<ModelDigest>) -> Result<ModelLease, UnknownModel> {
        match named {
            None => Ok(self.active()),
            Some(digest) => self.residency.lease(digest).ok_or(UnknownModel(digest)),
        }
    }

    /// The model for calls that name none.
    pub fn active(&self) -> ModelLease {
        self.active.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes `model` the active one. Calls in progress keep the model that they began with; the former one is unloaded
    /// after them, and after the returned lease.
    pub fn activate(&self, model: ModelLease) -> ModelLease {
        let mut active = self.active.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *active, model)
    }

    pub fn residency(&self) -> &Residency {
        &self.residency
    }

    /// Takes room for the chips of one call, until the returned value is dropped. Refuses immediately when a budget is
    /// exhausted, or when the queue is too long for the call's deadline.
    ///
    /// The weight of a chip is its encoded bytes plus the pixels that it becomes.
    pub fn admit(
        &self,
        model: &ModelLease,
        caller: &Caller,
        chips: usize,
        image_bytes: usize,
    ) -> Result<Admitted, Refusal> {
        let ChipSize { height, width } = model.chip_size;
        counted(
            self.in_time(model, caller, chips)
                .and_then(|()| self.admission.try_admit(chips, image_bytes + chips * height * width * 3)),
        )
    }

    /// Takes room for images that wait, whether or not for the device: how long its queue is does not matter. Refuses
    /// immediately when a budget is exhausted.
    pub fn admit_images(&self, images: usize, bytes: usize) -> Result<Admitted, Refusal> {
        counted(self.admission.try_admit(images, bytes))
    }

    fn in_time(&self, model: &ModelLease, caller: &Caller, chips: usize) -> Result<(), Refusal> {
        let Some(deadline) = caller.deadline else { return Ok(()) };
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let queue = self.residency.queue();
        let is_late = |expected: Duration| expected.mul_f64(CAUTION) > left;
        let alone = queue.least_time(model.digest, chips);
        if is_late(alone) {
            return Err(Refusal::TooShort { expected: alone, left });
        }
        let expected = queue.expected_time(model.digest, &caller.tenant, caller.priority, chips);
        if is_late(expected) { Err(Refusal::Deadline { expected, left }) } else { Ok(()) }
    }

    /// Decodes, resizes, waits for the device, embeds. Dropping the future removes the chip from the queue.
    ///
    /// # Errors
    /// This chip or its batch failed; other chips are not affected.
    pub async fn embed(
        &self,
        model: &ModelLease,
        caller: &Caller,
        chip: SourceChip,
    ) -> Result<Embedded, EmbedError> {
        let modality = chip.view.modality;
        let embedded = self.embed_uncounted(model, caller, chip).await;
        let outcome = embedded.as_ref().map_or_else(|cause| cause.reason().name(), |_| "ok");
        metrics::chip_answered(modality.name(), outcome);
        embedded
    }

    /// Decodes a chip as `model` would embed it, without embedding it.
    ///
    /// # Errors
    /// The chip is invalid.
    pub async fn examine(
        &self,
        model: &ModelLease,
        caller: &Caller,
        chip: SourceChip,
    ) -> Result<Examined, EmbedError> {
        let (prepared, _) = self.prepare(model.chip_form(), caller, chip).await?;
        Ok(Examined { extent_m: prepared.chip.extent_m(), warnings: prepared.warnings })
    }

    /// Draws a chip in at most `side_max` rows and columns.
    ///
    /// # Errors
    /// The chip is invalid.
    pub async fn preview(
        &self,
        caller: &Caller,
        chip: SourceChip,
        side_max: u32,
    ) -> Result<Preview, EmbedError> {
        let draw = move |chip: &SourceChip, limits: &ImageLimits| {
            crate::chip::preview(&chip.image, &chip.view, side_max, limits)
        };
        Ok(self.decode(caller, chip, draw).await?.0)
    }

    async fn embed_uncounted(
        &self,
        model: &ModelLease,
        caller: &Caller,
        chip: SourceChip,
    ) -> Result<Embedded, EmbedError> {
        let (prepared, decode) = self.prepare(model.chip_form(), caller, chip).await?;
        let extent_m = prepared.chip.extent_m();
        let encoded = self.encode(model, caller, prepared.chip.into()).await?;
        prepared.warnings.iter().for_each(|warning| metrics::chip_warning(warning.code().name()));
        Ok(Embedded {
            embedding: encoded.embedding,
            extent_m,
            warnings: prepared.warnings,
            decode,
            queued: encoded.queued,
            forward: encoded.forward,
        })
    }

    /// Embeds pixels that the caller has prepared: only waits for the device. Dropping the future removes the chip from
    /// the queue.
    ///
    /// # Errors
    /// The pixels do not fit the model, or their batch failed.
    pub async fn embed_prepared(
        &self,
        model: &ModelLease,
        caller: &Caller,
        pixels: PreparedPixels,
    ) -> Result<Encoded, EmbedError> {
        let (modality, found, expected) = (pixels.modality(), pixels.size(), model.chip_size);
        let encoded = if found == expected {
            self.encode(model, caller, pixels.into()).await.map_err(EmbedError::from)
        } else {
            Err(PreparedError::Size { found, expected }.into())
        };
        let outcome = encoded.as_ref().map_or_else(|cause| cause.reason().name(), |_| "ok");
        metrics::chip_answered(modality.name(), outcome);
        encoded
    }

    async fn encode(
        &self,
        model: &ModelLease,
        caller: &Caller,
        chip: EncoderInput,
    ) -> Result<Encoded, EncodeError> {
        let job = EncodeJob {
            model: model.digest,
            tenant: Arc::clone(&caller.tenant),
            priority: caller.priority,
            deadline: caller.deadline,
            chip,
        };
        self.residency.queue().encode(job).await
    }

    async fn prepare(
        &self,
        form: ChipForm,
        caller: &Caller,
        chip: SourceChip,
    ) -> Result<(Prepared, Duration), EmbedError> {
        let prepare = move |chip: &SourceChip, limits: &ImageLimits| {
            crate::chip::prepare(&chip.image, &chip.view, form, limits)
        };
        self.decode(caller, chip, prepare).await
    }

    /// Runs `work`, which decodes the chip, on a decoding thread, and measures it.
    async fn decode<T: Send + 'static>(
        &self,
        caller: &Caller,
        chip: SourceChip,
        work: impl FnOnce(&SourceChip, &ImageLimits) -> Result<T, PrepareError> + Send + 'static,
    ) -> Result<(T, Duration), EmbedError> {
        let turn = self.decoding.take().await.map_err(|_| EncodeError::Closed)?;
        let limits = self.limits;
        let span = tracing::debug_span!("decode", bytes = chip.image.len());
        let decoding = spawn_cancellable(caller.deadline, move |_| {
            // Held until the work ends, even if the caller has left.
            let _turn = turn;
            let _span = span.enter();
            let started = Instant::now();
            let decoded = work(&chip, &limits);
            Ok::<_, Stopped>((decoded, started.elapsed()))
        });
        let (decoded, took) = decoding.await.map_err(|_| EmbedError::Panicked)??;
        metrics::decoded(took);
        Ok((decoded?, took))
    }
}

/// Counts a refusal.
fn counted(admitted: Result<Admitted, Refusal>) -> Result<Admitted, Refusal> {
    admitted.inspect_err(|refusal| metrics::refused(refusal.reason().name()))
}

/// A caller that has left reads no answer.
impl From<Stopped> for EmbedError {
    fn from(_: Stopped) -> Self {
        EncodeError::DeadlineExceeded.into()
    }
}

impl EmbedError {
    /// Stable and suitable for programs and labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Prepare(cause) => cause.reason(),
            Self::Prepared(cause) => cause.reason(),
            Self::Encode(cause) => cause.reason(),
            Self::Panicked => Reason::DecodeFailed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Batch, Encoder, ForwardError, LoadedModel, ModelCard, PixelProjection, QueueSettings,
        ResidencySettings,
    };
    use super::*;
    use crate::arithmetic::Precision;
    use crate::chip::{Modality, SarStretch, View};
    use crate::encoder::EncodeQueue;

    const SIZE: ChipSize = ChipSize { height: 8, width: 4 };
    const DIGEST: ModelDigest = ModelDigest::new([1; 32]);
    const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 20, pixels_max: 1 << 20 };

    async fn pipeline() -> Pipeline {
        pipeline_on(|| Box::new(PixelProjection::new(8, 1))).await
    }

    async fn pipeline_on(encoder: impl Fn() -> Box<dyn Encoder> + Send + Sync + 'static) -> Pipeline {
        let queue = EncodeQueue::start(QueueSettings { workers: 1, batch_max: 4 }, Arc::new(|_| {}));
        let settings = ResidencySettings { bytes_max: 1000, device: "cpu".into() };
        let residency = Residency::new(queue, settings);
        let card = ModelCard {
            digest: DIGEST,
            dimension: 8,
            chip_size: SIZE,
            sar_stretch: SarStretch::default(),
            precision: Precision::F32,
            members: None,
        };
        let factory = Arc::new(move |_| Ok(encoder()));
        let model = LoadedModel { card, factory, workers: 1, bytes: 100 };
        let active = residency.admit(model).await.expect("room");
        Pipeline::new(Admission::new(64, 1 << 30), LIMITS, 1, residency, active)
    }

    /// Takes a fixed time for every batch.
    struct Slow;

    impl Encoder for Slow {
        fn forward(&mut self, batch: &Batch) -> Result<Vec<Embedding>, ForwardError> {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(20) {
                std::thread::yield_now();
            }
            PixelProjection::new(8, 1).forward(batch)
        }
    }

    #[tokio::test]
    async fn a_deadline_too_short_for_an_idle_device_is_told_from_a_long_queue() {
        let pipeline = pipeline_on(|| Box::new(Slow)).await;
        let model = pipeline.active();
        let mut caller = Caller { tenant: "t".into(), priority: Priority::Interactive, deadline: None };
        pipeline.embed_prepared(&model, &caller, pixels(SIZE, 0.01)).await.expect("an embedding");
        caller.deadline = Some(tokio::time::Instant::now() + Duration::from_millis(10));
        let refused = pipeline.admit(&model, &caller, 1, 1).expect_err("too late");
        assert!(matches!(refused, Refusal::TooShort { .. }), "{refused:?}");
        caller.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(3600));
        pipeline.admit(&model, &caller, 1, 1).expect("time enough");
        pipeline.residency().queue().close().await;
    }

    fn pixels(size: ChipSize, value: f32) -> PreparedPixels {
        let pixels = (0..size.height * size.width * 3).map(|place| place as f32 * value).collect();
        PreparedPixels::new(pixels, size, Modality::Sar, [0.5, -1.0, 4.0]).expect("finite")
    }

    #[tokio::test]
    async fn prepared_pixels_go_through_the_queue_as_they_are() {
        let pipeline = pipeline().await;
        let model = pipeline.active();
        let mut caller = Caller { tenant: "t".into(), priority: Priority::Interactive, deadline: None };
        let found = pipeline.embed_prepared(&model, &caller, pixels(SIZE, 0.01)).await.expect("an embedding");
        let batch = Batch { model: DIGEST, chips: vec![pixels(SIZE, 0.01).into()] };
        let expected = PixelProjection::new(8, 1).forward(&batch).expect("embeddings").remove(0);
        assert_eq!((found.embedding, found.batch_size), (expected.clone(), 1));
        let other = pipeline.embed_prepared(&model, &caller, pixels(SIZE, -0.01)).await;
        assert_ne!(other.expect("an embedding").embedding, expected);

        // As many values as the model reads, in another shape.
        let turned = ChipSize { height: SIZE.width, width: SIZE.height };
        let refused = pipeline.embed_prepared(&model, &caller, pixels(turned, 0.01)).await;
        let refused = refused.expect_err("another size");
        assert_eq!(
            (refused.reason().name(), refused.to_string().as_str()),
            ("PIXELS_MISSHAPEN", "the pixels have 4 rows and 8 columns, the model reads 8 and 4",)
        );
        caller.deadline = Some(tokio::time::Instant::now());
        let late = pipeline.embed_prepared(&model, &caller, pixels(SIZE, 0.01)).await;
        assert!(matches!(late, Err(EmbedError::Encode(EncodeError::DeadlineExceeded))), "{late:?}");
        pipeline.residency().queue().close().await;
    }

    #[tokio::test]
    async fn a_preview_waits_for_a_decoding_thread_and_is_not_drawn_for_whoever_has_left() {
        let pipeline = pipeline().await;
        let mut caller = Caller { tenant: "t".into(), priority: Priority::Interactive, deadline: None };
        let picture = image::RgbImage::from_pixel(4, 8, image::Rgb([1, 2, 3]));
        let mut file = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut file, image::ImageFormat::Png).expect("a PNG");
        let chip = SourceChip { image: file.into_inner().into(), view: View::plain(Modality::Optical) };
        let turn = pipeline.decoding.take().await.expect("a thread");
        let mut waiting = Box::pin(pipeline.preview(&caller, chip.clone(), 8));
        let mut leaving = Box::pin(pipeline.preview(&caller, chip.clone(), 8));
        assert!(futures_util::poll!(&mut leaving).is_pending());
        for _ in 0..100 {
            assert!(futures_util::poll!(&mut waiting).is_pending(), "the only thread is taken");
            tokio::task::spawn_blocking(|| ()).await.expect("another thread");
        }
        drop(leaving);
        drop(turn);
        let preview = waiting.await.expect("a picture");
        assert_eq!((preview.width, preview.height), (4, 8));
        caller.deadline = Some(tokio::time::Instant::now());
        let late = pipeline.preview(&caller, chip, 8).await;
        assert!(matches!(late, Err(EmbedError::Encode(EncodeError::DeadlineExceeded))), "{late:?}");
        pipeline.residency().queue().close().await;
    }

    #[tokio::test]
    async fn images_that_wait_take_room() {
        let pipeline = pipeline().await;
        let admitted = pipeline.admit_images(0, 1 << 29).expect("room");
        let refused = pipeline.admit_images(0, (1 << 29) + 1).expect_err("no room");
        assert_eq!(refused.reason().name(), "QUEUE_BYTES_FULL");
        drop(admitted);
        pipeline.admit_images(0, 1 << 30).expect("all of it");
        assert_eq!(pipeline.admit_images(65, 1).expect_err("no room").reason().name(), "QUEUE_FULL");
        pipeline.residency().queue().close().await;
    }
}
