//! The index in one file, which saves building it on opening. Nothing depends on it: a file that is damaged or belongs
//! to another commit is ignored.

use std::io::{self, Read, Write};

use super::record::StateRecord;
use super::schema::CODES;
use crate::durable::Volume;
use crate::gallery::index::{Index, hash_mark};
use crate::gallery::store::About;

const MAGIC: &[u8; 8] = b"SHIPCODE";
/// Version 1 had codes alone.
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 64;

/// Identifies what a file belongs to; written as its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header([u8; HEADER_BYTES]);

impl Header {
    pub fn new(about: &About, state: &StateRecord, rows: u64) -> Self {
        let mut header = [0; HEADER_BYTES];
        let fields: [&[u8]; 9] = [
            MAGIC,
            &VERSION.to_le_bytes(),
            &(about.dimension as u32).to_le_bytes(),
            &about.created_at.nanos().to_le_bytes(),
            &about.generation.to_le_bytes(),
            &state.commit.to_le_bytes(),
            &state.committed_at.to_le_bytes(),
            &rows.to_le_bytes(),
            &hash_mark().to_le_bytes(),
        ];
        let mut rest = header.as_mut_slice();
        for field in fields {
            let (place, behind) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = behind;
        }
        Self(header)
    }
}

/// Writes `index` as a whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write(volume: &dyn Volume, header: &Header, index: &Index) -> io::Result<()> {
    volume.replace(CODES, &mut |file| {
        let mut file = Summed::new(file);
        file.write_all(&header.0)?;
        index.write(&mut file)?;
        let checksum = file.sum.finalize();
        file.inner.write_all(&checksum.to_le_bytes())
    })
}

/// Why a file is ignored.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("it is of another commit or gallery")]
    Stale,
    #[error("it is not as it was written")]
    Damaged,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The index in the file, if there is one and its header is `header`.
///
/// # Errors
/// The file cannot be used.
pub fn read(volume: &dyn Volume, header: &Header, about: &About) -> Result<Option<Index>, Unusable> {
    let Some(file) = volume.read(CODES)? else { return Ok(None) };
    let mut file = Summed::new(file);
    let mut found = [0; HEADER_BYTES];
    file.read_exact(&mut found)?;
    if found != header.0 {
        return Err(Unusable::Stale);
    }
    let index = Index::read(about.dimension, about.composition, &mut file)?;
    let expected = file.sum.finalize();
    let mut rest = Vec::new();
    file.inner.take(5).read_to_end(&mut rest)?;
    if rest == expected.to_le_bytes() { Ok(Some(index)) } else { Err(Unusable::Damaged) }
}

/// A stream with a running checksum.
struct Summed<S> {
    inner: S,
    sum: crc32fast::Hasher,
}

impl<S> Summed<S> {
    fn new(inner: S) -> Self {
        Self { inner, sum: crc32fast::Hasher::new() }
    }
}

impl<S: Read> Read for Summed<S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.sum.update(&out[..read]);
        Ok(read)
    }
}

impl<S: Write> Write for Summed<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
