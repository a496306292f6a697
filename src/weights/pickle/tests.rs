//! Handwritten programs, valid and invalid.

use proptest::prelude::*;

use super::*;
use crate::weights::golden;

fn read(bytes: &[u8]) -> Result<Pickle, PickleError> {
    Pickle::read(&mut &bytes[..])
}

fn check_refused(bytes: &[u8], message: &str) {
    let error = read(bytes).expect_err("not a pickle of a checkpoint").to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn plain_values_are_read_with_their_nesting() {
    // {"epoch": 60, "best": (0.5, None, True, -2)} with a memo and a frame.
    let mut bytes = b"\x80\x04\x95\0\0\0\0\0\0\0\0}\x94(X\x05\0\0\0epochK<\x8c\x04best(G".to_vec();
    bytes.extend(0.5_f64.to_be_bytes());
    bytes.extend(b"N\x88\x8a\x01\xfetu.");
    let pickle = read(&bytes).expect("a small dictionary");
    let epoch = pickle.entry(pickle.root(), "epoch").expect("set above");
    assert_eq!(pickle.value(epoch), &Value::Int(60));
    let best = pickle.entry(pickle.root(), "best").expect("set above");
    let Value::Tuple(items) = pickle.value(best) else { panic!("a tuple") };
    let items: Vec<_> = items.iter().map(|item| pickle.value(*item).clone()).collect();
    assert_eq!(items, [Value::Float(0.5), Value::None, Value::Bool(true), Value::Int(-2)]);
}

#[test]
fn a_name_outside_the_list_is_refused_whatever_way_it_is_written() {
    check_refused(&golden::bytes("ckpt_malicious_raw.pth"), "names posix.system");
    check_refused(b"cbuiltins\neval\n(X\x01\0\0\x001tR.", "names builtins.eval");
    check_refused(b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "names os.system");
    check_refused(b"ctorch\nload\n.", "names torch.load");
    check_refused(
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        "names torch._utils._rebuild_tensor_v2.__",
    );
    check_refused(b"c\x1b[2J\nx\n.", "names \\u{1b}[2J.x");
}

#[test]
fn an_instruction_outside_the_list_is_refused() {
    // INST, OBJ, NEWOBJ_EX and EXT1 are other ways to call; PERSID is another way to refer outside.
    for opcode in [b'i', b'o', 0x92, 0x82, b'P', 0x97] {
        check_refused(&[b'N', opcode, b'.'], "which torch's safe loader does not know either");
    }
}

#[test]
fn a_broken_program_is_refused() {
    check_refused(b"", "ends early");
    check_refused(b"\x80\x02", "ends early");
    check_refused(b"\x80\x09N.", "protocol");
    check_refused(b".", "stack is empty");
    check_refused(b"N(.", "stack is empty");
    check_refused(b"Nt.", "no mark");
    check_refused(b"h\x07.", "empty memo slot");
    check_refused(b"}(Nu.", "no value");
    check_refused(b"N(NNu.", "no dictionary");
    check_refused(b"NNa.", "no list");
    check_refused(b"N)R.", "no function");
    check_refused(b"N}b.", "attributes are set on something that has none");
    check_refused(b"NN\x81.", "no class");
    check_refused(b"ctorch\nTensor\nN\x81.", "a tuple is expected");
    check_refused(b"N)\x81.", "no class");
    check_refused(b"ctorch._utils\n_rebuild_tensor\n)\x81.", "no class");
    check_refused(b"ccollections\nOrderedDict\nNN\x86R.", "wrong arguments");
    check_refused(b"NQ.", "a tuple is expected");
    check_refused(b"\x8a\x11", "ends early");
    check_refused(b"X\xff\xff\xff\xff", "bytes in one text");
}

#[test]
fn a_storage_is_named_once_and_shortly() {
    let storage = |class: &str, key: &str, length: u8| {
        let key_length = u8::try_from(key.len()).expect("a short key");
        let head = format!("(\u{55}\u{7}storagectorch\n{class}\nU").into_bytes();
        [head.as_slice(), &[key_length], key.as_bytes(), b"U\x03cpuK", &[length], b"tQ"].concat()
    };
    let float = storage("FloatStorage", "7", 12);
    let pickle = read(&[&float, b".".as_slice()].concat()).expect("one storage");
    let data_type = DataType::named("float32").expect("known");
    let expected = Storage { key: "7".to_owned(), data_type, elements: 12 };
    assert_eq!(pickle.storages(), &BTreeMap::from([("7".to_owned(), expected)]));
    check_refused(&[float.clone(), storage("FloatStorage", "7", 13)].concat(), "two types or lengths");
    check_refused(&[float, storage("LongStorage", "7", 12)].concat(), "two types or lengths");
    check_refused(&storage("FloatStorage", &"k".repeat(65), 12), "longer than 64 bytes");
    check_refused(&storage("OrderedDict", "7", 12), "names torch.OrderedDict");
    check_refused(&storage("Size", "7", 12), "no known type");
}

#[test]
fn size_and_nesting_are_bounded() {
    check_refused(&vec![b'N'; VALUES_MAX + 1], "more than 1048576 values");
    check_refused(&vec![b'('; VALUES_MAX + 1], "more than 1048576 marks");
    check_refused(&vec![b']'; VALUES_MAX + 1], "more than 1048576 values");
    let mut rounds = b"N".to_vec();
    rounds.resize(BYTES_MAX as usize + 1, 0x95);
    check_refused(&rounds, "more than 16777216 bytes");
    let mut slots = b"Nq\0".to_vec();
    (0..=VALUES_MAX).for_each(|_| slots.extend(b"h\0"));
    check_refused(&slots, "more than 1048576 stack slots");
    let mut memo = b"N".to_vec();
    memo.resize(VALUES_MAX + 2, 0x94);
    check_refused(&memo, "more than 1048576 memo slots");
    let bytes = [b"\x8e".as_slice(), &u64::MAX.to_le_bytes(), &[0; 99]].concat();
    check_refused(&bytes, "ends early");
}

#[test]
fn copies_are_bounded_as_what_is_written_out() {
    // A counter of 1,000 entries, copied repeatedly: 2 KB would become gigabytes.
    let mut program = b"ccollections\nCounter\nq\0(}(".to_vec();
    (0..1000).for_each(|_| program.extend(b"NN"));
    program.extend(b"utq\x01R");
    (0..2000).for_each(|_| program.extend(b"h\0h\x01R0"));
    check_refused(&program, "more than 1048576 values");
    // Nested calls could be as deep as the file is long.
    check_refused(b"ctorch._tensor\n_rebuild_from_type_v2\nq\0(h\0N)NtR.", "made by no function");
}

/// The root of a program, or the index of its value in a list.
fn root(program: &[u8]) -> Value {
    let pickle = read(program).expect("a value");
    pickle.value(pickle.root()).clone()
}

#[test]
fn values_beside_tensors_are_kept_by_their_kind_alone() {
    let check = |program: &[u8], kind: &str| assert_eq!(root(program).kind(), kind, "{program:?}");
    check(b"c__builtin__\nset\n(]K\x01atR.", "a set");
    check(b"\x8f(K\x01K\x02\x90.", "a set");
    check(b"(K\x01\x91.", "a set");
    check(b"c_codecs\nencode\n(X\x01\0\0\0aX\x06\0\0\0latin1tR.", "bytes");
    check(b"c__builtin__\nbytearray\n)R.", "bytes");
    check(b"C\x02\xff\x00.", "bytes");
    check(b"B\x02\0\0\0\xff\x00.", "bytes");
    check(b"\x96\x02\0\0\0\0\0\0\0\xff\x00.", "bytes");
    check(b"c__builtin__\ncomplex\n(G\0\0\0\0\0\0\0\0G\0\0\0\0\0\0\0\0tR.", "a number");
    check(&[b"\x8a\xff".as_slice(), &[1; 255], b"."].concat(), "a number");
    check(&[b"\x8b\x11\0\0\0".as_slice(), &[1; 17], b"."].concat(), "a number");
    check(b"ctorch\nfloat32\n.", "a data type");
    check(b"ctorch\nfloat8_e4m3fn\n.", "a data type");
    check(b"ctorch\ndevice\n(X\x04\0\0\0cudaK\x00tR.", "a device");
    check(b"ctorch.serialization\n_get_layout\n(X\x0d\0\0\0torch.stridedtR.", "a layout");
    check(b"ctorch\nper_tensor_affine\n.", "a name");
    check(b"ctorch._utils\n_rebuild_sparse_tensor\n(NNtR.", "a sparse tensor");
    check(b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n)))tR.", "a meta tensor");
    check(b"\x8d\x01\0\0\0\0\0\0\0a.", "a text");
    check(b"X\x02\0\0\0\xed\xa0.", "a text");
    let counter = root(b"ccollections\nCounter\n(}K\x01K\x02stR.");
    let Value::Dict(items) = counter else { panic!("a dictionary") };
    assert_eq!(items.len(), 1);
    // An ordered dictionary as written by Python 2.
    let Value::Dict(items) = root(b"ccollections\nOrderedDict\n(](]K\x01aK\x02aetR.") else {
        panic!("a dictionary")
    };
    assert_eq!(items.len(), 1);
}

#[test]
fn a_tensor_may_get_its_place_after_it_was_made() {
    let storage = "(U\u{7}storagectorch\nFloatStorage\nU\u{1}0U\u{3}cpuK\u{6}tQ";
    let place = format!("({storage}K\u{1}(K\u{2}t(K\u{1}tt");
    let expected = root(format!("ctorch._utils\n_rebuild_tensor\n{place}R.").as_bytes());
    assert!(matches!(expected, Value::Tensor(_)), "{expected:?}");
    for (class, make) in [
        ("torch\nFloatTensor", "\u{81}"),
        ("torch.nn.parameter\nParameter", "\u{81}"),
        ("torch\nTensor", "R"),
    ] {
        let program: Vec<u8> =
            format!("c{class}\n){make}{place}b.").chars().map(|letter| letter as u8).collect();
        assert_eq!(root(&program), expected, "{class}");
    }
    // The legacy state of a parameter: data, three ignored fields, and hooks.
    let inner = format!("ctorch._utils\n_rebuild_tensor\n{place}R");
    let program = format!("ctorch.nn.parameter\nParameter\n){}({inner}NN\u{88}Ntb.", "\u{81}");
    let program: Vec<u8> = program.chars().map(|letter| letter as u8).collect();
    assert_eq!(root(&program), expected);
    // Attributes of a tensor, and a view of a storage by the name that torch used before version 0.4.
    let with_type = format!(
        "ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor\nctorch\nTensor\n{place}}}tR."
    );
    assert_eq!(root(with_type.as_bytes()), expected);
    let view = "(U\u{7}storagectorch\nFloatStorage\nU\u{1}0U\u{3}cpuK\u{6}(U\u{1}1K\u{1}K\u{4}ttQ";
    let program = format!("ctorch._utils\n_rebuild_tensor\n({view}K\u{0}(K\u{2}t(K\u{1}ttR.");
    assert_eq!(root(program.as_bytes()), expected);
}

#[test]
fn a_dictionary_that_holds_itself_is_harmless() {
    let pickle = read(b"}q\0X\x04\0\0\0selfh\0s.").expect("a cycle of references");
    assert_eq!(pickle.entry(pickle.root(), "self"), Some(pickle.root()));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = read(&bytes);
    }

    #[test]
    fn random_programs_never_panic(program in proptest::collection::vec(
        proptest::sample::select(b".()]}t\x85\x86\x87aesuqh\x94\x93QRbNK\x8801\x81\x8f\x90\x91C\x8a".as_slice()), 0..256)) {
        let _ = read(&program);
    }

    #[test]
    fn a_checkpoint_with_changed_bytes_never_panics(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        // In the legacy file, the main pickle begins after three small ones.
        let mut bytes = golden::bytes("load_imagenet_legacy.pth").split_off(137);
        bytes.truncate(4096);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = read(&bytes);
    }
}
