//! Loads a copy of a gallery into a folder, or opens the one that is there.

use std::path::Path;
use std::sync::Arc;

use super::delta::{Head, row_of};
use super::journal::{PostgresJournal, head};
use crate::durable::{Folder, PartialFolder, discard_folder};
use crate::gallery::catalog::CatalogError;
use crate::gallery::embedded::{
    Bounds, EmbeddedGallery, EmbeddedSettings, GalleryBuilder, NewRow, SealedRow, Writer,
};
use crate::gallery::index::RowId;
use crate::gallery::store::StoreError;
use crate::postgres::{Database, Transaction, query};

/// Rows that are read at once.
const PAGE: i64 = 500;
/// The state that all pages are of. Reading millions of rows takes long.
const BEGIN: &str = "begin isolation level repeatable read read only; set local statement_timeout = '60s'";

/// Opens the copy in `folder`.
///
/// # Errors
/// There is none, or it cannot be used.
pub fn open_copy(
    folder: &Path,
    database: &Database,
    gallery: i64,
    bounds: Bounds,
    settings: &EmbeddedSettings,
) -> Result<Arc<EmbeddedGallery>, StoreError> {
    let journal = Box::new(PostgresJournal::new(database.clone(), gallery));
    let volume = Arc::new(Folder(folder.to_owned()));
    let writer = Writer::open(volume, bounds, Some(journal));
    let writer = writer.map_err(|cause| StoreError::Unreadable(cause.to_string()))?;
    EmbeddedGallery::start(writer, settings.queue).map_err(|cause| StoreError::Unreadable(cause.to_string()))
}

/// Replaces what is in `folder` with the gallery as it is in the database. Blocks the calling thread.
///
/// # Errors
/// The gallery is deleted, the database cannot be reached, or the folder cannot be written.
pub fn load_copy(
    folder: &Path,
    database: &Database,
    gallery: i64,
    cache_bytes: usize,
) -> Result<(), CatalogError> {
    let (transaction, head) = database.wait(async {
        let transaction = Transaction::begin(database, BEGIN).await?;
        let head = head(&transaction, gallery, "").await?;
        Ok::<_, StoreError>((transaction, head))
    })?;
    let partial = PartialFolder::new(folder)?;
    let Head { about, state, .. } = head;
    let volume = Folder(partial.path().to_owned());
    let generations = (about.generation as i64, about.shadow.map_or(-1, |shadow| shadow.generation as i64));
    let mut builder = GalleryBuilder::new(&volume, about, cache_bytes)?;
    let mut after = -1;
    loop {
        let rows = database.wait(page(&transaction, gallery, generations, after))?;
        let Some(last) = rows.last() else { break };
        after = last.row.0 as i64;
        for row in rows {
            builder.add(NewRow::of_sealed(row).map_err(StoreError::from)?)?;
        }
    }
    database.wait(transaction.roll_back())?;
    builder.finish_as(state)?;
    if folder.exists() {
        discard_folder(folder)?;
    }
    Ok(partial.publish()?)
}

async fn page(
    transaction: &Transaction,
    gallery: i64,
    generations: (i64, i64),
    after: i64,
) -> Result<Vec<SealedRow>, StoreError> {
    let sql = "select e.\"row\", e.record, v.vector, s.vector, c.chip from entries e
        left join vectors v on v.gallery = $1 and v.generation = $2 and v.\"row\" = e.\"row\"
        left join vectors s on s.gallery = $1 and s.generation = $3 and s.\"row\" = e.\"row\"
        left join chips c on c.gallery = $1 and c.\"row\" = e.\"row\"
        where e.gallery = $1 and e.\"row\" > $4 order by e.\"row\" limit $5";
    let (active, shadow) = generations;
    let rows = query!(transaction, sql, gallery => INT8, active => INT8, shadow => INT8, after => INT8, PAGE => INT8)?;
    let sealed = |row: &tokio_postgres::Row| {
        let number: RowId = row_of(row);
        let vector: Option<Vec<u8>> = row.get(2);
        let vector =
            vector.ok_or_else(|| StoreError::Unreadable(format!("row {} has no embedding", number.0)))?;
        Ok(SealedRow { row: number, record: row.get(1), vector, shadow: row.get(3), chip: row.get(4) })
    };
    rows.iter().map(sealed).collect()
}
