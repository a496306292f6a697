//! The bytes of a pickle, counted and bounded as they are read.

use std::io::{self, Read};

use super::{BYTES_MAX, PickleError, TEXT_MAX};

const SKIPPED_AT_A_TIME: usize = 4096;

pub(super) struct Input<'a, R> {
    reader: &'a mut R,
    at: u64,
}

impl<'a, R: Read> Input<'a, R> {
    pub(super) fn new(reader: &'a mut R) -> Self {
        Self { reader, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    fn advance(&mut self, bytes: usize) -> Result<(), PickleError> {
        self.at += bytes as u64;
        if self.at > BYTES_MAX {
            return Err(PickleError::TooLarge { what: "bytes", max: BYTES_MAX });
        }
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), PickleError> {
        self.advance(bytes.len())?;
        self.reader.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => PickleError::Truncated,
            _ => PickleError::Io(error),
        })
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn byte(&mut self) -> Result<u8, PickleError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, PickleError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, PickleError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Invalid UTF-8 is replaced: such a text does not match any name of interest.
    pub(super) fn text(&mut self, length: u64) -> Result<String, PickleError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > TEXT_MAX {
            return Err(PickleError::TooLarge { what: "bytes in one text", max: TEXT_MAX as u64 });
        }
        self.advance(length)?;
        // Grows with the data read: the announced length is not trusted for the allocation.
        let mut bytes = Vec::new();
        let mut announced = self.reader.by_ref().take(length as u64);
        if announced.read_to_end(&mut bytes).map_err(PickleError::Io)? < length {
            return Err(PickleError::Truncated);
        }
        Ok(text(bytes))
    }

    pub(super) fn line(&mut self) -> Result<String, PickleError> {
        let mut bytes = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(text(bytes)),
                byte => bytes.push(byte),
            }
            if bytes.len() > TEXT_MAX {
                return Err(PickleError::TooLarge { what: "bytes in one text", max: TEXT_MAX as u64 });
            }
        }
    }

    /// Skips bytes without storing them.
    pub(super) fn skip(&mut self, mut length: u64) -> Result<(), PickleError> {
        let mut passed = [0; SKIPPED_AT_A_TIME];
        while length > 0 {
            let part = passed.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            self.fill(&mut passed[..part])?;
            length -= part as u64;
        }
        Ok(())
    }

    /// A little-endian two's complement number of `length` bytes; `None` if it has more than 16.
    pub(super) fn long(&mut self, length: u64) -> Result<Option<i128>, PickleError> {
        let mut bytes = [0; 16];
        let Some(used) = usize::try_from(length).ok().and_then(|length| bytes.get_mut(..length)) else {
            return self.skip(length).map(|()| None);
        };
        self.fill(used)?;
        let unused = 8 * (16 - length as u32);
        Ok(Some(i128::from_le_bytes(bytes).checked_shl(unused).map_or(0, |number| number >> unused)))
    }

    pub(super) fn malformed(&self, what: &'static str) -> PickleError {
        PickleError::Malformed { what, at: self.at }
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
