//! Evaluates a learner on images from which it does not learn.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::dataset::{Image, Pair};
use super::fit_error::FitError;
use super::learn::Learner;
use super::loader::in_order;
use super::ranked_lists::{Extent, RankedLists};
use super::source::read_chip;
use crate::chip::{Chip, ChipForm, Resampling};
use crate::embedding::Embedding;
use crate::evaluate::{LabelledImage, Protocol, Summary, rank_by_distance};
use crate::matching::{Labelled, Outline};

/// Images per forward pass.
const BATCH: usize = 16;
/// Which of the results to show.
const SAMPLE: Extent = Extent { queries: 6, ranks: 6 };

/// Queries and the gallery in which to find them.
#[derive(Clone, Debug, PartialEq)]
pub struct Validation {
    queries: Vec<Image>,
    gallery: Vec<Image>,
    form: ChipForm,
}

/// What a learner sees in an image.
struct Embedded {
    embedding: Embedding,
    /// Width and length.
    extent_m: [f64; 2],
}

/// The evaluation of a learner.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidationScores {
    /// Every protocol with participating images, [`Protocol::All`] first.
    pub summaries: Vec<Summary>,
    /// The rankings of [`Protocol::All`].
    pub sample: Option<RankedLists>,
}

impl Validation {
    pub fn new(queries: Vec<Image>, gallery: Vec<Image>, form: ChipForm) -> Self {
        Self { queries, gallery, form }
    }

    /// Every pair's SAR image is a query for its own optical image among those of all pairs.
    pub fn of_pairs(pairs: &[Pair], form: ChipForm) -> Self {
        let numbered = |image: &Image, number: usize| Image { identity: number as i64, ..image.clone() };
        let pairs = pairs.iter().enumerate();
        let (queries, gallery) = pairs
            .map(|(number, pair)| (numbered(&pair.sar, number), numbered(&pair.optical, number)))
            .unzip();
        Self { queries, gallery, form }
    }

    /// The images of ships other than these.
    pub fn without(&self, identities: &BTreeSet<i64>) -> Self {
        let others = |images: &[Image]| -> Vec<Image> {
            images.iter().filter(|image| !identities.contains(&image.identity)).cloned().collect()
        };
        Self { queries: others(&self.queries), gallery: others(&self.gallery), form: self.form }
    }

    pub fn is_empty(&self) -> bool {
        self.images().next().is_none()
    }

    /// Queries first.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.queries.iter().chain(&self.gallery)
    }

    /// All images, as a calibrator is fitted on them.
    ///
    /// # Errors
    /// If an image cannot be read or the learner fails.
    pub fn labelled(&self, learner: &mut impl Learner, loaders: usize) -> Result<Vec<Labelled>, FitError> {
        let mut labelled = Vec::new();
        for images in [&self.queries, &self.gallery] {
            let embedded = self.embed(images, learner, loaders)?;
            labelled.extend(images.iter().zip(embedded).map(|(image, Embedded { embedding, extent_m })| {
                let [width_m, length_m] = extent_m.map(Some);
                Labelled {
                    identity: image.known_identity(),
                    embedding,
                    outline: Outline { modality: image.modality(), length_m, width_m },
                }
            }));
        }
        Ok(labelled)
    }

    /// Ranks the gallery for every query.
    ///
    /// # Errors
    /// If an image cannot be read or the learner fails.
    pub fn evaluate(&self, learner: &mut impl Learner, loaders: usize) -> Result<ValidationScores, FitError> {
        let mut embed = |images: &[Image]| -> Result<Vec<(LabelledImage, Embedding)>, FitError> {
            let embedded = self.embed(images, learner, loaders)?.into_iter();
            let labelled =
                |image: &Image| LabelledImage { identity: image.identity, modality: image.modality() };
            Ok(images.iter().map(labelled).zip(embedded.map(|embedded| embedded.embedding)).collect())
        };
        let (queries, gallery) = (embed(&self.queries)?, embed(&self.gallery)?);
        let mut found = ValidationScores { summaries: Vec::new(), sample: None };
        for protocol in Protocol::EVERY {
            let Some(ranked) = rank_by_distance(protocol, &queries, &gallery) else { continue };
            found.summaries.push(Summary::of(protocol, &ranked.scores));
            if protocol == Protocol::All {
                found.sample = Some(RankedLists::of(&ranked, &self.queries, &self.gallery, SAMPLE));
            }
        }
        Ok(found)
    }

    /// In the order of the images.
    fn embed(
        &self,
        images: &[Image],
        learner: &mut impl Learner,
        loaders: usize,
    ) -> Result<Vec<Embedded>, FitError> {
        let read = |image: &Image| read_chip(image, self.form, Resampling::Bilinear);
        let parts: Vec<&[Image]> = images.chunks(BATCH).collect();
        let mut embedded = Vec::with_capacity(images.len());
        let flow = in_order(
            &parts,
            loaders,
            |part| part.iter().map(read).collect::<Result<Vec<Chip>, _>>(),
            |chips| {
                let done = chips.map_err(FitError::Data).and_then(|chips| {
                    let extents: Vec<[f64; 2]> = chips.iter().map(Chip::extent_m).collect();
                    Ok((extents, learner.embed(&chips).map_err(FitError::Learn)?))
                });
                match done {
                    Ok((extents, embeddings)) => embedded.extend(
                        embeddings
                            .into_iter()
                            .zip(extents)
                            .map(|(embedding, extent_m)| Embedded { embedding, extent_m }),
                    ),
                    Err(cause) => return ControlFlow::Break(cause),
                }
                ControlFlow::Continue(())
            },
        );
        match flow {
            ControlFlow::Break(cause) => Err(cause),
            ControlFlow::Continue(()) => Ok(embedded),
        }
    }
}
