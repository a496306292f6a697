//! State that the layers of one call share about its caller: whether the server waits for it, since when, and whether
//! its slot was given to another call.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::time::Instant;

/// The activity of one call. Clones refer to the same call.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// When a message was last received or answered.
    last: Instant,
    /// Wakes the task that waits for the caller to send; absent while no task waits.
    waiting: Option<Waker>,
    is_displaced: bool,
    has_left: bool,
}

impl Activity {
    /// The activity of a call that begins now.
    pub fn new() -> Self {
        let state = State { last: Instant::now(), waiting: None, is_displaced: false, has_left: false };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Notes that something was received from the caller.
    pub fn received(&self) {
        let mut state = self.lock();
        state.last = Instant::now();
        state.waiting = None;
    }

    /// Notes that the caller has nothing more to send.
    pub fn ended(&self) {
        self.lock().waiting = None;
    }

    /// Notes that something is being sent to the caller. The caller is not idle until it could have read it.
    pub fn answered(&self) {
        self.lock().last = Instant::now();
    }

    /// Notes that the server waits for the caller; `waker` is woken if the call loses its slot.
    pub fn wait(&self, waker: &Waker) {
        let mut state = self.lock();
        match &mut state.waiting {
            Some(known) => known.clone_from(waker),
            None => state.waiting = Some(waker.clone()),
        }
    }

    /// When a message was last received or answered.
    pub fn last(&self) -> Instant {
        self.lock().last
    }

    /// Since when the server has been waiting for the caller, if it does.
    pub fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.waiting.is_some() && !state.is_displaced).then_some(state.last)
    }

    /// Ends the call the next time it is polled, to make room for another.
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

    /// Notes that the caller disconnected in the middle of a message.
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
