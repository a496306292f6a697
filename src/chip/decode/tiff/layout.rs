//! The orientation of stored rows and columns in the picture.

/// The eight TIFF orientations, named by the operation that turns the stored picture upright.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Orientation {
    #[default]
    Upright,
    FlipAcross,
    HalfTurn,
    FlipDown,
    Transpose,
    QuarterTurnRight,
    Transverse,
    QuarterTurnLeft,
}

impl Orientation {
    /// The orientation of a tag value; an unknown value means no change.
    pub fn from_number(number: u64) -> Self {
        match number {
            2 => Self::FlipAcross,
            3 => Self::HalfTurn,
            4 => Self::FlipDown,
            5 => Self::Transpose,
            6 => Self::QuarterTurnRight,
            7 => Self::Transverse,
            8 => Self::QuarterTurnLeft,
            _ => Self::Upright,
        }
    }

    /// Whether rows become columns.
    pub fn transposes(self) -> bool {
        matches!(self, Self::Transpose | Self::QuarterTurnRight | Self::Transverse | Self::QuarterTurnLeft)
    }

    /// Width and height of the picture, given the stored width and height.
    pub fn size(self, width: usize, height: usize) -> (usize, usize) {
        if self.transposes() { (height, width) } else { (width, height) }
    }

    /// Moves pixels of `channels` values, stored `width` wide and `height` high, to their final positions.
    pub fn apply<T: Copy>(self, stored: Vec<T>, width: usize, height: usize, channels: usize) -> Vec<T> {
        if self == Self::Upright {
            return stored;
        }
        let (columns, rows) = self.size(width, height);
        let (right, bottom) = (width - 1, height - 1);
        let mut upright = Vec::with_capacity(stored.len());
        for row in 0..rows {
            for column in 0..columns {
                let (x, y) = match self {
                    Self::Upright => (column, row),
                    Self::FlipAcross => (right - column, row),
                    Self::HalfTurn => (right - column, bottom - row),
                    Self::FlipDown => (column, bottom - row),
                    Self::Transpose => (row, column),
                    Self::QuarterTurnRight => (row, bottom - column),
                    Self::Transverse => (right - row, bottom - column),
                    Self::QuarterTurnLeft => (right - row, column),
                };
                let at = (y * width + x) * channels;
                upright.extend_from_slice(&stored[at..at + channels]);
            }
        }
        upright
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_orientation_is_that_of_the_reference() {
        // Three columns, two rows; as Pillow 11.3.0 transposes them.
        for (number, expected) in [
            (1, [1, 2, 3, 4, 5, 6]),
            (2, [3, 2, 1, 6, 5, 4]),
            (3, [6, 5, 4, 3, 2, 1]),
            (4, [4, 5, 6, 1, 2, 3]),
            (5, [1, 4, 2, 5, 3, 6]),
            (6, [4, 1, 5, 2, 6, 3]),
            (7, [6, 3, 5, 2, 4, 1]),
            (8, [3, 6, 2, 5, 1, 4]),
            (0, [1, 2, 3, 4, 5, 6]),
            (9, [1, 2, 3, 4, 5, 6]),
        ] {
            let turned = Orientation::from_number(number).apply(vec![1, 2, 3, 4, 5, 6], 3, 2, 1);
            assert_eq!(turned, expected, "{number}");
        }
    }

    proptest! {
        #[test]
        fn turning_and_turning_back_changes_nothing(
            number in 1..9u64, width in 1..9usize, height in 1..9usize, channels in 1..4usize
        ) {
            let stored: Vec<usize> = (0..width * height * channels).collect();
            let back = match number { 6 => 8, 8 => 6, other => other };
            let there = Orientation::from_number(number);
            let turned = there.apply(stored.clone(), width, height, channels);
            let (columns, rows) = there.size(width, height);
            let again = Orientation::from_number(back).apply(turned, columns, rows, channels);
            prop_assert_eq!(again, stored);
        }
    }
}
