//! Which images of a test set take part as queries and as gallery.

use std::fmt;
use std::str::FromStr;

use super::distance::squared_distances;
use super::rerank::{RerankSettings, rerank};
use super::score::{Scores, score};
use crate::chip::Modality;
use crate::embedding::Embedding;

/// Everything against everything, or across and within modalities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    All,
    OpticalToSar,
    SarToOptical,
    OpticalToOptical,
}

/// An image's identity and modality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub identity: i64,
    pub modality: Modality,
}

impl Protocol {
    pub const EVERY: [Self; 4] = [Self::All, Self::OpticalToSar, Self::SarToOptical, Self::OpticalToOptical];

    /// As on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::OpticalToSar => "o2s",
            Self::SarToOptical => "s2o",
            Self::OpticalToOptical => "o2o",
        }
    }

    /// Whether a query takes part.
    pub fn asks(self, query: Seen) -> bool {
        match self {
            Self::All => true,
            Self::OpticalToSar | Self::OpticalToOptical => query.modality == Modality::Optical,
            Self::SarToOptical => query.modality == Modality::Sar,
        }
    }

    /// Whether a gallery image takes part.
    pub fn searches(self, image: Seen) -> bool {
        match self {
            Self::All => true,
            Self::OpticalToSar => image.modality == Modality::Sar,
            Self::SarToOptical | Self::OpticalToOptical => image.modality == Modality::Optical,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Scores of the images that take part; `None` where no query or no gallery image does.
pub fn evaluate(
    protocol: Protocol,
    queries: &[(Seen, Embedding)],
    gallery: &[(Seen, Embedding)],
    reranking: Option<&RerankSettings>,
) -> Option<Scores> {
    let queries: Vec<_> = queries.iter().filter(|(seen, _)| protocol.asks(*seen)).collect();
    let gallery: Vec<_> = gallery.iter().filter(|(seen, _)| protocol.searches(*seen)).collect();
    if queries.is_empty() || gallery.is_empty() {
        return None;
    }
    let vectors = |images: &[&(Seen, Embedding)]| -> Vec<Vec<f32>> {
        images.iter().map(|(_, embedding)| embedding.as_slice().to_vec()).collect()
    };
    let (q, g) = (vectors(&queries), vectors(&gallery));
    let distances = match reranking {
        None => squared_distances(&q, &g),
        Some(settings) => rerank(&q, &g, settings),
    };
    let identities = |images: &[&(Seen, Embedding)]| -> Vec<i64> {
        images.iter().map(|(seen, _)| seen.identity).collect()
    };
    Some(score(&distances, &identities(&queries), &identities(&gallery)))
}

/// The text names no protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a protocol is all, o2s, s2o or o2o")]
pub struct UnknownProtocol;

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        Self::EVERY.into_iter().find(|protocol| protocol.name() == text).ok_or(UnknownProtocol)
    }
}
