//! One live bar for a training run, local or remote, and lines above it.

use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::output;

/// Hidden if standard error is not a terminal; lines are printed anyway.
pub struct TrainingBar(ProgressBar);

/// A step as displayed by the bar.
pub struct Step {
    pub epoch: u32,
    /// Steps taken, and all steps.
    pub position: u64,
    pub length: u64,
    pub loss: f64,
    pub rate: f64,
    pub images_per_second: f64,
    pub seconds_left: f64,
}

/// How fast an epoch went, where that is known.
#[derive(Clone, Copy)]
pub struct EpochPace {
    pub images_per_second: f64,
    /// Of the time, in which gradients were averaged with other processes.
    pub all_reduce_share: f64,
}

impl TrainingBar {
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} steps, {msg}")
            .expect("a constant template");
        Self(ProgressBar::new(0).with_style(style))
    }

    pub fn show(&self, step: &Step) {
        let Step { epoch, position, length, loss, rate, images_per_second, seconds_left } = step;
        let left = HumanDuration(Duration::try_from_secs_f64(*seconds_left).unwrap_or_default());
        self.0.set_prefix(format!("epoch {epoch}"));
        self.0.set_length(*length);
        self.0.set_position(*position);
        self.0.set_message(format!(
            "loss {loss:.3}, rate {rate:.1e}, {images_per_second:.0} images/s, {left:#} to the end"
        ));
    }

    pub fn epoch(&self, epoch: u32, mean_loss: f64, mean_accuracy: Option<f64>, pace: Option<EpochPace>) {
        let mut line = format!("epoch {epoch}: loss {mean_loss:.4}");
        if let Some(share) = mean_accuracy {
            line += &format!(", accuracy {:.1} %", share * 100.0);
        }
        if let Some(EpochPace { images_per_second, all_reduce_share }) = pace {
            line += &format!(", {images_per_second:.2} images/s");
            if all_reduce_share > 0.0 {
                line += &format!(", all-reduce {:.2} %", all_reduce_share * 100.0);
            }
        }
        self.line(&line);
    }

    /// `shares` are mAP, R1, R5 and R10.
    pub fn evaluation(&self, epoch: u32, protocol: &str, shares: [f64; 4]) {
        let percent = shares.map(|share| format!("{:.1}", share * 100.0)).join(" / ");
        self.line(&format!("epoch {epoch}: {protocol} mAP / R1 / R5 / R10 {percent} %"));
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        self.0.suspend(|| output::say(text));
    }

    /// Removes the bar; the lines stay.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
