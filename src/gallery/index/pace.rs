//! Measures how fast this machine searches, before the first real search.

use std::time::Instant;

use super::{Code, Group, Index, IndexQuery, RowId, VesselSet};
use crate::chip::Modality;
use crate::gallery::entry::{ContentHash, Entry, EntryId, Labels, Observation, Time};
use crate::gallery::filter::Filter;

/// Rows to search: more than the fastest caches hold.
const ROWS: u64 = 2048;
const DIMENSION: usize = 256;
/// The fastest of this many runs counts, since other work may have used the processor.
const TRIES: usize = 3;

/// Seconds that a search takes for each code of a row, measured on a small index.
pub fn search_pace() -> f64 {
    let (mut index, entry) = (Index::new(DIMENSION), entry());
    for row in 0..ROWS {
        index.push(RowId(row), &Code::new(&direction(row)), &entry);
    }
    let (query, without_vessels) = (direction(ROWS), VesselSet::default());
    let query =
        IndexQuery { vector: &query, part: 0, k: 1, without_row: None, without_vessels: &without_vessels };
    let everything = index.select(&Filter::default(), None, &[]);
    let once = || {
        let begun = Instant::now();
        let read = |row: RowId, vector: &mut [f32]| {
            vector.copy_from_slice(&direction(row.0));
            Ok::<_, std::convert::Infallible>(())
        };
        let Ok(_) = index.search(&[query], &everything, Group::Entry, read);
        begun.elapsed().as_secs_f64()
    };
    let fastest = (0..TRIES).map(|_| once()).fold(f64::INFINITY, f64::min);
    fastest / (ROWS as f64 * DIMENSION as f64)
}

/// A distinct unit vector for each row.
fn direction(row: u64) -> Vec<f32> {
    let angle = |axis: usize| ((row + 1) * (axis as u64 + 7) % 1009) as f32 - 504.0;
    let values: Vec<f32> = (0..DIMENSION).map(angle).collect();
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.into_iter().map(|value| value / length).collect()
}

fn entry() -> Entry {
    Entry {
        id: EntryId::new("timed").expect("a name"),
        vessel: None,
        modality: Modality::Sar,
        observation: Observation::default(),
        labels: Labels::default(),
        extent_m: None,
        enrolled_at: Time::from_nanos(0),
        precision: None,
        content: ContentHash::new([0; 32]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_of_a_million_codes_takes_between_a_microsecond_and_minutes() {
        let pace = search_pace();
        assert!((1e-12..1e-4).contains(&pace), "{pace}");
    }
}
