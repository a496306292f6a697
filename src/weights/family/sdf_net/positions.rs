//! The positions of an SDF-Net, [1, 2 + P, D], from those of another network.

use super::super::transoss::imagenet;
use super::CLASS_TOKENS;
use crate::weights::tensors::HostTensor;

/// Those of a ViT or a TransOSS, [1, 1 + P, D], for a grid of rows and columns; `None` if they are no such positions.
pub(super) fn from_vit(positions: &HostTensor, grid: (usize, usize)) -> Option<HostTensor> {
    let (class, patches) = split(positions, 1)?;
    joined(&[class, class], &patches.resized(grid), grid)
}

/// Those of an SDF-Net, [1, 2 + P, D]; `None` if they are no such positions.
pub(super) fn resized(positions: &HostTensor, grid: (usize, usize)) -> Option<HostTensor> {
    let (classes, patches) = split(positions, CLASS_TOKENS)?;
    joined(&[classes], &patches.resized(grid), grid)
}

/// A grid of vectors, row by row.
struct Patches<'a> {
    values: &'a [f32],
    /// Rows and columns.
    grid: (usize, usize),
}

impl Patches<'_> {
    fn resized(&self, grid: (usize, usize)) -> Vec<f32> {
        if grid == self.grid { self.values.to_vec() } else { imagenet::resized(self.values, self.grid, grid) }
    }
}

/// The positions of so many class tokens, and of the patches.
fn split(positions: &HostTensor, classes: usize) -> Option<(&[f32], Patches<'_>)> {
    let &[1, count, width] = positions.shape.as_slice() else { return None };
    let grid = grid_of(count.checked_sub(classes)?)?;
    let (of_classes, values) = positions.values.split_at_checked(classes * width)?;
    (width > 0).then_some((of_classes, Patches { values, grid }))
}

fn joined(classes: &[&[f32]], patches: &[f32], (rows, columns): (usize, usize)) -> Option<HostTensor> {
    let values = [classes.concat().as_slice(), patches].concat();
    let count = CLASS_TOKENS + rows * columns;
    let width = values.len().checked_div(count)?;
    Some(HostTensor { shape: vec![1, count, width], values })
}

/// Rows and columns of so many patches of a chip that is square, or twice as high as wide.
fn grid_of(patches: usize) -> Option<(usize, usize)> {
    let (side, columns) = (patches.isqrt(), (patches / 2).isqrt());
    if patches == 0 {
        None
    } else if side * side == patches {
        Some((side, side))
    } else {
        (2 * columns * columns == patches).then_some((2 * columns, columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number is its place.
    fn positions(count: usize) -> HostTensor {
        HostTensor { shape: vec![1, count, 2], values: (0..2 * count).map(|place| place as f32).collect() }
    }

    #[test]
    fn class_tokens_keep_their_positions_and_patches_are_interpolated() {
        // 4 x 2 patches to the same, and to 4 x 4.
        let tall = positions(2 + 8);
        assert_eq!(resized(&tall, (4, 2)).as_ref(), Some(&tall));
        let square = resized(&tall, (4, 4)).expect("positions");
        assert_eq!(square.shape, [1, 18, 2]);
        assert_eq!(square.values[..4], [0.0, 1.0, 2.0, 3.0]);
        // Between the two patches of a row, at 1/4 and 3/4 of the way beside both ends.
        let row: Vec<f32> = square.values[4..12].iter().copied().step_by(2).collect();
        assert_eq!(row, [4.0, 4.5, 5.5, 6.0]);
        assert_eq!(
            square.values[12 * 2 + 4..][..2],
            tall.values[6 * 2 + 4..][..2],
            "the last row begins alike"
        );

        let vit = from_vit(&positions(1 + 9), (3, 3)).expect("positions");
        assert_eq!(vit.values[..6], [0.0, 1.0, 0.0, 1.0, 2.0, 3.0]);
        assert_eq!((vit.shape, vit.values.len()), (vec![1, 11, 2], 22));
    }

    #[test]
    fn what_is_no_grid_is_left_alone() {
        for count in [0, 1, 2, 2 + 3, 2 + 7] {
            assert_eq!(resized(&positions(count), (4, 2)), None, "{count}");
        }
        assert_eq!(from_vit(&HostTensor { shape: vec![5, 2], values: vec![0.0; 10] }, (4, 2)), None);
        assert_eq!(from_vit(&HostTensor { shape: vec![1, 5, 0], values: vec![] }, (4, 2)), None);
    }
}
