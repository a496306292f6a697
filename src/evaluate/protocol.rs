//! Which images of a test set take part as queries and as gallery.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::distance::squared_distances;
use super::score::{Scores, score_rankings};
use crate::chip::Modality;
use crate::embedding::Embedding;

/// Standard deviations, on 165 real chips, of the log ratio of one ship's widths and of its
/// lengths, SAR to optical.
const WIDTH_DEVIATION: f64 = 0.168;
const LENGTH_DEVIATION: f64 = 0.073;

/// All images against all, or within or across modalities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    All,
    OpticalToSar,
    SarToOptical,
    OpticalToOptical,
}

/// An image's identity and modality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelledImage {
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
    pub fn asks(self, query: LabelledImage) -> bool {
        match self {
            Self::All => true,
            Self::OpticalToSar | Self::OpticalToOptical => query.modality == Modality::Optical,
            Self::SarToOptical => query.modality == Modality::Sar,
        }
    }

    /// Whether a gallery image takes part.
    pub fn searches(self, image: LabelledImage) -> bool {
        match self {
            Self::All => true,
            Self::OpticalToSar => image.modality == Modality::Sar,
            Self::SarToOptical | Self::OpticalToOptical => image.modality == Modality::Optical,
        }
    }
}

/// The score of a ranking in one protocol.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub protocol: &'static str,
    pub queries: usize,
    pub queries_with_a_match: usize,
    #[serde(rename = "mAP")]
    pub mean_average_precision: f64,
    /// Share of counted queries with a hit among the first 1, 5 and 10.
    #[serde(rename = "R1")]
    pub hit_within_1: f64,
    #[serde(rename = "R5")]
    pub hit_within_5: f64,
    #[serde(rename = "R10")]
    pub hit_within_10: f64,
}

impl Summary {
    pub fn of(protocol: Protocol, scores: &Scores) -> Self {
        Self {
            protocol: protocol.name(),
            queries: scores.average_precisions.len(),
            queries_with_a_match: scores.counted(),
            mean_average_precision: scores.mean_average_precision,
            hit_within_1: scores.hit_within(1),
            hit_within_5: scores.hit_within(5),
            hit_within_10: scores.hit_within(10),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The rankings of the images that take part in a protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// Indices of the queries.
    pub queries: Vec<usize>,
    /// For each query, indices of the searched gallery images, best first.
    pub rankings: Vec<Vec<usize>>,
    pub scores: Scores,
}

/// Ranks and scores the images that take part; `None` where no query or no gallery image does.
///
/// `rank` returns, for each of the given queries, a ranking by index of the whole given gallery.
pub fn rank<T>(
    protocol: Protocol,
    queries: &[(LabelledImage, T)],
    gallery: &[(LabelledImage, T)],
    rank: impl Fn(&[&T], &[&T]) -> Vec<Vec<usize>>,
) -> Option<Ranked> {
    let asking = part(queries, |image| protocol.asks(image));
    let searched = part(gallery, |image| protocol.searches(image));
    if asking.is_empty() || searched.is_empty() {
        return None;
    }
    let rankings = rank(&features(queries, &asking), &features(gallery, &searched));
    let scores = score_rankings(&rankings, &identities(queries, &asking), &identities(gallery, &searched));
    let in_gallery = |ranking: Vec<usize>| ranking.into_iter().map(|place| searched[place]).collect();
    Some(Ranked { rankings: rankings.into_iter().map(in_gallery).collect(), queries: asking, scores })
}

/// [`rank`] by distance.
pub fn rank_by_distance(
    protocol: Protocol,
    queries: &[(LabelledImage, Embedding)],
    gallery: &[(LabelledImage, Embedding)],
) -> Option<Ranked> {
    rank(protocol, queries, gallery, |queries, gallery| squared_distances(queries, gallery).rankings())
}

/// [`rank`] by width and height in metres only: the baseline for a model. The distance is the sum of the
/// squared log ratios, each divided by its standard deviation.
pub fn evaluate_by_size(
    protocol: Protocol,
    queries: &[(LabelledImage, [f64; 2])],
    gallery: &[(LabelledImage, [f64; 2])],
) -> Option<Scores> {
    let ranked = rank(protocol, queries, gallery, |queries, gallery| {
        let standardised = |sizes: &[&[f64; 2]]| -> Vec<[f32; 2]> {
            let standardise = |[width, height]: [f64; 2]| {
                [(width.ln() / WIDTH_DEVIATION) as f32, (height.ln() / LENGTH_DEVIATION) as f32]
            };
            sizes.iter().map(|size| standardise(**size)).collect()
        };
        squared_distances(&standardised(queries), &standardised(gallery)).rankings()
    });
    ranked.map(|ranked| ranked.scores)
}

/// Indices of the images that take part.
fn part<T>(images: &[(LabelledImage, T)], takes_part: impl Fn(LabelledImage) -> bool) -> Vec<usize> {
    (0..images.len()).filter(|index| takes_part(images[*index].0)).collect()
}

fn features<'a, T>(images: &'a [(LabelledImage, T)], part: &[usize]) -> Vec<&'a T> {
    part.iter().map(|index| &images[*index].1).collect()
}

fn identities<T>(images: &[(LabelledImage, T)], part: &[usize]) -> Vec<i64> {
    part.iter().map(|index| images[*index].0.identity).collect()
}

/// If the text does not name a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a protocol is all, o2s, s2o or o2o")]
pub struct UnknownProtocol;

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        Self::EVERY.into_iter().find(|protocol| protocol.name() == text).ok_or(UnknownProtocol)
    }
}
