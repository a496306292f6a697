//! A gallery that is made from an export: whole, or not at all.

use std::sync::Arc;

use super::names::GalleryName;
use super::{Catalog, CatalogError};
use crate::budget::{Exceeded, Permit};
use crate::cancellation::Cancellation;
use crate::durable::{Folder, PartialFolder};
use crate::gallery::archive::{ArchiveError, ArchiveReader, FoundRow, Head, Item, RowBounds};
use crate::gallery::embedded::builder::{GalleryBuildError, GalleryBuilder, NewRow};
use crate::gallery::embedded::quota::Allowance;
use crate::gallery::entry::Time;
use crate::gallery::store::{Gallery, StoreError};
use crate::reason::Reason;

/// Bytes that are taken apart together.
const CHUNK_BYTES: usize = 256 << 10;
/// What a record in an export may have beyond what is stored of it.
const FRAMING_BYTES: usize = 64;

/// Takes an export piece by piece. Dropped before it is finished, it leaves nothing behind.
#[derive(Debug)]
pub struct Import {
    catalog: Catalog,
    tenant: String,
    name: GalleryName,
    reader: ArchiveReader,
    /// Once the export said what it is of.
    builder: Option<(Head, GalleryBuilder)>,
    entries: u64,
    taken: Taken,
    waiting: Waiting,
    partial: PartialFolder,
}

/// Bytes of the tenant that are not yet those of a gallery.
#[derive(Debug)]
struct Taken {
    allowance: Arc<Allowance>,
    bytes: u64,
}

/// What one import takes of the memory for records that have not come whole yet: of all of it, and of its tenant's half.
#[derive(Debug)]
struct Waiting {
    of_all: Permit,
    of_tenant: Permit,
}

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

impl Import {
    pub(super) fn new(catalog: Catalog, tenant: &str, name: GalleryName, partial: PartialFolder) -> Self {
        let taken = Taken { allowance: catalog.allowance(tenant), bytes: 0 };
        let waiting = Waiting {
            of_all: catalog.0.import_memory.permit(),
            of_tenant: catalog.import_memory(tenant).permit(),
        };
        let reader = ArchiveReader::new(RowBounds::new(catalog.0.settings.image_bytes_max));
        let tenant = tenant.to_owned();
        Self { catalog, tenant, name, reader, builder: None, entries: 0, taken, waiting, partial }
    }

    /// Takes the next bytes of the export. Waits for the disk.
    ///
    /// # Errors
    /// They are no export or damaged, exceed what the tenant may store or the memory for imports, the disk fails, or the
    /// import was cancelled.
    pub fn push(&mut self, bytes: &[u8], cancellation: &Cancellation) -> Result<(), ImportError> {
        bytes.chunks(CHUNK_BYTES).try_for_each(|chunk| {
            check(cancellation)?;
            self.push_chunk(chunk)
        })
    }

    fn push_chunk(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.waiting.hold((self.reader.buffered() + bytes.len()) as u64)?;
        self.reader.push(bytes);
        while let Some(item) = self.reader.next()? {
            match item {
                Item::Head(head) => self.begin(head)?,
                Item::Row(row) => self.add(row)?,
            }
        }
        self.waiting.hold(self.reader.buffered() as u64)?;
        // A record that the tenant has no room for need not come to its end.
        let announced = self.reader.announced().saturating_sub(FRAMING_BYTES);
        Ok(self.taken.check(announced as u64)?)
    }

    /// Makes the gallery, which survives a power failure from then on. Waits for the disk.
    ///
    /// # Errors
    /// The export is not whole, the name was taken meanwhile, the disk fails, or it was cancelled before the
    /// gallery is there.
    pub fn finish(self, cancellation: &Cancellation) -> Result<Gallery, ImportError> {
        let Self { catalog, tenant, name, reader, builder, taken, partial, .. } = self;
        reader.finish()?;
        let (head, builder) = builder.ok_or(ArchiveError::Truncated { entries: 0 })?;
        builder.finish(head.next_row).map_err(|error| refused(error, &reader))?;
        let _changing = catalog.change();
        catalog.check_free(&tenant, &name)?;
        check(cancellation)?;
        // From here on it is the gallery that counts them.
        drop(taken);
        Ok(catalog.publish(&tenant, &name, partial)?)
    }

    fn begin(&mut self, head: Head) -> Result<(), ImportError> {
        let about = head.about(Time::now()).map_err(|cause| self.reader.damaged(cause))?;
        let volume = Folder(self.partial.path().to_owned());
        let builder = GalleryBuilder::new(&volume, about, self.catalog.0.settings.cache_bytes);
        self.builder = Some((head, builder.map_err(CatalogError::from)?));
        Ok(())
    }

    fn add(&mut self, found: FoundRow) -> Result<(), ImportError> {
        let limit = self.catalog.0.settings.quotas.entries_per_gallery;
        if self.entries >= limit {
            return Err(CatalogError::from(StoreError::EntriesFull { limit }).into());
        }
        let Some((_, builder)) = &mut self.builder else {
            return Err(self.reader.damaged("an entry comes before everything else").into());
        };
        let new = NewRow::new(found.row, found.entry, found.vector, found.chip.as_ref());
        self.taken.take(new.bytes())?;
        builder.add(new).map_err(|error| refused(error, &self.reader))?;
        self.entries += 1;
        Ok(())
    }
}

fn check(cancellation: &Cancellation) -> Result<(), CatalogError> {
    Ok(cancellation.check().map_err(StoreError::from)?)
}

fn refused(error: GalleryBuildError, reader: &ArchiveReader) -> ImportError {
    match error {
        GalleryBuildError::Twice(_) => reader.damaged(error).into(),
        GalleryBuildError::Database(cause) => CatalogError::from(cause).into(),
    }
}

impl Waiting {
    /// Takes or gives back until it has so many bytes.
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

impl Taken {
    fn check(&self, bytes: u64) -> Result<(), CatalogError> {
        Ok(self.allowance.check(bytes)?)
    }

    fn take(&mut self, bytes: u64) -> Result<(), CatalogError> {
        self.allowance.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.allowance.give_back(self.bytes);
    }
}
