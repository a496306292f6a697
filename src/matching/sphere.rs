//! Distances over the sphere.

use crate::gallery::Position;

/// Mean radius. The earth's flattening makes distances wrong by half a percent at most.
const EARTH_RADIUS_M: f64 = 6_371_008.8;

/// Metres between two positions along the great circle.
///
/// The angle comes from the cross and the dot product of the directions, which is exact to rounding for positions that
/// are close, far and opposite alike, at the poles and across the antimeridian.
pub fn great_circle_m(a: &Position, b: &Position) -> f64 {
    let (a, b) = (direction(a), direction(b));
    let cross = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
    let sine = cross.iter().map(|value| value * value).sum::<f64>().sqrt();
    let cosine: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
    EARTH_RADIUS_M * sine.atan2(cosine)
}

/// The unit vector from the earth's centre.
fn direction(place: &Position) -> [f64; 3] {
    let (latitude, longitude) = (place.latitude_deg().to_radians(), place.longitude_deg().to_radians());
    [latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(latitude: f64, longitude: f64) -> Position {
        Position::new(latitude, longitude, 0.0).expect("a place")
    }

    #[test]
    fn known_distances_come_out() {
        let degree = EARTH_RADIUS_M.to_radians();
        for (a, b, expected, tolerance) in [
            ((0.0, 0.0), (0.0, 0.0), 0.0, 0.0),
            ((0.0, 0.0), (1.0, 0.0), degree, 1e-6),
            ((0.0, 0.0), (0.0, 1.0), degree, 1e-6),
            // Two degrees across the antimeridian, not 358.
            ((0.0, 179.0), (0.0, -179.0), 2.0 * degree, 1e-6),
            ((-17.0, 180.0), (-17.0, -180.0), 0.0, 1e-6),
            // A pole has every longitude.
            ((90.0, 0.0), (90.0, 137.0), 0.0, 1e-6),
            ((89.0, 0.0), (89.0, 180.0), 2.0 * degree, 1e-6),
            ((-90.0, 12.0), (90.0, -50.0), 180.0 * degree, 1e-6),
            ((10.0, 20.0), (-10.0, -160.0), 180.0 * degree, 1e-6),
            // A metre apart, and a millimetre.
            ((54.0, 10.0), (54.0 + 1.0 / degree, 10.0), 1.0, 1e-8),
            ((54.0, 10.0), (54.0 + 1e-3 / degree, 10.0), 1e-3, 1e-8),
            // Nashville to Los Angeles, which is often published for a radius of 6372.8 km.
            ((36.12, -86.67), (33.94, -118.40), 2_887_259.95 * EARTH_RADIUS_M / 6_372_800.0, 0.01),
        ] {
            let found = great_circle_m(&place(a.0, a.1), &place(b.0, b.1));
            assert!((found - expected).abs() <= tolerance, "{a:?} {b:?}: {found} {expected}");
        }
    }

    proptest! {
        #[test]
        fn distances_are_those_of_a_metric(
            places in prop::collection::vec((-90.0..=90.0_f64, -180.0..=180.0_f64), 3),
        ) {
            let [a, b, c] = [0, 1, 2].map(|n| place(places[n].0, places[n].1));
            let (ab, bc, ac) = (great_circle_m(&a, &b), great_circle_m(&b, &c), great_circle_m(&a, &c));
            prop_assert!((0.0..=EARTH_RADIUS_M * std::f64::consts::PI).contains(&ab));
            prop_assert!((ab - great_circle_m(&b, &a)).abs() < 1e-6);
            prop_assert!(ac <= ab + bc + 1e-6);
        }

        #[test]
        fn a_short_way_is_that_of_the_plane(latitude in -80.0..80.0_f64, north in -1e-4..1e-4_f64, east in -1e-4..1e-4_f64) {
            let (from, to) = (place(latitude, 0.0), place(latitude + north, east));
            let middle = (latitude + north / 2.0).to_radians().cos();
            let expected = EARTH_RADIUS_M.to_radians() * north.hypot(east * middle);
            prop_assert!((great_circle_m(&from, &to) - expected).abs() < 1e-5);
        }
    }
}
