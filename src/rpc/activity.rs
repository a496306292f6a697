//! What the layers of one call tell each other of its caller: whether the server waits for it, since when, and whether
//! its place was given to another call.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::time::Instant;

/// One call's. Clones are of the same call.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// When something was last received or answered.
    last: Instant,
    /// Wakes whoever waits for the caller to send; absent while nobody does.
    waiting: Option<Waker>,
    is_displaced: bool,
    has_left: bool,
}

impl Activity {
    /// A call that begins now.
    pub fn new() -> Self {
        let state = State { last: Instant::now(), waiting: None, is_displaced: false, has_left: false };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Something was received from the caller.
    pub fn received(&self) {
        let mut state = self.lock();
        state.last = Instant::now();
        state.waiting = None;
    }

    /// The caller has nothing more to send.
    pub fn ended(&self) {
        self.lock().waiting = None;
    }

    /// Something is on its way to the caller, who cannot be said to be idle before it could be read.
    pub fn answered(&self) {
        self.lock().last = Instant::now();
    }

    /// The server waits for the caller, and is woken by `waker` if the call loses its place.
    pub fn wait(&self, waker: &Waker) {
        let mut state = self.lock();
        match &mut state.waiting {
            Some(known) => known.clone_from(waker),
            None => state.waiting = Some(waker.clone()),
        }
    }

    /// When something was last received or answered.
    pub fn last(&self) -> Instant {
        self.lock().last
    }

    /// Since when the server waits for the caller, if it does.
    pub fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.waiting.is_some() && !state.is_displaced).then_some(state.last)
    }

    /// Ends the call as soon as it is next looked at, for the sake of another.
    pub fn displace(&self) {
        let mut state = self.lock();
        state.is_displaced = true;
        if let Some(waker) = state.waiting.take() {
            waker.wake();
        }
    }

    pub fn is_displaced(&self) -> bool {
        self.lock().is_displaced
    }

    /// The caller has left in the middle of what it sent.
    pub fn leave(&self) {
        self.lock().has_left = true;
    }

    pub fn has_left(&self) -> bool {
        self.lock().has_left
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
