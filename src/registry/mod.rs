//! The models of a server on disk, and the record of which one serves. Where servers share models, the folder has copies of
//! those in the database, and the database has the record.
//!
//! The folder contains `<digest>/` with a model in the native format, its `Provenance` and its calibrator if it has one,
//! `active.toml`, and `incoming/` for models that are being received. This code blocks and uses no libtorch tensors; `Activator`
//! connects it to the models in memory, and `ReEmbedder` moves galleries from one active model to the next.

mod activation;
mod active;
mod calibrator;
mod copies;
mod error;
mod following;
mod incoming;
mod preset;
mod provenance;
mod reembedding;
mod shared;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use activation::{Activation, ActivationError, Activator, ModelLoader};
pub use active::ActiveModel;
pub use calibrator::{CALIBRATOR, calibrator_beside, calibrator_file};
pub use error::RegistryError;
pub use following::follow;
pub use incoming::Incoming;
pub use preset::Preset;
pub use provenance::{PROVENANCE, Provenance, ProvenanceError};
pub use reembedding::ReEmbedder;
pub use stored::{Condition, Facts, StoredModel, files_of};

use incoming::Receiving;
use provenance::PROVENANCE_BYTES_MAX;
use shared::SharedModels;
use stored::{inspect, read_provenance, relative};

use crate::cancellation::Cancellation;
use crate::durable::{DirectoryLock, discard_folder, remove_partial, write_folder};
use crate::embedding::ModelDigest;
use crate::matching::Calibrator;
use crate::metrics;
use crate::postgres::Fence;
use crate::weights::any::{AnyDescription, AnyModel};
use crate::weights::coded::Quantized;
use crate::weights::open::{Hints, OpenError};
use crate::weights::packed::{self, Part};
use crate::weights::quantize::{self, SourceError};

/// Limits of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistryLimits {
    pub count_max: usize,
    /// Bytes on disk of all models together, including those that are being received.
    pub bytes_max: u64,
}

/// Whether a model was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    New,
    /// It already existed, and keeps its provenance.
    Known,
}

/// A model that was received.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    pub model: StoredModel,
    pub added: Added,
    /// Tensors of its file that are not kept, since serving does not read them.
    pub dropped: Vec<String>,
}

/// What is kept with a model, and is no part of its identity.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'k> {
    pub provenance: &'k Provenance,
    pub calibrator: Option<&'k Calibrator>,
}

impl<'k> From<&'k Provenance> for Kept<'k> {
    fn from(provenance: &'k Provenance) -> Self {
        Self { provenance, calibrator: None }
    }
}

/// The models of one folder, which no other process uses meanwhile.
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    /// `None` once the registry is closed.
    lock: Mutex<Option<DirectoryLock>>,
    limits: RegistryLimits,
    catalog: Mutex<Catalog>,
    /// Why the record of the active model could not be read at the start, if so.
    active_damage: Option<String>,
    /// Held while the content of the disk is changed; readers do not wait for it.
    writing: Mutex<()>,
    receiving: Receiving,
    /// Where servers share models.
    shared: Option<SharedModels>,
}

#[derive(Debug)]
struct Catalog {
    models: BTreeMap<ModelDigest, StoredModel>,
    active: Option<ActiveModel>,
}

/// The files of a model, ready to be sent.
#[derive(Debug)]
pub struct Export {
    parts: Vec<Part>,
}

impl Registry {
    /// Opens the registry in `folder`, creating it if needed, and removes what killed writers have left. A damaged
    /// model is kept, and refused when it is asked for. A damaged record of the active model is kept as well: no model
    /// is active then.
    ///
    /// # Errors
    /// The folder cannot be used, or another process uses it.
    pub fn open(folder: &Path, limits: RegistryLimits) -> Result<Self, RegistryError> {
        fs::create_dir_all(folder).map_err(at(folder))?;
        let lock = DirectoryLock::acquire(folder)?;
        remove_partial(folder).map_err(at(folder))?;
        incoming::clear(folder)?;
        let mut models = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(at(folder))? {
            let path = entry.map_err(at(folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Ok(digest) = name.parse() else { continue };
            let model = inspect(folder, digest);
            if let Condition::Damaged(reason) = &model.condition {
                tracing::error!(model = %digest, reason, "a model on disk is damaged");
            }
            models.insert(digest, model);
        }
        let (active, active_damage) = match active::read(folder) {
            Ok(active) => (active, None),
            Err(cause) => (None, Some(cause)),
        };
        let registry = Self {
            folder: folder.to_owned(),
            lock: Mutex::new(Some(lock)),
            limits,
            catalog: Mutex::new(Catalog { models, active }),
            active_damage,
            writing: Mutex::default(),
            receiving: Receiving::new(limits.bytes_max),
            shared: None,
        };
        registry.tell(&registry.catalog());
        Ok(registry)
    }

    /// Adds a model as a whole or not at all, even after a power failure. An existing one is left as it is, unless it
    /// is damaged.
    ///
    /// # Errors
    /// The calibrator belongs to another model, a limit would be exceeded, or it cannot be written.
    pub fn add<'k>(&self, model: &AnyModel, kept: impl Into<Kept<'k>>) -> Result<Added, RegistryError> {
        let _writing = self.writing();
        self.add_alone(model, kept.into(), None)
    }

    /// Adds the model in a folder as training has left it: in the native format, with its provenance and perhaps a
    /// calibrator. `fence` is the right to do so, where servers share jobs.
    ///
    /// # Errors
    /// The folder does not contain the model, or a calibrator of another, a limit would be exceeded, the job is held no
    /// longer, or the model cannot be written.
    pub fn adopt(&self, folder: &Path, fence: Option<Fence>) -> Result<(ModelDigest, Added), RegistryError> {
        let _writing = self.writing();
        let no_model = |cause: &dyn fmt::Display| RegistryError::NoModel(relative(folder, cause));
        let model = AnyModel::open(folder, &Hints::default()).map_err(|cause| no_model(&cause))?;
        let digest = model.digest();
        let provenance = read_provenance(folder).map_err(|cause| no_model(&cause))?;
        let calibrator = calibrator_beside(folder, digest)?;
        let kept = Kept { provenance: &provenance, calibrator: calibrator.as_ref() };
        Ok((digest, self.add_alone(&model, kept, fence)?))
    }

    /// All models, oldest first.
    pub fn list(&self) -> Vec<StoredModel> {
        let mut models: Vec<StoredModel> = self.catalog().models.values().cloned().collect();
        models.sort_by_key(|model| (model.created_at(), model.digest));
        models
    }

    /// # Errors
    /// The model does not exist.
    pub fn get(&self, digest: ModelDigest) -> Result<StoredModel, RegistryError> {
        self.catalog().models.get(&digest).cloned().ok_or(RegistryError::NotFound(digest))
    }

    /// The calibrator that is kept with a model; `None` if there is no such model, or it has none that can be read.
    pub fn calibrator(&self, digest: ModelDigest) -> Option<Arc<Calibrator>> {
        match &self.catalog().models.get(&digest)?.condition {
            Condition::Intact(facts) => facts.calibrator.clone(),
            Condition::Damaged(_) => None,
        }
    }

    /// Reads a model and verifies all of its parameters. A damaged copy of a shared model is copied again.
    ///
    /// # Errors
    /// The model does not exist, or it is damaged, which is recorded.
    pub fn load(&self, digest: ModelDigest) -> Result<AnyModel, RegistryError> {
        match (self.load_here(digest), &self.shared) {
            (Err(RegistryError::Damaged { .. }), Some(shared)) => {
                let _writing = self.writing();
                self.discard(digest)?;
                self.fetch(shared, digest)?;
                self.load_here(digest)
            }
            (loaded, _) => loaded,
        }
    }

    fn load_here(&self, digest: ModelDigest) -> Result<AnyModel, RegistryError> {
        self.get(digest)?;
        let mut stored = inspect(&self.folder, digest);
        let opened = match &stored.condition {
            Condition::Damaged(reason) => Err(reason.clone()),
            Condition::Intact(_) => match AnyModel::open(&self.place(digest), &Hints::default()) {
                Ok(model) if model.digest() == digest => Ok(model),
                Ok(model) => Err(format!("it is model {}", model.digest())),
                Err(cause) => Err(relative(&self.folder, cause)),
            },
        };
        if let Err(reason) = &opened {
            tracing::error!(model = %digest, reason, "a model on disk is damaged");
            stored.condition = Condition::Damaged(reason.clone());
        }
        // It may have been deleted while it was being read.
        self.change(|catalog| {
            if let Some(known) = catalog.models.get_mut(&digest) {
                *known = stored;
            }
        });
        opened.map_err(|reason| RegistryError::Damaged { digest, reason })
    }

    /// Verifies that a model in int8 is the one of the source that it names, and that `parent`, if there is one, is
    /// that source. Other models, and those whose source is not kept here, are not checked.
    ///
    /// # Errors
    /// It is another, or its source is damaged.
    pub fn check_source(&self, model: &AnyModel, parent: Option<ModelDigest>) -> Result<(), RegistryError> {
        let AnyModel::Network(model) = model else { return Ok(()) };
        let Some(Quantized { origin, .. }) = &model.quantized else { return Ok(()) };
        let other = |cause| RegistryError::OtherSource { digest: model.digest, cause };
        let (named, given) = (origin.source, parent.unwrap_or(origin.source));
        if named != given {
            return Err(other(SourceError::Other { named, given }));
        }
        match self.load_here(named) {
            Err(RegistryError::NotFound(_)) => Ok(()),
            Err(cause) => Err(cause),
            Ok(AnyModel::Network(source)) => quantize::check_source(model, source).map_err(other),
            Ok(AnyModel::Ensemble(_)) => Err(other(SourceError::Ensemble { named })),
        }
    }

    /// Removes a model permanently.
    ///
    /// # Errors
    /// The model does not exist, is active, or cannot be removed.
    pub fn delete(&self, digest: ModelDigest) -> Result<(), RegistryError> {
        let writing = self.writing();
        if let Some(shared) = &self.shared {
            // Copies of others need not be written for that: deleting may be what makes room for them.
            shared.delete(digest)?;
            let discarded = self.get(digest).map_or(Ok(()), |_| self.discard(digest));
            // Neither activations nor lists wait for its files in the database.
            drop(writing);
            shared.sweep_deleted();
            return discarded;
        }
        self.get(digest)?;
        if self.active().is_some_and(|active| active.digest == digest) {
            return Err(RegistryError::Active(digest));
        }
        self.discard(digest)
    }

    /// The model that serves from the next start on, and the one before it. `None` if no model was ever activated.
    pub fn active(&self) -> Option<ActiveModel> {
        self.catalog().active
    }

    /// Why the record of the active model could not be read at the start. The damaged record is kept.
    pub fn active_damage(&self) -> Option<&str> {
        self.active_damage.as_deref()
    }

    /// Durably records which model serves.
    ///
    /// # Errors
    /// The model does not exist, it is damaged, or the record cannot be written; the old one then stays.
    pub fn set_active(&self, active: ActiveModel) -> Result<(), RegistryError> {
        let _writing = self.writing();
        self.intact(active.digest)?;
        self.write_active(active, false)
    }

    /// The same for a model that is not in the registry.
    pub(super) fn set_active_preset(&self, active: ActiveModel) -> Result<(), RegistryError> {
        let _writing = self.writing();
        self.write_active(active, true)
    }

    fn write_active(&self, active: ActiveModel, is_preset: bool) -> Result<(), RegistryError> {
        match &self.shared {
            Some(shared) => shared.activate(active, is_preset)?,
            None => active::write(&self.folder, active)?,
        }
        self.change(|catalog| catalog.active = Some(active));
        Ok(())
    }

    /// Opens a model's files for sending. It may be deleted while they are being sent. The recipient verifies them.
    ///
    /// # Errors
    /// The model does not exist, it is damaged, or its files cannot be opened.
    pub fn export(&self, digest: ModelDigest) -> Result<Export, RegistryError> {
        self.intact(digest)?;
        let place = self.place(digest);
        let part = |name: String| {
            let path = place.join(&name);
            Ok(Part { name, file: File::open(&path).map_err(at(&path))? })
        };
        let parts = files_of(&place).into_iter().map(part);
        Ok(Export { parts: parts.collect::<Result<_, RegistryError>>()? })
    }

    /// Creates a file for a model that arrives in pieces.
    ///
    /// # Errors
    /// Too many are being received already, or the file cannot be created.
    pub fn receive(&self) -> Result<Incoming, RegistryError> {
        self.receiving.begin(&self.folder, self.stored_bytes())
    }

    /// Adds a received model: a packed model, whose provenance and calibrator are kept, or a checkpoint. `name` describes
    /// its origin.
    ///
    /// # Errors
    /// It is not a model that can be served, comes with a calibrator of another, a limit would be exceeded, it cannot be
    /// written, or it was cancelled.
    pub fn import(
        &self,
        received: Incoming,
        name: &str,
        hints: &Hints,
        cancellation: &Cancellation,
    ) -> Result<Imported, RegistryError> {
        // One at a time, so that only one is in memory.
        let _writing = self.writing();
        cancellation.check()?;
        // The path of the temporary file means nothing to the sender.
        let here = received.path().display().to_string();
        let no_model = |cause: OpenError| RegistryError::NoModel(cause.to_string().replace(&here, name));
        let (model, origin) = AnyModel::open_with_origin(received.path(), hints).map_err(no_model)?;
        if !origin.is_plain() {
            tracing::info!(file = name, model = %model.digest(), "the weights are {origin}");
        }
        let provenance = packed_provenance(received.path()).unwrap_or_else(|| Provenance {
            parent: model.quantization().map(|made| made.source),
            ..Provenance::now(name)
        });
        let calibrator = calibrator_beside(received.path(), model.digest())?;
        cancellation.check()?;
        self.check_source(&model, provenance.parent)?;
        let kept = Kept { provenance: &provenance, calibrator: calibrator.as_ref() };
        let added = self.add_alone(&model, kept, None)?;
        Ok(Imported { model: self.get(model.digest())?, added, dropped: origin.dropped })
    }

    /// Releases the folder for other processes; the registry must not be used afterwards.
    pub fn close(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// [`Self::add`] for callers that hold the `writing` lock.
    fn add_alone(
        &self,
        model: &AnyModel,
        Kept { provenance, calibrator }: Kept<'_>,
        fence: Option<Fence>,
    ) -> Result<Added, RegistryError> {
        let digest = model.digest();
        let place = self.place(digest);
        calibrator.map_or(Ok(()), |calibrator| calibrator::check(calibrator, digest))?;
        // A copy of another model that cannot be written does not keep this one out.
        if let Err(cause @ RegistryError::Database(_)) = self.sync_alone() {
            return Err(cause);
        }
        match self.get(digest).map(|stored| stored.condition) {
            Ok(Condition::Intact(_)) => return Ok(Added::Known),
            Ok(Condition::Damaged(_)) => self.discard(digest)?,
            Err(_) => {}
        }
        let AnyDescription { networks, composition, .. } = model.description(&provenance.origin);
        let of_model = model.files(&provenance.origin);
        let provenance_text = provenance.to_toml();
        let calibrator_text = calibrator.map(calibrator_file);
        let mut files: Vec<(&str, &[u8])> =
            of_model.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
        files.push((PROVENANCE, provenance_text.as_bytes()));
        files.extend(calibrator_text.as_ref().map(|text| (CALIBRATOR, text.as_bytes())));
        let bytes = files.iter().map(|(_, content)| content.len() as u64).sum();
        self.check_room(bytes)?;
        write_folder(&place, &files).map_err(at(&place))?;
        let facts = Facts {
            networks,
            composition,
            provenance: provenance.clone(),
            calibrator: calibrator.cloned().map(Arc::new),
        };
        let stored = StoredModel { digest, bytes, condition: Condition::Intact(Box::new(facts)) };
        if let Some(shared) = &self.shared {
            match shared.add(digest, (&place, bytes), self.limits, fence) {
                Ok(Added::New) => {}
                refused => {
                    // Nobody else has it, or others have it with another history: it must not be here alone.
                    discard_folder(&place).map_err(at(&place))?;
                    refused?;
                    self.fetch(shared, digest)?;
                    return Ok(Added::Known);
                }
            }
        }
        self.change(|catalog| catalog.models.insert(digest, stored));
        Ok(Added::New)
    }

    fn check_room(&self, bytes: u64) -> Result<(), RegistryError> {
        let RegistryLimits { count_max, bytes_max } = self.limits;
        if self.catalog().models.len() >= count_max {
            return Err(RegistryError::TooMany { limit: count_max });
        }
        let used = self.stored_bytes();
        if used.saturating_add(bytes) > bytes_max {
            return Err(RegistryError::TooLarge { bytes, used, limit: bytes_max });
        }
        Ok(())
    }

    fn intact(&self, digest: ModelDigest) -> Result<Box<Facts>, RegistryError> {
        match self.get(digest)?.condition {
            Condition::Intact(facts) => Ok(facts),
            Condition::Damaged(reason) => Err(RegistryError::Damaged { digest, reason }),
        }
    }

    fn place(&self, digest: ModelDigest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    fn stored_bytes(&self) -> u64 {
        self.catalog().models.values().map(|model| model.bytes).sum()
    }

    fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Catalog) -> T) -> T {
        let mut catalog = self.catalog();
        let changed = change(&mut catalog);
        self.tell(&catalog);
        changed
    }

    fn tell(&self, catalog: &Catalog) {
        metrics::models_stored(catalog.models.len(), catalog.models.values().map(|model| model.bytes).sum());
    }
}

impl Export {
    /// Writes the model as one file, in the form that [`Registry::import`] and [`AnyModel::open`] accept.
    ///
    /// # Errors
    /// A file cannot be read, or `out` cannot be written.
    pub fn write_to(self, out: impl Write) -> io::Result<()> {
        packed::pack(self.parts, out)
    }
}

/// The provenance in a packed model.
fn packed_provenance(path: &Path) -> Option<Provenance> {
    let bytes = packed::read_part(path, PROVENANCE, PROVENANCE_BYTES_MAX).ok()?;
    Provenance::from_toml(str::from_utf8(&bytes).ok()?).ok()
}

/// Adds the path at which something failed.
fn at(path: &Path) -> impl Fn(io::Error) -> RegistryError {
    move |cause| RegistryError::Io { path: path.to_owned(), cause }
}
