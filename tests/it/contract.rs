//! The contract from the point of view of other languages: where generated code goes, and what every answer carries.

use http::uri::PathAndQuery;
use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use shipreid::chip::Modality;
use shipreid::client::chip;
use shipreid::wire::{EmbedRequest, EmbedResponse, EnrollRequest, FILE_DESCRIPTOR_SET};
use tonic::Code;
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;

use crate::server::{fixture, start};

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    set.file.into_iter().filter(|file| file.package() == "shipreid.v1").collect()
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
