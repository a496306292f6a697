//! Evaluates a learner on images from which it does not learn.

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

    /// Ranks the gallery for every query.
    ///
    /// # Errors
    /// If an image cannot be read or the learner fails.
    pub fn evaluate(&self, learner: &mut impl Learner, loaders: usize) -> Result<ValidationScores, FitError> {
        let queries = self.embed(&self.queries, learner, loaders)?;
        let gallery = self.embed(&self.gallery, learner, loaders)?;
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

    fn embed(
        &self,
        images: &[Image],
        learner: &mut impl Learner,
        loaders: usize,
    ) -> Result<Vec<(LabelledImage, Embedding)>, FitError> {
        let read = |image: &Image| read_chip(image, self.form, Resampling::Bilinear);
        let parts: Vec<&[Image]> = images.chunks(BATCH).collect();
        let mut embedded = Vec::with_capacity(images.len());
        let flow = in_order(
            &parts,
            loaders,
            |part| part.iter().map(read).collect::<Result<Vec<Chip>, _>>(),
            |chips| {
                let done = chips
                    .map_err(FitError::Data)
                    .and_then(|chips| learner.embed(&chips).map_err(FitError::Learn));
                match done {
                    Ok(embeddings) => embedded.extend(embeddings),
                    Err(cause) => return ControlFlow::Break(cause),
                }
                ControlFlow::Continue(())
            },
        );
        let labelled = |image: &Image| LabelledImage { identity: image.identity, modality: image.modality() };
        match flow {
            ControlFlow::Break(cause) => Err(cause),
            ControlFlow::Continue(()) => Ok(images.iter().map(labelled).zip(embedded).collect()),
        }
    }
}
