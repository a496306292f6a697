//! A checkpoint on its way from rank 0 to the other processes of a run, which need not see its folder.

use std::path::Path;

use super::super::learn::LearnerState;
use super::{CheckpointError, Progress};
use crate::weights::native::{parse_tensors, tensor_bytes};

/// Bytes of a number.
const WORD: usize = size_of::<u64>();
/// Numbers before the tensors: progress, steps of the optimizer, and the length of the weights.
const WORDS: usize = 5;

/// A progress and a state as bytes.
pub fn checkpoint_bytes((progress, state): &(Progress, LearnerState)) -> Vec<u8> {
    let weights = tensor_bytes(&state.weights);
    let Progress { epoch, steps_of_epoch, steps } = *progress;
    let words: [u64; WORDS] =
        [u64::from(epoch), steps_of_epoch, steps, u64::from(state.steps), weights.len() as u64];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend_from_slice(&weights);
    bytes.extend_from_slice(&tensor_bytes(&state.optimizer));
    bytes
}

/// What [`checkpoint_bytes`] has written; `None` if there is nothing.
///
/// # Errors
/// The bytes are something else.
pub fn parse_checkpoint(bytes: &[u8]) -> Result<Option<(Progress, LearnerState)>, CheckpointError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let path = Path::new("the checkpoint of rank 0");
    let malformed = || CheckpointError::Progress { path: path.to_owned(), cause: "it is cut off".to_owned() };
    let (words, tensors) = bytes.split_at_checked(WORDS * WORD).ok_or_else(malformed)?;
    let mut words = words.as_chunks::<WORD>().0.iter().map(|word| u64::from_le_bytes(*word));
    let mut word = || words.next().ok_or_else(malformed);
    let small = |word: u64| u32::try_from(word).map_err(|_| malformed());
    let progress = Progress { epoch: small(word()?)?, steps_of_epoch: word()?, steps: word()? };
    let optimizer_steps = small(word()?)?;
    let length = usize::try_from(word()?).map_err(|_| malformed())?;
    let (weights, optimizer) = tensors.split_at_checked(length).ok_or_else(malformed)?;
    let state = LearnerState {
        weights: parse_tensors(path, weights)?,
        optimizer: parse_tensors(path, optimizer)?,
        steps: optimizer_steps,
    };
    Ok(Some((progress, state)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::tensors::HostTensor;

    #[test]
    fn a_checkpoint_arrives_as_it_was_sent_or_not_at_all() {
        let tensor = |values: &[f32]| HostTensor { shape: vec![values.len()], values: values.to_vec() };
        let state = LearnerState {
            weights: [("a".to_owned(), tensor(&[1.5, -0.0])), ("b".to_owned(), tensor(&[]))].into(),
            optimizer: [("a".to_owned(), tensor(&[f32::MIN_POSITIVE, 3.0]))].into(),
            steps: 7,
        };
        let sent = (Progress { epoch: 3, steps_of_epoch: 5, steps: 17 }, state);
        let bytes = checkpoint_bytes(&sent);
        assert_eq!(parse_checkpoint(&bytes).expect("whole"), Some(sent));
        assert!(parse_checkpoint(&[]).expect("nothing").is_none());
        for length in [1, WORDS * WORD - 1, WORDS * WORD, bytes.len() - 1] {
            assert!(parse_checkpoint(&bytes[..length]).is_err(), "{length}");
        }
    }
}
