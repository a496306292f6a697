//! Folders in the database: the files of each in pieces, written and read a few at a time. All of this blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::path::{Component, Path, PathBuf};

use tokio_postgres::Client;

use super::failure::Unreachable;
use super::link::{Database, Transaction};
use super::statement::{execute, query};
use crate::durable::PartialFolder;

/// Bytes of a file in one row.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes that one statement writes, unless a single piece has more.
const BATCH_BYTES: usize = 8 << 20;
/// Rows that one statement reads.
const PIECES: i64 = 32;

/// Why a folder was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Database(#[from] Unreachable),
}

/// One folder in the database.
#[derive(Clone, Debug)]
pub struct StoredFolder {
    /// What it belongs to.
    pub owner: String,
    pub name: String,
    /// Tells it from folders of this name that others write meanwhile.
    pub term: i64,
}

/// Pieces of files that are written together.
#[derive(Default)]
struct Batch {
    paths: Vec<String>,
    numbers: Vec<i32>,
    contents: Vec<Vec<u8>>,
    bytes: usize,
}

impl StoredFolder {
    /// Writes all files below `root` in a transaction, whose end decides whether they are there.
    ///
    /// # Errors
    /// A file cannot be read, or the database cannot be reached.
    pub fn write(
        &self,
        database: &Database,
        transaction: &Transaction,
        root: &Path,
    ) -> Result<(), FolderError> {
        let mut batch = Batch::default();
        for path in files_in(root)? {
            let failed = |cause| FolderError::Io { path: root.join(&path), cause };
            let mut file = File::open(root.join(&path)).map_err(failed)?;
            for number in 0.. {
                let mut content = Vec::new();
                (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut content).map_err(failed)?;
                if content.is_empty() && number > 0 {
                    break;
                }
                batch.push(&path, number, content);
                if batch.bytes >= BATCH_BYTES {
                    database.wait(self.insert(transaction, std::mem::take(&mut batch)))?;
                }
            }
        }
        Ok(database.wait(self.insert(transaction, batch))?)
    }

    /// Makes a folder of the files, whole or not at all.
    ///
    /// # Errors
    /// The folder exists or cannot be written, or the database cannot be reached.
    pub fn read(&self, database: &Database, folder: &Path) -> Result<(), FolderError> {
        let failed = |cause| FolderError::Io { path: folder.to_owned(), cause };
        let partial = PartialFolder::new(folder).map_err(failed)?;
        let mut after = (String::new(), -1);
        loop {
            let pieces = database.wait(self.pieces(database, &after))?;
            let Some((path, number, _)) = pieces.last() else { break };
            after = (path.clone(), *number);
            for (path, _, content) in pieces {
                append(partial.path(), &path, &content).map_err(failed)?;
            }
        }
        // Syncing many small files one by one would take minutes.
        File::open(partial.path())
            .and_then(|file| rustix::fs::syncfs(file).map_err(io::Error::from))
            .and_then(|()| partial.publish())
            .map_err(failed)
    }

    async fn insert(&self, transaction: &Client, batch: Batch) -> Result<(), Unreachable> {
        let Batch { paths, numbers, contents, .. } = batch;
        let sql = "insert into files (owner, name, term, path, piece, content)
            select $1, $2, $3, n.path, n.piece, n.content from unnest($4, $5, $6) as n (path, piece, content)";
        let Self { owner, name, term } = self;
        execute!(transaction, sql, owner => TEXT, name => TEXT, term => INT8, paths => TEXT_ARRAY,
            numbers => INT4_ARRAY, contents => BYTEA_ARRAY)?;
        Ok(())
    }

    async fn pieces(
        &self,
        database: &Database,
        after: &(String, i32),
    ) -> Result<Vec<(String, i32, Vec<u8>)>, Unreachable> {
        let connection = database.connection().await?;
        let sql = "select path, piece, content from files
            where owner = $1 and name = $2 and term = $3 and (path, piece) > ($4, $5)
            order by path, piece limit $6";
        let (Self { owner, name, term }, (path, piece)) = (self, after);
        let rows = query!(connection, sql, owner => TEXT, name => TEXT, term => INT8, path => TEXT,
            piece => INT4, PIECES => INT8)?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
    }
}

impl Batch {
    fn push(&mut self, path: &str, number: i32, content: Vec<u8>) {
        self.bytes += content.len();
        self.paths.push(path.to_owned());
        self.numbers.push(number);
        self.contents.push(content);
    }
}

/// The paths of all files below a folder, relative to it.
///
/// # Errors
/// A folder cannot be read.
pub fn files_in(root: &Path) -> Result<Vec<String>, FolderError> {
    let (mut folders, mut files) = (vec![PathBuf::new()], Vec::new());
    while let Some(folder) = folders.pop() {
        let place = root.join(&folder);
        let failed = |cause| FolderError::Io { path: place.clone(), cause };
        for entry in fs::read_dir(&place).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = folder.join(entry.file_name());
            if entry.file_type().map_err(failed)?.is_dir() {
                folders.push(path);
            } else {
                files.push(path.to_string_lossy().into_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Adds a piece to a file below a folder.
fn append(root: &Path, path: &str, content: &[u8]) -> io::Result<()> {
    if !Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(io::Error::other(format!("{path:?} is no path of a file in the folder")));
    }
    let path = root.join(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().append(true).create(true).open(path)?.write_all(content)
}
