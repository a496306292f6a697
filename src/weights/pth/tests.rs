//! Recorded checkpoints, files written here for what the recordings lack, and damage of every kind.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};

use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;
use crate::weights::golden;
use crate::weights::tensors::HostTensor;

/// A pickle's description of one tensor.
struct View {
    name: &'static str,
    class: &'static str,
    key: &'static str,
    storage: u8,
    offset: u8,
    shape: &'static [u8],
    strides: &'static [u8],
}

const WHOLE: View = View {
    name: "a",
    class: "FloatStorage",
    key: "0",
    storage: 6,
    offset: 0,
    shape: &[2, 3],
    strides: &[3, 1],
};

fn text(text: &str) -> Vec<u8> {
    [&[b'U', u8::try_from(text.len()).expect("a short text")], text.as_bytes()].concat()
}

fn tuple(numbers: &[u8]) -> Vec<u8> {
    [b"(".to_vec(), numbers.iter().flat_map(|number| [b'K', *number]).collect(), b"t".to_vec()].concat()
}

/// The pickle of `{name: tensor, ...}`; legacy storages end in an empty view.
fn pickle(views: &[View], legacy: bool) -> Vec<u8> {
    let mut program = b"\x80\x02}(".to_vec();
    for view in views {
        program.extend(text(view.name));
        program.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        program.extend(text("storage"));
        program.extend(format!("ctorch\n{}\n", view.class).bytes());
        program.extend([text(view.key), text("cpu"), vec![b'K', view.storage]].concat());
        program.extend(if legacy { b"NtQ".as_slice() } else { b"tQ" });
        program.extend([vec![b'K', view.offset], tuple(view.shape), tuple(view.strides)].concat());
        program.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    program.extend(b"u.");
    program
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in entries {
        writer.start_file(*name, stored).expect("a name in memory");
        writer.write_all(bytes).expect("bytes in memory");
    }
    writer.finish().expect("an archive in memory").into_inner()
}

fn legacy(views: &[View], storages: &[(&str, u64, &[u8])]) -> Vec<u8> {
    let mut file = golden::bytes("load_imagenet_legacy.pth");
    // The header's three pickles precede the main one.
    file.truncate(137);
    file.extend(pickle(views, true));
    file.extend(b"\x80\x02](");
    storages.iter().for_each(|(key, _, _)| file.extend(text(key)));
    file.extend(b"e.");
    for (_, elements, bytes) in storages {
        file.extend(elements.to_le_bytes());
        file.extend(*bytes);
    }
    file
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn six() -> Vec<u8> {
    floats([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
}

fn parse(bytes: &[u8]) -> Result<NamedTensors, PthError> {
    read_from(Cursor::new(bytes), &["model", "state_dict"], &WeightsChoice::Own).map(|found| found.tensors)
}

fn recorded(name: &str) -> NamedTensors {
    read(&golden::path(name), &["state_dict"], &WeightsChoice::Own).expect("a checkpoint").tensors
}

fn check_refused(bytes: &[u8], message: &str) {
    let error = parse(bytes).expect_err("not a checkpoint").to_string();
    assert!(error.contains(message), "{error}");
}

fn tensor(shape: &[usize], values: &[f32]) -> HostTensor {
    HostTensor { shape: shape.to_vec(), values: values.to_vec() }
}

#[test]
fn the_recorded_layouts_hold_the_recorded_weights() {
    let micro = golden::tensors("micro_weights");
    assert_eq!(recorded("ckpt_plain.pth"), micro);
    assert_eq!(recorded("ckpt_wrapped.pth"), micro);
    let prefixed: NamedTensors =
        micro.into_iter().map(|(name, tensor)| (format!("module.{name}"), tensor)).collect();
    assert_eq!(recorded("ckpt_ddp.pth"), prefixed);
}

#[test]
fn a_legacy_file_holds_what_the_archive_of_the_same_weights_holds() {
    let archive = recorded("load_imagenet.pth");
    let mut legacy = recorded("load_imagenet_legacy.pth");
    let flat = legacy.get_mut("patch_embed.proj.weight").expect("the patch convolution");
    assert_eq!(flat.shape, [8, 768]);
    flat.shape = vec![8, 3, 16, 16];
    for (name, tensor) in &legacy {
        assert_eq!(archive.get(name), Some(tensor), "{name}");
    }
}

#[test]
fn a_checkpoint_that_calls_the_shell_is_refused_and_nothing_happens() {
    for name in ["ckpt_malicious.pth", "ckpt_malicious_raw.pth"] {
        let error = read(&golden::path(name), &[], &WeightsChoice::Own).expect_err("malicious").to_string();
        assert!(error.contains("posix.system"), "{name}: {error}");
    }
    assert!(!std::env::temp_dir().join("pwned").exists());
}

#[test]
fn views_into_one_shared_storage_are_copied_out() {
    let views = || {
        [
            WHOLE,
            View { name: "b", shape: &[3, 2], strides: &[1, 3], ..WHOLE },
            View { name: "c", offset: 4, shape: &[2], strides: &[1], ..WHOLE },
            View { name: "d", offset: 5, shape: &[], strides: &[], ..WHOLE },
        ]
    };
    let expected = BTreeMap::from([
        ("a".to_owned(), tensor(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
        ("b".to_owned(), tensor(&[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0])),
        ("c".to_owned(), tensor(&[2], &[4.0, 5.0])),
        ("d".to_owned(), tensor(&[], &[5.0])),
    ]);
    let zipped = archive(&[("x/data.pkl", &pickle(&views(), false)), ("x/data/0", &six())]);
    assert_eq!(parse(&zipped).expect("four views"), expected);
    assert_eq!(parse(&legacy(&views(), &[("0", 6, &six())])).expect("four views"), expected);
}

#[test]
fn half_precision_and_integers_become_f32() {
    let view = |name, class, key| View { name, class, key, storage: 2, shape: &[2], strides: &[1], ..WHOLE };
    let views = || {
        [
            view("half", "HalfStorage", "0"),
            view("long", "LongStorage", "1"),
            view("bf16", "BFloat16Storage", "2"),
        ]
    };
    let half = [0x00, 0x3C, 0x00, 0xC0];
    let long = [7_i64.to_le_bytes(), (-1_i64).to_le_bytes()].concat();
    let bf16 = [0x80, 0x3F, 0x00, 0xC0];
    let expected = BTreeMap::from([
        ("half".to_owned(), tensor(&[2], &[1.0, -2.0])),
        ("long".to_owned(), tensor(&[2], &[7.0, -1.0])),
        ("bf16".to_owned(), tensor(&[2], &[1.0, -2.0])),
    ]);
    let zipped = archive(&[
        ("x/data.pkl", &pickle(&views(), false)),
        ("x/data/0", &half),
        ("x/data/1", &long),
        ("x/data/2", &bf16),
    ]);
    assert_eq!(parse(&zipped).expect("three types"), expected);
    let legacy = legacy(&views(), &[("2", 2, &bf16), ("0", 2, &half), ("1", 2, &long)]);
    assert_eq!(parse(&legacy).expect("three types"), expected);
}

#[test]
fn a_damaged_archive_is_refused_with_the_place() {
    let good = pickle(&[WHOLE], false);
    check_refused(&golden::bytes("ckpt_truncated.pth"), "damaged or truncated");
    check_refused(&archive(&[("x/data.pkl", &good)]), "entry x/data/0 of the archive is missing");
    let noisy = pickle(&[View { key: "0\u{1b}[2J", ..WHOLE }], false);
    check_refused(&archive(&[("x/data.pkl", &noisy)]), "entry x/data/0\\u{1b}[2J of the archive is missing");
    check_refused(&archive(&[("x/code.py", &good)]), "neither a torch archive");
    check_refused(&archive(&[("x/data.pkl", &good), ("y/data.pkl", &good)]), "is there twice");
    check_refused(
        &archive(&[("x/data.pkl", &good), ("x/data/0", &six()[..20])]),
        "is shorter than its tensors",
    );
    let longer = [six(), six()].concat();
    check_refused(
        &archive(&[("x/data.pkl", &good), ("x/data/0", &longer)]),
        "entry x/data/0 of the archive is longer",
    );
    let big = archive(&[("x/data.pkl", &good), ("x/data/0", &six()), ("x/byteorder", b"big")]);
    check_refused(&big, "highest byte first");

    let mut flipped = archive(&[("x/data.pkl", &good), ("x/data/0", &six())]);
    let at = flipped.windows(24).position(|window| window == six()).expect("stored as it is");
    flipped[at + 5] ^= 1;
    check_refused(&flipped, "entry x/data/0 of the archive does not match its checksum");
}

#[test]
fn a_damaged_legacy_file_is_refused_with_the_place() {
    let whole = legacy(&[WHOLE], &[("0", 6, &six())]);
    assert!(parse(&whole).is_ok());
    (0..whole.len()).for_each(|length| assert!(parse(&whole[..length]).is_err(), "{length} bytes"));
    check_refused(&whole[..whole.len() - 1], "ends early");
    check_refused(&legacy(&[WHOLE], &[("0", 7, &six())]), "storage 0 has another length");
    check_refused(&legacy(&[WHOLE], &[("1", 6, &six())]), "lists a storage that no tensor has");
    check_refused(&legacy(&[WHOLE], &[]), "storage 0 is not in the file");
    check_refused(b"\x80\x02K\x07.", "neither a torch archive nor a legacy torch file");
    check_refused(b"", "neither a torch archive nor a legacy torch file");
    check_refused(b"\x89PNG", "neither a torch archive nor a legacy torch file");
}

#[test]
fn a_file_without_a_state_dict_is_refused() {
    let check = |program: &[u8], message| check_refused(&archive(&[("x/data.pkl", program)]), message);
    check(
        b"\x80\x02}.",
        "holds no tensors, neither outermost nor under a known key; outermost it has a dictionary",
    );
    check(b"\x80\x02K\x07.", "outermost it has a number");
    check(b"\x80\x02}K\x01K\x02s.", "outermost it has a number");
    check(b"\x80\x02}U\x05epochK\x3cs.", "outermost it has epoch (a number)");
    check(b"\x80\x02}U\x0astate_dictK\x3cs.", "outermost it has state_dict (a number)");
}

#[test]
fn storages_together_are_not_longer_than_the_file() {
    let views: Vec<View> = ["0", "1", "2"]
        .map(|key| View { name: key, key, storage: 250, shape: &[1], strides: &[1], ..WHOLE })
        .into();
    let zeros = [0; 1000];
    let named = ["x/data/0", "x/data/1", "x/data/2"].map(|name| (name, zeros.as_slice()));
    let program = pickle(&views, false);
    let whole = archive(&[&[("x/data.pkl", program.as_slice())], &named[..]].concat());
    assert_eq!(parse(&whole).expect("three storages").len(), 3);
    let one = archive(&[("x/data.pkl", &program), named[0]]);
    check_refused(&one, "is longer than the file");
}

#[test]
fn a_small_file_cannot_ask_for_much_memory() {
    let repeated = View { shape: &[255, 255, 255], strides: &[0, 0, 0], ..WHOLE };
    let zipped = archive(&[("x/data.pkl", &pickle(&[repeated], false)), ("x/data/0", &six())]);
    check_refused(&zipped, "values, as many as the file has bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_changed_checkpoint_never_panics(
        file in proptest::sample::select(vec![
            golden::path("load_imagenet.pth"),
            golden::path("load_imagenet_legacy.pth"),
            golden::path("ckpt_malicious.pth"),
            golden::checkpoint_case("everything.pth"),
            golden::checkpoint_case("everything_legacy.pth"),
            golden::checkpoint_case("lightning.ckpt"),
        ]),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..12),
        from_end in any::<bool>(),
    ) {
        let mut bytes = std::fs::read(file).expect("part of the checkout");
        // Directory and pickles are at the two ends; changes to weights are not interesting.
        let reach = bytes.len().min(9000);
        for (index, byte) in changes {
            let at = index.index(reach);
            let at = if from_end { bytes.len() - 1 - at } else { at };
            bytes[at] = byte;
        }
        let _ = parse(&bytes);
    }

    #[test]
    fn a_shortened_checkpoint_is_always_refused(
        file in proptest::sample::select(vec!["load_imagenet.pth", "load_imagenet_legacy.pth"]),
        length in any::<proptest::sample::Index>(),
    ) {
        let bytes = golden::bytes(file);
        prop_assert!(parse(&bytes[..length.index(bytes.len())]).is_err());
    }
}
