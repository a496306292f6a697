//! Which images make up the batches of an epoch.

use std::collections::BTreeMap;

use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::random::{Purpose, stream};
use super::shard::Shard;

/// Batches of P identities with K images each.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentitySampler {
    /// Images of each identity.
    images: BTreeMap<i64, Vec<usize>>,
    /// Identities per batch of one rank.
    identities_per_batch: usize,
    images_per_identity: usize,
    shard: Shard,
}

/// Batches cannot be formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SamplerError {
    #[error("{images} images a batch are not a multiple of {per_identity} images an identity")]
    Uneven { images: usize, per_identity: usize },
    #[error("a batch wants {wanted} identities, the data set has {found}")]
    TooFew { wanted: usize, found: usize },
    #[error("{units} identities or pairs a batch are not a multiple of {world_size} training processes")]
    Undivided { units: usize, world_size: usize },
}

impl IdentitySampler {
    /// Samples from images with these labels: `images_per_batch` per batch, `images_per_identity` of each
    /// identity in it. A batch is that of all ranks together.
    ///
    /// # Errors
    /// If the numbers cannot form a batch.
    pub fn new(
        labels: &[i64],
        images_per_batch: usize,
        images_per_identity: usize,
        shard: Shard,
    ) -> Result<Self, SamplerError> {
        if images_per_identity == 0
            || images_per_batch == 0
            || !images_per_batch.is_multiple_of(images_per_identity)
        {
            let per_identity = images_per_identity;
            return Err(SamplerError::Uneven { images: images_per_batch, per_identity });
        }
        let mut images: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        labels.iter().enumerate().for_each(|(image, label)| images.entry(*label).or_default().push(image));
        let wanted = of_one_rank(images_per_batch / images_per_identity, shard)?;
        if images.len() < wanted {
            return Err(SamplerError::TooFew { wanted, found: images.len() });
        }
        Ok(Self { images, identities_per_batch: wanted, images_per_identity, shard })
    }

    /// The maximum number of images in an epoch.
    pub fn announced_len(&self) -> usize {
        let k = self.images_per_identity;
        self.images.values().map(|images| images.len().max(k) / k * k).sum::<usize>()
            / self.shard.world_size()
    }

    /// The batches of an epoch; deterministic for a seed. All ranks draw the same batches and take
    /// turns with them.
    ///
    /// For an identity with too few images, K are drawn with repetition. For the others, the remainder after
    /// dividing by K is not used in this epoch. Batches end when too few identities have images left.
    pub fn epoch(&self, seed: u64, epoch: u32) -> Vec<Vec<usize>> {
        let random = &mut stream(seed, epoch, 0, Purpose::Sampling);
        let mut chunks: Vec<Vec<Vec<usize>>> =
            self.images.values().map(|images| self.chunks(images, random)).collect();
        let mut batches = Vec::new();
        loop {
            let mut left: Vec<usize> = (0..chunks.len()).filter(|id| !chunks[*id].is_empty()).collect();
            if left.len() < self.identities_per_batch {
                return self.shard.part(batches);
            }
            left.shuffle(random);
            left.truncate(self.identities_per_batch);
            batches.push(left.into_iter().flat_map(|id| chunks[id].pop().unwrap_or_default()).collect());
        }
    }

    fn chunks(&self, images: &[usize], random: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
        let k = self.images_per_identity;
        let mut order = if images.len() < k {
            (0..k).filter_map(|_| images.choose(random).copied()).collect()
        } else {
            images.to_vec()
        };
        order.shuffle(random);
        order.chunks_exact(k).map(<[usize]>::to_vec).collect()
    }
}

/// The identities or pairs of a batch that belong to one rank.
///
/// # Errors
/// If ranks would have different numbers of them.
pub(super) fn of_one_rank(units: usize, shard: Shard) -> Result<usize, SamplerError> {
    let world_size = shard.world_size();
    if units.is_multiple_of(world_size) {
        Ok(units / world_size)
    } else {
        Err(SamplerError::Undivided { units, world_size })
    }
}

/// The pairs of each batch of an epoch in random order, `pairs_per_batch` for each rank; the last
/// batch may be smaller.
pub fn pair_batches(
    pairs: usize,
    pairs_per_batch: usize,
    shard: Shard,
    seed: u64,
    epoch: u32,
) -> Vec<Vec<usize>> {
    let random = &mut stream(seed, epoch, 0, Purpose::Sampling);
    let mut order: Vec<usize> = (0..pairs).collect();
    order.shuffle(random);
    shard.padded_part(&order).chunks(pairs_per_batch.max(1)).map(<[usize]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_epoch_keeps_every_rule_of_the_reference(
            sizes in prop::collection::vec(1..20usize, 2..12),
            k in 1..5usize,
            p in 1..6usize,
            seed in any::<u64>(),
        ) {
            let labels: Vec<i64> =
                sizes.iter().enumerate().flat_map(|(id, size)| vec![id as i64 * 3; *size]).collect();
            let Ok(sampler) = IdentitySampler::new(&labels, p * k, k, Shard::default()) else {
                prop_assert!(sizes.len() < p);
                return Ok(());
            };
            let batches = sampler.epoch(seed, 1);
            prop_assert!(batches.len() * p * k <= sampler.announced_len());
            let (mut uses, mut chunks) = (HashMap::new(), HashMap::new());
            for batch in &batches {
                prop_assert_eq!(batch.len(), p * k);
                let runs: Vec<i64> = batch.chunks(k).map(|run| labels[run[0]]).collect();
                prop_assert_eq!(runs.iter().collect::<BTreeSet<_>>().len(), p);
                for (run, label) in batch.chunks(k).zip(&runs) {
                    prop_assert!(run.iter().all(|image| labels[*image] == *label));
                    *chunks.entry(*label).or_insert(0) += 1;
                }
                batch.iter().for_each(|image| *uses.entry(*image).or_insert(0) += 1);
            }
            let size = |label: i64| sizes[label as usize / 3];
            prop_assert!(uses.iter().all(|(image, times)| *times == 1 || size(labels[*image]) < k));
            prop_assert!(chunks.iter().all(|(label, used)| *used <= size(*label).max(k) / k));
            let left = sizes.iter().enumerate().filter(|(id, size)| {
                chunks.get(&(*id as i64 * 3)).copied().unwrap_or(0) < *size.max(&&k) / k
            });
            prop_assert!(left.count() < p);
            prop_assert_eq!(&batches, &sampler.epoch(seed, 1));
        }

        #[test]
        fn ranks_take_turns_with_the_batches_that_one_alone_would_draw(
            sizes in prop::collection::vec(1..20usize, 2..12),
            k in 1..5usize,
            p in 1..4usize,
            world_size in 1..5usize,
            seed in any::<u64>(),
        ) {
            let labels: Vec<i64> =
                sizes.iter().enumerate().flat_map(|(id, size)| vec![id as i64; *size]).collect();
            let Ok(alone) = IdentitySampler::new(&labels, p * k, k, Shard::default()) else {
                return Ok(());
            };
            let batches = alone.epoch(seed, 1);
            for rank in 0..world_size {
                let shard = Shard::new(rank, world_size).expect("a rank");
                let sampler = IdentitySampler::new(&labels, world_size * p * k, k, shard).expect("batches");
                let found = sampler.epoch(seed, 1);
                prop_assert_eq!(found.len(), batches.len() / world_size);
                for (number, batch) in found.iter().enumerate() {
                    prop_assert_eq!(batch, &batches[number * world_size + rank]);
                }
                prop_assert!(found.len() * p * k <= sampler.announced_len());
            }
        }

        #[test]
        fn ranks_share_all_pairs_evenly(
            pairs in 1..50usize,
            size in 1..20usize,
            world_size in 1..5usize,
            seed in any::<u64>(),
        ) {
            let order = pair_batches(pairs, size, Shard::default(), seed, 3).concat();
            let ranks: Vec<Vec<usize>> = (0..world_size)
                .map(|rank| {
                    let shard = Shard::new(rank, world_size).expect("a rank");
                    let batches = pair_batches(pairs, size, shard, seed, 3);
                    assert!(batches.iter().rev().skip(1).all(|batch| batch.len() == size));
                    batches.concat()
                })
                .collect();
            prop_assert!(ranks.iter().all(|rank| rank.len() == pairs.div_ceil(world_size)));
            // Interleaving the ranks gives the order of a single rank, with its beginning repeated
            // to complete the last turn.
            let across = (0..ranks[0].len()).flat_map(|turn| ranks.iter().map(move |rank| rank[turn]));
            prop_assert!(across.eq(order.iter().cycle().copied().take(pairs.next_multiple_of(world_size))));
        }

        #[test]
        fn every_pair_is_in_one_batch(pairs in 1..50usize, size in 1..20usize, seed in any::<u64>()) {
            let batches = pair_batches(pairs, size, Shard::default(), seed, 3);
            let (last, full) = batches.split_last().expect("at least one pair");
            prop_assert!(full.iter().all(|batch| batch.len() == size) && last.len() <= size);
            let mut all = batches.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..pairs).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_identity_and_every_image_is_as_likely_as_any_other() {
        // Ten identities of one chunk each, four per batch: two batches, and two identities are not
        // used in the epoch.
        let labels: Vec<i64> = (0..30).map(|image| image / 3).collect();
        let sampler = IdentitySampler::new(&labels, 8, 2, Shard::default()).expect("batches");
        let (mut first, mut used, mut images) = ([0; 10], [0; 10], [0; 30]);
        for epoch in 1..=3000 {
            let batches = sampler.epoch(1, epoch);
            assert_eq!(batches.len(), 2);
            for image in batches.concat() {
                images[image] += 1;
                used[labels[image] as usize] += 1;
            }
            batches[0].iter().step_by(2).for_each(|image| first[labels[*image] as usize] += 1);
        }
        // Four of ten are in the first batch, eight of ten in any, each with two of its three images.
        assert!(first.iter().all(|count| (1100..1300).contains(count)), "{first:?}");
        assert!(used.iter().all(|count| (4650..4950).contains(count)), "{used:?}");
        assert!(images.iter().all(|count| (1500..1700).contains(count)), "{images:?}");
    }

    #[test]
    fn epochs_differ_and_numbers_that_give_no_batch_are_refused() {
        let labels: Vec<i64> = (0..64).map(|image| image / 8).collect();
        let sampler = IdentitySampler::new(&labels, 8, 4, Shard::default()).expect("batches");
        assert_ne!(sampler.epoch(1, 1), sampler.epoch(1, 2));
        assert_ne!(sampler.epoch(1, 1), sampler.epoch(2, 1));
        assert_eq!(
            IdentitySampler::new(&labels, 10, 4, Shard::default()),
            Err(SamplerError::Uneven { images: 10, per_identity: 4 })
        );
        assert_eq!(
            IdentitySampler::new(&labels, 36, 4, Shard::default()),
            Err(SamplerError::TooFew { wanted: 9, found: 8 })
        );
        let third = Shard::new(1, 3).expect("a rank");
        assert_eq!(
            IdentitySampler::new(&labels, 16, 4, third),
            Err(SamplerError::Undivided { units: 4, world_size: 3 })
        );
    }
}
