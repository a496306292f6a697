//! glibc's allocator, held to the memory that is in use: it keeps what was freed, for each arena by itself.

/// Lets the threads of this process share so many arenas. To be called before they allocate; what the environment says
/// (`MALLOC_ARENA_MAX`) stays.
///
/// By default threads spread over eight arenas a core. What is free at the end of an arena stays there: glibc gives it
/// back only beyond a threshold, which every large block that is freed raises, up to 64 MiB, and `malloc_trim` only for
/// the main arena. So each would keep the room of the largest work that one of its threads ever did, such as reading a
/// model. No more threads than there are cores allocate at the same time.
#[cfg(target_env = "gnu")]
pub fn share_arenas(cores: usize) {
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() {
        return;
    }
    let arenas = libc::c_int::try_from(cores.max(ARENAS_MIN)).unwrap_or(libc::c_int::MAX);
    // SAFETY: it sets a number that the allocator reads when it makes an arena.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) } == 0 {
        tracing::warn!(
            arenas,
            "the allocator does not bound its arenas; memory may stay high after it was freed"
        );
    }
}

/// The main one, which grows with the break, and another.
#[cfg(target_env = "gnu")]
const ARENAS_MIN: usize = 2;

#[cfg(not(target_env = "gnu"))]
pub fn share_arenas(_cores: usize) {}

/// Gives what was freed back to the system: without this, a server holds the room of what its model was read from, and
/// of the model before it.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: it touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
