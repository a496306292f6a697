//! Exports on their way into a store: whole galleries, or none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::draft::{DraftError, GalleryDraft};
use super::error::CatalogError;
use crate::cancellation::Cancellation;
use crate::gallery::archive::{ArchiveError, ArchiveReader, Item, RowBounds};
use crate::gallery::entry::Time;
use crate::gallery::index::RowId;
use crate::gallery::store::Gallery;

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
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Archive(ArchiveError::Foreign) => "EXPORT_FOREIGN",
            Self::Archive(ArchiveError::Newer { .. }) => "EXPORT_NEWER",
            Self::Archive(ArchiveError::Truncated { .. }) => "EXPORT_TRUNCATED",
            Self::Archive(ArchiveError::Damaged { .. }) => "EXPORT_DAMAGED",
            Self::Archive(ArchiveError::Unacceptable { .. }) => "EXPORT_UNACCEPTABLE",
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

/// The imports of a catalog, which share memory. Cloning it is cheap.
#[derive(Clone, Debug)]
pub(in crate::gallery) struct Imports {
    bounds: ImportBounds,
    held: Arc<Mutex<Held>>,
}

/// Bytes of records that have not come whole yet.
#[derive(Debug, Default)]
struct Held {
    all: u64,
    tenants: HashMap<String, u64>,
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

/// What one import takes of the memory.
#[derive(Debug)]
struct Waiting {
    imports: Imports,
    tenant: String,
    bytes: u64,
}

impl Imports {
    pub fn new(bounds: ImportBounds) -> Self {
        Self { bounds, held: Arc::default() }
    }

    /// An import that becomes the gallery of `draft`.
    pub fn begin(&self, tenant: &str, draft: Box<dyn GalleryDraft>) -> Import {
        let reader = ArchiveReader::new(RowBounds::new(self.bounds.image_bytes_max));
        let waiting = Waiting { imports: self.clone(), tenant: tenant.to_owned(), bytes: 0 };
        Import { reader, draft, next_row: None, waiting }
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

impl Held {
    /// Takes more for a tenant, or gives back.
    ///
    /// # Errors
    /// So much memory is not left.
    fn exchange(&mut self, tenant: &str, before: u64, after: u64, limit: u64) -> Result<(), CatalogError> {
        let own = self.tenants.get(tenant).copied().unwrap_or_default() - before + after;
        let all = self.all - before + after;
        for (held, limit) in [(own, limit / 2), (all, limit)] {
            if after > before && held > limit {
                return Err(CatalogError::ImportsFull { limit });
            }
        }
        self.all = all;
        match own {
            0 => drop(self.tenants.remove(tenant)),
            own => drop(self.tenants.insert(tenant.to_owned(), own)),
        }
        Ok(())
    }
}

impl Waiting {
    /// Takes or gives back until it has so many bytes.
    fn hold(&mut self, bytes: u64) -> Result<(), CatalogError> {
        let limit = self.imports.bounds.bytes_max as u64;
        let mut held = self.imports.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.exchange(&self.tenant, self.bytes, bytes, limit)?;
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Whoever gives back is refused nothing.
        let _ = self.hold(0);
    }
}
