//! CMC and mAP. No gallery image is excluded: one with the query's identity and modality counts as a hit.

use super::distance::Distances;

/// Maximum number of ranks in the curve.
const RANKS_MAX: usize = 50;

/// The score of a set of rankings.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Share of counted queries with a hit among the first k + 1.
    pub cmc: Vec<f64>,
    /// Mean of the average precisions of the counted queries.
    pub mean_average_precision: f64,
    /// `None` for a query whose identity the gallery lacks; such a query does not count.
    pub average_precisions: Vec<Option<f64>>,
}

impl Scores {
    /// Share of counted queries with a hit among the first `rank`, which counts from 1.
    pub fn hit_within(&self, rank: usize) -> f64 {
        let place = rank.min(self.cmc.len()).saturating_sub(1);
        self.cmc.get(place).copied().unwrap_or(0.0)
    }

    /// Queries that count.
    pub fn counted(&self) -> usize {
        self.average_precisions.iter().flatten().count()
    }
}

/// Scores rankings by ascending distance against identities; NaN where no query counts.
///
/// # Panics
/// If identities and distances differ in number.
pub fn score<I: PartialEq>(distances: &Distances, queries: &[I], gallery: &[I]) -> Scores {
    assert_eq!((distances.rows().len(), distances.columns()), (queries.len(), gallery.len()));
    score_rankings(&distances.rankings(), queries, gallery)
}

/// Scores rankings, each of the whole gallery by index, best first; NaN where no query counts.
///
/// # Panics
/// If there is not exactly one ranking per query.
pub fn score_rankings<I: PartialEq>(rankings: &[Vec<usize>], queries: &[I], gallery: &[I]) -> Scores {
    assert_eq!(rankings.len(), queries.len());
    let ranks = RANKS_MAX.min(gallery.len());
    let mut first_hits = vec![0_usize; ranks];
    let mut average_precisions = Vec::with_capacity(queries.len());
    for (ranking, identity) in rankings.iter().zip(queries) {
        let hits: Vec<usize> = ranking
            .iter()
            .enumerate()
            .filter(|(_, g)| gallery[**g] == *identity)
            .map(|(rank, _)| rank)
            .collect();
        if let Some(first) = hits.first()
            && let Some(count) = first_hits.get_mut(*first)
        {
            *count += 1;
        }
        average_precisions.push(average_precision(&hits));
    }
    let counted = average_precisions.iter().flatten().count() as f64;
    let mut within = 0;
    let cmc = first_hits.iter().map(|first| {
        within += first;
        within as f64 / counted
    });
    Scores {
        cmc: cmc.collect(),
        mean_average_precision: average_precisions.iter().flatten().sum::<f64>() / counted,
        average_precisions,
    }
}

/// Mean over the hits of hits so far / rank; `hits` are ranks from 0.
fn average_precision(hits: &[usize]) -> Option<f64> {
    let precisions = hits.iter().enumerate().map(|(before, rank)| (before + 1) as f64 / (rank + 1) as f64);
    (!hits.is_empty()).then(|| precisions.sum::<f64>() / hits.len() as f64)
}
