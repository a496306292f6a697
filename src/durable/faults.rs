//! An in-memory disk that loses, tears and refuses writes, driven by a seed.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use redb::StorageBackend;

use super::volume::Volume;

/// Files as a process sees them, and what a power failure leaves of them. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct FaultyDisk(Arc<Mutex<State>>);

/// How long a failure lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// One operation fails, later ones do not.
    Passing,
    /// All later operations fail as well.
    Lasting,
    /// The same, except that what was written can still be synced.
    NoRoom,
}

#[derive(Debug)]
struct State {
    random: ChaCha8Rng,
    files: BTreeMap<String, FaultyFile>,
    /// Operations until the first failure.
    planned: Option<(usize, Failure)>,
    /// Operations that have failed as planned.
    refused: usize,
    power: Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    /// Every write fails, as for a dead process: none of it reaches the file.
    Off,
}

#[derive(Debug, Default)]
struct FaultyFile {
    /// What readers see.
    cache: Vec<u8>,
    /// What is durable.
    disk: Vec<u8>,
    /// Not durable yet; the next sync makes it so.
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Resize(usize),
}

impl FaultyDisk {
    pub fn new(seed: u64) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self(Arc::new(Mutex::new(State {
            random,
            files: BTreeMap::new(),
            planned: None,
            refused: 0,
            power: Power::On,
        })))
    }

    /// Makes the operation after the next `operations` fail. Writes, resizes and syncs count.
    pub fn fail_after(&self, operations: usize, failure: Failure) {
        self.state().planned = Some((operations, failure));
    }

    /// Operations that have failed as planned.
    pub fn refused(&self) -> usize {
        self.state().refused
    }

    /// Stops all failures.
    pub fn recover(&self) {
        self.state().planned = None;
    }

    /// From now on the process is dead: further operations have no effect.
    pub fn cut(&self) {
        self.state().power = Power::Off;
    }

    /// The machine restarts after a power failure: any part of what was not synced may survive.
    pub fn restart_machine(&self) {
        let state = &mut *self.state();
        let keep = [0.0, 0.5, 1.0, state.random.random_range(0.0..1.0)][state.random.random_range(0..4)];
        for file in state.files.values_mut() {
            file.settle(&mut state.random, keep);
            file.cache.clone_from(&file.disk);
        }
        (state.power, state.planned) = (Power::On, None);
    }

    /// The process restarts; the system still has what the dead process wrote.
    pub fn restart_process(&self) {
        let state = &mut *self.state();
        (state.power, state.planned) = (Power::On, None);
    }

    /// The file as a reader sees it.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.state().files.get(name).map(|file| file.cache.clone())
    }

    /// Stores `bytes` durably.
    pub fn set_bytes(&self, name: &str, bytes: Vec<u8>) {
        let file = FaultyFile { cache: bytes.clone(), disk: bytes, pending: vec![] };
        self.state().files.insert(name.to_owned(), file);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backend(&self, name: &str) -> Box<dyn StorageBackend> {
        Box::new(Backend { disk: self.clone(), name: name.to_owned() })
    }
}

/// Also used by the tests that torture a whole server.
#[path = "../../tests/it/torture/tally.rs"]
pub mod tally;

/// Changes one byte that carries meaning, which most bytes of an almost empty database do not, and returns which.
pub fn flip(path: &std::path::Path, random: &mut ChaCha8Rng) -> String {
    let mut bytes = std::fs::read(path).expect("readable");
    let places: Vec<usize> = (0..bytes.len()).filter(|place| bytes[*place] != 0).collect();
    let place = places[random.random_range(0..places.len())];
    let before = bytes[place];
    bytes[place] ^= random.random_range(1..=u8::MAX);
    std::fs::write(path, &bytes).expect("writable");
    format!("byte {place} of {} became {:#x}, not {before:#x}", path.display(), bytes[place])
}

impl State {
    /// Whether the next operation succeeds.
    fn attempt(&mut self) -> io::Result<()> {
        if self.power == Power::Off {
            return Err(io::Error::other("the process is dead"));
        }
        match &mut self.planned {
            None => Ok(()),
            Some((left, _)) if *left > 0 => {
                *left -= 1;
                Ok(())
            }
            Some((_, failure)) => {
                self.refused += 1;
                if *failure == Failure::Passing {
                    self.planned = None;
                }
                Err(io::ErrorKind::StorageFull.into())
            }
        }
    }

    fn file(&mut self, name: &str) -> io::Result<(&mut FaultyFile, &mut ChaCha8Rng)> {
        let file = self.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        Ok((file, &mut self.random))
    }
}

impl FaultyFile {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.cache);
        self.pending.push(change);
    }

    /// Brings each pending change to the disk wholly with probability `keep`, else partly or not at all. The rest is
    /// lost.
    fn settle(&mut self, random: &mut ChaCha8Rng, keep: f64) {
        for change in std::mem::take(&mut self.pending) {
            if random.random_bool(keep) {
                change.apply(&mut self.disk);
            } else if random.random_bool(0.2) {
                change.torn(random).apply(&mut self.disk);
            }
        }
    }
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Resize(len) => file.resize(*len, 0),
            Self::Write { offset, bytes } => {
                file.resize(file.len().max(offset + bytes.len()), 0);
                file[*offset..][..bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    /// Some bytes in the middle of it.
    fn torn(self, random: &mut ChaCha8Rng) -> Self {
        match self {
            Self::Write { offset, bytes } if !bytes.is_empty() => {
                let start = random.random_range(0..bytes.len());
                let end = random.random_range(start..=bytes.len());
                Self::Write { offset: offset + start, bytes: bytes[start..end].to_vec() }
            }
            whole => whole,
        }
    }
}

impl Volume for FaultyDisk {
    fn create(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let state = &mut *self.state();
        if state.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.files.insert(name.to_owned(), FaultyFile::default());
        Ok(self.backend(name))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        self.state().file(name)?;
        Ok(self.backend(name))
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        self.backend(name).sync_data()?;
        let state = &mut *self.state();
        let (file, _) = state.file(name)?;
        file.cache.clone_from(&file.disk);
        Ok(())
    }

    fn reserve(&self, _: u64) -> io::Result<()> {
        self.state().attempt()
    }

    fn read(&self, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        Ok(self.bytes(name).map(|bytes| Box::new(Cursor::new(bytes)) as Box<dyn Read>))
    }

    fn replace(
        &self,
        name: &str,
        content: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        content(&mut bytes)?;
        self.state().attempt()?;
        self.set_bytes(name, bytes);
        Ok(())
    }
}

#[derive(Debug)]
struct Backend {
    disk: FaultyDisk,
    name: String,
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().file(&self.name)?.0.cache.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let (file, _) = state.file(&self.name)?;
        let there = file.cache.get(offset as usize..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.attempt()?;
        state.file(&self.name)?.0.change(Change::Resize(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let attempt = match state.planned {
            Some((0, Failure::NoRoom)) if state.power == Power::On => Ok(()),
            _ => state.attempt(),
        };
        if attempt.is_err() && state.power == Power::Off {
            return attempt;
        }
        let (file, random) = state.file(&self.name)?;
        // After a failed sync, the system regards pages as clean that it could not write; the next sync does not retry
        // them.
        file.settle(random, if attempt.is_ok() { 1.0 } else { 0.5 });
        attempt
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let attempt = state.attempt();
        if attempt.is_err() && state.power == Power::Off {
            return attempt;
        }
        let (file, random) = state.file(&self.name)?;
        let change = Change::Write { offset: offset as usize, bytes: data.to_vec() };
        file.change(if attempt.is_ok() { change } else { change.torn(random) });
        attempt
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NAME: &str = "x.redb";

    fn disk_with(seed: u64, bytes: &[u8]) -> (FaultyDisk, Box<dyn StorageBackend>) {
        let disk = FaultyDisk::new(seed);
        let file = disk.create(NAME).expect("new");
        file.set_len(bytes.len() as u64).expect("no failure is planned");
        file.write(0, bytes).expect("no failure is planned");
        file.sync_data().expect("no failure is planned");
        (disk, file)
    }

    #[test]
    fn what_is_synced_survives_and_what_is_not_may_be_torn() {
        let mut seen = BTreeSet::new();
        for seed in 0..50 {
            let (disk, file) = disk_with(seed, b"aaaa");
            file.write(0, b"bbbb").expect("no failure is planned");
            disk.cut();
            assert!(file.write(0, b"cccc").is_err());
            disk.restart_machine();
            seen.insert(disk.bytes(NAME).expect("there"));
        }
        assert!(seen.contains(b"aaaa".as_slice()) && seen.contains(b"bbbb".as_slice()), "{seen:?}");
        assert!(seen.len() > 2 && seen.iter().flatten().all(|byte| b"ab".contains(byte)), "{seen:?}");
    }

    #[test]
    fn a_sync_that_failed_is_not_made_up_for() {
        let (disk, file) = disk_with(1, b"aaaaaaaa");
        (0..8).for_each(|at| file.write(at, b"b").expect("no failure is planned"));
        disk.fail_after(0, Failure::Passing);
        assert!(file.sync_data().is_err());
        file.sync_data().expect("the failure has passed");
        assert_eq!(disk.bytes(NAME).expect("there"), b"bbbbbbbb");
        disk.forget(NAME).expect("the failure has passed");
        assert_ne!(disk.bytes(NAME).expect("there"), b"bbbbbbbb");
    }
}
