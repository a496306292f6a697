//! From pixels to the coordinates of a file's coordinate system.

use super::{GeoTags, Unusable};

/// A tie point: column, row, height, x, y, z.
const TIEPOINT: usize = 6;
/// Control points that determine a plane.
const CONTROL_POINTS_MIN: usize = 3;
/// Control points are collinear if the residual of the smaller spread is below this fraction.
const LINE: f64 = 1e-9;

/// Coordinates are `origin + column * column step + row * row step`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    origin: [f64; 2],
    /// From a pixel to its right neighbour.
    pub column: [f64; 2],
    /// From a pixel to the one below it.
    pub row: [f64; 2],
}

impl Grid {
    /// Whether the tags determine a pixel's size. A single tie point does not.
    pub fn is_in(tags: &GeoTags) -> bool {
        let control_points = tags.tiepoints.len() / TIEPOINT;
        !tags.pixel_scale.is_empty() || !tags.transformation.is_empty() || control_points > 1
    }

    /// A scale with a tie point takes precedence, then a matrix, then control points, as in GDAL.
    ///
    /// `turn` is a full turn in coordinates that are longitudes.
    ///
    /// # Errors
    /// If the numbers do not map pixels to the ground.
    pub fn read(tags: &GeoTags, turn: Option<f64>) -> Result<Self, Unusable> {
        let grid = match (&tags.pixel_scale[..], &tags.tiepoints[..], &tags.transformation[..]) {
            (&[x, y, ..], &[column, row, _, left, top, _, ..], _) => {
                if !(x > 0.0 && y > 0.0) {
                    return Err(Unusable::Grid);
                }
                Self { origin: [left - column * x, top + row * y], column: [x, 0.0], row: [0.0, -y] }
            }
            (_, _, matrix) if matrix.len() >= 8 => Self {
                origin: [matrix[3], matrix[7]],
                column: [matrix[0], matrix[4]],
                row: [matrix[1], matrix[5]],
            },
            (_, points, _) => Self::fit(points, turn).ok_or(Unusable::Grid)?,
        };
        if grid.is_a_plane() { Ok(grid) } else { Err(Unusable::Grid) }
    }

    pub fn at(&self, column: f64, row: f64) -> [f64; 2] {
        [0, 1].map(|axis| self.origin[axis] + column * self.column[axis] + row * self.row[axis])
    }

    fn is_a_plane(&self) -> bool {
        let Self { origin, column, row } = self;
        let finite = [origin, column, row].into_iter().flatten().all(|number| number.is_finite());
        let area = (column[0] * row[1] - column[1] * row[0]).abs();
        finite && area > LINE * column[0].hypot(column[1]) * row[0].hypot(row[1])
    }

    /// The least-squares plane through the control points.
    fn fit(tiepoints: &[f64], turn: Option<f64>) -> Option<Self> {
        let points = tiepoints.as_chunks::<TIEPOINT>().0;
        if points.len() < CONTROL_POINTS_MIN {
            return None;
        }
        // Across the antimeridian, longitudes differ from the first one by more than half a turn.
        let first = points[0][3];
        let unwrapped = |x: f64| turn.map_or(x, |turn| x - ((x - first) / turn).round() * turn);
        let points: Vec<[f64; 4]> = points.iter().map(|p| [p[0], p[1], unwrapped(p[3]), p[4]]).collect();
        let count = points.len() as f64;
        let mean: [f64; 4] = [0, 1, 2, 3].map(|axis| points.iter().map(|p| p[axis]).sum::<f64>() / count);
        let product =
            |a: usize, b: usize| points.iter().map(|p| (p[a] - mean[a]) * (p[b] - mean[b])).sum::<f64>();
        let (across, down, mixed) = (product(0, 0), product(1, 1), product(0, 1));
        let determinant = across * down - mixed * mixed;
        let is_spread = determinant > LINE * across * down;
        if !is_spread {
            return None;
        }
        // Normal equations of each coordinate around the mean.
        let slopes = [2, 3].map(|axis| {
            let (with_column, with_row) = (product(0, axis), product(1, axis));
            [
                (down * with_column - mixed * with_row) / determinant,
                (across * with_row - mixed * with_column) / determinant,
            ]
        });
        let [column, row] = [0, 1].map(|step| slopes.map(|slope| slope[step]));
        let origin = [0, 1].map(|axis| mean[2 + axis] - mean[0] * column[axis] - mean[1] * row[axis]);
        Some(Self { origin, column, row })
    }
}
