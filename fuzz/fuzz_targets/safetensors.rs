//! Safetensors, alone and in a packed model folder: what is read has as many values as its shapes say, and is read again
//! from what it prints.
//!
//! An input that begins with `P` is the parts of a packed folder, which is made around them: the length of the
//! description (u16, little-endian), the description, and the tensors.

#![no_main]

use std::io::Cursor;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shipreid::weights::family::{Architecture, ArchitectureHints};
use shipreid::weights::native::Contents;
use shipreid::weights::tensors::{HostTensor, NamedTensors};
use shipreid::weights::{coded, foreign, native, packed, quantized, rules};
use shipreid_fuzz::{Bound, stored_zip, watched};

const BOUND: Bound = Bound { bytes: 1 << 20, per_input_byte: 128 };

const PLACE: &str = "model";

fuzz_target!(|data: &[u8]| {
    if let Some(file) = folder(data) {
        check_packed(&file);
    } else if data.starts_with(b"PK") {
        check_packed(data);
    } else {
        check_in_int8(data);
        let ours = watched(BOUND, data.len(), || native::parse_tensors(Path::new(PLACE), data));
        let foreign = watched(BOUND, data.len(), || foreign::read_from(Cursor::new(data)));
        if let (Ok(ours), Ok(foreign)) = (&ours, &foreign) {
            // The reader of other programs' files may leave tensors out, but not change them.
            assert!(foreign.tensors.iter().all(|(name, tensor)| is_same(&ours[name], tensor)));
        }
        for tensors in ours.ok().into_iter().chain(foreign.ok().map(|contents| contents.tensors)) {
            check(tensors, data.len());
        }
    }
});

fn is_same(tensor: &HostTensor, other: &HostTensor) -> bool {
    // Not numbers are equal to nothing, but have bits.
    let bits = |tensor: &HostTensor| tensor.values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    tensor.shape == other.shape && bits(tensor) == bits(other)
}

fn folder(data: &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = data.strip_prefix(b"P")?.split_first_chunk::<2>()?;
    let (description, tensors) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
    Some(stored_zip(&[(native::DESCRIPTION, description), (native::TENSORS, tensors)]))
}

fn check_packed(file: &[u8]) {
    let read = || packed::read_from(Path::new(PLACE), Cursor::new(file));
    if let Ok(Contents { description, tensors, layers }) = watched(BOUND, file.len(), read) {
        let text = description.to_toml();
        assert!(!text.is_empty());
        if description.architecture.validate().is_ok() {
            let serve = || match description.quantization {
                Some(_) => quantized::for_serving(&description.architecture, tensors.clone(), &layers),
                None => rules::for_serving(&description.architecture, tensors.clone()),
            };
            if let Ok(served) = watched(BOUND, file.len(), serve) {
                assert!(served.keys().all(|name| tensors.contains_key(name)));
            }
        }
        check(tensors, file.len());
    }
}

/// What is read as a model in int8 is read again from what it prints.
fn check_in_int8(data: &[u8]) {
    if let Ok((tensors, layers)) = watched(BOUND, data.len(), || coded::parse(data)) {
        let (tensors_again, layers_again) =
            coded::parse(&coded::tensor_bytes(&tensors, &layers)).expect("printed");
        assert_eq!(layers_again, layers);
        assert!(tensors.iter().all(|(name, tensor)| is_same(&tensors_again[name], tensor)), "{tensors:?}");
    }
}

fn check(tensors: NamedTensors, input_bytes: usize) {
    for (name, tensor) in &tensors {
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.values.len(), "{name}");
    }
    let again = native::parse_tensors(Path::new(PLACE), &native::tensor_bytes(&tensors)).expect("printed");
    assert_eq!(again.len(), tensors.len());
    assert!(tensors.iter().all(|(name, tensor)| is_same(&again[name], tensor)), "{tensors:?}");
    watched(BOUND, input_bytes, || Architecture::infer(&tensors, &ArchitectureHints::default()).ok());
}
