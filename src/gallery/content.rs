//! A hash of what was enrolled: the same enrolment has the same hash in every release.

use sha2::{Digest, Sha256};

use super::entry::{ContentHash, Labels, Observation, VesselId};
use crate::chip::{Modality, PixelSize, SourceChip, may_say_its_size};
use crate::embedding::Embedding;

/// What an enrolment states about a sighting in addition to its id.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    pub vessel: Option<&'a VesselId>,
    pub labels: &'a Labels,
    pub observation: &'a Observation,
}

impl Content<'_> {
    /// The hash of an enrolment with a chip.
    pub fn with_chip(&self, chip: &SourceChip) -> ContentHash {
        let mut hash = self.hash("chip", chip.view.modality);
        let default = PixelSize::default_for(chip.view.modality);
        let default = [default.x_m(), default.y_m()];
        let asked = chip.view.pixel_size.axes();
        hash.numbers(asked.into_iter().zip(default).map(|(asked, default)| asked.unwrap_or(default)));
        let cut = chip.view.oriented_box.map(|cut| {
            let (x, y) = cut.center();
            [x, y, cut.length(), cut.width(), cut.angle_deg()]
        });
        hash.numbers(cut.into_iter().flatten());
        hash.bytes(&chip.image);
        // Asking for the default differs from asking for nothing where the file may state another size.
        let asked_for_default = asked.into_iter().zip(default).map(|(asked, default)| asked == Some(default));
        if asked_for_default.clone().any(|asked| asked) && may_say_its_size(&chip.image) {
            hash.numbers(asked_for_default.map(|asked| f64::from(u8::from(asked))));
        }
        hash.finish()
    }

    /// The hash of an enrolment with a ready embedding, and with the chip that it was made from, if there is one.
    pub fn with_embedding(
        &self,
        modality: Modality,
        embedding: &Embedding,
        chip: Option<&SourceChip>,
    ) -> ContentHash {
        let mut hash = self.hash("embedding", modality);
        hash.numbers(embedding.as_slice().iter().map(|value| f64::from(*value)));
        if let Some(chip) = chip {
            hash.bytes(self.with_chip(chip).as_bytes());
        }
        hash.finish()
    }

    fn hash(&self, kind: &str, modality: Modality) -> Fields {
        let mut hash = Fields(Sha256::new());
        hash.bytes(kind.as_bytes());
        hash.bytes(modality.name().as_bytes());
        hash.bytes(self.vessel.map_or("", VesselId::as_str).as_bytes());
        hash.count(self.labels.iter().count());
        for (name, value) in self.labels.iter() {
            hash.bytes(name.as_bytes());
            hash.bytes(value.as_bytes());
        }
        let observation = self.observation;
        for text in [&observation.detection_id, &observation.scene_id, &observation.sensor] {
            hash.bytes(text.as_bytes());
        }
        hash.bytes(
            &observation.observed_at.map(|time| time.nanos().to_le_bytes().to_vec()).unwrap_or_default(),
        );
        let position = observation.position.map(|p| [p.latitude_deg(), p.longitude_deg(), p.sigma_m()]);
        hash.numbers(position.into_iter().flatten());
        let heading = observation.heading.map(|h| [h.deg(), f64::from(u8::from(h.is_ambiguous()))]);
        hash.numbers(heading.into_iter().flatten());
        hash.numbers(observation.length_m);
        hash.numbers(observation.width_m);
        hash
    }
}

/// Hashes fields in sequence, each prefixed with its length, so that no two sequences collide.
struct Fields(Sha256);

impl Fields {
    fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    fn numbers(&mut self, numbers: impl IntoIterator<Item = f64>) {
        let bytes: Vec<u8> = numbers.into_iter().flat_map(f64::to_le_bytes).collect();
        self.bytes(&bytes);
    }

    fn finish(self) -> ContentHash {
        ContentHash::new(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::entry::Time;
    use super::*;
    use crate::chip::{AskedPixelSize, PixelSizeRule, View};

    /// A TIFF of one pixel whose directory ends with this tag.
    fn tiff(tag: u16) -> Vec<u8> {
        let entry = |tag: u16, kind: u16, value: u32| {
            [&tag.to_le_bytes()[..], &kind.to_le_bytes(), &1_u32.to_le_bytes(), &value.to_le_bytes()].concat()
        };
        let entries = [entry(256, 3, 1), entry(257, 3, 1), entry(tag, 12, 0)].concat();
        [b"II*\0\x08\0\0\0\x03\0", &entries[..], b"\0\0\0\0"].concat()
    }

    #[test]
    fn a_chip_is_told_by_what_was_asked_and_old_hashes_stay_what_they_were() {
        let (none, plain) = (Labels::default(), Observation::default());
        let content = Content { vessel: None, labels: &none, observation: &plain };
        let hash = |image: &[u8], x_m, y_m| {
            let pixel_size = PixelSizeRule::Asked(AskedPixelSize::new(x_m, y_m).expect("a size"));
            let view = View { pixel_size, ..View::plain(Modality::Sar) };
            let hash = content.with_chip(&SourceChip { image: image.to_vec().into(), view });
            hex::encode(&hash.as_bytes()[..8])
        };
        let (bare, scaled) = (tiff(258), tiff(33550));
        // As it was when a chip without a pixel size used the default.
        assert_eq!(hash(&bare, None, None), "418c5449393683c0");
        assert_eq!(hash(&scaled, None, None), "cbf9558bc6bbe937");
        assert_eq!(hash(&bare, Some(1.0), None), hash(&bare, None, None));
        let asked =
            [(None, None), (Some(1.0), None), (None, Some(1.0)), (Some(1.0), Some(1.0)), (Some(0.5), None)];
        let hashes: BTreeSet<_> = asked.iter().map(|(x_m, y_m)| hash(&scaled, *x_m, *y_m)).collect();
        assert_eq!(hashes.len(), asked.len());
    }

    #[test]
    fn anything_that_differs_is_told_and_the_hash_stays_what_it_was() {
        let embedding = Embedding::from_feature(vec![3.0, 4.0]).expect("a direction");
        let plain = Observation::default();
        let timed = Observation { observed_at: Some(Time::from_nanos(0)), ..plain.clone() };
        let scene = Observation { scene_id: "ab".into(), ..plain.clone() };
        let sensor = Observation { sensor: "ab".into(), ..plain.clone() };
        let long = Observation { length_m: Some(90.0), ..plain.clone() };
        let wide = Observation { width_m: Some(90.0), ..plain.clone() };
        let none = Labels::default();
        let some = Labels::new([("flag".to_owned(), "PA".to_owned())]).expect("labels");
        let vessel = VesselId::new("v").expect("an id");
        let content = |vessel, labels, observation| Content { vessel, labels, observation };
        let mut hashes: Vec<ContentHash> = [&plain, &timed, &scene, &sensor, &long, &wide]
            .map(|observation| {
                content(None, &none, observation).with_embedding(Modality::Sar, &embedding, None)
            })
            .to_vec();
        hashes.push(content(None, &some, &plain).with_embedding(Modality::Sar, &embedding, None));
        hashes.push(content(Some(&vessel), &none, &plain).with_embedding(Modality::Sar, &embedding, None));
        hashes.push(content(None, &none, &plain).with_embedding(Modality::Optical, &embedding, None));
        for image in [&b"chip"[..], b"another"] {
            let chip = SourceChip { image: image.into(), view: View::plain(Modality::Sar) };
            hashes.push(content(None, &none, &plain).with_embedding(Modality::Sar, &embedding, Some(&chip)));
        }
        for (index, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..index].contains(hash), "{index}");
        }
        let again = content(None, &none, &plain).with_embedding(Modality::Sar, &embedding, None);
        assert_eq!(again, hashes[0]);
        // Stored galleries contain these hashes: changing a value makes every repeated enrolment a conflict.
        assert_eq!(hex::encode(&again.as_bytes()[..8]), "8ceb1a9cb0f9c7e5");
    }
}
