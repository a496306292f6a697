//! Ensembles behind the queue: every chip passes through all members, whose vectors become one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Batch, Encoder, EncoderFactory, ForwardError, Rehearsal};
use crate::embedding::{Composition, Embedding, ModelDigest};

/// The members of an ensemble, and what each has cost so far.
#[derive(Debug)]
pub struct Members {
    pub composition: Composition,
    /// One for each part of the composition.
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    digest: ModelDigest,
    chips: AtomicU64,
    forward_nanos: AtomicU64,
}

impl Members {
    /// # Panics
    /// There is not one digest for each part of the composition.
    pub fn new(composition: Composition, digests: impl IntoIterator<Item = ModelDigest>) -> Self {
        let member = |digest| Member { digest, chips: AtomicU64::new(0), forward_nanos: AtomicU64::new(0) };
        let members: Vec<Member> = digests.into_iter().map(member).collect();
        assert_eq!(members.len(), composition.parts().len(), "one part for each member");
        Self { composition, members }
    }

    pub fn digests(&self) -> impl Iterator<Item = ModelDigest> {
        self.members.iter().map(|member| member.digest)
    }

    /// The mean time of each member's forward passes for one chip, on a device thread; `None` before the first.
    pub fn forward_times(&self) -> impl Iterator<Item = Option<Duration>> {
        self.members.iter().map(|member| {
            let chips = member.chips.load(Ordering::Relaxed);
            let nanos = member.forward_nanos.load(Ordering::Relaxed);
            nanos.checked_div(chips).map(Duration::from_nanos)
        })
    }

    /// Puts the members' encoders on each device thread, as one.
    pub fn encoder(self: Arc<Self>, factories: Vec<EncoderFactory>) -> EncoderFactory {
        Arc::new(move |worker| {
            let encoders = factories.iter().map(|factory| factory(worker)).collect::<Result<_, String>>()?;
            let (encoders, members) = (Rehearsed(encoders), Arc::clone(&self));
            Ok(Box::new(EnsembleEncoder { encoders, members }) as Box<dyn Encoder>)
        })
    }
}

/// The same members, composed alike, whatever they have cost.
impl PartialEq for Members {
    fn eq(&self, other: &Self) -> bool {
        self.composition == other.composition && self.digests().eq(other.digests())
    }
}

impl Member {
    fn took(&self, chips: usize, forward: Duration) {
        self.chips.fetch_add(chips as u64, Ordering::Relaxed);
        self.forward_nanos.fetch_add(forward.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// The encoders of all members on one thread.
struct EnsembleEncoder {
    encoders: Rehearsed,
    members: Arc<Members>,
}

/// The members' rehearsals, one after the other; of a member that has none, a whole pass.
struct Rehearsed(Vec<Box<dyn Encoder>>);

impl Encoder for Rehearsed {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Embedding>, ForwardError> {
        let mut last = Vec::new();
        for encoder in &mut self.0 {
            last = match encoder.rehearsal() {
                Some(Rehearsal { part, .. }) => part.forward(batch)?,
                None => encoder.forward(batch)?,
            };
        }
        Ok(last)
    }
}

impl Encoder for EnsembleEncoder {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Embedding>, ForwardError> {
        let mut of_members = Vec::with_capacity(self.encoders.0.len());
        for (encoder, member) in self.encoders.0.iter_mut().zip(&self.members.members) {
            let begun = Instant::now();
            of_members.push(encoder.forward(batch)?);
            member.took(batch.chips.len(), begun.elapsed());
        }
        let composed = |chip: usize| {
            let vectors = of_members.iter().map(|embeddings| embeddings[chip].as_slice());
            let whole = Embedding::from_feature(self.members.composition.compose(vectors));
            whole.map_err(|cause| ForwardError::Failed(cause.to_string()))
        };
        (0..batch.chips.len()).map(composed).collect()
    }

    fn rehearsal(&mut self) -> Option<Rehearsal<'_>> {
        let times =
            self.encoders.0.iter_mut().filter_map(|encoder| Some(encoder.rehearsal()?.times)).max()?;
        Some(Rehearsal { part: &mut self.encoders, times })
    }
}

#[cfg(test)]
mod tests {
    use super::super::PixelProjection;
    use super::*;
    use crate::chip::{Chip, ChipSize, Modality};
    use crate::embedding::Part;

    #[test]
    fn an_ensemble_embeds_as_its_members_do_and_tells_what_each_costs() {
        let parts = [(3, 1.0), (5, 0.5)].map(|(dimension, weight)| Part { dimension, weight });
        let composition = Composition::new(&parts, 3, 100).expect("an ensemble");
        let members = Arc::new(Members::new(composition, [1, 2].map(|seed| ModelDigest::new([seed; 32]))));
        assert!(members.forward_times().all(|time| time.is_none()), "nothing has been embedded");
        let projection = move |number: usize| PixelProjection::new(parts[number].dimension, number as u64);
        let factory = move |number: usize| -> EncoderFactory {
            Arc::new(move |_| Ok(Box::new(projection(number)) as Box<dyn Encoder>))
        };
        let mut ensemble = Arc::clone(&members).encoder(vec![factory(0), factory(1)])(0).expect("an encoder");
        let chip = |value: u8| {
            let pixels = (0..24).map(|place| value.wrapping_mul(place)).collect();
            Chip::new(pixels, ChipSize { height: 4, width: 2 }, Modality::Sar, [0.0; 3]).into()
        };
        let batch = Batch { model: ModelDigest::new([0; 32]), chips: vec![chip(3), chip(5)] };
        let whole = ensemble.forward(&batch).expect("embeddings");
        let alone = [0, 1].map(|number| projection(number).forward(&batch).expect("embeddings"));
        for (chip, whole) in whole.iter().enumerate() {
            for (part, alone) in composition.unit_parts(whole.as_slice()).iter().zip(&alone) {
                let expected = alone[chip].as_slice();
                assert!(
                    part.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
                    "{part:?} {expected:?}"
                );
            }
        }
        assert!(members.forward_times().all(|time| time.is_some()));
    }
}
