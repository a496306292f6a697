//! Re-ranking with k-reciprocal encoding (Zhong et al., 2017, section 3), in f64 throughout.

use super::distance::{Distances, squared_distance};

/// The paper's k1, k2 and lambda.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RerankSettings {
    /// Neighbours that must be mutual.
    pub k1: usize,
    /// Neighbours whose encodings are averaged, including the image itself.
    pub k2: usize,
    /// Weight of the original distance in the result.
    pub lambda: f64,
}

impl Default for RerankSettings {
    fn default() -> Self {
        Self { k1: 50, k2: 15, lambda: 0.3 }
    }
}

/// Distances between queries and gallery that also take into account whether two images have the
/// same neighbours.
///
/// All vectors have the same length; the reference normalises them first. Time and memory are quadratic in
/// their number.
pub fn rerank<V: AsRef<[f32]>>(queries: &[V], gallery: &[V], settings: &RerankSettings) -> Distances {
    let all: Vec<&[f32]> = queries.iter().chain(gallery).map(AsRef::as_ref).collect();
    let distances = Normalised::between(&all);
    let near: Vec<Vec<usize>> = (0..all.len()).map(|image| distances.nearest(image, settings)).collect();
    let encodings: Vec<Encoding> =
        (0..all.len()).map(|image| encoding(image, &distances, &near, settings.k1)).collect();
    let encodings: Vec<Encoding> =
        near.iter().map(|near| averaged(&near[..settings.k2.clamp(1, near.len())], &encodings)).collect();
    let mut values = Vec::with_capacity(queries.len() * gallery.len());
    let (asking, searched) = encodings.split_at(queries.len());
    for (query, encoding) in asking.iter().enumerate() {
        let dense = encoding.dense(all.len());
        for (image, encoding) in searched.iter().enumerate() {
            let jaccard = jaccard_distance(&dense, encoding);
            let original = distances.at(query, queries.len() + image);
            values.push((jaccard * (1.0 - settings.lambda) + original * settings.lambda) as f32);
        }
    }
    Distances::new(gallery.len(), values)
}

/// Squared distances of all pairs, each row divided by its largest.
struct Normalised {
    images: usize,
    squared: Vec<f32>,
    /// By row.
    largest: Vec<f64>,
}

impl Normalised {
    fn between(all: &[&[f32]]) -> Self {
        let images = all.len();
        let mut squared = vec![0.0; images * images];
        for a in 0..images {
            for b in a + 1..images {
                let distance = squared_distance(all[a], all[b]);
                squared[a * images + b] = distance;
                squared[b * images + a] = distance;
            }
        }
        let largest = |row: &[f32]| f64::from(row.iter().copied().fold(0.0, f32::max)).max(f64::MIN_POSITIVE);
        let largest = squared.chunks(images.max(1)).map(largest).collect();
        Self { images, squared, largest }
    }

    fn row(&self, image: usize) -> &[f32] {
        &self.squared[image * self.images..][..self.images]
    }

    fn at(&self, image: usize, other: usize) -> f64 {
        f64::from(self.row(image)[other]) / self.largest[image]
    }

    /// As many of the nearest images, nearest first, as any step needs; ties are ordered by position.
    fn nearest(&self, image: usize, settings: &RerankSettings) -> Vec<usize> {
        let row = self.row(image);
        let before = |a: &usize, b: &usize| row[*a].total_cmp(&row[*b]).then(a.cmp(b));
        let mut order: Vec<usize> = (0..row.len()).collect();
        let count = (settings.k1 + 1).max(settings.k2);
        if count < order.len() {
            order.select_nth_unstable_by(count, before);
            order.truncate(count);
        }
        order.sort_unstable_by(before);
        order
    }
}

/// Those among the first `k` + 1 neighbours of `image` that have `image` among theirs.
fn reciprocal(image: usize, near: &[Vec<usize>], k: usize) -> Vec<usize> {
    let first = |image: usize| &near[image][..(k + 1).min(near[image].len())];
    first(image).iter().copied().filter(|other| first(*other).contains(&image)).collect()
}

/// Weights of an image's neighbours; all others have weight 0.
struct Encoding {
    /// By ascending image, without zeros.
    weights: Vec<(usize, f64)>,
}

impl Encoding {
    fn dense(&self, images: usize) -> Vec<f64> {
        let mut dense = vec![0.0; images];
        self.weights.iter().for_each(|(image, weight)| dense[*image] = *weight);
        dense
    }
}

/// exp(-d) on the expanded reciprocal neighbours, normalised to sum 1.
fn encoding(image: usize, distances: &Normalised, near: &[Vec<usize>], k1: usize) -> Encoding {
    let neighbours = reciprocal(image, near, k1);
    let mut belongs = vec![false; near.len()];
    // No image is nearer to an image than itself, but more than k1 duplicates may be equally near.
    belongs[image] = neighbours.is_empty();
    neighbours.iter().for_each(|neighbour| belongs[*neighbour] = true);
    let mut expanded = belongs.clone();
    for neighbour in &neighbours {
        let theirs = reciprocal(*neighbour, near, half(k1));
        let common = theirs.iter().filter(|other| belongs[**other]).count();
        if 3 * common > 2 * theirs.len() {
            theirs.iter().for_each(|other| expanded[*other] = true);
        }
    }
    let members = (0..near.len()).filter(|other| expanded[*other]);
    let mut weights: Vec<(usize, f64)> =
        members.map(|other| (other, (-distances.at(image, other)).exp())).collect();
    let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
    weights.iter_mut().for_each(|(_, weight)| *weight /= sum);
    Encoding { weights }
}

/// k / 2, with halves rounded to even as in the reference's language.
fn half(k: usize) -> usize {
    (k as f64 / 2.0).round_ties_even() as usize
}

/// The mean of the encodings of some images.
fn averaged(images: &[usize], encodings: &[Encoding]) -> Encoding {
    let mut sums = vec![0.0; encodings.len()];
    for image in images {
        encodings[*image].weights.iter().for_each(|(other, weight)| sums[*other] += weight);
    }
    let weights = sums.into_iter().enumerate().filter(|(_, sum)| *sum > 0.0);
    Encoding { weights: weights.map(|(image, sum)| (image, sum / images.len() as f64)).collect() }
}

/// 1 - |a and b| / |a or b| for weights that sum to 1.
fn jaccard_distance(a: &[f64], b: &Encoding) -> f64 {
    let common: f64 = b.weights.iter().map(|(image, weight)| weight.min(a[*image])).sum();
    1.0 - common / (2.0 - common)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_duplicates_has_distances() {
        let duplicates = vec![vec![0.6_f32, 0.8]; 40];
        let settings = RerankSettings { k1: 5, k2: 3, lambda: 0.3 };
        let distances = rerank(&duplicates[..1], &duplicates[1..], &settings);
        assert!(distances.rows().flatten().all(|distance| (0.0..=1.0).contains(distance)));
        let alone = rerank(&duplicates[..1], &duplicates[1..2], &settings);
        assert_eq!(alone.rows().flatten().copied().collect::<Vec<_>>(), [0.0]);
    }
}
