//! The codes of warnings, and why candidates are removed.

use super::named;

/// What is known of each code.
struct Facts {
    advice: &'static str,
}

macro_rules! facts {
    ($advice:literal) => {
        Facts { advice: $advice }
    };
}

impl Removal {
    /// What a caller does about it.
    pub const fn advice(self) -> &'static str {
        self.facts().advice
    }
}

impl Warning {
    /// What a caller does about it.
    pub const fn advice(self) -> &'static str {
        self.facts().advice
    }
}

named! {
    /// The code of something doubtful about a chip or an answer that is given all the same: `Warning.code`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Warning {
        "Warnings about chips":
            PixelSizeFromFile "PIXEL_SIZE_FROM_FILE"
                ("Nothing, if they are right; else send `pixel_size_x_m` and `pixel_size_y_m`.")
                "The call gave no pixel size, so the file's georeferencing was used. The sentence has the values.";
            PixelSizeContradicts "PIXEL_SIZE_CONTRADICTS"
                ("Find out which one is right. Steps of Web Mercator or degrees are not metres on the ground.")
                "A pixel size of the call, which was used, differs by more than 20 % from the file's own.";
            PixelSizeUnusable "PIXEL_SIZE_UNUSABLE"
                ("Send the pixel size, or use a supported coordinate system (`gdalwarp -t_srs`, `gdal_edit.py -a_srs`).")
                "The file is georeferenced, but gives no size in metres on the ground; the sentence has the reason. The default was used.";
            NotUpright "NOT_UPRIGHT"
                ("Turn the ship upright, bow up or down, or send an `oriented_box`.")
                "The chip is less than twice as high as wide.";
            UnusualSize "UNUSUAL_SIZE"
                ("Check the pixel size; crop the chip tightly.")
                "In metres, the chip is far from the ships of the training data.";
            BoxLeavesImage "BOX_LEAVES_IMAGE"
                ("Send a larger patch.")
                "A part of the `oriented_box` lies outside the image and is black.";
            NegativePixels "NEGATIVE_PIXELS"
                ("Send amplitudes.")
                "SAR pixels are negative, as in decibels, and were set to 0.";
            NonFinitePixels "NON_FINITE_PIXELS"
                ("Set them to 0, or set the nodata value.")
                "SAR pixels are infinite or NaN and were set to 0.";
            AllZero "ALL_ZERO"
                ("Send another chip.")
                "Every pixel is 0.";
            Clipped "CLIPPED"
                ("`gdal_translate -ot Byte -scale IN OUT`, with the same range for all chips of a sensor.")
                "An optical image lost its bright parts: samples of more than 8 bits are clipped at 255, not scaled, as the model was trained.";
            FewLevels "FEW_LEVELS"
                ("Optical: as for `CLIPPED`. SAR: set dead, hot and missing pixels to 0.")
                "Nearly all pixels share a few of 256 levels: an optical image is nearly black (of 16 bits in colour, only the upper 8 are used), or one bright SAR pixel decided the stretch.";
            Nodata "NODATA"
                ("Set the nodata value in the file (`gdal_translate -a_nodata VALUE IN OUT`), or those pixels to 0.")
                "A tenth of the pixels or more hold no data, or a corner of a SAR chip lies at the highest value, as where a value stands for missing data.";
            ComplexMagnitude "COMPLEX_MAGNITUDE"
                ("Nothing, or send amplitudes.")
                "The samples are complex; their magnitudes were used.";
            LooksLikeSar "LOOKS_LIKE_SAR"
                ("Check `modality`.")
                "Sent as optical, but all three channels are equal and speckled.";
            LooksLikeOptical "LOOKS_LIKE_OPTICAL"
                ("Check `modality`; send SAR images unfiltered, in their own resolution.")
                "Sent as SAR, but the channels differ, or there is next to no speckle: an optical image, or a SAR image that was filtered or enlarged.";
        "Warnings about answers to Match":
            ModalityUnknown "MODALITY_UNKNOWN"
                ("Send tracklets, or name an entry.")
                "The query's modality is not known, so that no calibration applies to it.";
            PairUncalibrated "PAIR_UNCALIBRATED"
                ("Fit a calibrator on data with both modalities (`shipreid calibrate`).")
                "The calibrator does not know a pair of modalities; candidates of that pair have no probability.";
            Unassigned "UNASSIGNED"
                ("Look at the candidates, or match without `distinct_vessels`.")
                "No vessel was assigned to the query: the others' queries fit them better, or none fits.";
    }
}

named! {
    /// Why a vessel is no candidate: `Removed.reason`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum Removal {
        "Candidates that were removed":
            Speed "SPEED"
                ("Send a higher `max_speed_knots`, or none.")
                "To be in both places, the vessel would have had to be faster than `max_speed_knots`.";
            SameScene "SAME_SCENE"
                ("Nothing: one scene shows a ship once. Check `scene_id` and `detection_id` where it is wrong.")
                "The vessel was detected elsewhere in the query's scene.";
            MinSimilarity "MIN_SIMILARITY"
                ("Send a lower `min_similarity`, or none.")
                "The candidate was among the best `top_k`, and its similarity below `min_similarity`.";
            MinProbability "MIN_PROBABILITY"
                ("Send a lower `min_probability`, or none. Without a probability, the pair of modalities is not calibrated.")
                "The candidate was among the best `top_k`, and its probability below `min_probability`, or not known.";
    }
}
