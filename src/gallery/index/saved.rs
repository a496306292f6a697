//! An index as bytes: names, then the rows and codes of one segment after the other. Where vectors have several parts, the
//! codes of the first are followed by those of the others, with what a row has of the first.
//!
//! The reader trusts its bytes to be as they were written, which the caller checks, but never panics.

use std::io::{self, Read, Write};
use std::sync::PoisonError;

use super::block::{BLOCK, Block};
use super::codes::Measure;
use super::ids::IdSum;
use super::names::{DetectionHash, LabelSet, NamedVessel, SavedNames, SceneNumber};
use super::segment::{RowFacts, Segment};
use super::{Index, ROWS, RowId};
use crate::chip::Modality;
use crate::embedding::Composition;
use crate::gallery::entry::{Position, Time};

/// Bytes of a row in addition to its codes.
const ROW_BYTES: usize = 73;
/// Longest name; a longer one was not written by this program.
const NAME_BYTES_MAX: usize = 1 << 20;

const OPTICAL: u8 = 1;
const TIMED: u8 = 2;
const PLACED: u8 = 4;

impl Index {
    /// Writes all entries. Hashes in it are those of this build of the program; [`HashMark`] tells them apart.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        // Unused names are left out, so that names do not grow from one opening to the next.
        let mut index = self.clone();
        index.renew_names();
        out.write_all(&index.ids.count.to_le_bytes())?;
        out.write_all(&index.ids.sum.to_le_bytes())?;
        let names = index.names().to_saved();
        write_texts(out, &names.vessels)?;
        write_texts(out, &names.scenes)?;
        write_number(out, names.labels.len())?;
        for (name, value) in &names.labels {
            write_text(out, name)?;
            write_text(out, value)?;
        }
        write_number(out, names.label_sets.len())?;
        for set in &names.label_sets {
            write_number(out, set.len())?;
            set.iter().try_for_each(|label| write_number(out, *label))?;
        }
        let slots: Vec<usize> = index.live.ones().collect();
        write_number(out, slots.len())?;
        for slots in slots.chunks(ROWS) {
            for slot in slots {
                out.write_all(&index.row_bytes(*slot))?;
            }
            for part in 0..index.parts() {
                let codes = |slot: &usize| (index.segments[slot / ROWS].codes(part), slot % ROWS);
                for (codes, at) in slots.iter().map(codes).filter(|_| part > 0) {
                    let Measure { scale, residual } = codes.measures()[at];
                    let parts = [scale.to_le_bytes(), residual.to_le_bytes(), codes.sum(at).to_le_bytes()];
                    out.write_all(parts.as_flattened())?;
                }
                for (codes, at) in slots.iter().map(codes) {
                    out.write_all(bytes_of(Block::flat(codes.row(at))))?;
                }
            }
        }
        Ok(())
    }

    fn row_bytes(&self, slot: usize) -> [u8; ROW_BYTES] {
        let (segment, at) = (&self.segments[slot / ROWS], slot % ROWS);
        let (columns, codes) = (segment.columns(), segment.codes(0));
        let (measure, sum) = (codes.measures()[at], codes.sum(at));
        let known = columns.known(at);
        let flags = if known.modality == Modality::Optical { OPTICAL } else { 0 }
            | if known.observed_at.is_some() { TIMED } else { 0 }
            | if known.position.is_some() { PLACED } else { 0 };
        let place = known.position.map(|at| [at.latitude_deg(), at.longitude_deg(), at.sigma_m()]);
        let [latitude, longitude, sigma] = place.unwrap_or_default();
        let mut row = Packed([0; ROW_BYTES], 0);
        row.put(&columns.rows[at].0.to_le_bytes());
        row.put(&measure.scale.to_le_bytes());
        row.put(&measure.residual.to_le_bytes());
        row.put(&sum.to_le_bytes());
        row.put(&[flags]);
        row.put(&known.observed_at.map_or(0, Time::nanos).to_le_bytes());
        row.put(&latitude.to_le_bytes());
        row.put(&longitude.to_le_bytes());
        row.put(&sigma.to_le_bytes());
        row.put(&known.vessel.map_or(0, NamedVessel::number).to_le_bytes());
        row.put(&known.scene.map_or(0, SceneNumber::number).to_le_bytes());
        row.put(&known.detection.map_or(0, DetectionHash::number).to_le_bytes());
        row.put(&(known.labels.number() as u32).to_le_bytes());
        row.0
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// Those of `input`, or it is no index of vectors with `dimension` values and these parts.
    pub fn read(
        dimension: usize,
        composition: Option<Composition>,
        input: &mut dyn Read,
    ) -> io::Result<Self> {
        let mut index = Self::composed(dimension, composition);
        index.ids = IdSum { count: read_u64(input)?, sum: read_u64(input)? };
        let (vessels, scenes) = (read_texts(input)?, read_texts(input)?);
        let labels = (0..read_number(input)?).map(|_| Ok((read_text(input)?, read_text(input)?)));
        let labels = labels.collect::<io::Result<Vec<_>>>()?;
        let label_sets = (0..read_number(input)?)
            .map(|_| (0..read_number(input)?).map(|_| read_number(input)).collect::<io::Result<Vec<_>>>());
        let label_sets = label_sets.collect::<io::Result<Vec<_>>>()?;
        let names = SavedNames { vessels, scenes, labels, label_sets };
        let (vessels, scenes, sets) = (names.vessels.len(), names.scenes.len(), names.label_sets.len());
        names
            .restore(&mut index.names.write().unwrap_or_else(PoisonError::into_inner))
            .ok_or_else(damaged)?;
        let rows = read_number(input)?;
        let mut blocks = Vec::new();
        while index.len < rows {
            let count = (rows - index.len).min(ROWS);
            let mut segment = Segment::new(index.part_dimensions());
            let (mut measures, mut sums) = (Vec::with_capacity(count), Vec::with_capacity(count));
            for _ in 0..count {
                let mut bytes = [0; ROW_BYTES];
                input.read_exact(&mut bytes)?;
                let row = SavedRow::of(bytes).filter(|row| {
                    let known = |number: Option<u32>, count: usize| {
                        number.is_none_or(|number| number as usize <= count)
                    };
                    known(row.known.vessel.map(NamedVessel::number), vessels)
                        && known(row.known.scene.map(SceneNumber::number), scenes)
                        && row.known.labels.number() < sets
                });
                let row = row.ok_or_else(damaged)?;
                let last = segment.columns().rows.last().copied();
                let last = last.or_else(|| index.segments.last()?.columns().rows.last().copied());
                if last.is_some_and(|last| last >= row.row) {
                    return Err(damaged());
                }
                segment.push_facts(row.row, row.known);
                index.count(row.known);
                measures.push(row.measure);
                sums.push(row.sum);
            }
            for (part, dimension) in index.part_dimensions().enumerate() {
                if part > 0 {
                    (measures, sums) = read_measures(count, input)?;
                }
                blocks.resize(count * dimension.div_ceil(BLOCK), Block::padded(&[]));
                input.read_exact(Block::bytes_mut(&mut blocks))?;
                segment.push_codes(part, &blocks, &measures, &sums);
            }
            let start = index.segments.len() * ROWS;
            index.segments.push(segment);
            index.live.grow(index.segments.len() * ROWS);
            index.live.insert_range(start..start + count);
            index.len += count;
        }
        index.settle_names();
        Ok(index)
    }
}

/// What tells builds of the program apart whose hashes differ.
pub fn hash_mark() -> u64 {
    let mut sum = IdSum::default();
    sum.add("mark", RowId(1));
    sum.sum ^ DetectionHash::of("mark").map_or(0, DetectionHash::number).rotate_left(1)
}

/// Scales, residuals and sums of `count` rows.
fn read_measures(count: usize, input: &mut dyn Read) -> io::Result<(Vec<Measure>, Vec<i32>)> {
    let (mut measures, mut sums) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        let mut bytes = [[0; 4]; 3];
        input.read_exact(bytes.as_flattened_mut())?;
        let [scale, residual, sum] = bytes;
        measures.push(Measure { scale: f32::from_le_bytes(scale), residual: f32::from_le_bytes(residual) });
        sums.push(i32::from_le_bytes(sum));
    }
    Ok((measures, sums))
}

/// A row without its codes.
struct SavedRow {
    row: RowId,
    measure: Measure,
    sum: i32,
    known: RowFacts,
}

impl SavedRow {
    /// `None` for bytes that no row has.
    fn of(bytes: [u8; ROW_BYTES]) -> Option<Self> {
        let mut bytes = Packed(bytes, 0);
        let row = RowId(u64::from_le_bytes(bytes.next()));
        let [scale, residual] = std::array::from_fn(|_| f32::from_le_bytes(bytes.next()));
        let sum = i32::from_le_bytes(bytes.next());
        let [flags] = bytes.next();
        let observed_at = Time::from_nanos(i64::from_le_bytes(bytes.next()));
        let [latitude, longitude, sigma] = std::array::from_fn(|_| f64::from_le_bytes(bytes.next()));
        let is_placed = flags & PLACED != 0;
        let position = is_placed.then(|| Position::new(latitude, longitude, sigma).ok());
        let known = RowFacts {
            modality: if flags & OPTICAL != 0 { Modality::Optical } else { Modality::Sar },
            observed_at: (flags & TIMED != 0).then_some(observed_at),
            position: match position {
                Some(place) => Some(place?),
                None => None,
            },
            vessel: NamedVessel::from_number(u32::from_le_bytes(bytes.next())),
            scene: SceneNumber::from_number(u32::from_le_bytes(bytes.next())),
            detection: DetectionHash::from_number(u64::from_le_bytes(bytes.next())),
            labels: LabelSet::from_number(u32::from_le_bytes(bytes.next())),
        };
        Some(Self { row, measure: Measure { scale, residual }, sum, known })
    }
}

/// Bytes, and how many of them were written or read.
struct Packed([u8; ROW_BYTES], usize);

impl Packed {
    fn put(&mut self, bytes: &[u8]) {
        self.0[self.1..][..bytes.len()].copy_from_slice(bytes);
        self.1 += bytes.len();
    }

    fn next<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[self.1..][..N]);
        self.1 += N;
        bytes
    }
}

fn bytes_of(codes: &[i8]) -> &[u8] {
    // SAFETY: both types are single bytes without invalid values.
    unsafe { std::slice::from_raw_parts(codes.as_ptr().cast(), codes.len()) }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is no index")
}

fn write_number(out: &mut dyn Write, number: usize) -> io::Result<()> {
    out.write_all(&(number as u64).to_le_bytes())
}

fn write_text(out: &mut dyn Write, text: &str) -> io::Result<()> {
    write_number(out, text.len())?;
    out.write_all(text.as_bytes())
}

fn write_texts(out: &mut dyn Write, texts: &[String]) -> io::Result<()> {
    write_number(out, texts.len())?;
    texts.iter().try_for_each(|text| write_text(out, text))
}

fn read_u64(input: &mut dyn Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_number(input: &mut dyn Read) -> io::Result<usize> {
    usize::try_from(read_u64(input)?).map_err(|_| damaged())
}

fn read_text(input: &mut dyn Read) -> io::Result<String> {
    let length = read_number(input)?;
    if length > NAME_BYTES_MAX {
        return Err(damaged());
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    String::from_utf8(bytes).map_err(|_| damaged())
}

fn read_texts(input: &mut dyn Read) -> io::Result<Vec<String>> {
    (0..read_number(input)?).map(|_| read_text(input)).collect()
}
