//! Limits on what a training process may take from the server it runs next to.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, nice, set_parent_process_death_signal, setrlimit,
};
use rustix::time::{ClockId, clock_gettime};

use super::child::{ChildChannel, ChildMessage, Instructions};
use super::failure::{Failure, io_reason};
use crate::durable::{DirectoryLock, LockError};
use crate::reason::FailureReason;

/// Above the server's -1000 to 0, so that the kernel picks the training process first when memory runs out.
const OOM_SCORE_ADJ: &str = "800";
/// The pause between two checks of a folder that is in use.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// A process that computes for less than this share of the time counts as stalled. In the idle class, below calls that
/// leave no core idle, it still computes for more.
const AT_WORK: f64 = 0.0002;
/// The niceness that stands for Linux's idle class, which is below all others: a busy core gives it about a hundredth of
/// its time, and an idle one all of it.
pub const IDLE: i32 = 20;

/// Makes the kernel end this process when its parent ends.
///
/// # Errors
/// The kernel refuses.
pub fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Lowers this process's priority, memory limit and protection from the OOM killer. Threads that are started later
/// inherit the limits.
///
/// # Errors
/// A limit cannot be set.
pub fn confine(instructions: &Instructions) -> io::Result<()> {
    give_way(instructions.nice)?;
    if instructions.memory_bytes_max > 0 {
        // Limits written memory, not mapped memory: CUDA maps far more than it uses.
        let limit = Rlimit { current: Some(instructions.memory_bytes_max), ..getrlimit(Resource::Data) };
        setrlimit(Resource::Data, limit)?;
    }
    // Some containers hide the file; then the kernel chooses by size alone.
    if let Err(cause) = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        tracing::warn!(%cause, "oom_score_adj stays as it is");
    }
    Ok(())
}

/// Lowers the priority of the calling thread, and of those that it starts later.
fn give_way(niceness: i32) -> io::Result<()> {
    if niceness < IDLE {
        nice(niceness)?;
    } else if let Err(cause) = join_idle_class() {
        tracing::warn!(%cause, "the idle class is closed to training, which gets the lowest other priority");
        nice(IDLE - 1)?;
    }
    Ok(())
}

fn join_idle_class() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: it reads its arguments only; on Linux, process 0 is the calling thread.
    let failed = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Locks the job's folder, once an earlier process has left it.
///
/// # Errors
/// The earlier process does not leave in time, or the folder cannot be used.
pub fn take_folder(folder: &Path, wait_max: Duration) -> Result<DirectoryLock, Failure> {
    let until = Instant::now() + wait_max;
    loop {
        match DirectoryLock::acquire(folder) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) if Instant::now() < until => thread::sleep(LOCK_PAUSE),
            Err(cause) => return Err(untaken(&cause)),
        }
    }
}

fn untaken(cause: &LockError) -> Failure {
    let reason = match cause {
        LockError::Held { .. } => FailureReason::FolderInUse,
        LockError::Io { cause, .. } => io_reason(cause, FailureReason::NotStarted),
    };
    Failure::new(reason, cause.to_string())
}

/// Sends heartbeats for as long as this process is working: a process that waits forever does not compute.
///
/// # Errors
/// The thread cannot be started.
pub fn beat(channel: ChildChannel, period: Duration) -> io::Result<()> {
    let busy = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
    };
    let mut before = busy();
    let beat = move || loop {
        thread::sleep(period);
        let now = busy();
        if now.saturating_sub(before) >= period.mul_f64(AT_WORK) {
            channel.say(&ChildMessage::Alive);
        }
        before = now;
    };
    thread::Builder::new().name("heartbeat".into()).spawn(beat).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_folder_that_cannot_be_locked_is_not_in_use() {
        for (kind, reason) in [
            (io::ErrorKind::StorageFull, FailureReason::DiskFull),
            (io::ErrorKind::QuotaExceeded, FailureReason::DiskFull),
            (io::ErrorKind::PermissionDenied, FailureReason::NotStarted),
        ] {
            assert_eq!(untaken(&LockError::Io { path: "lock".into(), cause: kind.into() }).reason, reason);
        }
    }

    /// On one core, a thread with the niceness of a device thread, which never waits, and a thread in the idle class.
    #[test]
    fn the_idle_class_gives_way_to_calls_and_still_gets_its_share() {
        const ENOUGH: Duration = Duration::from_millis(8);
        // SAFETY: it has no arguments.
        let core = usize::try_from(unsafe { libc::sched_getcpu() }).expect("Linux tells");
        let (begun, ended) = (&Barrier::new(2), &AtomicBool::new(false));
        let call = move || {
            pin(core);
            nice(5).expect("lower is allowed");
            begun.wait();
            let before = thread_time();
            while !ended.load(Ordering::Relaxed) {}
            thread_time() - before
        };
        let training = move || {
            pin(core);
            give_way(IDLE).expect("so is lowest");
            begun.wait();
            let before = thread_time();
            while thread_time() - before < ENOUGH {}
            ended.store(true, Ordering::Relaxed);
            thread_time() - before
        };
        let [call, training] = thread::scope(|scope| {
            let threads = [scope.spawn(call), scope.spawn(training)];
            threads.map(|thread| thread.join().expect("no panic").as_secs_f64())
        });
        let share = training / (call + training);
        assert!((AT_WORK..0.1).contains(&share), "{share}");
    }

    fn pin(core: usize) {
        // SAFETY: a set of cores is bits, and it is only read.
        let failed = unsafe {
            let mut cores: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(core, &mut cores);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cores)
        };
        assert_eq!(failed, 0, "{}", io::Error::last_os_error());
    }

    fn thread_time() -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
    }

    #[test]
    fn a_folder_is_taken_when_its_holder_leaves_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let held = take_folder(folder.path(), Duration::ZERO).expect("free");
        let refused = take_folder(folder.path(), Duration::ZERO).expect_err("in use");
        assert_eq!(refused.reason, FailureReason::FolderInUse);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| take_folder(folder.path(), Duration::from_secs(3600)));
            drop(held);
            waiting.join().expect("no panic").expect("free again");
        });
    }
}
