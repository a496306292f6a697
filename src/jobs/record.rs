//! Jobs and events as they are stored: a message followed by a checksum over it and over its key, so that a different
//! message or one stored under another key is not mistaken for it. Fields are only ever added; their numbers are never
//! reused.

use prost::Message;

use super::event::{EventPayload, JobEvent};
use super::failure::Failure;
use super::job::{Job, JobId, JobKey, JobSpec};
use super::report::{DeliveredCheckpoint, Progress, RunEvent, Start};
use super::state::JobState;
use crate::embedding::ModelDigest;
use crate::evaluate::Evaluation;
use crate::gallery::{GalleryName, Time};
use crate::reason::FailureReason;

/// The stored bytes are not in this program's format.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    Malformed(#[from] prost::DecodeError),
    #[error("a record has no usable {0}")]
    Unusable(&'static str),
    #[error("its checksum is another one")]
    Checksum,
}

/// What a checksum covers in addition to the message. No two keys give the same bytes.
fn address(kind: u8, tenant: &str, numbers: &[u64]) -> Vec<u8> {
    let numbers = numbers.iter().flat_map(|number| number.to_le_bytes());
    [kind].into_iter().chain(numbers).chain(tenant.bytes()).collect()
}

fn address_of_job(key: &JobKey) -> Vec<u8> {
    address(b'j', &key.tenant, &[key.id.number()])
}

fn address_of_event(key: &JobKey, number: u64) -> Vec<u8> {
    address(b'e', &key.tenant, &[key.id.number(), number])
}

fn checksum(address: &[u8], message: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(address);
    hasher.update(message);
    hasher.finalize().to_le_bytes()
}

fn seal(address: &[u8], mut message: Vec<u8>) -> Vec<u8> {
    let checksum = checksum(address, &message);
    message.extend(checksum);
    message
}

fn unseal<'a>(address: &[u8], bytes: &'a [u8]) -> Result<&'a [u8], RecordError> {
    let (message, found) = bytes.split_last_chunk::<4>().ok_or(RecordError::Checksum)?;
    if *found == checksum(address, message) { Ok(message) } else { Err(RecordError::Checksum) }
}

pub fn job_to_bytes(job: &Job) -> Vec<u8> {
    seal(&address_of_job(&job.key), JobRecord::from(job).encode_to_vec())
}

/// # Errors
/// The bytes are not a job, or not what was stored under this key.
pub fn job_from_bytes(key: &JobKey, bytes: &[u8]) -> Result<Job, RecordError> {
    JobRecord::decode(unseal(&address_of_job(key), bytes)?)?.into_job(key)
}

pub fn event_to_bytes(
    key: &JobKey,
    number: u64,
    (attempt, payload): &(u32, EventPayload),
    occurred_at: Time,
) -> Vec<u8> {
    let (state, run) = match payload {
        EventPayload::State(job) => (Some(JobRecord::from(&**job)), None),
        EventPayload::Run(event) => (None, Some(event.clone())),
    };
    let record = EventRecord { attempt: *attempt, occurred_at: occurred_at.nanos(), state, run };
    seal(&address_of_event(key, number), record.encode_to_vec())
}

/// # Errors
/// The bytes are not an event, or not what was stored under this key and number.
pub fn event_from_bytes(key: &JobKey, number: u64, bytes: &[u8]) -> Result<JobEvent, RecordError> {
    let message = unseal(&address_of_event(key, number), bytes)?;
    let EventRecord { attempt, occurred_at, state, run } = EventRecord::decode(message)?;
    let payload = match (state, run) {
        (Some(job), None) => EventPayload::State(Box::new(job.into_job(key)?)),
        (None, Some(event)) => EventPayload::Run(event),
        (None, None) | (Some(_), Some(_)) => return Err(RecordError::Unusable("event")),
    };
    Ok(JobEvent { number, attempt, occurred_at: Time::from_nanos(occurred_at), payload })
}

/// A job of schema version 1, which has no checksum, with one added; `None` if it is already damaged.
pub fn sealed_job(key: &JobKey, bytes: &[u8]) -> Option<Vec<u8>> {
    JobRecord::decode(bytes).ok()?.into_job(key).ok()?;
    Some(seal(&address_of_job(key), bytes.to_vec()))
}

/// An event of schema version 1, likewise.
pub fn sealed_event(key: &JobKey, number: u64, bytes: &[u8]) -> Option<Vec<u8>> {
    let record = EventRecord::decode(bytes).ok()?;
    record.state.map(drop).or(record.run.map(drop))?;
    Some(seal(&address_of_event(key, number), bytes.to_vec()))
}

/// The record of a deleted job.
pub fn deletion_to_bytes(id: JobId) -> [u8; 4] {
    checksum(&address(b'd', "", &[id.number()]), &[])
}

#[derive(Clone, PartialEq, Message)]
struct JobRecord {
    #[prost(string, tag = "1")]
    config_toml: String,
    #[prost(string, optional, tag = "2")]
    gallery: Option<String>,
    #[prost(string, tag = "3")]
    display_name: String,
    #[prost(string, optional, tag = "4")]
    request_id: Option<String>,
    #[prost(enumeration = "StateRecord", tag = "5")]
    state: i32,
    #[prost(string, tag = "6")]
    failure_reason: String,
    #[prost(string, tag = "7")]
    failure_message: String,
    #[prost(bytes = "vec", tag = "8")]
    model: Vec<u8>,
    #[prost(uint32, tag = "9")]
    attempt: u32,
    #[prost(uint32, tag = "10")]
    fruitless: u32,
    #[prost(uint64, tag = "11")]
    saved_steps: u64,
    #[prost(sfixed64, tag = "12")]
    created_at: i64,
    #[prost(sfixed64, optional, tag = "13")]
    started_at: Option<i64>,
    #[prost(sfixed64, optional, tag = "14")]
    ended_at: Option<i64>,
    #[prost(message, optional, tag = "15")]
    progress: Option<Progress>,
    #[prost(message, repeated, tag = "16")]
    evaluations: Vec<Evaluation>,
    #[prost(uint64, tag = "17")]
    last_event: u64,
    #[prost(message, optional, tag = "18")]
    start: Option<Start>,
    #[prost(message, optional, tag = "19")]
    delivered: Option<DeliveredCheckpoint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum StateRecord {
    Unknown = 0,
    Queued = 1,
    Running = 2,
    Cancelling = 3,
    Cancelled = 4,
    Failed = 5,
    Finished = 6,
    Interrupted = 7,
}

#[derive(Clone, PartialEq, Message)]
struct EventRecord {
    #[prost(uint32, tag = "1")]
    attempt: u32,
    #[prost(sfixed64, tag = "2")]
    occurred_at: i64,
    /// Present where `run` is absent.
    #[prost(message, optional, tag = "3")]
    state: Option<JobRecord>,
    #[prost(oneof = "RunEvent", tags = "4, 5, 6, 7, 8, 9, 10")]
    run: Option<RunEvent>,
}

impl From<&Job> for JobRecord {
    fn from(job: &Job) -> Self {
        let JobSpec { config_toml, gallery, display_name, request_id } = job.order.clone();
        let mut record = Self {
            config_toml,
            gallery: gallery.map(|name| name.to_string()),
            display_name,
            request_id,
            attempt: job.attempt,
            fruitless: job.fruitless,
            saved_steps: job.saved_steps,
            created_at: job.created_at.nanos(),
            started_at: job.started_at.map(Time::nanos),
            ended_at: job.ended_at.map(Time::nanos),
            progress: job.progress.clone(),
            evaluations: job.evaluations.clone(),
            last_event: job.last_event,
            start: job.start.clone(),
            delivered: job.delivered.clone(),
            ..Self::default()
        };
        let state = match &job.state {
            JobState::Queued => StateRecord::Queued,
            JobState::Running => StateRecord::Running,
            JobState::Cancelling => StateRecord::Cancelling,
            JobState::Cancelled => StateRecord::Cancelled,
            JobState::Failed(Failure { reason, message }) => {
                record.failure_reason = reason.name().to_owned();
                record.failure_message = message.clone();
                StateRecord::Failed
            }
            JobState::Finished { model } => {
                record.model = model.as_bytes().to_vec();
                StateRecord::Finished
            }
            JobState::Interrupted => StateRecord::Interrupted,
        };
        record.set_state(state);
        record
    }
}

impl JobRecord {
    fn into_job(self, key: &JobKey) -> Result<Job, RecordError> {
        let state = match self.state() {
            StateRecord::Unknown => return Err(RecordError::Unusable("state")),
            StateRecord::Queued => JobState::Queued,
            StateRecord::Running => JobState::Running,
            StateRecord::Cancelling => JobState::Cancelling,
            StateRecord::Cancelled => JobState::Cancelled,
            StateRecord::Failed => {
                let reason =
                    FailureReason::named(&self.failure_reason).ok_or(RecordError::Unusable("reason"))?;
                JobState::Failed(Failure { reason, message: self.failure_message })
            }
            StateRecord::Finished => {
                let model = self.model.try_into().map_err(|_| RecordError::Unusable("model"))?;
                JobState::Finished { model: ModelDigest::new(model) }
            }
            StateRecord::Interrupted => JobState::Interrupted,
        };
        let gallery = self.gallery.as_deref().map(GalleryName::new).transpose();
        let gallery = gallery.map_err(|_| RecordError::Unusable("gallery"))?;
        Ok(Job {
            key: key.clone(),
            order: JobSpec {
                config_toml: self.config_toml,
                gallery,
                display_name: self.display_name,
                request_id: self.request_id,
            },
            state,
            attempt: self.attempt,
            fruitless: self.fruitless,
            saved_steps: self.saved_steps,
            created_at: Time::from_nanos(self.created_at),
            started_at: self.started_at.map(Time::from_nanos),
            ended_at: self.ended_at.map(Time::from_nanos),
            progress: self.progress,
            evaluations: self.evaluations,
            last_event: self.last_event,
            start: self.start,
            delivered: self.delivered,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{Rankings, SavedCheckpoint, TensorShape, UntakenTensor};
    use super::*;

    #[test]
    fn a_job_in_any_state_and_every_event_is_read_as_it_was_stored() {
        let key = JobKey { tenant: "default".into(), id: JobId::new(7) };
        let order = JobSpec {
            config_toml: "seed = 1".into(),
            gallery: Some(GalleryName::new("harbour").expect("a name")),
            display_name: "first".into(),
            request_id: Some("r".into()),
        };
        let progress = Progress { step: 3, losses: [("total".into(), 0.1)].into(), ..Progress::default() };
        let evaluation =
            Evaluation { protocol: "all".into(), mean_average_precision: 0.3, ..Evaluation::default() };
        let shape = TensorShape { lengths: vec![2, 3] };
        let tensor = UntakenTensor { name: "fc.bias".into(), found: Some(shape), ..UntakenTensor::default() };
        let kept = vec!["classifier.weight".to_owned()];
        let start = Start { tensors_taken: 7, untaken: vec![tensor], kept, ..Start::default() };
        let delivered = DeliveredCheckpoint { epoch: 2, step: 3, best_by: Some(evaluation.clone()) };
        let full = Job {
            started_at: Some(Time::from_nanos(-3)),
            ended_at: Some(Time::from_nanos(4)),
            progress: Some(progress.clone()),
            evaluations: vec![evaluation.clone()],
            saved_steps: 2,
            fruitless: 1,
            last_event: 9,
            start: Some(start.clone()),
            delivered: Some(delivered.clone()),
            ..Job::new(key.clone(), order, Time::from_nanos(1))
        };
        for state in [
            JobState::Queued,
            JobState::Running,
            JobState::Cancelling,
            JobState::Cancelled,
            JobState::Failed(Failure::new(FailureReason::Hung, "silent")),
            JobState::Finished { model: ModelDigest::new([3; 32]) },
            JobState::Interrupted,
        ] {
            let job = Job { state, ..full.clone() };
            let bytes = job_to_bytes(&job);
            assert_eq!(job_from_bytes(&key, &bytes).expect("a job"), job);
            let other = JobKey { id: JobId::new(8), ..key.clone() };
            assert!(job_from_bytes(&other, &bytes).is_err(), "it is another one's");
            for place in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[place] ^= 1 << (place % 8);
                assert!(job_from_bytes(&key, &flipped).is_err(), "byte {place}");
            }
            let reported = [
                RunEvent::Progress(progress.clone()),
                RunEvent::Evaluated(evaluation.clone()),
                RunEvent::Rankings(Rankings { epoch: 3, png: vec![0, 255] }),
                RunEvent::Saved(SavedCheckpoint { step: 2, best: true }),
                RunEvent::Started(start.clone()),
                RunEvent::Delivered(delivered.clone()),
                RunEvent::Log("a line".into()),
            ];
            let reported = reported.into_iter().map(EventPayload::Run);
            for payload in [EventPayload::State(Box::new(job))].into_iter().chain(reported) {
                let bytes = event_to_bytes(&key, 5, &(2, payload.clone()), Time::from_nanos(8));
                assert!(event_from_bytes(&key, 6, &bytes).is_err(), "it is another one's");
                let event = JobEvent { number: 5, attempt: 2, occurred_at: Time::from_nanos(8), payload };
                assert_eq!(event_from_bytes(&key, 5, &bytes).expect("an event"), event);
            }
        }
        // A record of a release that did not know the last two fields.
        let earlier = JobRecord { start: None, delivered: None, ..JobRecord::from(&full) };
        let bytes = seal(&address_of_job(&key), earlier.encode_to_vec());
        let read = job_from_bytes(&key, &bytes).expect("a job");
        assert_eq!(read, Job { start: None, delivered: None, ..full });
        assert!(job_from_bytes(&key, &[]).is_err());
        assert!(event_from_bytes(&key, 1, &[]).is_err());
    }
}
