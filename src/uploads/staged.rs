//! One upload on disk: its bytes, and the chunks in which they came.
//!
//! A folder contains `data` and `chunks`, a record for each chunk with its end and checksum, which is written after the
//! chunk is on the disk. The last valid record says how much of `data` is the upload's: what a crash has left beyond it
//! is ignored and overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::error::{UploadError, at};
use crate::durable::{is_full, write_folder};

const DATA: &str = "data";
const CHUNKS: &str = "chunks";
/// Bytes that are read at once.
const PIECE_BYTES: usize = 1 << 20;

/// The bytes of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    folder: PathBuf,
    size: u64,
    chunks: u64,
}

/// The record of a chunk: where it ends, its CRC-32, and a CRC-32 of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChunkRecord {
    end: u64,
    checksum: u32,
}

/// Reads an upload from its beginning, and verifies it.
#[derive(Debug)]
pub struct Contents {
    data: File,
    chunks: File,
    folder: PathBuf,
    size: u64,
    read: u64,
    /// The chunk that is being read, and the checksum of what was read of it.
    chunk: Option<(ChunkRecord, crc32fast::Hasher)>,
    sha256: Option<(Sha256, [u8; 32])>,
}

impl ChunkRecord {
    const BYTES: u64 = 16;

    fn to_bytes(self) -> [u8; Self::BYTES as usize] {
        let mut bytes = [0; Self::BYTES as usize];
        bytes[..8].copy_from_slice(&self.end.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.checksum.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..12]);
        bytes[12..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None` if the bytes are not a record.
    fn of_bytes(bytes: [u8; Self::BYTES as usize]) -> Option<Self> {
        let end = u64::from_le_bytes(*bytes.first_chunk()?);
        let checksum = u32::from_le_bytes(*bytes[8..].first_chunk()?);
        let record = Self { end, checksum };
        (record.to_bytes() == bytes).then_some(record)
    }
}

impl Staged {
    /// Creates an empty upload in `folder`, which must not exist.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn create(folder: &Path) -> Result<Self, UploadError> {
        write_folder(folder, &[(DATA, b""), (CHUNKS, b"")]).map_err(at(folder))?;
        Ok(Self { folder: folder.to_owned(), size: 0, chunks: 0 })
    }

    /// An upload that an earlier process has left.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(folder: &Path) -> Result<Self, UploadError> {
        let path = folder.join(CHUNKS);
        let file = File::open(&path).map_err(at(&path))?;
        let mut chunks = file.metadata().map_err(at(&path))?.len() / ChunkRecord::BYTES;
        // What follows the last valid record was not acknowledged.
        while chunks > 0 {
            if let Some(last) = record(&file, chunks - 1).map_err(at(&path))? {
                return Ok(Self { folder: folder.to_owned(), size: last.end, chunks });
            }
            chunks -= 1;
        }
        Ok(Self { folder: folder.to_owned(), size: 0, chunks: 0 })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The number of bytes that are stored durably.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes on disk if `more` are appended in one chunk.
    pub fn disk_bytes_with(&self, more: usize) -> u64 {
        let chunks = self.chunks + u64::from(more > 0);
        self.size.saturating_add(more as u64).saturating_add(chunks * ChunkRecord::BYTES)
    }

    /// When something was last appended.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn modified(&self) -> Result<SystemTime, UploadError> {
        let path = self.folder.join(CHUNKS);
        fs::metadata(&path).and_then(|metadata| metadata.modified()).map_err(at(&path))
    }

    /// The part of a chunk at `offset` that is not stored yet. The rest is a repetition of stored bytes.
    ///
    /// # Errors
    /// The chunk is empty, begins beyond the end, or differs from what is stored; or that cannot be read.
    pub fn fresh<'c>(&self, offset: u64, chunk: &'c [u8]) -> Result<&'c [u8], UploadError> {
        if chunk.is_empty() {
            return Err(UploadError::EmptyChunk);
        }
        let Some(stored) = self.size.checked_sub(offset) else {
            return Err(UploadError::Offset { offset, size: self.size });
        };
        let repeated = usize::try_from(stored).unwrap_or(usize::MAX).min(chunk.len());
        let (repeated, fresh) = chunk.split_at(repeated);
        if self.holds(offset, repeated)? {
            Ok(fresh)
        } else {
            Err(UploadError::Differs { offset, size: self.size })
        }
    }

    fn holds(&self, offset: u64, bytes: &[u8]) -> Result<bool, UploadError> {
        if bytes.is_empty() {
            return Ok(true);
        }
        let path = self.folder.join(DATA);
        let data = File::open(&path).map_err(at(&path))?;
        let mut stored = vec![0; bytes.len().min(PIECE_BYTES)];
        let mut offset = offset;
        for piece in bytes.chunks(PIECE_BYTES) {
            let stored = &mut stored[..piece.len()];
            data.read_exact_at(stored, offset).map_err(unreadable(&path))?;
            if stored != piece {
                return Ok(false);
            }
            offset += piece.len() as u64;
        }
        Ok(true)
    }

    /// Appends a chunk. It survives a power failure once this returns.
    ///
    /// # Errors
    /// It cannot be written; the upload is then as before.
    pub fn append(&mut self, chunk: &[u8]) -> Result<(), UploadError> {
        let path = self.folder.join(DATA);
        let data = OpenOptions::new().write(true).open(&path).map_err(at(&path))?;
        let written = data.write_all_at(chunk, self.size).and_then(|()| data.sync_data());
        written.map_err(|cause| {
            if is_full(&cause) {
                // Others need the room; what cannot be removed is overwritten by the next chunk.
                let _ = data.set_len(self.size);
            }
            at(&path)(cause)
        })?;
        let record = ChunkRecord { end: self.size + chunk.len() as u64, checksum: crc32fast::hash(chunk) };
        let path = self.folder.join(CHUNKS);
        let chunks = OpenOptions::new().write(true).open(&path).map_err(at(&path))?;
        let written = chunks.write_all_at(&record.to_bytes(), self.chunks * ChunkRecord::BYTES);
        written.and_then(|()| chunks.sync_data()).map_err(at(&path))?;
        (self.size, self.chunks) = (record.end, self.chunks + 1);
        Ok(())
    }

    /// Opens the upload for reading from its beginning. If `sha256` is given, the end is reached only if it is that of
    /// all bytes.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn contents(&self, sha256: Option<[u8; 32]>) -> Result<Contents, UploadError> {
        let open = |name| {
            let path = self.folder.join(name);
            File::open(&path).map_err(at(&path))
        };
        Ok(Contents {
            data: open(DATA)?,
            chunks: open(CHUNKS)?,
            folder: self.folder.clone(),
            size: self.size,
            read: 0,
            chunk: None,
            sha256: sha256.map(|expected| (Sha256::new(), expected)),
        })
    }
}

impl Contents {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The upload is damaged, cannot be read, or has another SHA-256 than expected.
    pub fn read(&mut self) -> Result<Option<Bytes>, UploadError> {
        if self.read == self.size {
            return self.end();
        }
        let (record, mut checksum) = match self.chunk.take() {
            Some(chunk) => chunk,
            None => (self.next_record()?, crc32fast::Hasher::new()),
        };
        let left = record.end - self.read;
        let mut piece = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES)];
        self.data.read_exact(&mut piece).map_err(unreadable(&self.folder.join(DATA)))?;
        self.read += piece.len() as u64;
        checksum.update(&piece);
        if let Some((sha256, _)) = &mut self.sha256 {
            sha256.update(&piece);
        }
        if self.read < record.end {
            self.chunk = Some((record, checksum));
        } else if checksum.finalize() != record.checksum {
            return Err(UploadError::Damaged);
        }
        Ok(Some(piece.into()))
    }

    fn next_record(&mut self) -> Result<ChunkRecord, UploadError> {
        let mut bytes = [0; ChunkRecord::BYTES as usize];
        self.chunks.read_exact(&mut bytes).map_err(unreadable(&self.folder.join(CHUNKS)))?;
        let record = ChunkRecord::of_bytes(bytes).ok_or(UploadError::Damaged)?;
        let is_next = self.read < record.end && record.end <= self.size;
        if is_next { Ok(record) } else { Err(UploadError::Damaged) }
    }

    fn end(&mut self) -> Result<Option<Bytes>, UploadError> {
        match self.sha256.take() {
            Some((found, expected)) => {
                let found: [u8; 32] = found.finalize().into();
                if found == expected {
                    Ok(None)
                } else {
                    Err(UploadError::Sha256 { found: hex::encode(found) })
                }
            }
            None => Ok(None),
        }
    }
}

fn record(file: &File, number: u64) -> io::Result<Option<ChunkRecord>> {
    let mut bytes = [0; ChunkRecord::BYTES as usize];
    file.read_exact_at(&mut bytes, number * ChunkRecord::BYTES)?;
    Ok(ChunkRecord::of_bytes(bytes))
}

/// A file that ends too early has lost what was written.
fn unreadable(path: &Path) -> impl Fn(io::Error) -> UploadError {
    move |cause| match cause.kind() {
        io::ErrorKind::UnexpectedEof => UploadError::Damaged,
        _ => at(path)(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged() -> (tempfile::TempDir, Staged) {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let staged = Staged::create(&parent.path().join("upload")).expect("writable");
        (parent, staged)
    }

    fn with(chunks: &[&[u8]]) -> (tempfile::TempDir, Staged) {
        let (parent, mut staged) = staged();
        chunks.iter().for_each(|chunk| staged.append(chunk).expect("writable"));
        (parent, staged)
    }

    fn read(staged: &Staged) -> Result<Vec<u8>, UploadError> {
        let mut contents = staged.contents(None)?;
        let mut all = Vec::new();
        while let Some(piece) = contents.read()? {
            all.extend(piece);
        }
        Ok(all)
    }

    #[test]
    fn what_was_appended_is_read_also_by_the_next_process() {
        let large = vec![7; PIECE_BYTES + 5];
        let (_parent, staged) = with(&[b"one", &large, b"three"]);
        let reopened = Staged::open(staged.folder()).expect("readable");
        assert_eq!(reopened, staged);
        assert_eq!(reopened.size(), large.len() as u64 + 8);
        assert_eq!(read(&reopened).expect("intact"), [b"one", &large[..], b"three"].concat());
        assert_eq!(reopened.disk_bytes_with(0), reopened.size() + 48);
        assert_eq!(reopened.disk_bytes_with(2), reopened.size() + 66);
    }

    #[test]
    fn a_chunk_is_appended_at_the_end_only_and_repeated_anywhere() {
        let (_parent, staged) = with(&[b"abcd", b"efgh"]);
        let fresh = |offset, chunk| staged.fresh(offset, chunk);
        assert_eq!(fresh(8, b"ij").expect("the end"), b"ij");
        assert_eq!(fresh(4, b"efgh").expect("repeated"), b"");
        assert_eq!(fresh(2, b"cdef").expect("across two chunks"), b"");
        assert_eq!(fresh(6, b"ghij").expect("partly repeated"), b"ij");
        for (offset, chunk) in [(0, &b"abcx"[..]), (7, b"xij")] {
            let differs = fresh(offset, chunk).expect_err("other bytes");
            assert!(matches!(differs, UploadError::Differs { size: 8, .. }), "{differs}");
        }
        for offset in [9, u64::MAX] {
            let beyond = fresh(offset, b"i").expect_err("a gap");
            assert!(matches!(beyond, UploadError::Offset { size: 8, .. }), "{beyond}");
        }
        assert!(matches!(fresh(8, b""), Err(UploadError::EmptyChunk)));
    }

    #[test]
    fn what_a_crash_tore_was_not_acknowledged_and_is_written_again() {
        let (_parent, staged) = with(&[b"abcd"]);
        let path = |name| staged.folder().join(name);
        let records = fs::read(path(CHUNKS)).expect("readable");
        fs::write(path(DATA), b"abcdXXXXXX").expect("writable");
        for torn in 0..ChunkRecord::BYTES as usize {
            let mut next = ChunkRecord { end: 10, checksum: 1 }.to_bytes().to_vec();
            next.truncate(torn);
            fs::write(path(CHUNKS), [&records[..], &next, &[0; 20]].concat()).expect("writable");
            let mut reopened = Staged::open(staged.folder()).expect("readable");
            assert_eq!(reopened.size(), 4, "{torn}");
            reopened.append(b"ef").expect("writable");
            assert_eq!(read(&reopened).expect("intact"), b"abcdef");
            let again = Staged::open(staged.folder()).expect("readable");
            assert_eq!(again.size(), 6, "{torn}");
        }
    }

    #[test]
    fn whatever_byte_of_it_changes_nothing_else_is_read() {
        let (_parent, staged) = with(&[b"abcd", b"efgh"]);
        for name in [DATA, CHUNKS] {
            let path = staged.folder().join(name);
            let intact = fs::read(&path).expect("readable");
            for place in 0..intact.len() {
                let mut flipped = intact.clone();
                flipped[place] ^= 1 << (place % 8);
                fs::write(&path, &flipped).expect("writable");
                let reopened = Staged::open(staged.folder()).expect("readable");
                match read(&reopened) {
                    Ok(all) => assert!(b"abcdefgh".starts_with(&all) && all.len() < 8, "{name} {place}"),
                    Err(cause) => assert!(matches!(cause, UploadError::Damaged), "{cause}"),
                }
            }
            fs::write(&path, &intact[..intact.len() - 1]).expect("writable");
            let read = Staged::open(staged.folder()).and_then(|cut| read(&cut));
            assert!(read.is_err() || read.is_ok_and(|all| all == b"abcd"), "{name}");
            fs::write(&path, &intact).expect("writable");
        }
    }

    #[test]
    fn the_end_is_reached_only_with_the_expected_digest() {
        let (_parent, staged) = with(&[b"abcd", b"efgh"]);
        let end = |sha256| {
            let mut contents = staged.contents(Some(sha256))?;
            while contents.read()?.is_some() {}
            Ok(())
        };
        end(Sha256::digest(b"abcdefgh").into()).expect("it is that");
        let other: Result<(), UploadError> = end(Sha256::digest(b"abcdefg").into());
        let UploadError::Sha256 { found } = other.expect_err("another one") else { panic!("its digest") };
        assert_eq!(found, hex::encode(Sha256::digest(b"abcdefgh")));
    }
}
