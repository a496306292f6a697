//! What a job's folder has to have for another server to continue it: the chips that it learns from, and its checkpoints.
//!
//! They are in the database, not in a folder that servers share, since only there can a write be refused to a server that
//! has lost the job: the transaction that makes a folder count is the one that checks the term.
//!
//! What no longer counts is removed afterwards, a few files at a time: a job does not wait for gigabytes to be deleted, which
//! may take longer than a statement may.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;
use tokio_postgres::Client;

use super::PostgresJobs;
use crate::durable::{discard_folder, remove_partial};
use crate::jobs::child::{CHECKPOINTS, CHIPS};
use crate::jobs::hold::Hold;
use crate::jobs::store::StoreError;
use crate::postgres::{
    Database, Fence, FolderError, StoredFolder, Transaction, Unreachable, WRITING, execute, query,
};
use crate::train::checkpoint_name;

/// Pieces of files that one statement removes, each at most a mebibyte.
const SWEPT_MAX: i64 = 64;

/// A job's folders in the database, as the holder of a term sees them.
struct Kept {
    database: Database,
    fence: Fence,
}

impl PostgresJobs {
    /// See [`JobStore::keep_folder`](crate::jobs::store::JobStore::keep_folder).
    pub async fn keep_folder(
        &self,
        hold: Hold,
        folder: PathBuf,
        saved: Vec<u64>,
    ) -> Result<bool, FolderError> {
        let kept = Kept { database: self.database().clone(), fence: hold.fence() };
        blocking(move || kept.keep(&folder, &saved)).await
    }

    /// See [`JobStore::fetch_folder`](crate::jobs::store::JobStore::fetch_folder).
    pub async fn fetch_folder(&self, hold: Hold, folder: PathBuf) -> Result<(), FolderError> {
        let kept = Kept { database: self.database().clone(), fence: hold.fence() };
        blocking(move || kept.fetch(&folder)).await
    }

    /// Removes the files of folders that do not count any more, those of every job.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn sweep(&self) -> Result<(), StoreError> {
        // A folder's files and the row by which they count are committed at once, so none is taken for a stray one. What
        // another server is removing is left to it.
        let sql = "delete from files where ctid = any (array (
            select ctid from files as stray where owner like 'job-%' and not exists (
                select from job_folders as kept
                where 'job-' || kept.job = stray.owner and kept.name = stray.name and kept.term = stray.term)
            limit $1 for update skip locked))";
        loop {
            let swept = self.database().run(move |connection| async move {
                Ok::<_, StoreError>(execute!(connection, sql, SWEPT_MAX => INT8)?)
            });
            if swept.await? == 0 {
                return Ok(());
            }
        }
    }
}

/// From the end of the transaction on, nothing counts that is kept of a job's folder.
///
/// # Errors
/// The database cannot be reached.
pub async fn remove_all(transaction: &Client, job: i64) -> Result<(), Unreachable> {
    execute!(transaction, "delete from job_folders where job = $1", job => INT8)?;
    Ok(())
}

fn owner(job: i64) -> String {
    format!("job-{job}")
}

impl Kept {
    /// Writes what is new in the folder; checkpoints that it no longer has do not count any more.
    fn keep(&self, folder: &Path, saved: &[u64]) -> Result<bool, FolderError> {
        let (known, found) = (self.names()?, names_in(folder)?);
        let saved: Vec<String> =
            saved.iter().map(|steps| format!("{CHECKPOINTS}/{}", checkpoint_name(*steps))).collect();
        let is_kept = |name: &String| {
            let term = known.iter().find(|(known, _)| known == name).map(|(_, term)| *term);
            term.is_some_and(|term| term == self.fence.term || !saved.contains(name))
        };
        for name in &found {
            if !is_kept(name) && !self.write(folder, name)? {
                return Ok(false);
            }
        }
        let is_gone = |name: &String| name != CHIPS && !found.contains(name);
        let gone: Vec<String> = known.into_iter().map(|(name, _)| name).filter(is_gone).collect();
        self.remove(&gone)
    }

    /// The folders that count, with the terms that wrote them.
    fn names(&self) -> Result<Vec<(String, i64)>, FolderError> {
        let names = self.database.wait(async {
            let connection = self.database.connection().await?;
            let sql = "select name, term from job_folders where job = $1 order by name";
            let rows = query!(connection, sql, self.fence.job => INT8)?;
            Ok::<Vec<(String, i64)>, Unreachable>(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
        });
        Ok(names?)
    }

    fn stored(&self, name: &str, term: i64) -> StoredFolder {
        StoredFolder { owner: owner(self.fence.job), name: name.to_owned(), term }
    }

    /// Writes a folder, which counts from the end of the transaction. Returns whether the job is still held.
    fn write(&self, folder: &Path, name: &str) -> Result<bool, FolderError> {
        let (job, term) = (self.fence.job, self.fence.term);
        let transaction = self.database.wait(Transaction::begin(&self.database, WRITING))?;
        self.stored(name, term).write(&self.database, &transaction, &folder.join(name))?;
        let written = self.database.wait(async {
            if !self.fence.holds(&transaction).await? {
                transaction.roll_back().await?;
                return Ok(false);
            }
            let sql = "insert into job_folders (job, name, term) values ($1, $2, $3)
                on conflict (job, name) do update set term = excluded.term";
            execute!(transaction, sql, job => INT8, name => TEXT, term => INT8)?;
            transaction.commit().await?;
            Ok::<_, Unreachable>(true)
        });
        Ok(written?)
    }

    /// Removes folders. Returns whether the job is still held.
    fn remove(&self, names: &[String]) -> Result<bool, FolderError> {
        let job = self.fence.job;
        let removed = self.database.wait(async {
            let transaction = Transaction::begin(&self.database, WRITING).await?;
            let is_held = self.fence.holds(&transaction).await?;
            if !is_held || names.is_empty() {
                transaction.roll_back().await?;
                return Ok(is_held);
            }
            let sql = "delete from job_folders where job = $1 and name = any ($2)";
            execute!(transaction, sql, job => INT8, names.to_vec() => TEXT_ARRAY)?;
            transaction.commit().await?;
            Ok::<_, Unreachable>(true)
        });
        Ok(removed?)
    }

    /// Replaces the chips and checkpoints of a folder by those that are kept.
    fn fetch(&self, folder: &Path) -> Result<(), FolderError> {
        let failed = |cause| FolderError::Io { path: folder.to_owned(), cause };
        for name in [CHIPS, CHECKPOINTS] {
            if folder.join(name).exists() {
                discard_folder(&folder.join(name)).map_err(failed)?;
            }
        }
        fs::create_dir_all(folder.join(CHECKPOINTS)).and_then(|()| remove_partial(folder)).map_err(failed)?;
        for (name, term) in self.names()? {
            self.stored(&name, term).read(&self.database, &folder.join(&name))?;
        }
        Ok(())
    }
}

/// The folders of a job's folder that are kept: its chips, and each of its checkpoints.
fn names_in(folder: &Path) -> Result<Vec<String>, FolderError> {
    let mut names = Vec::new();
    if folder.join(CHIPS).is_dir() {
        names.push(CHIPS.to_owned());
    }
    let checkpoints = folder.join(CHECKPOINTS);
    let failed = |cause| FolderError::Io { path: checkpoints.clone(), cause };
    let entries = match fs::read_dir(&checkpoints) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(names),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        // What begins with a dot is being written, or was left by a killed writer.
        if !name.starts_with('.') {
            names.push(format!("{CHECKPOINTS}/{name}"));
        }
    }
    names.sort();
    Ok(names)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FolderError> + Send + 'static,
) -> Result<T, FolderError> {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(cause) if cause.is_panic() => std::panic::resume_unwind(cause.into_panic()),
        // The runtime is being shut down, and this task with it.
        Err(_) => std::future::pending().await,
    }
}
