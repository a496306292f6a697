//! Numbers for the names in an index, so that its columns are small and compare fast.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};

use fixedbitset::FixedBitSet;

use super::super::entry::{Labels, VesselId};

/// The scene that an image belongs to, within one index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SceneNumber(NonZeroU32);

/// A detection within its scene, told from others by its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DetectionHash(NonZeroU64);

impl DetectionHash {
    /// `None` for the empty text, which is an unknown detection.
    pub fn of(detection_id: &str) -> Option<Self> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        if detection_id.is_empty() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        detection_id.hash(&mut hasher);
        Some(Self(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN)))
    }
}

/// A vessel that has an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NamedVessel(NonZeroU32);

impl NamedVessel {
    /// From 1.
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

/// All labels of an entry together; few entries differ in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LabelSet(u32);

impl LabelSet {
    pub fn number(self) -> usize {
        self.0 as usize
    }
}

/// What has a number. Only ever added to, so that all clones of an index share it.
#[derive(Debug, Default)]
pub(super) struct Names {
    vessels: Numbers,
    scenes: Numbers,
    /// By name, then value.
    labels: HashMap<Box<str>, HashMap<Box<str>, usize>>,
    /// By the numbers of their labels, in the order of the labels' names.
    label_sets: HashMap<Box<[usize]>, LabelSet>,
    /// For every label the sets that have it.
    sets_with: Vec<Vec<LabelSet>>,
}

#[derive(Debug, Default)]
struct Numbers(HashMap<Box<str>, NonZeroU32>);

impl Numbers {
    fn number(&mut self, name: &str) -> NonZeroU32 {
        if let Some(number) = self.0.get(name) {
            return *number;
        }
        let next = u32::try_from(self.0.len() + 1).ok().and_then(NonZeroU32::new);
        let number = next.expect("names take more memory than there is before their number overflows");
        self.0.insert(name.into(), number);
        number
    }
}

impl Names {
    pub fn vessel(&mut self, id: &VesselId) -> NamedVessel {
        NamedVessel(self.vessels.number(id.as_str()))
    }

    /// `None` where no entry ever had it.
    pub fn known_vessel(&self, id: &VesselId) -> Option<NamedVessel> {
        self.vessels.0.get(id.as_str()).copied().map(NamedVessel)
    }

    /// `None` for the empty text, which is an unknown scene.
    pub fn scene(&mut self, scene_id: &str) -> Option<SceneNumber> {
        (!scene_id.is_empty()).then(|| SceneNumber(self.scenes.number(scene_id)))
    }

    /// `None` where no entry ever had it.
    pub fn known_scene(&self, scene_id: &str) -> Option<SceneNumber> {
        self.scenes.0.get(scene_id).copied().map(SceneNumber)
    }

    pub fn label_set(&mut self, labels: &Labels) -> LabelSet {
        let numbers: Box<[usize]> = labels.iter().map(|(name, value)| self.label(name, value)).collect();
        if let Some(set) = self.label_sets.get(&numbers) {
            return *set;
        }
        let set = LabelSet(u32::try_from(self.label_sets.len()).expect("fewer label sets than rows"));
        numbers.iter().for_each(|label| self.sets_with[*label].push(set));
        self.label_sets.insert(numbers, set);
        set
    }

    fn label(&mut self, name: &str, value: &str) -> usize {
        if let Some(number) = self.labels.get(name).and_then(|values| values.get(value)) {
            return *number;
        }
        let number = self.sets_with.len();
        self.sets_with.push(vec![]);
        self.labels.entry(name.into()).or_default().insert(value.into(), number);
        number
    }

    /// The label sets that have every one of `labels`, by number.
    pub fn label_sets_with(&self, labels: &[(String, String)]) -> FixedBitSet {
        let mut sets = FixedBitSet::with_capacity(self.label_sets.len());
        sets.insert_range(..);
        for (name, value) in labels {
            let number = self.labels.get(name.as_str()).and_then(|values| values.get(value.as_str()));
            let having = number.map_or(&[][..], |number| &self.sets_with[*number]);
            let mut with = FixedBitSet::with_capacity(sets.len());
            having.iter().for_each(|set| with.insert(set.number()));
            sets.intersect_with(&with);
        }
        sets
    }
}
