//! Which server embeds a gallery's chips for the model that galleries move to: one at a time, by a lease in the database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use super::PostgresCatalog;
use crate::embedding::ModelDigest;
use crate::gallery::catalog::Place;
use crate::gallery::store::StoreError;
use crate::metrics;
use crate::postgres::{execute, query};

/// Galleries that this server held when it last asked for them.
#[derive(Debug, Default)]
pub(super) struct HeldMoves(Mutex<BTreeSet<i64>>);

/// Another model ends the leases of those who embed for the one before. Whoever announces the active one is right, whenever
/// it does; a server that follows late changes nothing.
const TURN: &str = "
with turned as (
    update shipreid set target = $1
    where target is distinct from $1 and (target is null or active = $1 or $2 and active is null) returning 1)
delete from moves where exists (select from turned)";

/// Of each tenant one gallery: one that the server holds already, or else the first that nobody holds.
const CLAIM: &str = "
insert into moves (gallery, server, held_until)
select free.id, $2, now() + interval '30 seconds' from (
    select distinct on (g.tenant) g.id from galleries g left join moves m on m.gallery = g.id
    where g.id = any ($3) and g.name is not null
        and (m.gallery is null or m.server = $2 or m.held_until < now())
    order by g.tenant, m.server is distinct from $2, g.id) as free
where exists (select from shipreid where target = $1)
on conflict (gallery) do update set server = excluded.server, held_until = excluded.held_until
    where moves.server = excluded.server or moves.held_until < now()
returning gallery";

/// Those that another server holds now, for the same model.
const TAKEN: &str = "
select gallery from moves where gallery = any ($3) and server <> $2 and held_until >= now()
    and exists (select from shipreid where target = $1)";

impl PostgresCatalog {
    /// See [`move_to`](crate::gallery::CatalogStore::move_to).
    pub(super) async fn turn_moves(&self, model: ModelDigest, is_new: bool) -> Result<(), StoreError> {
        let turned = self.database().run(move |connection| async move {
            execute!(connection, TURN, model.as_bytes().as_slice() => BYTEA, is_new => BOOL)
        });
        turned.await?;
        Ok(())
    }

    /// See [`claim_moves`](crate::gallery::CatalogStore::claim_moves).
    pub(super) async fn held_moves(
        &self,
        model: ModelDigest,
        wanted: &[Place],
    ) -> Result<Vec<Place>, StoreError> {
        let mut wanted = self.numbered(wanted);
        let held_before = self.0.moves.among(wanted.keys());
        let (server, ids) = (self.0.server.clone(), wanted.keys().copied().collect::<Vec<_>>());
        let asked = self.database().run(move |connection| async move {
            let target = model.as_bytes().as_slice();
            let claimed = query!(connection, CLAIM, target => BYTEA, server => TEXT, ids => INT8_ARRAY)?;
            let claimed: BTreeSet<i64> = claimed.iter().map(|row| row.get(0)).collect();
            let missed: Vec<i64> = held_before.difference(&claimed).copied().collect();
            let taken = if missed.is_empty() {
                vec![]
            } else {
                query!(connection, TAKEN, target => BYTEA, server => TEXT, missed => INT8_ARRAY)?
            };
            let taken: Vec<i64> = taken.iter().map(|row| row.get(0)).collect();
            Ok::<_, StoreError>((claimed, taken))
        });
        let (claimed, taken) = asked.await?;
        for gallery in taken {
            metrics::lease_lost();
            tracing::warn!(gallery, %model, "another server re-embeds this gallery now, since the lease ran out");
        }
        self.0.moves.replace(wanted.keys(), &claimed);
        wanted.retain(|id, _| claimed.contains(id));
        Ok(wanted.into_values().collect())
    }

    /// Those that are open, by their numbers.
    fn numbered(&self, places: &[Place]) -> BTreeMap<i64, Place> {
        let state = self.state();
        let numbered = places.iter().filter_map(|place| Some((*state.numbers.get(place)?, place.clone())));
        numbered.collect()
    }
}

impl HeldMoves {
    fn among<'i>(&self, ids: impl Iterator<Item = &'i i64>) -> BTreeSet<i64> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ids.copied().filter(|id| held.contains(id)).collect()
    }

    /// Of `ids`, only `claimed` are held from now on.
    fn replace<'i>(&self, ids: impl Iterator<Item = &'i i64>, claimed: &BTreeSet<i64>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            held.remove(id);
        }
        held.extend(claimed);
    }
}
