//! A ship rasterised to a fine grid: height and surface of every cell, seen from above.

use super::ship::{Block, Ship, Surface};

/// Cells per pixel, in each direction.
pub(super) const FINENESS: usize = 2;

/// How a chip is cut out around a ship. Lengths are in metres.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Framing {
    pub pixel_m: f32,
    /// Margin of water on each side, as a fraction of the ship.
    pub margin: f32,
    /// Offset of the ship from the centre: across, along.
    pub shift_m: (f32, f32),
    /// Rotation of the detector's box.
    pub tilt_rad: f32,
}

/// Cells row by row, the stern in the first row, as in most chips of the real data set.
#[derive(Clone, Debug)]
pub(super) struct Relief {
    /// Pixels.
    pub width: usize,
    pub height: usize,
    pub cell_m: f32,
    /// Above the water; 0 is water.
    pub heights: Vec<f32>,
    pub surfaces: Vec<Surface>,
    framing: Framing,
    ship: (f32, f32),
}

const WATER: Surface = Surface { albedo: [0.0; 3], echo: 0.0 };

impl Relief {
    pub fn of(ship: &Ship, framing: Framing) -> Self {
        let pixels = |metres: f32| (metres * (1.0 + 2.0 * framing.margin) / framing.pixel_m).ceil() as usize;
        let (width, height) = (pixels(ship.beam_m), pixels(ship.length_m));
        let cell_m = framing.pixel_m / FINENESS as f32;
        let mut relief = Self {
            width,
            height,
            cell_m,
            heights: Vec::new(),
            surfaces: Vec::new(),
            framing,
            ship: (ship.beam_m, ship.length_m),
        };
        for row in 0..relief.rows() {
            for column in 0..relief.columns() {
                let (surface, above) = look_down(ship, relief.place(column, row));
                relief.heights.push(above);
                relief.surfaces.push(surface);
            }
        }
        relief
    }

    pub fn columns(&self) -> usize {
        self.width * FINENESS
    }

    pub fn rows(&self) -> usize {
        self.height * FINENESS
    }

    /// Height above the water at `(across, along)` metres from a cell.
    pub fn height_off(&self, column: usize, row: usize, (across, along): (f32, f32)) -> f32 {
        let x = column as f32 + across / self.cell_m;
        let y = row as f32 + along / self.cell_m;
        if x < 0.0 || y < 0.0 || x >= self.columns() as f32 || y >= self.rows() as f32 {
            return 0.0;
        }
        self.heights[y as usize * self.columns() + x as usize]
    }

    /// The position of a cell on the ship: (x, y).
    fn place(&self, column: usize, row: usize) -> (f32, f32) {
        let centre = |index: usize, count: usize| (index as f32 + 0.5 - 0.5 * count as f32) * self.cell_m;
        let across = centre(column, self.columns()) - self.framing.shift_m.0;
        let along = centre(row, self.rows()) - self.framing.shift_m.1;
        let (sine, cosine) = self.framing.tilt_rad.sin_cos();
        (cosine * across + sine * along, cosine * along - sine * across + 0.5 * self.ship.1)
    }

    /// The fractional cell of a position on the ship: (column, row). The inverse of `place`.
    pub fn cell(&self, (x, y): (f32, f32)) -> (f32, f32) {
        let (sine, cosine) = self.framing.tilt_rad.sin_cos();
        let y = y - 0.5 * self.ship.1;
        let across = cosine * x - sine * y + self.framing.shift_m.0;
        let along = sine * x + cosine * y + self.framing.shift_m.1;
        let index = |metres: f32, count: usize| metres / self.cell_m + 0.5 * count as f32 - 0.5;
        (index(across, self.columns()), index(along, self.rows()))
    }
}

/// The topmost surface at a position, and its height above the water.
fn look_down(ship: &Ship, (x, y): (f32, f32)) -> (Surface, f32) {
    let half = ship.half_beam(y);
    let inside = |block: &&Block| (block.x.0..block.x.1).contains(&x) && (block.y.0..block.y.1).contains(&y);
    let top = ship.blocks.iter().filter(inside).max_by(|a, b| a.height_m.total_cmp(&b.height_m));
    let deck = ship.hull.freeboard_m;
    match top {
        Some(block) if half > 0.0 => (block.surface, deck + block.height_m),
        // The bulwark is slightly higher and visible to the radar.
        _ if x.abs() < half && x.abs() > half - 1.0 => (Surface { echo: 2.5, ..ship.hull.deck }, deck + 1.2),
        _ if x.abs() < half => (ship.hull.deck, deck),
        _ => (WATER, 0.0),
    }
}

/// The mean of each pixel's cells.
pub(super) fn to_pixels(cells: &[f32], width: usize, height: usize) -> Vec<f32> {
    let columns = width * FINENESS;
    let mean = |pixel: usize| {
        let (left, top) = (pixel % width * FINENESS, pixel / width * FINENESS);
        let cells = (0..FINENESS * FINENESS)
            .map(|cell| cells[(top + cell / FINENESS) * columns + left + cell % FINENESS]);
        cells.sum::<f32>() / (FINENESS * FINENESS) as f32
    };
    (0..width * height).map(mean).collect()
}
