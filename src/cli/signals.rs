//! The signals that end a server, from the first moment of its process on.

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

/// Exit code of a server that a second signal has ended.
const INTERRUPTED: c_int = 3;
/// What asks a server to end: its supervisor, Ctrl-C, a terminal that goes away.
const ENDING: [c_int; 3] = [SIGTERM, SIGINT, SIGHUP];

/// SIGTERM, SIGINT and SIGHUP, caught for the rest of the process.
///
/// The first one is a request; a second SIGTERM or SIGINT ends the process within the signal handler, so that no thread
/// has to be free for it. A terminal that goes away sends SIGHUP more than once, which is still one request.
#[derive(Debug)]
pub struct Signals {
    asked: Arc<AtomicBool>,
    /// Becomes readable with the first signal, and stays so.
    heard: UnixStream,
}

impl Signals {
    /// Catches the signals. The first process of a container has no other defence: what it does not catch, the kernel
    /// drops.
    ///
    /// # Errors
    /// A handler cannot be installed.
    pub fn install() -> io::Result<Self> {
        let (heard, told) = UnixStream::pair()?;
        heard.set_nonblocking(true)?;
        let asked = Arc::new(AtomicBool::new(false));
        // Actions of a signal run in this order: the first one finds that nobody has asked yet.
        for signal in [SIGTERM, SIGINT] {
            flag::register_conditional_shutdown(signal, INTERRUPTED, Arc::clone(&asked))?;
        }
        for signal in ENDING {
            if signal == SIGHUP && is_ignored(signal)? {
                // nohup has seen to it that the process outlives its terminal.
                continue;
            }
            flag::register(signal, Arc::clone(&asked))?;
            pipe::register(signal, told.try_clone()?)?;
        }
        // This process may have taken over from one that held them back.
        mask(libc::SIG_UNBLOCK)?;
        Ok(Self { asked, heard })
    }

    /// Runs what may put another program into this process: signals wait meanwhile, and reach whichever comes out.
    ///
    /// # Errors
    /// The signals cannot be held back, or what `work` says.
    pub fn held_back<E: From<io::Error>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        mask(libc::SIG_BLOCK)?;
        // A request that was heard already would be forgotten with this program.
        let done = if self.were_heard() { Ok(()) } else { work() };
        mask(libc::SIG_UNBLOCK)?;
        done
    }

    pub fn were_heard(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Returns once somebody has asked the server to end, at once where that was before.
    ///
    /// # Errors
    /// The runtime has no room for what is waited on.
    pub async fn heard(&self) -> io::Result<()> {
        tokio::net::UnixStream::from_std(self.heard.try_clone()?)?.readable().await
    }
}

/// Whether whoever started this process wants it to ignore a signal.
fn is_ignored(signal: c_int) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no action is given, and `action` has room for the one that is told.
    let told = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    if told != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded and filled it.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

/// Blocks or unblocks the signals for this thread, and for those and the program that come from it.
fn mask(how: c_int) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set before anything reads it; the signals exist, and no old set is asked for.
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
