//! The store and the collectives of PyTorch's c10d.

use std::ffi::{CStr, CString, c_char, c_void};
use std::net::{IpAddr, TcpListener};
use std::os::fd::IntoRawFd as _;
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tch::Tensor;

/// c10d refused something, with the first line of its message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct C10dError(String);

/// A key-value store, served by one process, that the others reach over TCP.
#[derive(Debug)]
pub struct Store {
    handle: *mut c_void,
    /// c10d answers one request of a connection at a time.
    turn: Mutex<()>,
}

// SAFETY: the handle is a reference-counted C++ object that no thread owns; `turn` admits one at a time.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

/// Processes that compute together, over gloo on the host or over NCCL between GPUs.
#[derive(Debug)]
pub struct Group {
    handle: *mut c_void,
    /// The operations of a group must have the same order in every process.
    turn: Mutex<()>,
}

// SAFETY: as for `Store`.
unsafe impl Send for Group {}
// SAFETY: as for `Store`.
unsafe impl Sync for Group {}

/// Where a group listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The name of a network interface.
    Interface(String),
    /// An address of this machine.
    Address(IpAddr),
}

unsafe extern "C" {
    fn shipreid_c10d_free(memory: *mut c_void);
    fn shipreid_store_serve(
        socket: i32,
        host: *const c_char,
        port: u16,
        store: *mut *mut c_void,
    ) -> *mut c_char;
    fn shipreid_store_connect(
        host: *const c_char,
        port: u16,
        timeout_ms: i64,
        store: *mut *mut c_void,
    ) -> *mut c_char;
    fn shipreid_store_prefixed(
        store: *const c_void,
        prefix: *const c_char,
        prefixed: *mut *mut c_void,
    ) -> *mut c_char;
    fn shipreid_store_drop(store: *mut c_void);
    fn shipreid_store_set(
        store: *const c_void,
        key: *const c_char,
        value: *const u8,
        length: usize,
    ) -> *mut c_char;
    fn shipreid_store_set_once(
        store: *const c_void,
        key: *const c_char,
        value: *const u8,
        length: usize,
        found: *mut *mut u8,
        found_length: *mut usize,
    ) -> *mut c_char;
    fn shipreid_store_get(
        store: *const c_void,
        key: *const c_char,
        timeout_ms: i64,
        value: *mut *mut u8,
        length: *mut usize,
    ) -> *mut c_char;
    fn shipreid_store_has(store: *const c_void, key: *const c_char, has: *mut bool) -> *mut c_char;
    fn shipreid_store_add(
        store: *const c_void,
        key: *const c_char,
        amount: i64,
        sum: *mut i64,
    ) -> *mut c_char;
    fn shipreid_group_join(
        store: *const c_void,
        rank: i32,
        size: i32,
        interface: *const c_char,
        address: *const c_char,
        timeout_ms: i64,
        group: *mut *mut c_void,
    ) -> *mut c_char;
    fn shipreid_has_nccl() -> bool;
    fn shipreid_group_join_gpus(
        store: *const c_void,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        group: *mut *mut c_void,
    ) -> *mut c_char;
    fn shipreid_group_drop(group: *mut c_void);
    fn shipreid_group_sum(group: *const c_void, tensor: *const torch_sys::C_tensor) -> *mut c_char;
    fn shipreid_group_broadcast(group: *const c_void, tensor: *const torch_sys::C_tensor) -> *mut c_char;
    fn shipreid_group_gather(
        group: *const c_void,
        tensor: *const torch_sys::C_tensor,
        all: *mut *mut torch_sys::C_tensor,
    ) -> *mut c_char;
}

impl Store {
    /// Serves a store, for as long as it lives, to those who connect to `listener`.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub fn serve(listener: TcpListener) -> Result<Self, C10dError> {
        let address = listener.local_addr().map_err(|cause| C10dError(cause.to_string()))?;
        let host =
            if address.ip().is_unspecified() { "localhost".to_owned() } else { address.ip().to_string() };
        let (host, mut handle) = (text(&host), ptr::null_mut());
        // SAFETY: the shim owns the socket from now on; the place is written before a null message is returned.
        let message = unsafe {
            shipreid_store_serve(listener.into_raw_fd(), host.as_ptr(), address.port(), &raw mut handle)
        };
        outcome(message)?;
        Ok(Self::new(handle))
    }

    /// Connects to the store of `host`, which may still have to start.
    ///
    /// # Errors
    /// It is not reached in this time.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self, C10dError> {
        let (host, mut handle) = (text(host), ptr::null_mut());
        // SAFETY: the host is a C string that outlives the call; the place is written as above.
        let message =
            unsafe { shipreid_store_connect(host.as_ptr(), port, millis(timeout), &raw mut handle) };
        outcome(message)?;
        Ok(Self::new(handle))
    }

    /// A connection of its own to the same store, in which every key begins with `prefix`.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub fn prefixed(&self, prefix: &str) -> Result<Self, C10dError> {
        let (prefix, mut handle) = (text(prefix), ptr::null_mut());
        let _turn = self.turn();
        // SAFETY: a live store, a C string that outlives the call, a place that is written as above.
        outcome(unsafe { shipreid_store_prefixed(self.handle, prefix.as_ptr(), &raw mut handle) })?;
        Ok(Self::new(handle))
    }

    fn new(handle: *mut c_void) -> Self {
        Self { handle, turn: Mutex::new(()) }
    }

    /// # Errors
    /// The store cannot be reached.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), C10dError> {
        let key = text(key);
        let _turn = self.turn();
        // SAFETY: a live store, a C string, and a slice with its length.
        outcome(unsafe { shipreid_store_set(self.handle, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// Sets a key unless it has a value, and returns its value.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub fn set_once(&self, key: &str, value: &[u8]) -> Result<Vec<u8>, C10dError> {
        let (key, mut found, mut length) = (text(key), ptr::null_mut(), 0);
        let _turn = self.turn();
        // SAFETY: as in `set`; both places are written before a null message is returned.
        let message = unsafe {
            shipreid_store_set_once(
                self.handle,
                key.as_ptr(),
                value.as_ptr(),
                value.len(),
                &raw mut found,
                &raw mut length,
            )
        };
        outcome(message)?;
        Ok(take_bytes(found, length))
    }

    /// The value of a key that another process sets in this time. Other requests of this connection wait for it.
    ///
    /// # Errors
    /// It is not set in this time, or the store cannot be reached.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, C10dError> {
        let (key, mut value, mut length) = (text(key), ptr::null_mut(), 0);
        let _turn = self.turn();
        // SAFETY: as in `set_once`.
        let message = unsafe {
            shipreid_store_get(self.handle, key.as_ptr(), millis(timeout), &raw mut value, &raw mut length)
        };
        outcome(message)?;
        Ok(take_bytes(value, length))
    }

    /// # Errors
    /// The store cannot be reached.
    pub fn has(&self, key: &str) -> Result<bool, C10dError> {
        let (key, mut has) = (text(key), false);
        let _turn = self.turn();
        // SAFETY: a live store, a C string, a place that is written.
        outcome(unsafe { shipreid_store_has(self.handle, key.as_ptr(), &raw mut has) })?;
        Ok(has)
    }

    /// Adds to a counter, which starts from 0, and returns it.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, C10dError> {
        let (key, mut sum) = (text(key), 0);
        let _turn = self.turn();
        // SAFETY: as in `has`.
        outcome(unsafe { shipreid_store_add(self.handle, key.as_ptr(), amount, &raw mut sum) })?;
        Ok(sum)
    }

    fn turn(&self) -> impl Drop {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, and is not used afterwards.
        unsafe { shipreid_store_drop(self.handle) }
    }
}

impl Group {
    /// Joins the processes that meet at `store` and gives up on an operation after `timeout`.
    ///
    /// # Errors
    /// The others do not come in this time, or cannot be connected to.
    pub fn join(
        store: &Store,
        rank: usize,
        size: usize,
        device: &Device,
        timeout: Duration,
    ) -> Result<Self, C10dError> {
        let (interface, address) = match device {
            Device::Interface(name) => (Some(text(name)), None),
            Device::Address(address) => (None, Some(text(&address.to_string()))),
        };
        let pointer = |name: &Option<CString>| name.as_ref().map_or(ptr::null(), |name| name.as_ptr());
        let mut handle = ptr::null_mut();
        let _turn = store.turn();
        // SAFETY: a live store; one of the names is null, as the shim expects; the place is written as above.
        let message = unsafe {
            shipreid_group_join(
                store.handle,
                rank as i32,
                size as i32,
                pointer(&interface),
                pointer(&address),
                millis(timeout),
                &raw mut handle,
            )
        };
        outcome(message)?;
        Ok(Self { handle, turn: Mutex::new(()) })
    }

    /// Whether GPUs can be joined: libtorch's CUDA half is loaded.
    pub fn has_nccl() -> bool {
        // SAFETY: it looks names up.
        unsafe { shipreid_has_nccl() }
    }

    /// Joins the GPUs of the processes that meet at `store`; they connect at the first operation.
    ///
    /// # Errors
    /// There is no GPU, or no NCCL.
    pub fn join_gpus(store: &Store, rank: usize, size: usize, timeout: Duration) -> Result<Self, C10dError> {
        let mut handle = ptr::null_mut();
        let _turn = store.turn();
        // SAFETY: a live store; the place is written before a null message is returned.
        let message = unsafe {
            shipreid_group_join_gpus(store.handle, rank as i32, size as i32, millis(timeout), &raw mut handle)
        };
        outcome(message)?;
        Ok(Self { handle, turn: Mutex::new(()) })
    }

    /// Replaces a contiguous tensor, on the device that the group is for, by its sum over the ranks.
    ///
    /// # Errors
    /// Another rank is gone, or does something else; the group is then unusable.
    pub fn sum(&self, tensor: &Tensor) -> Result<(), C10dError> {
        let _turn = self.turn();
        // SAFETY: a live group borrows a live tensor until the operation is over.
        outcome(unsafe { shipreid_group_sum(self.handle, tensor.as_ptr()) })
    }

    /// Replaces such a tensor by that of rank 0.
    ///
    /// # Errors
    /// As for [`sum`](Self::sum).
    pub fn broadcast(&self, tensor: &Tensor) -> Result<(), C10dError> {
        let _turn = self.turn();
        // SAFETY: as in `sum`.
        outcome(unsafe { shipreid_group_broadcast(self.handle, tensor.as_ptr()) })
    }

    /// The tensors of all ranks, [..] -> [ranks, ..]; they have one shape, and are as for `sum`.
    ///
    /// # Errors
    /// As for [`sum`](Self::sum).
    pub fn gather(&self, tensor: &Tensor) -> Result<Tensor, C10dError> {
        let mut all = ptr::null_mut();
        let _turn = self.turn();
        // SAFETY: as in `sum`; the place is written before a null message is returned.
        outcome(unsafe { shipreid_group_gather(self.handle, tensor.as_ptr(), &raw mut all) })?;
        // SAFETY: the shim has written a tensor that has no other owner.
        Ok(unsafe { Tensor::from_ptr(all) })
    }

    fn turn(&self) -> impl Drop {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, and is not used afterwards.
        unsafe { shipreid_group_drop(self.handle) }
    }
}

/// Text for C, which ends at a zero byte.
fn text(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Bytes that the shim allocated.
fn take_bytes(bytes: *mut u8, length: usize) -> Vec<u8> {
    // SAFETY: the shim has written `length` bytes, which have no other owner and are freed once.
    unsafe {
        let copy = std::slice::from_raw_parts(bytes, length).to_vec();
        shipreid_c10d_free(bytes.cast());
        copy
    }
}

/// The result of a shim function: null, or a message.
fn outcome(message: *mut c_char) -> Result<(), C10dError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message is a C string allocated by the shim and freed once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        shipreid_c10d_free(message.cast());
        text
    };
    Err(C10dError(text.lines().next().unwrap_or_default().to_owned()))
}
