//! The only writer of a gallery: commits operations in groups, publishes the result, then acknowledges them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{Durability, WriteTransaction};
use tokio::sync::watch;

use super::batch::{Finished, Ground, WriteBatch};
use super::builder::set_durability;
use super::journal::{Delta, Journal, Known};
use super::open::{OpenError, Opened, open};
use super::quota::{self, Allowance};
use super::schema::CHIP_ROWS;
use super::sidecar::{self, Header};
use super::snapshot::{Snapshot, Tables};
use crate::durable::{Database, DatabaseError, Panicked, Volume, caught, guard};
use crate::gallery::catalog::Quotas;
use crate::gallery::entry::Time;
use crate::gallery::index::RowId;
use crate::gallery::store::{About, Files, GalleryReader, StoreError};

/// Free room that a gallery needs before it accepts writes again, in addition to a share of its file size.
const ROOM_BYTES: u64 = 1 << 20;
const ROOM_DIVISOR: u64 = 64;
/// Commits of a copy that a power failure may undo: the journal has them.
const UNSAVED_MAX: u32 = 64;

/// An operation that may share its transaction with others.
pub trait GroupedOperation: Send {
    /// # Errors
    /// The transaction failed, for all operations in it. A refusal is not an error here: it is reported to the caller.
    fn apply(&mut self, batch: &mut WriteBatch<'_>) -> Result<(), StoreError>;

    /// Answers the caller, once the outcome of the transaction is known.
    fn acknowledge(self: Box<Self>, fate: Result<(), StoreError>);
}

/// What readers of the gallery see.
#[derive(Debug)]
pub struct Published {
    snapshot: RwLock<Arc<Snapshot>>,
    failure: RwLock<Option<String>>,
    /// Size of the files.
    file_bytes: AtomicU64,
    files: watch::Sender<Files>,
}

/// Limits of a writer.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub cache_bytes: usize,
    pub quotas: Quotas,
    pub allowance: Arc<Allowance>,
}

pub struct Writer {
    volume: Arc<dyn Volume>,
    pub(super) bounds: Bounds,
    pub(super) about: Arc<About>,
    pub(super) gallery: Database,
    chips: Option<Database>,
    pub(super) published: Arc<Published>,
    /// Where commits are made first, if the files are a copy.
    pub(super) journal: Option<Box<dyn Journal>>,
    /// Rows whose chips are still to be removed.
    pub(super) gone: Vec<RowId>,
    /// Rows whose chips are removed, but whose marks are not.
    swept: Vec<RowId>,
    /// Allowance used for files that are larger than their content explains.
    excess: u64,
    /// Commits since the last that survives a power failure.
    unsaved: u32,
}

/// A gallery whose files are closed and will be opened again.
#[derive(Debug)]
pub struct Shut {
    volume: Arc<dyn Volume>,
    bounds: Bounds,
    published: Arc<Published>,
    journal: Option<Box<dyn Journal>>,
}

impl Published {
    fn new(snapshot: Snapshot) -> Self {
        let snapshot = RwLock::new(Arc::new(snapshot));
        let files = watch::Sender::new(Files::Open);
        Self { snapshot, failure: RwLock::default(), file_bytes: AtomicU64::new(0), files }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the gallery does not accept writes.
    pub fn failure(&self) -> Option<String> {
        self.failure.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes that the files take.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes.load(Ordering::Relaxed)
    }

    /// Refuses writes from now on. The first reason is kept.
    pub fn fail(&self, reason: &str) {
        let mut failure = self.failure.write().unwrap_or_else(PoisonError::into_inner);
        if failure.is_none() {
            *failure = Some(reason.to_owned());
            tracing::error!(reason, "a gallery takes no more writes");
        }
    }

    fn recover(&self) {
        *self.failure.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Watches whether snapshots can be read.
    pub fn files(&self) -> watch::Receiver<Files> {
        self.files.subscribe()
    }

    fn are(&self, files: Files) {
        self.files.send_replace(files);
    }

    pub(super) fn publish(&self, snapshot: Snapshot) {
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }
}

impl Writer {
    /// Opens the gallery in `volume` and counts its content against the allowance. With a `journal`, the files are a copy
    /// of what that is the truth of.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        volume: Arc<dyn Volume>,
        bounds: Bounds,
        journal: Option<Box<dyn Journal>>,
    ) -> Result<Self, OpenError> {
        let Opened { gallery, chips, snapshot, swept } = open(&*volume, bounds.cache_bytes)?;
        let published = Arc::new(Published::new(snapshot));
        let databases = Databases { gallery, chips, swept };
        Ok(Self::start(Shut { volume, bounds, published, journal }, databases))
    }

    /// Opens it with the existing `published`.
    fn start(shut: Shut, databases: Databases) -> Self {
        let Shut { volume, bounds, published, journal } = shut;
        let Databases { gallery, chips, swept } = databases;
        let snapshot = published.snapshot();
        bounds.allowance.count(snapshot.stored_bytes());
        let about = Arc::new(snapshot.about().clone());
        let mut writer = Self {
            volume,
            bounds,
            about,
            gallery,
            chips,
            published,
            journal,
            gone: vec![],
            swept,
            excess: 0,
            unsaved: 0,
        };
        writer.databases().filter_map(|database| database.health().failure()).for_each(|failure| {
            writer.published.fail(&failure.reason);
        });
        writer.weigh();
        writer
    }

    fn databases(&self) -> impl Iterator<Item = &Database> {
        std::iter::once(&self.gallery).chain(&self.chips)
    }

    /// Counts the growth of the files against the allowance.
    pub(super) fn weigh(&mut self) {
        let files = self.databases().map(|database| database.health().bytes()).sum();
        self.published.file_bytes.store(files, Ordering::Relaxed);
        let excess = quota::excess(self.published.snapshot().stored_bytes(), files);
        // Existing data is always counted; the limit applies to additions.
        self.bounds.allowance.count(excess);
        self.bounds.allowance.give_back(std::mem::replace(&mut self.excess, excess));
    }

    /// Whether a lack of room is the only reason for refusing writes.
    pub fn awaits_room(&self) -> bool {
        let mut failures = self.databases().filter_map(|database| database.health().failure()).peekable();
        failures.peek().is_some() && failures.all(|failure| failure.is_full)
    }

    /// Opens the files again if there is room. Writes that were not acknowledged may or may not be there then. Readers
    /// of earlier snapshots get errors from then on, and take a new snapshot once the files are open.
    ///
    /// # Errors
    /// The files could not be opened again, and are closed.
    pub fn recover(self) -> Result<Self, Shut> {
        let files: u64 = self.published.file_bytes();
        match self.volume.reserve(ROOM_BYTES + files / ROOM_DIVISOR) {
            Ok(()) => self.shut().open(),
            Err(cause) => {
                tracing::debug!(%cause, "a gallery waits for room on its disk");
                Ok(self)
            }
        }
    }

    pub(in crate::gallery) fn shut(mut self) -> Shut {
        let shut = Shut {
            volume: Arc::clone(&self.volume),
            bounds: self.bounds.clone(),
            published: Arc::clone(&self.published),
            journal: self.journal.take(),
        };
        shut.published.are(Files::Reopening);
        self.close_files();
        shut
    }

    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// Applies all of `group` in one transaction. When this returns without an error, the changes are durable and
    /// published.
    ///
    /// # Errors
    /// The gallery does not accept writes; nothing of the group is published.
    pub fn commit(&mut self, group: &mut [Box<dyn GroupedOperation>]) -> Result<(), StoreError> {
        self.check_writable()?;
        // Nothing of a group that panics is published, so dropping its transaction is safe.
        let committed = caught(|| self.try_commit(group));
        let panicked = |cause: Panicked| Err(StoreError::ReadOnly { reason: cause.to_string() });
        committed.unwrap_or_else(panicked).map_err(|error| self.give_up(error))
    }

    pub(super) fn check_writable(&self) -> Result<(), StoreError> {
        match self.published.failure() {
            Some(reason) => Err(StoreError::ReadOnly { reason }),
            None => Ok(()),
        }
    }

    /// Stops accepting writes: a failed commit may be partly on disk. An error of the journal says that nothing was
    /// written.
    pub(super) fn give_up(&self, error: StoreError) -> StoreError {
        let reason = match error {
            StoreError::Unreachable(_) | StoreError::Outdated => return error,
            StoreError::ReadOnly { reason } => reason,
            other => other.to_string(),
        };
        self.published.fail(&reason);
        StoreError::ReadOnly { reason }
    }

    fn try_commit(&mut self, group: &mut [Box<dyn GroupedOperation>]) -> Result<(), StoreError> {
        self.lock()?;
        let committed = self.commit_group(group);
        self.release();
        committed
    }

    fn commit_group(&mut self, group: &mut [Box<dyn GroupedOperation>]) -> Result<(), StoreError> {
        let before = self.published.snapshot();
        let (transaction, durability) = self.begin_write()?;
        let ground =
            Ground { about: &self.about, quotas: &self.bounds.quotas, allowance: &self.bounds.allowance };
        let (index, state) = (before.index().clone(), *before.state());
        let mut batch = WriteBatch::new(&transaction, ground, index, state, self.journal.is_some())?;
        for operation in group {
            operation.apply(&mut batch)?;
        }
        batch.clear_gone(&self.swept)?;
        let Some(finished) = batch.finish(&transaction, Time::now().nanos())? else { return Ok(()) };
        let Finished { index, state, changes, effects, taken } = finished;
        if let (Some(journal), Some(effects)) = (&mut self.journal, effects) {
            let (about, entries) = (About::clone(&self.about), index.len() as u64);
            journal.commit(&Delta { effects, about, state, entries })?;
        }
        // A chip without a row is harmless; a row without its chip could never be re-embedded.
        self.add_chips(changes.chips.iter().map(|(row, chip)| (*row, chip.as_slice())), durability)?;
        self.commit_files(transaction, durability)?;
        let tables = self.tables(&self.about)?;
        self.published.publish(Snapshot::new(self.about.clone(), state, index, tables)?.made());
        taken.keep();
        self.swept.clear();
        self.gone.extend(changes.gone);
        self.weigh();
        Ok(())
    }

    /// Locks the truth that the files are a copy of, and takes in what it has that they lack.
    ///
    /// # Errors
    /// It cannot be reached, or the files cannot be written.
    pub(super) fn lock(&mut self) -> Result<(), StoreError> {
        let known = self.known();
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let applied = journal.lock(&known).and_then(|delta| delta.map_or(Ok(()), |delta| self.apply(delta)));
        if applied.is_err() {
            self.release();
        }
        applied
    }

    /// Unlocks the truth if nothing was committed to it.
    pub(super) fn release(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.release();
        }
    }

    /// Takes in what others have committed.
    ///
    /// # Errors
    /// The truth cannot be reached, or the files cannot be written.
    pub fn follow(&mut self) -> Result<(), StoreError> {
        self.check_writable()?;
        let known = self.known();
        let applied = caught(|| {
            let Some(journal) = &mut self.journal else { return Ok(()) };
            journal.fetch(&known)?.map_or(Ok(()), |delta| self.apply(delta))
        });
        let panicked = |cause: Panicked| Err(StoreError::ReadOnly { reason: cause.to_string() });
        applied.unwrap_or_else(panicked).map_err(|error| self.give_up(error))
    }

    pub(super) fn known(&self) -> Known {
        Known::new(&self.about, self.published.snapshot().state())
    }

    /// The next transaction of the rows. Where a journal has every commit, only some of them wait for the disk.
    pub(super) fn begin_write(&self) -> Result<(WriteTransaction, Durability), DatabaseError> {
        let is_unsaved = self.journal.is_some() && self.unsaved < UNSAVED_MAX;
        let durability = if is_unsaved { Durability::None } else { Durability::Immediate };
        let mut transaction = self.gallery.begin_write()?;
        set_durability(&mut transaction, durability);
        Ok((transaction, durability))
    }

    /// Commits rows, after [`add_chips`](Self::add_chips) with the same durability.
    pub(super) fn commit_files(
        &mut self,
        transaction: WriteTransaction,
        durability: Durability,
    ) -> Result<(), DatabaseError> {
        self.gallery.commit(transaction)?;
        self.unsaved = if let Durability::None = durability { self.unsaved + 1 } else { 0 };
        Ok(())
    }

    /// Adds chips before the rows that they belong to. Before rows that survive a power failure, those that were added
    /// earlier must survive it as well.
    pub(super) fn add_chips<'c>(
        &self,
        added: impl ExactSizeIterator<Item = (RowId, &'c [u8])>,
        durability: Durability,
    ) -> Result<(), DatabaseError> {
        let saves = self.unsaved > 0 && matches!(durability, Durability::Immediate);
        let Some(chips) = self.chips.as_ref().filter(|_| added.len() > 0 || saves) else { return Ok(()) };
        let mut transaction = chips.begin_write()?;
        set_durability(&mut transaction, durability);
        let mut table = transaction.open_table(CHIP_ROWS)?;
        for (row, chip) in added {
            table.insert(row.0, chip)?;
        }
        drop(table);
        chips.commit(transaction)
    }

    /// The committed state, with the generations that `about` names.
    pub(super) fn tables(&self, about: &About) -> Result<Tables, DatabaseError> {
        let chips = self.chips.as_ref().map(Database::begin_read).transpose()?;
        Tables::open(&self.gallery.begin_read()?, chips.as_ref(), about)
    }

    /// Removes the chips of deleted rows. The deletion was already acknowledged, and no reader sees them.
    pub fn sweep(&mut self) {
        let Some(chips) = self.chips.as_ref().filter(|_| !self.gone.is_empty()) else { return };
        let removed = guard(|| {
            let mut transaction = chips.begin_write()?;
            if self.journal.is_some() {
                set_durability(&mut transaction, Durability::None);
            }
            let mut table = transaction.open_table(CHIP_ROWS)?;
            for row in &self.gone {
                table.remove(row.0)?;
            }
            drop(table);
            chips.commit(transaction)
        });
        match removed {
            Ok(()) => self.swept.append(&mut self.gone),
            Err(cause) => self.published.fail(&cause.to_string()),
        }
    }

    /// Closes the files so that the next opening is quick. Readers of snapshots get errors from now on.
    pub fn close(self) {
        let snapshot = self.published.snapshot();
        let header = Header::new(&self.about, snapshot.state(), snapshot.index().len() as u64);
        if self.published.failure().is_none() {
            let written = sidecar::write(&*self.volume, &header, snapshot.index());
            written.unwrap_or_else(|cause| tracing::warn!(%cause, "the index of a gallery is not saved"));
        }
        self.abandon();
    }

    /// Closes the files of a gallery that will not be opened again.
    pub fn abandon(self) {
        self.published.are(Files::Closed);
        self.close_files();
    }

    fn close_files(self) {
        let saved = guard(|| self.add_chips([].into_iter(), Durability::Immediate));
        if let Err(cause) = saved {
            tracing::warn!(%cause, "the last chips of a gallery come again from its journal");
        }
        self.bounds.allowance.give_back(self.published.snapshot().stored_bytes() + self.excess);
        for database in [Some(self.gallery), self.chips].into_iter().flatten() {
            if let Err(cause) = database.close() {
                tracing::warn!(%cause, "a database of a gallery is not closed in order");
            }
        }
    }
}

/// The opened files of a writer.
struct Databases {
    gallery: Database,
    chips: Option<Database>,
    swept: Vec<RowId>,
}

impl Shut {
    /// # Errors
    /// It still cannot be opened.
    pub fn open(self) -> Result<Writer, Self> {
        self.published.are(Files::Reopening);
        match open(&*self.volume, self.bounds.cache_bytes) {
            Ok(Opened { gallery, chips, snapshot, swept }) => {
                self.published.publish(snapshot);
                self.published.recover();
                self.published.are(Files::Open);
                let writer = Writer::start(self, Databases { gallery, chips, swept });
                if writer.published.failure().is_none() {
                    tracing::info!("a gallery takes writes again");
                }
                Ok(writer)
            }
            Err(cause) => {
                tracing::error!(%cause, "a gallery cannot be opened again");
                self.published.are(Files::Closed);
                Err(self)
            }
        }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("published", &self.published).finish_non_exhaustive()
    }
}
