//! The output of a command. Its reader may leave early, as `head` does: the command then ends as by SIGPIPE.

use std::fmt::Display;
use std::io::{self, Write};
use std::process;

use signal_hook::consts::SIGPIPE;
use signal_hook::low_level::emulate_default_handler;

use super::FAILED;

/// Prints a line, or the lines of a table.
///
/// A command whose output cannot be written, or is not read, has nothing left to do: then it ends here.
pub fn say(line: impl Display) {
    if let Err(cause) = try_say(line) {
        end(&cause);
    }
}

/// Like [`say`], for a server, which continues if its output is not read.
pub fn say_if_read(line: impl Display) {
    let _ = try_say(line);
}

/// Prints a remark next to the output; a failure to write it is ignored.
pub fn remark(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Ends the process since its output cannot be written; silently if its reader has left.
pub fn end(cause: &io::Error) -> ! {
    if cause.kind() == io::ErrorKind::BrokenPipe {
        // Rust's runtime ignores the signal. It cannot be restored for the whole process: writing to a broken
        // connection would end the command, and not only the call.
        let _ = emulate_default_handler(SIGPIPE);
    }
    remark(format_args!("shipreid: the standard output cannot be written: {cause}"));
    process::exit(FAILED.into())
}

fn try_say(line: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
