//! What the files of a gallery hold beside its embeddings and chips.

use prost::Message;

use crate::embedding::ModelDigest;
use crate::gallery::entry::Entry;
use crate::gallery::record::{Damage, EntryRecord, seal_of};

/// What is said once of a gallery. A program that knows no newer schema still reads its number.
#[derive(Clone, PartialEq, Message)]
pub struct AboutRecord {
    #[prost(uint32, tag = "1")]
    pub schema: u32,
    #[prost(sfixed64, tag = "2")]
    pub created_at: i64,
    #[prost(bool, tag = "3")]
    pub keeps_chips: bool,
    /// The embeddings that count.
    #[prost(message, optional, tag = "4")]
    pub generation: Option<GenerationRecord>,
    /// Those that will count once they are complete.
    #[prost(message, optional, tag = "5")]
    pub shadow: Option<GenerationRecord>,
}

/// Embeddings of one model.
#[derive(Clone, PartialEq, Message)]
pub struct GenerationRecord {
    /// Of their table.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub model: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub dimension: u32,
}

/// What changes with every commit.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StateRecord {
    #[prost(uint64, tag = "1")]
    pub commit: u64,
    /// Tells commits of one number apart, where a restored file went another way.
    #[prost(sfixed64, tag = "2")]
    pub committed_at: i64,
    /// No row from here on was ever used.
    #[prost(uint64, tag = "3")]
    pub next_row: u64,
    /// Of entries, embeddings and chips, sealed.
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
}

/// An entry as its gallery keeps it.
#[derive(Clone, PartialEq, Message)]
pub struct RowRecord {
    #[prost(message, optional, tag = "1")]
    pub entry: Option<EntryRecord>,
    /// Bytes of its kept chip; 0 without one.
    #[prost(uint64, tag = "2")]
    pub chip_bytes: u64,
    /// Of its kept chip, which a changed key would take for another row's. Earlier programs left it out.
    #[prost(fixed32, optional, tag = "3")]
    pub chip_checksum: Option<u32>,
}

impl GenerationRecord {
    pub fn model(&self) -> Result<ModelDigest, Damage> {
        let bytes = self.model.as_slice().try_into();
        Ok(ModelDigest::new(bytes.map_err(|_| Damage("the model digest is no SHA-256".into()))?))
    }
}

impl RowRecord {
    /// A row whose chip, if it has one, is stored as `sealed`.
    pub fn new(entry: EntryRecord, sealed: Option<&[u8]>) -> Self {
        let chip_bytes = sealed.map_or(0, |sealed| sealed.len() as u64);
        Self { entry: Some(entry), chip_bytes, chip_checksum: sealed.and_then(seal_of) }
    }

    /// Whether a stored chip is the row's, as far as the row knows it.
    pub fn has_chip(&self, sealed: &[u8]) -> bool {
        let is_sealed_so = self.chip_checksum.is_none_or(|checksum| seal_of(sealed) == Some(checksum));
        self.chip_bytes == sealed.len() as u64 && is_sealed_so
    }

    /// # Errors
    /// It holds no valid entry.
    pub fn into_entry(self) -> Result<Entry, Damage> {
        self.entry.ok_or_else(|| Damage("has no entry".into()))?.try_into()
    }
}
