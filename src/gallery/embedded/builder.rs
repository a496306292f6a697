//! Creates the files of a new gallery, with or without initial entries.

use redb::{Durability, TableDefinition};

use super::record::{RowRecord, StateRecord};
use super::schema::{CHIP_ROWS, CHIPS, ENTRIES, GALLERY, GONE, IDS, write_about, write_state};
use crate::durable::{Database, DatabaseError, Volume};
use crate::gallery::catalog::DraftRow;
use crate::gallery::entry::{EntryId, Time};
use crate::gallery::index::RowId;
use crate::gallery::record::{ChipRecord, Damage, EntryRecord, decode, encode, seal, vector_bytes};
use crate::gallery::store::About;

/// Rows and bytes that are written together.
const ROWS_MAX: usize = 4096;
const BYTES_MAX: u64 = 16 << 20;

/// A gallery that is being built and is invisible until it is complete.
#[derive(Debug)]
pub struct GalleryBuilder {
    about: About,
    gallery: Database,
    chips: Option<Database>,
    rows: Vec<NewRow>,
    /// The bytes in `rows`.
    pending_bytes: u64,
    bytes: u64,
}

/// An initial row, as it is written.
#[derive(Debug)]
pub struct NewRow {
    row: RowId,
    id: EntryId,
    record: Vec<u8>,
    vector: Vec<u8>,
    /// Its vector in the shadow.
    shadow: Option<Vec<u8>>,
    chip: Option<Vec<u8>>,
}

/// A row as a store keeps it: everything is sealed.
#[derive(Debug)]
pub struct SealedRow {
    pub row: RowId,
    pub record: Vec<u8>,
    pub vector: Vec<u8>,
    pub shadow: Option<Vec<u8>>,
    pub chip: Option<Vec<u8>>,
}

/// Why a row cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum GalleryBuildError {
    #[error("the entry \"{0}\" is there twice")]
    Twice(EntryId),
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl GalleryBuilder {
    /// # Errors
    /// The files exist or cannot be written.
    pub fn new(volume: &dyn Volume, about: About, cache_bytes: usize) -> Result<Self, DatabaseError> {
        let gallery = Database::create(volume, GALLERY, cache_bytes)?;
        let chips = about.keeps_chips.then(|| Database::create(volume, CHIPS, cache_bytes)).transpose()?;
        let transaction = gallery.begin_write()?;
        write_about(&transaction, &about)?;
        transaction.open_table(GONE)?;
        if let Some(shadow) = about.shadow {
            let shadow = shadow.vectors();
            let shadow: TableDefinition<u64, &[u8]> = TableDefinition::new(&shadow);
            transaction.open_table(shadow)?;
        }
        gallery.commit(transaction)?;
        Ok(Self { about, gallery, chips, rows: vec![], pending_bytes: 0, bytes: 0 })
    }

    /// Adds a row above all rows before.
    ///
    /// # Errors
    /// Its id is taken, or the files cannot be written.
    pub fn add(&mut self, new: NewRow) -> Result<(), GalleryBuildError> {
        self.pending_bytes += new.bytes();
        self.bytes += new.bytes();
        self.rows.push(new);
        if self.rows.len() >= ROWS_MAX || self.pending_bytes >= BYTES_MAX {
            self.write(Durability::None, |_| Ok(()))?;
        }
        Ok(())
    }

    /// Makes everything durable. `next_row` is above all rows.
    ///
    /// # Errors
    /// An id is taken, or the files cannot be written.
    pub fn finish(self, next_row: u64) -> Result<(), GalleryBuildError> {
        let state = StateRecord { commit: 1, committed_at: Time::now().nanos(), next_row, bytes: self.bytes };
        self.finish_as(state)
    }

    /// Makes everything durable, as a copy of what has `state` elsewhere.
    ///
    /// # Errors
    /// An id is taken, or the files cannot be written.
    pub fn finish_as(mut self, state: StateRecord) -> Result<(), GalleryBuildError> {
        self.write(Durability::Immediate, |transaction| write_state(transaction, &state))?;
        for database in [Some(self.gallery), self.chips].into_iter().flatten() {
            database.close()?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        durability: Durability,
        also: impl FnOnce(&redb::WriteTransaction) -> Result<(), DatabaseError>,
    ) -> Result<(), GalleryBuildError> {
        let rows = std::mem::take(&mut self.rows);
        self.pending_bytes = 0;
        if let Some(chips) = &self.chips {
            write_chips(chips, durability, &rows)?;
        }
        let mut transaction = self.gallery.begin_write()?;
        set_durability(&mut transaction, durability);
        insert(&transaction, &self.about, &rows)?;
        also(&transaction)?;
        Ok(self.gallery.commit(transaction)?)
    }
}

impl NewRow {
    pub fn new(draft: DraftRow) -> Self {
        let DraftRow { row, entry, embedding, chip } = draft;
        let chip = chip.as_ref().map(|chip| encode(&ChipRecord::from(chip)));
        let record = encode(&RowRecord::new(EntryRecord::from(&entry), chip.as_deref()));
        let vector = seal(vector_bytes(embedding.as_slice()));
        Self { row, id: entry.id, record, vector, shadow: None, chip }
    }

    /// # Errors
    /// The record is damaged.
    pub fn of_sealed(sealed: SealedRow) -> Result<Self, Damage> {
        let SealedRow { row, record, vector, shadow, chip } = sealed;
        let id = decode::<RowRecord>(&record)?.into_entry()?.id;
        Ok(Self { row, id, record, vector, shadow, chip })
    }

    pub fn id(&self) -> &EntryId {
        &self.id
    }

    pub fn into_sealed(self) -> SealedRow {
        let Self { row, record, vector, shadow, chip, .. } = self;
        SealedRow { row, record, vector, shadow, chip }
    }

    /// All bytes that are stored for it.
    pub fn bytes(&self) -> u64 {
        (self.record.len() + self.vector.len() + self.chip.as_ref().map_or(0, Vec::len)) as u64
    }
}

fn write_chips(chips: &Database, durability: Durability, rows: &[NewRow]) -> Result<(), DatabaseError> {
    let mut transaction = chips.begin_write()?;
    set_durability(&mut transaction, durability);
    let mut table = transaction.open_table(CHIP_ROWS)?;
    for new in rows {
        if let Some(chip) = &new.chip {
            table.insert(new.row.0, chip.as_slice())?;
        }
    }
    drop(table);
    chips.commit(transaction)
}

fn insert(
    transaction: &redb::WriteTransaction,
    about: &About,
    rows: &[NewRow],
) -> Result<(), GalleryBuildError> {
    let name = about.vectors();
    let vectors: TableDefinition<u64, &[u8]> = TableDefinition::new(&name);
    let mut entries = transaction.open_table(ENTRIES).map_err(DatabaseError::from)?;
    let mut ids = transaction.open_table(IDS).map_err(DatabaseError::from)?;
    let mut vectors = transaction.open_table(vectors).map_err(DatabaseError::from)?;
    for new in rows {
        let taken = ids.insert(new.id.as_str(), new.row.0).map_err(DatabaseError::from)?;
        if taken.is_some() {
            return Err(GalleryBuildError::Twice(new.id.clone()));
        }
        entries.insert(new.row.0, new.record.as_slice()).map_err(DatabaseError::from)?;
        vectors.insert(new.row.0, new.vector.as_slice()).map_err(DatabaseError::from)?;
    }
    if let Some(shadow) = about.shadow {
        let name = shadow.vectors();
        let shadow: TableDefinition<u64, &[u8]> = TableDefinition::new(&name);
        let mut shadow = transaction.open_table(shadow).map_err(DatabaseError::from)?;
        for (row, vector) in rows.iter().filter_map(|new| Some((new.row, new.shadow.as_ref()?))) {
            shadow.insert(row.0, vector.as_slice()).map_err(DatabaseError::from)?;
        }
    }
    Ok(())
}

pub(super) fn set_durability(transaction: &mut redb::WriteTransaction, durability: Durability) {
    transaction
        .set_durability(durability)
        .expect("a database of one process without savepoints takes any durability");
}
