//! Steps of an SDF-Net against `tests/golden/sdf_net.py`, which is written in plain torch.

use std::ops::Range;
use std::sync::Arc;

use super::*;
use crate::distributed::test_world::{each, join, launch};
use crate::train::config::AlignmentDistance;
use crate::train::ranks::Ranks;

/// With the authors' weights.
fn authors() -> FineTune {
    FineTune { orthogonality_weight: 10.0, structure_weight: 1.0, ..FineTune::from(&Loss::default()) }
}

fn sdf_net(fine_tune: FineTune) -> TorchLearner {
    let model = golden::sdf_net();
    TorchLearner::new(&model.architecture, &model.tensors, device(), teaching(Objective::FineTune(fine_tune)))
}

fn recorded_batch() -> Samples {
    batch(&(0..12).collect::<Vec<_>>(), &golden::tensors("sdf_net")["label"].values)
}

#[test]
fn losses_gradients_and_three_steps_are_those_of_a_program_in_torch() {
    let recorded = golden::tensors("sdf_net");
    let number = |name: &str| f64::from(recorded[name].values[0]);
    let mut learner = sdf_net(authors());
    for step_number in 1..=3 {
        let terms = step(&mut learner, &recorded_batch());
        let expected = number(&format!("step{step_number}.loss_total"));
        let allowed = if step_number == 1 { 1e-5 } else { 1e-4 };
        let what = format!("loss of step {step_number}");
        check_difference(&what, (terms.total - expected).abs() / expected, allowed);
        if step_number == 1 {
            for (name, found) in [
                ("identity", terms.identity),
                ("triplet", terms.triplet),
                ("orthogonality", terms.orthogonality),
                ("structure", terms.structure),
            ] {
                check_difference(name, (found - number(&format!("step1.{name}"))).abs(), 1e-5);
            }
            check_gradients("sdf_net", &learner, &recorded);
        }
    }
    assert_eq!(learner.tensors["bottleneck_fuse.num_batches_tracked"].double_value(&[]), 10.0);
}

#[test]
fn terms_without_weight_are_not_computed() {
    let terms = step(&mut sdf_net(FineTune::from(&Loss::default())), &recorded_batch());
    assert_eq!((terms.orthogonality, terms.structure, terms.alignment), (0.0, 0.0, 0.0));
    let contrasts = FineTune {
        supcon_weight: 0.5,
        info_nce_weight: 1.0,
        alignment_weight: 2.0,
        ..FineTune::from(&Loss::default())
    };
    let terms = step(&mut sdf_net(contrasts), &recorded_batch());
    let sum = terms.identity + terms.triplet + 0.5 * terms.supcon + terms.info_nce + 2.0 * terms.alignment;
    assert!(terms.supcon > 0.0 && terms.info_nce > 0.0 && terms.alignment > 0.0);
    assert!((terms.total / sum - 1.0).abs() < 1e-5, "{terms:?}");
}

#[test]
fn validation_ranks_by_the_feature_that_is_served() {
    let mut learner = sdf_net(authors());
    let preprocessing = learner.architecture.preprocessing();
    let size = preprocessing.size;
    let chip = |number: usize, modality| {
        let pixels =
            (0..size.height * size.width * 3).map(|byte| (byte * (31 + number) % 251) as u8).collect();
        Chip::new(pixels, size, modality, [0.3, -0.2, 2.5])
    };
    let chips = [chip(0, Modality::Optical), chip(7, Modality::Sar)];
    let embedded = learner.embed(&chips).expect("embeddings");
    let pixels: Vec<f32> = chips.iter().flat_map(|chip| plain(chip, &preprocessing)).collect();
    let tensors = upload(&golden::sdf_net().tensors, device(), Kind::Float);
    let network =
        network(&learner.architecture, &tensors, &Choice::only(Kernel::Aten, 1), &SharedLayers::default());
    let on_device = |tensor: Tensor| tensor.to_device(device().tch());
    let input = Input {
        pixels: &on_device(Tensor::from_slice(&pixels).view([2, 3, size.height as i64, size.width as i64])),
        modalities: &[Modality::Optical, Modality::Sar],
        size_tokens: &on_device(Tensor::from_slice(&[0.3_f32, -0.2, 2.5, 0.3, -0.2, 2.5]).view([2, 3])),
    };
    let features = network.forward(&input, Mode::Evaluate).after_neck.to_device(tch::Device::Cpu).view([-1]);
    let features = Vec::<f32>::try_from(features).expect("f32 values");
    for (embedding, feature) in embedded.iter().zip(features.chunks(16)) {
        let served = Embedding::from_feature(feature.to_vec()).expect("a feature");
        assert!(embedding.cosine(&served) > 0.999_99);
    }
}

#[test]
fn a_restored_learner_takes_the_same_steps_bit_for_bit() {
    let mut whole = sdf_net(authors());
    step(&mut whole, &recorded_batch());
    let mut resumed = sdf_net(authors());
    resumed.restore(whole.state()).expect("its own state");
    for _ in 0..2 {
        let (expected, found) = (step(&mut whole, &recorded_batch()), step(&mut resumed, &recorded_batch()));
        assert_eq!(expected.numbers().map(f64::to_bits), found.numbers().map(f64::to_bits));
    }
    assert_eq!(whole.state(), resumed.state());
}

#[test]
fn ranks_that_gather_features_step_as_one_process_on_the_whole_batch() {
    const STEPS: usize = 3;
    let every_term = || FineTune {
        alignment_weight: 1.0,
        alignment_distance: AlignmentDistance::Squared,
        supcon_weight: 0.5,
        info_nce_weight: 1.0,
        ..authors()
    };
    let labels = golden::tensors("sdf_net")["label"].values.clone();
    let part = |rows: Range<usize>| batch(&rows.clone().collect::<Vec<_>>(), &labels[rows]);
    let losses = |learner: &mut TorchLearner, samples: &Samples| -> Vec<LossTerms> {
        (0..STEPS).map(|_| step(learner, samples)).collect()
    };
    let expected = losses(&mut sdf_net(every_term()), &part(0..12));
    let (_store, places) = launch(2);
    let together = each(&places, |place| {
        let world = join(place).expect("both come");
        let mut learner = sdf_net(every_term()).among(Ranks::new(Arc::new(world)), true);
        losses(&mut learner, &part(6 * place.rank..6 * (place.rank + 1)))
    });
    assert_eq!(together[0], together[1]);
    for (found, expected) in together[0].iter().zip(&expected) {
        for (found, expected) in found.numbers().into_iter().zip(expected.numbers()) {
            assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{found} {expected}");
        }
    }
}
