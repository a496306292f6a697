//! Metadata of image files beyond their pixels: a JSON Lines file that people and scripts can write.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use prost_types::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use crate::message::{listed, one_line};
use crate::wire::Observation;

/// Lines or files that an error lists before it only counts the rest.
const LISTED_MAX: usize = 50;

/// One line of a manifest; everything but the file is optional, and `null` is the same as absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManifestEntry {
    /// The file as named on the command line, its path within the given folder, or its name alone.
    pub file: String,
    pub entry_id: Option<String>,
    pub vessel_id: Option<String>,
    #[serde(deserialize_with = "labels")]
    pub labels: HashMap<String, String>,
    pub pixel_size_x_m: Option<f64>,
    pub pixel_size_y_m: Option<f64>,
    pub detection_id: Option<String>,
    pub scene_id: Option<String>,
    pub sensor: Option<String>,
    /// RFC 3339, for example 2026-03-01T04:05:06Z.
    pub observed_at: Option<String>,
    pub latitude: Option<f64>,
    pub longitude: Option<f64>,
    pub position_sigma_m: Option<f64>,
    pub heading_deg: Option<f64>,
    pub heading_ambiguous: Option<bool>,
    pub length_m: Option<f64>,
    pub width_m: Option<f64>,
}

/// The lines of a manifest, each of which names a different file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest(Vec<Line>);

#[derive(Clone, Debug, PartialEq)]
struct Line {
    number: usize,
    known: ManifestEntry,
}

/// How a file may be named.
#[derive(Clone, Copy, Debug)]
pub struct FileNames<'a> {
    /// As on the command line; for a file in a given folder, including the folder's path.
    pub path: &'a Path,
    /// Within the given folder; otherwise the last component of the path.
    pub name: &'a str,
}

/// Why a manifest cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("line {line}: {}", one_line(.cause))]
    Line { line: usize, cause: String },
    #[error("these lines match no file: {}", listed(.0, LISTED_MAX))]
    Unmatched(Vec<String>),
    #[error("line {line}: {} matches {} files: {}", one_line(.file), .files.len(), listed(.files, LISTED_MAX))]
    Ambiguous { line: usize, file: String, files: Vec<String> },
    #[error("line {line}: {} is the file that line {earlier} names", one_line(.file))]
    Twice { line: usize, file: String, earlier: usize },
}

impl Manifest {
    /// Reads JSON objects, one per line; empty lines and a byte order mark are skipped.
    ///
    /// # Errors
    /// The first line that is not such an object, or that names a file a second time.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = Vec::new();
        let mut numbers = HashMap::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let refused = |cause: String| ManifestError::Line { line: number, cause };
            // An array would be accepted as the fields in their order.
            if !line.trim_start().starts_with('{') {
                return Err(refused("it is not a JSON object".into()));
            }
            let known: ManifestEntry =
                serde_json::from_str(line).map_err(|cause| refused(cause.to_string()))?;
            known.observed_at().map_err(refused)?;
            if known.file.is_empty() {
                return Err(refused("it names no file".into()));
            }
            if let Some(earlier) = numbers.insert(known.file.clone(), number) {
                return Err(ManifestError::Twice { line: number, file: known.file, earlier });
            }
            lines.push(Line { number, known });
        }
        Ok(Self(lines))
    }

    pub fn lines(&self) -> impl Iterator<Item = &ManifestEntry> {
        self.0.iter().map(|line| &line.known)
    }

    /// The metadata of each of `files`, in their order; empty for files without a line. A line applies to the
    /// file that it names in full, otherwise to the one whose path ends with the line's path, or the reverse.
    ///
    /// # Errors
    /// Lines that match no file, several files, or a file that another line matches as well.
    pub fn of(&self, files: &[FileNames<'_>]) -> Result<Vec<ManifestEntry>, ManifestError> {
        let names = Files::new(files);
        let mut lines_of = vec![None; files.len()];
        let mut left = Vec::new();
        for line in &self.0 {
            match only(line, names.in_full(&line.path()), files)? {
                Some(file) => take(&mut lines_of, file, line)?,
                None => left.push(line),
            }
        }
        let in_full: Vec<bool> = lines_of.iter().map(Option::is_some).collect();
        let mut unmatched = Vec::new();
        for line in left {
            let found: Vec<_> =
                names.by_end(&line.path()).into_iter().filter(|file| !in_full[*file]).collect();
            match only(line, &found, files)? {
                Some(file) => take(&mut lines_of, file, line)?,
                None => unmatched.push(format!("{} (line {})", line.known.file, line.number)),
            }
        }
        if unmatched.is_empty() {
            Ok(lines_of
                .into_iter()
                .map(|line| line.map(|line| line.known.clone()).unwrap_or_default())
                .collect())
        } else {
            Err(ManifestError::Unmatched(unmatched))
        }
    }
}

impl Line {
    fn path(&self) -> PathBuf {
        plain(Path::new(&self.known.file))
    }
}

/// The file in `found`, if there is one; several are an error.
fn only(line: &Line, found: &[usize], files: &[FileNames<'_>]) -> Result<Option<usize>, ManifestError> {
    match found {
        [] => Ok(None),
        [file] => Ok(Some(*file)),
        several => Err(ManifestError::Ambiguous {
            line: line.number,
            file: line.known.file.clone(),
            files: several.iter().map(|file| files[*file].path.display().to_string()).collect(),
        }),
    }
}

fn take<'a>(lines_of: &mut [Option<&'a Line>], file: usize, line: &'a Line) -> Result<(), ManifestError> {
    match lines_of[file].replace(line) {
        None => Ok(()),
        Some(earlier) => Err(ManifestError::Twice {
            line: line.number,
            file: line.known.file.clone(),
            earlier: earlier.number,
        }),
    }
}

/// Files by their names.
#[derive(Default)]
struct Files {
    /// By path, and by name within a folder.
    whole: HashMap<PathBuf, Vec<usize>>,
    paths: HashMap<PathBuf, Vec<usize>>,
    /// By every suffix of the path.
    ends: HashMap<PathBuf, Vec<usize>>,
}

impl Files {
    fn new(files: &[FileNames<'_>]) -> Self {
        let mut found = Self::default();
        for (place, FileNames { path, name }) in files.iter().enumerate() {
            let (path, name) = (plain(path), plain(Path::new(name)));
            for end in ends_of(&path) {
                found.ends.entry(end.to_owned()).or_default().push(place);
            }
            if path != name {
                found.whole.entry(name).or_default().push(place);
            }
            found.whole.entry(path.clone()).or_default().push(place);
            found.paths.entry(path).or_default().push(place);
        }
        found
    }

    fn in_full(&self, file: &Path) -> &[usize] {
        self.whole.get(file).map_or(&[], Vec::as_slice)
    }

    /// Files whose path ends with `file`, or with whose path `file` ends.
    fn by_end(&self, file: &Path) -> BTreeSet<usize> {
        let longer = self.ends.get(file).into_iter().flatten();
        let shorter = ends_of(file).filter_map(|end| self.paths.get(end)).flatten();
        longer.chain(shorter).copied().collect()
    }
}

/// `a/b/c`, `b/c`, `c`.
fn ends_of(path: &Path) -> impl Iterator<Item = &Path> {
    let mut parts = path.components();
    std::iter::from_fn(move || {
        let end = parts.as_path();
        parts.next().map(|_| end)
    })
}

/// A path without redundant components: `./a//b` becomes `a/b`.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

impl ManifestEntry {
    fn observed_at(&self) -> Result<Option<Timestamp>, String> {
        let parse = |text: &String| {
            text.parse().map_err(|_| format!("observed_at {text:?} is no time such as 2026-03-01T04:05:06Z"))
        };
        self.observed_at.as_ref().map(parse).transpose()
    }

    /// In the form of the contract; `None` where nothing was observed.
    pub fn observation(&self) -> Option<Observation> {
        let observation = Observation {
            detection_id: self.detection_id.clone().unwrap_or_default(),
            scene_id: self.scene_id.clone().unwrap_or_default(),
            sensor: self.sensor.clone().unwrap_or_default(),
            // The manifest was validated when it was read, so the time is valid.
            observed_at: self.observed_at().ok().flatten(),
            latitude: self.latitude,
            longitude: self.longitude,
            position_sigma_m: self.position_sigma_m,
            heading_deg: self.heading_deg,
            heading_ambiguous: self.heading_ambiguous.unwrap_or_default(),
            length_m: self.length_m,
            width_m: self.width_m,
        };
        (observation != Observation::default()).then_some(observation)
    }
}

/// Labels, without those that are `null`.
fn labels<'de, D: Deserializer<'de>>(input: D) -> Result<HashMap<String, String>, D::Error> {
    let labels = Option::<HashMap<String, Option<String>>>::deserialize(input)?;
    Ok(labels.into_iter().flatten().filter_map(|(key, value)| Some((key, value?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(files: &[&str]) -> Manifest {
        let lines =
            files.iter().map(|file| serde_json::json!({ "file": file, "vessel_id": file }).to_string());
        Manifest::parse(&lines.collect::<Vec<_>>().join("\n")).expect("a manifest")
    }

    /// The lines that apply to `files`, each a path, or a path and the name within a folder.
    fn matched(lines: &[&str], files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let files: Vec<_> =
            files.iter().map(|(path, name)| FileNames { path: Path::new(path), name }).collect();
        let known = manifest(lines).of(&files).map_err(|error| error.to_string())?;
        Ok(known.into_iter().map(|known| known.file).collect())
    }

    #[test]
    fn a_line_says_what_is_known_of_its_file() {
        let manifest = Manifest::parse(concat!(
            r#"{"file": "a.tif", "vessel_id": "v1", "observed_at": "2026-03-01T04:05:06.5Z", "latitude": 1, "longitude": 2}"#,
            "\r\n\r\n",
            r#"{"file": "b.tif", "labels": {"flag": "PA"}}"#,
        ))
        .expect("a manifest");
        let known: Vec<_> = manifest.lines().collect();
        assert_eq!(known[0].vessel_id.as_deref(), Some("v1"));
        let observation = known[0].observation().expect("observed");
        let at = observation.observed_at.expect("a time");
        assert_eq!((at.seconds, at.nanos), (1_772_337_906, 500_000_000));
        assert_eq!((observation.latitude, observation.longitude), (Some(1.0), Some(2.0)));
        assert!(known[1].observation().is_none());
        assert_eq!(known[1].labels["flag"], "PA");
    }

    #[test]
    fn null_says_as_little_as_nothing_and_a_byte_order_mark_is_passed_over() {
        let every = serde_json::to_value(ManifestEntry { file: "a".into(), ..ManifestEntry::default() })
            .expect("an object");
        let keys: Vec<_> =
            every.as_object().expect("an object").keys().filter(|key| *key != "file").collect();
        assert_eq!(keys.len(), 16);
        for key in keys {
            let text = format!("\u{feff}{{\"file\": \"a\", \"{key}\": null}}\n");
            let read = Manifest::parse(&text).expect(key);
            assert_eq!(read, Manifest::parse("{\"file\": \"a\"}").expect("plain"), "{key}");
        }
        let labels = Manifest::parse(r#"{"file": "a", "labels": {"x": null, "y": "z"}}"#).expect("labels");
        assert_eq!(labels.lines().next().expect("a line").labels, HashMap::from([("y".into(), "z".into())]));
        assert!(Manifest::parse(r#"{"file": null}"#).is_err());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_by_its_number() {
        for (line, part) in [
            (r#"{"file": "b.tif", "lattitude": 1}"#, "lattitude"),
            (r#"{"file": "b.tif", "observed_at": "yesterday"}"#, "yesterday"),
            (r#"{"vessel_id": "v"}"#, "names no file"),
            (r#"{"file": "a.tif"}"#, "a.tif is the file that line 1 names"),
            (r#"["b.tif"]"#, "not a JSON object"),
            (r#"{"file": "b.tif", "a\nb": 1}"#, "unknown field `a b`"),
        ] {
            let text = format!("{{\"file\": \"a.tif\"}}\n{line}");
            let message = Manifest::parse(&text).expect_err(line).to_string();
            assert!(message.starts_with("line 2: ") && message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_line_stands_for_the_file_that_its_path_names_and_else_for_one_that_ends_so() {
        let alone = [("pass/x.png", "x.png"), ("pass/y.png", "y.png")];
        let folder = [("hoss/a/x.png", "a/x.png"), ("hoss/b/x.png", "b/x.png")];
        for (lines, files, expected) in [
            (&["pass/x.png"][..], &alone, ["pass/x.png", ""]),
            (&["./pass//x.png"], &alone, ["./pass//x.png", ""]),
            (&["y.png", "x.png"], &alone, ["x.png", "y.png"]),
            (&["/data/pass/x.png"], &alone, ["/data/pass/x.png", ""]),
            (&["b/x.png"], &folder, ["", "b/x.png"]),
            (&["hoss/b/x.png", "a/x.png"], &folder, ["a/x.png", "hoss/b/x.png"]),
            // A file named in full is not matched by suffix.
            (&["hoss/a/x.png", "x.png"], &folder, ["hoss/a/x.png", "x.png"]),
            (&[], &folder, ["", ""]),
        ] {
            assert_eq!(matched(lines, files).expect("matched"), expected, "{lines:?}");
        }
    }

    #[test]
    fn lines_without_a_file_of_their_own_are_listed() {
        let files = [("pass/x.png", "x.png"), ("other/x.png", "x.png"), ("pass/y.png", "y.png")];
        for (lines, part) in [
            (
                &["pass/y.png", "z.png", "q/y.png"][..],
                "these lines match no file: z.png (line 2), q/y.png (line 3)",
            ),
            (&["pass/z.png"], "pass/z.png (line 1)"),
            (&["x.png"], "line 1: x.png matches 2 files: pass/x.png, other/x.png"),
            (&["pass/y.png", "y.png"], "line 2: y.png is the file that line 1 names"),
            (&["elsewhere/y.png"], "elsewhere/y.png (line 1)"),
        ] {
            let message = matched(lines, &files).expect_err(part);
            assert!(message.contains(part), "{message}");
        }
        let many: Vec<String> = (0..60).map(|number| format!("{number}.png")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let message = matched(&many, &files).expect_err("unmatched");
        assert!(message.ends_with("and 10 more"), "{message}");
    }
}
