//! Exports on their way into a store: whole galleries, or none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::draft::{DraftError, GalleryDraft};
use super::error::CatalogError;
use crate::budget::{Budget, Exceeded, Permit};
use crate::cancellation::Cancellation;
use crate::gallery::archive::{ArchiveError, ArchiveReader, Item, RowBounds};
use crate::gallery::entry::Time;
use crate::gallery::index::RowId;
use crate::gallery::store::Gallery;
use crate::reason::Reason;

/// Bytes that are taken apart together.
const CHUNK_BYTES: usize = 256 << 10;
/// What a record in an export may have beyond what is stored of it.
const FRAMING_BYTES: usize = 64;

/// Why an export becomes no gallery.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl ImportError {
    /// Stable and fit for programs and labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Archive(ArchiveError::Foreign) => Reason::ExportForeign,
            Self::Archive(ArchiveError::Newer { .. }) => Reason::ExportNewer,
            Self::Archive(ArchiveError::Truncated { .. }) => Reason::ExportTruncated,
            Self::Archive(ArchiveError::Damaged { .. }) => Reason::ExportDamaged,
            Self::Archive(ArchiveError::Unacceptable { .. }) => Reason::ExportUnacceptable,
            Self::Catalog(cause) => cause.reason(),
        }
    }
}

/// What the imports of a catalog may have.
#[derive(Clone, Copy, Debug)]
pub struct ImportBounds {
    /// Bytes of an image that a chip of an imported entry may have.
    pub image_bytes_max: usize,
    /// Memory for records that have not come whole yet; a tenant's imports may take half of it.
    pub bytes_max: usize,
}

/// The imports of a catalog, which share memory for records that have not come whole yet. Cloning it is cheap.
#[derive(Clone, Debug)]
pub(in crate::gallery) struct Imports {
    bounds: ImportBounds,
    memory: Budget,
    /// Each tenant's half of the memory, for tenants that have ever imported.
    tenants: Arc<Mutex<HashMap<String, Budget>>>,
}

/// Takes an export piece by piece. Dropped before it is finished, it leaves nothing behind.
#[derive(Debug)]
pub struct Import {
    reader: ArchiveReader,
    draft: Box<dyn GalleryDraft>,
    /// Above all rows, once the export said what it is of.
    next_row: Option<RowId>,
    waiting: Waiting,
}

/// What one import takes of the memory: of all of it, and of its tenant's half.
#[derive(Debug)]
struct Waiting {
    of_all: Permit,
    of_tenant: Permit,
}

impl Imports {
    pub fn new(bounds: ImportBounds) -> Self {
        Self { bounds, memory: Budget::new(bounds.bytes_max as u64), tenants: Arc::default() }
    }

    /// An import that becomes the gallery of `draft`.
    pub fn begin(&self, tenant: &str, draft: Box<dyn GalleryDraft>) -> Import {
        let reader = ArchiveReader::new(RowBounds::new(self.bounds.image_bytes_max));
        let waiting = Waiting { of_all: self.memory.permit(), of_tenant: self.memory_of(tenant).permit() };
        Import { reader, draft, next_row: None, waiting }
    }

    fn memory_of(&self, tenant: &str) -> Budget {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let half = || Budget::new(self.bounds.bytes_max as u64 / 2);
        tenants.entry(tenant.to_owned()).or_insert_with(half).clone()
    }
}

impl Import {
    /// Takes the next bytes of the export. Computes and waits, so it is not for an async task.
    ///
    /// # Errors
    /// They are no export or damaged, exceed what the tenant may store or the memory for imports, the store cannot take
    /// them, or the import was cancelled.
    pub fn push(&mut self, bytes: &[u8], cancellation: &Cancellation) -> Result<(), ImportError> {
        bytes.chunks(CHUNK_BYTES).try_for_each(|chunk| {
            cancellation.check().map_err(CatalogError::from)?;
            self.push_chunk(chunk)
        })
    }

    fn push_chunk(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.waiting.hold((self.reader.buffered() + bytes.len()) as u64)?;
        self.reader.push(bytes);
        while let Some(item) = self.reader.next()? {
            match item {
                Item::Head(head) => {
                    let about = head.about(Time::now()).map_err(|cause| self.reader.damaged(cause))?;
                    self.next_row = Some(RowId(head.next_row));
                    self.draft.begin(about)?;
                }
                Item::Row(row) => self.draft.add(row).map_err(|error| refused(error, &self.reader))?,
            }
        }
        self.waiting.hold(self.reader.buffered() as u64)?;
        // A record that the tenant has no room for need not come to its end.
        let announced = self.reader.announced().saturating_sub(FRAMING_BYTES);
        Ok(self.draft.check_room(announced as u64)?)
    }

    /// Makes the gallery, which survives a power failure from then on. Waits, so it is not for an async task.
    ///
    /// # Errors
    /// The export is not whole, the name was taken meanwhile, the store cannot take it, or it was cancelled before the
    /// gallery is there.
    pub fn finish(self, cancellation: &Cancellation) -> Result<Gallery, ImportError> {
        let Self { reader, draft, next_row, .. } = self;
        reader.finish()?;
        let next_row = next_row.ok_or(ArchiveError::Truncated { entries: 0 })?;
        draft.finish(next_row, cancellation).map_err(|error| refused(error, &reader))
    }
}

fn refused(error: DraftError, reader: &ArchiveReader) -> ImportError {
    match error {
        DraftError::Twice(_) => reader.damaged(error).into(),
        DraftError::Catalog(cause) => cause.into(),
    }
}

impl Waiting {
    /// Takes or gives back until it has so many bytes.
    ///
    /// # Errors
    /// So much memory is not left.
    fn hold(&mut self, bytes: u64) -> Result<(), CatalogError> {
        let full = |Exceeded { limit, .. }| CatalogError::ImportsFull { limit };
        let before = self.of_tenant.amount();
        self.of_tenant.resize(bytes).map_err(full)?;
        self.of_all.resize(bytes).map_err(|exceeded| {
            // Giving back never fails.
            let _ = self.of_tenant.resize(before);
            full(exceeded)
        })
    }
}
