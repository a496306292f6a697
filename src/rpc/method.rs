//! Every method of this server: the number of its messages, who may call it, whether it changes anything, and which
//! permit a call uses. This is the only such table.

use crate::config::ServerRole;
use crate::keys::{Role, Roles};

/// One method of the contract, of health or of reflection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// As it appears in a request: `/service/name`.
    pub path: &'static str,
    pub shape: Shape,
    pub access: Access,
    pub effect: Effect,
    pub kind: Kind,
}

/// The number of messages in either direction, and the expected duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One request, one response.
    Unary,
    /// One request, one response, of work whose duration cannot be predicted.
    Lengthy,
    /// Many messages in at least one direction.
    Streaming,
}

/// Who may call a method if there are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Any caller, even without a key.
    Open,
    /// Any caller with a key.
    AnyKey,
    /// Any caller with one of these roles, or an admin.
    OneOf(&'static [Role]),
}

/// The effect of a method on the server's stored data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Reads,
    /// Every call is audited.
    Changes,
}

/// The purpose of a method, which decides the permit that a call uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The server's work: it uses a call permit.
    Ordinary,
    /// Inspects the server, even when it is full: it uses a permit of its own kind.
    Look,
    /// Asks for the server's health. It is always let in, so that a server that is full, closed to strangers or
    /// shutting down can be watched. A call that keeps watching uses the permit of a look.
    Health,
}

use Access::{AnyKey, OneOf, Open};
use Effect::{Changes, Reads};
use Shape::{Lengthy, Streaming, Unary};

const EMBED: Access = OneOf(&[Role::Embed]);
const MATCH: Access = OneOf(&[Role::Match]);
/// A caller that searches or changes a gallery can see its content.
const SEE: Access = OneOf(&[Role::Match, Role::Enrol]);
const ENROL: Access = OneOf(&[Role::Enrol]);
const TRAIN: Access = OneOf(&[Role::Train]);
const ADMIN: Access = OneOf(&[Role::Admin]);

/// In the order of the contract.
const METHODS: &[Method] = &[
    method("/shipreid.v1.ShipReId/Embed", Unary, EMBED, Reads),
    method("/shipreid.v1.ShipReId/EmbedStream", Streaming, EMBED, Reads),
    method("/shipreid.v1.ShipReId/Match", Unary, MATCH, Reads),
    method("/shipreid.v1.ShipReId/Train", Streaming, TRAIN, Changes),
    method("/shipreid.v1.Galleries/CreateGallery", Unary, ENROL, Changes),
    method("/shipreid.v1.Galleries/GetGallery", Unary, SEE, Reads),
    method("/shipreid.v1.Galleries/ListGalleries", Unary, SEE, Reads),
    method("/shipreid.v1.Galleries/DeleteGallery", Unary, ADMIN, Changes),
    method("/shipreid.v1.Galleries/Enroll", Streaming, ENROL, Changes),
    method("/shipreid.v1.Galleries/EnrollEntries", Unary, ENROL, Changes),
    method("/shipreid.v1.Galleries/GetEntries", Unary, SEE, Reads),
    method("/shipreid.v1.Galleries/ListEntries", Unary, SEE, Reads),
    method("/shipreid.v1.Galleries/GetChipPreview", Unary, SEE, Reads),
    method("/shipreid.v1.Galleries/ListVessels", Unary, SEE, Reads),
    method("/shipreid.v1.Galleries/DeleteEntries", Unary, ENROL, Changes),
    method("/shipreid.v1.Galleries/UpdateEntries", Unary, ENROL, Changes),
    method("/shipreid.v1.Galleries/MergeVessels", Unary, ENROL, Changes),
    method("/shipreid.v1.Galleries/ExportGallery", Streaming, ENROL, Reads),
    method("/shipreid.v1.Galleries/ImportGallery", Streaming, ENROL, Changes),
    method("/shipreid.v1.Galleries/ImportUploadedGallery", Lengthy, ENROL, Changes),
    method("/shipreid.v1.Models/ListModels", Unary, AnyKey, Reads),
    method("/shipreid.v1.Models/GetModel", Unary, AnyKey, Reads),
    method("/shipreid.v1.Models/ImportModel", Streaming, ADMIN, Changes),
    method("/shipreid.v1.Models/ImportUploadedModel", Lengthy, ADMIN, Changes),
    // Models belong to the server, not to a tenant: an exported model may have been trained by another tenant.
    method("/shipreid.v1.Models/ExportModel", Streaming, ADMIN, Reads),
    // Loading a model, warming it and moving galleries has no predictable duration, and does not stop when its caller
    // gives up.
    method("/shipreid.v1.Models/ActivateModel", Lengthy, ADMIN, Changes),
    method("/shipreid.v1.Models/DeleteModel", Unary, ADMIN, Changes),
    method("/shipreid.v1.TrainingJobs/GetTrainingJob", Unary, TRAIN, Reads),
    method("/shipreid.v1.TrainingJobs/ListTrainingJobs", Unary, TRAIN, Reads),
    method("/shipreid.v1.TrainingJobs/WatchTrainingJob", Streaming, TRAIN, Reads),
    method("/shipreid.v1.TrainingJobs/CancelTrainingJob", Unary, TRAIN, Changes),
    method("/shipreid.v1.TrainingJobs/ResumeTrainingJob", Unary, TRAIN, Changes),
    method("/shipreid.v1.TrainingJobs/DeleteTrainingJob", Unary, TRAIN, Changes),
    // What can be imported into a gallery can be uploaded; a model is imported by an admin, who may upload as well.
    method("/shipreid.v1.Uploads/CreateUpload", Unary, ENROL, Changes),
    method("/shipreid.v1.Uploads/AppendToUpload", Unary, ENROL, Changes),
    method("/shipreid.v1.Uploads/GetUpload", Unary, ENROL, Reads),
    method("/shipreid.v1.Uploads/ListUploads", Unary, ENROL, Reads),
    method("/shipreid.v1.Uploads/DeleteUpload", Unary, ENROL, Changes),
    health("/grpc.health.v1.Health/Check", Unary),
    health("/grpc.health.v1.Health/Watch", Streaming),
    look("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
    look("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
];

/// What a call to an unknown method counts as, so that strangers cannot invent label values. It is answered with
/// UNIMPLEMENTED, to callers with a key.
const UNKNOWN: Method = method("/unknown/unknown", Unary, AnyKey, Reads);

impl Method {
    /// The method of a request's path, or the unknown one.
    pub fn of(path: &str) -> Self {
        METHODS.iter().find(|method| method.path == path).copied().unwrap_or(UNKNOWN)
    }

    pub fn service(self) -> &'static str {
        self.names().0
    }

    /// The role of the servers that serve it; `None` if all do that have what it needs.
    pub fn role(self) -> Option<ServerRole> {
        match self.names() {
            ("shipreid.v1.ShipReId", "Embed" | "EmbedStream") => Some(ServerRole::Encode),
            ("shipreid.v1.ShipReId", "Match") | ("shipreid.v1.Galleries", _) => Some(ServerRole::Match),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        self.path[1..].split_once('/').expect("every path of the table is /service/name")
    }
}

impl Access {
    /// Whether a key with these roles is sufficient.
    pub fn is_granted_to(self, roles: Roles) -> bool {
        match self {
            Self::Open | Self::AnyKey => true,
            Self::OneOf(enough) => enough.iter().any(|role| roles.allow(*role)),
        }
    }
}

/// The services of the contract, each once.
pub fn services() -> impl Iterator<Item = &'static str> {
    let services = METHODS.chunk_by(|one, next| one.service() == next.service()).map(|methods| methods[0]);
    services.filter(|method| method.kind == Kind::Ordinary).map(Method::service)
}

const fn method(path: &'static str, shape: Shape, access: Access, effect: Effect) -> Method {
    Method { path, shape, access, effect, kind: Kind::Ordinary }
}

/// Orchestrators and load balancers have no keys.
const fn health(path: &'static str, shape: Shape) -> Method {
    Method { path, shape, access: Open, effect: Reads, kind: Kind::Health }
}

const fn look(path: &'static str) -> Method {
    Method { path, shape: Streaming, access: AnyKey, effect: Reads, kind: Kind::Look }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// The paths of everything that is served, and whether they stream.
    fn served() -> BTreeMap<String, bool> {
        let mut served = BTreeMap::new();
        for encoded in [
            crate::wire::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            for file in FileDescriptorSet::decode(encoded).expect("a descriptor set").file {
                for service in &file.service {
                    for method in &service.method {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        served.insert(path, method.client_streaming() || method.server_streaming());
                    }
                }
            }
        }
        served
    }

    #[test]
    fn the_table_is_what_the_descriptors_say_each_method_once_and_with_its_streams() {
        let listed: BTreeMap<String, bool> =
            METHODS.iter().map(|method| (method.path.to_owned(), method.shape == Shape::Streaming)).collect();
        assert_eq!(listed, served());
        assert_eq!(listed.len(), METHODS.len());
    }

    #[test]
    fn only_health_is_open() {
        for method in METHODS.iter().chain([&UNKNOWN]) {
            let is_health = method.service() == "grpc.health.v1.Health";
            assert_eq!(method.access == Open, is_health, "{method:?}");
            assert_eq!(method.kind == Kind::Health, is_health, "{method:?}");
            let is_reflection = method.service().starts_with("grpc.reflection.");
            assert_eq!(method.kind == Kind::Look, is_reflection, "{method:?}");
        }
    }

    #[test]
    fn only_methods_that_are_served_become_labels() {
        let embed = Method::of("/shipreid.v1.ShipReId/Embed");
        assert_eq!((embed.service(), embed.name()), ("shipreid.v1.ShipReId", "Embed"));
        assert_eq!((UNKNOWN.service(), UNKNOWN.name()), ("unknown", "unknown"));
        for path in ["/shipreid.v1.ShipReId/Sink", "/grpc.health.v1.Health/Sink", "/x/y", "", "/", "//"] {
            assert_eq!(Method::of(path), UNKNOWN, "{path}");
        }
    }

    #[test]
    fn the_services_are_those_of_the_contract() {
        let expected = ["ShipReId", "Galleries", "Models", "TrainingJobs", "Uploads"];
        assert!(services().eq(expected.map(|name| format!("shipreid.v1.{name}"))));
    }
}
