//! An optical view of a ship: sun, shadow, sea, haze, blur, noise.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tiff::encoder::colortype::RGB8;

use super::relief::{Framing, Relief, to_pixels};
use super::ship::Ship;
use super::{Purpose, stream, tiff};

/// The sensor's pixel size in metres.
pub(super) const PIXEL_M: f32 = 0.75;
/// Step of the shadow search, in metres.
const SHADOW_STEP_M: f32 = 1.0;
const SHADOW_MAX_M: f32 = 60.0;

/// RGB bytes, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpticalImage {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<u8>,
}

/// Light and weather in one picture.
struct Weather {
    /// Toward the sun, across and along the chip.
    sun: (f32, f32),
    /// Tangent of the sun's elevation.
    slope: f32,
    ambient: f32,
    gain: [f32; 3],
    haze: [f32; 3],
    sea: [f32; 3],
    waves: Waves,
    blur: f32,
    noise: f32,
}

/// Three trains of waves.
struct Waves([(f32, f32, f32); 3]);

impl OpticalImage {
    /// View `view` of ship `number`; deterministic for a seed.
    pub fn of(ship: &Ship, seed: u64, number: u64, view: u64) -> Self {
        let random = &mut stream(seed, Purpose::Optical, number, view);
        let relief = Relief::of(&ship.reloaded(random), framing(PIXEL_M, random));
        let weather = Weather::draw(random);
        let (width, height) = (relief.width, relief.height);
        let mut planes = light(&relief, &weather, random).map(|cells| to_pixels(&cells, width, height));
        for plane in &mut planes {
            blur(plane, width, weather.blur);
        }
        let mut pixels = vec![0; 3 * width * height];
        for (channel, plane) in planes.iter().enumerate() {
            for (pixel, light) in pixels[channel..].iter_mut().step_by(3).zip(plane) {
                let noise: f32 = StandardNormal.sample(random);
                let seen = weather.haze[channel] + weather.gain[channel] * light;
                *pixel = (255.0 * seen + weather.noise * noise).clamp(0.0, 255.0) as u8;
            }
        }
        Self { width, height, pixels }
    }

    /// As a TIFF of bytes, like the optical chips of HOSS.
    pub fn to_tiff(&self) -> Vec<u8> {
        tiff::<RGB8>(self.width, self.height, &self.pixels)
    }
}

/// How a detector cuts out a ship: slightly too wide, off-centre, not exactly upright.
pub(super) fn framing(pixel_m: f32, random: &mut ChaCha8Rng) -> Framing {
    Framing {
        pixel_m,
        margin: random.random_range(0.01..0.07),
        shift_m: (random.random_range(-1.0..1.0), random.random_range(-2.0..2.0)),
        tilt_rad: random.random_range(-0.015..0.015),
    }
}

impl Weather {
    fn draw(random: &mut ChaCha8Rng) -> Self {
        let azimuth = random.random_range(0.0..std::f32::consts::TAU);
        let brightness = random.random_range(0.75..1.25);
        let sea = random.random_range(0.03..0.12);
        Self {
            sun: (azimuth.cos(), azimuth.sin()),
            slope: random.random_range(30.0..70.0_f32).to_radians().tan(),
            ambient: random.random_range(0.3..0.5),
            gain: [0; 3].map(|_| brightness * random.random_range(0.88..1.12)),
            haze: [0.02, 0.03, 0.05].map(|haze| haze * random.random_range(0.2..1.8)),
            sea: [sea, sea * random.random_range(1.2..1.8), sea * random.random_range(1.6..2.6)],
            waves: Waves::draw(random),
            blur: random.random_range(0.0..0.6),
            noise: random.random_range(1.0..5.0),
        }
    }
}

impl Waves {
    fn draw(random: &mut ChaCha8Rng) -> Self {
        Self([0; 3].map(|_| {
            let (direction, length) =
                (random.random_range(0.0..std::f32::consts::TAU), random.random_range(6.0..30.0));
            let number = std::f32::consts::TAU / length;
            (number * direction.cos(), number * direction.sin(), random.random_range(0.0..6.3))
        }))
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        self.0.iter().map(|(across, along, phase)| (across * x + along * y + phase).sin()).sum::<f32>() / 3.0
    }
}

/// The light emitted by every cell: red, green, blue.
fn light(relief: &Relief, weather: &Weather, random: &mut ChaCha8Rng) -> [Vec<f32>; 3] {
    let mut planes = [(); 3].map(|()| Vec::with_capacity(relief.heights.len()));
    let highest = relief.heights.iter().copied().fold(0.0, f32::max);
    for row in 0..relief.rows() {
        for column in 0..relief.columns() {
            let cell = row * relief.columns() + column;
            let lit =
                if is_shadowed(relief, highest, (column, row), weather) { weather.ambient } else { 1.0 };
            let grain = 1.0 + 0.06 * Distribution::<f32>::sample(&StandardNormal, random);
            let light = if relief.heights[cell] > 0.0 {
                relief.surfaces[cell].albedo.map(|albedo| lit * grain * albedo)
            } else {
                let wave = weather.waves.at(column as f32 * relief.cell_m, row as f32 * relief.cell_m);
                weather.sea.map(|sea| lit * sea * (1.0 + 0.35 * wave + 0.15 * (grain - 1.0) / 0.06))
            };
            for (plane, light) in planes.iter_mut().zip(light) {
                plane.push(light);
            }
        }
    }
    planes
}

/// Whether something between a cell and the sun rises above the ray; nothing is higher than `highest`.
fn is_shadowed(relief: &Relief, highest: f32, (column, row): (usize, usize), weather: &Weather) -> bool {
    let base = relief.heights[row * relief.columns() + column];
    let steps = (SHADOW_MAX_M / SHADOW_STEP_M) as usize;
    let ray = (1..=steps).map(|step| {
        let far = step as f32 * SHADOW_STEP_M;
        (far, base + far * weather.slope)
    });
    ray.take_while(|(_, height)| *height < highest).any(|(far, height)| {
        relief.height_off(column, row, (weather.sun.0 * far, weather.sun.1 * far)) > height
    })
}

/// A separable kernel of three: with `amount` 1 a cell becomes the mean of its neighbours.
fn blur(plane: &mut [f32], width: usize, amount: f32) {
    let (side, centre) = (amount / 3.0, 1.0 - 2.0 * amount / 3.0);
    for stride in [1, width] {
        let before = plane.to_vec();
        for (index, value) in plane.iter_mut().enumerate() {
            let previous = index.checked_sub(stride).map_or(before[index], |at| before[at]);
            let next = before.get(index + stride).copied().unwrap_or(before[index]);
            *value = centre * before[index] + side * (previous + next);
        }
    }
}
