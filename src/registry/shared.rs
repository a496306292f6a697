//! Models in the database that servers share, and which of them serves. Each server has those of its folder as copies.

use std::path::Path;

use tokio_postgres::Client;

use super::{ActiveModel, Added, RegistryError, RegistryLimits};
use crate::embedding::ModelDigest;
use crate::postgres::{
    Cluster, Database, Fence, StoredFolder, Transaction, Unreachable, WRITING, check_usable, execute, query,
};

/// What the files of all models belong to.
const OWNER: &str = "models";
/// Pieces of files that one statement removes, each at most a mebibyte.
const SWEPT_MAX: i64 = 64;
/// Any number that nothing else in the database locks: models are added one at a time.
const ADDING: i64 = 0x4d4f_4445_4c53;

/// The models of a database.
#[derive(Clone, Debug)]
pub struct SharedModels {
    cluster: Cluster,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    pub models: Vec<ModelDigest>,
    /// `None` if no model was ever activated.
    pub active: Option<ActiveModel>,
}

impl SharedModels {
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn database(&self) -> &Database {
        &self.cluster.database
    }

    /// # Errors
    /// The database cannot be reached, or a newer program changed the tables.
    pub fn list(&self) -> Result<Shared, RegistryError> {
        self.database().wait(async {
            let connection = self.database().connection().await?;
            let sql = "select active, former, usable_from, array (select digest from models) from shipreid";
            let rows = query!(connection, sql)?;
            check_usable(rows[0].get(2))?;
            let active = match (rows[0].get::<_, Option<Vec<u8>>>(0), rows[0].get::<_, Option<Vec<u8>>>(1)) {
                (Some(digest), Some(former)) => {
                    Some(ActiveModel { digest: digest_of(&digest)?, former: digest_of(&former)? })
                }
                _ => None,
            };
            let models: Vec<Vec<u8>> = rows[0].get(3);
            let models = models.iter().map(|digest| digest_of(digest)).collect::<Result<_, _>>()?;
            Ok(Shared { models, active })
        })
    }

    /// Adds the model in a folder, as a whole or not at all. `fence` is the right to do so, where a job made it.
    ///
    /// # Errors
    /// A limit would be exceeded, the job is held no longer, the folder cannot be read, or the database cannot be
    /// reached.
    pub fn add(
        &self,
        digest: ModelDigest,
        (folder, bytes): (&Path, u64),
        limits: RegistryLimits,
        fence: Option<Fence>,
    ) -> Result<Added, RegistryError> {
        let database = self.database();
        let key = digest.as_bytes().as_slice();
        let transaction = database.wait(Transaction::begin(database, WRITING))?;
        let room = database.wait(async {
            query!(transaction, "select pg_advisory_xact_lock($1)", ADDING => INT8)?;
            let sql = "select count(*), coalesce(sum(bytes), 0)::int8, bool_or(digest = $1) from models";
            let rows = query!(transaction, sql, key => BYTEA)?;
            let [count, used] = [0, 1].map(|column| rows[0].get::<_, i64>(column) as u64);
            Ok::<_, RegistryError>((count, used, rows[0].get::<_, Option<bool>>(2).unwrap_or(false)))
        });
        let (count, used, is_known) = room?;
        if is_known {
            database.wait(transaction.roll_back())?;
            return Ok(Added::Known);
        }
        let RegistryLimits { count_max, bytes_max } = limits;
        if count as usize >= count_max || used.saturating_add(bytes) > bytes_max {
            database.wait(transaction.roll_back())?;
            return Err(if count as usize >= count_max {
                RegistryError::TooMany { limit: count_max }
            } else {
                RegistryError::TooLarge { bytes, used, limit: bytes_max }
            });
        }
        // A server that deleted it before may not have come to its end.
        sweep(database, &transaction, &format!("owner = '{OWNER}' and name = '{digest}'"))?;
        stored(digest).write(database, &transaction, folder)?;
        database.wait(async {
            let is_held = match fence {
                Some(fence) => fence.holds(&transaction).await?,
                None => true,
            };
            if !is_held {
                transaction.roll_back().await?;
                return Err(RegistryError::Lost);
            }
            let sql = "insert into models (digest, bytes) values ($1, $2)";
            execute!(transaction, sql, key => BYTEA, bytes as i64 => INT8)?;
            transaction.commit().await?;
            Ok(Added::New)
        })
    }

    /// Makes a folder of a model; what is in it is still to be verified.
    ///
    /// # Errors
    /// The folder exists or cannot be written, or the database cannot be reached.
    pub fn fetch(&self, digest: ModelDigest, folder: &Path) -> Result<(), RegistryError> {
        Ok(stored(digest).read(self.database(), folder)?)
    }

    /// Its files stay until they are [swept](Self::sweep_deleted).
    ///
    /// # Errors
    /// The model does not exist, is active, or the database cannot be reached.
    pub fn delete(&self, digest: ModelDigest) -> Result<(), RegistryError> {
        let key = digest.as_bytes().as_slice();
        self.database().wait(async {
            let transaction = Transaction::begin(self.database(), WRITING).await?;
            // Nobody activates it meanwhile.
            let rows = query!(transaction, "select active from shipreid for update")?;
            let is_active = rows[0].get::<_, Option<&[u8]>>(0) == Some(key);
            let deleted = if is_active {
                0
            } else {
                execute!(transaction, "delete from models where digest = $1", key => BYTEA)?
            };
            if deleted == 0 {
                transaction.roll_back().await?;
                return Err(match is_active {
                    true => RegistryError::Active(digest),
                    false => RegistryError::NotFound(digest),
                });
            }
            Ok(transaction.commit().await?)
        })
    }

    /// Removes the files of models that do not exist, a few at a time: those of a large model may take longer than a
    /// statement may. For callers for whom nobody waits.
    pub fn sweep_deleted(&self) {
        if let Err(cause) = self.sweep() {
            tracing::warn!(%cause, "files of deleted models stay until another is deleted");
        }
    }

    /// A model and its files are committed at once, so none is taken for one that is gone.
    fn sweep(&self) -> Result<(), Unreachable> {
        let connection = self.database().wait(self.database().connection())?;
        let is_gone = format!("owner = '{OWNER}' and name not in (select encode(digest, 'hex') from models)");
        sweep(self.database(), &connection, &is_gone)
    }

    /// Records which model serves, on every server.
    ///
    /// # Errors
    /// The model does not exist, unless it is one that every server makes for itself, or the database cannot be reached.
    pub fn activate(&self, active: ActiveModel, is_made_here: bool) -> Result<(), RegistryError> {
        let [digest, former] = [active.digest, active.former].map(|digest| digest.as_bytes().to_vec());
        self.database().wait(async {
            let transaction = Transaction::begin(self.database(), WRITING).await?;
            // Whoever deletes a model holds this row as well. Only a later statement sees what was deleted meanwhile.
            query!(transaction, "select from shipreid for update")?;
            let known = query!(transaction, "select from models where digest = $1", digest => BYTEA)?;
            if !is_made_here && known.is_empty() {
                transaction.roll_back().await?;
                return Err(RegistryError::NotFound(active.digest));
            }
            let sql = "update shipreid set active = $1, former = $2";
            execute!(transaction, sql, digest => BYTEA, former => BYTEA)?;
            Ok(transaction.commit().await?)
        })
    }
}

/// Removes the pieces of files for which SQL holds, some of them in each statement. What another server is removing is left
/// to it.
fn sweep(database: &Database, client: &Client, which: &str) -> Result<(), Unreachable> {
    let sql = format!(
        "delete from files where ctid = any (array (
            select ctid from files where {which} limit $1 for update skip locked))"
    );
    while database.wait(async { execute!(client, &sql, SWEPT_MAX => INT8) })? > 0 {}
    Ok(())
}

fn stored(digest: ModelDigest) -> StoredFolder {
    StoredFolder { owner: OWNER.into(), name: digest.to_string(), term: 0 }
}

fn digest_of(bytes: &[u8]) -> Result<ModelDigest, Unreachable> {
    let bytes = bytes.try_into().map_err(|_| Unreachable(format!("{} bytes are no digest", bytes.len())))?;
    Ok(ModelDigest::new(bytes))
}

#[cfg(test)]
mod tests;
