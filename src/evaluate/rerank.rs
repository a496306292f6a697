//! Re-ranking with k-reciprocal encoding (Zhong et al., 2017, section 3), in f64 throughout.

use super::distance::{Distances, ranking, squared_distances};

/// The paper's k1, k2 and lambda.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RerankSettings {
    /// Neighbours that must be each other's.
    pub k1: usize,
    /// Neighbours whose encodings are averaged, the image itself included.
    pub k2: usize,
    /// Share of the original distance in the result.
    pub lambda: f64,
}

impl Default for RerankSettings {
    fn default() -> Self {
        Self { k1: 50, k2: 15, lambda: 0.3 }
    }
}

/// Distances between queries and gallery that also ask whether two images have the same neighbours.
///
/// All vectors have one length; the reference normalises them first. Takes time and memory of the square of their
/// number.
pub fn rerank<V: AsRef<[f32]>>(queries: &[V], gallery: &[V], settings: &RerankSettings) -> Distances {
    let all: Vec<&[f32]> = queries.iter().chain(gallery).map(AsRef::as_ref).collect();
    let distances = normalised_distances(&all);
    let rankings: Vec<Vec<usize>> = distances.iter().map(|row| ranking(row)).collect();
    let encodings: Vec<Vec<f64>> =
        (0..all.len()).map(|image| encoding(image, &distances[image], &rankings, settings.k1)).collect();
    let encodings = averaged(&encodings, &rankings, settings.k2);
    let mut values = Vec::with_capacity(queries.len() * gallery.len());
    for query in 0..queries.len() {
        for image in queries.len()..all.len() {
            let jaccard = jaccard_distance(&encodings[query], &encodings[image]);
            let mixed = jaccard * (1.0 - settings.lambda) + distances[query][image] * settings.lambda;
            values.push(mixed as f32);
        }
    }
    Distances::new(gallery.len(), values)
}

/// Squared distances of all pairs, each row divided by its largest.
fn normalised_distances(all: &[&[f32]]) -> Vec<Vec<f64>> {
    let rows = squared_distances(all, all);
    rows.rows()
        .map(|row| {
            let largest = f64::from(row.iter().copied().fold(0.0, f32::max)).max(f64::MIN_POSITIVE);
            row.iter().map(|distance| f64::from(*distance) / largest).collect()
        })
        .collect()
}

/// Those among the first `k` + 1 neighbours of `image` that have it among theirs.
fn reciprocal(image: usize, rankings: &[Vec<usize>], k: usize) -> Vec<usize> {
    let near = |image: usize| &rankings[image][..(k + 1).min(rankings.len())];
    near(image).iter().copied().filter(|other| near(*other).contains(&image)).collect()
}

/// Weights over all images: exp(-d) on the expanded reciprocal neighbours, of sum 1.
fn encoding(image: usize, distances: &[f64], rankings: &[Vec<usize>], k1: usize) -> Vec<f64> {
    let neighbours = reciprocal(image, rankings, k1);
    let mut belongs = vec![false; rankings.len()];
    neighbours.iter().for_each(|neighbour| belongs[*neighbour] = true);
    for neighbour in &neighbours {
        let theirs = reciprocal(*neighbour, rankings, half(k1));
        let common = theirs.iter().filter(|other| neighbours.contains(other)).count();
        if 3 * common > 2 * theirs.len() {
            theirs.iter().for_each(|other| belongs[*other] = true);
        }
    }
    let weight = |other: usize| if belongs[other] { (-distances[other]).exp() } else { 0.0 };
    let weights: Vec<f64> = (0..distances.len()).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// k / 2, a half rounded to even as the reference's language does.
fn half(k: usize) -> usize {
    (k as f64 / 2.0).round_ties_even() as usize
}

/// Every encoding replaced by the mean of those of its first `k2` neighbours.
fn averaged(encodings: &[Vec<f64>], rankings: &[Vec<usize>], k2: usize) -> Vec<Vec<f64>> {
    rankings
        .iter()
        .map(|ranking| {
            let near = &ranking[..k2.clamp(1, ranking.len())];
            let mut mean = vec![0.0; ranking.len()];
            for image in near {
                mean.iter_mut().zip(&encodings[*image]).for_each(|(sum, weight)| *sum += weight);
            }
            mean.iter_mut().for_each(|sum| *sum /= near.len() as f64);
            mean
        })
        .collect()
}

/// 1 - |a and b| / |a or b| for weights of sum 1.
fn jaccard_distance(a: &[f64], b: &[f64]) -> f64 {
    let common: f64 = a.iter().zip(b).map(|(a, b)| a.min(*b)).sum();
    1.0 - common / (2.0 - common)
}
