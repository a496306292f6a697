//! Numbers for the names in an index, which keep its columns small and comparisons fast.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};

use fixedbitset::FixedBitSet;

use super::super::entry::{Labels, VesselId};

/// The scene that an image belongs to, within one index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SceneNumber(NonZeroU32);

impl SceneNumber {
    /// Counts from 1.
    pub(super) fn number(self) -> u32 {
        self.0.get()
    }

    /// `None` for 0.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }
}

/// A hash that distinguishes a detection from the others of its scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DetectionHash(NonZeroU64);

impl DetectionHash {
    /// `None` for the empty text, which means an unknown detection.
    pub fn of(detection_id: &str) -> Option<Self> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        if detection_id.is_empty() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        detection_id.hash(&mut hasher);
        Some(Self(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN)))
    }

    pub(super) fn number(self) -> u64 {
        self.0.get()
    }

    /// `None` for 0.
    pub(super) fn from_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }
}

/// A vessel that has an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NamedVessel(NonZeroU32);

impl NamedVessel {
    /// Counts from 1.
    pub fn number(self) -> u32 {
        self.0.get()
    }

    /// `None` for 0.
    pub fn from_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }
}

/// All labels of an entry together; few entries differ in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct LabelSet(u32);

impl LabelSet {
    pub fn number(self) -> usize {
        self.0 as usize
    }

    pub fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// The numbered names. Names are only added, so that all clones of an index can share them.
#[derive(Debug, Default)]
pub(super) struct Names {
    vessels: Numbers,
    scenes: Numbers,
    /// Keyed by name, then value.
    labels: HashMap<Box<str>, HashMap<Box<str>, usize>>,
    /// Keyed by the numbers of their labels, in the order of the labels' names.
    label_sets: HashMap<Box<[usize]>, LabelSet>,
    /// For each label, the sets that contain it.
    sets_with: Vec<Vec<LabelSet>>,
    /// Estimated memory of everything.
    bytes: usize,
}

/// Memory of a name in addition to its text.
const NAME_BYTES: usize = 64;

#[derive(Debug, Default)]
struct Numbers(HashMap<Box<str>, NonZeroU32>);

impl Numbers {
    /// The name's number, and the bytes that it adds if it is new.
    fn number(&mut self, name: &str) -> (NonZeroU32, usize) {
        if let Some(number) = self.0.get(name) {
            return (*number, 0);
        }
        let next = u32::try_from(self.0.len() + 1).ok().and_then(NonZeroU32::new);
        let number = next.expect("names take more memory than there is before their number overflows");
        self.0.insert(name.into(), number);
        (number, NAME_BYTES + name.len())
    }

    /// Names indexed by number - 1.
    fn by_number(&self) -> Vec<&str> {
        let mut names = vec![""; self.0.len()];
        self.0.iter().for_each(|(name, number)| names[number.get() as usize - 1] = name);
        names
    }
}

impl Names {
    /// Estimated memory of the names.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn vessel(&mut self, id: &VesselId) -> NamedVessel {
        let (number, bytes) = self.vessels.number(id.as_str());
        self.bytes += bytes;
        NamedVessel(number)
    }

    /// `None` if no entry ever had it.
    pub fn known_vessel(&self, id: &VesselId) -> Option<NamedVessel> {
        self.vessels.0.get(id.as_str()).copied().map(NamedVessel)
    }

    /// All ids, in no order; some may be unused.
    pub fn vessels(&self) -> impl Iterator<Item = (&str, NamedVessel)> {
        self.vessels.0.iter().map(|(name, number)| (&**name, NamedVessel(*number)))
    }

    /// `None` for the empty text, which means an unknown scene.
    pub fn scene(&mut self, scene_id: &str) -> Option<SceneNumber> {
        (!scene_id.is_empty()).then(|| {
            let (number, bytes) = self.scenes.number(scene_id);
            self.bytes += bytes;
            SceneNumber(number)
        })
    }

    /// `None` if no entry ever had it.
    pub fn known_scene(&self, scene_id: &str) -> Option<SceneNumber> {
        self.scenes.0.get(scene_id).copied().map(SceneNumber)
    }

    pub fn label_set(&mut self, labels: &Labels) -> LabelSet {
        self.set_of(labels.iter())
    }

    /// The set of labels, which must come in the order of their names.
    fn set_of<'l>(&mut self, labels: impl Iterator<Item = (&'l str, &'l str)>) -> LabelSet {
        let numbers: Box<[usize]> = labels.map(|(name, value)| self.label(name, value)).collect();
        if let Some(set) = self.label_sets.get(&numbers) {
            return *set;
        }
        let set = LabelSet(u32::try_from(self.label_sets.len()).expect("fewer label sets than rows"));
        self.insert_set(numbers, set);
        set
    }

    fn insert_set(&mut self, numbers: Box<[usize]>, set: LabelSet) {
        numbers.iter().for_each(|label| self.sets_with[*label].push(set));
        // Both tables hold the new set: each number in the key, and the set under each label.
        self.bytes += NAME_BYTES + numbers.len() * (size_of::<usize>() + size_of::<LabelSet>());
        self.label_sets.insert(numbers, set);
    }

    fn label(&mut self, name: &str, value: &str) -> usize {
        if let Some(number) = self.labels.get(name).and_then(|values| values.get(value)) {
            return *number;
        }
        let number = self.sets_with.len();
        self.sets_with.push(vec![]);
        self.labels.entry(name.into()).or_default().insert(value.into(), number);
        self.bytes += 2 * NAME_BYTES + name.len() + value.len();
        number
    }

    /// All names, with their numbers.
    pub fn to_saved(&self) -> SavedNames {
        let texts = |numbers: &Numbers| numbers.by_number().into_iter().map(str::to_owned).collect();
        let mut labels = vec![(String::new(), String::new()); self.sets_with.len()];
        for (name, values) in &self.labels {
            values.iter().for_each(|(value, number)| labels[*number] = (name.to_string(), value.to_string()));
        }
        let mut label_sets = vec![vec![]; self.label_sets.len()];
        self.label_sets.iter().for_each(|(labels, set)| label_sets[set.number()] = labels.to_vec());
        SavedNames { vessels: texts(&self.vessels), scenes: texts(&self.scenes), labels, label_sets }
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

/// Names in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct SavedNames {
    pub vessels: Vec<String>,
    pub scenes: Vec<String>,
    pub labels: Vec<(String, String)>,
    /// The numbers of each set's labels, in the order of the labels' names.
    pub label_sets: Vec<Vec<usize>>,
}

impl SavedNames {
    /// Gives the names their numbers in `names`, which has none; `None` where they are not as they were saved.
    pub fn restore(&self, names: &mut Names) -> Option<()> {
        for (number, vessel) in (1..).zip(&self.vessels) {
            let (given, bytes) = names.vessels.number(vessel);
            names.bytes += bytes;
            (given.get() == number).then_some(())?;
        }
        for (number, scene) in (1..).zip(&self.scenes) {
            (names.scene(scene)?.number() == number).then_some(())?;
        }
        for (number, (name, value)) in self.labels.iter().enumerate() {
            (names.label(name, value) == number).then_some(())?;
        }
        for (number, labels) in (0..).zip(&self.label_sets) {
            let labels: Box<[usize]> = labels.as_slice().into();
            let is_new = labels.iter().all(|label| *label < self.labels.len())
                && !names.label_sets.contains_key(&labels);
            is_new.then(|| names.insert_set(labels, LabelSet(number)))?;
        }
        Some(())
    }
}

/// Copies the names that are still in use under new numbers, which drops the unused ones.
#[derive(Debug)]
pub(super) struct Renaming<'n> {
    vessels: Renumbering<'n>,
    scenes: Renumbering<'n>,
    /// The labels of each set, indexed by the set's number.
    sets: Vec<Vec<(&'n str, &'n str)>>,
    new_sets: Vec<Option<LabelSet>>,
    new: Names,
}

#[derive(Debug)]
struct Renumbering<'n> {
    names: Vec<&'n str>,
    new: Vec<Option<NonZeroU32>>,
}

impl<'n> Renumbering<'n> {
    fn of(old: &'n Numbers) -> Self {
        let names = old.by_number();
        Self { new: vec![None; names.len()], names }
    }

    fn number(&mut self, old: NonZeroU32, numbers: &mut Numbers, bytes: &mut usize) -> NonZeroU32 {
        let at = old.get() as usize - 1;
        *self.new[at].get_or_insert_with(|| {
            let (number, taken) = numbers.number(self.names[at]);
            *bytes += taken;
            number
        })
    }
}

impl<'n> Renaming<'n> {
    pub fn of(old: &'n Names) -> Self {
        let mut labels = vec![("", ""); old.sets_with.len()];
        for (name, values) in &old.labels {
            values.iter().for_each(|(value, number)| labels[*number] = (name, value));
        }
        let mut sets = vec![vec![]; old.label_sets.len()];
        for (numbers, set) in &old.label_sets {
            sets[set.number()] = numbers.iter().map(|number| labels[*number]).collect();
        }
        Self {
            vessels: Renumbering::of(&old.vessels),
            scenes: Renumbering::of(&old.scenes),
            new_sets: vec![None; sets.len()],
            sets,
            new: Names::default(),
        }
    }

    pub fn vessel(&mut self, old: NamedVessel) -> NamedVessel {
        NamedVessel(self.vessels.number(old.0, &mut self.new.vessels, &mut self.new.bytes))
    }

    pub fn scene(&mut self, old: SceneNumber) -> SceneNumber {
        SceneNumber(self.scenes.number(old.0, &mut self.new.scenes, &mut self.new.bytes))
    }

    pub fn label_set(&mut self, old: LabelSet) -> LabelSet {
        let at = old.number();
        if let Some(set) = self.new_sets[at] {
            return set;
        }
        let set = self.new.set_of(self.sets[at].iter().copied());
        self.new_sets[at] = Some(set);
        set
    }

    pub fn finish(self) -> Names {
        self.new
    }
}
