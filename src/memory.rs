//! Limits the memory that glibc's allocator retains: it keeps freed memory separately for each arena. And how much there is.

mod limit;

pub use limit::bytes_max;

/// Environment of a process that trains. In every step its tensors come and go by gigabytes: large pages spare it most
/// address translations, and memory that glibc keeps when it is freed need not be cleared by the system again.
pub const OF_TRAINING: [(&str, &str); 3] = [
    // Read by libtorch, for tensors from 2 MiB on.
    ("THP_MEM_ALLOC_ENABLE", "1"),
    // The most that glibc accepts.
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "1099511627776"),
];

/// Limits the number of arenas that the threads of this process share. Must be called before they allocate;
/// `MALLOC_ARENA_MAX` in the environment takes precedence.
///
/// By default threads spread over eight arenas per core. Free memory at the end of an arena stays there:
/// glibc returns it only beyond a threshold, which rises with every large block that is freed, up to 64 MiB,
/// and `malloc_trim` only returns it for the main arena. Each arena would therefore retain as much as the
/// largest task that one of its threads ever ran, such as reading a model. No more threads than cores
/// allocate at the same time.
#[cfg(target_env = "gnu")]
pub fn share_arenas(cores: usize) {
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() {
        return;
    }
    let arenas = libc::c_int::try_from(cores.max(ARENAS_MIN)).unwrap_or(libc::c_int::MAX);
    // SAFETY: it sets a number that the allocator reads when it creates an arena.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) } == 0 {
        tracing::warn!(
            arenas,
            "the allocator does not bound its arenas; memory may stay high after it was freed"
        );
    }
}

/// The main arena, which grows with the break, and one more.
#[cfg(target_env = "gnu")]
const ARENAS_MIN: usize = 2;

#[cfg(not(target_env = "gnu"))]
pub fn share_arenas(_cores: usize) {}

/// Returns freed memory to the system. Without this, a server retains the memory from which its model, and
/// the model before it, was read.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: it does not touch memory in use.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
