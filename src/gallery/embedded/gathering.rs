//! How long a writer waits for more operations before it commits. Callers that were just acknowledged often come back at
//! once; without a wait, half of them would miss the next commit and share every other one.

use std::time::Duration;

/// The longest wait is this part of the time that the last commit took, whatever the number of callers.
const SHARE_MAX: u32 = 2;
/// The shortest wait that is tried again after waits in vain.
const SHARE_MIN: u32 = 64;

/// What the last commits tell of the next.
#[derive(Debug, PartialEq, Eq)]
pub struct Gathering {
    /// Operations of the last commit and those that waited when it ended: as many as there are callers at work.
    wanted: usize,
    /// The part of a commit's time to wait: halved when too few came, and doubled when enough did.
    share: u32,
    took: Duration,
}

impl Default for Gathering {
    fn default() -> Self {
        Self { wanted: 1, share: SHARE_MAX, took: Duration::ZERO }
    }
}

impl Gathering {
    /// How many operations to wait for before the next commit, and for how long at most.
    pub fn next(&self) -> (usize, Duration) {
        (self.wanted, self.took / self.share)
    }

    /// Learns from a commit of `size` operations that took `took`, and left `waiting`.
    pub fn learn(&mut self, size: usize, waiting: usize, took: Duration) {
        let is_enough = 4 * size >= 3 * self.wanted;
        self.share =
            if is_enough { (self.share / 2).max(SHARE_MAX) } else { (self.share * 2).min(SHARE_MIN) };
        (self.wanted, self.took) = (size + waiting, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(64);

    #[test]
    fn a_caller_alone_waits_for_nobody() {
        let mut gathering = Gathering::default();
        assert_eq!(gathering.next(), (1, Duration::ZERO));
        (0..3).for_each(|_| gathering.learn(1, 0, TOOK));
        assert_eq!(gathering.next(), (1, TOOK / 2));
    }

    #[test]
    fn callers_that_come_back_are_committed_together() {
        let mut gathering = Gathering::default();
        gathering.learn(32, 32, TOOK);
        assert_eq!(gathering.next(), (64, TOOK / 2));
        gathering.learn(64, 0, TOOK);
        assert_eq!(gathering.next(), (64, TOOK / 2));
    }

    #[test]
    fn callers_that_stay_away_are_waited_for_ever_less() {
        let mut gathering = Gathering::default();
        gathering.learn(32, 32, TOOK);
        let mut waits = Vec::new();
        for _ in 0..7 {
            gathering.learn(16, 48, TOOK);
            waits.push(TOOK.as_millis() / gathering.next().1.as_millis());
        }
        assert_eq!(waits, [4, 8, 16, 32, 64, 64, 64]);
        gathering.learn(64, 0, TOOK);
        assert_eq!(gathering.next(), (64, TOOK / 32));
    }
}
