//! An enrolment as its gallery will store it. Its caller prepares it, so that the writer only has to add it.

use super::record::RowRecord;
use crate::embedding::{Embedding, ModelDigest};
use crate::gallery::entry::Entry;
use crate::gallery::index::Code;
use crate::gallery::record::{ChipRecord, EntryRecord, encode, seal, vector_bytes};
use crate::gallery::store::{About, Conflict, Enrolment};

/// See [`Enrolment`].
#[derive(Debug)]
pub struct Prepared {
    pub entry: Entry,
    /// A sealed [`RowRecord`].
    pub record: Vec<u8>,
    /// A sealed [`ChipRecord`], in a gallery that keeps chips.
    pub chip: Option<Vec<u8>>,
    pub vector: Vector,
    /// By the model of the gallery's shadow.
    pub shadow: Option<Vector>,
    pub conflict: Conflict,
}

/// An embedding as it is stored.
#[derive(Debug)]
pub struct Vector {
    pub model: ModelDigest,
    pub dimension: usize,
    /// Its values, sealed.
    pub sealed: Vec<u8>,
    pub code: Code,
}

impl Prepared {
    /// `about` may be of another generation than the one that it will be added to.
    pub fn new(enrolment: &Enrolment, about: &About) -> Self {
        let chip = enrolment.chip.as_ref().filter(|_| about.keeps_chips);
        let chip = chip.map(|chip| encode(&ChipRecord::from(chip)));
        let record = encode(&RowRecord::new(EntryRecord::from(&enrolment.entry), chip.as_deref()));
        let shadow = enrolment.shadow.as_ref();
        Self {
            entry: enrolment.entry.clone(),
            record,
            chip,
            vector: Vector::new(enrolment.model, &enrolment.embedding, about),
            shadow: shadow.map(|shadow| Vector::new(shadow.model, &shadow.embedding, about)),
            conflict: enrolment.conflict,
        }
    }

    /// Bytes that it keeps in memory.
    pub fn bytes(&self) -> usize {
        let of_vector = |vector: &Vector| vector.sealed.len() + vector.dimension;
        let vectors = of_vector(&self.vector) + self.shadow.as_ref().map_or(0, of_vector);
        self.chip.as_ref().map_or(0, Vec::len) + vectors
    }
}

impl Vector {
    fn new(model: ModelDigest, embedding: &Embedding, about: &About) -> Self {
        let values = embedding.as_slice();
        // One of another dimension is refused, whatever its code.
        let composition = about.composition_of(model).filter(|of| of.dimension() == values.len());
        let (sealed, code) = (seal(vector_bytes(values)), Code::composed(values, composition.as_ref()));
        Self { model, dimension: embedding.dimension(), sealed, code }
    }
}
