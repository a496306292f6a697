//! An exported gallery: a byte stream that describes its content and ends with what verifies that it is complete.
//!
//! A magic and a version come first, then frames: a length (u32, little-endian) and a message. The first frame
//! describes the gallery; the last holds the number of entries and the checksum of everything before it.

use std::mem;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;

use super::catalog::DraftRow;
use super::entry::{Entry, Time};
use super::filter::Filter;
use super::index::RowId;
use super::record::{
    ChipRecord, CompositionRecord, Damage, EntryRecord, precision, precision_number, read_embedding,
    vector_bytes,
};
use super::store::{About, GalleryReader, Reembedded, Selection, StoreError};
use crate::chip::SourceChip;
use crate::durable::guard;
use crate::embedding::ModelDigest;

const MAGIC: &[u8; 16] = b"SHIPREID-GALLERY";
/// Changes when an older program could misread an export.
const VERSION: u32 = 2;
/// Of galleries whose model is no ensemble.
const VERSION_OF_SINGLE_MODELS: u32 = 1;
/// Limits how much a damaged length can make a reader buffer, where no other limit applies.
const FRAME_BYTES_MAX: usize = 256 << 20;
/// The first record: the model and, of an ensemble, its parts, with much to spare.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// The largest record without its image: the largest embedding, and labels and texts at their longest.
const BESIDE_IMAGE_BYTES_MAX: usize = 4 * DIMENSION_MAX as usize + (64 << 10);
/// An export's pieces have at least as many bytes, except the last one.
const PIECE_BYTES: usize = 256 << 10;
/// Rows read at once.
const ROWS: usize = 256;
const DIMENSION_MAX: u32 = 1 << 16;
/// Leaves a gallery more rows than it will ever write.
const NEXT_ROW_MAX: u64 = 1 << 62;

/// Whether source chips are exported as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chips {
    Without,
    With,
}

/// A stream that is not an export of a gallery, or only a part of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    #[error("this is not an exported gallery")]
    Foreign,
    #[error("the export has version {found}, this program reads up to version {VERSION}")]
    Newer { found: u32 },
    #[error("the export is cut off after {entries} entries")]
    Truncated { entries: u64 },
    #[error("the export is damaged after {entries} entries: {cause}")]
    Damaged { entries: u64, cause: String },
    /// It is undamaged, but its content is not accepted here.
    #[error("the export cannot be taken after {entries} entries: {cause}")]
    Unacceptable { entries: u64, cause: String },
}

/// What describes the exported gallery.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Head {
    #[prost(bytes = "vec", tag = "1")]
    model: Vec<u8>,
    #[prost(uint32, tag = "2")]
    dimension: u32,
    #[prost(bool, tag = "3")]
    keeps_chips: bool,
    /// Above all rows.
    #[prost(uint64, tag = "4")]
    pub next_row: u64,
    /// When all embeddings were last made anew, for another model.
    #[prost(sfixed64, optional, tag = "5")]
    reembedded_at: Option<i64>,
    /// In which, as a number.
    #[prost(uint32, tag = "6")]
    reembedded_in: u32,
    /// Of an ensemble.
    #[prost(message, optional, tag = "7")]
    composition: Option<CompositionRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct ArchivedRow {
    #[prost(uint64, tag = "1")]
    row: u64,
    #[prost(message, optional, tag = "2")]
    entry: Option<EntryRecord>,
    /// f32, little-endian.
    #[prost(bytes = "vec", tag = "3")]
    vector: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    chip: Option<ChipRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct Tail {
    #[prost(uint64, tag = "1")]
    entries: u64,
    /// Of every byte before this frame.
    #[prost(fixed32, tag = "2")]
    crc32: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Frame {
    #[prost(oneof = "Content", tags = "1, 2, 3")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time, and most are rows")]
enum Content {
    #[prost(message, tag = "1")]
    Head(Head),
    #[prost(message, tag = "2")]
    Row(ArchivedRow),
    #[prost(message, tag = "3")]
    Tail(Tail),
}

impl Head {
    fn new(gallery: &dyn GalleryReader) -> Self {
        let about = gallery.about();
        Self {
            model: about.model.as_bytes().to_vec(),
            dimension: about.dimension as u32,
            keeps_chips: about.keeps_chips,
            next_row: gallery.next_row().0,
            reembedded_at: about.reembedded.map(|reembedded| reembedded.at.nanos()),
            reembedded_in: precision_number(about.reembedded.and_then(|reembedded| reembedded.precision)),
            composition: about.composition.as_ref().map(CompositionRecord::from),
        }
    }

    pub fn about(&self, created_at: Time) -> Result<About, Damage> {
        let model = self.model.as_slice().try_into();
        let model = ModelDigest::new(model.map_err(|_| Damage("the model digest is no SHA-256".into()))?);
        if !(1..=DIMENSION_MAX).contains(&self.dimension) {
            return Err(Damage(format!("the embeddings have {} numbers", self.dimension)));
        }
        if self.next_row > NEXT_ROW_MAX {
            return Err(Damage(format!("its rows go up to {}", self.next_row)));
        }
        let reembedded = self
            .reembedded_at
            .map(|at| Reembedded { at: Time::from_nanos(at), precision: precision(self.reembedded_in) });
        let dimension = self.dimension as usize;
        let composition = self.composition.as_ref().map(|record| record.read(dimension)).transpose()?;
        Ok(About { composition, reembedded, ..About::new(model, dimension, self.keeps_chips, created_at) })
    }
}

/// A consistent copy of a gallery, piece by piece, while the gallery stays in use. Reads the disk.
#[derive(Debug)]
pub struct Export {
    gallery: Arc<dyn GalleryReader>,
    chips: Chips,
    at: At,
    entries: u64,
    checksum: crc32fast::Hasher,
}

#[derive(Debug)]
enum At {
    Head,
    /// The rows still to be exported lie above this one.
    Rows(Selection, Option<RowId>),
    End,
}

impl Export {
    pub fn new(gallery: Arc<dyn GalleryReader>, chips: Chips) -> Self {
        Self { gallery, chips, at: At::Head, entries: 0, checksum: crc32fast::Hasher::new() }
    }

    fn piece(&mut self) -> Result<Bytes, StoreError> {
        let mut piece = Vec::new();
        let (selection, after) = match mem::replace(&mut self.at, At::End) {
            At::Head => {
                piece.extend(MAGIC);
                piece.extend(version_of(self.gallery.about()).to_le_bytes());
                put(&mut piece, Content::Head(Head::new(&*self.gallery)));
                (self.gallery.select(&Filter::default())?, None)
            }
            At::Rows(selection, after) => (selection, after),
            At::End => return Ok(piece.into()),
        };
        if let Some(last) = self.put_rows(&mut piece, &selection, after)? {
            self.at = At::Rows(selection, Some(last));
        }
        self.checksum.update(&piece);
        if let At::End = self.at {
            let crc32 = self.checksum.clone().finalize();
            put(&mut piece, Content::Tail(Tail { entries: self.entries, crc32 }));
        }
        Ok(piece.into())
    }

    /// Adds rows until the piece is large enough. Returns where to continue, or `None` when there are no more rows.
    fn put_rows(
        &mut self,
        piece: &mut Vec<u8>,
        selection: &Selection,
        mut after: Option<RowId>,
    ) -> Result<Option<RowId>, StoreError> {
        loop {
            let rows = self.gallery.rows(selection, after, ROWS);
            if rows.is_empty() {
                return Ok(None);
            }
            for row in rows {
                if piece.len() >= PIECE_BYTES {
                    return Ok(after);
                }
                put(piece, Content::Row(self.row(row)?));
                self.entries += 1;
                after = Some(row);
            }
        }
    }

    fn row(&self, row: RowId) -> Result<ArchivedRow, StoreError> {
        let entry = EntryRecord::from(&self.gallery.entry(row)?);
        let vector = vector_bytes(self.gallery.embedding(row)?.as_slice());
        let chip = match self.chips {
            Chips::With => self.gallery.chip(row)?.as_ref().map(ChipRecord::from),
            Chips::Without => None,
        };
        Ok(ArchivedRow { row: row.0, entry: Some(entry), vector, chip })
    }
}

impl Iterator for Export {
    type Item = Result<Bytes, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let At::End = self.at {
            return None;
        }
        let piece = guard(|| self.piece());
        if piece.is_err() {
            self.at = At::End;
        }
        Some(piece)
    }
}

fn put(piece: &mut Vec<u8>, content: Content) {
    let frame = Frame { content: Some(content) };
    piece.extend((frame.encoded_len() as u32).to_le_bytes());
    frame.encode(piece).expect("a vector has room");
}

/// Parses an export that arrives in pieces of any size.
#[derive(Debug)]
pub(super) struct ArchiveReader {
    buffer: BytesMut,
    checksum: crc32fast::Hasher,
    stage: Stage,
    entries: u64,
    bounds: RowBounds,
}

#[derive(Debug)]
enum Stage {
    Magic,
    Head,
    Rows { dimension: usize, keeps_chips: bool, next_row: u64, row_min: u64 },
    Done,
}

/// Upper bounds for a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowBounds {
    /// Bytes of a chip's image.
    pub image_bytes_max: usize,
    /// Bytes of a whole record.
    record_bytes_max: usize,
}

impl RowBounds {
    /// Bounds for rows whose images have at most `image_bytes_max` bytes.
    pub fn new(image_bytes_max: usize) -> Self {
        let record_bytes_max = image_bytes_max.saturating_add(BESIDE_IMAGE_BYTES_MAX).min(FRAME_BYTES_MAX);
        Self { image_bytes_max, record_bytes_max }
    }
}

/// What a reader found.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time, and most are rows")]
pub(super) enum Item {
    Head(Head),
    /// A row that a gallery could have written, above all rows before.
    Row(DraftRow),
}

impl ArchiveReader {
    pub fn new(bounds: RowBounds) -> Self {
        let (buffer, checksum) = (BytesMut::new(), crc32fast::Hasher::new());
        Self { buffer, checksum, stage: Stage::Magic, entries: 0, bounds }
    }

    /// Bytes received of an incomplete record.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Full size in bytes of the record that is being received, 0 while it is not known.
    pub fn announced(&self) -> usize {
        match (&self.stage, self.buffer.get(..4)) {
            (Stage::Head | Stage::Rows { .. }, Some(mut length)) => length.get_u32_le() as usize,
            _ => 0,
        }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next item, `None` until more bytes arrive.
    ///
    /// # Errors
    /// The bytes are not an export, or are damaged.
    pub fn next(&mut self) -> Result<Option<Item>, ArchiveError> {
        loop {
            match self.stage {
                Stage::Magic => {
                    if !self.read_magic()? {
                        return Ok(None);
                    }
                    self.stage = Stage::Head;
                }
                Stage::Done if self.buffer.is_empty() => return Ok(None),
                Stage::Done => return Err(self.damaged("it goes on behind its end")),
                Stage::Head | Stage::Rows { .. } => {
                    let Some(bytes) = self.frame()? else { return Ok(None) };
                    if let Some(item) = self.item(bytes)? {
                        return Ok(Some(item));
                    }
                }
            }
        }
    }

    /// # Errors
    /// The export is incomplete.
    pub fn finish(&self) -> Result<(), ArchiveError> {
        match self.stage {
            Stage::Done => Ok(()),
            Stage::Magic if !MAGIC.starts_with(&self.buffer[..self.buffer.len().min(MAGIC.len())]) => {
                Err(ArchiveError::Foreign)
            }
            _ => Err(ArchiveError::Truncated { entries: self.entries }),
        }
    }

    fn read_magic(&mut self) -> Result<bool, ArchiveError> {
        if self.buffer.len() < MAGIC.len() + 4 {
            return Ok(false);
        }
        let head = self.buffer.split_to(MAGIC.len() + 4);
        let (magic, mut version) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(ArchiveError::Foreign);
        }
        self.checksum.update(&head);
        match version.get_u32_le() {
            VERSION_OF_SINGLE_MODELS | VERSION => Ok(true),
            found => Err(ArchiveError::Newer { found }),
        }
    }

    /// A whole frame, with its length.
    fn frame(&mut self) -> Result<Option<Bytes>, ArchiveError> {
        let Some(mut length) = self.buffer.get(..4) else { return Ok(None) };
        let length = length.get_u32_le() as usize;
        let record_bytes_max = self.bounds.record_bytes_max;
        let limit = match self.stage {
            Stage::Head => HEAD_BYTES_MAX.min(record_bytes_max),
            _ => record_bytes_max,
        };
        if length > limit {
            return Err(self.unacceptable(format!("a record has {length} bytes, the limit is {limit}")));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        Ok(Some(self.buffer.split_to(4 + length).freeze()))
    }

    fn item(&mut self, bytes: Bytes) -> Result<Option<Item>, ArchiveError> {
        let frame = Frame::decode(bytes.slice(4..)).map_err(|cause| self.damaged(cause))?;
        let item = match (frame.content, &self.stage) {
            (Some(Content::Head(head)), Stage::Head) => {
                let about = head.about(Time::from_nanos(0)).map_err(|cause| self.damaged(cause))?;
                let (dimension, keeps_chips) = (about.dimension, about.keeps_chips);
                self.stage = Stage::Rows { dimension, keeps_chips, next_row: head.next_row, row_min: 0 };
                Some(Item::Head(head))
            }
            (Some(Content::Row(row)), &Stage::Rows { dimension, keeps_chips, next_row, row_min }) => {
                if !(row_min..next_row).contains(&row.row) {
                    return Err(self.damaged(format!("row {} is out of order", row.row)));
                }
                let row = read(row, dimension).map_err(|cause| self.damaged(cause))?;
                check(&row, keeps_chips, &self.bounds).map_err(|cause| self.unacceptable(cause))?;
                self.stage = Stage::Rows { dimension, keeps_chips, next_row, row_min: row.row.0 + 1 };
                self.entries += 1;
                Some(Item::Row(row))
            }
            (Some(Content::Tail(tail)), Stage::Rows { .. }) => {
                if tail.entries != self.entries {
                    return Err(self.damaged(format!("it should have {}", tail.entries)));
                }
                if tail.crc32 != self.checksum.clone().finalize() {
                    return Err(self.damaged("it has a wrong checksum"));
                }
                self.stage = Stage::Done;
                None
            }
            _ => return Err(self.damaged("a record is out of place")),
        };
        self.checksum.update(&bytes);
        Ok(item)
    }

    /// The error for damage at the reader's position.
    pub fn damaged(&self, cause: impl ToString) -> ArchiveError {
        ArchiveError::Damaged { entries: self.entries, cause: cause.to_string() }
    }

    fn unacceptable(&self, cause: impl ToString) -> ArchiveError {
        ArchiveError::Unacceptable { entries: self.entries, cause: cause.to_string() }
    }
}

/// What an export holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspected {
    pub model: ModelDigest,
    pub dimension: usize,
    pub keeps_chips: bool,
    pub entries: u64,
}

/// Reads an export to its end without creating a gallery.
///
/// # Errors
/// The bytes are not an export, are damaged, or are incomplete.
pub fn inspect(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Inspected, ArchiveError> {
    let mut reader = ArchiveReader::new(RowBounds::new(FRAME_BYTES_MAX));
    let mut found = None;
    for piece in pieces {
        reader.push(piece.as_ref());
        while let Some(item) = reader.next()? {
            if let Item::Head(head) = item {
                found = Some(head.about(Time::from_nanos(0)).map_err(|cause| reader.damaged(cause))?);
            }
        }
    }
    reader.finish()?;
    let About { model, dimension, keeps_chips, .. } = found.ok_or(ArchiveError::Truncated { entries: 0 })?;
    Ok(Inspected { model, dimension, keeps_chips, entries: reader.entries })
}

/// The oldest version that says all of a gallery.
fn version_of(about: &About) -> u32 {
    if about.composition.is_some() { VERSION } else { VERSION_OF_SINGLE_MODELS }
}

fn read(archived: ArchivedRow, dimension: usize) -> Result<DraftRow, Damage> {
    let ArchivedRow { row, entry, vector, chip } = archived;
    let entry = Entry::try_from(entry.ok_or_else(|| Damage("a row has no entry".into()))?)?;
    let embedding = read_embedding(&vector, dimension)?;
    let chip = chip.map(SourceChip::try_from).transpose()?;
    Ok(DraftRow { row: RowId(row), entry, embedding, chip })
}

/// Checks a row against the rules of enrolment.
fn check(row: &DraftRow, keeps_chips: bool, bounds: &RowBounds) -> Result<(), Damage> {
    let of_entry = |cause: String| Damage(format!("entry \"{}\": {cause}", row.entry.id));
    row.entry.check().map_err(|cause| of_entry(cause.to_string()))?;
    let Some(chip) = &row.chip else { return Ok(()) };
    if !keeps_chips {
        return Err(of_entry("it has a chip, and the gallery keeps none".into()));
    }
    let (bytes, limit) = (chip.image.len(), bounds.image_bytes_max);
    if bytes > limit {
        return Err(of_entry(format!("the image of its chip has {bytes} bytes, the limit is {limit}")));
    }
    Ok(())
}
