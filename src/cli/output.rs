//! What a command prints. Its reader may leave early, as `head` does.

use std::fmt::Display;
use std::io::{self, Write};

/// Prints a line, or the lines of a table.
///
/// # Errors
/// Nobody reads on, or the file behind the standard output cannot be written.
pub fn say(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

/// Prints a remark beside the output; that nobody reads it is no reason to stop.
pub fn remark(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether a command ended for nothing but that the reader of its output has left.
pub fn reader_left(cause: &anyhow::Error) -> bool {
    cause.downcast_ref::<io::Error>().is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
