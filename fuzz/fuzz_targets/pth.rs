//! Checkpoints of torch, archives and legacy files, and whatever is told from them by content: what is read has as many values as its shapes say and no more than the
//! file has bytes, our own format gives the same back, and the rules for serving take or refuse it.
//!
//! An input that begins with `P` is the parts of an archive, which is made around them: the pickle's length (u16,
//! little-endian), the pickle, and the bytes of storage 0.

#![no_main]

use std::io::Cursor;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shipreid::chip::ChipSize;
use shipreid::weights::checkpoint::{Checkpoint, Expected};
use shipreid::weights::family::{Architecture, ArchitectureHints, Family};
use shipreid::weights::tensors::NamedTensors;
use shipreid::weights::wrapper::WeightsChoice;
use shipreid::weights::{native, rules};
use shipreid_fuzz::{Bound, stored_zip, watched};

/// A byte of a pickle can be a value with a place on the stack and one in the memo.
const BOUND: Bound = Bound { bytes: 1 << 20, per_input_byte: 512 };

/// Names in a message are listed up to a number and a length.
const MESSAGE_BYTES_MAX: usize = 32 << 10;

/// What the shapes of the smallest model leave open.
const SMALLEST: ArchitectureHints = ArchitectureHints {
    image: Some(ChipSize { height: 2, width: 1 }),
    stride: Some(1),
    heads: Some(1),
    mie_coefficient: None,
    sar_stretch: None,
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
    for choice in [WeightsChoice::Own, WeightsChoice::Averaged] {
        let expected = Expected { first: rules::WRAPPERS, anchors: &Family::anchors(), choice: &choice };
        let read = || Checkpoint::read_from(Cursor::new(file), &expected);
        match watched(BOUND, file.len(), read) {
            Ok(checkpoint) => check_taken(&checkpoint, file.len()),
            Err(refused) => check_message(&refused.to_string()),
        }
    }
}

fn check_taken(Checkpoint { tensors, origin }: &Checkpoint, file_bytes: usize) {
    let values: usize = tensors.values().map(|tensor| tensor.values.len()).sum();
    assert!(values <= file_bytes, "{values} values of {file_bytes} bytes");
    for (name, tensor) in tensors {
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.values.len(), "{name}");
    }
    comes_back(tensors);
    check_message(&watched(BOUND, file_bytes, || origin.to_string()));
    for hints in [ArchitectureHints::default(), SMALLEST] {
        let served = || {
            let architecture = Architecture::infer(tensors, &hints).ok()?;
            rules::for_serving(&architecture, tensors.clone())
                .map_err(|mut misfits| {
                    misfits.explain(&origin.unread());
                    misfits.to_string()
                })
                .err()
        };
        if let Some(refused) = watched(BOUND, file_bytes, served) {
            check_message(&refused);
        }
    }
}

/// What a file says of itself is repeated in one line, and only its beginning.
fn check_message(message: &str) {
    assert!(message.len() <= MESSAGE_BYTES_MAX && !message.contains(char::is_control), "{message:?}");
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
