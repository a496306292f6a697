//! Names of the contract in the languages that code is generated for: none is a keyword there, takes the place of
//! something that generators add, or has to be escaped by them.

use std::collections::HashSet;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use shipreid::wire::FILE_DESCRIPTOR_SET;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Message,
    Enum,
    /// Without the prefix that repeats the name of its enum, where a generator removes it.
    Value,
    Field,
    Oneof,
    Service,
    Method,
}
use Kind::{Enum, Field, Method, Oneof, Service, Value};

/// Names of one language that are not free for some kinds of elements.
struct Rule {
    language: &'static str,
    kinds: &'static [Kind],
    /// How the generator writes a name.
    written: fn(&str) -> String,
    taken: &'static str,
}

const TYPES: &[Kind] = &[Kind::Message, Enum];
const ANY: &[Kind] = &[Kind::Message, Enum, Value, Field, Service, Method];

const RULES: &[Rule] = &[
    // protoc writes names as they are and escapes none: they are then only within reach of getattr. Oneofs are strings
    // (WhichOneof). `match`, `case` and `type` are keywords in their own statements only.
    Rule {
        language: "Python",
        kinds: ANY,
        written: same,
        taken: "False None True and as assert async await break class continue def del elif else except finally for \
                from global if import in is lambda nonlocal not or pass raise return try while with yield",
    },
    // Attributes of every message; `self` is a parameter of its constructor.
    Rule {
        language: "Python",
        kinds: &[Field, Kind::Message, Enum, Value],
        written: same,
        taken: "self ByteSize Clear ClearExtension ClearField CopyFrom DESCRIPTOR DiscardUnknownFields Extensions \
                FindInitializationErrors FromString HasExtension HasField IsInitialized ListFields MergeFrom \
                MergeFromString ParseFromString RegisterExtension SerializePartialToString SerializeToString \
                SetInParent UnknownFields WhichOneof",
    },
    // protoc-gen-go capitalises every name, which no keyword is. It appends `_` where a field would hide one of the first
    // eight methods, and does not know of ProtoReflect.
    Rule {
        language: "Go",
        kinds: &[Field, Oneof],
        written: upper_camel,
        taken: "Reset String ProtoMessage Marshal Unmarshal ExtensionRangeArray ExtensionMap Descriptor ProtoReflect",
    },
    // Fields become getX; protoc appends `_` to names whose getter every message has.
    Rule {
        language: "Java, Kotlin",
        kinds: &[Field, Oneof],
        written: upper_camel,
        taken: "Class Descriptor DescriptorForType DefaultInstance DefaultInstanceForType ParserForType SerializedSize \
                CachedSize AllFields UnknownFields InitializationErrorString",
    },
    // Generated for every enum of proto3.
    Rule { language: "Java, Swift", kinds: &[Value], written: same, taken: "UNRECOGNIZED" },
    // grpc-java begins methods in lower case, and appends `_` to keywords.
    Rule {
        language: "Java",
        kinds: &[Method],
        written: lower_camel,
        taken: "abstract assert boolean break byte case catch char class const continue default do double else enum \
                extends final finally float for goto if implements import instanceof int interface long native new \
                package private protected public return short static strictfp super switch synchronized this throw \
                throws transient try void volatile while true false null",
    },
    // Properties of the builder's DSL, and methods of grpc-kotlin: hard keywords get a `_` or backticks.
    Rule {
        language: "Kotlin",
        kinds: &[Field, Method],
        written: lower_camel,
        taken: "as break class continue do else false for fun if in interface is null object package return super this \
                throw true try typealias typeof val var when while",
    },
    // protoc capitalises every name, which no keyword is. It appends `_` to the first two, and to a field that is
    // called as its message; the others are members of every message.
    Rule {
        language: "C#",
        kinds: &[Field, Oneof],
        written: upper_camel,
        taken: "Types Descriptor Parser Clone CalculateSize MergeFrom WriteTo Equals GetHashCode GetType ToString \
                MemberwiseClone",
    },
    // Members of every generated client; a unary method X also is XAsync.
    Rule {
        language: "C#",
        kinds: &[Method],
        written: same,
        taken: "WithHost Intercept NewInstance Equals GetType ToString",
    },
    // protobuf-es and protobuf-ts append `$` to properties that every object has. Keywords are properties like others.
    Rule {
        language: "TypeScript",
        kinds: &[Field, Oneof],
        written: lower_camel,
        taken: "constructor toString toJSON valueOf __proto__ oneofKind",
    },
    // Globals that generated code uses: protobuf-es appends `$`, ts-proto shadows them.
    Rule {
        language: "TypeScript",
        kinds: &[Kind::Message, Enum, Service],
        written: same,
        taken: "Array BigInt Boolean DataView Date Error Function JSON Map Number Object Promise Record String Symbol \
                Uint8Array",
    },
    // Methods of every client of grpc-js, which one of this name would replace.
    Rule {
        language: "TypeScript",
        kinds: &[Method],
        written: lower_camel,
        taken: "close constructor getChannel waitForReady makeUnaryRequest makeClientStreamRequest \
                makeServerStreamRequest makeBidiStreamRequest toString valueOf",
    },
    // protoc appends `_` to keywords and, in later releases, to static members of every message.
    Rule {
        language: "C++",
        kinds: &[Field, Oneof],
        written: same,
        taken: "alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t \
                class compl concept const consteval constexpr constinit const_cast continue co_await co_return co_yield \
                decltype default delete do double dynamic_cast else enum explicit export extern false float for friend \
                goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private \
                protected public register reinterpret_cast requires return short signed sizeof static static_assert \
                static_cast struct switch template this thread_local throw true try typedef typeid typename union \
                unsigned using virtual void volatile wchar_t while xor xor_eq descriptor default_instance swap \
                unknown_fields mutable_unknown_fields internal_default_instance",
    },
    // Values stand in the namespace, where macros of the C library replace them.
    Rule {
        language: "C++",
        kinds: &[Value],
        written: same,
        taken: "NULL EOF TRUE FALSE NAN INFINITY OVERFLOW UNDERFLOW DOMAIN ERROR IN OUT OPTIONAL CONST DELETE",
    },
    // Members of every generated stub and service.
    Rule {
        language: "C++",
        kinds: &[Method],
        written: same,
        taken: "Stub Service AsyncService NewStub StubInterface",
    },
    // prost and tonic write keywords as r#x, and `self`, `super`, `extern`, `crate` as x_.
    Rule {
        language: "Rust",
        kinds: &[Field, Oneof, Method],
        written: snake,
        taken: "abstract as async await become box break const continue crate do dyn else enum extern false final fn \
                for gen if impl in let loop macro match mod move mut override priv pub ref return self static struct \
                super trait true try type typeof unsafe unsized use virtual where while yield",
    },
    Rule { language: "Rust", kinds: &[Kind::Message, Enum, Value, Oneof], written: type_case, taken: "Self" },
    // SwiftProtobuf appends `_p`. Keywords stand in backticks where it declares them, and callers write them as they are.
    Rule {
        language: "Swift",
        kinds: &[Field, Oneof],
        written: lower_camel,
        taken: "debugDescription description dynamicType hashValue hash init isInitialized isEqual self unknownFields \
                Protocol Type",
    },
    Rule {
        language: "Swift",
        kinds: &[Value, Method],
        written: value_case,
        taken: "init self Type Protocol allCases rawValue none some",
    },
];

/// Names that a generator escapes, and that were released: what callers write instead.
const ESCAPED: &[(&str, Kind, &str)] = &[
    // tonic: `client.r#match(...)`.
    ("Rust", Method, "Match"),
];

/// The same for fields that clash within their message: C# calls `EntryIds.entry_ids` EntryIds_.
const ESCAPED_FIELDS: &[(&str, &str)] = &[("EntryIds", "entry_ids")];

#[derive(Clone, Debug)]
struct Element {
    kind: Kind,
    name: String,
}

fn element(kind: Kind, name: &str) -> Element {
    Element { kind, name: name.to_owned() }
}

/// The rules that `element` breaks, by language.
fn broken(element: &Element) -> Vec<&'static str> {
    let Element { kind, name } = element;
    let breaks = |rule: &&Rule| {
        let written = (rule.written)(name);
        rule.kinds.contains(kind) && rule.taken.split_whitespace().any(|taken| taken == written)
    };
    RULES.iter().filter(breaks).map(|rule| rule.language).collect()
}

#[test]
fn every_name_can_be_written_in_every_language() {
    let elements: Vec<Element> = files().iter().flat_map(elements).collect();
    assert!(elements.len() > 400, "{}", elements.len());
    let mut escaped = vec![];
    for element in &elements {
        for language in broken(element) {
            let known = ESCAPED.iter().find(|(l, kind, name)| {
                (*l, *kind, *name) == (language, element.kind, element.name.as_str())
            });
            escaped.push(known.unwrap_or_else(|| panic!("{element:?} is not free in {language}")));
        }
    }
    assert_eq!(escaped.len(), ESCAPED.len(), "a name that is escaped no longer");
}

#[test]
fn names_clash_as_generators_write_them() {
    use Kind::Message;
    for (kind, name, expected) in [
        (Field, "from", &["Python"][..]),
        (Field, "import", &["Python"]),
        (Method, "Import", &["Java"]),
        (Field, "map", &[]),
        (Field, "type", &["Rust"]),
        (Field, "descriptor", &["Go", "Java, Kotlin", "C#", "C++"]),
        (Field, "DESCRIPTOR", &["Python"]),
        (Field, "string", &["Go"]),
        (Field, "class", &["Python", "Java, Kotlin", "Kotlin", "C++"]),
        (Field, "to_string", &["C#", "TypeScript"]),
        (Field, "object", &["Kotlin"]),
        (Oneof, "constructor", &["TypeScript"]),
        (Oneof, "lambda", &[]),
        (Field, "description", &["Swift"]),
        (Field, "default", &["C++"]),
        (Method, "Close", &["TypeScript"]),
        (Method, "Match", &["Rust"]),
        (Method, "NewStub", &["C++"]),
        (Method, "WithHost", &["C#"]),
        (Message, "None", &["Python"]),
        (Message, "Self", &["Rust"]),
        (Message, "Object", &["TypeScript"]),
        (Enum, "String", &["TypeScript"]),
        (Service, "Error", &["TypeScript"]),
        (Value, "UNRECOGNIZED", &["Java, Swift"]),
        (Value, "SELF", &["Rust", "Swift"]),
        (Value, "OVERFLOW", &["C++"]),
        (Value, "None", &["Python", "Swift"]),
    ] {
        assert_eq!(broken(&element(kind, name)), expected, "{kind:?} {name}");
    }
}

/// Names that generators derive from a field take the place of another one: a repeated `x` has `x_count` in Java and
/// `x_size` in C++.
fn derived(field: &prost_types::FieldDescriptorProto) -> Vec<String> {
    let name = field.name();
    let mut added =
        vec![format!("has_{name}"), format!("clear_{name}"), format!("get_{name}"), format!("set_{name}")];
    let mut suffixes = |all: &[&str]| added.extend(all.iter().map(|suffix| format!("{name}_{suffix}")));
    if field.label() == Label::Repeated {
        // prost: push_x for enums.
        suffixes(&["count", "list", "size", "map"]);
        added.push(format!("push_{name}"));
        added.push(format!("add_{name}"));
        return added;
    }
    match field.r#type() {
        Type::String => suffixes(&["bytes"]),
        Type::Enum => suffixes(&["value"]),
        Type::Message => suffixes(&["builder", "or_builder"]),
        _ => {}
    }
    added.push(format!("mutable_{name}"));
    added.push(format!("release_{name}"));
    added
}

/// The pairs of names in a message of which one takes the place of the other.
fn clashes(message: &DescriptorProto) -> Vec<String> {
    let fields: HashSet<&str> = message.field.iter().map(|field| field.name()).collect();
    let oneofs = message.oneof_decl.iter().flat_map(|oneof| {
        let name = oneof.name();
        [name.to_owned(), format!("{name}_case"), format!("clear_{name}"), format!("has_{name}")]
    });
    let all: Vec<String> = message.field.iter().flat_map(derived).chain(oneofs).collect();
    // C# would call a property as its own class.
    let own = message.field.iter().filter(|field| upper_camel(field.name()) == message.name());
    // prost gives enums and optional numbers and texts a getter, which would hide a method of its own.
    let hiding = message.field.iter().filter(|field| {
        (field.r#type() == Type::Enum || field.proto3_optional()) && OF_PROST.contains(&field.name())
    });
    let taken = all.into_iter().filter(|name| fields.contains(name.as_str()));
    taken.chain(own.chain(hiding).map(|field| field.name().to_owned())).collect()
}

/// Methods of every message in Rust.
const OF_PROST: [&str; 13] = [
    "clear",
    "clone",
    "decode",
    "default",
    "encode",
    "encode_raw",
    "encode_to_vec",
    "encoded_len",
    "eq",
    "fmt",
    "hash",
    "merge",
    "merge_field",
];

#[test]
fn no_field_takes_the_place_of_what_is_generated_for_another() {
    fn all(message: &DescriptorProto) -> Vec<DescriptorProto> {
        std::iter::once(message.clone()).chain(message.nested_type.iter().flat_map(all)).collect()
    }
    let messages = files().into_iter().flat_map(|file| file.message_type).flat_map(|message| all(&message));
    let found = messages.flat_map(|message| {
        clashes(&message).into_iter().map(move |field| (message.name().to_owned(), field))
    });
    let escaped = ESCAPED_FIELDS.iter().map(|(message, field)| ((*message).to_owned(), (*field).to_owned()));
    assert_eq!(found.collect::<Vec<_>>(), escaped.collect::<Vec<_>>());
    // What is generated beside a service in Go, C# and C++ shares a namespace with messages.
    let elements: Vec<Element> = files().iter().flat_map(elements).collect();
    let named = |name: &str| elements.iter().any(|e| TYPES.contains(&e.kind) && e.name == name);
    for service in elements.iter().filter(|element| element.kind == Service) {
        for suffix in ["", "Client", "Server", "Base", "Grpc", "Stub", "Servicer", "OuterClass"] {
            assert!(!named(&format!("{}{suffix}", service.name)), "{}{suffix}", service.name);
        }
    }
    for method in elements.iter().filter(|element| element.kind == Method) {
        let doubled = |prefix: &str, suffix: &str| {
            let other = format!("{prefix}{}{suffix}", method.name);
            elements.iter().any(|element| element.kind == Method && element.name == other)
        };
        assert!(
            !doubled("", "Async") && !doubled("Async", "") && !doubled("PrepareAsync", ""),
            "{}",
            method.name
        );
    }
}

#[test]
fn a_message_whose_fields_clash_is_found() {
    let field = |name: &str, label: Label, r#type: Type| prost_types::FieldDescriptorProto {
        name: Some(name.into()),
        label: Some(label.into()),
        r#type: Some(r#type.into()),
        ..Default::default()
    };
    let one = |name| field(name, Label::Optional, Type::Uint32);
    let message = |fields: &[prost_types::FieldDescriptorProto]| DescriptorProto {
        name: Some("Ship".into()),
        field: fields.to_vec(),
        oneof_decl: vec![prost_types::OneofDescriptorProto { name: Some("source".into()), options: None }],
        ..Default::default()
    };
    for (fields, expected) in [
        (&[one("a"), one("a_count")][..], &[][..]),
        (&[field("a", Label::Repeated, Type::Uint32), one("a_count")], &["a_count"]),
        (&[field("a", Label::Repeated, Type::Uint32), one("a_size")], &["a_size"]),
        (&[field("a", Label::Optional, Type::String), one("a_bytes")], &["a_bytes"]),
        (&[field("a", Label::Optional, Type::Enum), one("a_value")], &["a_value"]),
        (&[one("a"), one("has_a")], &["has_a"]),
        (&[one("source_case")], &["source_case"]),
        (&[one("ship")], &["ship"]),
        (&[one("decode")], &[]),
        (&[field("decode", Label::Optional, Type::Enum)], &["decode"]),
    ] {
        assert_eq!(clashes(&message(fields)), expected, "{fields:?}");
    }
}

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    set.file.into_iter().filter(|file| file.package() == "shipreid.v1").collect()
}

fn elements(file: &FileDescriptorProto) -> Vec<Element> {
    let messages = file.message_type.iter().flat_map(of_message);
    let enums = file.enum_type.iter().flat_map(of_enum);
    let services = file.service.iter().flat_map(|service| {
        let methods = service.method.iter().map(|method| element(Method, method.name()));
        std::iter::once(element(Service, service.name())).chain(methods)
    });
    messages.chain(enums).chain(services).collect()
}

fn of_message(message: &DescriptorProto) -> Vec<Element> {
    // Callers do not write the entries of maps.
    let written =
        message.nested_type.iter().filter(|nested| !nested.options.as_ref().is_some_and(|o| o.map_entry()));
    // A field that may be absent has a oneof of its own, of which generators make nothing.
    let oneofs = message.oneof_decl.iter().filter(|oneof| !oneof.name().starts_with('_'));
    let mut all = vec![element(Kind::Message, message.name())];
    all.extend(message.field.iter().map(|field| element(Field, field.name())));
    all.extend(oneofs.map(|oneof| element(Oneof, oneof.name())));
    all.extend(message.enum_type.iter().flat_map(of_enum));
    all.extend(written.flat_map(of_message));
    all
}

/// Every value also without its prefix, which C#, Rust, Swift and protobuf-es remove.
fn of_enum(declared: &EnumDescriptorProto) -> Vec<Element> {
    let prefix = format!("{}_", snake(declared.name()).to_ascii_uppercase());
    let values = declared.value.iter().flat_map(|value| {
        [value.name(), value.name().strip_prefix(&prefix).unwrap_or_default()]
            .map(|name| element(Value, name))
    });
    std::iter::once(element(Enum, declared.name())).chain(values).collect()
}

fn same(name: &str) -> String {
    name.to_owned()
}

fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = vec![];
    let mut after_lower = false;
    for letter in name.chars() {
        let begins = words.is_empty() || letter.is_uppercase() && after_lower;
        after_lower = letter.is_lowercase() || letter.is_ascii_digit();
        match words.last_mut() {
            _ if letter == '_' => words.push(String::new()),
            Some(word) if !begins => word.extend(letter.to_lowercase()),
            _ => words.push(letter.to_lowercase().collect()),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn snake(name: &str) -> String {
    words(name).join("_")
}

/// As protoc has it: capitals stay.
fn upper_camel(name: &str) -> String {
    let parts = name.split('_').filter(|part| !part.is_empty());
    parts.map(|part| part[..1].to_ascii_uppercase() + &part[1..]).collect()
}

fn lower_camel(name: &str) -> String {
    let upper = upper_camel(name);
    upper.get(..1).map(|first| first.to_ascii_lowercase() + &upper[1..]).unwrap_or_default()
}

/// `SAR_IMAGE` becomes SarImage.
fn type_case(name: &str) -> String {
    upper_camel(&snake(name))
}

/// `SAR_IMAGE` becomes sarImage.
fn value_case(name: &str) -> String {
    lower_camel(&snake(name))
}
