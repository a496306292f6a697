//! Queries: one image, a tracklet of several, or an enrolled entry.

use super::evidence::Outline;
use super::gate::GateQuery;
use crate::chip::Modality;
use crate::embedding::{Embedding, EmbeddingError};
use crate::gallery::{
    DetectionHash, Entry, EntryId, GalleryReader, Observation, RowId, SceneNumber, StoreError,
};
use crate::reason::Reason;

/// One query of a match.
#[derive(Clone, Debug, PartialEq)]
pub enum Query {
    Tracklet(Box<Tracklet>),
    /// An entry of the gallery, which is then excluded from its own matches.
    Enrolled(EntryId),
}

/// An image of a ship, and what else is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryImage {
    pub embedding: Embedding,
    /// `None`: unknown, as for an embedding that was passed in without it.
    pub modality: Option<Modality>,
    pub observation: Observation,
    /// Width and length of the chip in metres, if there was one.
    pub extent_m: Option<[f64; 2]>,
}

/// A ship shown by one image or several.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracklet {
    embedding: Embedding,
    modality: Option<Modality>,
    length_m: Option<f64>,
    width_m: Option<f64>,
    observations: Vec<Observation>,
}

/// Why one query has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QueryError {
    #[error("the gallery has no entry \"{0}\"")]
    UnknownEntry(EntryId),
    #[error("the embedding has {found} numbers, those of the gallery have {expected}")]
    Dimension { expected: usize, found: usize },
}

impl QueryError {
    /// Stable and suitable for programs.
    pub fn reason(&self) -> Reason {
        match self {
            Self::UnknownEntry(_) => Reason::EntryNotFound,
            Self::Dimension { .. } => Reason::DimensionMismatch,
        }
    }
}

impl Tracklet {
    /// Builds a tracklet: the mean of its embeddings, the geometric means of known lengths and widths, and all its
    /// positions and scenes. Its modality is known if all its images have the same one.
    ///
    /// # Errors
    /// There are no images, or their embeddings cancel each other out.
    ///
    /// # Panics
    /// The embeddings differ in dimension.
    pub fn new(images: Vec<QueryImage>) -> Result<Self, EmbeddingError> {
        let embeddings: Vec<Embedding> = images.iter().map(|image| image.embedding.clone()).collect();
        let first = images.first().and_then(|image| image.modality);
        let is_one = images.iter().all(|image| image.modality == first);
        Ok(Self {
            embedding: Embedding::mean(&embeddings)?,
            modality: first.filter(|_| is_one),
            length_m: geometric_mean(images.iter().filter_map(QueryImage::length_m)),
            width_m: geometric_mean(images.iter().filter_map(QueryImage::width_m)),
            observations: images.into_iter().map(|image| image.observation).collect(),
        })
    }

    pub fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    pub fn modality(&self) -> Option<Modality> {
        self.modality
    }

    /// `None` if the modality is unknown.
    pub(super) fn outline(&self) -> Option<Outline> {
        let (length_m, width_m) = (self.length_m, self.width_m);
        self.modality.map(|modality| Outline { modality, length_m, width_m })
    }

    /// Of an enrolled entry.
    fn enrolled(entry: Entry, embedding: Embedding) -> Self {
        Self {
            modality: Some(entry.modality),
            length_m: entry.length_m(),
            width_m: entry.width_m(),
            observations: vec![entry.observation],
            embedding,
        }
    }

    /// `scene_number` is that of a gallery.
    fn gate_query(
        &self,
        scene_number: impl Fn(&str) -> Option<SceneNumber>,
        row: Option<RowId>,
    ) -> GateQuery {
        let observations = || self.observations.iter();
        let detection = |observation: &Observation| {
            Some((scene_number(&observation.scene_id)?, DetectionHash::of(&observation.detection_id)))
        };
        GateQuery {
            places: observations().filter_map(|seen| seen.observed_at.zip(seen.position)).collect(),
            detections: observations().filter_map(detection).collect(),
            row,
        }
    }
}

impl QueryImage {
    fn length_m(&self) -> Option<f64> {
        self.observation.length_m.or(self.extent_m.map(|[_, length]| length))
    }

    fn width_m(&self) -> Option<f64> {
        self.observation.width_m.or(self.extent_m.map(|[width, _]| width))
    }
}

fn geometric_mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value.ln(), count + 1));
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

/// A query resolved against one state of a gallery.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resolved {
    pub tracklet: Tracklet,
    pub gate_query: GateQuery,
}

/// # Errors
/// The gallery cannot be read. Errors of the query itself are in the inner result.
pub(super) fn resolve(
    gallery: &dyn GalleryReader,
    query: &Query,
) -> Result<Result<Resolved, QueryError>, StoreError> {
    let (tracklet, row) = match query {
        Query::Tracklet(tracklet) => (Tracklet::clone(tracklet), None),
        Query::Enrolled(id) => {
            let Some(row) = gallery.find(id)? else { return Ok(Err(QueryError::UnknownEntry(id.clone()))) };
            (Tracklet::enrolled(gallery.entry(row)?, gallery.embedding(row)?), Some(row))
        }
    };
    let (expected, found) = (gallery.about().dimension, tracklet.embedding.dimension());
    if expected != found {
        return Ok(Err(QueryError::Dimension { expected, found }));
    }
    let gate_query = tracklet.gate_query(|scene| gallery.scene_number(scene), row);
    Ok(Ok(Resolved { tracklet, gate_query }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gallery::{Position, Time};

    fn image(feature: [f32; 2], modality: Option<Modality>, length_m: Option<f64>) -> QueryImage {
        QueryImage {
            embedding: Embedding::from_feature(feature.to_vec()).expect("a direction"),
            modality,
            observation: Observation { length_m, ..Observation::default() },
            extent_m: Some([20.0, 100.0]),
        }
    }

    #[test]
    fn a_tracklet_is_the_middle_of_its_images() {
        let optical = Some(Modality::Optical);
        let tracklet =
            Tracklet::new(vec![image([1.0, 0.0], optical, Some(400.0)), image([0.0, 1.0], optical, None)]);
        let outline = tracklet.expect("a tracklet").outline().expect("a modality");
        assert!((outline.length_m.expect("known") - 200.0).abs() < 1e-9, "observed 400, and a chip of 100");
        assert!((outline.width_m.expect("known") - 20.0).abs() < 1e-9);
        let mixed = vec![image([1.0, 0.0], optical, None), image([0.0, 1.0], Some(Modality::Sar), None)];
        assert_eq!(Tracklet::new(mixed).expect("a tracklet").modality(), None);
        let opposed = vec![image([1.0, 0.0], optical, None), image([-1.0, 0.0], optical, None)];
        assert_eq!(Tracklet::new(opposed), Err(EmbeddingError::Cancelled));
        assert_eq!(Tracklet::new(vec![]), Err(EmbeddingError::Empty));
    }

    #[test]
    fn only_images_with_time_and_place_are_somewhere() {
        let mut images = vec![image([1.0, 0.0], None, None); 3];
        let place = Position::new(1.0, 2.0, 3.0).expect("a place");
        images[0].observation.observed_at = Some(Time::from_nanos(1));
        images[1].observation.position = Some(place);
        images[2].observation.observed_at = Some(Time::from_nanos(3));
        images[2].observation.position = Some(place);
        let gate_query = Tracklet::new(images).expect("a tracklet").gate_query(|_| None, None);
        assert_eq!(gate_query.places, [(Time::from_nanos(3), place)]);
    }
}
