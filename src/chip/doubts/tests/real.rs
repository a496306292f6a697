//! Real chips, which raise no doubt, and simulated mistakes in preparing them.

use super::*;

// The tests below measure real chips, which are not part of the project.

/// Tiles of another data set that are examined.
const OTHERS: usize = 320;

/// A real chip.
struct Real {
    bytes: Vec<u8>,
    modality: Modality,
    /// Chips of one ship, or of one scene, share this.
    group: String,
    /// As the model sees it, except for its size.
    gray: Gray,
    rgb: Vec<u8>,
    width: usize,
    /// Only for a SAR TIFF.
    amplitudes: Vec<f32>,
}

impl Real {
    fn read(path: &Path) -> Self {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let modality = if name.contains("_SAR") { Modality::Sar } else { Modality::Optical };
        let bytes = std::fs::read(path).expect("a readable chip");
        let raster = decode(&bytes, modality, &LIMITS).expect("a chip");
        let size = ChipSize { height: raster.height, width: raster.width };
        let chip = prepare(&bytes, &View::reference(modality), ChipForm::reference(size), &LIMITS)
            .expect("a chip")
            .chip;
        let scene = path.parent().and_then(Path::file_name).expect("a folder").to_string_lossy().into_owned();
        let group = match name.split('_').next() {
            Some("-1") => name.clone(),
            Some("p") | None => scene,
            Some(ship) => ship.to_owned(),
        };
        let rgb = chip.pixels().to_vec();
        let amplitudes = match raster.pixels {
            Pixels::Amplitude(values) => values,
            Pixels::Rgb(_) => Vec::new(),
        };
        Self {
            bytes,
            modality,
            group,
            gray: Gray::of(&rgb, raster.width),
            rgb,
            width: raster.width,
            amplitudes,
        }
    }

    fn height(&self) -> usize {
        self.gray.pixels.len() / self.width
    }

    fn png(&self, samples: &[u8], color: ExtendedColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
        encoder.write_image(samples, self.width as u32, self.height() as u32, color).expect("a PNG");
        bytes
    }

    fn tiff<C: ColorType>(&self, samples: &[C::Inner]) -> Vec<u8>
    where
        [C::Inner]: tiff::encoder::TiffValue,
    {
        let mut bytes = Cursor::new(Vec::new());
        let mut encoder = TiffEncoder::new(&mut bytes).expect("a TIFF");
        encoder.write_image::<C>(self.width as u32, self.height() as u32, samples).expect("a TIFF");
        bytes.into_inner()
    }

    /// SAR amplitudes as in a product of `bits` bits, modified in some places.
    fn digital(&self, bits: u32, change: impl Fn(usize, usize, u16) -> u16) -> Vec<u16> {
        let maximum = self.amplitudes.iter().copied().fold(0.0, f32::max);
        let scaled = |value: &f32| (value / maximum * ((1_u32 << bits) - 1) as f32) as u16;
        let numbered = self.amplitudes.iter().map(scaled).enumerate();
        numbered.map(|(index, value)| change(index % self.width, index / self.width, value)).collect()
    }

    fn gray_times_eight(&self) -> Vec<u16> {
        self.gray.pixels.iter().map(|level| u16::from(*level) * 8).collect()
    }
}

/// A way to prepare a chip wrongly, and the code that reports it.
struct Mistake {
    name: &'static str,
    code: &'static str,
    of: Modality,
    sent_as: Modality,
    bytes: fn(&Real) -> Vec<u8>,
}

const MISTAKES: [Mistake; 11] = [
    Mistake {
        name: "SAR, stretched to 8 bits, sent as an optical RGB PNG",
        code: "LOOKS_LIKE_SAR",
        of: Modality::Sar,
        sent_as: Modality::Optical,
        bytes: |chip| chip.png(&chip.rgb, ExtendedColorType::Rgb8),
    },
    Mistake {
        name: "the same as a gray TIFF",
        code: "LOOKS_LIKE_SAR",
        of: Modality::Sar,
        sent_as: Modality::Optical,
        bytes: |chip| chip.tiff::<Gray8>(&chip.gray.pixels),
    },
    Mistake {
        name: "optical, gray, sent as a SAR TIFF",
        code: "LOOKS_LIKE_OPTICAL",
        of: Modality::Optical,
        sent_as: Modality::Sar,
        bytes: |chip| chip.tiff::<Gray8>(&chip.gray.pixels),
    },
    Mistake {
        name: "optical, in colours, sent as a SAR PNG",
        code: "LOOKS_LIKE_OPTICAL",
        of: Modality::Optical,
        sent_as: Modality::Sar,
        bytes: |chip| chip.png(&chip.rgb, ExtendedColorType::Rgb8),
    },
    Mistake {
        name: "panchromatic of 11 bits in a gray TIFF of 16",
        code: "CLIPPED",
        of: Modality::Optical,
        sent_as: Modality::Optical,
        bytes: |chip| chip.tiff::<Gray16>(&chip.gray_times_eight()),
    },
    Mistake {
        name: "SAR amplitudes of 12 bits sent as an optical gray PNG of 16",
        code: "CLIPPED",
        of: Modality::Sar,
        sent_as: Modality::Optical,
        bytes: |chip| {
            let samples = chip.digital(12, |_, _, value| value);
            let samples: Vec<u8> = samples.into_iter().flat_map(u16::to_ne_bytes).collect();
            chip.png(&samples, ExtendedColorType::L16)
        },
    },
    Mistake {
        name: "colours of 11 bits in an RGB TIFF of 16",
        code: "FEW_LEVELS",
        of: Modality::Optical,
        sent_as: Modality::Optical,
        bytes: |chip| {
            let samples: Vec<u16> = chip.rgb.iter().map(|level| u16::from(*level) * 8).collect();
            chip.tiff::<RGB16>(&samples)
        },
    },
    Mistake {
        name: "one pixel at 65535 in SAR amplitudes of 12 bits",
        code: "FEW_LEVELS",
        of: Modality::Sar,
        sent_as: Modality::Sar,
        bytes: |chip| {
            let at = (chip.width / 3, chip.height() / 3);
            let samples = chip.digital(12, |x, y, value| if (x, y) == at { u16::MAX } else { value });
            chip.tiff::<Gray16>(&samples)
        },
    },
    Mistake {
        name: "the same in amplitudes of 13 bits",
        code: "FEW_LEVELS",
        of: Modality::Sar,
        sent_as: Modality::Sar,
        bytes: |chip| {
            let at = (chip.width / 3, chip.height() / 3);
            let samples = chip.digital(13, |x, y, value| if (x, y) == at { u16::MAX } else { value });
            chip.tiff::<Gray16>(&samples)
        },
    },
    Mistake {
        name: "a corner without data at 65535 in SAR amplitudes of 12 bits",
        code: "NODATA",
        of: Modality::Sar,
        sent_as: Modality::Sar,
        bytes: |chip| {
            let corner = chip.width / 4;
            let samples = chip.digital(12, |x, y, value| if x + y < corner { u16::MAX } else { value });
            chip.tiff::<Gray16>(&samples)
        },
    },
    Mistake {
        name: "the same in amplitudes of 16 bits",
        code: "NODATA",
        of: Modality::Sar,
        sent_as: Modality::Sar,
        bytes: |chip| {
            let corner = chip.width / 4;
            let samples = chip.digital(16, |x, y, value| if x + y < corner { u16::MAX } else { value });
            chip.tiff::<Gray16>(&samples)
        },
    },
];

/// Every chip, or every `step`th one and its partner of the other sensor.
fn chips(folder: &Path, step: usize) -> Vec<Real> {
    let folders = std::fs::read_dir(folder).expect("a data set").map(|entry| entry.expect("readable").path());
    let files = folders.filter(|path| path.is_dir()).flat_map(|folder| {
        std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path())
    });
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    let taken = files.iter().enumerate().filter(|(number, _)| number / 2 % step == 0);
    taken.map(|(_, path)| Real::read(path)).collect()
}

/// The threshold between the two sensors' values with the lowest error on these chips, as a
/// fraction of either sensor.
fn fitted(chips: &[(&str, Modality, f64)]) -> f64 {
    let mut values: Vec<f64> = chips.iter().map(|chip| chip.2).collect();
    values.sort_by(f64::total_cmp);
    let error = |threshold: f64| -> f64 {
        let share = |of: Modality, wrong: &dyn Fn(f64) -> bool| {
            let of: Vec<_> = chips.iter().filter(|chip| chip.1 == of).collect();
            of.iter().filter(|chip| wrong(chip.2)).count() as f64 / of.len() as f64
        };
        share(Modality::Sar, &|calm| calm < threshold) + share(Modality::Optical, &|calm| calm >= threshold)
    };
    let middles: Vec<f64> = values.windows(2).map(|pair| (pair[0] * pair[1]).sqrt()).collect();
    let least = middles.iter().map(|middle| error(*middle)).fold(f64::MAX, f64::min);
    let best: Vec<f64> = middles.into_iter().filter(|middle| error(*middle) <= least + 1e-12).collect();
    (best[0] * best[best.len() - 1]).sqrt()
}

/// Calm measure by ship, for optical chips converted to gray and for SAR chips.
fn calms(chips: &[Real]) -> Vec<(&str, Modality, f64)> {
    chips.iter().filter_map(|chip| Some((chip.group.as_str(), chip.modality, chip.gray.calm()?))).collect()
}

/// Thresholds fitted on one half of the ships and evaluated on the other, 20 times: range of the thresholds,
/// fraction of SAR chips misclassified as optical, fraction of optical chips recognised.
fn cross_validated(chips: &[(&str, Modality, f64)]) -> ([f64; 2], [usize; 2], [f64; 2]) {
    let ships: Vec<&str> = chips.iter().map(|chip| chip.0).collect::<BTreeSet<_>>().into_iter().collect();
    let mut random = seed();
    let (mut thresholds, mut alarms, mut hits) = (vec![], vec![], vec![]);
    for _ in 0..20 {
        let half: BTreeSet<&str> = ships.iter().copied().filter(|_| random.random_range(0..2) == 0).collect();
        let (fit, rest): (Vec<_>, Vec<_>) = chips.iter().partition(|chip| half.contains(chip.0));
        let threshold = fitted(&fit);
        let below = |of: Modality| {
            let of: Vec<_> = rest.iter().filter(|chip| chip.1 == of).collect();
            (of.iter().filter(|chip| chip.2 < threshold).count(), of.len())
        };
        let (optical, optical_chips) = below(Modality::Optical);
        thresholds.push(threshold);
        alarms.push(below(Modality::Sar).0);
        hits.push(optical as f64 / optical_chips as f64);
    }
    let range =
        |values: &[f64]| values.iter().fold([f64::MAX, 0.0], |[low, high], v| [v.min(low), v.max(high)]);
    let alarms = [alarms.iter().min().copied().unwrap_or(0), alarms.iter().max().copied().unwrap_or(0)];
    (range(&thresholds), alarms, range(&hits))
}

/// Rows of the table in `docs/warnings.md`, which is compared, and the bounds that must hold.
#[test]
fn real_chips_raise_no_doubt_and_mistakes_with_them_do() {
    let Some(folder) = shared("data/hoss165") else { return };
    let chips = chips(&folder, 1);
    assert_eq!(chips.len(), 165);
    let alarms = chips.iter().filter(|chip| !found(&chip.bytes, chip.modality).is_empty()).count();
    let mut table = format!("| as they are | none | {alarms} of 165 warned about |\n");
    let mut weakest = 1.0_f64;
    for Mistake { name, code, of, sent_as, bytes } in MISTAKES {
        let chips: Vec<&Real> = chips.iter().filter(|chip| chip.modality == of).collect();
        let hits = chips.iter().filter(|chip| found(&bytes(chip), sent_as).contains(code)).count();
        weakest = weakest.min(hits as f64 / chips.len() as f64);
        writeln!(table, "| {name} | `{code}` | {hits} of {} |", chips.len()).expect("a string");
    }
    let gray: Vec<&Real> = chips.iter().filter(|chip| chip.modality == Modality::Optical).collect();
    let gray_alarms = gray
        .iter()
        .filter(|chip| !found(&chip.tiff::<Gray8>(&chip.gray.pixels), Modality::Optical).is_empty());
    writeln!(
        table,
        "| optical, gray, sent as optical | none | {} of 111 warned about |",
        gray_alarms.count()
    )
    .expect("a string");
    let (thresholds, wrong, hits) = cross_validated(&calms(&chips));
    writeln!(
        table,
        "| threshold fitted on half of the ships: {:.3} to {:.3} | `LOOKS_LIKE_OPTICAL` | the other half: {:.0} to \
         {:.0} % of the optical chips, {} to {} SAR chips wrongly |",
        thresholds[0],
        thresholds[1],
        hits[0] * 100.0,
        hits[1] * 100.0,
        wrong[0],
        wrong[1],
    )
    .expect("a string");
    assert!(alarms <= 2, "false alarms:\n{table}");
    assert!(weakest >= 0.9, "hits:\n{table}");
    assert!(hits[0] >= 0.9 && wrong[1] <= 2, "cross-validation:\n{table}");
    in_the_document(&table);
}

#[test]
fn the_thresholds_hold_on_other_sensors() {
    let Some(folder) = shared("data/optisar_pair") else { return };
    // A few of each scene.
    let chips = chips(&folder, 3);
    assert_eq!(chips.len(), OTHERS);
    let mut table = String::new();
    let mut row = |name: &str, code: &str, of: Modality, sent_as: Modality, bytes: fn(&Real) -> Vec<u8>| {
        let of: Vec<&Real> = chips.iter().filter(|chip| chip.modality == of).collect();
        let hits = of.iter().filter(|chip| found(&bytes(chip), sent_as).contains(code)).count();
        writeln!(table, "| {name} | `{code}` | {hits} of {} |", of.len()).expect("a string");
        hits as f64 / of.len() as f64
    };
    let (optical, sar) = (Modality::Optical, Modality::Sar);
    let gray = |chip: &Real| chip.tiff::<Gray8>(&chip.gray.pixels);
    let missed =
        1.0 - row("optical tiles, gray, sent as a SAR TIFF", "LOOKS_LIKE_OPTICAL", optical, sar, gray);
    let wrong = row("SAR tiles as they are", "LOOKS_LIKE_OPTICAL", sar, sar, |chip| chip.bytes.clone());
    let unseen =
        1.0 - row("SAR tiles sent as optical", "LOOKS_LIKE_SAR", sar, optical, |chip| chip.bytes.clone());
    let gray = row("optical tiles, gray, sent as optical", "LOOKS_LIKE_SAR", optical, optical, gray);
    let colour =
        row("optical tiles as they are", "LOOKS_LIKE_SAR", optical, optical, |chip| chip.bytes.clone());
    assert!(missed <= 0.1 && wrong <= 0.01 && unseen <= 0.2 && gray <= 0.02 && colour == 0.0, "{table}");
    in_the_document(&table);
}
