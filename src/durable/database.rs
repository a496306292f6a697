//! A redb database that stays readable when it can no longer be written, and that reports damage as an error instead of
//! a panic.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::thread;

use redb::{
    Builder, CommitError, ReadTransaction, ReadableDatabase, StorageBackend, StorageError, TableError,
    TransactionError, WriteTransaction,
};

use super::shield::{Health, Shield, WriteFailure, is_full};
use super::volume::Volume;

/// One database file, open for writing.
pub struct Database {
    /// `None` once it is closed or dropped.
    database: Option<redb::Database>,
    health: Health,
}

/// Why a database cannot be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The file no longer holds what was written to it.
    #[error("{0}")]
    Damaged(String),
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A write failed. Nothing is written from then on; what was committed before stays readable.
    #[error("{0}")]
    Sealed(WriteFailure),
    #[error("the database is closed")]
    Closed,
}

impl Database {
    /// Creates a new, empty database.
    ///
    /// # Errors
    /// It already exists or cannot be written.
    pub fn create(volume: &dyn Volume, name: &str, cache_bytes: usize) -> Result<Self, DatabaseError> {
        Ok(start(volume.create(name)?, name, Builder::new().set_cache_size(cache_bytes))?)
    }

    /// Opens an existing database and repairs it if it was not closed.
    ///
    /// # Errors
    /// It does not exist, cannot be read, or is damaged.
    pub fn open(volume: &dyn Volume, name: &str, cache_bytes: usize) -> Result<Self, DatabaseError> {
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        builder.set_repair_callback(|session| session.abort());
        match start(volume.open(name)?, name, &builder) {
            Err(StartError::RepairNeeded) => {}
            started => return Ok(started?),
        }
        tracing::info!(name, "a database was not closed and is repaired");
        // An earlier sync may have failed, after which the page cache can show data that is not on the disk.
        volume.forget(name)?;
        Ok(start(volume.open(name)?, name, builder.set_repair_callback(|_| {}))?)
    }

    /// # Errors
    /// The file is sealed.
    pub fn begin_write(&self) -> Result<WriteTransaction, DatabaseError> {
        self.check()?;
        Ok(self.database.as_ref().ok_or(DatabaseError::Closed)?.begin_write()?)
    }

    /// Commits. Once this returns without an error, the transaction survives a power failure.
    ///
    /// # Errors
    /// The transaction could not be written. It may or may not be there after the next opening; the file is sealed
    /// until then.
    pub fn commit(&self, transaction: WriteTransaction) -> Result<(), DatabaseError> {
        transaction.commit()?;
        self.check()
    }

    /// The state that is committed now, for as long as the transaction lives.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn begin_read(&self) -> Result<ReadTransaction, DatabaseError> {
        Ok(self.database.as_ref().ok_or(DatabaseError::Closed)?.begin_read()?)
    }

    /// Closes the file so that the next opening need not repair it. Open readers get errors from then on.
    ///
    /// # Errors
    /// The file is sealed or cannot be written. Nothing that was committed is lost.
    pub fn close(mut self) -> Result<(), DatabaseError> {
        if let Some(database) = self.database.take() {
            guard(|| database.close().map_err(|error| DatabaseError::from(redb::Error::from(error))))?;
        }
        self.check()
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    fn check(&self) -> Result<(), DatabaseError> {
        check(&self.health)
    }
}

/// redb writes while closing, and panics where the pages it needs contradict each other.
impl Drop for Database {
    fn drop(&mut self) {
        let database = self.database.take();
        let closed = guard(|| {
            drop(database);
            Ok::<_, DatabaseError>(())
        });
        if let Err(cause) = closed {
            tracing::error!(%cause, "a database cannot be closed in order");
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("health", &self.health).finish_non_exhaustive()
    }
}

fn check(health: &Health) -> Result<(), DatabaseError> {
    health.failure().map_or(Ok(()), |reason| Err(DatabaseError::Sealed(reason.clone())))
}

enum StartError {
    RepairNeeded,
    Other(DatabaseError),
}

impl From<DatabaseError> for StartError {
    fn from(error: DatabaseError) -> Self {
        Self::Other(error)
    }
}

impl From<StartError> for DatabaseError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::RepairNeeded => Self::Damaged("the database needs to be repaired".into()),
            StartError::Other(error) => error,
        }
    }
}

fn start(backend: Box<dyn StorageBackend>, name: &str, builder: &Builder) -> Result<Database, StartError> {
    let health = Health::default();
    let shield = Shield::new(backend, name, health.clone());
    guard(|| match builder.create_with_backend(shield) {
        Ok(database) => Ok(Database { database: Some(database), health }),
        Err(redb::DatabaseError::RepairAborted) => Err(StartError::RepairNeeded),
        Err(error) => Err(DatabaseError::from(redb::Error::from(error)).into()),
    })
}

/// Reads from a database and reports damage as an error. redb may panic where a file was changed from outside; such a
/// panic becomes that error.
///
/// # Errors
/// The errors of `read`, and damage where it panics.
pub fn guard<T, E: From<DatabaseError>>(read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    caught(read).unwrap_or_else(|_| Err(DatabaseError::Damaged(CONTRADICTION.into()).into()))
}

/// Where a caught panic came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Panicked {
    /// A library below, such as redb where a file was changed from outside. It is not logged.
    #[error("{CONTRADICTION}")]
    Beneath,
    /// This program. It is a bug, and it is logged.
    #[error("its writer panicked")]
    Here,
}

const CONTRADICTION: &str = "its pages contradict each other";

/// Runs an operation on a database whose damage may make redb panic.
///
/// # Errors
/// The operation panicked; what it was changing is in an undefined state.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    hush_panics();
    let before = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    done.map_err(|_| if HERE.get() { Panicked::Here } else { Panicked::Beneath })
}

/// Silences panics of libraries that [`caught`] handles, from the first call on.
fn hush_panics() {
    static ONCE: Once = Once::new();
    // The hook cannot be changed from a thread that is panicking.
    if thread::panicking() {
        return;
    }
    ONCE.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let here = panic.location().is_none_or(|location| location.file().starts_with(source()));
            HERE.set(here);
            if GUARDED.get() && !here {
                tracing::debug!(%panic, "a database panicked");
            } else {
                tell(panic);
            }
        }));
    });
}

/// Where this program's source lies, as in the locations of panics; the source of libraries lies elsewhere.
fn source() -> &'static str {
    file!().trim_end_matches("durable/database.rs")
}

thread_local! {
    /// Whether [`caught`] handles a panic of this thread.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// Whether the last panic of this thread came from this program.
    static HERE: Cell<bool> = const { Cell::new(true) };
}

impl DatabaseError {
    /// Whether the cause is a lack of room, which may pass.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io(cause) => is_full(cause),
            Self::Sealed(failure) => failure.is_full,
            Self::Damaged(_) | Self::Closed => false,
        }
    }
}

impl From<redb::Error> for DatabaseError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(cause) => match cause.kind() {
                // The file ends too early or is not a database.
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Self::Damaged(cause.to_string()),
                _ => Self::Io(cause),
            },
            redb::Error::DatabaseClosed => Self::Closed,
            redb::Error::PreviousIo => Self::Io(io::Error::other("reading has failed before")),
            other => Self::Damaged(other.to_string()),
        }
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for DatabaseError {
            fn from(error: $error) -> Self {
                redb::Error::from(error).into()
            }
        })*
    };
}
from_redb!(StorageError, TableError, TransactionError, CommitError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_library_is_told_from_one_of_this_program() {
        assert_eq!(caught(|| bytes::Bytes::new().slice(1..2)), Err(Panicked::Beneath));
        let here: Result<(), Panicked> = caught(|| panic!("a fault of ours"));
        assert_eq!(here, Err(Panicked::Here));
        assert_eq!(caught(|| 1), Ok(1));
    }
}
