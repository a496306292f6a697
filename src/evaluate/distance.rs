//! Distances between every query and every gallery image.

/// `[queries, gallery]`, row by row; smaller is more similar.
#[derive(Clone, Debug, PartialEq)]
pub struct Distances {
    columns: usize,
    values: Vec<f32>,
}

/// Keeps arccos away from the points where its slope is infinite.
const COSINE_MARGIN: f32 = 1e-5;

impl Distances {
    /// # Panics
    /// If `values` does not consist of whole rows of `columns` values.
    pub fn new(columns: usize, values: Vec<f32>) -> Self {
        assert!(columns > 0 && values.len().is_multiple_of(columns), "distances are whole rows");
        Self { columns, values }
    }

    /// Gallery images.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The distances of one query at a time.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.columns)
    }

    /// The gallery in each query's order, most similar first; ties are ordered by position in the gallery.
    pub fn rankings(&self) -> Vec<Vec<usize>> {
        self.rows().map(ranking).collect()
    }
}

/// Indices of `distances` in ascending order; ties keep their order.
fn ranking(distances: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..distances.len()).collect();
    order.sort_by(|a, b| distances[*a].partial_cmp(&distances[*b]).unwrap_or(std::cmp::Ordering::Equal));
    order
}

/// |q - g|^2 for every pair of vectors of one length.
pub fn squared_distances<Q: AsRef<[f32]>, G: AsRef<[f32]>>(queries: &[Q], gallery: &[G]) -> Distances {
    each_pair(queries, gallery, squared_distance)
}

/// |a - b|^2, summed in f64.
pub(super) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    /// Independent partial sums.
    const LANES: usize = 8;
    let square = |a: f32, b: f32| (f64::from(a) - f64::from(b)).powi(2);
    let mut sums = [0.0_f64; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        (0..LANES).for_each(|lane| sums[lane] += square(a[lane], b[lane]));
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| square(*a, *b)).sum();
    (sums.iter().sum::<f64>() + rest) as f32
}

/// Angle between unit vectors in radians, to the precision of f32 near 0 and pi.
pub fn angles<Q: AsRef<[f32]>, G: AsRef<[f32]>>(queries: &[Q], gallery: &[G]) -> Distances {
    each_pair(queries, gallery, |q, g| {
        let cosine: f32 = q.iter().zip(g).map(|(q, g)| q * g).sum();
        cosine.clamp(COSINE_MARGIN - 1.0, 1.0 - COSINE_MARGIN).acos()
    })
}

fn each_pair<Q: AsRef<[f32]>, G: AsRef<[f32]>>(
    queries: &[Q],
    gallery: &[G],
    distance: impl Fn(&[f32], &[f32]) -> f32,
) -> Distances {
    let row = |q: &Q| -> Vec<f32> { gallery.iter().map(|g| distance(q.as_ref(), g.as_ref())).collect() };
    Distances::new(gallery.len(), queries.iter().flat_map(row).collect())
}
