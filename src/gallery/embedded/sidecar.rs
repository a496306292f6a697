//! The codes of all vectors in one file, which saves computing them on opening. Nothing depends on it: a file that is
//! damaged or belongs to another commit is ignored.

use std::io::{self, Read, Write};

use super::record::StateRecord;
use super::schema::CODES;
use crate::durable::Volume;
use crate::gallery::index::{Code, Index, RowId};
use crate::gallery::store::About;

const MAGIC: &[u8; 8] = b"SHIPCODE";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;

/// Identifies what a file of codes belongs to; written as its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header([u8; HEADER_BYTES]);

impl Header {
    pub fn new(about: &About, state: &StateRecord, rows: u64) -> Self {
        let mut header = [0; HEADER_BYTES];
        let fields: [&[u8]; 8] = [
            MAGIC,
            &VERSION.to_le_bytes(),
            &(about.dimension as u32).to_le_bytes(),
            &about.created_at.nanos().to_le_bytes(),
            &about.generation.to_le_bytes(),
            &state.commit.to_le_bytes(),
            &state.committed_at.to_le_bytes(),
            &rows.to_le_bytes(),
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

/// Writes the codes of `index` as a whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write(volume: &dyn Volume, header: &Header, index: &Index) -> io::Result<()> {
    volume.replace(CODES, &mut |file| {
        let mut file = Summed::new(file);
        file.write_all(&header.0)?;
        let mut bytes = Vec::new();
        for (row, code) in index.codes() {
            bytes.clear();
            bytes.extend(row.0.to_le_bytes());
            bytes.extend(code.scale.to_le_bytes());
            bytes.extend(code.residual.to_le_bytes());
            bytes.extend(code.codes.iter().map(|code| *code as u8));
            file.write_all(&bytes)?;
        }
        let checksum = file.sum.finalize();
        file.inner.write_all(&checksum.to_le_bytes())
    })
}

/// Reads codes row by row. They are valid only once [`finish`](Self::finish) succeeds.
pub struct SidecarReader {
    file: Summed<Box<dyn Read>>,
    dimension: usize,
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

impl SidecarReader {
    /// Opens the file, if there is one and its header is `header`.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn open(volume: &dyn Volume, header: &Header, dimension: usize) -> Result<Option<Self>, Unusable> {
        let Some(file) = volume.read(CODES)? else { return Ok(None) };
        let mut file = Summed::new(file);
        let mut found = [0; HEADER_BYTES];
        file.read_exact(&mut found)?;
        if found != header.0 {
            return Err(Unusable::Stale);
        }
        Ok(Some(Self { file, dimension }))
    }

    /// The code of `row`, which must be the next in the file.
    ///
    /// # Errors
    /// The next code is not that of `row`.
    pub fn next(&mut self, row: RowId) -> Result<Code, Unusable> {
        let mut head = [0; 16];
        self.file.read_exact(&mut head)?;
        let mut codes = vec![0; self.dimension];
        self.file.read_exact(&mut codes)?;
        let (found, numbers) = head.split_at(8);
        let (scale, residual) = numbers.split_at(4);
        let [scale, residual] = [scale, residual].map(|bytes| bytes.try_into().map(f32::from_le_bytes));
        let (Ok(scale), Ok(residual)) = (scale, residual) else { return Err(Unusable::Damaged) };
        if found != row.0.to_le_bytes() {
            return Err(Unusable::Damaged);
        }
        Ok(Code::from_parts(codes.into_iter().map(|code| code as i8).collect(), scale, residual))
    }

    /// # Errors
    /// There is more data, or the checksum differs.
    pub fn finish(self) -> Result<(), Unusable> {
        let expected = self.file.sum.clone().finalize();
        let mut rest = Vec::new();
        self.file.inner.take(5).read_to_end(&mut rest)?;
        if rest == expected.to_le_bytes() { Ok(()) } else { Err(Unusable::Damaged) }
    }
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
