//! The learning rate of an epoch: a linear warm-up, then a cosine.

use std::f64::consts::PI;

/// Rate at the start of the warm-up, and the floor, as fractions of the base rate.
const WARM_UP_START: f64 = 0.01;
const FLOOR: f64 = 0.002;

/// Learning rates of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub weights: f64,
    /// For every tensor with "bias" in its name.
    pub biases: f64,
}

/// Rates change between epochs, never within one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub base: f64,
    /// Factor on the rate of biases, also at the end of the warm-up.
    pub bias_factor: f64,
    pub warm_up_epochs: u32,
    pub epochs: u32,
}

impl Schedule {
    /// The authors' settings.
    pub const BIAS_FACTOR: f64 = 2.0;

    /// Rates of an epoch, which counts from 1; the last one uses the floor.
    pub fn rates(&self, epoch: u32) -> Rates {
        Rates { weights: self.rate(epoch, 1.0), biases: self.rate(epoch, self.bias_factor) }
    }

    fn rate(&self, epoch: u32, factor: f64) -> f64 {
        let (peak, start, floor) = (self.base * factor, self.base * WARM_UP_START, self.base * FLOOR);
        if epoch < self.warm_up_epochs {
            start + f64::from(epoch) * (peak - start) / f64::from(self.warm_up_epochs)
        } else if epoch < self.epochs {
            // The cosine starts at epoch 0; the warm-up hides its beginning.
            let turned = PI * f64::from(epoch) / f64::from(self.epochs);
            floor + 0.5 * (peak - floor) * (1.0 + turned.cos())
        } else {
            floor
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::golden;

    #[test]
    fn rates_are_the_recorded_ones() {
        for (file, base, epochs) in [("lr_hoss.csv", 5e-4, 200), ("lr_pretrain.csv", 3e-3, 60)] {
            let schedule = Schedule { base, bias_factor: 2.0, warm_up_epochs: 5, epochs };
            let text = String::from_utf8(golden::bytes(file)).expect("text");
            for line in text.lines().skip(1) {
                let cells: Vec<&str> = line.split(',').collect();
                let number = |cell: usize| cells[cell].parse::<f64>().expect("a number");
                // The first row is before any epoch and has the rates of epoch 0.
                let rates = schedule.rates(cells[0].parse().unwrap_or(0));
                for (found, expected) in [(rates.weights, number(1)), (rates.biases, number(2))] {
                    assert!((found / expected - 1.0).abs() <= 1e-9, "{file} {line}: {found}");
                }
            }
        }
    }
}
