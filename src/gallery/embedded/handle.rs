//! The shared handle of a gallery: async for callers, with a queue to the writer.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::batch::WriteBatch;
use super::gathering::Gathering;
use super::prepared::Prepared;
use super::quota;
use super::recovery::{Received, Recovery, receive};
use super::snapshot::Snapshot;
use super::writer::{GroupedOperation, Published, Writer};
use crate::budget::{Slot, Slots};
use crate::durable::caught;
use crate::embedding::{Embedding, ModelDigest};
use crate::gallery::entry::VesselId;
use crate::gallery::index::RowId;
use crate::gallery::store::{
    Enrolled, Enrolment, Field, Flip, Following, GalleryReader, GalleryStore, Info, Opening, Selector,
    ShadowTarget, StoreError, Update, Updated,
};
use crate::metrics;

/// Operations in one commit.
const GROUP_MAX: usize = 1024;
/// Between two looks at the queue, while a commit waits for operations.
const LOOK: Duration = Duration::from_micros(50);
/// Queue bytes charged for an operation in addition to its payload.
const OPERATION_BYTES: usize = 1 << 10;

/// Limits on what waits for the writer.
#[derive(Clone, Copy, Debug)]
pub struct QueueSettings {
    pub operations_max: usize,
    pub bytes_max: usize,
}

/// One open gallery.
pub struct EmbeddedGallery {
    published: Arc<Published>,
    /// `None` once the gallery is closed.
    queue: RwLock<Option<mpsc::Sender<Queued>>>,
    /// One slot for each byte.
    room: Slots,
    bytes_max: usize,
    deleted: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The model that it cannot move to, and why.
    stalled: Mutex<Option<(ModelDigest, String)>>,
}

struct Queued {
    command: WriterCommand,
    /// Its share of the queue.
    room: Slot,
}

enum WriterCommand {
    /// In a transaction that others share.
    Grouped(Box<dyn GroupedOperation>),
    /// Runs in a transaction of its own and answers its caller itself.
    Exclusive(Box<dyn FnOnce(&mut Writer) + Send>),
    /// What others have committed is taken in, unless it is there by then. Operations before and after it still share a
    /// transaction, which may bring it.
    Follow(Follower),
}

struct Follower {
    /// Whether a state lacks nothing.
    is_enough: Box<dyn Fn(&Snapshot) -> bool + Send>,
    answer: oneshot::Sender<Result<(), StoreError>>,
}

impl EmbeddedGallery {
    /// Runs `writer` on its own thread.
    pub(crate) fn start(writer: Writer, settings: QueueSettings) -> std::io::Result<Arc<Self>> {
        let published = writer.published().clone();
        let (sender, receiver) = mpsc::channel(settings.operations_max);
        let deleted = Arc::new(AtomicBool::new(false));
        let run = {
            let deleted = deleted.clone();
            move || run(writer, receiver, &deleted)
        };
        let thread = thread::Builder::new().name("gallery".into()).spawn(run)?;
        Ok(Arc::new(Self {
            published,
            queue: RwLock::new(Some(sender)),
            room: Slots::new(settings.bytes_max),
            bytes_max: settings.bytes_max,
            deleted,
            thread: Mutex::new(Some(thread)),
            stalled: Mutex::default(),
        }))
    }

    /// The committed state, with its files.
    pub(in crate::gallery) fn published(&self) -> Arc<Snapshot> {
        self.published.snapshot()
    }

    /// Takes in what other copies have committed, unless a state that `is_enough` has come by then.
    ///
    /// # Errors
    /// The truth cannot be reached, or the files cannot be written.
    pub(in crate::gallery) async fn follow(
        &self,
        is_enough: impl Fn(&Snapshot) -> bool + Send + 'static,
    ) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        let follower = Follower { is_enough: Box::new(is_enough), answer };
        self.send(0, WriterCommand::Follow(follower), answered).await
    }

    /// Finishes pending operations, closes the files and waits for that: not for async tasks.
    pub(crate) fn close(&self) {
        let sender = self.queue.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(sender);
        self.room.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the writer of a gallery panicked");
        }
    }

    /// Closes a gallery that is being deleted: pending operations are refused.
    pub(crate) fn abandon(&self) {
        self.deleted.store(true, Ordering::Relaxed);
        self.close();
    }

    async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        operation: impl FnOnce(&mut WriteBatch<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (operation, answered) = pending(operation);
        self.send(bytes, WriterCommand::Grouped(operation), answered).await
    }

    async fn alone<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Writer) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let command = move |writer: &mut Writer| {
            if !answer.is_closed() {
                // A caller that has left does not wait for the answer.
                let _ = answer.send(operation(writer));
            }
        };
        self.send(0, WriterCommand::Exclusive(Box::new(command)), answered).await
    }

    async fn send<T>(
        &self,
        bytes: usize,
        command: WriterCommand,
        answered: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let refused = || match self.published.failure() {
            Some(reason) => StoreError::ReadOnly { reason },
            None => StoreError::Closed,
        };
        if self.published.failure().is_some() {
            return Err(refused());
        }
        let weight = (bytes + OPERATION_BYTES).min(self.bytes_max);
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        let room = self.room.take_many(weight).await.map_err(|_| refused())?;
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner).clone();
        let queued = Queued { command, room };
        queue.ok_or(StoreError::Closed)?.send(queued).await.map_err(|_| refused())?;
        answered.await.unwrap_or_else(|_| Err(refused()))
    }
}

#[async_trait]
impl GalleryStore for EmbeddedGallery {
    async fn enrol(&self, enrolment: Enrolment) -> Result<Enrolled, StoreError> {
        let prepared = Prepared::new(&enrolment, self.published().about());
        drop(enrolment);
        self.run(prepared.bytes(), move |batch| batch.enrol(prepared)).await
    }

    async fn delete(&self, selector: Selector) -> Result<u64, StoreError> {
        self.run(0, move |batch| batch.delete(&selector)).await
    }

    async fn update(&self, updates: Vec<Update>, fields: Vec<Field>) -> Result<Updated, StoreError> {
        self.run(0, move |batch| batch.update(&updates, &fields)).await
    }

    async fn merge(&self, vessels: Vec<VesselId>, into: VesselId) -> Result<u64, StoreError> {
        self.run(0, move |batch| batch.merge(&vessels, &into)).await
    }

    async fn begin_shadow(&self, target: ShadowTarget) -> Result<(), StoreError> {
        self.alone(move |writer| writer.begin_shadow(target)).await
    }

    async fn drop_shadow(&self) -> Result<(), StoreError> {
        self.alone(Writer::drop_shadow).await
    }

    async fn fill_shadow(
        &self,
        model: ModelDigest,
        embeddings: Vec<(RowId, Embedding)>,
    ) -> Result<u64, StoreError> {
        let bytes = embeddings.iter().map(|(_, embedding)| 4 * embedding.dimension()).sum();
        self.run(bytes, move |batch| batch.fill_shadow(model, &embeddings)).await
    }

    async fn flip(&self, model: ModelDigest) -> Result<Flip, StoreError> {
        self.alone(move |writer| writer.flip(model)).await
    }

    fn stall(&self, reason: Option<(ModelDigest, String)>) {
        *self.stalled.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    fn file_bytes(&self) -> u64 {
        self.published.file_bytes()
    }

    fn is_held_up(&self, before: u64) -> bool {
        self.file_bytes() > before.max(quota::explained(self.published().stored_bytes()))
    }

    fn snapshot(&self) -> Arc<dyn GalleryReader> {
        self.published()
    }

    fn opening(&self) -> Opening {
        Opening::now(self.published.files())
    }

    fn info(&self) -> Info {
        let snapshot = self.published();
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (followed, stalled) = stalled.unzip();
        // A gallery may stall before it has a shadow.
        let followed = snapshot.about().shadow.map(|shadow| shadow.model).or(followed);
        let following = followed.map(|model| Following { model, embedded: snapshot.shadow_rows(), stalled });
        Info {
            following,
            about: snapshot.about().clone(),
            entries: snapshot.entries() as u64,
            vessels: snapshot.vessels() as u64,
            stored_bytes: snapshot.stored_bytes(),
            read_only: self.published.failure(),
        }
    }
}

impl fmt::Debug for EmbeddedGallery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmbeddedGallery").field(&self.published).finish()
    }
}

/// An operation as part of a group, and where its answer is sent.
pub fn pending<T: Send + 'static>(
    operation: impl FnOnce(&mut WriteBatch<'_>) -> Result<T, StoreError> + Send + 'static,
) -> (Box<dyn GroupedOperation>, oneshot::Receiver<Result<T, StoreError>>) {
    let (answer, answered) = oneshot::channel();
    (Box::new(Pending { operation: Some(operation), outcome: None, answer }), answered)
}

struct Pending<T, F> {
    operation: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnOnce(&mut WriteBatch<'_>) -> Result<T, StoreError> + Send> GroupedOperation
    for Pending<T, F>
{
    fn apply(&mut self, batch: &mut WriteBatch<'_>) -> Result<(), StoreError> {
        // If the caller left before its turn, the operation is skipped.
        let Some(operation) = self.operation.take().filter(|_| !self.answer.is_closed()) else {
            return Ok(());
        };
        match operation(batch) {
            Err(error) if !error.is_refusal() => Err(error),
            outcome => {
                self.outcome = Some(outcome);
                Ok(())
            }
        }
    }

    fn acknowledge(self: Box<Self>, fate: Result<(), StoreError>) {
        // A refusal may depend on other operations of the group, so it does not outlive a failed group.
        let Self { outcome, answer, .. } = *self;
        let outcome = fate.and_then(|()| outcome.unwrap_or(Err(StoreError::Closed)));
        // A caller that has left does not wait for the answer.
        let _ = answer.send(outcome);
    }
}

fn run(mut writer: Writer, mut queue: mpsc::Receiver<Queued>, deleted: &AtomicBool) {
    let mut next = None;
    let mut recovery = Recovery::default();
    let mut gathering = Gathering::default();
    loop {
        let received = match next.take() {
            Some(queued) => Received::Item(queued),
            None => receive(&mut queue, writer.awaits_room().then(|| recovery.wait())),
        };
        let Queued { command, room } = match received {
            Received::Item(queued) => queued,
            Received::End => break,
            Received::Nothing => {
                let Some(recovered) = recovery.attempt(writer, &mut queue) else { return };
                writer = recovered;
                continue;
            }
        };
        match command {
            WriterCommand::Exclusive(_) | WriterCommand::Follow(_) if deleted.load(Ordering::Relaxed) => {}
            WriterCommand::Exclusive(operation) => {
                if let Err(cause) = caught(|| operation(&mut writer)) {
                    writer.published().fail(&cause.to_string());
                }
            }
            WriterCommand::Follow(follower) => follow(&mut writer, follower),
            WriterCommand::Grouped(operation) => {
                wait_for(&queue, gathering.next());
                let (mut operations, mut rooms, mut followers) = (vec![operation], vec![room], vec![]);
                while operations.len() < GROUP_MAX
                    && next.is_none()
                    && let Ok(queued) = queue.try_recv()
                {
                    match queued {
                        Queued { command: WriterCommand::Grouped(operation), room } => {
                            operations.push(operation);
                            rooms.push(room);
                        }
                        Queued { command: WriterCommand::Follow(follower), room } => {
                            // One that lacks nothing does not wait for this commit.
                            if (follower.is_enough)(&writer.published().snapshot()) {
                                let _ = follower.answer.send(Ok(()));
                            } else {
                                followers.push(follower);
                                rooms.push(room);
                            }
                        }
                        exclusive => next = Some(exclusive),
                    }
                }
                let (size, started) = (operations.len(), Instant::now());
                commit(&mut writer, operations, deleted);
                gathering.learn(size, queue.len(), started.elapsed());
                if !deleted.load(Ordering::Relaxed) {
                    followers.into_iter().for_each(|follower| follow(&mut writer, follower));
                }
            }
        }
        writer.sweep();
    }
    if deleted.load(Ordering::Relaxed) { writer.abandon() } else { writer.close() }
}

fn follow(writer: &mut Writer, Follower { is_enough, answer }: Follower) {
    if answer.is_closed() {
        return;
    }
    let outcome = if is_enough(&writer.published().snapshot()) { Ok(()) } else { writer.follow() };
    // A caller that has left does not wait for the answer.
    let _ = answer.send(outcome);
}

/// Waits until the queue has the other `wanted` operations, or `wait` is over.
fn wait_for(queue: &mpsc::Receiver<Queued>, (wanted, wait): (usize, Duration)) {
    let (wanted, started) = (wanted.min(GROUP_MAX).saturating_sub(1), Instant::now());
    while queue.len() < wanted && !queue.is_closed() && started.elapsed() < wait {
        thread::sleep(LOOK.min(wait));
    }
}

fn commit(writer: &mut Writer, mut operations: Vec<Box<dyn GroupedOperation>>, deleted: &AtomicBool) {
    let started = Instant::now();
    let fate = if deleted.load(Ordering::Relaxed) {
        Err(StoreError::Closed)
    } else {
        writer.commit(&mut operations)
    };
    if fate.is_ok() {
        metrics::committed(operations.len(), started.elapsed());
    }
    for operation in operations {
        operation.acknowledge(fate.clone());
    }
}

#[cfg(test)]
mod tests;
