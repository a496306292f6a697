//! Where a model came from and how good it is: stored with the model, but not part of its identity.

use serde::{Deserialize, Serialize};

use crate::durable::{seal_text, unseal_text};
use crate::embedding::{DigestError, ModelDigest};
use crate::evaluate::Evaluation;
use crate::gallery::Time;

/// The file's name in a model's folder.
pub const PROVENANCE: &str = "provenance.toml";
/// Limit in bytes; a training's configuration is the largest part of a provenance.
pub const PROVENANCE_BYTES_MAX: u64 = 1 << 20;
/// Changes when an older program could misread a provenance.
const FORMAT: u32 = 1;

/// What is known of a model's history.
#[derive(Clone, Debug, PartialEq)]
pub struct Provenance {
    /// A file's name, or the job that trained it.
    pub origin: String,
    /// The tenant of the job that trained it. `None`: it was not trained here, or an earlier release trained it.
    pub tenant: Option<String>,
    /// The model that its training started from.
    pub parent: Option<ModelDigest>,
    /// The configuration of its training, as TOML.
    pub configuration: Option<String>,
    /// Names the data that it was trained on.
    pub data_fingerprint: Option<String>,
    /// How well it ranked a test set after epochs of its training.
    pub evaluations: Vec<Evaluation>,
    /// Seconds since 1970, UTC.
    pub created_at: u64,
}

/// Why a text is not a provenance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProvenanceError {
    #[error("it is no provenance: {0}")]
    Malformed(String),
    #[error("it has format {0}; this program reads format {FORMAT}")]
    Format(u32),
    #[error("its parent is malformed: {0}")]
    Parent(#[from] DigestError),
}

/// The content of `provenance.toml`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    origin: String,
    created_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    evaluations: Vec<Evaluation>,
}

impl Provenance {
    /// Of a model made now about which nothing else is known.
    pub fn now(origin: impl Into<String>) -> Self {
        let (created_at, _) = Time::now().unix();
        Self {
            origin: origin.into(),
            tenant: None,
            parent: None,
            configuration: None,
            data_fingerprint: None,
            evaluations: Vec::new(),
            created_at: created_at.unsigned_abs(),
        }
    }

    /// A substitute for one that cannot be read.
    pub fn lost(cause: &str) -> Self {
        Self { created_at: 0, ..Self::now(format!("unknown ({cause})")) }
    }

    /// As it is written to disk.
    pub fn to_toml(&self) -> String {
        let Self { origin, tenant, parent, configuration, data_fingerprint, evaluations, created_at } =
            self.clone();
        let parent = parent.map(|parent| parent.to_string());
        let written = Written {
            format: FORMAT,
            origin,
            created_at,
            tenant,
            parent,
            data_fingerprint,
            configuration,
            evaluations,
        };
        seal_text(&toml::to_string(&written).expect("a provenance is a table"))
    }

    /// # Errors
    /// The text is not a provenance, or has another format.
    pub fn from_toml(text: &str) -> Result<Self, ProvenanceError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let malformed = |cause: toml::de::Error| ProvenanceError::Malformed(cause.message().to_owned());
        let text = unseal_text(text).map_err(|cause| ProvenanceError::Malformed(cause.to_string()))?;
        let Format { format } = toml::from_str(text).map_err(malformed)?;
        if format != FORMAT {
            return Err(ProvenanceError::Format(format));
        }
        let written: Written = toml::from_str(text).map_err(malformed)?;
        Ok(Self {
            origin: written.origin,
            tenant: written.tenant,
            parent: written.parent.as_deref().map(str::parse).transpose()?,
            configuration: written.configuration,
            data_fingerprint: written.data_fingerprint,
            evaluations: written.evaluations,
            created_at: written.created_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provenance_reads_what_it_writes() {
        let bare = Provenance { created_at: 1_700_000_000, ..Provenance::now("ckpt.pth") };
        let full = Provenance {
            parent: Some(ModelDigest::new([0xab; 32])),
            tenant: Some("harbour watch".to_owned()),
            configuration: Some("seed = 1\n[data]\nroot = \"a \\\"b\\\"\"\n".to_owned()),
            data_fingerprint: Some("sha256:12".to_owned()),
            evaluations: vec![Evaluation {
                protocol: "o2s".to_owned(),
                epoch: 3,
                mean_average_precision: 0.123_456_789_012_345_6,
                hit_within_1: 0.5,
                hit_within_5: 1.0,
                hit_within_10: 1.0,
                queries_with_a_match: 7,
            }],
            ..bare.clone()
        };
        for provenance in [bare, full] {
            assert_eq!(Provenance::from_toml(&provenance.to_toml()), Ok(provenance));
        }
    }

    #[test]
    fn what_is_no_provenance_is_refused() {
        let sealed = Provenance::now("x").to_toml();
        let changed = sealed.replace("\"x\"", "\"y\"");
        assert!(matches!(Provenance::from_toml(&changed), Err(ProvenanceError::Malformed(_))));
        let text = unseal_text(&sealed).expect("sealed");
        let later = text.replace("format = 1", "format = 2");
        assert_eq!(Provenance::from_toml(&later), Err(ProvenanceError::Format(2)));
        let parent = format!("{text}parent = \"12\"\n");
        assert_eq!(Provenance::from_toml(&parent), Err(ProvenanceError::Parent(DigestError)));
        for malformed in ["", "format = \"1\"", &format!("{text}more = 1"), "junk"] {
            assert!(matches!(Provenance::from_toml(malformed), Err(ProvenanceError::Malformed(_))));
        }
    }
}
