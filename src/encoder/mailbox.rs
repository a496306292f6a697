//! Commands to device threads about models, and when each thread carries them out.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::schedule::Buckets;
use super::types::{EncoderFactory, LoadError};
use crate::chip::ChipSize;
use crate::embedding::ModelDigest;

/// One thing to do for a model on one device thread. Dropping it notifies the waiting task.
pub enum WorkerCommand {
    Load(Load),
    Warm(Warm),
    Unload(Unload),
}

/// Create a model's encoder.
pub struct Load {
    pub model: ModelDigest,
    pub chip_size: ChipSize,
    pub factory: EncoderFactory,
    pub done: oneshot::Sender<Result<(), LoadError>>,
}

/// Run a model's next batch size for the first time.
pub struct Warm {
    pub model: ModelDigest,
    pub chip_size: ChipSize,
    /// Whether a whole forward pass has run; a rehearsal is enough for the other sizes.
    pub has_run: bool,
    /// Never empty.
    pub sizes: VecDeque<usize>,
    pub done: oneshot::Sender<Result<(), LoadError>>,
}

/// Drop a model's encoder, once none of its chips waits.
pub struct Unload {
    pub model: ModelDigest,
    pub done: oneshot::Sender<()>,
}

/// The commands of one device thread. While chips wait, commands and batches alternate, so that loading a model delays
/// chips no more than other chips do.
#[derive(Default)]
pub struct Mailbox {
    commands: VecDeque<WorkerCommand>,
    turn: Turn,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    Command,
    Batch,
}

impl Warm {
    /// Starts with the first of these sizes.
    pub fn all(load: Load, buckets: &Buckets) -> Self {
        let Load { model, chip_size, done, factory: _ } = load;
        Self { model, chip_size, has_run: false, sizes: buckets.sizes().iter().copied().collect(), done }
    }
}

impl Mailbox {
    /// A command that has begun is completed before another begins.
    pub fn push(&mut self, command: WorkerCommand) {
        match command {
            WorkerCommand::Warm(_) => self.commands.push_front(command),
            WorkerCommand::Load(_) | WorkerCommand::Unload(_) => self.commands.push_back(command),
        }
    }

    /// Takes the next command, unless it is a batch's turn and `chips` wait, or the command has to wait for a model's
    /// chips.
    pub fn next_command(
        &mut self,
        chips: usize,
        waiting: impl Fn(ModelDigest) -> usize,
    ) -> Option<WorkerCommand> {
        if self.turn == Turn::Batch && chips > 0 {
            return None;
        }
        if let Some(WorkerCommand::Unload(Unload { model, .. })) = self.commands.front()
            && waiting(*model) > 0
        {
            return None;
        }
        let command = self.commands.pop_front()?;
        self.turn = Turn::Batch;
        Some(command)
    }

    /// Notes that a batch was taken, so that it is a command's turn.
    pub fn batch_taken(&mut self) {
        self.turn = Turn::Command;
    }

    /// Removes all commands.
    pub fn clear(&mut self) -> VecDeque<WorkerCommand> {
        std::mem::take(&mut self.commands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelDigest = ModelDigest::new([1; 32]);

    fn unload() -> WorkerCommand {
        WorkerCommand::Unload(Unload { model: MODEL, done: oneshot::channel().0 })
    }

    fn warm() -> WorkerCommand {
        let chip_size = ChipSize { height: 1, width: 1 };
        let sizes = VecDeque::from([1]);
        WorkerCommand::Warm(Warm {
            model: MODEL,
            chip_size,
            has_run: false,
            sizes,
            done: oneshot::channel().0,
        })
    }

    #[test]
    fn orders_and_batches_take_turns_while_chips_wait() {
        let mut mailbox = Mailbox::default();
        for _ in 0..3 {
            mailbox.push(warm());
        }
        assert!(mailbox.next_command(5, |_| 0).is_some());
        assert!(mailbox.next_command(5, |_| 0).is_none(), "it is a batch's turn");
        mailbox.batch_taken();
        assert!(mailbox.next_command(5, |_| 0).is_some());
        assert!(mailbox.next_command(0, |_| 0).is_some(), "no chip waits");
        assert!(mailbox.next_command(0, |_| 0).is_none());
    }

    #[test]
    fn an_unload_waits_for_its_chips_and_what_has_begun_goes_first() {
        let mut mailbox = Mailbox::default();
        mailbox.push(unload());
        assert!(mailbox.next_command(2, |_| 1).is_none());
        mailbox.push(warm());
        assert!(matches!(mailbox.next_command(2, |_| 1), Some(WorkerCommand::Warm(_))));
        mailbox.batch_taken();
        assert!(matches!(mailbox.next_command(1, |_| 0), Some(WorkerCommand::Unload(_))));
    }
}
