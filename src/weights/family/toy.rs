//! The smallest family: one linear layer over a grid of pixels. It verifies that only a family's folder and
//! its forward pass depend on the family.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Architecture, ArchitectureError, ArchitectureHints, FamilyArchitecture, Initial, Options, Preset,
    shape_of, within,
};
use crate::chip::{ChipSize, Preprocessing};
use crate::weights::fit::Fit;
use crate::weights::misfits::Misfits;
use crate::weights::tensors::NamedTensors;

const PIXELS: &str = "toy.pixels";
const NECK: &str = "toy.neck";
const CLASSIFIER: &str = "toy.classes";
const SCALE: &str = "toy.scale";

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToyArchitecture {
    /// Side of a square chip, in pixels.
    pub side: usize,
    pub width: usize,
    pub classes: usize,
}

impl FamilyArchitecture for ToyArchitecture {
    fn title() -> &'static str {
        "toy"
    }

    fn anchor() -> &'static str {
        PIXELS
    }

    fn configured(preset: Preset, _: &Options) -> Self {
        let side = match preset {
            Preset::Tiny => 4,
            Preset::Small | Preset::VitBase => 8,
        };
        Self { side, width: 6, classes: 0 }
    }

    fn infer(tensors: &NamedTensors, _: &ArchitectureHints) -> Result<Self, ArchitectureError> {
        let pixels = shape_of(tensors, PIXELS, 2)?;
        let classes = shape_of(tensors, CLASSIFIER, 2).map_or(0, |shape| shape[0]);
        let architecture = Self { side: (pixels[1] / 3).isqrt(), width: pixels[0], classes };
        architecture.validate()?;
        Ok(architecture)
    }

    fn validate(&self) -> Result<(), ArchitectureError> {
        within("side", self.side, 1, 64)?;
        within("width", self.width, 1, 64)
    }

    /// The toy's own preprocessing, which differs from TransOSS's.
    fn preprocessing(&self) -> Preprocessing {
        let size = ChipSize { height: self.side, width: self.side };
        Preprocessing {
            mean: [0.5; 3],
            deviation: [0.25; 3],
            description: "for a toy",
            ..Preprocessing::reference(size)
        }
    }

    fn embed_dim(&self) -> usize {
        self.width
    }

    fn token_count(&self) -> usize {
        1
    }

    fn mlp_widths(&self) -> [usize; 2] {
        [3 * self.side * self.side, self.width]
    }

    fn shortened(&self) -> Option<(Architecture, u32)> {
        None
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn with_classes(&self, classes: usize) -> Architecture {
        Self { classes, ..*self }.into()
    }

    fn digest_bytes(&self) -> Vec<u8> {
        [self.side, self.width].into_iter().flat_map(|number| (number as u64).to_le_bytes()).collect()
    }

    fn description(&self) -> Vec<(&'static str, String)> {
        vec![("side", self.side.to_string())]
    }

    fn int8_layers(&self) -> Vec<String> {
        Vec::new()
    }

    fn expected_tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let mut tensors = BTreeMap::from([
            (PIXELS.to_owned(), vec![self.width, 3 * self.side * self.side]),
            (NECK.to_owned(), vec![self.width]),
            (SCALE.to_owned(), vec![]),
        ]);
        if self.classes > 0 {
            tensors.insert(CLASSIFIER.to_owned(), vec![self.classes, self.width]);
        }
        tensors
    }

    fn is_unused_in_serving(&self, name: &str) -> bool {
        [CLASSIFIER, SCALE].contains(&name)
    }

    fn is_head(&self, name: &str) -> bool {
        name == CLASSIFIER
    }

    fn is_trained(&self, name: &str) -> bool {
        name != NECK
    }

    fn is_backbone(&self, name: &str) -> bool {
        name == PIXELS
    }

    fn classifier(&self) -> &'static str {
        CLASSIFIER
    }

    fn logit_scale(&self) -> &'static str {
        SCALE
    }

    fn block_prefix(&self) -> &'static str {
        "toy.blocks."
    }

    fn initial(&self, name: &str, _: &[usize]) -> Initial {
        match name {
            NECK => Initial::Uniform(2.0),
            SCALE => Initial::Constant(1.0),
            _ => Initial::Normal(0.1),
        }
    }

    fn start_from_vit(&self, initial: &mut NamedTensors, _: NamedTensors) -> Result<Fit, Misfits> {
        Ok(Fit::overlay(initial, self.block_prefix(), NamedTensors::new(), Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::weights::family::{Family, FeaturePoint, Preset};
    use crate::weights::native::{self, tensor_bytes};
    use crate::weights::open::{Hints, OpenModel};
    use crate::weights::seed::seeded;
    use crate::weights::start::{Kind, StartingPoint};
    use crate::weights::tensors::NamedTensors;
    use crate::weights::wrapper::WeightsChoice;

    fn model(seed: u64) -> OpenModel {
        let architecture = Family::Toy.preset(Preset::Tiny);
        OpenModel::new(architecture, FeaturePoint::BeforeNeck, seeded(&architecture, seed))
    }

    fn saved(model: &OpenModel) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = folder.path().join("model");
        model.save(&place, "test").expect("written");
        (folder, place)
    }

    #[test]
    fn a_model_of_another_family_is_stored_with_its_name_and_opened_by_it() {
        let toy = model(1);
        let (_folder, place) = saved(&toy);
        let text = fs::read_to_string(place.join(native::DESCRIPTION)).expect("readable");
        assert!(text.contains("family = \"toy\"") && text.contains("side = 4"), "{text}");
        assert_eq!(OpenModel::open(&place, &Hints::default()).expect("a model"), toy);
        assert_ne!(model(2).digest, toy.digest);
        assert_eq!(toy.architecture.parameters(), 6 * 48 + 6);
    }

    #[test]
    fn the_family_of_a_checkpoint_is_found_by_its_tensors() {
        let toy = model(1);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("toy.safetensors");
        let prefixed: NamedTensors =
            toy.tensors.iter().map(|(name, tensor)| (format!("net.{name}"), tensor.clone())).collect();
        for tensors in [&toy.tensors, &prefixed] {
            fs::write(&path, tensor_bytes(tensors)).expect("writable");
            assert_eq!(OpenModel::open(&path, &Hints::default()).expect("a model"), toy);
        }
        let mut initial = seeded(&toy.architecture.with_classes(3), 7);
        let choice = (Kind::Model, &WeightsChoice::Own);
        let start = StartingPoint::take(&mut initial, &toy.architecture, &path, choice).expect("a start");
        assert_eq!(initial["toy.pixels"], toy.tensors["toy.pixels"]);
        assert_eq!(start.fit.kept, ["toy.classes"]);
    }

    #[test]
    fn a_family_that_nobody_knows_is_refused_by_name() {
        let (_folder, place) = saved(&model(1));
        let path = place.join(native::DESCRIPTION);
        let change = |from: &str, to: &str| {
            let text = fs::read_to_string(&path).expect("readable");
            fs::write(&path, text.replace(from, to)).expect("writable");
            OpenModel::open(&place, &Hints::default()).expect_err("no model").to_string()
        };
        let refused = change("\"toy\"", "\"swin\"");
        assert!(
            refused.contains("there is no model family swin; this program knows sdf_net, transoss, toy")
                && refused.lines().count() == 1,
            "{refused}"
        );
        // Without a name the family is TransOSS, for which these fields are invalid.
        let refused = change("family = \"swin\"\n", "");
        assert!(refused.contains("unknown field `side`"), "{refused}");
    }

    #[test]
    fn every_family_is_known_by_its_name() {
        for family in Family::ALL {
            assert_eq!(family.name().parse(), Ok(*family));
        }
        let names: Vec<&str> = Family::ALL.iter().map(|family| family.name()).collect();
        assert_eq!(names, ["sdf_net", "transoss", "toy"]);
    }
}
