//! A radar view of a ship: layover toward the sensor, double bounces, bright points with sidelobes, speckle.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, Gamma};
use tiff::encoder::colortype::Gray32Float;

use super::optical::framing;
use super::relief::{Relief, to_pixels};
use super::ship::Ship;
use super::{Purpose, stream, tiff};

/// The sensor's pixel size in metres.
pub(super) const PIXEL_M: f32 = 1.0;
/// Echo of a wall's foot, per metre of the wall's height, in units of a bare deck's.
const DOUBLE_BOUNCE: f32 = 6.0;
/// Extent of sidelobes, in cells.
const SIDELOBES: i32 = 24;
/// Cells at least this bright have sidelobes.
const POINT_MIN: f32 = 60.0;

/// Fraction of a chip's pixels below the receiver's saturation, similar to real chips.
const UNSATURATED: f32 = 0.985;

/// Amplitudes, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct SarImage {
    pub width: usize,
    pub height: usize,
    pub amplitudes: Vec<f32>,
}

/// The position of the sensor and the roughness of the sea.
struct Look {
    /// Toward the sensor on the ground, across and along the chip.
    toward: (f32, f32),
    /// Metres on the ground by which a metre of height is displaced toward the sensor.
    layover: f32,
    sea: f32,
    looks: f32,
}

/// Radar cross-sections of cells.
struct Echoes<'a> {
    relief: &'a Relief,
    values: Vec<f32>,
}

impl SarImage {
    /// View `view` of ship `number`; deterministic for a seed.
    pub fn of(ship: &Ship, seed: u64, number: u64, view: u64) -> Self {
        let random = &mut stream(seed, Purpose::Sar, number, view);
        let relief = Relief::of(ship, framing(PIXEL_M, random));
        let look = Look::draw(random);
        let mut echoes = Echoes { values: vec![look.sea; relief.heights.len()], relief: &relief };
        echoes.add_surfaces(&look, random);
        echoes.add_cranes(ship, &look, random);
        let values = with_sidelobes(&echoes.values, relief.columns(), &look);
        let speckle = Gamma::new(look.looks, 1.0 / look.looks).expect("positive");
        let power = to_pixels(&values, relief.width, relief.height);
        let mut amplitudes: Vec<f32> =
            power.iter().map(|power| (power * speckle.sample(random)).sqrt()).collect();
        saturate(&mut amplitudes);
        Self { width: relief.width, height: relief.height, amplitudes }
    }

    /// As a TIFF of one float channel, like the SAR chips of HOSS.
    pub fn to_tiff(&self) -> Vec<u8> {
        tiff::<Gray32Float>(self.width, self.height, &self.amplitudes)
    }
}

impl Look {
    fn draw(random: &mut ChaCha8Rng) -> Self {
        let azimuth = random.random_range(0.0..std::f32::consts::TAU);
        let incidence = random.random_range(28.0..50.0_f32).to_radians();
        Self {
            toward: (azimuth.cos(), azimuth.sin()),
            layover: 0.35 / incidence.tan(),
            sea: random.random_range(0.02..0.2),
            looks: random.random_range(2.0..5.0),
        }
    }
}

impl Echoes<'_> {
    /// Every cell's own echo, displaced by its height, and a double bounce at the foot of walls
    /// that face the sensor.
    fn add_surfaces(&mut self, look: &Look, random: &mut ChaCha8Rng) {
        let relief = self.relief;
        for row in 0..relief.rows() {
            for column in 0..relief.columns() {
                let cell = row * relief.columns() + column;
                let above = relief.heights[cell];
                if above == 0.0 {
                    continue;
                }
                let glitter: f32 = Exp1.sample(random);
                self.add((column as f32, row as f32), above, look, relief.surfaces[cell].echo * glitter);
                let step = (look.toward.0 * relief.cell_m * 1.5, look.toward.1 * relief.cell_m * 1.5);
                let wall = above - relief.height_off(column, row, step);
                if wall > 1.0 {
                    let glitter: f32 = Exp1.sample(random);
                    let foot = above - wall;
                    self.add((column as f32, row as f32), foot, look, DOUBLE_BOUNCE * wall * glitter);
                }
            }
        }
    }

    fn add_cranes(&mut self, ship: &Ship, look: &Look, random: &mut ChaCha8Rng) {
        for crane in &ship.cranes {
            let top = crane.height_m + ship.hull.freeboard_m;
            let ends = [((crane.x, crane.y), crane.echo), ((crane.jib.1, crane.jib.0), 0.4 * crane.echo)];
            for (place, echo) in ends {
                let scintillation = random.random_range(0.5..1.5);
                self.add(self.relief.cell(place), top, look, echo * scintillation);
            }
        }
    }

    fn add(&mut self, (column, row): (f32, f32), above: f32, look: &Look, echo: f32) {
        let nearer = look.layover * above / self.relief.cell_m;
        let x = (column + look.toward.0 * nearer).round();
        let y = (row + look.toward.1 * nearer).round();
        if x >= 0.0 && y >= 0.0 && (x as usize) < self.relief.columns() && (y as usize) < self.relief.rows() {
            self.values[y as usize * self.relief.columns() + x as usize] += echo;
        }
    }
}

/// Clips values above the receiver's range.
fn saturate(amplitudes: &mut [f32]) {
    let mut sorted = amplitudes.to_vec();
    sorted.sort_by(f32::total_cmp);
    let most = sorted[(sorted.len() as f32 * UNSATURATED) as usize];
    amplitudes.iter_mut().for_each(|amplitude| *amplitude = amplitude.min(most));
}

/// Spreads bright cells along range and azimuth as a squared sinc.
fn with_sidelobes(values: &[f32], columns: usize, look: &Look) -> Vec<f32> {
    let rows = values.len() / columns;
    let mut lit = values.to_vec();
    let axes = [look.toward, (-look.toward.1, look.toward.0)];
    for (cell, value) in values.iter().enumerate().filter(|(_, value)| **value > POINT_MIN) {
        let (x, y) = ((cell % columns) as f32, (cell / columns) as f32);
        for (across, along) in axes {
            for far in (-SIDELOBES..=SIDELOBES).filter(|far| *far != 0) {
                let (x, y) = ((x + across * far as f32).round(), (y + along * far as f32).round());
                if x >= 0.0 && y >= 0.0 && (x as usize) < columns && (y as usize) < rows {
                    let envelope = 1.0 / (1.5 + (far as f32).powi(2));
                    lit[y as usize * columns + x as usize] += 0.5 * value * envelope;
                }
            }
        }
    }
    lit
}
