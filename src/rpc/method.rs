//! The methods that this server knows, so that strangers cannot invent label values.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use prost_types::FileDescriptorSet;

/// One method of the contract, of health or of reflection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    pub service: &'static str,
    pub name: &'static str,
    pub shape: Shape,
}

/// Whether a path asks after the server's health: whoever does is let in whatever else is refused, so that a server
/// that is full, closed to strangers or shutting down can be watched.
pub fn is_health(path: &str) -> bool {
    path.starts_with("/grpc.health.")
}

/// How many messages go either way, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One request, one answer.
    Unary,
    /// The same, but what is begun goes on to its end, which nobody can foresee.
    Lengthy,
    Streaming,
}

/// Loading a model, warming it and moving galleries takes what it takes, and does not stop when its caller gives up.
const LENGTHY: [&str; 1] = ["/shipreid.v1.Models/ActivateModel"];

/// What a call to no method of ours counts as.
const UNKNOWN: Method = Method { service: "unknown", name: "unknown", shape: Shape::Unary };

/// Every method that is served, by its path.
#[derive(Clone, Debug)]
pub struct Methods(Arc<BTreeMap<String, Method>>);

impl Methods {
    /// The methods in encoded descriptor sets. Call it once: the names live as long as the process.
    ///
    /// # Panics
    /// When a descriptor set, which is part of this program, does not decode.
    pub fn of(descriptor_sets: &[&[u8]]) -> Self {
        let mut methods = BTreeMap::new();
        for encoded in descriptor_sets {
            let set = FileDescriptorSet::decode(*encoded).expect("an own descriptor set decodes");
            for file in &set.file {
                for described in &file.service {
                    let service: &str = format!("{}.{}", file.package(), described.name()).leak();
                    for method in &described.method {
                        let name: &str = method.name().to_owned().leak();
                        let path = format!("/{service}/{name}");
                        let shape = if method.client_streaming() || method.server_streaming() {
                            Shape::Streaming
                        } else if LENGTHY.contains(&path.as_str()) {
                            Shape::Lengthy
                        } else {
                            Shape::Unary
                        };
                        methods.insert(path, Method { service, name, shape });
                    }
                }
            }
        }
        Self(Arc::new(methods))
    }

    /// The method at a path, or `unknown`.
    pub fn find(&self, path: &str) -> Method {
        self.0.get(path).copied().unwrap_or(UNKNOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_served_methods_become_labels() {
        let methods = Methods::of(&[crate::wire::FILE_DESCRIPTOR_SET]);
        let embed = methods.find("/shipreid.v1.ShipReId/Embed");
        assert_eq!((embed.service, embed.name, embed.shape), ("shipreid.v1.ShipReId", "Embed", Shape::Unary));
        assert_eq!(methods.find("/shipreid.v1.ShipReId/Train").shape, Shape::Streaming);
        assert_eq!(methods.find("/shipreid.v1.Galleries/ImportGallery").shape, Shape::Streaming);
        LENGTHY.iter().for_each(|path| assert_eq!(methods.find(path).shape, Shape::Lengthy, "{path}"));
        for path in ["/shipreid.v1.ShipReId/Sink", "/x/y", "", "/", "//"] {
            assert_eq!(methods.find(path), UNKNOWN, "{path}");
        }
    }
}
