//! The coordinate system of a GeoTIFF, as far as needed to find points on the ellipsoid.
//!
//! Datums are not distinguished: they shift points by some hundred metres, which does not affect the scale.

use proj4rs::proj::Proj;
use proj4rs::transform::transform;

use super::Unusable;
use super::keys::{self, Keys};

/// WGS 84: semi-major axis in metres, and first eccentricity squared.
const SEMI_MAJOR_AXIS_M: f64 = 6_378_137.0;
const ECCENTRICITY_SQUARED: f64 = 0.006_694_379_990_141_316;
const WGS84: &str = "+ellps=WGS84";
/// Half of the length over which a scale is measured, in degrees and in metres: long enough for the
/// projections to be exact, short enough for the scale to be constant.
const REACH_DEG: f64 = 0.005;
const REACH_M: f64 = 500.0;
/// "User-defined" in a key that holds a code.
const USER_DEFINED: u16 = 32767;

/// Coordinates of a file, and how to convert them to points on the ellipsoid.
pub struct Crs {
    kind: Kind,
    /// Radians or metres per unit.
    unit: f64,
}

enum Kind {
    Geographic,
    Projected { projection: Box<Proj>, geographic: Box<Proj> },
}

impl Crs {
    /// # Errors
    /// A coordinate system or a unit that is unknown.
    pub fn read(keys: &Keys<'_>) -> Result<Self, Unusable> {
        const PROJECTED: u16 = 1;
        const GEOGRAPHIC: u16 = 2;
        let named = keys.code(keys::MODEL_TYPE);
        let system = (keys.code(keys::PROJECTED_SYSTEM), keys.code(keys::GEOGRAPHIC_SYSTEM));
        match (named, system) {
            (Some(PROJECTED), _) | (None | Some(USER_DEFINED), (Some(_), _)) => Self::projected(keys),
            (Some(GEOGRAPHIC), _) | (None, (None, Some(_))) => {
                Ok(Self { kind: Kind::Geographic, unit: angular_unit(keys)? })
            }
            (None, (None, None)) => Err(Unusable::NoSystem),
            _ => Err(Unusable::Kind),
        }
    }

    fn projected(keys: &Keys<'_>) -> Result<Self, Unusable> {
        let code = keys.code(keys::PROJECTED_SYSTEM).filter(|code| *code != USER_DEFINED);
        let unknown = Unusable::Projection(code);
        let definition = definition(keys, code).ok_or(unknown)?;
        let named = linear_unit(keys)?;
        let unit = named.or_else(|| unit_of(&definition)).unwrap_or(1.0);
        let parsed = |text: &str| Proj::from_proj_string(text).ok().map(Box::new);
        let projection = parsed(&in_metres(&definition)).ok_or(unknown)?;
        if !projection.has_inverse() || projection.is_latlong() || projection.is_geocent() {
            return Err(unknown);
        }
        let geographic = parsed(&format!("+proj=longlat {WGS84}")).ok_or(unknown)?;
        Ok(Self { kind: Kind::Projected { projection, geographic }, unit })
    }

    /// A full turn, where coordinates are longitudes.
    pub fn turn(&self) -> Option<f64> {
        matches!(self.kind, Kind::Geographic).then(|| std::f64::consts::TAU / self.unit)
    }

    /// Half of the length over which to measure a scale.
    pub fn reach(&self) -> f64 {
        match self.kind {
            Kind::Geographic => REACH_DEG.to_radians() / self.unit,
            Kind::Projected { .. } => REACH_M / self.unit,
        }
    }

    /// The point on the ellipsoid, in metres from the earth's centre; `None` where there is none.
    pub fn earth(&self, [x, y]: [f64; 2]) -> Option<[f64; 3]> {
        let mut place = (x * self.unit, y * self.unit);
        if let Kind::Projected { projection, geographic } = &self.kind {
            transform(projection, geographic, &mut place).ok()?;
        }
        let (longitude, latitude) = place;
        if !(longitude.is_finite() && latitude.abs() <= std::f64::consts::FRAC_PI_2) {
            return None;
        }
        // The radius of curvature in the prime vertical (Snyder 1987, equation 4-20).
        let (sin, cos) = latitude.sin_cos();
        let radius = SEMI_MAJOR_AXIS_M / (1.0 - ECCENTRICITY_SQUARED * sin * sin).sqrt();
        let (east, north) = longitude.sin_cos();
        Some([radius * cos * north, radius * cos * east, radius * (1.0 - ECCENTRICITY_SQUARED) * sin])
    }
}

/// The projection in PROJ's notation, by its code or by its parameters.
fn definition(keys: &Keys<'_>, code: Option<u16>) -> Option<String> {
    if let Some(code) = code {
        return crs_definitions::from_code(code).map(|found| found.proj4.to_owned());
    }
    let citations = [keys::PROJECTED_CITATION, keys::CITATION].map(|key| keys.text(key).unwrap_or_default());
    if citations.iter().any(|text| is_web_mercator(text)) {
        return Some("+proj=merc +a=6378137 +b=6378137".into());
    }
    let utm = |zone: u16, south: &str| format!("+proj=utm +zone={zone} {south} {WGS84}");
    match keys.code(keys::PROJECTION) {
        Some(code @ 16001..=16060) => return Some(utm(code - 16000, "")),
        Some(code @ 16101..=16160) => return Some(utm(code - 16100, "+south")),
        _ => {}
    }
    let method = keys.code(keys::PROJECTION_METHOD).filter(|method| *method != USER_DEFINED);
    match method {
        Some(method) => parameters(keys, method),
        None => citations.iter().find_map(|text| {
            utm_zone(text).map(|(zone, south)| utm(zone, if south { "+south" } else { "" }))
        }),
    }
}

fn is_web_mercator(citation: &str) -> bool {
    let citation = citation.to_ascii_lowercase().replace('_', " ");
    ["pseudo-mercator", "web mercator", "google maps global mercator", "popular visualisation"]
        .iter()
        .any(|name| citation.contains(name))
}

/// Zone and whether it is a southern one, from a text such as "WGS 84 / UTM zone 48N".
fn utm_zone(citation: &str) -> Option<(u16, bool)> {
    let citation = citation.to_ascii_lowercase().replace('_', " ");
    let (_, after) = citation.split_once("utm zone ")?;
    let digits = after.find(|letter: char| !letter.is_ascii_digit())?;
    let zone = after[..digits].parse().ok().filter(|zone| (1..=60).contains(zone))?;
    match after[digits..].trim_start().as_bytes() {
        [b'n', ..] => Some((zone, false)),
        [b's', ..] => Some((zone, true)),
        _ => None,
    }
}

/// The methods of GeoTIFF 1.0, section 6.3.3.3, whose names GeoTIFF 1.1 refers to.
fn parameters(keys: &Keys<'_>, method: u16) -> Option<String> {
    let degrees = angular_unit(keys).ok()?.to_degrees();
    let metres = linear_unit(keys).ok()?.unwrap_or(1.0);
    let number = |of: &[u16]| keys.any_number(of);
    let angle = |of: &[u16]| number(of).unwrap_or(0.0) * degrees;
    let latitude = angle(&[keys::ORIGIN_LATITUDE, keys::FALSE_ORIGIN_LATITUDE, keys::CENTER_LATITUDE]);
    let longitude = angle(&[
        keys::ORIGIN_LONGITUDE,
        keys::FALSE_ORIGIN_LONGITUDE,
        keys::CENTER_LONGITUDE,
        keys::POLE_LONGITUDE,
    ]);
    let scale = number(&[keys::ORIGIN_SCALE, keys::CENTER_SCALE]).unwrap_or(1.0);
    let parallels = [keys::PARALLEL_1, keys::PARALLEL_2].map(|key| angle(&[key]));
    let east = [keys::FALSE_EASTING, keys::FALSE_ORIGIN_EASTING, keys::CENTER_EASTING];
    let north = [keys::FALSE_NORTHING, keys::FALSE_ORIGIN_NORTHING, keys::CENTER_NORTHING];
    let [east, north] = [east, north].map(|of| number(&of).unwrap_or(0.0) * metres);
    let [first, second] = parallels;
    let has_parallel = number(&[keys::PARALLEL_1]).is_some();
    let projection = match method {
        1 => format!("+proj=tmerc +lat_0={latitude} +k={scale}"),
        7 if has_parallel => format!("+proj=merc +lat_ts={first}"),
        7 => format!("+proj=merc +k={scale}"),
        8 => format!("+proj=lcc +lat_0={latitude} +lat_1={first} +lat_2={second}"),
        9 => format!("+proj=lcc +lat_0={latitude} +lat_1={latitude} +k_0={scale}"),
        10 => format!("+proj=laea +lat_0={latitude}"),
        11 => format!("+proj=aea +lat_0={latitude} +lat_1={first} +lat_2={second}"),
        12 => format!("+proj=aeqd +lat_0={latitude}"),
        14 => format!("+proj=stere +lat_0={latitude} +k={scale}"),
        // The latitude is that of true scale, unless it is the pole.
        15 => {
            let pole = 90.0_f64.copysign(latitude);
            format!("+proj=stere +lat_0={pole} +lat_ts={latitude} +k={scale}")
        }
        16 => format!("+proj=sterea +lat_0={latitude} +k={scale}"),
        17 => format!("+proj=eqc +lat_ts={first} +lat_0={latitude}"),
        24 => "+proj=sinu".to_owned(),
        28 => format!("+proj=cea +lat_ts={first}"),
        _ => return None,
    };
    Some(format!("{projection} +lon_0={longitude} +x_0={east} +y_0={north} {}", ellipsoid(keys)))
}

/// The ellipsoid of the geographic system beneath a projection; WGS 84 where it is not specified.
fn ellipsoid(keys: &Keys<'_>) -> String {
    if let Some(axis) = keys.number(keys::SEMI_MAJOR_AXIS) {
        if let Some(other) = keys.number(keys::SEMI_MINOR_AXIS) {
            return format!("+a={axis} +b={other}");
        }
        match keys.number(keys::INVERSE_FLATTENING) {
            Some(flattening) if flattening > 0.0 => return format!("+a={axis} +rf={flattening}"),
            Some(_) => return format!("+a={axis} +b={axis}"),
            None => {}
        }
    }
    let system = keys.code(keys::GEOGRAPHIC_SYSTEM).and_then(crs_definitions::from_code);
    let named = system.and_then(|found| {
        let of_ellipsoid =
            |word: &&str| ["+ellps=", "+datum=", "+a=", "+b=", "+rf="].iter().any(|n| word.starts_with(n));
        let words: Vec<_> = found.proj4.split_whitespace().filter(of_ellipsoid).collect();
        (!words.is_empty()).then(|| words.join(" "))
    });
    named.unwrap_or_else(|| WGS84.into())
}

/// A definition without its unit, and without parameters that only shift or mirror it.
fn in_metres(definition: &str) -> String {
    const LEFT_OUT: [&str; 7] =
        ["+units=", "+to_meter=", "+vunits=", "+axis=", "+nadgrids=", "+towgs84=", "+geoidgrids="];
    let words = definition.split_whitespace();
    let kept = words.filter(|word| !LEFT_OUT.iter().any(|name| word.starts_with(name)));
    // proj4rs refuses this datum without its grid shift files; only its ellipsoid is needed.
    let known = kept.map(|word| if word == "+datum=NAD27" { "+ellps=clrk66" } else { word });
    known.collect::<Vec<_>>().join(" ")
}

/// Metres of a definition's unit.
fn unit_of(definition: &str) -> Option<f64> {
    definition.split_whitespace().find_map(|word| match word.split_once('=')? {
        ("+to_meter", metres) => metres.parse().ok(),
        ("+units", "ft") => Some(0.3048),
        ("+units", "us-ft") => Some(1200.0 / 3937.0),
        ("+units", "link") => Some(0.201_168),
        ("+units", "km") => Some(1000.0),
        _ => None,
    })
}

/// Metres of the unit that the keys name; the units of GeoTIFF 1.0, section 6.3.1.3.
fn linear_unit(keys: &Keys<'_>) -> Result<Option<f64>, Unusable> {
    let Some(code) = keys.code(keys::LINEAR_UNIT) else { return Ok(None) };
    let metres = match code {
        9001 => 1.0,
        9002 => 0.3048,
        9003 => 1200.0 / 3937.0,
        9004 => 12.000_458_4 / 39.37,
        9005 => 12.0 / 39.370_432,
        9006 => 12.0 / 39.370_141,
        9007 => 7.92 / 39.370_432,
        9008 => 7.921_13 / 39.370_113,
        9009 => 7.92 / 39.370_147,
        9010 => 792.113 / 39.370_113,
        9011 => 792.0 / 39.370_147,
        9012 => 36.0 / 39.370_147,
        9013 => 36.0 / 39.370_141,
        9014 => 1.8288,
        9015 | 9030 => 1852.0,
        9036 => 1000.0,
        USER_DEFINED => {
            let size = keys.number(keys::LINEAR_UNIT_SIZE).filter(|size| *size > 0.0);
            size.ok_or(Unusable::Unit(code))?
        }
        _ => return Err(Unusable::Unit(code)),
    };
    Ok(Some(metres))
}

/// Radians of the unit that the keys name, else of a degree; the units of GeoTIFF 1.0, section 6.3.1.4.
fn angular_unit(keys: &Keys<'_>) -> Result<f64, Unusable> {
    let degrees = match keys.code(keys::ANGULAR_UNIT) {
        None | Some(9102 | 9122) => 1.0,
        Some(9101) => 1.0_f64.to_degrees(),
        Some(9103) => 1.0 / 60.0,
        Some(9104) => 1.0 / 3600.0,
        Some(9105 | 9106) => 0.9,
        Some(code @ USER_DEFINED) => {
            let size = keys.number(keys::ANGULAR_UNIT_SIZE).filter(|size| *size > 0.0);
            return size.ok_or(Unusable::Unit(code));
        }
        Some(code) => return Err(Unusable::Unit(code)),
    };
    Ok(degrees.to_radians())
}
