//! A gallery that is made from an export: whole, or not at all.

use std::sync::Arc;

use super::names::GalleryName;
use super::{Shelf, ShelfError};
use crate::durable::{Folder, PartialFolder};
use crate::gallery::archive::{ArchiveError, FoundRow, Head, Item, Reader};
use crate::gallery::store::foundation::{Foundation, FoundationError, NewRow};
use crate::gallery::store::quota::Allowance;
use crate::gallery::store::writer::now;
use crate::gallery::store::{Gallery, StoreError};

/// Takes an export piece by piece. Dropped before it is finished, it leaves nothing behind.
#[derive(Debug)]
pub struct Import {
    shelf: Shelf,
    tenant: String,
    name: GalleryName,
    reader: Reader,
    /// Once the export said what it is of.
    foundation: Option<(Head, Foundation)>,
    entries: u64,
    taken: Taken,
    partial: PartialFolder,
}

/// Bytes of the tenant that are not yet those of a gallery.
#[derive(Debug)]
struct Taken {
    allowance: Arc<Allowance>,
    bytes: u64,
}

/// Why an export becomes no gallery.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Shelf(#[from] ShelfError),
}

impl ImportError {
    /// Stable and fit for programs and labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Archive(ArchiveError::Foreign) => "EXPORT_FOREIGN",
            Self::Archive(ArchiveError::Newer { .. }) => "EXPORT_NEWER",
            Self::Archive(ArchiveError::Truncated { .. }) => "EXPORT_TRUNCATED",
            Self::Archive(ArchiveError::Damaged { .. }) => "EXPORT_DAMAGED",
            Self::Shelf(cause) => cause.reason(),
        }
    }
}

impl Import {
    pub(super) fn new(shelf: Shelf, tenant: &str, name: GalleryName, partial: PartialFolder) -> Self {
        let taken = Taken { allowance: shelf.allowance(tenant), bytes: 0 };
        let tenant = tenant.to_owned();
        Self { shelf, tenant, name, reader: Reader::new(), foundation: None, entries: 0, taken, partial }
    }

    /// Takes the next bytes of the export. Waits for the disk.
    ///
    /// # Errors
    /// They are no export or damaged, exceed what the tenant may store, or the disk fails.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.reader.push(bytes);
        while let Some(item) = self.reader.next()? {
            match item {
                Item::Head(head) => self.begin(head)?,
                Item::Row(row) => self.add(row)?,
            }
        }
        Ok(())
    }

    /// Makes the gallery, which survives a power failure from then on. Waits for the disk.
    ///
    /// # Errors
    /// The export is not whole, the name was taken meanwhile, or the disk fails.
    pub fn finish(self) -> Result<Gallery, ImportError> {
        let Self { shelf, tenant, name, reader, foundation, taken, partial, .. } = self;
        reader.finish()?;
        let (head, foundation) = foundation.ok_or(ArchiveError::Truncated { entries: 0 })?;
        foundation.finish(head.next_row).map_err(|error| refused(error, &reader))?;
        let _changing = shelf.change();
        shelf.check_free(&tenant, &name)?;
        // From here on it is the gallery that counts them.
        drop(taken);
        Ok(shelf.publish(&tenant, &name, partial)?)
    }

    fn begin(&mut self, head: Head) -> Result<(), ImportError> {
        let about = head.about(now()).map_err(|cause| self.reader.damaged(cause))?;
        let volume = Folder(self.partial.path().to_owned());
        let foundation = Foundation::new(&volume, about, self.shelf.0.settings.cache_bytes);
        self.foundation = Some((head, foundation.map_err(ShelfError::from)?));
        Ok(())
    }

    fn add(&mut self, found: FoundRow) -> Result<(), ImportError> {
        let limit = self.shelf.0.settings.quotas.entries_per_gallery;
        if self.entries >= limit {
            return Err(ShelfError::from(StoreError::EntriesFull { limit }).into());
        }
        let Some((_, foundation)) = &mut self.foundation else {
            return Err(self.reader.damaged("an entry comes before everything else").into());
        };
        let new = NewRow::new(found.row, found.entry, found.vector, found.chip.as_ref());
        self.taken.take(new.bytes())?;
        foundation.add(new).map_err(|error| refused(error, &self.reader))?;
        self.entries += 1;
        Ok(())
    }
}

fn refused(error: FoundationError, reader: &Reader) -> ImportError {
    match error {
        FoundationError::Twice(_) => reader.damaged(error).into(),
        FoundationError::Database(cause) => ShelfError::from(cause).into(),
    }
}

impl Taken {
    fn take(&mut self, bytes: u64) -> Result<(), ShelfError> {
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
