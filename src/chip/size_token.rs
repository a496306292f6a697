//! TransOSS's representation of a ship's size: three numbers derived from the chip's extent in metres.

/// Scale, mean and deviation by which the reference standardises a chip's width and height in metres.
const WIDTH: (f64, f64, f64) = (93.0, 0.434, 0.031);
const HEIGHT: (f64, f64, f64) = (427.0, 0.461, 0.031);

/// Standardised width, standardised height, height / width, from the original extent in metres.
///
/// The reference computes in f64 and rounds to f32; the third number is not standardised.
pub fn size_token(width_m: f64, height_m: f64) -> [f64; 3] {
    let standardise = |metres: f64, (scale, mean, deviation)| (metres / scale - mean) / deviation;
    [standardise(width_m, WIDTH), standardise(height_m, HEIGHT), height_m / width_m]
}

/// Width and height in metres of a chip with this size token.
pub(super) fn extent_m([width, height, _]: [f32; 3]) -> [f64; 2] {
    let metres =
        |token: f32, (scale, mean, deviation): (f64, f64, f64)| (f64::from(token) * deviation + mean) * scale;
    [metres(width, WIDTH), metres(height, HEIGHT)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extent_can_be_read_off_the_token() {
        for (width, height) in [(14.0, 50.0), (40.25, 213.0), (76.0, 385.0)] {
            let found = extent_m(size_token(width, height).map(|value| value as f32));
            assert!((found[0] - width).abs() < 1e-4 && (found[1] - height).abs() < 1e-4, "{found:?}");
        }
    }
}
