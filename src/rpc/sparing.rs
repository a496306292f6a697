//! Rate-limited log lines: where callers could cause any number, a few are written and the others are counted.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Decides which of many similar lines are written.
#[derive(Debug)]
pub struct Sparing {
    /// Lines at once, after a pause.
    burst: u32,
    /// Between two lines, over time.
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the previous line would have been written at the steady pace.
    told: Option<Instant>,
    untold: u64,
}

impl Sparing {
    pub const fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, state: Mutex::new(State { told: None, untold: 0 }) }
    }

    /// If this line is to be written, the number of lines left out since the last one.
    pub fn line(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let ahead = state.told.map_or(Duration::ZERO, |told| told.saturating_duration_since(now));
        if ahead + self.every > self.every * self.burst {
            state.untold += 1;
            return None;
        }
        state.told = Some(now + ahead + self.every);
        Some(std::mem::take(&mut state.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_lines_costs_a_few_and_the_rest_is_counted() {
        let (sparing, mut told, mut untold) = (Sparing::new(10, Duration::from_secs(1)), 0, 0);
        for _ in 0..100_000 {
            if let Some(left_out) = sparing.line() {
                (told, untold) = (told + 1, untold + left_out);
            }
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!((109..=110).contains(&told), "ten at once and one a second for 100 s: {told}");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(sparing.line().map(|left_out| told + 1 + untold + left_out), Some(100_001));
    }
}
