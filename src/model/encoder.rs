//! A network behind the queue: takes chips and returns embeddings, on the thread that created it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tch::{Kind, Tensor};

use super::build::network;
use super::network::{Input, Mode, Network};
use super::runtime::Device;
use super::shared::SharedLayers;
use super::shim::first_line;
use super::tensors::{Tensors, hand_over, kind};
use crate::arithmetic::{Choice, Precision};
use crate::chip::{Chip, Modality, PreparedPixels, Preprocessing};
use crate::embedding::Embedding;
use crate::encoder::{Batch, Encoder, EncoderFactory, EncoderInput, ForwardError, Rehearsal};
use crate::weights::coded::Layers;
use crate::weights::family::{Architecture, FeaturePoint};
use crate::weights::tensors::NamedTensors;

/// How a model runs.
#[derive(Clone, Debug)]
pub struct TorchSettings {
    pub device: Device,
    pub precision: Precision,
    /// The kernels of its linear layers.
    pub kernels: Choice,
    /// Threads inside one forward pass.
    pub threads: usize,
    pub feature_point: FeaturePoint,
}

/// A model's tensors, shared by all its encoders.
pub struct SharedWeights {
    architecture: Architecture,
    settings: TorchSettings,
    /// A tensor may move between threads but not be accessed by two at once, so each encoder takes
    /// its own handles.
    weights: Mutex<Weights>,
}

/// libtorch is used only on the long-lived device threads, so the first of them moves the weights
/// to the device.
struct Weights {
    /// Empty once they are on the device.
    read: NamedTensors,
    /// Without what is part of `layers`.
    on_device: Option<Tensors>,
    layers: SharedLayers,
}

impl Weights {
    /// A network on these weights. What its layers have packed or rounded is dropped in its first form.
    fn network(&mut self, architecture: &Architecture, settings: &TorchSettings) -> Box<dyn Network> {
        let kind = kind(settings.precision);
        let read = std::mem::take(&mut self.read);
        let tensors = self.on_device.get_or_insert_with(|| hand_over(read, settings.device, kind));
        let network = network(architecture, tensors, &settings.kernels, &self.layers);
        tensors.retain(|name, _| !self.layers.has(name));
        network
    }
}

impl SharedWeights {
    /// Takes `tensors`, which the caller has compared with `architecture`.
    pub fn new(architecture: Architecture, tensors: NamedTensors, settings: TorchSettings) -> Arc<Self> {
        Self::with_layers(architecture, tensors, &Layers::new(), settings)
    }

    /// Those of a model in int8, if it has `layers`, whose biases are in `tensors`.
    pub fn with_layers(
        architecture: Architecture,
        tensors: NamedTensors,
        layers: &Layers,
        settings: TorchSettings,
    ) -> Arc<Self> {
        let layers = SharedLayers::stored(layers, &tensors);
        let weights = Weights { read: tensors, on_device: None, layers };
        Arc::new(Self { architecture, settings, weights: Mutex::new(weights) })
    }

    /// Creates encoders that share these tensors, each on the calling thread.
    pub fn factory(self: Arc<Self>) -> EncoderFactory {
        Arc::new(move |_| {
            let made = catch_unwind(AssertUnwindSafe(|| self.encoder()));
            made.map(|encoder| Box::new(encoder) as Box<dyn Encoder>)
                .map_err(|panic| panic_message(panic.as_ref()))
        })
    }

    /// An encoder for the calling thread.
    fn encoder(&self) -> TorchEncoder {
        // libgomp keeps a separate number of threads for each thread that starts others.
        tch::set_num_threads(i32::try_from(self.settings.threads).unwrap_or(i32::MAX));
        let _no_grad = tch::no_grad_guard();
        let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of = |architecture: &Architecture| TorchEncoder {
            network: weights.network(architecture, &self.settings),
            rehearsal: None,
            preprocessing: architecture.preprocessing(),
            precision: self.settings.precision,
            device: self.settings.device,
            feature_point: self.settings.feature_point,
        };
        let whole = of(&self.architecture);
        let part = self.architecture.shortened().map(|(part, times)| (Box::new(of(&part)), times));
        TorchEncoder { rehearsal: part, ..whole }
    }
}

/// A network on the thread that created it.
#[derive(Debug)]
struct TorchEncoder {
    network: Box<dyn Network>,
    /// A part of the network on the same tensors, and how many times longer the whole takes at most.
    rehearsal: Option<(Box<Self>, u32)>,
    preprocessing: Preprocessing,
    precision: Precision,
    device: Device,
    feature_point: FeaturePoint,
}

impl Encoder for TorchEncoder {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Embedding>, ForwardError> {
        let features = catch_unwind(AssertUnwindSafe(|| self.features(&batch.chips)))
            .map_err(|panic| forward_error(panic.as_ref()))?;
        let dimension = features.len() / batch.chips.len().max(1);
        features
            .chunks(dimension.max(1))
            .map(|feature| {
                let embedding = Embedding::from_feature(feature.to_vec());
                embedding.map_err(|cause| ForwardError::Failed(cause.to_string()))
            })
            .collect()
    }

    fn rehearsal(&mut self) -> Option<Rehearsal<'_>> {
        self.rehearsal.as_mut().map(|(part, times)| Rehearsal { part: part.as_mut(), times: *times })
    }
}

impl TorchEncoder {
    /// [B, D] flattened row by row.
    fn features(&self, chips: &[EncoderInput]) -> Vec<f32> {
        let _no_grad = tch::no_grad_guard();
        let (kind, device) = (kind(self.precision), self.device.0);
        let modalities: Vec<Modality> = chips.iter().map(EncoderInput::modality).collect();
        let sizes: Vec<f32> = chips.iter().flat_map(EncoderInput::size_token).collect();
        let features = self.network.forward(
            &Input {
                pixels: &self.pixels(chips).to_kind(kind),
                modalities: &modalities,
                size_tokens: &Tensor::from_slice(&sizes).view([-1, 3]).to_device(device).to_kind(kind),
            },
            Mode::Evaluate,
        );
        let features = match self.feature_point {
            FeaturePoint::BeforeNeck => features.before_neck,
            FeaturePoint::AfterNeck => features.after_neck,
        };
        let features = features.to_kind(Kind::Float).to_device(tch::Device::Cpu).flatten(0, -1);
        Vec::try_from(features).expect("f32 features on the host")
    }

    /// [B, 3, height, width], normalised, on the device.
    fn pixels(&self, inputs: &[EncoderInput]) -> Tensor {
        let normalised = |chips: &[&Chip]| normalised(chips, &self.preprocessing, self.device.0);
        let alone = |input: &EncoderInput| match input {
            EncoderInput::Chip(chip) => normalised(&[chip]),
            EncoderInput::Prepared(pixels) => on_device(pixels, self.device.0),
        };
        match inputs.iter().map(EncoderInput::chip).collect::<Option<Vec<_>>>() {
            Some(chips) => normalised(&chips),
            None => Tensor::cat(&inputs.iter().map(alone).collect::<Vec<_>>(), 0),
        }
    }
}

/// [B, 3, height, width] on the device: (u8 / 255 - mean) / deviation.
fn normalised(chips: &[&Chip], preprocessing: &Preprocessing, device: tch::Device) -> Tensor {
    let size = chips[0].size();
    let bytes = chips.iter().map(|chip| chip.pixels()).collect::<Vec<_>>().concat();
    let shape = [chips.len() as i64, size.height as i64, size.width as i64, 3];
    let pixels = Tensor::from_slice(&bytes).view(shape).to_device(device).permute([0, 3, 1, 2]);
    let channels = |values: &[f32; 3]| Tensor::from_slice(values).view([1, 3, 1, 1]).to_device(device);
    let pixels = pixels.contiguous().to_kind(Kind::Float) / 255.0;
    (pixels - channels(&preprocessing.mean)) / channels(&preprocessing.deviation)
}

/// [1, 3, height, width], unchanged.
fn on_device(prepared: &PreparedPixels, device: tch::Device) -> Tensor {
    let size = prepared.size();
    let shape = [1, 3, size.height as i64, size.width as i64];
    Tensor::from_slice(prepared.pixels()).view(shape).to_device(device)
}

/// The payload of a panic in tch: the C++ message.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message");
    first_line(text)
}

/// Classifies a panic of tch as an error of the device.
pub fn forward_error(panic: &(dyn Any + Send)) -> ForwardError {
    classify(panic_message(panic))
}

fn classify(message: String) -> ForwardError {
    let lower = message.to_lowercase();
    if lower.contains("out of memory") || lower.contains("can't allocate memory") {
        ForwardError::OutOfMemory
    } else if lower.contains("cuda error") || lower.contains("cublas") || lower.contains("cudnn") {
        ForwardError::DeviceLost(message)
    } else {
        ForwardError::Failed(message)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::test_device::{self, bound, device};
    use super::*;
    use crate::arithmetic::{Kernel, Timing};
    use crate::embedding::ModelDigest;
    use crate::weights::family::{Family, Preset};
    use crate::weights::seed::seeded;

    fn tiny() -> Architecture {
        Family::default().preset(Preset::Tiny)
    }

    fn encoder(precision: Precision, kernels: &Choice) -> Box<dyn Encoder> {
        let architecture = tiny();
        let settings = TorchSettings {
            device: device(),
            precision,
            kernels: kernels.clone(),
            threads: 1,
            feature_point: FeaturePoint::BeforeNeck,
        };
        let weights = SharedWeights::new(architecture, seeded(&architecture, 1), settings);
        weights.factory()(0).expect("an encoder")
    }

    fn chips() -> Vec<Chip> {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        (0..32)
            .map(|number| {
                let modality = if number % 3 == 0 { Modality::Sar } else { Modality::Optical };
                let brightness = random.random_range(20..=255);
                let size = tiny().preprocessing().size;
                let pixels = (0..size.height * size.width * 3).map(|_| random.random_range(0..brightness));
                Chip::new(pixels.collect(), size, modality, [0.1 * number as f32, -1.0, 4.0])
            })
            .collect()
    }

    fn embed(encoder: &mut dyn Encoder, chips: Vec<impl Into<EncoderInput>>) -> Vec<Embedding> {
        let chips = chips.into_iter().map(Into::into).collect();
        encoder.forward(&Batch { model: ModelDigest::new([0; 32]), chips }).expect("embeddings")
    }

    fn largest_difference(a: &Embedding, b: &Embedding) -> f32 {
        a.as_slice().iter().zip(b.as_slice()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// Each kernel that runs here, and all of them in turn, as when a small batch is fastest on
    /// another kernel.
    fn every_choice(precision: Precision) -> Vec<Choice> {
        let kernels = test_device::kernels(precision);
        let turn = |(number, kernel): (usize, &Kernel)| Timing {
            kernel: *kernel,
            chips: [1, 8, 32][number],
            took: Default::default(),
        };
        let mut choices: Vec<Choice> = kernels.iter().map(|kernel| Choice::only(*kernel, 32)).collect();
        choices.extend(Choice::fastest(kernels.iter().enumerate().map(turn).collect(), 32));
        choices
    }

    #[test]
    fn a_chip_has_one_embedding_alone_in_any_batch_and_in_any_order() {
        for kernels in every_choice(Precision::F32) {
            let mut encoder = encoder(Precision::F32, &kernels);
            let together = embed(encoder.as_mut(), chips());
            let mut backwards = embed(encoder.as_mut(), chips().into_iter().rev().collect());
            backwards.reverse();
            let [optical, sar] = [Modality::Optical, Modality::Sar].map(|wanted| {
                let only = chips().into_iter().filter(|chip| chip.modality() == wanted).collect();
                embed(encoder.as_mut(), only)
            });
            let (mut optical, mut sar) = (optical.into_iter(), sar.into_iter());
            for (number, chip) in chips().into_iter().enumerate() {
                let by_modality = if chip.modality() == Modality::Sar { sar.next() } else { optical.next() };
                let alone = embed(encoder.as_mut(), vec![chip]).remove(0);
                for other in [&alone, &backwards[number], &by_modality.expect("as many as chips")] {
                    let difference = largest_difference(&together[number], other);
                    assert!(f64::from(difference) <= bound(2e-5), "{kernels} {number}: {difference}");
                }
            }
            assert!(largest_difference(&together[1], &together[2]) > 1e-3, "chips differ");
        }
    }

    #[test]
    fn prepared_pixels_have_the_embedding_of_their_chip_beside_chips_and_alone() {
        let preprocessing = tiny().preprocessing();
        let prepare = |chip: &Chip| {
            let area = chip.size().height * chip.size().width;
            let value = |place: usize| {
                preprocessing.normalised(chip.pixels()[place % area * 3 + place / area], place / area)
            };
            let pixels = (0..3 * area).map(value).collect();
            PreparedPixels::new(pixels, chip.size(), chip.modality(), chip.size_token()).expect("finite")
        };
        let mut encoder = encoder(Precision::F32, &Choice::only(Kernel::Aten, 32));
        let expected = embed(encoder.as_mut(), chips());
        let prepared: Vec<PreparedPixels> = chips().iter().map(prepare).collect();
        let mixed = chips().into_iter().zip(&prepared).enumerate().map(|(number, (chip, prepared))| {
            if number % 3 == 1 { EncoderInput::from(prepared.clone()) } else { chip.into() }
        });
        let mixed = embed(encoder.as_mut(), mixed.collect());
        let alone = embed(encoder.as_mut(), prepared);
        for (number, expected) in expected.iter().enumerate() {
            for found in [&mixed[number], &alone[number]] {
                let difference = largest_difference(expected, found);
                assert!(f64::from(difference) <= bound(2e-5), "{number}: {difference}");
            }
        }
    }

    #[test]
    fn a_rehearsal_runs_one_block_of_the_network() {
        for kernels in every_choice(Precision::F32) {
            let mut encoder = encoder(Precision::F32, &kernels);
            let whole = embed(encoder.as_mut(), chips());
            let Rehearsal { part, times } = encoder.rehearsal().expect("the network has several blocks");
            assert_eq!(times, 4);
            let part = embed(part, chips());
            assert_eq!(part.len(), whole.len());
            assert!(largest_difference(&part[0], &whole[0]) > 1e-3, "{kernels}: it is not the whole network");
            assert_eq!(embed(encoder.as_mut(), chips()), whole, "{kernels}: and changes nothing");
        }
    }

    #[test]
    fn bf16_points_where_f32_does() {
        let f32 = embed(encoder(Precision::F32, &Choice::only(Kernel::Aten, 32)).as_mut(), chips());
        for kernels in every_choice(Precision::Bf16) {
            let bf16 = embed(encoder(Precision::Bf16, &kernels).as_mut(), chips());
            let lowest = f32.iter().zip(&bf16).map(|(a, b)| a.cosine(b)).fold(1.0, f32::min);
            assert!(lowest >= 0.999, "{kernels}: {lowest}");
        }
    }

    #[test]
    fn int8_points_where_f32_does() {
        let f32 = embed(encoder(Precision::F32, &Choice::only(Kernel::Aten, 32)).as_mut(), chips());
        for kernels in every_choice(Precision::Int8) {
            let int8 = embed(encoder(Precision::Int8, &kernels).as_mut(), chips());
            let cosines: Vec<f32> = f32.iter().zip(&int8).map(|(a, b)| a.cosine(b)).collect();
            let lowest = cosines.iter().copied().fold(1.0, f32::min);
            let mean = cosines.iter().sum::<f32>() / cosines.len() as f32;
            assert!(lowest >= 0.997 && mean >= 0.999, "{kernels}: {lowest}, on average {mean}");
        }
    }

    #[test]
    fn workers_compute_at_once_with_shared_layers_whose_originals_are_dropped() {
        let packed = [
            (Precision::F32, Kernel::OneDnn),
            (Precision::F32, Kernel::Tiles),
            (Precision::Int8, Kernel::Int8),
        ];
        for (precision, kernel) in packed {
            if !test_device::kernels(precision).contains(&kernel) {
                continue;
            }
            let settings = TorchSettings {
                device: device(),
                precision,
                kernels: Choice::only(kernel, 32),
                threads: 1,
                feature_point: FeaturePoint::BeforeNeck,
            };
            let weights = SharedWeights::new(tiny(), seeded(&tiny(), 1), settings);
            let factory = &Arc::clone(&weights).factory();
            let begin = &Barrier::new(2);
            let work = |worker| {
                let mut encoder = factory(worker).expect("an encoder");
                begin.wait();
                [(); 3].map(|()| embed(encoder.as_mut(), chips()))
            };
            let [first, second] = thread::scope(|scope| {
                [0, 1]
                    .map(|worker| scope.spawn(move || work(worker)))
                    .map(|worker| worker.join().expect("no panic"))
            });
            assert!(first == second && first[0] == first[2], "{kernel:?}");
            let weights = weights.weights.lock().expect("no panic");
            let names: Vec<&String> = weights.on_device.as_ref().expect("on the device").keys().collect();
            assert!(weights.read.is_empty());
            assert!(names.iter().any(|name| name.ends_with("norm1.weight")), "{names:?}");
            assert!(!names.iter().any(|name| name.contains(".attn.") || name.contains(".mlp.")), "{names:?}");
        }
    }

    #[test]
    fn an_error_of_libtorch_says_what_became_of_the_device() {
        let check = |message: &str, expected: ForwardError| assert_eq!(classify(message.into()), expected);
        check("CUDA out of memory. Tried to allocate 2 GiB", ForwardError::OutOfMemory);
        check("DefaultCPUAllocator: can't allocate memory", ForwardError::OutOfMemory);
        let lost = "CUDA error: an illegal memory access was encountered";
        check(lost, ForwardError::DeviceLost(lost.into()));
        let other = "mat1 and mat2 shapes cannot be multiplied";
        check(other, ForwardError::Failed(other.into()));
    }
}
