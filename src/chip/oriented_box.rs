//! Cutting an upright ship out of a larger image.

use super::decode::{Pixels, Raster};
use super::doubts::Framing;
use super::pixel_size::PixelSize;

/// How far angles may be from a right angle, and positions from the middle of a pixel, to count as exact.
const TOLERANCE: f64 = 1e-9;

/// A rotated rectangle in the pixels of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OrientedBox {
    center: (f64, f64),
    length: f64,
    width: f64,
    angle_deg: f64,
}

/// A rectangle that cannot be cut out.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum BoxError {
    #[error("oriented_box has a number that is not finite")]
    NotFinite,
    #[error("oriented_box has length {length} and width {width}, both must be at least 1 pixel")]
    Empty { length: f64, width: f64 },
    #[error("oriented_box has {length} x {width} pixels, the limit is {limit}")]
    TooLarge { length: f64, width: f64, limit: u64 },
    #[error("oriented_box lies outside the image of {width} x {height} pixels")]
    Outside { width: usize, height: usize },
}

/// The cut as a separate image.
pub(super) struct Cut {
    pub raster: Raster,
    pub pixel_size: PixelSize,
    pub framing: Framing,
    /// A part of the box was outside the image and is black.
    pub leaves_image: bool,
}

impl OrientedBox {
    /// `center_x`, `center_y`, `length`, `width` in pixels, 0 being the outer edge of the first pixel; the angle is
    /// clockwise from the image's upward direction to the ship's long axis.
    ///
    /// # Errors
    /// If numbers are not finite, or a side is below one pixel.
    pub fn new(
        center_x: f64,
        center_y: f64,
        length: f64,
        width: f64,
        angle_deg: f64,
    ) -> Result<Self, BoxError> {
        if ![center_x, center_y, length, width, angle_deg].iter().all(|number| number.is_finite()) {
            return Err(BoxError::NotFinite);
        }
        if length < 1.0 || width < 1.0 {
            return Err(BoxError::Empty { length, width });
        }
        Ok(Self { center: (center_x, center_y), length, width, angle_deg })
    }

    /// Column and row.
    pub fn center(&self) -> (f64, f64) {
        self.center
    }

    /// Pixels along the ship.
    pub fn length(&self) -> f64 {
        self.length
    }

    /// Pixels across the ship.
    pub fn width(&self) -> f64 {
        self.width
    }

    pub fn angle_deg(&self) -> f64 {
        self.angle_deg
    }

    /// Samples the box bilinearly, bow or stern up; without a rotation and on whole pixels it is a copy.
    ///
    /// Where pixels are not square, they are sampled along the ship and, on the ground, at right angles to
    /// it, so that the ship is not sheared. The long sides of the box stay where they are.
    pub(super) fn cut(&self, from: &Raster, pixel_size: PixelSize, pixels_max: u64) -> Result<Cut, BoxError> {
        let &Self { length, width, angle_deg, .. } = self;
        if length * width > pixels_max as f64 {
            return Err(BoxError::TooLarge { length, width, limit: pixels_max });
        }
        let (sin, cos) = sin_cos(angle_deg);
        let (rows, columns) = (length.round() as usize, width.round() as usize);
        let sampling =
            Sampling { cut: *self, down: (-sin, cos), right: across(sin, cos, pixel_size), rows, columns };
        if !sampling.touches(from) {
            return Err(BoxError::Outside { width: from.width, height: from.height });
        }
        let pixels = match &from.pixels {
            Pixels::Rgb(bytes) => {
                let mut out = Vec::with_capacity(rows * columns * 3);
                sampling.each(|x, y| {
                    out.extend(
                        blend(from, x, y, |i| [0, 1, 2].map(|c| f64::from(bytes[i * 3 + c])))
                            .map(|v| v.round() as u8),
                    )
                });
                Pixels::Rgb(out)
            }
            Pixels::Amplitude(values) => {
                let mut out = Vec::with_capacity(rows * columns);
                sampling
                    .each(|x, y| out.extend(blend(from, x, y, |i| [f64::from(values[i])]).map(|v| v as f32)));
                Pixels::Amplitude(out)
            }
        };
        Ok(Cut {
            raster: Raster { width: columns, height: rows, pixels, facts: from.facts.clone() },
            pixel_size: match (sin.abs() > TOLERANCE, cos.abs() > TOLERANCE) {
                (true, true) => pixel_size.along(sin, cos),
                (true, false) => pixel_size.turned(),
                (false, _) => pixel_size,
            },
            framing: if sampling.is_copy() { Framing::Copied } else { Framing::Resampled },
            leaves_image: sampling.leaves(from),
        })
    }
}

/// From a pixel of the cut to its right neighbour, in columns and rows of the image.
///
/// At right angles to the ship on the ground: (cos, sin) where pixels are square.
fn across(sin: f64, cos: f64, pixel_size: PixelSize) -> (f64, f64) {
    let (x_m, y_m) = (pixel_size.x_m(), pixel_size.y_m());
    if x_m == y_m {
        return (cos, sin);
    }
    let (x, y) = (cos * y_m / x_m, sin * x_m / y_m);
    // Long enough to reach the opposite long side of the box.
    let reach = x * cos + y * sin;
    (x / reach, y / reach)
}

/// Exact at right angles, where rounding would turn a copy into an interpolation.
fn sin_cos(angle_deg: f64) -> (f64, f64) {
    match angle_deg.rem_euclid(360.0) {
        0.0 => (0.0, 1.0),
        90.0 => (1.0, 0.0),
        180.0 => (0.0, -1.0),
        270.0 => (-1.0, 0.0),
        angle => angle.to_radians().sin_cos(),
    }
}

struct Sampling {
    cut: OrientedBox,
    /// From a pixel of the cut to the one below, and to its right neighbour, in columns and rows of the image.
    down: (f64, f64),
    right: (f64, f64),
    rows: usize,
    columns: usize,
}

impl Sampling {
    /// The position of the point (`column`, `row`) of the cut in the image.
    fn source(&self, column: f64, row: f64) -> (f64, f64) {
        let right = column - self.columns as f64 / 2.0;
        let down = row - self.rows as f64 / 2.0;
        let (x, y) = self.cut.center;
        (x + self.right.0 * right + self.down.0 * down, y + self.right.1 * right + self.down.1 * down)
    }

    /// Whether every pixel of the cut is a pixel of the image.
    fn is_copy(&self) -> bool {
        let whole = |number: f64| (number - number.round()).abs() <= TOLERANCE;
        let (x, y) = self.source(0.5, 0.5);
        [self.down.0, self.down.1, self.right.0, self.right.1, x - 0.5, y - 0.5].into_iter().all(whole)
    }

    fn each(&self, mut visit: impl FnMut(f64, f64)) {
        for row in 0..self.rows {
            for column in 0..self.columns {
                let (x, y) = self.source(column as f64 + 0.5, row as f64 + 0.5);
                visit(x, y);
            }
        }
    }

    fn corners(&self) -> [(f64, f64); 4] {
        let (columns, rows) = (self.columns as f64, self.rows as f64);
        [(0.0, 0.0), (columns, 0.0), (0.0, rows), (columns, rows)].map(|(x, y)| self.source(x, y))
    }

    fn leaves(&self, image: &Raster) -> bool {
        let (width, height) = (image.width as f64, image.height as f64);
        let slack = 0.5;
        self.corners()
            .iter()
            .any(|(x, y)| *x < -slack || *y < -slack || *x > width + slack || *y > height + slack)
    }

    fn touches(&self, image: &Raster) -> bool {
        let corners = self.corners();
        let spans = |pick: fn(&(f64, f64)) -> f64, end: usize| {
            let values = corners.iter().map(pick);
            let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
            high > 0.0 && low < end as f64
        };
        spans(|corner| corner.0, image.width) && spans(|corner| corner.1, image.height)
    }
}

/// Bilinear interpolation of the four pixels around a point; pixels outside the image are 0.
fn blend<const N: usize>(image: &Raster, x: f64, y: f64, pixel: impl Fn(usize) -> [f64; N]) -> [f64; N] {
    let (left, top) = ((x - 0.5).floor(), (y - 0.5).floor());
    let (fx, fy) = (x - 0.5 - left, y - 0.5 - top);
    let mut sums = [0.0; N];
    for (dx, dy, share) in [
        (0.0, 0.0, (1.0 - fx) * (1.0 - fy)),
        (1.0, 0.0, fx * (1.0 - fy)),
        (0.0, 1.0, (1.0 - fx) * fy),
        (1.0, 1.0, fx * fy),
    ] {
        let (px, py) = (left + dx, top + dy);
        let inside = px >= 0.0 && py >= 0.0 && px < image.width as f64 && py < image.height as f64;
        if inside && share > 0.0 {
            let values = pixel(py as usize * image.width + px as usize);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += share * value);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::decode::Facts;
    use super::*;

    fn image(width: usize, height: usize) -> Raster {
        let pixels = (0..width * height).map(|index| index as f32).collect();
        Raster { width, height, pixels: Pixels::Amplitude(pixels), facts: Facts::default() }
    }

    fn cut(image: &Raster, cut: [f64; 5], pixel_size: PixelSize) -> Result<Cut, BoxError> {
        OrientedBox::new(cut[0], cut[1], cut[2], cut[3], cut[4])?.cut(image, pixel_size, 10_000)
    }

    fn values(cut: &Cut) -> &[f32] {
        match &cut.raster.pixels {
            Pixels::Amplitude(values) => values,
            Pixels::Rgb(_) => panic!("amplitudes stay amplitudes"),
        }
    }

    #[test]
    fn right_angles_copy_pixels() {
        let (image, size) = (image(5, 4), PixelSize::new(1.0, 2.0).expect("a pixel size"));
        for (angle, expected) in [
            (0.0, [6.0, 7.0, 11.0, 12.0]),
            // The ship points right: its bow, at the image's right, ends up at the top.
            (90.0, [7.0, 12.0, 6.0, 11.0]),
            (180.0, [12.0, 11.0, 7.0, 6.0]),
            (-90.0, [11.0, 6.0, 12.0, 7.0]),
        ] {
            let cut = cut(&image, [2.0, 2.0, 2.0, 2.0, angle], size).expect("a cut");
            assert_eq!(values(&cut), expected, "{angle}");
            assert!(!cut.leaves_image);
            assert_eq!(cut.framing, Framing::Copied);
            assert_eq!(cut.pixel_size == size, angle.abs() != 90.0);
        }
    }

    #[test]
    fn a_box_over_the_edge_is_black_there() {
        let size = PixelSize::new(1.0, 1.0).expect("a pixel size");
        let cut = cut(&image(4, 4), [0.0, 2.0, 2.0, 4.0, 0.0], size).expect("a cut");
        assert!(cut.leaves_image);
        assert_eq!(values(&cut), [0.0, 0.0, 4.0, 5.0, 0.0, 0.0, 8.0, 9.0]);
    }

    /// A scene with pixels of 1 m x 2 m and a ship with heading `heading_deg`, 40 m long and 10 m wide. Its
    /// brightness increases towards the bow and, less, to the right.
    fn ship(heading_deg: f64, size: PixelSize) -> Raster {
        let (width, height) = (80, 80);
        let (sin, cos) = heading_deg.to_radians().sin_cos();
        let pixel = |index: usize| {
            let east = (index % width) as f64 + 0.5 - width as f64 / 2.0;
            let south = (index / width) as f64 + 0.5 - height as f64 / 2.0;
            let (east, south) = (east * size.x_m(), south * size.y_m());
            let (ahead, right) = (east * sin - south * cos, east * cos + south * sin);
            if ahead.abs() < 20.0 && right.abs() < 5.0 { 100.0 + ahead + right / 2.0 } else { 0.0 }
        };
        let pixels = (0..width * height).map(|index| pixel(index) as f32).collect();
        Raster { width, height, pixels: Pixels::Amplitude(pixels), facts: Facts::default() }
    }

    #[test]
    fn a_ship_on_oblong_pixels_is_cut_upright_and_keeps_its_size() {
        let size = PixelSize::new(1.0, 2.0).expect("a pixel size");
        for heading in [30.0_f64, 60.0, 135.0, 250.0] {
            let scene = ship(heading, size);
            // As a detector measures it in pixels: its axis, and the distance between its long sides.
            let (sin, cos) = heading.to_radians().sin_cos();
            let (x, y) = (sin / size.x_m(), cos / size.y_m());
            let length = 40.0 * x.hypot(y);
            let width = 10.0 / (size.x_m() * size.y_m() * x.hypot(y));
            let angle = x.atan2(y).to_degrees();
            let found = cut(&scene, [40.0, 40.0, length, width, angle], size).expect("a cut");
            let (rows, columns) = (found.raster.height, found.raster.width);
            let (width_m, height_m) = (width * found.pixel_size.x_m(), length * found.pixel_size.y_m());
            assert!((width_m - 10.0).abs() < 1e-9 && (height_m - 40.0).abs() < 1e-9, "{width_m} {height_m}");
            assert_eq!(found.framing, Framing::Resampled);
            // Away from the edges, every pixel shows the corresponding part of the ship.
            for (row, column) in
                [(rows / 4, columns / 4), (rows / 2, columns / 2), (3 * rows / 4, columns / 2)]
            {
                let ahead = (rows as f64 / 2.0 - row as f64 - 0.5) * found.pixel_size.y_m();
                let right = (column as f64 + 0.5 - columns as f64 / 2.0) * found.pixel_size.x_m();
                let value = f64::from(values(&found)[row * columns + column]);
                assert!(
                    (value - (100.0 + ahead + right / 2.0)).abs() < 0.01,
                    "{heading}: {row} {column} {value}"
                );
            }
        }
    }

    #[test]
    fn impossible_boxes_are_refused() {
        let size = PixelSize::new(1.0, 1.0).expect("a pixel size");
        let image = image(40, 40);
        for (given, reason) in [
            ([f64::NAN, 1.0, 5.0, 5.0, 0.0], "not finite"),
            ([5.0, 5.0, 0.0, 5.0, 0.0], "at least 1"),
            ([5.0, 5.0, 1e9, 1e9, 0.0], "limit"),
            ([-50.0, 5.0, 5.0, 5.0, 0.0], "outside"),
        ] {
            let message = cut(&image, given, size).err().expect("impossible").to_string();
            assert!(message.contains(reason), "{message}");
        }
    }
}
