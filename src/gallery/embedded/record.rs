//! Records in the files of a gallery other than its embeddings and chips.

use prost::Message;

use crate::embedding::{Composition, ModelDigest};
use crate::gallery::entry::Entry;
use crate::gallery::record::{CompositionRecord, Damage, EntryRecord, seal_of};

/// What does not change with every commit. A program that does not know a newer schema can still read its number.
#[derive(Clone, PartialEq, Message)]
pub struct AboutRecord {
    #[prost(uint32, tag = "1")]
    pub schema: u32,
    #[prost(sfixed64, tag = "2")]
    pub created_at: i64,
    #[prost(bool, tag = "3")]
    pub keeps_chips: bool,
    /// The active embeddings.
    #[prost(message, optional, tag = "4")]
    pub generation: Option<GenerationRecord>,
    /// Embeddings that become active once they are complete.
    #[prost(message, optional, tag = "5")]
    pub shadow: Option<GenerationRecord>,
}

/// Embeddings of one model.
#[derive(Clone, PartialEq, Message)]
pub struct GenerationRecord {
    /// The number of their table.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub model: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub dimension: u32,
    /// In which they were computed, as [`precision_number`](crate::gallery::record::precision_number), if all were made at
    /// once.
    #[prost(uint32, tag = "4")]
    pub precision: u32,
    /// When all of them replaced those of another model.
    #[prost(sfixed64, optional, tag = "5")]
    pub active_since: Option<i64>,
    /// Of an ensemble.
    #[prost(message, optional, tag = "6")]
    pub composition: Option<CompositionRecord>,
}

/// What changes with every commit.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StateRecord {
    #[prost(uint64, tag = "1")]
    pub commit: u64,
    /// Distinguishes commits of the same number after a file was restored from a copy.
    #[prost(sfixed64, tag = "2")]
    pub committed_at: i64,
    /// No row from here on was ever used.
    #[prost(uint64, tag = "3")]
    pub next_row: u64,
    /// Counts entries, embeddings and chips as they are sealed.
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
}

/// An entry as its gallery stores it.
#[derive(Clone, PartialEq, Message)]
pub struct RowRecord {
    #[prost(message, optional, tag = "1")]
    pub entry: Option<EntryRecord>,
    /// Bytes of its kept chip; 0 without one.
    #[prost(uint64, tag = "2")]
    pub chip_bytes: u64,
    /// Checksum of its kept chip, which detects a changed key that leads to another row's chip. Earlier programs did
    /// not write it.
    #[prost(fixed32, optional, tag = "3")]
    pub chip_checksum: Option<u32>,
}

/// What a [`RowRecord`] says of its entry's id, which is all that some readers need.
#[derive(Clone, PartialEq, Message)]
pub struct RowIdRecord {
    #[prost(message, optional, tag = "1")]
    pub entry: Option<IdRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub struct IdRecord {
    #[prost(string, tag = "1")]
    pub id: String,
}

impl GenerationRecord {
    pub fn model(&self) -> Result<ModelDigest, Damage> {
        let bytes = self.model.as_slice().try_into();
        Ok(ModelDigest::new(bytes.map_err(|_| Damage("the model digest is no SHA-256".into()))?))
    }

    pub fn composition(&self) -> Result<Option<Composition>, Damage> {
        self.composition.as_ref().map(|record| record.read(self.dimension as usize)).transpose()
    }
}

impl RowRecord {
    /// A row whose chip, if it has one, is stored as `sealed`.
    pub fn new(entry: EntryRecord, sealed: Option<&[u8]>) -> Self {
        let chip_bytes = sealed.map_or(0, |sealed| sealed.len() as u64);
        Self { entry: Some(entry), chip_bytes, chip_checksum: sealed.and_then(seal_of) }
    }

    /// Whether a stored chip belongs to the row, judging by its size and, where the row records one, its checksum.
    pub fn has_chip(&self, sealed: &[u8]) -> bool {
        let is_sealed_so = self.chip_checksum.is_none_or(|checksum| seal_of(sealed) == Some(checksum));
        self.chip_bytes == sealed.len() as u64 && is_sealed_so
    }

    /// # Errors
    /// It does not hold a valid entry.
    pub fn into_entry(self) -> Result<Entry, Damage> {
        self.entry.ok_or_else(|| Damage("has no entry".into()))?.try_into()
    }
}
