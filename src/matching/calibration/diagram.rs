//! Reliability diagrams: observed shares against predicted probabilities, one panel for each pair of modalities.
//!
//! Both axes are linear in log-odds: pairs of one vessel are so rare that evenly spaced probabilities would put every
//! point into one corner.

use std::ops::Range;

use image::{Rgb, RgbImage};

use super::fit::HeldOut;
use super::reliability::{Bin, Reliability};

/// Sizes in pixels of a panel, and of the square in it that contains the points.
const PANEL: (i32, i32) = (380, 430);
const PLOT: i32 = 280;
/// The square's lower left corner in its panel.
const ORIGIN: (i32, i32) = (70, 372);
/// Radius of a point in pixels: for one pair, and the increase for every factor of ten.
const RADIUS: f64 = 3.0;
const RADIUS_A_DECADE: f64 = 1.8;
/// Decades of odds from the middle of an axis to its ends; points beyond are drawn at the end.
const DECADES: f64 = 5.0;
/// Probabilities close to decades of odds.
const LABELS: [(f64, &str); 5] =
    [(-4.0, "0.0001"), (-2.0, "0.01"), (0.0, "0.5"), (2.0, "0.99"), (4.0, "0.9999")];
/// Pixels between a label and its axis, so that points on the axis do not cover it.
const LABEL_GAP: i32 = 14;
/// Pixels per pixel of a glyph.
const SCALE: i32 = 2;

const PAPER: Rgb<u8> = Rgb([24, 24, 24]);
const GRID: Rgb<u8> = Rgb([60, 60, 60]);
const INK: Rgb<u8> = Rgb([220, 220, 220]);
const APPEARANCE: Rgb<u8> = Rgb([240, 160, 60]);
const WITH_SIZE: Rgb<u8> = Rgb([80, 170, 250]);

/// Points on the diagonal are probabilities that came true. A larger point stands for more pairs; a point above the
/// diagonal was more often one vessel than predicted. `measured` names each panel.
pub fn reliability_diagram<'n, 'm>(measured: impl IntoIterator<Item = (&'n str, &'m HeldOut)>) -> RgbImage {
    let measured: Vec<_> = measured.into_iter().collect();
    let mut picture = Picture::new(PANEL.0 * measured.len().max(1) as i32, PANEL.1);
    for (column, (name, held_out)) in (0..).zip(measured) {
        let panel = Panel { left: column * PANEL.0 };
        panel.draw_axes(&mut picture, name);
        panel.draw(
            &mut picture,
            0,
            &Series { name: "APPEARANCE", colour: APPEARANCE, hole: 0.0, of: &held_out.appearance },
        );
        if let Some(of) = &held_out.with_size {
            panel.draw(&mut picture, 1, &Series { name: "WITH SIZE", colour: WITH_SIZE, hole: 0.75, of });
        }
    }
    picture.0
}

struct Series<'r> {
    name: &'static str,
    colour: Rgb<u8>,
    /// Share of a point's radius that is transparent.
    hole: f64,
    of: &'r Reliability,
}

struct Panel {
    left: i32,
}

impl Panel {
    fn draw_axes(&self, picture: &mut Picture, name: &str) {
        let ends = DECADES as i32;
        for decade in (-ends..=ends).map(f64::from) {
            let colour = if decade == -DECADES { INK } else { GRID };
            picture.line(self.place(decade, -DECADES), self.place(decade, DECADES), colour);
            picture.line(self.place(-DECADES, decade), self.place(DECADES, decade), colour);
        }
        for (decade, label) in LABELS {
            let (x, y) = self.place(decade, -DECADES);
            picture.text((x - width(label) / 2, y + LABEL_GAP), label, INK);
            let (x, y) = self.place(-DECADES, decade);
            picture.text((x - LABEL_GAP - width(label), y - 5), label, INK);
        }
        picture.line(self.at(0.0, 0.0), self.at(1.0, 1.0), INK);
        picture.text((self.left + ORIGIN.0, 14), &name.to_uppercase(), INK);
        let (x, y) = self.at(0.5, 0.0);
        picture.text((x - width("PREDICTED") / 2, y + 36), "PREDICTED", INK);
        picture.text((self.left + 8, self.at(0.0, 1.0).1 - 22), "OBSERVED", INK);
    }

    fn draw(&self, picture: &mut Picture, line: i32, series: &Series) {
        let point = |bin: &Bin| self.at(bin.predicted, bin.observed);
        for neighbours in series.of.bins.windows(2) {
            picture.line(point(&neighbours[0]), point(&neighbours[1]), series.colour);
        }
        for bin in &series.of.bins {
            let radius = RADIUS + RADIUS_A_DECADE * (bin.pairs as f64).log10();
            picture.ring(point(bin), radius * series.hole - 1.0..radius, series.colour);
        }
        let text = format!("{} LOG LOSS {:.4}", series.name, series.of.log_loss);
        picture.text((self.left + ORIGIN.0, 28 + 14 * line), &text, series.colour);
    }

    /// The position of a predicted and an observed share.
    fn at(&self, predicted: f64, observed: f64) -> (i32, i32) {
        let decades = |share: f64| (share / (1.0 - share)).log10().clamp(-DECADES, DECADES);
        self.place(decades(predicted), decades(observed))
    }

    /// The position of decades of predicted and observed odds.
    fn place(&self, predicted: f64, observed: f64) -> (i32, i32) {
        let pixels = |decades: f64| ((decades + DECADES) / (2.0 * DECADES) * f64::from(PLOT)).round() as i32;
        (self.left + ORIGIN.0 + pixels(predicted), ORIGIN.1 - pixels(observed))
    }
}

struct Picture(RgbImage);

impl Picture {
    fn new(width: i32, height: i32) -> Self {
        Self(RgbImage::from_pixel(width.unsigned_abs(), height.unsigned_abs(), PAPER))
    }

    /// Blends a share of `colour` into a pixel; positions outside the picture are ignored.
    fn mix(&mut self, (x, y): (i32, i32), colour: Rgb<u8>, share: f64) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        if let Some(pixel) = self.0.get_pixel_mut_checked(x, y) {
            for (old, new) in pixel.0.iter_mut().zip(colour.0) {
                *old = (f64::from(*old) * (1.0 - share) + f64::from(new) * share).round() as u8;
            }
        }
    }

    fn line(&mut self, from: (i32, i32), to: (i32, i32), colour: Rgb<u8>) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let steps = dx.abs().max(dy.abs()).max(1);
        for step in 0..=steps {
            self.mix((from.0 + dx * step / steps, from.1 + dy * step / steps), colour, 1.0);
        }
    }

    /// Draws a ring between two radii; an inner radius below 0 leaves no hole.
    fn ring(&mut self, centre: (i32, i32), radii: Range<f64>, colour: Rgb<u8>) {
        let reach = radii.end.ceil() as i32 + 1;
        for dy in -reach..=reach {
            for dx in -reach..=reach {
                let within =
                    |radius: f64| (radius + 0.5 - f64::from(dx).hypot(f64::from(dy))).clamp(0.0, 1.0);
                let covered = within(radii.end) - within(radii.start);
                self.mix((centre.0 + dx, centre.1 + dy), colour, covered);
            }
        }
    }

    /// Capitals, digits and a few signs; other characters are blank.
    fn text(&mut self, (left, top): (i32, i32), text: &str, colour: Rgb<u8>) {
        for (place, character) in (0..).zip(text.chars()) {
            for pixel in 0..15 {
                if glyph(character) >> (14 - pixel) & 1 == 1 {
                    let (x, y) = (left + (place * 4 + pixel % 3) * SCALE, top + pixel / 3 * SCALE);
                    (0..SCALE * SCALE).for_each(|n| self.mix((x + n % SCALE, y + n / SCALE), colour, 1.0));
                }
            }
        }
    }
}

/// Pixels of a line of text.
fn width(text: &str) -> i32 {
    (text.len() as i32 * 4 - 1) * SCALE
}

/// Three by five pixels, row by row from the upper left.
fn glyph(character: char) -> u16 {
    match character {
        '0' => 0b111_101_101_101_111,
        '1' => 0b010_110_010_010_111,
        '2' => 0b111_001_111_100_111,
        '3' => 0b111_001_111_001_111,
        '4' => 0b101_101_111_001_001,
        '5' => 0b111_100_111_001_111,
        '6' => 0b111_100_111_101_111,
        '7' => 0b111_001_010_010_010,
        '8' => 0b111_101_111_101_111,
        '9' => 0b111_101_111_001_111,
        '.' => 0b000_000_000_000_010,
        '-' => 0b000_000_111_000_000,
        'A' => 0b010_101_111_101_101,
        'B' => 0b110_101_110_101_110,
        'C' => 0b011_100_100_100_011,
        'D' => 0b110_101_101_101_110,
        'E' => 0b111_100_110_100_111,
        'G' => 0b011_100_101_101_011,
        'H' => 0b101_101_111_101_101,
        'I' => 0b111_010_010_010_111,
        'L' => 0b100_100_100_100_111,
        'N' => 0b110_101_101_101_101,
        'O' => 0b010_101_101_101_010,
        'P' => 0b110_101_110_100_100,
        'R' => 0b110_101_110_101_101,
        'S' => 0b011_100_010_001_110,
        'T' => 0b111_010_010_010_010,
        'V' => 0b101_101_101_101_010,
        'W' => 0b101_101_101_111_101,
        'Z' => 0b111_001_010_100_111,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(bins: &[(f64, f64, u64)], with_size: bool) -> HeldOut {
        let bins = bins.iter().map(|(predicted, observed, pairs)| Bin {
            predicted: *predicted,
            observed: *observed,
            pairs: *pairs,
        });
        let appearance = Reliability {
            same_pairs: 10,
            other_pairs: 90,
            log_loss: 0.1234,
            log_loss_of_prior: 0.325,
            bins: bins.collect(),
        };
        let with_size = with_size.then(|| appearance.clone());
        HeldOut { appearance, with_size }
    }

    #[test]
    fn points_lie_where_predicted_and_observed_meet() {
        let pairs = measured(&[(0.0, 0.0, 1), (0.5, 0.25, 1_000)], false);
        let picture = reliability_diagram([("optical-sar", &pairs)]);
        assert_eq!(picture.dimensions(), (380, 430));
        let beside = |predicted: f64, observed: f64, pixels: u32| {
            let (x, y) = Panel { left: 0 }.at(predicted, observed);
            *picture.get_pixel(x as u32 + pixels, y as u32)
        };
        assert_eq!(beside(0.5, 0.25, 0), APPEARANCE);
        assert_eq!(beside(0.0, 0.0, 0), APPEARANCE);
        assert_eq!(beside(0.75, 0.75, 0), INK, "the diagonal");
        assert_eq!(beside(0.95, 0.05, 0), PAPER);
        // A thousand pairs make a larger point than one.
        assert_eq!(beside(0.5, 0.25, 7), APPEARANCE);
        assert_ne!(beside(0.0, 0.0, 7), APPEARANCE);
    }

    #[test]
    fn what_appearance_says_is_seen_through_what_size_adds() {
        let pairs = measured(&[(0.01, 0.01, 1_000)], true);
        let picture = reliability_diagram([("optical-sar", &pairs)]);
        let (x, y) = Panel { left: 0 }.at(0.01, 0.01);
        assert_eq!(*picture.get_pixel(x as u32, y as u32), APPEARANCE);
        assert_eq!(*picture.get_pixel(x as u32 + 7, y as u32), WITH_SIZE);
    }

    #[test]
    fn every_letter_of_the_labels_has_a_glyph() {
        for text in ["APPEARANCE LOG LOSS 0123456789.", "WITH SIZE", "PREDICTED", "OBSERVED"] {
            assert!(text.chars().all(|character| character == ' ' || glyph(character) != 0), "{text}");
        }
        for pair in crate::matching::ModalityPair::EVERY {
            assert!(pair.name().to_uppercase().chars().all(|character| glyph(character) != 0));
        }
        assert_eq!(reliability_diagram([]).dimensions(), (380, 430), "nothing to show is an empty panel");
    }
}
