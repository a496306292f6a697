//! The contract from the point of view of other languages: every name is valid in each, and code
//! can be generated for it.

use http::uri::PathAndQuery;
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use shipreid::chip::Modality;
use shipreid::client::chip;
use shipreid::wire::{EmbedRequest, EmbedResponse, EnrollRequest, FILE_DESCRIPTOR_SET};
use tonic::Code;
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;

use crate::server::{fixture, start};

/// Words that are not valid as names of fields or parameters.
const KEYWORDS: [(&str, &str); 6] = [
    (
        "Python",
        "False None True and as assert async await break class continue def del elif else except finally for from \
         global if import in is lambda nonlocal not or pass raise return try while with yield",
    ),
    (
        "Go",
        "break case chan const continue default defer else fallthrough for func go goto if import interface map \
         package range return select struct switch type var",
    ),
    (
        "TypeScript",
        "break case catch class const continue debugger default delete do else enum export extends false finally for \
         function if implements import in instanceof interface let new null package private protected public return \
         static super switch this throw true try typeof var void while with yield",
    ),
    (
        "Java",
        "abstract assert boolean break byte case catch char class const continue default do double else enum extends \
         final finally float for goto if implements import instanceof int interface long native new package private \
         protected public return short static strictfp super switch synchronized this throw throws transient try \
         void volatile while true false null",
    ),
    (
        "C#",
        "abstract as base bool break byte case catch char checked class const continue decimal default delegate do \
         double else enum event explicit extern false finally fixed float for foreach goto if implicit in int \
         interface internal is lock long namespace new null object operator out override params private protected \
         public readonly ref return sbyte sealed short sizeof stackalloc static string struct switch this throw true \
         try typeof uint ulong unchecked unsafe ushort using virtual void volatile while",
    ),
    (
        "Rust",
        "Self abstract as async await become box break const continue crate do dyn else enum extern false final fn \
         for gen if impl in let loop macro match mod move mut override priv pub ref return self static struct super \
         trait true try type typeof union unsafe unsized use virtual where while yield",
    ),
];

/// `EvaluationResult.map`, mean average precision: `map` is a keyword in Go, which capitalises fields.
const HARMLESS: [(&str, &str); 1] = [("Go", "map")];

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    set.file.into_iter().filter(|file| file.package() == "shipreid.v1").collect()
}

fn fields(message: &DescriptorProto) -> Vec<String> {
    // Callers do not write the entries of maps.
    let written =
        message.nested_type.iter().filter(|nested| !nested.options.as_ref().is_some_and(|o| o.map_entry()));
    let nested = written.flat_map(fields);
    message.field.iter().map(|field| field.name().to_owned()).chain(nested).collect()
}

#[test]
fn every_field_can_be_written_in_every_language() {
    let fields: Vec<String> = files().iter().flat_map(|file| &file.message_type).flat_map(fields).collect();
    assert!(fields.len() > 200, "{}", fields.len());
    for (language, keywords) in KEYWORDS {
        for keyword in keywords.split_whitespace() {
            let named = fields.iter().any(|field| field == keyword);
            assert_eq!(
                named,
                HARMLESS.contains(&(language, keyword)),
                "{keyword} is a keyword of {language}"
            );
        }
    }
}

#[test]
fn every_file_says_where_its_code_goes() {
    let files = files();
    assert_eq!(files.len(), 6);
    for file in files {
        let options = file.options.clone().unwrap_or_default();
        let places = [options.go_package(), options.java_package(), options.csharp_namespace()];
        assert_eq!(places, ["shipreid/v1;shipreidv1", "shipreid.v1", "ShipReId.V1"], "{}", file.name());
        assert!(options.java_multiple_files(), "{}", file.name());
    }
}

/// Both headers that every answer carries.
fn check_headers(metadata: &MetadataMap) {
    let of = |name: &str| {
        metadata.get(name).unwrap_or_else(|| panic!("no {name} in {metadata:?}")).to_str().unwrap()
    };
    assert_eq!(of("x-request-id").len(), 32);
    let build = of("x-shipreid-build");
    let (version, commit) = build.split_once('+').unwrap_or((build, "0"));
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert!(!commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_hexdigit()), "{build}");
}

#[tokio::test]
async fn every_answer_says_which_call_and_which_build_it_is_of() {
    let (server, client) = start(&["limits.calls_per_second_max=2", "limits.calls_burst_max=2"]).await;
    let chips = vec![chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical)];
    let embed = EmbedRequest { chips, ..EmbedRequest::default() };
    check_headers(client.ship_re_id().embed(embed.clone()).await.unwrap().metadata());
    // A stream has them before its first answer.
    let nobody = tokio_stream::empty::<EnrollRequest>();
    check_headers(client.galleries().enroll(nobody).await.unwrap().metadata());
    // The first requests are refused by the handler, the later ones by a layer.
    let mut codes = vec![];
    while codes.last() != Some(&Code::ResourceExhausted) {
        let refused = client.ship_re_id().embed(EmbedRequest::default()).await.unwrap_err();
        check_headers(refused.metadata());
        codes.push(refused.code());
    }
    server.stop().await;

    let (server, _) = start(&[]).await;
    let channel =
        Endpoint::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
    let mut raw = tonic::client::Grpc::new(channel);
    raw.ready().await.unwrap();
    let path = PathAndQuery::from_static("/shipreid.v1.ShipReId/Sink");
    let codec = tonic_prost::ProstCodec::<EmbedRequest, EmbedResponse>::default();
    let unknown = raw.unary(tonic::Request::new(embed), path, codec).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    check_headers(unknown.metadata());
    server.stop().await;
}
