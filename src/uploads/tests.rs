//! What uploads promise, apart from their bytes on disk.
