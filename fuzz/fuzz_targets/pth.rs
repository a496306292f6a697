//! Torch checkpoints, archives and legacy files: what is read has as many values as its shapes say and no more than the
//! file has bytes, our own format gives the same back, and the rules for serving take or refuse it.
//!
//! An input that begins with `P` is the parts of an archive, which is made around them: the pickle's length (u16,
//! little-endian), the pickle, and the bytes of storage 0.

#![no_main]

use std::io::Cursor;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shipreid::chip::ChipSize;
use shipreid::weights::architecture::{Architecture, ArchitectureHints};
use shipreid::weights::tensors::NamedTensors;
use shipreid::weights::{native, pth, rules};
use shipreid_fuzz::{Bound, stored_zip, watched};

/// A byte of a pickle can be a value with a place on the stack and one in the memo.
const BOUND: Bound = Bound { bytes: 1 << 20, per_input_byte: 512 };

/// What the shapes of the smallest model leave open.
const SMALLEST: ArchitectureHints = ArchitectureHints {
    image: Some(ChipSize { height: 2, width: 1 }),
    stride: Some(1),
    heads: Some(1),
    mie_coefficient: None,
};

fuzz_target!(|data: &[u8]| {
    match archive(data) {
        Some(file) => check(&file),
        None => check(data),
    }
});

fn archive(data: &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = data.strip_prefix(b"P")?.split_first_chunk::<2>()?;
    let (pickle, storage) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
    Some(stored_zip(&[("m/data.pkl", pickle), ("m/data/0", storage), ("m/version", b"3\n")]))
}

fn check(file: &[u8]) {
    let read = || pth::read_from(Cursor::new(file), rules::WRAPPERS);
    let Ok(tensors) = watched(BOUND, file.len(), read) else { return };
    let values: usize = tensors.values().map(|tensor| tensor.values.len()).sum();
    assert!(values <= file.len(), "{values} values of {} bytes", file.len());
    for (name, tensor) in &tensors {
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.values.len(), "{name}");
    }
    comes_back(&tensors);
    for hints in [ArchitectureHints::default(), SMALLEST] {
        let served = || {
            let tensors = rules::without_module(tensors.clone()).ok()?;
            let architecture = Architecture::infer(&tensors, &hints).ok()?;
            rules::for_serving(&architecture, tensors).ok()
        };
        watched(BOUND, file.len(), served);
    }
}

fn comes_back(tensors: &NamedTensors) {
    let again =
        native::parse_tensors(Path::new("again"), &native::tensor_bytes(tensors)).expect("our own format");
    assert_eq!(again.len(), tensors.len());
    for ((name, tensor), (name_again, tensor_again)) in tensors.iter().zip(&again) {
        assert_eq!((name, &tensor.shape), (name_again, &tensor_again.shape));
        // Not numbers are equal to nothing, but have bits.
        assert!(
            tensor.values.iter().map(|v| v.to_bits()).eq(tensor_again.values.iter().map(|v| v.to_bits()))
        );
    }
}
