//! Which tensors of a checkpoint a model uses: strict for serving, more lenient for the start of a fine-tune.

use std::collections::BTreeMap;

use super::family::Architecture;
use super::fit::{Fit, Untaken, UntakenReason};
use super::misfits::Misfits;
use super::tensors::{HostTensor, NamedTensors};

/// The first key under which a whole-model checkpoint is expected to hold its tensors.
pub const WRAPPERS: &[&str] = &["state_dict"];

/// A BatchNorm counts its training steps. Serving does not read the count, and old or converted
/// checkpoints lack it.
pub(super) const STEPS: &str = "num_batches_tracked";

/// The tensors of a checkpoint for a served model. Tensors that its family does not read in serving may be
/// missing, misshapen or unknown, and are then omitted. A BatchNorm without a step count gets 0.
///
/// # Errors
/// All other missing, unexpected, misshapen and non-finite tensors, in one error.
pub fn for_serving(architecture: &Architecture, tensors: NamedTensors) -> Result<NamedTensors, Misfits> {
    served(architecture, &architecture.expected_tensors(), tensors, Misfits::default())
}

/// [`for_serving`] where only the tensors in `expected` are to be in f32, adding to the `misfits` of the others.
pub(super) fn served(
    architecture: &Architecture,
    expected: &BTreeMap<String, Vec<usize>>,
    mut tensors: NamedTensors,
    mut misfits: Misfits,
) -> Result<NamedTensors, Misfits> {
    for counter in expected.keys().filter(|name| name.ends_with(STEPS)) {
        if tensors.get(counter).is_none_or(|steps| !steps.shape.is_empty()) {
            tensors.insert(counter.clone(), HostTensor { shape: vec![], values: vec![0.0] });
        }
    }
    tensors.retain(|name, tensor| {
        !architecture.is_unused_in_serving(name) || expected.get(name) == Some(&tensor.shape)
    });
    for (name, shape) in expected {
        match tensors.get(name) {
            Some(tensor) => misfits.compare(name, shape, tensor),
            None if architecture.is_unused_in_serving(name) => {}
            None => misfits.missing.push(name.clone()),
        }
    }
    misfits.unexpected.extend(tensors.keys().filter(|name| !expected.contains_key(*name)).cloned());
    misfits.none_or(tensors)
}

/// Starts a training from a whole-model checkpoint: every tensor of `checkpoint` except the heads replaces
/// the one in `initial`, adapted to the size of chips where the family can; tensors that the checkpoint lacks keep their
/// initial values.
///
/// # Errors
/// All names that `initial` lacks and all shapes that differ; `initial` is then unchanged.
pub fn start_from(
    initial: &mut NamedTensors,
    architecture: &Architecture,
    mut checkpoint: NamedTensors,
) -> Result<Fit, Misfits> {
    let heads = checkpoint.extract_if(.., |name, _| architecture.is_head(name));
    let untaken = heads
        .map(|(name, tensor)| Untaken {
            expected: initial.get(&name).map(|own| own.shape.clone()),
            name,
            found: Some(tensor.shape),
            reason: UntakenReason::Head,
        })
        .collect();
    for (name, tensor) in &mut checkpoint {
        let found = std::mem::replace(tensor, HostTensor { shape: Vec::new(), values: Vec::new() });
        *tensor = architecture.adapted(name, found);
    }
    let mut misfits = Misfits::default();
    for (name, tensor) in &checkpoint {
        match initial.get(name) {
            Some(own) => misfits.compare(name, &own.shape, tensor),
            None => misfits.unexpected.push(name.clone()),
        }
    }
    let checkpoint = misfits.none_or(checkpoint)?;
    Ok(Fit::overlay(initial, architecture.block_prefix(), checkpoint, untaken))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::checkpoint::{Checkpoint, Expected};
    use crate::weights::family::transoss::TransOssArchitecture;
    use crate::weights::family::{Family, FamilyArchitecture as _};
    use crate::weights::golden::{self, MICRO};
    use crate::weights::wrapper::WeightsChoice;

    fn micro() -> NamedTensors {
        golden::tensors("micro_weights")
    }

    fn zeros(shape: &[usize]) -> HostTensor {
        HostTensor { shape: shape.to_vec(), values: vec![0.0; shape.iter().product()] }
    }

    #[test]
    fn every_recorded_layout_serves_the_same_tensors() {
        let served = for_serving(&MICRO.into(), micro()).expect("its own tensors");
        assert!(served.keys().eq(MICRO.expected_tensors().keys()));
        for name in ["ckpt_plain.pth", "ckpt_wrapped.pth", "ckpt_ddp.pth"] {
            let expected =
                Expected { first: WRAPPERS, anchors: &Family::anchors(), choice: &WeightsChoice::Own };
            let checkpoint = Checkpoint::read(&golden::path(name), &expected).expect("a checkpoint");
            assert_eq!(
                for_serving(&MICRO.into(), checkpoint.tensors).expect("the micro model"),
                served,
                "{name}"
            );
        }
    }

    #[test]
    fn what_serving_never_reads_may_be_absent_or_another() {
        let mut tensors = micro();
        tensors.insert("classifier.weight".to_owned(), zeros(&[77, 16]));
        tensors.insert("classifier.bias".to_owned(), zeros(&[77]));
        tensors.insert("logit_scale".to_owned(), zeros(&[1]));
        let served = for_serving(&MICRO.into(), tensors).expect("another classifier");
        assert!(!served.keys().any(|name| MICRO.is_unused_in_serving(name)));
        let bare = for_serving(&MICRO.into(), served.clone()).expect("no classifier");
        assert_eq!(bare, served);
    }

    #[test]
    fn all_misfits_are_one_error() {
        let mut tensors = micro();
        tensors.remove("base.cls_token");
        tensors.insert("base.norm.bias".to_owned(), zeros(&[15]));
        tensors.insert(
            "base.norm.weight".to_owned(),
            HostTensor { shape: vec![16], values: vec![f32::NAN; 16] },
        );
        tensors.insert("epoch".to_owned(), zeros(&[]));
        let misfits = for_serving(&MICRO.into(), tensors).expect_err("four misfits");
        assert_eq!(
            misfits.to_string(),
            "the checkpoint does not fit the model: missing base.cls_token; unexpected epoch; \
             misshapen base.norm.bias [15] instead of [16]; not finite base.norm.weight"
        );
    }

    #[test]
    fn a_long_list_ends_in_a_count() {
        let misfits = for_serving(&MICRO.into(), NamedTensors::new()).expect_err("nothing there");
        assert_eq!(misfits.missing.len(), MICRO.expected_tensors().len() - 3);
        assert!(misfits.to_string().ends_with("base.blocks.0.mlp.fc2.weight and 31 more"), "{misfits}");
    }

    #[test]
    fn a_size_token_that_the_architecture_lacks_is_unexpected() {
        let misfits = for_serving(&TransOssArchitecture { size_token: false, ..MICRO }.into(), micro())
            .expect_err("size token");
        assert_eq!(
            misfits.unexpected,
            ["base.wh_embed.linear_layer.bias", "base.wh_embed.linear_layer.weight"]
        );
    }

    #[test]
    fn a_neck_without_its_count_of_steps_has_taken_none() {
        let steps = "bottleneck.num_batches_tracked";
        let whole = for_serving(&MICRO.into(), micro()).expect("its own tensors");
        let zero = HostTensor { shape: vec![], values: vec![0.0] };
        for other in [None, Some(HostTensor { shape: vec![1], values: vec![7.0] })] {
            let mut tensors = micro();
            tensors.remove(steps);
            tensors.extend(other.map(|other| (steps.to_owned(), other)));
            let served = for_serving(&MICRO.into(), tensors).expect("nothing that is read is missing");
            assert_eq!(served[steps], zero);
            assert!(served.keys().eq(whole.keys()));
        }
    }

    #[test]
    fn what_is_there_and_not_read_is_said_of_what_is_missing() {
        let mut tensors = micro();
        tensors.remove("base.norm.bias");
        let mut misfits = for_serving(&MICRO.into(), tensors).expect_err("one is missing");
        misfits.explain(&[("base.norm.bias".to_owned(), "a complex64 tensor")].into());
        let text = misfits.to_string();
        assert!(
            text.ends_with("missing base.norm.bias (it is a complex64 tensor, which is not read)"),
            "{text}"
        );
    }

    #[test]
    fn a_fine_tune_starts_from_what_a_pretraining_has() {
        let initial: NamedTensors =
            MICRO.expected_tensors().iter().map(|(name, shape)| (name.clone(), zeros(shape))).collect();
        let mut pretrained = micro();
        pretrained.retain(|name, _| !name.starts_with("base.wh_embed."));
        let mut started = initial.clone();
        let fit = start_from(&mut started, &MICRO.into(), pretrained.clone())
            .expect("a checkpoint of the same model");
        let kept =
            ["base.wh_embed.linear_layer.bias", "base.wh_embed.linear_layer.weight", "classifier.weight"];
        assert_eq!(fit.kept, kept);
        assert!(kept.iter().all(|name| started[*name] == initial[*name]));
        assert!(fit.loaded.iter().all(|name| started[name] == pretrained[name]));
        assert_eq!(fit.loaded.len() + kept.len(), initial.len());

        let heads: Vec<_> = fit.untaken.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(heads, ["base.fc.bias", "base.fc.weight", "classifier.weight"]);
        assert_eq!((fit.blocks.whole, fit.blocks.touched, fit.blocks.of), (2, 2, 2));

        pretrained.insert("base.pos_embed".to_owned(), zeros(&[1, 11, 16]));
        pretrained.insert("base.extra".to_owned(), zeros(&[]));
        let mut untouched = initial.clone();
        let misfits = start_from(&mut untouched, &MICRO.into(), pretrained).expect_err("two misfits");
        assert_eq!((misfits.unexpected.len(), misfits.misshapen.len()), (1, 1));
        assert_eq!(untouched, initial);
    }
}
