//! Lines of a process, however long, and its log on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Maximum bytes of one line; the rest of a longer one is dropped.
pub const LINE_BYTES_MAX: usize = 16 << 10;
/// Maximum bytes of one log file; the previous one is kept next to it.
const LOG_BYTES_MAX: u64 = 4 << 20;
const LOG: &str = "log.txt";
const LOG_BEFORE: &str = "log.1.txt";

/// Reads lines of bounded length.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, line: Vec::new() }
    }

    /// The next line without its end, `None` after the last. A broken pipe counts as the end.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            let bytes = self.reader.fill_buf().await.unwrap_or_default();
            if bytes.is_empty() {
                return if self.line.is_empty() { None } else { Some(self.take()) };
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Some(self.take());
            }
        }
    }

    fn take(&mut self) -> String {
        let line = String::from_utf8_lossy(&self.line).trim_end_matches('\r').to_owned();
        self.line.clear();
        line
    }
}

/// What a job's processes have written to standard error: the most recent part of it, in the job's folder.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    /// Continues where an earlier attempt ended.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(folder.join(LOG))?;
        let bytes = file.metadata()?.len();
        Ok(Self { folder: folder.to_owned(), file, bytes })
    }

    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, line: &str) -> io::Result<()> {
        if self.bytes > LOG_BYTES_MAX {
            fs::rename(self.folder.join(LOG), self.folder.join(LOG_BEFORE))?;
            *self = Self::open(&self.folder)?;
        }
        writeln!(self.file, "{line}")?;
        self.bytes += line.len() as u64 + 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(bytes: &[u8], buffer: usize) -> Vec<String> {
        let mut lines = Lines::new(tokio::io::BufReader::with_capacity(buffer, bytes));
        let mut found = Vec::new();
        while let Some(line) = lines.next().await {
            found.push(line);
        }
        found
    }

    #[tokio::test]
    async fn lines_are_read_however_the_bytes_are_cut_and_never_grow_without_bound() {
        let long = "x".repeat(3 * LINE_BYTES_MAX);
        let text = format!("one\r\n\n{long}\nnot text: \u{fffd}\nlast");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(b"\xff");
        for buffer in [1, 7, 4096, 1 << 20] {
            let found = lines(&bytes, buffer).await;
            assert_eq!(found.len(), 5);
            assert_eq!((found[0].as_str(), found[1].as_str(), found[2].len()), ("one", "", LINE_BYTES_MAX));
            assert_eq!(found[4], "last\u{fffd}");
        }
        assert!(lines(b"", 8).await.is_empty());
    }

    #[test]
    fn a_log_goes_on_and_is_bounded() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let line = "x".repeat(LINE_BYTES_MAX);
        for _ in 0..2 {
            let mut log = Log::open(folder.path()).expect("writable");
            for _ in 0..LOG_BYTES_MAX / LINE_BYTES_MAX as u64 {
                log.write(&line).expect("writable");
            }
        }
        let bytes = |name: &str| fs::metadata(folder.path().join(name)).expect("there").len();
        assert!(bytes(LOG_BEFORE) >= LOG_BYTES_MAX && bytes(LOG) <= LOG_BYTES_MAX + line.len() as u64 + 1);
    }
}
