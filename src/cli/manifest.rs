//! What is known about image files beside their pixels: a file of JSON lines that people and scripts can write.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use prost_types::Timestamp;
use serde::Deserialize;
use shipreid::wire::Observation;

/// One line of a manifest; everything but the file is optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Known {
    /// As the file is named on the command line, or its path within the folder that was given.
    file: String,
    pub entry_id: Option<String>,
    pub vessel_id: Option<String>,
    pub labels: HashMap<String, String>,
    pub pixel_size_x_m: Option<f64>,
    pub pixel_size_y_m: Option<f64>,
    detection_id: String,
    scene_id: String,
    sensor: String,
    /// RFC 3339, for example 2026-03-01T04:05:06Z.
    observed_at: Option<String>,
    latitude: Option<f64>,
    longitude: Option<f64>,
    position_sigma_m: Option<f64>,
    heading_deg: Option<f64>,
    heading_ambiguous: bool,
    length_m: Option<f64>,
    width_m: Option<f64>,
}

/// A manifest by file.
#[derive(Default)]
pub struct Manifest(HashMap<String, Known>);

impl Manifest {
    /// Reads `path`; an empty manifest without one.
    ///
    /// # Errors
    /// A line that is no such JSON object, or names a file again; by its number.
    pub fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut known = HashMap::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let place = || format!("{}:{number}", path.display());
            let line: Known = serde_json::from_str(line).with_context(place)?;
            line.observed_at().with_context(place)?;
            if line.file.is_empty() {
                bail!("{}: the line names no file", place());
            }
            if known.insert(line.file.clone(), line).is_some() {
                bail!("{}: the file was named before", place());
            }
        }
        Ok(Self(known))
    }

    /// What is known of the file named `name`; nothing of most.
    pub fn of(&self, name: &str) -> Known {
        self.0.get(name).cloned().unwrap_or_default()
    }
}

impl Known {
    fn observed_at(&self) -> anyhow::Result<Option<Timestamp>> {
        let parse = |text: &String| {
            text.parse().map_err(|_| anyhow!("observed_at {text:?} is no time such as 2026-03-01T04:05:06Z"))
        };
        self.observed_at.as_ref().map(parse).transpose()
    }

    /// As the contract has it; `None` where nothing was observed.
    pub fn observation(&self) -> Option<Observation> {
        let observation = Observation {
            detection_id: self.detection_id.clone(),
            scene_id: self.scene_id.clone(),
            sensor: self.sensor.clone(),
            // The manifest was read, so the time is one.
            observed_at: self.observed_at().ok().flatten(),
            latitude: self.latitude,
            longitude: self.longitude,
            position_sigma_m: self.position_sigma_m,
            heading_deg: self.heading_deg,
            heading_ambiguous: self.heading_ambiguous,
            length_m: self.length_m,
            width_m: self.width_m,
        };
        (observation != Observation::default()).then_some(observation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Manifest> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("manifest.jsonl");
        fs::write(&path, text).expect("a file");
        Manifest::read(Some(&path))
    }

    #[test]
    fn a_line_says_what_is_known_of_its_file() {
        let manifest = read(concat!(
            r#"{"file": "a.tif", "vessel_id": "v1", "observed_at": "2026-03-01T04:05:06.5Z", "latitude": 1, "longitude": 2}"#,
            "\n\n",
            r#"{"file": "b.tif", "labels": {"flag": "PA"}}"#,
        ))
        .expect("a manifest");
        let known = manifest.of("a.tif");
        assert_eq!(known.vessel_id.as_deref(), Some("v1"));
        let observation = known.observation().expect("observed");
        let at = observation.observed_at.expect("a time");
        assert_eq!((at.seconds, at.nanos), (1_772_337_906, 500_000_000));
        assert_eq!((observation.latitude, observation.longitude), (Some(1.0), Some(2.0)));
        assert!(manifest.of("b.tif").observation().is_none());
        assert!(manifest.of("c.tif").vessel_id.is_none());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_by_its_number() {
        for (line, part) in [
            (r#"{"file": "b.tif", "lattitude": 1}"#, "lattitude"),
            (r#"{"file": "b.tif", "observed_at": "yesterday"}"#, "yesterday"),
            (r#"{"vessel_id": "v"}"#, "names no file"),
            (r#"{"file": "a.tif"}"#, "named before"),
            ("[]", "m.jsonl:2"),
        ] {
            let text = format!("{{\"file\": \"a.tif\"}}\n{line}");
            let message = format!("{:#}", read(&text).err().expect("an error"));
            let part = part.replace("m.jsonl", "manifest.jsonl");
            assert!(message.contains(":2") && message.contains(&part), "{message}");
        }
    }
}
