//! How long a batch will take: `t(n) = a * n + b`, fitted to the batches that ran.

use std::time::Duration;

/// The factor by which a batch's weight decays with each newer one; about the last twenty decide.
const FORGETTING: f64 = 0.95;

/// Least squares over an exponentially fading history.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchTime {
    weight: f64,
    n: f64,
    nn: f64,
    t: f64,
    nt: f64,
}

impl BatchTime {
    /// Records a batch of `size` chips.
    pub fn record(&mut self, size: usize, took: Duration) {
        let (n, t) = (size as f64, took.as_secs_f64());
        for (sum, term) in [
            (&mut self.weight, 1.0),
            (&mut self.n, n),
            (&mut self.nn, n * n),
            (&mut self.t, t),
            (&mut self.nt, n * t),
        ] {
            *sum = *sum * FORGETTING + term;
        }
    }

    /// Expected time of a batch of `size` chips; zero before the first batch ran.
    pub fn predict(&self, size: usize) -> Duration {
        if self.weight == 0.0 {
            return Duration::ZERO;
        }
        let spread = self.weight * self.nn - self.n * self.n;
        let slope = (self.weight * self.nt - self.n * self.t) / spread;
        let base = (self.t - slope * self.n) / self.weight;
        // Batches of one size, or noise, leave the line undetermined: then time is assumed to be proportional.
        let seconds = if spread > 1e-9 * self.weight * self.nn && slope >= 0.0 && base >= 0.0 {
            slope * size as f64 + base
        } else {
            self.t / self.n * size as f64
        };
        Duration::from_secs_f64(seconds)
    }

    /// Expected time until `chips` queued behind `ahead` waiting ones are done, in full batches of `batch_max` on
    /// `workers` devices. If any chips wait, the devices are already busy with a batch.
    pub fn predict_behind(&self, ahead: usize, chips: usize, batch_max: usize, workers: usize) -> Duration {
        let full = self.predict(batch_max);
        let busy = if ahead > 0 { full } else { Duration::ZERO };
        let batches = (ahead + chips) as f64 / batch_max as f64;
        busy + full.mul_f64(batches / workers as f64).max(self.predict(chips.min(batch_max)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(time: Duration, milliseconds: f64) -> bool {
        (time.as_secs_f64() * 1e3 - milliseconds).abs() < 0.5
    }

    #[test]
    fn who_comes_behind_others_waits_for_their_batches() {
        let mut time = BatchTime::default();
        for size in [1, 2, 4, 8] {
            time.record(size, Duration::from_millis(10 * size as u64));
        }
        assert!(close(time.predict_behind(0, 1, 8, 2), 10.0), "an idle device");
        assert!(close(time.predict_behind(0, 32, 8, 2), 160.0), "four batches on two devices");
        assert!(close(time.predict_behind(31, 1, 8, 2), 240.0), "the running batches, then those");
        assert_eq!(BatchTime::default().predict_behind(100, 1, 8, 1), Duration::ZERO);
    }

    #[test]
    fn a_line_is_found_and_a_change_is_followed() {
        let mut time = BatchTime::default();
        assert_eq!(time.predict(8), Duration::ZERO);
        for size in [1, 2, 4, 8, 1, 8] {
            time.record(size, Duration::from_millis(10 * size as u64 + 5));
        }
        assert!(close(time.predict(16), 165.0));
        for _ in 0..60 {
            for size in [1, 2, 4, 8] {
                time.record(size, Duration::from_millis(20 * size as u64 + 5));
            }
        }
        assert!(close(time.predict(16), 325.0));
    }

    #[test]
    fn batches_of_one_size_predict_in_proportion() {
        let mut time = BatchTime::default();
        for _ in 0..100 {
            time.record(8, Duration::from_millis(80));
        }
        assert!(close(time.predict(8), 80.0) && close(time.predict(1), 10.0));
    }
}
