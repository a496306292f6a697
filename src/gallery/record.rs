//! The stored form of entries, embeddings and chips, in stores and exports: extensible messages, followed by a checksum
//! each in stores.

use std::collections::BTreeMap;

use prost::Message;

use super::entry::{ContentHash, Entry, EntryId, Heading, Labels, Observation, Position, Time, VesselId};
use crate::arithmetic::Precision;
use crate::chip::{AskedPixelSize, Modality, OrientedBox, PixelSize, PixelSizeRule, SourceChip, View};
use crate::embedding::{Composition, CompositionError, Embedding, MEMBERS_MAX, Part};

/// The stored data differs from what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damage(pub String);

/// `bytes` followed by their checksum.
pub fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&bytes);
    bytes.extend(checksum.to_le_bytes());
    bytes
}

/// The bytes that were [sealed](seal).
///
/// # Errors
/// The checksum does not match.
pub fn unseal(sealed: &[u8]) -> Result<&[u8], Damage> {
    let (bytes, checksum) = sealed.split_last_chunk::<4>().ok_or_else(|| Damage("is empty".into()))?;
    if crc32fast::hash(bytes) == u32::from_le_bytes(*checksum) {
        Ok(bytes)
    } else {
        Err(Damage("has a wrong checksum".into()))
    }
}

/// The checksum at the end of what was [sealed](seal).
pub fn seal_of(sealed: &[u8]) -> Option<u32> {
    sealed.last_chunk().map(|checksum| u32::from_le_bytes(*checksum))
}

/// Reads a sealed message.
///
/// # Errors
/// It is damaged.
pub fn decode<M: Message + Default>(sealed: &[u8]) -> Result<M, Damage> {
    M::decode(unseal(sealed)?).map_err(|cause| Damage(cause.to_string()))
}

/// A sealed message.
pub fn encode<M: Message>(message: &M) -> Vec<u8> {
    seal(message.encode_to_vec())
}

/// How the vectors of an ensemble are composed.
#[derive(Clone, PartialEq, Message)]
pub struct CompositionRecord {
    #[prost(message, repeated, tag = "1")]
    parts: Vec<PartRecord>,
    #[prost(uint32, tag = "2")]
    k: u32,
    #[prost(uint32, tag = "3")]
    depth: u32,
}

/// The part of one member.
#[derive(Clone, Copy, PartialEq, Message)]
struct PartRecord {
    #[prost(uint32, tag = "1")]
    dimension: u32,
    #[prost(double, tag = "2")]
    weight: f64,
}

impl From<&Composition> for CompositionRecord {
    fn from(composition: &Composition) -> Self {
        let part = |part: &Part| PartRecord { dimension: part.dimension as u32, weight: part.weight };
        let parts = composition.parts().iter().map(part).collect();
        Self { parts, k: composition.k(), depth: composition.depth() as u32 }
    }
}

impl CompositionRecord {
    /// # Errors
    /// It is of no ensemble, or of one whose vectors have another dimension.
    pub fn read(&self, dimension: usize) -> Result<Composition, Damage> {
        let members = self.parts.len();
        if members > MEMBERS_MAX {
            return Err(Damage(format!("has no ensemble: {}", CompositionError::Members(members))));
        }
        let part = |part: &PartRecord| Part { dimension: part.dimension as usize, weight: part.weight };
        let parts: Vec<Part> = self.parts.iter().map(part).collect();
        let composition = Composition::new(&parts, self.k, self.depth);
        let composition = composition.map_err(|cause| Damage(format!("has no ensemble: {cause}")))?;
        if composition.dimension() != dimension {
            return Err(Damage("has members whose vectors are not its own".into()));
        }
        Ok(composition)
    }
}

/// The values of a vector, little-endian.
pub fn vector_bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Number of bytes of a sealed vector with `dimension` values.
pub fn sealed_vector_bytes(dimension: usize) -> u64 {
    4 * dimension as u64 + 4
}

/// Reads [`vector_bytes`] into `values`.
///
/// # Errors
/// The number of values differs.
pub fn read_vector(bytes: &[u8], values: &mut [f32]) -> Result<(), Damage> {
    let (chunks, rest) = bytes.as_chunks::<4>();
    if chunks.len() != values.len() || !rest.is_empty() {
        return Err(Damage(format!("has {} bytes for {} numbers", bytes.len(), values.len())));
    }
    for (value, bytes) in values.iter_mut().zip(chunks) {
        *value = f32::from_le_bytes(*bytes);
    }
    Ok(())
}

/// # Errors
/// The bytes are not a unit vector with `dimension` values.
pub fn read_embedding(bytes: &[u8], dimension: usize) -> Result<Embedding, Damage> {
    let mut values = vec![0.0; dimension];
    read_vector(bytes, &mut values)?;
    Embedding::from_unit(values).map_err(|cause| Damage(cause.to_string()))
}

/// A precision as a number, 0 where it is not known.
pub fn precision_number(precision: Option<Precision>) -> u32 {
    match precision {
        None => 0,
        Some(Precision::F32) => 1,
        Some(Precision::Bf16) => 2,
        Some(Precision::Int8) => 3,
    }
}

/// What [`precision_number`] returned; a number that a later release gave is not known.
pub fn precision(number: u32) -> Option<Precision> {
    match number {
        1 => Some(Precision::F32),
        2 => Some(Precision::Bf16),
        3 => Some(Precision::Int8),
        _ => None,
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct EntryRecord {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, optional, tag = "2")]
    vessel: Option<String>,
    #[prost(uint32, tag = "3")]
    modality: u32,
    #[prost(message, optional, tag = "4")]
    observation: Option<ObservationRecord>,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: BTreeMap<String, String>,
    #[prost(double, optional, tag = "6")]
    extent_width_m: Option<f64>,
    #[prost(double, optional, tag = "7")]
    extent_length_m: Option<f64>,
    #[prost(sfixed64, tag = "8")]
    enrolled_at: i64,
    #[prost(bytes = "vec", tag = "9")]
    content: Vec<u8>,
    /// As [`precision_number`].
    #[prost(uint32, tag = "10")]
    precision: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ObservationRecord {
    #[prost(string, tag = "1")]
    detection_id: String,
    #[prost(string, tag = "2")]
    scene_id: String,
    #[prost(string, tag = "3")]
    sensor: String,
    #[prost(sfixed64, optional, tag = "4")]
    observed_at: Option<i64>,
    #[prost(message, optional, tag = "5")]
    position: Option<PositionRecord>,
    #[prost(message, optional, tag = "6")]
    heading: Option<HeadingRecord>,
    #[prost(double, optional, tag = "7")]
    length_m: Option<f64>,
    #[prost(double, optional, tag = "8")]
    width_m: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct PositionRecord {
    #[prost(double, tag = "1")]
    latitude_deg: f64,
    #[prost(double, tag = "2")]
    longitude_deg: f64,
    #[prost(double, tag = "3")]
    sigma_m: f64,
}

#[derive(Clone, PartialEq, Message)]
struct HeadingRecord {
    #[prost(double, tag = "1")]
    deg: f64,
    #[prost(bool, tag = "2")]
    ambiguous: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct ChipRecord {
    #[prost(bytes = "bytes", tag = "1")]
    image: bytes::Bytes,
    #[prost(uint32, tag = "2")]
    modality: u32,
    /// What was asked for, or else the default of the modality, which programs use that do not know the last fields.
    #[prost(double, tag = "3")]
    pixel_size_x_m: f64,
    #[prost(double, tag = "4")]
    pixel_size_y_m: f64,
    #[prost(message, optional, tag = "5")]
    oriented_box: Option<OrientedBoxRecord>,
    /// Nothing was asked for, so the file's own size takes precedence.
    #[prost(bool, tag = "6")]
    pixel_size_x_open: bool,
    #[prost(bool, tag = "7")]
    pixel_size_y_open: bool,
}

#[derive(Clone, PartialEq, Message)]
struct OrientedBoxRecord {
    #[prost(double, tag = "1")]
    center_x: f64,
    #[prost(double, tag = "2")]
    center_y: f64,
    #[prost(double, tag = "3")]
    length: f64,
    #[prost(double, tag = "4")]
    width: f64,
    #[prost(double, tag = "5")]
    angle_deg: f64,
}

impl From<&Entry> for EntryRecord {
    fn from(entry: &Entry) -> Self {
        Self {
            id: entry.id.as_str().to_owned(),
            vessel: entry.vessel.as_ref().map(|vessel| vessel.as_str().to_owned()),
            modality: modality_number(entry.modality),
            observation: Some(ObservationRecord::from(&entry.observation)),
            labels: entry.labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            extent_width_m: entry.extent_m.map(|[width, _]| width),
            extent_length_m: entry.extent_m.map(|[_, length]| length),
            enrolled_at: entry.enrolled_at.nanos(),
            content: entry.content.as_bytes().to_vec(),
            precision: precision_number(entry.precision),
        }
    }
}

impl TryFrom<EntryRecord> for Entry {
    type Error = Damage;

    fn try_from(record: EntryRecord) -> Result<Self, Damage> {
        let content = record.content.as_slice().try_into();
        Ok(Self {
            id: EntryId::new(&record.id).map_err(|cause| Damage(format!("the id {cause}")))?,
            vessel: record.vessel.as_deref().map(VesselId::new).transpose().map_err(damage)?,
            modality: modality(record.modality)?,
            observation: record.observation.unwrap_or_default().try_into()?,
            labels: Labels::new(record.labels).map_err(damage)?,
            extent_m: record
                .extent_width_m
                .zip(record.extent_length_m)
                .map(|(width, length)| [width, length]),
            enrolled_at: Time::from_nanos(record.enrolled_at),
            precision: precision(record.precision),
            content: ContentHash::new(content.map_err(|_| Damage("the content is no SHA-256".into()))?),
        })
    }
}

impl From<&Observation> for ObservationRecord {
    fn from(observation: &Observation) -> Self {
        let position = |place: Position| PositionRecord {
            latitude_deg: place.latitude_deg(),
            longitude_deg: place.longitude_deg(),
            sigma_m: place.sigma_m(),
        };
        let heading =
            |heading: Heading| HeadingRecord { deg: heading.deg(), ambiguous: heading.is_ambiguous() };
        Self {
            detection_id: observation.detection_id.clone(),
            scene_id: observation.scene_id.clone(),
            sensor: observation.sensor.clone(),
            observed_at: observation.observed_at.map(Time::nanos),
            position: observation.position.map(position),
            heading: observation.heading.map(heading),
            length_m: observation.length_m,
            width_m: observation.width_m,
        }
    }
}

impl TryFrom<ObservationRecord> for Observation {
    type Error = Damage;

    fn try_from(record: ObservationRecord) -> Result<Self, Damage> {
        let position =
            |place: PositionRecord| Position::new(place.latitude_deg, place.longitude_deg, place.sigma_m);
        let heading = |heading: HeadingRecord| Heading::new(heading.deg, heading.ambiguous);
        Ok(Self {
            detection_id: record.detection_id,
            scene_id: record.scene_id,
            sensor: record.sensor,
            observed_at: record.observed_at.map(Time::from_nanos),
            position: record.position.map(position).transpose().map_err(damage)?,
            heading: record.heading.map(heading).transpose().map_err(damage)?,
            length_m: record.length_m,
            width_m: record.width_m,
        })
    }
}

impl From<&SourceChip> for ChipRecord {
    fn from(chip: &SourceChip) -> Self {
        let oriented_box = |cut: OrientedBox| OrientedBoxRecord {
            center_x: cut.center().0,
            center_y: cut.center().1,
            length: cut.length(),
            width: cut.width(),
            angle_deg: cut.angle_deg(),
        };
        let default = PixelSize::default_for(chip.view.modality);
        let [x_m, y_m] = chip.view.pixel_size.axes();
        Self {
            image: chip.image.clone(),
            modality: modality_number(chip.view.modality),
            pixel_size_x_m: x_m.unwrap_or(default.x_m()),
            pixel_size_y_m: y_m.unwrap_or(default.y_m()),
            oriented_box: chip.view.oriented_box.map(oriented_box),
            pixel_size_x_open: x_m.is_none(),
            pixel_size_y_open: y_m.is_none(),
        }
    }
}

impl TryFrom<ChipRecord> for SourceChip {
    type Error = Damage;

    fn try_from(record: ChipRecord) -> Result<Self, Damage> {
        let oriented_box = |cut: OrientedBoxRecord| {
            OrientedBox::new(cut.center_x, cut.center_y, cut.length, cut.width, cut.angle_deg)
        };
        let asked = |open: bool, metres: f64| (!open).then_some(metres);
        let pixel_size = AskedPixelSize::new(
            asked(record.pixel_size_x_open, record.pixel_size_x_m),
            asked(record.pixel_size_y_open, record.pixel_size_y_m),
        );
        let view = View {
            modality: modality(record.modality)?,
            pixel_size: PixelSizeRule::Asked(pixel_size.map_err(damage)?),
            oriented_box: record.oriented_box.map(oriented_box).transpose().map_err(damage)?,
        };
        Ok(Self { image: record.image, view })
    }
}

fn damage(cause: impl ToString) -> Damage {
    Damage(cause.to_string())
}

fn modality_number(modality: Modality) -> u32 {
    match modality {
        Modality::Optical => 1,
        Modality::Sar => 2,
    }
}

fn modality(number: u32) -> Result<Modality, Damage> {
    match number {
        1 => Ok(Modality::Optical),
        2 => Ok(Modality::Sar),
        other => Err(Damage(format!("has the unknown modality {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chip_is_stored_with_what_was_left_open_and_with_what_earlier_programs_read() {
        for (x_m, y_m) in [(None, None), (Some(0.5), None), (None, Some(2.0)), (Some(1.0), Some(1.0))] {
            let pixel_size = PixelSizeRule::Asked(AskedPixelSize::new(x_m, y_m).expect("a size"));
            let chip = SourceChip {
                image: bytes::Bytes::from_static(b"pixels"),
                view: View { pixel_size, ..View::plain(Modality::Sar) },
            };
            let record = ChipRecord::from(&chip);
            assert_eq!(
                (record.pixel_size_x_m, record.pixel_size_y_m),
                (x_m.unwrap_or(1.0), y_m.unwrap_or(1.0))
            );
            let stored = record.encode_to_vec();
            assert_eq!(ChipRecord::decode(&*stored).map(SourceChip::try_from), Ok(Ok(chip)));
        }
    }
}
