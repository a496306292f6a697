//! A gallery that is built in the database without a name, and named once it is complete.

use std::fmt;
use std::sync::Arc;

use super::PostgresCatalog;
use crate::cancellation::Cancellation;
use crate::gallery::catalog::{CatalogError, DraftError, DraftRow, GalleryDraft, GalleryName};
use crate::gallery::embedded::{Allowance, NewRow, SealedRow, sealed_about};
use crate::gallery::entry::{EntryId, Time};
use crate::gallery::index::RowId;
use crate::gallery::postgres::rows::{EntryColumns, insert_chips, insert_vectors};
use crate::gallery::store::{About, Gallery, StoreError};
use crate::postgres::{Transaction, execute, query};

/// Rows and bytes that are written together.
const ROWS_MAX: usize = 500;
const BYTES_MAX: u64 = 8 << 20;
/// A draft that nobody adds to any more is swept.
const DRAFT_LIFE: &str = "1 hour";

pub struct PostgresDraft {
    catalog: PostgresCatalog,
    tenant: String,
    name: GalleryName,
    /// `None` until it is known what the gallery is made for.
    begun: Option<(i64, About)>,
    rows: Vec<NewRow>,
    pending_bytes: u64,
    entries: u64,
    bytes: u64,
    allowance: Arc<Allowance>,
}

impl PostgresDraft {
    pub fn new(catalog: PostgresCatalog, tenant: &str, name: GalleryName) -> Self {
        let allowance = catalog.allowance(tenant);
        Self {
            catalog,
            tenant: tenant.to_owned(),
            name,
            begun: None,
            rows: vec![],
            pending_bytes: 0,
            entries: 0,
            bytes: 0,
            allowance,
        }
    }

    fn write(&mut self) -> Result<(), DraftError> {
        let rows = std::mem::take(&mut self.rows);
        self.pending_bytes = 0;
        let ids: Vec<EntryId> = rows.iter().map(|row| row.id().clone()).collect();
        let rows: Vec<SealedRow> = rows.into_iter().map(NewRow::into_sealed).collect();
        let (id, about) = self.begun.as_ref().expect("it is begun before its rows come");
        let (id, generation) = (*id, about.generation);
        let database = self.catalog.database();
        let twice = database.wait(async {
            let transaction = Transaction::begin(database, "begin").await?;
            let mut entries = EntryColumns::default();
            for row in &rows {
                entries.push(row.row, &row.record)?;
            }
            let ids: Vec<&str> = ids.iter().map(EntryId::as_str).collect();
            let taken = "select entry_id from entries where gallery = $1 and entry_id = any ($2) limit 1";
            let taken = query!(transaction, taken, id => INT8, ids => TEXT_ARRAY)?;
            if let Some(row) = taken.first() {
                return Ok(Some(row.get::<_, String>(0)));
            }
            entries.insert(&transaction, id, 1).await?;
            let vectors = rows.iter().map(|row| (generation, row.row, row.vector.as_slice()));
            insert_vectors(&transaction, id, 1, vectors).await?;
            let chips = rows.iter().filter_map(|row| Some((row.row, row.chip.as_deref()?)));
            insert_chips(&transaction, id, chips).await?;
            let alive =
                format!("update galleries set expires_at = now() + interval '{DRAFT_LIFE}' where id = $1");
            if execute!(transaction, &alive, id => INT8)? == 0 {
                return Err(StoreError::Closed);
            }
            transaction.commit().await?;
            Ok(None)
        });
        match twice.map_err(CatalogError::from)? {
            None => Ok(()),
            Some(id) => Err(DraftError::Twice(EntryId::new(&id).map_err(|_| CatalogError::Failed)?)),
        }
    }
}

impl GalleryDraft for PostgresDraft {
    fn begin(&mut self, about: About) -> Result<(), CatalogError> {
        let database = self.catalog.database();
        let (tenant, sealed, now) = (self.tenant.clone(), sealed_about(&about), Time::now().nanos());
        let id = database.wait(async {
            let sql = format!(
                "insert into galleries
                (tenant, about, commit, committed_at, next_row, bytes, entries, expires_at)
                values ($1, $2, 1, $3, 0, 0, 0, now() + interval '{DRAFT_LIFE}') returning id"
            );
            let connection = database.connection().await?;
            let rows = query!(connection, &sql, tenant => TEXT, sealed => BYTEA, now => INT8)?;
            rows.first().map(|row| row.get::<_, i64>(0)).ok_or(StoreError::Closed)
        })?;
        self.begun = Some((id, about));
        Ok(())
    }

    fn check_room(&self, bytes: u64) -> Result<(), CatalogError> {
        Ok(self.allowance.check(bytes)?)
    }

    fn add(&mut self, row: DraftRow) -> Result<(), DraftError> {
        let limit = self.catalog.quotas().entries_per_gallery;
        if self.entries >= limit {
            return Err(CatalogError::from(StoreError::EntriesFull { limit }).into());
        }
        let new = NewRow::new(row);
        if let Some(before) = self.rows.iter().find(|before| before.id() == new.id()) {
            return Err(DraftError::Twice(before.id().clone()));
        }
        self.allowance.take(new.bytes()).map_err(CatalogError::from)?;
        self.bytes += new.bytes();
        self.pending_bytes += new.bytes();
        self.entries += 1;
        self.rows.push(new);
        if self.rows.len() >= ROWS_MAX || self.pending_bytes >= BYTES_MAX { self.write() } else { Ok(()) }
    }

    fn finish(
        mut self: Box<Self>,
        next_row: RowId,
        cancellation: &Cancellation,
    ) -> Result<Gallery, DraftError> {
        if !self.rows.is_empty() {
            self.write()?;
        }
        cancellation.check().map_err(CatalogError::from)?;
        let (id, _) = self.begun.as_ref().expect("it is begun before it is finished");
        let (id, bytes, entries) = (*id, self.bytes, self.entries);
        self.catalog.name_draft(&self.tenant, &self.name, id, [next_row.0, bytes, entries])?;
        self.begun = None;
        // From here on the gallery counts them.
        self.allowance.give_back(std::mem::take(&mut self.bytes));
        Ok(self.catalog.open_named(&self.tenant, &self.name, id)?)
    }
}

/// What it wrote is left to the sweeper, which finds it at once.
impl Drop for PostgresDraft {
    fn drop(&mut self) {
        self.allowance.give_back(self.bytes);
        if let Some((id, _)) = self.begun.take() {
            self.catalog.discard(id);
        }
    }
}

impl fmt::Debug for PostgresDraft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresDraft")
            .field("tenant", &self.tenant)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
