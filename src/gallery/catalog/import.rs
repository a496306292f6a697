//! Imports of exports into a store: whole galleries or none.

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

/// Bytes parsed at once.
const CHUNK_BYTES: usize = 256 << 10;
/// How much a record in an export may exceed what is stored of it.
const FRAMING_BYTES: usize = 64;

/// Why an export does not become a gallery.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl ImportError {
    /// Stable and suitable for programs and labels.
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

/// Limits on the imports of a catalog.
#[derive(Clone, Copy, Debug)]
pub struct ImportBounds {
    /// Bytes of the image of an imported entry's chip.
    pub image_bytes_max: usize,
    /// Memory for incomplete records; the imports of one tenant may use half of it.
    pub bytes_max: usize,
}

/// The imports of a catalog, which share memory for incomplete records. Cloning it is cheap.
#[derive(Clone, Debug)]
pub(in crate::gallery) struct Imports {
    bounds: ImportBounds,
    memory: Budget,
    /// Each tenant's half of the memory, for tenants that have ever imported.
    tenants: Arc<Mutex<HashMap<String, Budget>>>,
}

/// Reads an export piece by piece. Dropped before it is finished, it leaves nothing behind.
#[derive(Debug)]
pub struct Import {
    reader: ArchiveReader,
    draft: Box<dyn GalleryDraft>,
    /// Above all rows; known once the export's head was read.
    next_row: Option<RowId>,
    waiting: Waiting,
}

/// The memory that one import uses, counted for all imports and for its tenant's.
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
    /// Reads the next bytes of the export. Computes and blocks, so it must not run on an async task.
    ///
    /// # Errors
    /// The bytes are not an export or are damaged, exceed what the tenant may store or the memory for imports, the
    /// store does not accept them, or the import was cancelled.
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
        // Refuses a record that exceeds the tenant's room before all of it has arrived.
        let announced = self.reader.announced().saturating_sub(FRAMING_BYTES);
        Ok(self.draft.check_room(announced as u64)?)
    }

    /// Creates the gallery; it survives a power failure once this returns. Blocks, so it must not run on an async task.
    ///
    /// # Errors
    /// The export is incomplete, the name was taken meanwhile, the store does not accept the gallery, or the call was
    /// cancelled before the gallery existed.
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
    /// Takes memory or gives it back until it holds `bytes`.
    ///
    /// # Errors
    /// There is not enough memory left.
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
