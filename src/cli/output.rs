//! What a command prints. Its reader may leave early, as `head` does: the command then ends as by SIGPIPE.

use std::fmt::Display;
use std::io::{self, Write};
use std::process;

use signal_hook::consts::SIGPIPE;
use signal_hook::low_level::emulate_default_handler;

use super::FAILED;

/// Prints a line, or the lines of a table.
///
/// Nothing is left to do for a command whose output nobody reads or that has no room: then it ends here.
pub fn say(line: impl Display) {
    if let Err(cause) = try_say(line) {
        end(&cause);
    }
}

/// The same for a server, which goes on whoever reads what it prints.
pub fn say_if_read(line: impl Display) {
    let _ = try_say(line);
}

/// Prints a remark beside the output; that nobody reads it is no reason to stop.
pub fn remark(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Ends the process since its output cannot be written, without a word where its reader has left.
pub fn end(cause: &io::Error) -> ! {
    if cause.kind() == io::ErrorKind::BrokenPipe {
        // Rust's runtime ignores the signal. It cannot be restored for the whole process: a connection that breaks
        // while it is written to would end the command, and not the call.
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
