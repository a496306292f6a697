//! Excludes vessels that a query cannot show: those that were elsewhere, and those that the same scene shows as another
//! detection.

use super::sphere::great_circle_m;
use crate::gallery::{DetectionHash, Position, RowId, SceneNumber, Sighting, Time};
use crate::reason::Removal;

/// Metres a second of one knot.
pub const KNOT_M_S: f64 = 1852.0 / 3600.0;
/// Standard deviations by which two positions may differ before they count as apart.
const SIGMAS: f64 = 3.0;
/// Rounding error of the distance between two notations of the same place, as at a pole.
const ROUNDING_M: f64 = 1e-6;
/// No distance on the globe is larger.
const SIGMA_MAX_M: f64 = 2e7;

/// What the gates know of a query; of a tracklet, of all its images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GateQuery {
    /// Of the images that have both.
    pub places: Vec<(Time, Position)>,
    /// Of the images whose scene the gallery knows.
    pub detections: Vec<(SceneNumber, Option<DetectionHash>)>,
    /// The query itself if it is enrolled, which is not compared with itself.
    pub row: Option<RowId>,
}

impl GateQuery {
    /// Whether a sighting is another detection in a scene of the query. Detections are the same only if both are known
    /// and equal.
    pub fn is_beside(&self, sighting: &Sighting) -> bool {
        let Some(scene) = sighting.scene else { return false };
        let mut in_scene = self.detections.iter().filter(|(own, _)| *own == scene).peekable();
        let is_itself = |(_, own): &(_, Option<DetectionHash>)| own.is_some() && *own == sighting.detection;
        in_scene.peek().is_some() && !in_scene.any(is_itself) && self.row != Some(sighting.row)
    }
}

/// The movement between two sightings: great circle, time, and the uncertainty of both positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leg {
    seconds: f64,
    distance_m: f64,
    sigma_m: f64,
}

impl Leg {
    pub fn between(from: (Time, Position), to: (Time, Position)) -> Self {
        Self {
            seconds: from.0.seconds_apart(to.0),
            distance_m: great_circle_m(&from.1, &to.1),
            sigma_m: from.1.sigma_m().hypot(to.1.sigma_m()).min(SIGMA_MAX_M),
        }
    }

    /// At least 0.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    pub fn distance_m(&self) -> f64 {
        self.distance_m
    }

    /// Standard deviation of the distance, from both positions.
    pub fn sigma_m(&self) -> f64 {
        self.sigma_m
    }

    /// Distance over time. For two sightings at the same time it is 0 if the uncertainty of their positions explains
    /// the distance, else `None`.
    pub fn implied_speed_knots(&self) -> Option<f64> {
        if self.seconds > 0.0 {
            Some(self.distance_m / self.seconds / KNOT_M_S)
        } else {
            (self.distance_m <= self.explained_m()).then_some(0.0)
        }
    }

    /// Whether the positions are too far apart for this speed, even at the edge of their uncertainty.
    pub fn needs_more_than(&self, speed_knots: f64) -> bool {
        self.distance_m > speed_knots * KNOT_M_S * self.seconds + self.explained_m()
    }

    /// The distance that the uncertainty of both positions explains.
    fn explained_m(&self) -> f64 {
        SIGMAS * self.sigma_m + ROUNDING_M
    }
}

/// What the sightings of one vessel imply for one query, accumulated in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trace {
    /// Number of sightings so far.
    entries: u32,
    is_beside: bool,
    nearest: Option<Nearest>,
}

/// The pair of images of query and vessel nearest in time, among those with time and position.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Nearest {
    nanos: u64,
    asked: (Time, Position),
    seen: (Time, Position),
}

impl Trace {
    /// Adds a sighting of the vessel; the query itself is skipped.
    pub fn add(&mut self, asked: &GateQuery, sighting: &Sighting) {
        if asked.row == Some(sighting.row) {
            return;
        }
        self.entries += 1;
        self.is_beside |= asked.is_beside(sighting);
        let Some(seen) = sighting.observed_at.zip(sighting.position) else { return };
        for place in &asked.places {
            let nanos = place.0.nanos().abs_diff(seen.0.nanos());
            let candidate = Nearest { nanos, asked: *place, seen };
            if self.nearest.is_none_or(|nearest| candidate.is_nearer_than(&nearest)) {
                self.nearest = Some(candidate);
            }
        }
    }

    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// From the vessel's sighting nearest in time to the query; `None` if a time or position is missing on either side.
    ///
    /// Of sightings equally near in time, the one nearest in space counts: in doubt, a vessel is kept.
    pub fn leg(&self) -> Option<Leg> {
        self.nearest.map(|nearest| Leg::between(nearest.seen, nearest.asked))
    }
}

impl Nearest {
    fn is_nearer_than(&self, other: &Self) -> bool {
        let far = |pair: &Self| great_circle_m(&pair.asked.1, &pair.seen.1);
        self.nanos < other.nanos || (self.nanos == other.nanos && far(self) < far(other))
    }
}

/// The verdict of the gates on a vessel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Passed,
    /// A time or position is missing, so the speed could not be judged.
    Unchecked,
    Removed(Removal),
}

/// The gates of a request. The gate of the same scene is always active.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gate {
    /// `None`: any speed.
    pub max_speed_knots: Option<f64>,
}

impl Gate {
    /// Judges a vessel by its trace.
    pub fn judge(&self, trace: &Trace) -> Verdict {
        if trace.is_beside {
            return Verdict::Removed(Removal::SameScene);
        }
        match (self.max_speed_knots, trace.leg()) {
            (None, _) => Verdict::Passed,
            (Some(_), None) => Verdict::Unchecked,
            (Some(speed), Some(leg)) if leg.needs_more_than(speed) => Verdict::Removed(Removal::Speed),
            (Some(_), Some(_)) => Verdict::Passed,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gallery::{Code, Entry, Filter, Index, Observation};
    use crate::matching::fixture;

    const HOUR: i64 = 3_600_000_000_000;

    fn at(hours: i64) -> Option<Time> {
        Some(Time::from_nanos(hours * HOUR))
    }

    fn place(latitude: f64, longitude: f64) -> Option<Position> {
        unsure(latitude, longitude, 0.0)
    }

    fn unsure(latitude: f64, longitude: f64, sigma_m: f64) -> Option<Position> {
        Some(Position::new(latitude, longitude, sigma_m).expect("a place"))
    }

    fn asked(observed_at: Option<Time>, position: Option<Position>) -> GateQuery {
        GateQuery { places: observed_at.zip(position).into_iter().collect(), ..GateQuery::default() }
    }

    /// An index of one entry, in row 7.
    fn index(scene_id: &str, detection_id: &str) -> (Index, Sighting) {
        let observation = Observation {
            scene_id: scene_id.into(),
            detection_id: detection_id.into(),
            ..Observation::default()
        };
        let mut index = Index::new(1);
        index.push(RowId::from_u64(7), &Code::new(&[1.0]), &Entry { observation, ..fixture::entry("seen") });
        let sighting =
            index.sightings(&index.select(&Filter::default(), None, &[])).next().expect("an entry");
        (index, sighting)
    }

    fn sighting(observed_at: Option<Time>, position: Option<Position>) -> Sighting {
        Sighting { observed_at, position, ..index("", "").1 }
    }

    fn trace(asked: &GateQuery, sightings: &[Sighting]) -> Trace {
        let mut trace = Trace::default();
        sightings.iter().for_each(|sighting| trace.add(asked, sighting));
        trace
    }

    fn judge(max_speed_knots: f64, asked: &GateQuery, sightings: &[Sighting]) -> Verdict {
        Gate { max_speed_knots: Some(max_speed_knots) }.judge(&trace(asked, sightings))
    }

    #[test]
    fn a_vessel_that_would_have_had_to_sail_faster_is_removed() {
        let removed = Verdict::Removed(Removal::Speed);
        // A degree of latitude is 60.04 nautical miles on this sphere.
        for (from, to, hours, knots, expected) in [
            (place(0.0, 0.0), place(1.0, 0.0), 2, 31.0, Verdict::Passed),
            (place(0.0, 0.0), place(1.0, 0.0), 2, 30.0, removed),
            (place(0.0, 0.0), place(1.0, 0.0), -2, 31.0, Verdict::Passed),
            (place(0.0, 0.0), place(1.0, 0.0), -2, 30.0, removed),
            // Across the antimeridian and over the pole.
            (place(0.0, 179.5), place(0.0, -179.5), 2, 31.0, Verdict::Passed),
            (place(89.5, 10.0), place(89.5, -170.0), 2, 31.0, Verdict::Passed),
            (place(89.5, 10.0), place(89.5, -170.0), 2, 30.0, removed),
            (place(90.0, 10.0), place(90.0, -170.0), 1, 0.0, Verdict::Passed),
            // At the same time, only the uncertainty of the positions counts: 3 * hypot(300, 400) = 1,500 m.
            (unsure(0.0, 0.0, 300.0), unsure(0.0134, 0.0, 400.0), 0, 1e6, Verdict::Passed),
            (unsure(0.0, 0.0, 300.0), unsure(0.0136, 0.0, 400.0), 0, 1e6, removed),
            (place(0.0, 180.0), place(0.0, -180.0), 0, 0.0, Verdict::Passed),
            (place(0.0, 0.0), place(0.0, 1e-6), 0, 1e9, removed),
        ] {
            let asked = asked(at(hours), to);
            assert_eq!(judge(knots, &asked, &[sighting(at(0), from)]), expected, "{from:?} {to:?} {hours}");
        }
    }

    #[test]
    fn what_is_not_known_passes_and_is_marked() {
        let full = (at(0), place(0.0, 0.0));
        for (query, known) in [
            ((None, full.1), full),
            ((full.0, None), full),
            (full, (None, full.1)),
            (full, (full.0, None)),
            ((None, None), (None, None)),
        ] {
            let asked = asked(query.0, query.1);
            assert_eq!(judge(1.0, &asked, &[sighting(known.0, known.1)]), Verdict::Unchecked);
            let ungated = Gate::default().judge(&trace(&asked, &[sighting(known.0, known.1)]));
            assert_eq!(ungated, Verdict::Passed, "nothing was left unchecked where there is no gate");
        }
    }

    #[test]
    fn the_sighting_nearest_in_time_decides_and_of_equals_the_nearest_in_place() {
        let query = asked(at(10), place(0.0, 0.0));
        let (here, far) = (place(0.0, 0.1), place(40.0, 0.0));
        let judge = |sightings: &[Sighting]| judge(20.0, &query, sightings);
        let removed = Verdict::Removed(Removal::Speed);
        assert_eq!(judge(&[sighting(at(0), here), sighting(at(9), far)]), removed);
        assert_eq!(judge(&[sighting(at(0), far), sighting(at(11), here)]), Verdict::Passed);
        assert_eq!(judge(&[sighting(at(8), far), sighting(at(12), here)]), Verdict::Passed);
        assert_eq!(judge(&[sighting(at(8), here), sighting(at(12), far)]), Verdict::Passed);
        // A sighting without a position is never the nearest.
        assert_eq!(judge(&[sighting(at(10), None), sighting(at(9), far)]), removed);
    }

    #[test]
    fn two_detections_of_one_scene_are_two_vessels() {
        let removed = Verdict::Removed(Removal::SameScene);
        // Scene and detection of the query, and of an enrolled sighting.
        for (asked, seen, expected) in [
            (("a", "1"), ("a", "2"), removed),
            (("a", ""), ("a", "2"), removed),
            (("a", "1"), ("a", ""), removed),
            (("a", ""), ("a", ""), removed),
            (("a", "2"), ("a", "2"), Verdict::Passed),
            (("b", "1"), ("a", "2"), Verdict::Passed),
            (("", "1"), ("a", "2"), Verdict::Passed),
            (("", ""), ("", ""), Verdict::Passed),
        ] {
            let (index, sighting) = index(seen.0, seen.1);
            let query =
                GateQuery { detections: fixture::detections(&index, &[asked]), ..GateQuery::default() };
            let judge =
                |asked: &GateQuery, sightings: &[Sighting]| Gate::default().judge(&trace(asked, sightings));
            assert_eq!(judge(&query, &[sighting]), expected, "{asked:?} {seen:?}");
            let elsewhere = Sighting { scene: None, ..sighting };
            assert_eq!(judge(&query, &[elsewhere, sighting, elsewhere]), expected, "any sighting is enough");
            let itself = GateQuery { row: Some(RowId::from_u64(7)), ..query };
            assert_eq!(judge(&itself, &[sighting]), Verdict::Passed);
        }
    }

    #[test]
    fn a_tracklet_is_where_its_images_are() {
        let places = [(at(0), place(0.0, 0.0)), (at(10), place(5.0, 0.0))];
        let query = GateQuery {
            places: places.iter().filter_map(|(time, place)| time.zip(*place)).collect(),
            ..GateQuery::default()
        };
        let leg = |hours: i64| trace(&query, &[sighting(at(hours), place(5.0, 0.0))]).leg().expect("a leg");
        assert_eq!((leg(9).seconds(), leg(9).distance_m()), (3600.0, 0.0));
        assert!(leg(1).seconds() == 3600.0 && leg(1).distance_m() > 5e5);

        let (index, sighting) = index("a", "1");
        let detections = |of: &[(&str, &str)]| GateQuery {
            detections: fixture::detections(&index, of),
            ..GateQuery::default()
        };
        assert!(detections(&[("a", "2")]).is_beside(&sighting));
        assert!(
            !detections(&[("a", "2"), ("a", "1")]).is_beside(&sighting),
            "an image of it is the detection"
        );
    }

    #[test]
    fn the_query_itself_is_no_sighting() {
        let query = GateQuery { row: Some(RowId::from_u64(7)), ..asked(at(0), place(0.0, 0.0)) };
        let other = Sighting { row: RowId::from_u64(8), ..sighting(at(5), place(50.0, 0.0)) };
        let trace = trace(&query, &[sighting(at(0), place(0.0, 0.0)), other]);
        assert_eq!(trace.entries(), 1);
        assert_eq!(trace.leg().expect("a leg").seconds(), 5.0 * 3600.0);
    }

    #[test]
    fn a_speed_is_distance_over_time_or_nothing() {
        let speed = |seconds: f64, distance_m: f64, sigma_m: f64| {
            Leg { seconds, distance_m, sigma_m }.implied_speed_knots()
        };
        assert!((speed(3600.0, 18_520.0, 0.0).expect("a speed") - 10.0).abs() < 1e-9);
        assert_eq!(speed(0.0, 100.0, 50.0), Some(0.0));
        assert_eq!(speed(0.0, 200.0, 50.0), None);
        assert_eq!(speed(0.0, 0.0, 0.0), Some(0.0));
    }

    fn any_place() -> impl Strategy<Value = Position> {
        let latitude = prop_oneof![Just(90.0), Just(-90.0), Just(0.0), -90.0..=90.0_f64];
        let longitude = prop_oneof![Just(180.0), Just(-180.0), Just(0.0), -180.0..=180.0_f64];
        let sigma = prop_oneof![Just(0.0), 0.0..5e4_f64, Just(1e300)];
        (latitude, longitude, sigma)
            .prop_map(|(north, east, sigma)| Position::new(north, east, sigma).expect("a place"))
    }

    fn any_time() -> impl Strategy<Value = Time> {
        prop_oneof![Just(0), Just(1), Just(i64::MIN), Just(i64::MAX), any::<i64>()].prop_map(Time::from_nanos)
    }

    proptest! {
        #[test]
        fn a_speed_is_finite_and_the_gate_agrees_with_it(
            times in (any_time(), any_time()),
            places in (any_place(), any_place()),
            knots in 0.0..1e4_f64,
        ) {
            let leg = Leg::between((times.0, places.0), (times.1, places.1));
            let back = Leg::between((times.1, places.1), (times.0, places.0));
            prop_assert_eq!(leg.needs_more_than(knots), back.needs_more_than(knots));
            match leg.implied_speed_knots() {
                Some(speed) => {
                    prop_assert!(speed.is_finite() && speed >= 0.0);
                    prop_assert!(!leg.needs_more_than(speed * (1.0 + 1e-9)));
                }
                None => prop_assert!(leg.needs_more_than(knots)),
            }
            prop_assert!(!leg.needs_more_than(knots) || leg.needs_more_than(knots / 2.0));
        }

        #[test]
        fn the_order_of_sightings_does_not_matter(
            sightings in prop::collection::vec((any_time(), any_place()), 1..6),
            query in (any_time(), any_place()),
        ) {
            let asked = asked(Some(query.0), Some(query.1));
            let mut seen: Vec<_> =
                sightings.into_iter().map(|(time, place)| sighting(Some(time), Some(place))).collect();
            let leg = trace(&asked, &seen).leg().expect("a leg");
            seen.reverse();
            let reversed = trace(&asked, &seen).leg().expect("a leg");
            prop_assert_eq!((leg.seconds(), leg.distance_m()), (reversed.seconds(), reversed.distance_m()));
            let nearest = seen.iter().flat_map(|seen| seen.observed_at).map(|time| time.seconds_apart(query.0));
            prop_assert_eq!(leg.seconds(), nearest.fold(f64::INFINITY, f64::min));
        }
    }
}
