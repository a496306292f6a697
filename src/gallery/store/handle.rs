//! The handle of a gallery that callers share: async towards them, a queue towards its writer.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::batch::Batch;
use super::error::StoreError;
use super::operation::{Enrolled, Enrolment, Field, Selector, Update, Updated};
use super::schema::About;
use super::snapshot::Snapshot;
use super::writer::{Job, Published, Writer};
use crate::gallery::entry::VesselId;

/// Operations in one commit.
const GROUP_MAX: usize = 1024;
/// What an operation weighs beside what it carries.
const OPERATION_BYTES: usize = 1 << 10;

/// Bounds on what waits for the writer.
#[derive(Clone, Copy, Debug)]
pub struct QueueSettings {
    pub operations_max: usize,
    pub bytes_max: usize,
}

/// One open gallery. Cloning it is cheap.
#[derive(Clone)]
pub struct Gallery(Arc<Shared>);

struct Shared {
    published: Arc<Published>,
    /// Absent once the gallery is closed.
    queue: RwLock<Option<mpsc::Sender<Queued>>>,
    room: Arc<Semaphore>,
    bytes_max: usize,
    deleted: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Queued {
    job: Box<dyn Job>,
    /// Its room in the queue.
    _room: OwnedSemaphorePermit,
}

/// What is known of a gallery as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    pub about: About,
    pub entries: u64,
    pub vessels: u64,
    /// Bytes of entries, embeddings and kept chips. The files are larger.
    pub stored_bytes: u64,
    /// Why it refuses writes, if it does.
    pub read_only: Option<String>,
}

impl Gallery {
    /// Gives `writer` a thread of its own.
    pub(crate) fn start(writer: Writer, settings: QueueSettings) -> std::io::Result<Self> {
        let published = writer.published().clone();
        let (sender, receiver) = mpsc::channel(settings.operations_max);
        let deleted = Arc::new(AtomicBool::new(false));
        let run = {
            let deleted = deleted.clone();
            move || run(writer, receiver, &deleted)
        };
        let thread = thread::Builder::new().name("gallery".into()).spawn(run)?;
        Ok(Self(Arc::new(Shared {
            published,
            queue: RwLock::new(Some(sender)),
            room: Arc::new(Semaphore::new(settings.bytes_max)),
            bytes_max: settings.bytes_max,
            deleted,
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// Keeps a sighting. Once this returns, it survives a power failure, and every later snapshot has it.
    ///
    /// # Errors
    /// It was refused, or the gallery takes no writes.
    pub async fn enrol(&self, enrolment: Enrolment) -> Result<Enrolled, StoreError> {
        let chip = enrolment.chip.as_ref().map_or(0, |chip| chip.image.len());
        let bytes = chip + 4 * enrolment.embedding.dimension();
        self.run(bytes, move |batch| batch.enrol(&enrolment)).await
    }

    /// Deletes entries with their embeddings and chips, and says how many there were. Final once this returns.
    ///
    /// # Errors
    /// The gallery takes no writes.
    pub async fn delete(&self, selector: Selector) -> Result<u64, StoreError> {
        self.run(0, move |batch| batch.delete(&selector)).await
    }

    /// Writes `fields` of what is known of entries, all of them or none. Embeddings, chips and content stay.
    ///
    /// # Errors
    /// It was refused, or the gallery takes no writes.
    pub async fn update(&self, updates: Vec<Update>, fields: Vec<Field>) -> Result<Updated, StoreError> {
        self.run(0, move |batch| batch.update(&updates, &fields)).await
    }

    /// Gives the entries of `vessels` to one vessel, and says how many moved.
    ///
    /// # Errors
    /// It was refused, or the gallery takes no writes.
    pub async fn merge(&self, vessels: Vec<VesselId>, into: VesselId) -> Result<u64, StoreError> {
        self.run(0, move |batch| batch.merge(&vessels, &into)).await
    }

    /// What is committed now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.published.snapshot()
    }

    pub fn info(&self) -> Info {
        let snapshot = self.snapshot();
        Info {
            about: snapshot.about().clone(),
            entries: snapshot.index().len() as u64,
            vessels: snapshot.index().vessels() as u64,
            stored_bytes: snapshot.stored_bytes(),
            read_only: self.0.published.failure().map(str::to_owned),
        }
    }

    /// Finishes what waits, closes the files and waits for that: not for async tasks.
    pub(crate) fn close(&self) {
        let sender = self.0.queue.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(sender);
        self.0.room.close();
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the writer of a gallery panicked");
        }
    }

    /// Closes a gallery that is being deleted: what waits is refused.
    pub(crate) fn abandon(&self) {
        self.0.deleted.store(true, Ordering::Relaxed);
        self.close();
    }

    async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        operation: impl FnOnce(&mut Batch<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = &self.0;
        let refused = || match shared.published.failure() {
            Some(reason) => StoreError::ReadOnly { reason: reason.to_owned() },
            None => StoreError::Closed,
        };
        if shared.published.failure().is_some() {
            return Err(refused());
        }
        let weight = (bytes + OPERATION_BYTES).min(shared.bytes_max);
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        let room = shared.room.clone().acquire_many_owned(weight).await.map_err(|_| refused())?;
        let queue = shared.queue.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (answer, answered) = oneshot::channel();
        let job = Box::new(Pending { operation: Some(operation), outcome: None, answer });
        let queued = Queued { job, _room: room };
        queue.ok_or(StoreError::Closed)?.send(queued).await.map_err(|_| refused())?;
        answered.await.unwrap_or_else(|_| Err(refused()))
    }
}

impl fmt::Debug for Gallery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gallery").field(&self.0.published).finish()
    }
}

/// An operation whose caller waits.
struct Pending<T, F> {
    operation: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnOnce(&mut Batch<'_>) -> Result<T, StoreError> + Send> Job for Pending<T, F> {
    fn apply(&mut self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        let Some(operation) = self.operation.take() else { return Ok(()) };
        match operation(batch) {
            Err(error) if !error.is_refusal() => Err(error),
            outcome => {
                self.outcome = Some(outcome);
                Ok(())
            }
        }
    }

    fn acknowledge(self: Box<Self>, fate: Result<(), StoreError>) {
        // A refusal may rest on what others of the group did, so it does not outlive a group that failed.
        let Self { outcome, answer, .. } = *self;
        let outcome = fate.and_then(|()| outcome.unwrap_or(Err(StoreError::Closed)));
        // Whoever left does not wait for the answer.
        let _ = answer.send(outcome);
    }
}

/// Says so when the writer panics, whoever waits.
struct Watch(Arc<Published>);

impl Drop for Watch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail("its writer panicked");
        }
    }
}

fn run(mut writer: Writer, mut queue: mpsc::Receiver<Queued>, deleted: &AtomicBool) {
    let _watch = Watch(writer.published().clone());
    while let Some(first) = queue.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP_MAX {
            let Ok(next) = queue.try_recv() else { break };
            group.push(next);
        }
        let (mut jobs, rooms): (Vec<_>, Vec<_>) =
            group.into_iter().map(|queued| (queued.job, queued._room)).unzip();
        let fate =
            if deleted.load(Ordering::Relaxed) { Err(StoreError::Closed) } else { writer.commit(&mut jobs) };
        for job in jobs {
            job.acknowledge(fate.clone());
        }
        drop(rooms);
        writer.sweep();
    }
    if deleted.load(Ordering::Relaxed) { writer.abandon() } else { writer.close() }
}
