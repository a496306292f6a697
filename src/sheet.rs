//! Contact sheets: grids of pictures.

use image::imageops::{FilterType, replace, resize};
use image::{Rgb, RgbImage};

/// Pixels of a tile, and of the frame around it.
const TILE: (u32, u32) = (64, 128);
const FRAME: u32 = 3;
const BACKGROUND: Rgb<u8> = Rgb([24, 24, 24]);

/// The meaning of a tile's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Plain,
    /// White: the query.
    Query,
    /// Green.
    Right,
    /// Red.
    Wrong,
}

impl Mark {
    fn colour(self) -> Rgb<u8> {
        Rgb(match self {
            Self::Plain => BACKGROUND.0,
            Self::Query => [255, 255, 255],
            Self::Right => [40, 200, 90],
            Self::Wrong => [220, 50, 50],
        })
    }
}

/// A sheet with one row for each of `rows`; every picture is resized to 64 x 128 pixels.
pub fn contact_sheet(rows: &[Vec<(Mark, RgbImage)>]) -> RgbImage {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let cell = (TILE.0 + 2 * FRAME, TILE.1 + 2 * FRAME);
    let mut sheet = RgbImage::from_pixel(columns * cell.0, rows.len() as u32 * cell.1, BACKGROUND);
    for (row, tiles) in (0_u32..).zip(rows) {
        for (column, (mark, picture)) in (0_u32..).zip(tiles) {
            let (x, y) = (column * cell.0, row * cell.1);
            let frame = RgbImage::from_pixel(cell.0, cell.1, mark.colour());
            let tile = resize(picture, TILE.0, TILE.1, FilterType::Triangle);
            replace(&mut sheet, &frame, i64::from(x), i64::from(y));
            replace(&mut sheet, &tile, i64::from(x + FRAME), i64::from(y + FRAME));
        }
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_has_its_place_and_its_frame() {
        let picture = |grey: u8| RgbImage::from_pixel(10, 20, Rgb([grey; 3]));
        let rows =
            [vec![(Mark::Query, picture(1)), (Mark::Right, picture(2))], vec![(Mark::Wrong, picture(3))]];
        let sheet = contact_sheet(&rows);
        assert_eq!(sheet.dimensions(), (140, 268));
        for (at, colour) in [
            ((0, 0), Mark::Query.colour()),
            ((35, 60), Rgb([1; 3])),
            ((71, 1), Mark::Right.colour()),
            ((105, 60), Rgb([2; 3])),
            ((1, 135), Mark::Wrong.colour()),
            ((35, 200), Rgb([3; 3])),
            ((105, 200), BACKGROUND),
        ] {
            assert_eq!(*sheet.get_pixel(at.0, at.1), colour, "{at:?}");
        }
    }
}
