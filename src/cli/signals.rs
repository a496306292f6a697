//! The signals that end a server, handled from the start of its process.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::c_int;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::pipe;

/// Exit code of a server that was ended by a second signal.
const INTERRUPTED: c_int = 3;
/// Signals that ask a server to end: from its supervisor, Ctrl-C, a closed terminal.
const ENDING: [c_int; 3] = [SIGTERM, SIGINT, SIGHUP];

/// SIGTERM, SIGINT and SIGHUP, caught for the rest of the process.
///
/// The first one is a request; a second SIGTERM or SIGINT ends the process within the signal handler, so that no thread
/// has to be free for it. A closed terminal sends SIGHUP more than once, which still counts as one request.
#[derive(Debug)]
pub struct Signals {
    asked: Arc<AtomicBool>,
    /// Becomes readable with the first signal, and stays readable.
    heard: UnixStream,
}

impl Signals {
    /// Catches the signals. The first process of a container needs this: the kernel drops signals that it does not
    /// catch.
    ///
    /// # Errors
    /// A handler cannot be installed.
    pub fn install() -> io::Result<Self> {
        let (heard, told) = UnixStream::pair()?;
        heard.set_nonblocking(true)?;
        let asked = Arc::new(AtomicBool::new(false));
        // Actions of a signal run in this order: at the first signal, no request has been recorded yet.
        for signal in [SIGTERM, SIGINT] {
            flag::register_conditional_shutdown(signal, INTERRUPTED, Arc::clone(&asked))?;
        }
        for signal in ENDING {
            if signal == SIGHUP && is_ignored(signal)? {
                // nohup has arranged for the process to outlive its terminal.
                continue;
            }
            flag::register(signal, Arc::clone(&asked))?;
            pipe::register(signal, told.try_clone()?)?;
        }
        // This process may have replaced one that had blocked them.
        mask(libc::SIG_UNBLOCK)?;
        Ok(Self { asked, heard })
    }

    /// Runs work that may replace the program in this process: signals are blocked meanwhile, and reach whichever
    /// program continues.
    ///
    /// # Errors
    /// The signals cannot be blocked, or `work` fails.
    pub fn held_back<E: From<io::Error>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        mask(libc::SIG_BLOCK)?;
        // A request that was already received would be lost with this program.
        let done = if self.were_heard() { Ok(()) } else { work() };
        mask(libc::SIG_UNBLOCK)?;
        done
    }

    pub fn were_heard(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Returns once the server was asked to end; immediately if that has already happened.
    ///
    /// # Errors
    /// The runtime cannot register the stream.
    pub async fn heard(&self) -> io::Result<()> {
        tokio::net::UnixStream::from_std(self.heard.try_clone()?)?.readable().await
    }
}

/// Whether the process was started with a signal ignored.
fn is_ignored(signal: c_int) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no action is given, and `action` has room for the one that is returned.
    let told = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    if told != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded and filled it.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

/// Blocks or unblocks the signals for this thread, and for its future threads and a program that replaces it.
fn mask(how: c_int) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set before anything reads it; the signals exist, and no old set is requested.
    let code = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in ENDING {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), ptr::null_mut())
    };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// Becomes true at Ctrl-C or SIGTERM.
///
/// # Errors
/// A handler cannot be installed.
pub(super) fn interrupted() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}
