//! A strict reader of the pickles in torch checkpoints: it builds plain values and calls nothing.
//!
//! A pickle is a program for a small stack machine, and the usual reader runs whatever function it names.
//! This one knows the few names that a state dict needs, builds what they would return, and refuses any
//! other by name. Values live in one arena and refer to each other by index, so that no nesting is deep, no
//! cycle matters, and memory stays proportional to the pickle's length.

mod input;
mod machine;
mod rebuild;

use std::collections::BTreeMap;
use std::io::{self, Read};

use self::machine::Machine;
use super::storage::{ElementType, Storage, StoredTensor};

/// Bytes of a pickle; that of a ViT-B with its optimizer has about 0.2 MB.
const BYTES_MAX: u64 = 16 << 20;
/// Values, stack slots and memo slots.
const VALUES_MAX: usize = 1 << 18;
const TEXT_MAX: usize = 64 << 10;

/// A value's place in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueId(u32);

/// What a pickle holds, as far as checkpoints go.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    Tuple(Vec<ValueId>),
    List(Vec<ValueId>),
    /// Plain and ordered dictionaries, in order; of equal keys the last counts.
    Dict(Vec<(ValueId, ValueId)>),
    Global(Global),
    Storage(Box<Storage>),
    Tensor(Box<StoredTensor>),
}

/// The only names that a pickle may mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    OrderedDict,
    Size,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    RebuildParameterWithState,
    Storage(ElementType),
}

/// A pickle that was read to its end.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    storages: BTreeMap<String, Storage>,
    root: ValueId,
}

/// Why a pickle was refused. Nothing that it names was ever called.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    #[error("the pickle names {0}, which no checkpoint needs; it was not called")]
    ForbiddenGlobal(String),
    #[error("the pickle uses instruction {opcode:#04x} at byte {at}, which no checkpoint needs")]
    ForbiddenOpcode { opcode: u8, at: u64 },
    #[error("the pickle is malformed at byte {at}: {what}")]
    Malformed { what: &'static str, at: u64 },
    #[error("the pickle has more than {max} {what}")]
    TooLarge { what: &'static str, max: u64 },
    #[error("the pickle ends early")]
    Truncated,
    #[error(transparent)]
    Io(io::Error),
}

impl Pickle {
    /// Reads one pickle, up to and including its end mark.
    ///
    /// # Errors
    /// See [`PickleError`]; `reader` then stands somewhere inside.
    pub fn read(reader: &mut impl Read) -> Result<Self, PickleError> {
        Machine::new(reader).run()
    }

    pub fn root(&self) -> ValueId {
        self.root
    }

    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// Every storage that the pickle names, by key.
    pub fn storages(&self) -> &BTreeMap<String, Storage> {
        &self.storages
    }

    /// The value under a text key of a dictionary.
    pub fn entry(&self, dict: ValueId, key: &str) -> Option<ValueId> {
        let Value::Dict(items) = self.value(dict) else { return None };
        let entry = items
            .iter()
            .rev()
            .find(|(name, _)| matches!(self.value(*name), Value::Text(text) if text == key));
        entry.map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
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
        // INST, OBJ, NEWOBJ and EXT1 are other ways to call; PERSID is another way to point outside.
        for opcode in [b'i', b'o', 0x81, 0x82, b'P'] {
            check_refused(&[b'N', opcode, b'.'], "which no checkpoint needs");
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
        check_refused(b"N}b.", "no dictionary");
        check_refused(b"ccollections\nOrderedDict\nNN\x86R.", "wrong arguments");
        check_refused(b"NQ.", "a tuple is expected");
        check_refused(b"\x8a\x11", "more than 16 bytes");
        check_refused(b"X\xff\xff\xff\xff", "bytes in one text");
        check_refused(b"X\x01\0\0\0\xff.", "not UTF-8");
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
        let expected = Storage { key: "7".to_owned(), element: ElementType::F32, elements: 12 };
        assert_eq!(pickle.storages(), &BTreeMap::from([("7".to_owned(), expected)]));
        check_refused(&[float.clone(), storage("FloatStorage", "7", 13)].concat(), "two types or lengths");
        check_refused(&[float, storage("LongStorage", "7", 12)].concat(), "two types or lengths");
        check_refused(&storage("FloatStorage", &"k".repeat(65), 12), "longer than 64 bytes");
        check_refused(&storage("OrderedDict", "7", 12), "names torch.OrderedDict");
        check_refused(&storage("Size", "7", 12), "no known type");
    }

    #[test]
    fn size_and_nesting_are_bounded() {
        check_refused(&vec![b'N'; VALUES_MAX + 1], "more than 262144 values");
        check_refused(&vec![b'('; VALUES_MAX + 1], "more than 262144 marks");
        check_refused(&vec![b']'; VALUES_MAX + 1], "more than 262144 values");
        let mut rounds = b"N".to_vec();
        rounds.resize(BYTES_MAX as usize + 1, 0x95);
        check_refused(&rounds, "more than 16777216 bytes");
        let mut slots = b"Nq\0".to_vec();
        (0..=VALUES_MAX).for_each(|_| slots.extend(b"h\0"));
        check_refused(&slots, "more than 262144 stack slots");
        let mut memo = b"N".to_vec();
        memo.resize(VALUES_MAX + 2, 0x94);
        check_refused(&memo, "more than 262144 memo slots");
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
            proptest::sample::select(b".()]}t\x85\x86\x87aesuqh\x94\x93QRbNK\x8801".as_slice()), 0..256)) {
            let _ = read(&program);
        }

        #[test]
        fn a_checkpoint_with_changed_bytes_never_panics(
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        ) {
            // The main pickle of the legacy file begins after three small ones.
            let mut bytes = golden::bytes("load_imagenet_legacy.pth").split_off(137);
            bytes.truncate(4096);
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = read(&bytes);
        }
    }
}
