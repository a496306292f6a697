//! Ranking by an ensemble: the exact ranked lists of its members, fused by weighted reciprocal rank (Cormack, Clarke and
//! Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods", SIGIR 2009).

use std::collections::HashMap;
use std::hash::Hash;

use super::plan::Ranking;
use super::session::{GatedQuery, Ranked, Session};
use crate::embedding::{Composition, MEMBERS_MAX};
use crate::gallery::{Group, Hit, IndexQuery, RowId, StoreError, VesselNumber, cosine};

/// One rank after the fusion.
#[derive(Clone, Debug, PartialEq)]
pub struct FusedRank<K> {
    pub key: K,
    /// The sum over the members of weight / (k + rank), with ranks from 1.
    pub score: f64,
    /// The first member that contributes most to it.
    pub member: usize,
    /// From 0, in that member's list.
    pub rank: usize,
}

/// Fuses the lists of an ensemble's members, each best first and of distinct keys, of which the first `depth` count.
///
/// Of equal scores, the one comes first that is ranked higher by the first member that ranks them differently.
pub fn fuse_ranks<K: Copy + Eq + Hash>(lists: &[Vec<K>], composition: &Composition) -> Vec<FusedRank<K>> {
    const ABSENT: usize = usize::MAX;
    let mut known: HashMap<K, (f64, [usize; MEMBERS_MAX])> = HashMap::new();
    let parts = composition.parts();
    for (member, (list, part)) in lists.iter().zip(parts).enumerate() {
        for (rank, key) in list.iter().take(composition.depth()).enumerate() {
            let (score, ranks) = known.entry(*key).or_insert((0.0, [ABSENT; MEMBERS_MAX]));
            *score += contribution(part.weight, rank, composition);
            ranks[member] = rank;
        }
    }
    let mut fused: Vec<_> = known.into_iter().collect();
    fused.sort_by(|(_, (a, a_ranks)), (_, (b, b_ranks))| b.total_cmp(a).then(a_ranks.cmp(b_ranks)));
    let most = |ranks: [usize; MEMBERS_MAX]| {
        let of_members = ranks.into_iter().zip(parts).enumerate().filter(|(_, (rank, _))| *rank != ABSENT);
        let contributions = of_members
            .map(|(member, (rank, part))| (member, rank, contribution(part.weight, rank, composition)));
        let most = contributions.reduce(|most, next| if next.2 > most.2 { next } else { most });
        most.expect("a key is from some list")
    };
    let ranked = fused.into_iter().map(|(key, (score, ranks))| {
        let (member, rank, _) = most(ranks);
        FusedRank { key, score, member, rank }
    });
    ranked.collect()
}

/// Of a rank from 0.
fn contribution(weight: f64, rank: usize, composition: &Composition) -> f64 {
    weight / (f64::from(composition.k()) + (rank + 1) as f64)
}

/// What the lists of a search rank.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Vessel(VesselNumber),
    Entry(RowId),
}

/// Ranks by reciprocal rank. The gates and the filter have removed candidates before the members rank the others.
///
/// # Errors
/// The gallery cannot be read.
pub(super) fn rank_by_members(
    session: &Session,
    gated_queries: &[GatedQuery],
    composition: &Composition,
) -> Result<Vec<Ranked>, StoreError> {
    let vectors = |gated: &GatedQuery| composition.unit_parts(gated.resolved.tracklet.embedding().as_slice());
    let vectors: Vec<Vec<Vec<f32>>> = gated_queries.iter().map(vectors).collect();
    let queries = gated_queries.iter().zip(&vectors).flat_map(|(gated, vectors)| {
        vectors.iter().enumerate().map(move |(part, vector)| {
            // A member for which the query has no direction ranks nothing: all rows would be equal to it.
            let has_direction = vector.iter().any(|value| *value != 0.0);
            let query = gated.index_query(if has_direction { composition.depth() } else { 0 });
            IndexQuery { vector, part, ..query }
        })
    });
    let queries: Vec<IndexQuery> = queries.collect();
    let (group, members) = (session.plan.group, composition.parts().len());
    let found = session.gallery.search(&queries, &session.selection, group, session.cancellation)?;
    let lists: Vec<Vec<Hit>> = found.into_iter().map(|found| found.hits).collect();
    let of_queries = gated_queries.iter().zip(lists.chunks(members));
    of_queries.map(|(gated, lists)| fuse_lists(session, gated, lists, composition)).collect()
}

fn fuse_lists(
    session: &Session,
    gated: &GatedQuery,
    lists: &[Vec<Hit>],
    composition: &Composition,
) -> Result<Ranked, StoreError> {
    let key = |hit: &Hit| match session.plan.group {
        Group::Vessel => Key::Vessel(hit.vessel),
        Group::Entry => Key::Entry(hit.row),
    };
    let keys: Vec<Vec<Key>> = lists.iter().map(|hits| hits.iter().map(key).collect()).collect();
    let mut fused = fuse_ranks(&keys, composition);
    fused.truncate(session.depth());
    let query = gated.resolved.tracklet.embedding().as_slice();
    // A vessel is represented by the entry that earned it the most, whose similarity is that of whole vectors.
    let hits = fused.iter().map(|fused| {
        let hit = lists[fused.member][fused.rank];
        let embedding = session.gallery.embedding(hit.row)?;
        Ok(Hit { cosine: cosine(query, embedding.as_slice()), ..hit })
    });
    let hits = hits.collect::<Result<Vec<Hit>, StoreError>>()?;
    let mut contenders = session.weigh(gated, &hits)?;
    contenders.iter_mut().zip(&fused).for_each(|(contender, fused)| contender.score = fused.score);
    Ok(Ranked::exact(Ranking::ReciprocalRank, contenders, vec![]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedding::Part;

    fn composition(weights: [f64; 2], depth: u32) -> Composition {
        Composition::new(&weights.map(|weight| Part { dimension: 1, weight }), 3, depth).expect("an ensemble")
    }

    fn order(fused: &[FusedRank<char>]) -> String {
        fused.iter().map(|fused| fused.key).collect()
    }

    #[test]
    fn reciprocal_ranks_are_added_by_weight() {
        let lists = [vec!['a', 'b', 'c'], vec!['c', 'd', 'a']];
        let fused = fuse_ranks(&lists, &composition([1.0, 0.5], 100));
        assert_eq!(order(&fused), "acbd");
        let expected = [1.0 / 4.0 + 0.5 / 6.0, 1.0 / 6.0 + 0.5 / 4.0, 1.0 / 5.0, 0.5 / 5.0];
        assert_eq!(fused.iter().map(|fused| fused.score).collect::<Vec<_>>(), expected);
        assert_eq!((fused[1].member, fused[1].rank), (0, 2), "1/6 is more than half of 1/4");
        assert_eq!((fused[3].member, fused[3].rank), (1, 1));
    }

    #[test]
    fn ranks_beyond_the_depth_count_nothing() {
        let lists = [vec!['a', 'b', 'c'], vec!['c', 'b', 'a']];
        assert_eq!(order(&fuse_ranks(&lists, &composition([1.0, 1.0], 1))), "ac");
        assert_eq!(fuse_ranks(&lists, &composition([1.0, 1.0], 2)).len(), 3);
    }

    #[test]
    fn of_equal_scores_the_first_member_decides() {
        let lists = [vec!['b', 'a'], vec!['a', 'b']];
        assert_eq!(order(&fuse_ranks(&lists, &composition([1.0, 1.0], 100))), "ba");
        assert_eq!(order(&fuse_ranks(&[vec![], vec!['a', 'b']], &composition([1.0, 1.0], 100))), "ab");
    }
}
