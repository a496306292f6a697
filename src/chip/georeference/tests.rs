use proptest::prelude::*;

use super::keys::*;
use super::*;

/// EPSG code, x and y of a point, metres on the ground of half a unit along x and along y there.
///
/// By pyproj 3.7.2 (PROJ 9.5.1): `Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)` of the points
/// 50 m before and after the point on an axis, `Geod(ellps="WGS84").inv` between them, over their distance in
/// units, halved.
const PYPROJ: [(u16, f64, f64, f64, f64); 54] = [
    // Web Mercator, its older code, ellipsoidal Mercator, Mercator around 150 degrees east
    (3857, 11554963.1, 139160.4, 0.499882, 0.496537),
    (3857, 445278.0, 6800125.5, 0.308473, 0.307687),
    (3857, 2782987.3, 8399737.9, 0.250630, 0.250208),
    (3857, 2103938.4, 10971768.0, 0.173981, 0.173840),
    (3857, -7569725.4, -7323146.5, 0.288862, 0.288217),
    (3785, 445278.0, 6800125.5, 0.308473, 0.307687),
    (3395, 2782987.3, 8362698.5, 0.250630, 0.250630),
    (3832, 3228265.2, -2035988.7, 0.475411, 0.475411),
    // UTM on several datums, at the middle and at the edge of a zone
    (32648, 500000.0, 132636.3, 0.500200, 0.500200),
    (32648, 366491.8, 138193.3, 0.500090, 0.500090),
    (32630, 707426.3, 5642850.3, 0.499936, 0.499936),
    (32733, 814420.3, 6243724.8, 0.499591, 0.499591),
    (25832, 564918.5, 6028488.0, 0.500174, 0.500174),
    (26918, 584482.4, 4505935.9, 0.500156, 0.500156),
    (32231, 500000.0, 5649823.4, 0.500200, 0.500200),
    (31983, 684623.7, 7466421.4, 0.499989, 0.499989),
    // National grids: transverse Mercator, oblique stereographic, oblique Mercator
    (27700, 463417.2, 100497.6, 0.500223, 0.500218),
    (28992, 66490.9, 440849.9, 0.500082, 0.500078),
    (31467, 3559715.1, 5930030.8, 0.500039, 0.500036),
    (3006, 670817.9, 6577304.6, 0.500021, 0.500021),
    (3067, 389130.0, 6675364.5, 0.500125, 0.500125),
    (28356, 333568.9, 6247473.3, 0.500029, 0.500029),
    (6677, -3020.3, -44377.2, 0.500050, 0.500050),
    (4549, 500000.0, 3453148.6, 0.500000, 0.500000),
    (2193, 1760582.9, 5925802.6, 0.500041, 0.500041),
    (3414, 29856.5, 28055.7, 0.500000, 0.500000),
    (2157, 719980.5, 729256.5, 0.500002, 0.500002),
    (2056, 2680037.5, 1250297.2, 0.500045, 0.500041),
    (3375, 378141.2, 332099.4, 0.499955, 0.499955),
    (29873, 711560.7, 664457.9, 0.500078, 0.500050),
    // Lambert conic, Albers, Lambert azimuthal
    (2154, 886713.9, 6247256.6, 0.499703, 0.499703),
    (3034, 3602452.9, 2816148.8, 0.517694, 0.517694),
    (31370, 152267.8, 221070.0, 0.499961, 0.499967),
    (5070, -2273032.8, 1958176.4, 0.504166, 0.495895),
    (3577, 1759614.4, -3832061.7, 0.502599, 0.497417),
    (3005, 1211046.6, 480285.1, 0.499564, 0.500437),
    (3338, 219490.5, 1253282.0, 0.501840, 0.498167),
    (3035, 3909469.8, 3226952.0, 0.500257, 0.499743),
    (3035, 2668283.4, 1943501.0, 0.501929, 0.498241),
    (3571, 0.0, -2659596.1, 0.489078, 0.511166),
    // Polar stereographic, at and away from the latitude of true scale
    (3413, 0.0, -1633879.5, 0.506758, 0.506758),
    (3413, 984178.0, -458929.7, 0.511624, 0.511624),
    (3413, -247621.6, -2830327.9, 0.489861, 0.489861),
    (3031, 0.0, 2082760.1, 0.500000, 0.500000),
    (3031, 308314.7, -1294169.8, 0.508193, 0.508193),
    (3995, 1256242.5, -1934443.8, 0.496934, 0.496934),
    (32661, 2353507.0, 733880.3, 0.497704, 0.497704),
    (3976, 0.0, 2750247.7, 0.491403, 0.491403),
    // Cylindrical
    (6933, 385945.1, 5775916.8, 0.355895, 0.702454),
    (32662, 445278.0, 5788613.5, 0.308473, 0.499766),
    // Feet
    (2263, 984250.0, 194305.3, 0.152401, 0.152401),
    (2225, 6446275.0, 1154774.4, 0.152233, 0.152233),
    (2277, 3349465.8, 10052252.3, 0.152404, 0.152404),
    // An ellipsoid of 1880 and a datum without parameters
    (2100, 464833.4, 4194795.3, 0.500192, 0.500192),
];

/// Longitude, latitude, metres of 0.000005 degrees along each, by the same means.
const PYPROJ_DEGREES: [(f64, f64, f64, f64); 5] = [
    (103.8, 1.25, 0.556466, 0.552874),
    (4.0, 45.0, 0.394234, 0.555659),
    (25.0, 60.0, 0.279000, 0.557061),
    (15.6, 80.0, 0.096967, 0.558300),
    (179.99999, -18.0, 0.529525, 0.553402),
];

/// A key value that is not a code.
#[derive(Clone, Copy)]
enum Value<'a> {
    Code(u16),
    Number(f64),
    Text(&'a str),
}

use Value::{Code, Number, Text};

fn with_keys(mut tags: GeoTags, keys: &[(u16, Value<'_>)]) -> GeoTags {
    tags.geo_keys = vec![1, 1, 0, keys.len() as u16];
    for (key, value) in keys {
        let entry = match *value {
            Code(code) => [*key, 0, 1, code],
            Number(number) => {
                tags.geo_doubles.push(number);
                [*key, 34736, 1, tags.geo_doubles.len() as u16 - 1]
            }
            Text(text) => {
                let at = tags.geo_ascii.len() as u16;
                tags.geo_ascii.push_str(text);
                tags.geo_ascii.push('|');
                [*key, 34737, text.len() as u16 + 1, at]
            }
        };
        tags.geo_keys.extend(entry);
    }
    tags
}

/// Square pixels around a point at the centre of an image of 40 x 100 pixels.
fn around(x: f64, y: f64, step: f64) -> GeoTags {
    GeoTags {
        pixel_scale: vec![step, step, 0.0],
        tiepoints: vec![0.0, 0.0, 0.0, x - 20.0 * step, y + 50.0 * step, 0.0],
        ..GeoTags::default()
    }
}

fn projected(code: u16) -> [(u16, Value<'static>); 2] {
    [(MODEL_TYPE, Code(1)), (PROJECTED_SYSTEM, Code(code))]
}

const GEOGRAPHIC: [(u16, Value<'static>); 2] = [(MODEL_TYPE, Code(2)), (GEOGRAPHIC_SYSTEM, Code(4326))];

fn ground(tags: &GeoTags) -> [f64; 2] {
    match tags.ground(40, 100) {
        Ground::Size(size) => [size.x_m(), size.y_m()],
        other => panic!("{other:?}: {tags:?}"),
    }
}

fn assert_near(found: [f64; 2], expected: [f64; 2], what: &str) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((found / expected - 1.0).abs() < 1e-4, "{what}: {found} {expected}");
    }
}

#[test]
fn a_projections_scale_is_taken_out_as_pyproj_does() {
    for (code, x, y, x_m, y_m) in PYPROJ {
        let tags = with_keys(around(x, y, 0.5), &projected(code));
        assert_near(ground(&tags), [x_m, y_m], &format!("EPSG:{code}"));
    }
}

#[test]
fn degrees_become_metres_by_their_latitude() {
    for (longitude, latitude, x_m, y_m) in PYPROJ_DEGREES {
        let tags = with_keys(around(longitude, latitude, 5e-6), &GEOGRAPHIC);
        assert_near(ground(&tags), [x_m, y_m], &format!("{latitude}"));
    }
    // The same point in other units.
    let place = PYPROJ_DEGREES[2];
    for (unit, size) in [(9101, 1_f64.to_radians()), (9104, 3600.0), (9105, 1.0 / 0.9)] {
        let keys = [&GEOGRAPHIC[..], &[(ANGULAR_UNIT, Code(unit))]].concat();
        let tags = with_keys(around(place.0 * size, place.1 * size, 5e-6 * size), &keys);
        assert_near(ground(&tags), [place.2, place.3], &format!("unit {unit}"));
    }
}

#[test]
fn parameters_say_the_same_as_a_code() {
    let wgs84 = [(MODEL_TYPE, Code(1)), (GEOGRAPHIC_SYSTEM, Code(4326)), (PROJECTED_SYSTEM, Code(32767))];
    let airy = [(SEMI_MAJOR_AXIS, Number(6_377_563.396)), (INVERSE_FLATTENING, Number(299.324_964_6))];
    for (code, keys) in [
        (32648, vec![(PROJECTION, Code(16048))]),
        (32733, vec![(PROJECTION, Code(16133))]),
        (32648, vec![(PROJECTED_CITATION, Text("WGS 84 / UTM zone 48N"))]),
        (32733, vec![(CITATION, Text("PCS Name = WGS_1984_UTM_Zone_33S"))]),
        (3857, vec![(CITATION, Text("WGS 84 / Pseudo-Mercator")), (PROJECTION_METHOD, Code(7))]),
        (3395, vec![(PROJECTION_METHOD, Code(7)), (ORIGIN_SCALE, Number(1.0))]),
        (
            3413,
            vec![
                (PROJECTION_METHOD, Code(15)),
                (ORIGIN_LATITUDE, Number(70.0)),
                (POLE_LONGITUDE, Number(-45.0)),
            ],
        ),
        (3031, vec![(PROJECTION_METHOD, Code(15)), (ORIGIN_LATITUDE, Number(-71.0))]),
        (
            5070,
            vec![
                (PROJECTION_METHOD, Code(11)),
                (PARALLEL_1, Number(29.5)),
                (PARALLEL_2, Number(45.5)),
                (ORIGIN_LATITUDE, Number(23.0)),
                (ORIGIN_LONGITUDE, Number(-96.0)),
            ],
        ),
        (
            2154,
            vec![
                (PROJECTION_METHOD, Code(8)),
                (PARALLEL_1, Number(49.0)),
                (PARALLEL_2, Number(44.0)),
                (FALSE_ORIGIN_LATITUDE, Number(46.5)),
                (FALSE_ORIGIN_LONGITUDE, Number(3.0)),
                (FALSE_ORIGIN_EASTING, Number(700_000.0)),
                (FALSE_ORIGIN_NORTHING, Number(6_600_000.0)),
            ],
        ),
        (
            3035,
            vec![
                (PROJECTION_METHOD, Code(10)),
                (CENTER_LATITUDE, Number(52.0)),
                (CENTER_LONGITUDE, Number(10.0)),
                (FALSE_EASTING, Number(4_321_000.0)),
                (FALSE_NORTHING, Number(3_210_000.0)),
            ],
        ),
        (
            27700,
            [
                &airy[..],
                &[
                    (PROJECTION_METHOD, Code(1)),
                    (ORIGIN_LATITUDE, Number(49.0)),
                    (ORIGIN_LONGITUDE, Number(-2.0)),
                    (ORIGIN_SCALE, Number(0.999_601_271_7)),
                    (FALSE_EASTING, Number(400_000.0)),
                    (FALSE_NORTHING, Number(-100_000.0)),
                ],
            ]
            .concat(),
        ),
    ] {
        let (_, x, y, x_m, y_m) = *PYPROJ.iter().rfind(|row| row.0 == code).expect("a code of the table");
        let tags = with_keys(around(x, y, 0.5), &[&wgs84[..], &keys[..]].concat());
        assert_near(ground(&tags), [x_m, y_m], &format!("like EPSG:{code}"));
    }
}

#[test]
fn the_unit_of_the_file_comes_before_that_of_the_code() {
    let (code, x, y, x_m, _) = PYPROJ[8];
    for (unit, metres) in [(9001, 1.0), (9002, 0.3048), (9003, 1200.0 / 3937.0)] {
        let keys = [&projected(code)[..], &[(LINEAR_UNIT, Code(unit))]].concat();
        let tags = with_keys(around(x / metres, y / metres, 0.5 / metres), &keys);
        assert_near(ground(&tags), [x_m, x_m], &format!("unit {unit}"));
    }
    let own = [&projected(code)[..], &[(LINEAR_UNIT, Code(32767)), (LINEAR_UNIT_SIZE, Number(2.0))]].concat();
    assert_near(ground(&with_keys(around(x / 2.0, y / 2.0, 0.25), &own)), [x_m, x_m], "a unit of two metres");
}

#[test]
fn matrices_and_control_points_may_turn_and_slant_the_pixels() {
    // Columns head north-east and are 0.5 m apart, rows head south-east and are 1 m apart.
    let (x, y, half) = (500_000.0, 132_636.3, 0.5_f64.sqrt());
    let (column, row) = ([0.5 * half, 0.5 * half], [half, -half]);
    let place = |c: f64, r: f64| [x + c * column[0] + r * row[0], y + c * column[1] + r * row[1]];
    let matrix =
        [column[0], row[0], 0.0, x, column[1], row[1], 0.0, y, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
    let by_matrix = GeoTags { transformation: matrix.into(), ..GeoTags::default() };
    let points = [(0.0, 0.0), (40.0, 0.0), (0.0, 100.0), (40.0, 100.0), (13.0, 57.0)];
    let tiepoints = points.iter().flat_map(|(c, r)| {
        let [x, y] = place(*c, *r);
        [*c, *r, 0.0, x, y, 12.0]
    });
    let by_points = GeoTags { tiepoints: tiepoints.collect(), ..GeoTags::default() };
    for tags in [by_matrix, by_points] {
        assert_near(ground(&with_keys(tags, &projected(32648))), [0.5002, 1.0004], "turned");
    }
}

#[test]
fn control_points_may_lie_on_both_sides_of_the_antimeridian() {
    let tiepoints =
        [(0.0, 0.0), (4000.0, 0.0), (0.0, 4000.0), (4000.0, 4000.0)].into_iter().flat_map(|(c, r)| {
            let longitude = 179.99 + c * 5e-6;
            let longitude = if longitude > 180.0 { longitude - 360.0 } else { longitude };
            [c, r, 0.0, longitude, -18.0 - r * 5e-6, 0.0]
        });
    let tags = GeoTags { tiepoints: tiepoints.collect(), ..GeoTags::default() };
    let (_, _, x_m, y_m) = PYPROJ_DEGREES[4];
    assert_near(ground(&with_keys(tags, &GEOGRAPHIC)), [x_m, y_m], "across 180 degrees");
}

#[test]
fn what_gives_no_metres_is_not_used_and_says_why() {
    use Unusable::*;
    let utm = projected(32648);
    let place = around(500_000.0, 132_636.3, 0.5);
    let scaled = |x: f64, y: f64| with_keys(GeoTags { pixel_scale: vec![x, y, 0.0], ..place.clone() }, &utm);
    let method =
        |code| [(MODEL_TYPE, Code(1)), (PROJECTED_SYSTEM, Code(32767)), (PROJECTION_METHOD, Code(code))];
    let line = [0.0, 1.0, 2.0].into_iter().flat_map(|i| [i, i, 0.0, 500_000.0 + i, 100_000.0 - i, 0.0]);
    for (tags, why) in [
        (place.clone(), NoSystem),
        (with_keys(place.clone(), &[(MODEL_TYPE, Code(3))]), Kind),
        (with_keys(place.clone(), &[(MODEL_TYPE, Code(1))]), Projection(None)),
        (with_keys(place.clone(), &projected(22300)), Projection(Some(22300))),
        // A geographic system where a projected one is required.
        (with_keys(place.clone(), &projected(4326)), Projection(Some(4326))),
        (with_keys(place.clone(), &method(26)), Projection(None)),
        (with_keys(place.clone(), &[&utm[..], &[(LINEAR_UNIT, Code(9999))]].concat()), Unit(9999)),
        (with_keys(place.clone(), &[&utm[..], &[(LINEAR_UNIT, Code(32767))]].concat()), Unit(32767)),
        (with_keys(place.clone(), &[&GEOGRAPHIC[..], &[(ANGULAR_UNIT, Code(9108))]].concat()), Unit(9108)),
        (with_keys(around(4.0, 95.0, 5e-6), &GEOGRAPHIC), Outside),
        (with_keys(around(1e12, 1e12, 0.5), &utm), Outside),
        (scaled(0.0, 0.0), Grid),
        (scaled(-0.5, 0.5), Grid),
        (scaled(0.5, -0.5), Grid),
        (scaled(f64::NAN, 0.5), Grid),
        (scaled(f64::INFINITY, 0.5), Grid),
        (scaled(101.0, 101.0), Size),
        (with_keys(GeoTags { tiepoints: line.collect(), ..GeoTags::default() }, &utm), Grid),
        (with_keys(GeoTags { transformation: vec![0.0; 16], ..GeoTags::default() }, &utm), Grid),
        // A scale without a tie point.
        (with_keys(GeoTags { tiepoints: vec![], ..place.clone() }, &utm), Grid),
    ] {
        assert_eq!(tags.ground(40, 100), Ground::Unusable(why), "{tags:?}");
    }
}

#[test]
fn a_file_may_say_nothing_of_the_size_of_its_pixels() {
    assert_eq!(GeoTags::default().ground(40, 100), Ground::Silent);
    let system_only = with_keys(GeoTags::default(), &GEOGRAPHIC);
    assert_eq!(system_only.ground(40, 100), Ground::Silent);
    let one_point = GeoTags { tiepoints: vec![0.0, 0.0, 0.0, 4.0, 52.0, 0.0], ..GeoTags::default() };
    assert_eq!(with_keys(one_point, &GEOGRAPHIC).ground(40, 100), Ground::Silent);
}

/// A TIFF that consists only of a directory with these tags.
fn directory(big: bool, little: bool, tags: &[u16]) -> Vec<u8> {
    let number = |value: u64, bytes: usize| -> Vec<u8> {
        if little { value.to_le_bytes()[..bytes].to_vec() } else { value.to_be_bytes()[8 - bytes..].to_vec() }
    };
    let mut file = if little { b"II".to_vec() } else { b"MM".to_vec() };
    let (classic, large) = (
        [(42, 2), (8, 4), (tags.len() as u64, 2)],
        [(43, 2), (8, 2), (0, 2), (16, 8), (tags.len() as u64, 8)],
    );
    for (value, bytes) in if big { &large[..] } else { &classic } {
        file.extend(number(*value, *bytes));
    }
    for tag in tags {
        file.extend(number(u64::from(*tag), 2));
        file.extend(vec![0; if big { 18 } else { 10 }]);
    }
    file
}

#[test]
fn a_directory_tells_whether_a_file_may_say_its_size() {
    for (big, little) in [(false, false), (false, true), (true, false), (true, true)] {
        for (tags, expected) in [
            (&[256, 257, 33550][..], true),
            (&[256, 33922], true),
            (&[34264], true),
            (&[256, 34735], false),
            (&[], false),
        ] {
            let file = directory(big, little, tags);
            assert_eq!(may_say_its_size(&file), expected, "{big} {little} {tags:?}");
        }
    }
    for bytes in [
        &b""[..],
        b"II",
        b"II*\0\xff\xff\xff\xff",
        b"\x89PNG\r\n\x1a\n",
        b"MM\0+\0\x08\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert!(!may_say_its_size(bytes));
    }
}

fn any_code() -> impl Strategy<Value = u16> {
    prop_oneof![
        1..60_u16,
        Just(3857),
        Just(4326),
        2000..7000_u16,
        9001..9110_u16,
        16001..16161_u16,
        32601..32761_u16,
        Just(32767),
        any::<u16>()
    ]
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![-180.0..180.0, -1e7..1e7, any::<f64>(), Just(0.0), Just(90.0), Just(-90.0)]
}

proptest! {
    #[test]
    fn no_tags_panic_and_a_size_is_always_one(
        scale in prop::collection::vec(any_number(), 0..4),
        tiepoints in prop::collection::vec(any_number(), 0..25),
        transformation in prop::collection::vec(any_number(), 0..17),
        keys in prop::collection::vec((prop_oneof![1024..1027_u16, 2048..2062_u16, 3072..3097_u16], any_code(), any_number(), any::<bool>()), 0..12),
        text in prop_oneof![Just("UTM zone 48N".to_owned()), Just("utm zone 99é".to_owned()), any::<String>()],
        size in (1..100_000_usize, 1..100_000_usize),
    ) {
        let tags = GeoTags { pixel_scale: scale, tiepoints, transformation, ..GeoTags::default() };
        let mut keys: Vec<_> = keys
            .into_iter()
            .map(|(key, code, number, is_code)| (key, if is_code { Code(code) } else { Number(number) }))
            .collect();
        keys.push((PROJECTED_CITATION, Text(&text)));
        if let Ground::Size(found) = with_keys(tags, &keys).ground(size.0, size.1) {
            prop_assert!(PixelSize::new(found.x_m(), found.y_m()).is_ok());
        }
    }

    #[test]
    fn no_bytes_panic(head in 0..4_usize, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let head: &[u8] = [&b"II*\0\x08\0\0\0"[..], b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+"][head];
        may_say_its_size(&[head, &bytes].concat());
    }
}
