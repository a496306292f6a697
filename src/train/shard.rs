//! The part of a run's batches from which one of several training processes learns.

/// One of the processes that train together. A single process learns from everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    rank: usize,
    world_size: usize,
}

/// The rank does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no rank {rank} in a world of {world_size}")]
pub struct ShardError {
    rank: usize,
    world_size: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { rank: 0, world_size: 1 }
    }
}

impl Shard {
    /// Ranks count from 0.
    ///
    /// # Errors
    /// If the rank is not below the world size.
    pub fn new(rank: usize, world_size: usize) -> Result<Self, ShardError> {
        if rank < world_size { Ok(Self { rank, world_size }) } else { Err(ShardError { rank, world_size }) }
    }

    pub fn world_size(self) -> usize {
        self.world_size
    }

    /// This rank's part of a sequence that all ranks have in the same order: every `world_size`-th item. All
    /// ranks get equally many, and the remainder is dropped, as in the reference's sampler of identities.
    pub fn part<T>(self, items: Vec<T>) -> Vec<T> {
        let shared = items.len() / self.world_size * self.world_size;
        items.into_iter().take(shared).skip(self.rank).step_by(self.world_size).collect()
    }

    /// The same, but the first items are repeated at the end so that all ranks get equally many, as in
    /// PyTorch's `DistributedSampler`.
    pub fn padded_part<T: Clone>(self, items: &[T]) -> Vec<T> {
        let shared = items.len().next_multiple_of(self.world_size);
        items.iter().cycle().take(shared).skip(self.rank).step_by(self.world_size).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<T>(world_size: usize, part: impl Fn(Shard) -> Vec<T>) -> Vec<Vec<T>> {
        (0..world_size).map(|rank| part(Shard::new(rank, world_size).expect("a rank"))).collect()
    }

    #[test]
    fn ranks_take_turns_and_get_equally_many() {
        let items: Vec<u32> = (0..8).collect();
        assert_eq!(parts(3, |shard| shard.part(items.clone())), [[0, 3], [1, 4], [2, 5]]);
        assert_eq!(parts(3, |shard| shard.padded_part(&items)), [[0, 3, 6], [1, 4, 7], [2, 5, 0]]);
        let few = [0, 1];
        assert_eq!(parts(5, |shard| shard.padded_part(&few)), [[0], [1], [0], [1], [0]]);
        assert!(parts(5, |shard| shard.part(few.to_vec())).concat().is_empty());
        assert!(parts(2, |shard| shard.padded_part::<u32>(&[])).concat().is_empty());
        assert_eq!(Shard::default().part(items.clone()), items);
        assert_eq!(Shard::default().padded_part(&items), items);
    }

    #[test]
    fn a_rank_is_below_the_world_size() {
        for (rank, world_size) in [(1, 1), (0, 0), (7, 3)] {
            assert_eq!(Shard::new(rank, world_size), Err(ShardError { rank, world_size }));
        }
        assert_eq!(Shard::new(0, 1), Ok(Shard::default()));
    }
}
