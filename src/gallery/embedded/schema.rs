//! The files of a gallery and the tables in them.

use redb::{ReadTransaction, TableDefinition, TableHandle};

use super::record::{AboutRecord, GenerationRecord, StateRecord};
use crate::durable::DatabaseError;
use crate::embedding::ModelDigest;
use crate::gallery::entry::Time;
use crate::gallery::record::{Damage, decode, encode};
use crate::gallery::store::{About, Shadow};

/// Everything but the chips.
pub const GALLERY: &str = "gallery.redb";
/// The source chips, in a gallery that keeps them.
pub const CHIPS: &str = "chips.redb";
/// The index, with the codes of all vectors, which saves building it on opening. Nothing depends on it.
pub const CODES: &str = "codes.i8";

/// Changes when an older program could misread a gallery.
pub const SCHEMA: u32 = 1;

pub type Rows = TableDefinition<'static, u64, &'static [u8]>;

pub const ABOUT: TableDefinition<&str, &[u8]> = TableDefinition::new("about");
/// [`RowRecord`](super::record::RowRecord)s.
pub const ENTRIES: Rows = TableDefinition::new("entries");
/// Rows by entry id.
pub const IDS: TableDefinition<&str, u64> = TableDefinition::new("ids");
/// Deleted rows whose chips may still be stored.
pub const GONE: TableDefinition<u64, ()> = TableDefinition::new("gone");
/// [`ChipRecord`](crate::gallery::record::ChipRecord)s, in their own file.
pub const CHIP_ROWS: Rows = TableDefinition::new("chips");

const ABOUT_KEY: &str = "gallery";
const STATE_KEY: &str = "state";

impl About {
    /// Name of the table of its vectors, keyed by row.
    pub(super) fn vectors(&self) -> String {
        vectors(self.generation)
    }

    /// The same gallery with an empty shadow of another model, whose generation is above `floor`.
    pub(super) fn with_shadow(&self, model: ModelDigest, dimension: usize, floor: u64) -> Self {
        let last = self.shadow.map_or(self.generation, |shadow| shadow.generation).max(floor);
        Self { shadow: Some(Shadow { model, dimension, generation: last + 1 }), ..self.clone() }
    }

    /// The same gallery without its shadow.
    pub(super) fn without_shadow(&self) -> Self {
        Self { shadow: None, ..self.clone() }
    }

    /// The gallery after its shadow became active.
    pub(super) fn flipped(&self, shadow: Shadow) -> Self {
        let Shadow { model, dimension, generation } = shadow;
        Self { model, dimension, generation, shadow: None, ..self.clone() }
    }
}

impl Shadow {
    fn read(record: &GenerationRecord) -> Result<Self, Damage> {
        let (dimension, generation) = (record.dimension as usize, record.number);
        Ok(Self { model: record.model()?, dimension, generation })
    }

    /// Name of the table of its vectors, keyed by row.
    pub(super) fn vectors(&self) -> String {
        vectors(self.generation)
    }
}

fn generation_record(number: u64, model: ModelDigest, dimension: usize) -> GenerationRecord {
    GenerationRecord { number, model: model.as_bytes().to_vec(), dimension: dimension as u32 }
}

fn vectors(generation: u64) -> String {
    format!("vectors-{generation}")
}

/// A gallery of another program.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("it has schema version {found}, this program reads up to version {SCHEMA}")]
    Newer { found: u32 },
    #[error(transparent)]
    Damaged(#[from] Damage),
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// # Errors
/// The transaction is not of a gallery, or is of one with a newer schema.
pub fn read_about(transaction: &ReadTransaction) -> Result<About, SchemaError> {
    let foreign = || Damage("is no gallery".into());
    let tables = transaction.list_tables().map_err(DatabaseError::from)?;
    if !tables.into_iter().any(|table| table.name() == ABOUT.name()) {
        return Err(foreign().into());
    }
    let table = transaction.open_table(ABOUT).map_err(DatabaseError::from)?;
    let sealed = table.get(ABOUT_KEY).map_err(DatabaseError::from)?.ok_or_else(foreign)?;
    about_of(sealed.value())
}

/// Reads what [`sealed_about`] returned.
///
/// # Errors
/// It is of a newer schema, or damaged.
pub fn about_of(sealed: &[u8]) -> Result<About, SchemaError> {
    let record: AboutRecord = decode(sealed)?;
    if record.schema > SCHEMA {
        return Err(SchemaError::Newer { found: record.schema });
    }
    let generation = record.generation.ok_or_else(|| Damage("has no embeddings".into()))?;
    Ok(About {
        model: generation.model()?,
        dimension: generation.dimension as usize,
        keeps_chips: record.keeps_chips,
        created_at: Time::from_nanos(record.created_at),
        generation: generation.number,
        shadow: record.shadow.as_ref().map(Shadow::read).transpose()?,
    })
}

/// # Errors
/// It cannot be read.
pub fn read_state(transaction: &ReadTransaction) -> Result<StateRecord, SchemaError> {
    let table = transaction.open_table(ABOUT).map_err(DatabaseError::from)?;
    let sealed = table.get(STATE_KEY).map_err(DatabaseError::from)?;
    Ok(decode(sealed.ok_or_else(|| Damage("has no state".into()))?.value())?)
}

/// A sealed [`AboutRecord`].
pub fn sealed_about(about: &About) -> Vec<u8> {
    encode(&AboutRecord {
        schema: SCHEMA,
        created_at: about.created_at.nanos(),
        keeps_chips: about.keeps_chips,
        generation: Some(generation_record(about.generation, about.model, about.dimension)),
        shadow: about
            .shadow
            .map(|shadow| generation_record(shadow.generation, shadow.model, shadow.dimension)),
    })
}

/// # Errors
/// It cannot be written.
pub fn write_about(transaction: &redb::WriteTransaction, about: &About) -> Result<(), DatabaseError> {
    transaction.open_table(ABOUT)?.insert(ABOUT_KEY, sealed_about(about).as_slice())?;
    Ok(())
}

/// # Errors
/// It cannot be written.
pub fn write_state(transaction: &redb::WriteTransaction, state: &StateRecord) -> Result<(), DatabaseError> {
    transaction.open_table(ABOUT)?.insert(STATE_KEY, encode(state).as_slice())?;
    Ok(())
}
