//! The files of a gallery and the tables in them.

use redb::{ReadTransaction, TableDefinition, TableHandle};

use super::record::{AboutRecord, GenerationRecord, StateRecord};
use crate::durable::DatabaseError;
use crate::gallery::entry::Time;
use crate::gallery::record::{CompositionRecord, Damage, decode, encode, precision, precision_number};
use crate::gallery::store::{About, Reembedded, Shadow, ShadowTarget};

/// Everything but the chips.
pub const GALLERY: &str = "gallery.redb";
/// The source chips, in a gallery that keeps them.
pub const CHIPS: &str = "chips.redb";
/// The index, with the codes of all vectors, which saves building it on opening. Nothing depends on it.
pub const CODES: &str = "codes.i8";

/// Changes when an older program could misread a gallery.
pub const SCHEMA: u32 = 2;
/// Of galleries whose models are no ensembles.
const SCHEMA_OF_SINGLE_MODELS: u32 = 1;

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
    pub(super) fn with_shadow(&self, target: &ShadowTarget, floor: u64) -> Self {
        let ShadowTarget { model, dimension, composition, precision } = *target;
        let last = self.shadow.map_or(self.generation, |shadow| shadow.generation).max(floor);
        let (precision, generation) = (Some(precision), last + 1);
        let shadow = Shadow { model, dimension, composition, precision, generation };
        Self { shadow: Some(shadow), ..self.clone() }
    }

    /// The same gallery, whose shadow is continued in another precision.
    pub(super) fn with_mixed_shadow(&self) -> Self {
        Self { shadow: self.shadow.map(|shadow| Shadow { precision: None, ..shadow }), ..self.clone() }
    }

    /// The same gallery without its shadow.
    pub(super) fn without_shadow(&self) -> Self {
        Self { shadow: None, ..self.clone() }
    }

    /// The gallery after its shadow became active.
    pub(super) fn flipped(&self, shadow: Shadow, at: Time) -> Self {
        let Shadow { model, dimension, composition, precision, generation } = shadow;
        let reembedded = Some(Reembedded { at, precision });
        Self { model, dimension, composition, reembedded, generation, shadow: None, ..self.clone() }
    }

    fn schema(&self) -> u32 {
        let of_shadow = self.shadow.and_then(|shadow| shadow.composition);
        if self.composition.or(of_shadow).is_some() { SCHEMA } else { SCHEMA_OF_SINGLE_MODELS }
    }
}

impl Shadow {
    fn read(record: &GenerationRecord) -> Result<Self, Damage> {
        Ok(Self {
            model: record.model()?,
            dimension: record.dimension as usize,
            composition: record.composition()?,
            precision: precision(record.precision),
            generation: record.number,
        })
    }

    /// Name of the table of its vectors, keyed by row.
    pub(super) fn vectors(&self) -> String {
        vectors(self.generation)
    }
}

impl GenerationRecord {
    fn active(about: &About) -> Self {
        Self {
            number: about.generation,
            model: about.model.as_bytes().to_vec(),
            dimension: about.dimension as u32,
            precision: precision_number(about.reembedded.and_then(|reembedded| reembedded.precision)),
            active_since: about.reembedded.map(|reembedded| reembedded.at.nanos()),
            composition: about.composition.as_ref().map(CompositionRecord::from),
        }
    }

    fn of_shadow(shadow: Shadow) -> Self {
        Self {
            number: shadow.generation,
            model: shadow.model.as_bytes().to_vec(),
            dimension: shadow.dimension as u32,
            precision: precision_number(shadow.precision),
            active_since: None,
            composition: shadow.composition.as_ref().map(CompositionRecord::from),
        }
    }

    fn reembedded(&self) -> Option<Reembedded> {
        let at = Time::from_nanos(self.active_since?);
        Some(Reembedded { at, precision: precision(self.precision) })
    }
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
        composition: generation.composition()?,
        keeps_chips: record.keeps_chips,
        created_at: Time::from_nanos(record.created_at),
        reembedded: generation.reembedded(),
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
        schema: about.schema(),
        created_at: about.created_at.nanos(),
        keeps_chips: about.keeps_chips,
        generation: Some(GenerationRecord::active(about)),
        shadow: about.shadow.map(GenerationRecord::of_shadow),
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
