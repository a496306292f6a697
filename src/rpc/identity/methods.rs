//! Every method of this server: who may call it, and whether it changes anything. The only such table.

use crate::keys::{Role, Roles};

/// Who may call a method once there are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without a key.
    Open,
    /// Whoever has a key.
    AnyKey,
    /// Whoever has one of these roles, or is an admin.
    OneOf(&'static [Role]),
}

/// What a method does to what the server keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Reads,
    /// Every call is audited.
    Changes,
}

/// One method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// As it stands in a request's path.
    pub path: &'static str,
    pub access: Access,
    pub effect: Effect,
}

use Access::{AnyKey, OneOf, Open};
use Effect::{Changes, Reads};

const EMBED: Access = OneOf(&[Role::Embed]);
const MATCH: Access = OneOf(&[Role::Match]);
/// Whoever searches a gallery or changes it sees what is in it.
const LOOK: Access = OneOf(&[Role::Match, Role::Enrol]);
const ENROL: Access = OneOf(&[Role::Enrol]);
const TRAIN: Access = OneOf(&[Role::Train]);
const ADMIN: Access = OneOf(&[Role::Admin]);

/// Sorted as the contract is.
const METHODS: &[Method] = &[
    method("/shipreid.v1.ShipReId/Embed", EMBED, Reads),
    method("/shipreid.v1.ShipReId/EmbedStream", EMBED, Reads),
    method("/shipreid.v1.ShipReId/Match", MATCH, Reads),
    method("/shipreid.v1.ShipReId/Train", TRAIN, Changes),
    method("/shipreid.v1.Galleries/CreateGallery", ENROL, Changes),
    method("/shipreid.v1.Galleries/GetGallery", LOOK, Reads),
    method("/shipreid.v1.Galleries/ListGalleries", LOOK, Reads),
    method("/shipreid.v1.Galleries/DeleteGallery", ADMIN, Changes),
    method("/shipreid.v1.Galleries/Enroll", ENROL, Changes),
    method("/shipreid.v1.Galleries/GetEntries", LOOK, Reads),
    method("/shipreid.v1.Galleries/ListEntries", LOOK, Reads),
    method("/shipreid.v1.Galleries/ListVessels", LOOK, Reads),
    method("/shipreid.v1.Galleries/DeleteEntries", ENROL, Changes),
    method("/shipreid.v1.Galleries/UpdateEntries", ENROL, Changes),
    method("/shipreid.v1.Galleries/MergeVessels", ENROL, Changes),
    method("/shipreid.v1.Galleries/ExportGallery", ENROL, Reads),
    method("/shipreid.v1.Galleries/ImportGallery", ENROL, Changes),
    method("/shipreid.v1.Models/ListModels", AnyKey, Reads),
    method("/shipreid.v1.Models/GetModel", AnyKey, Reads),
    method("/shipreid.v1.Models/ImportModel", ADMIN, Changes),
    // Models are the server's, not a tenant's: whoever takes one away takes what others may have trained.
    method("/shipreid.v1.Models/ExportModel", ADMIN, Reads),
    method("/shipreid.v1.Models/ActivateModel", ADMIN, Changes),
    method("/shipreid.v1.Models/DeleteModel", ADMIN, Changes),
    method("/shipreid.v1.TrainingJobs/GetTrainingJob", TRAIN, Reads),
    method("/shipreid.v1.TrainingJobs/ListTrainingJobs", TRAIN, Reads),
    method("/shipreid.v1.TrainingJobs/WatchTrainingJob", TRAIN, Reads),
    method("/shipreid.v1.TrainingJobs/CancelTrainingJob", TRAIN, Changes),
    method("/shipreid.v1.TrainingJobs/ResumeTrainingJob", TRAIN, Changes),
    method("/shipreid.v1.TrainingJobs/DeleteTrainingJob", TRAIN, Changes),
    // Orchestrators and load balancers have no keys.
    method("/grpc.health.v1.Health/Check", Open, Reads),
    method("/grpc.health.v1.Health/Watch", Open, Reads),
    method("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", AnyKey, Reads),
    method("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", AnyKey, Reads),
];

/// What is not in the table is answered UNIMPLEMENTED, to callers with a key.
const UNKNOWN: Method = method("unknown", AnyKey, Reads);

impl Method {
    /// The method of a request's path.
    pub fn of(path: &str) -> Self {
        METHODS.iter().find(|method| method.path == path).copied().unwrap_or(UNKNOWN)
    }
}

impl Access {
    /// Whether a key with these roles is enough.
    pub fn is_granted_to(self, roles: Roles) -> bool {
        match self {
            Self::Open | Self::AnyKey => true,
            Self::OneOf(enough) => enough.iter().any(|role| roles.allow(*role)),
        }
    }
}

const fn method(path: &'static str, access: Access, effect: Effect) -> Method {
    Method { path, access, effect }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_method_that_is_served_is_in_the_table_once_and_nothing_else_is() {
        let mut served = BTreeSet::new();
        for encoded in crate::rpc::DESCRIPTORS {
            for file in FileDescriptorSet::decode(encoded).expect("a descriptor set").file {
                for service in &file.service {
                    let path = |name| format!("/{}.{}/{name}", file.package(), service.name());
                    served.extend(service.method.iter().map(|method| path(method.name())));
                }
            }
        }
        let listed: BTreeSet<String> = METHODS.iter().map(|method| method.path.to_owned()).collect();
        assert_eq!(listed, served);
        assert_eq!(listed.len(), METHODS.len());
    }

    #[test]
    fn only_health_is_open() {
        let open = METHODS.iter().filter(|method| method.access == Open);
        assert!(open.into_iter().all(|method| method.path.starts_with("/grpc.health.v1.Health/")));
        assert_eq!(Method::of("/shipreid.v1.ShipReId/Sink").access, AnyKey);
    }
}
