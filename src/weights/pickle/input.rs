//! The bytes of a pickle, counted and bounded as they come.

use std::io::{self, Read};

use super::{BYTES_MAX, PickleError, TEXT_MAX};

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

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), PickleError> {
        self.at += bytes.len() as u64;
        if self.at > BYTES_MAX {
            return Err(PickleError::TooLarge { what: "bytes", max: BYTES_MAX });
        }
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

    pub(super) fn text(&mut self, length: u32) -> Result<String, PickleError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > TEXT_MAX {
            return Err(PickleError::TooLarge { what: "bytes in one text", max: TEXT_MAX as u64 });
        }
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    pub(super) fn line(&mut self) -> Result<String, PickleError> {
        let mut bytes = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                byte => bytes.push(byte),
            }
            if bytes.len() > TEXT_MAX {
                return Err(PickleError::TooLarge { what: "bytes in one text", max: TEXT_MAX as u64 });
            }
        }
        String::from_utf8(bytes).map_err(|_| self.malformed("a name is not UTF-8"))
    }

    /// A two's complement number of up to 16 bytes, the lowest first.
    pub(super) fn long(&mut self) -> Result<i128, PickleError> {
        let length = usize::from(self.byte()?);
        let mut bytes = [0; 16];
        let Some(used) = bytes.get_mut(..length) else {
            return Err(self.malformed("a number has more than 16 bytes"));
        };
        self.fill(used)?;
        let unused = 8 * (16 - length as u32);
        Ok(i128::from_le_bytes(bytes).checked_shl(unused).map_or(0, |number| number >> unused))
    }

    pub(super) fn malformed(&self, what: &'static str) -> PickleError {
        PickleError::Malformed { what, at: self.at }
    }
}
