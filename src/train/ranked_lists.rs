//! A picture of queries of a test set and the images that were found for each.

use image::RgbImage;

use super::dataset::Image;
use super::source::read_chip;
use crate::chip::{ChipForm, ChipSize, Modality, Resampling};
use crate::evaluate::Ranked;
use crate::sheet::{Mark, contact_sheet};

/// Size at which a chip is shown.
const PICTURE: ChipSize = ChipSize { height: 128, width: 64 };

/// The number of queries shown, and of images for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub queries: usize,
    pub ranks: usize,
}

/// Queries spread over all of them, optical ones before SAR ones, each with its best matches.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedLists(Vec<RankedList>);

#[derive(Clone, Debug, PartialEq)]
struct RankedList {
    query: Image,
    best: Vec<Image>,
}

impl RankedLists {
    /// Selects from a ranking of `gallery` for `queries`.
    pub fn of(ranked: &Ranked, queries: &[Image], gallery: &[Image], extent: Extent) -> Self {
        let mut asked: Vec<_> = ranked.queries.iter().zip(&ranked.rankings).collect();
        // Test sets alternate between modalities, so that a constant step alone could select only
        // one of them.
        asked.sort_by_key(|(query, _)| queries[**query].modality() == Modality::Sar);
        let step = asked.len().div_ceil(extent.queries).max(1);
        let asked = asked.into_iter().step_by(step);
        let list = |(query, ranking): (&usize, &Vec<usize>)| RankedList {
            query: queries[*query].clone(),
            best: ranking.iter().take(extent.ranks).map(|place| gallery[*place].clone()).collect(),
        };
        Self(asked.map(list).collect())
    }

    /// One row per query, framed in white, followed by its best matches, correct ones in green,
    /// wrong ones in red.
    ///
    /// # Errors
    /// If an image can no longer be read.
    pub fn picture(&self) -> Result<RgbImage, String> {
        let rows: Result<Vec<_>, _> = self.0.iter().map(RankedList::row).collect();
        Ok(contact_sheet(&rows?))
    }
}

impl RankedList {
    fn row(&self) -> Result<Vec<(Mark, RgbImage)>, String> {
        let mut row = vec![(Mark::Query, picture(&self.query)?)];
        for image in &self.best {
            let mark = if image.identity == self.query.identity { Mark::Right } else { Mark::Wrong };
            row.push((mark, picture(image)?));
        }
        Ok(row)
    }
}

fn picture(image: &Image) -> Result<RgbImage, String> {
    let pixels = read_chip(image, ChipForm::reference(PICTURE), Resampling::Bilinear)?.pixels().to_vec();
    let (width, height) = (PICTURE.width as u32, PICTURE.height as u32);
    RgbImage::from_raw(width, height, pixels).ok_or_else(|| "a chip without its pixels".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::score_rankings;
    use crate::weights::golden;

    #[test]
    fn queries_are_spread_and_shown_with_their_best() {
        let image = |name: &str, identity| {
            let modality = if name.contains("SAR") { Modality::Sar } else { Modality::Optical };
            Image::plain(golden::path("images").join(name), identity, modality)
        };
        let names = ["0003_c_25x110_SAR.tif", "0001_a_33x97_RGB.tif"].into_iter().cycle();
        let queries: Vec<_> = names.zip(0..5).map(|(name, identity)| image(name, identity)).collect();
        let gallery = [image("0003_c_25x110_SAR.tif", 3), image("0001_a_33x97_RGB.tif", 0)];
        let rankings = vec![vec![1, 0]; 5];
        let scores = score_rankings(&rankings, &[0, 1, 2, 3, 4], &[3, 0]);
        let ranked = Ranked { queries: (0..5).collect(), rankings, scores };
        let lists = RankedLists::of(&ranked, &queries, &gallery, Extent { queries: 3, ranks: 1 });
        let identities = |list: &RankedList| (list.query.identity, list.best[0].identity);
        assert_eq!(lists.0.iter().map(identities).collect::<Vec<_>>(), [(1, 0), (0, 0), (4, 0)]);

        let tiles = lists.picture().expect("readable");
        let frames = |row: u32| [tiles.get_pixel(0, row * 134), tiles.get_pixel(70, row * 134)];
        let shown = |mark: Mark| *contact_sheet(&[vec![(mark, RgbImage::new(1, 1))]]).get_pixel(0, 0);
        assert_eq!(frames(0), [&shown(Mark::Query), &shown(Mark::Wrong)]);
        assert_eq!(frames(1), [&shown(Mark::Query), &shown(Mark::Right)]);

        let gone = [image("gone.png", 1)];
        let lists = RankedLists::of(
            &ranked,
            &queries,
            &[gone[0].clone(), gone[0].clone()],
            Extent { queries: 1, ranks: 2 },
        );
        assert!(lists.picture().expect_err("it is gone").contains("gone.png"));
    }
}
