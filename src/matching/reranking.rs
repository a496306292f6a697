//! Ranking by k-reciprocal re-ranking of the best entries.

use std::collections::{HashMap, HashSet};

use super::plan::Ranking;
use super::session::{GatedQuery, Ranked, Session};
use crate::evaluate::{Distances, RerankSettings, rerank};
use crate::gallery::{Group, Hit, RowId, StoreError};

/// Re-ranks the best `depth` entries of each query; the others follow by cosine. A vessel is ranked by its first entry.
///
/// # Errors
/// The gallery cannot be read.
pub(super) fn rank_reranked(
    session: &Session,
    gated_queries: &[GatedQuery],
    depth: usize,
) -> Result<Vec<Ranked>, StoreError> {
    let entries = session.search(gated_queries, depth, Group::Entry)?;
    let beyond = session.search(gated_queries, session.depth(), session.plan.group)?;
    let mut distances: HashMap<Vec<RowId>, Distances> = HashMap::new();
    let mut ranked = Vec::with_capacity(gated_queries.len());
    for (number, (entries, beyond)) in entries.into_iter().zip(beyond).enumerate() {
        let mut rows: Vec<RowId> = entries.hits.iter().map(|hit| hit.row).collect();
        rows.sort_unstable();
        if !rows.is_empty() && !distances.contains_key(&rows) {
            distances.insert(rows.clone(), measure(session, gated_queries, &rows)?);
        }
        let near = distances.get(&rows).map(|distances| near(&rows, distances, number));
        let horizon = session.horizon(&beyond.hits, session.depth());
        let mut hits = [reordered(entries.hits, &near.unwrap_or_default()), beyond.hits].concat();
        keep_firsts(&mut hits, session.plan.group);
        if session.calibrator.is_none() {
            hits.truncate(session.depth());
        }
        let contenders = session.weigh(&gated_queries[number], &hits)?;
        ranked.push(Ranked::exact(Ranking::Reranked { depth }, contenders, horizon));
    }
    Ok(ranked)
}

/// Distances of every query from the entries in `rows`.
fn measure(session: &Session, gated_queries: &[GatedQuery], rows: &[RowId]) -> Result<Distances, StoreError> {
    let vectors = rows.iter().map(|row| session.gallery.embedding(*row));
    let vectors = vectors.collect::<Result<Vec<_>, StoreError>>()?;
    let gallery: Vec<&[f32]> = vectors.iter().map(|vector| vector.as_slice()).collect();
    let queries: Vec<&[f32]> =
        gated_queries.iter().map(|gated| gated.resolved.tracklet.embedding().as_slice()).collect();
    session.cancellation.check()?;
    Ok(rerank(&queries, &gallery, &RerankSettings::default()))
}

/// Distance of each row from one query.
fn near(rows: &[RowId], distances: &Distances, query: usize) -> HashMap<RowId, f32> {
    let distances = distances.rows().nth(query).into_iter().flatten();
    rows.iter().copied().zip(distances.copied()).collect()
}

/// The nearest first; equals keep their order.
fn reordered(mut hits: Vec<Hit>, near: &HashMap<RowId, f32>) -> Vec<Hit> {
    hits.sort_by(|a, b| near[&a.row].total_cmp(&near[&b.row]));
    hits
}

/// Keeps the first hit of every vessel, or of every entry.
fn keep_firsts(hits: &mut Vec<Hit>, group: Group) {
    let (mut vessels, mut rows) = (HashSet::new(), HashSet::new());
    hits.retain(|hit| match group {
        Group::Vessel => vessels.insert(hit.vessel),
        Group::Entry => rows.insert(hit.row),
    });
}
