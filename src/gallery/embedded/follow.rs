//! Takes in what other copies of a gallery have committed: in one transaction, so that readers see whole commits.

use std::collections::BTreeSet;
use std::sync::Arc;

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::journal::{Delta, Effects, Inserted};
use super::record::RowRecord;
use super::schema::{ENTRIES, GONE, IDS, write_about, write_state};
use super::snapshot::Snapshot;
use super::writer::Writer;
use crate::durable::DatabaseError;
use crate::gallery::entry::{Entry, EntryId};
use crate::gallery::index::{Code, Index, RowId};
use crate::gallery::record::{Damage, decode, read_vector, unseal};
use crate::gallery::store::{About, GalleryReader, StoreError};

type Vectors<'t> = Table<'t, u64, &'static [u8]>;

impl Writer {
    /// # Errors
    /// The files cannot be written, or they contradict `delta`.
    pub(super) fn apply(&mut self, delta: Delta) -> Result<(), StoreError> {
        let Delta { effects, about, state, .. } = delta;
        let before = self.published.snapshot();
        let (transaction, durability) = self.begin_write()?;
        self.change_generations(&transaction, &about)?;
        let mut rows = Rows::open(&transaction, &about)?;
        let removed = effects.removed.iter().map(|row| rows.remove(*row));
        let removed = removed.collect::<Result<Vec<_>, StoreError>>()?;
        rows.insert(&effects)?;
        let index = if about.generation == self.about.generation {
            updated(before.index().clone(), &removed, &effects, &about)?
        } else {
            rows.index(&about)?
        };
        drop(rows);
        write_about(&transaction, &about)?;
        write_state(&transaction, &state)?;
        let chips = effects.inserted.iter().filter_map(|(row, new)| Some((*row, new.chip.as_deref()?)));
        self.add_chips(chips.collect::<Vec<_>>().into_iter(), durability)?;
        self.commit_files(transaction, durability)?;
        // Others were allowed to store it.
        self.bounds.allowance.count(state.bytes);
        self.bounds.allowance.give_back(before.stored_bytes());
        self.about = Arc::new(about);
        let tables = self.tables(&self.about)?;
        self.published.publish(Snapshot::new(self.about.clone(), state, index, tables)?.made());
        self.gone.extend(removed.iter().filter(|removed| removed.has_chip).map(|removed| removed.row));
        self.weigh();
        Ok(())
    }

    /// Drops the tables of vectors that `about` no longer names.
    fn change_generations(&self, transaction: &WriteTransaction, about: &About) -> Result<(), DatabaseError> {
        let kept: BTreeSet<String> = names(about).into_iter().collect();
        for name in names(&self.about).into_iter().filter(|name| !kept.contains(name)) {
            let table: TableDefinition<u64, &[u8]> = TableDefinition::new(&name);
            transaction.delete_table(table)?;
        }
        Ok(())
    }
}

/// The tables of vectors that `about` names.
fn names(about: &About) -> Vec<String> {
    let shadow = about.shadow.map(|shadow| shadow.vectors());
    [Some(about.vectors()), shadow].into_iter().flatten().collect()
}

/// A row that others have removed.
struct Removed {
    row: RowId,
    id: EntryId,
    /// Whether a chip is left to be removed.
    has_chip: bool,
}

/// The tables of one transaction.
struct Rows<'t> {
    entries: Table<'t, u64, &'static [u8]>,
    ids: Table<'t, &'static str, u64>,
    gone: Table<'t, u64, ()>,
    vectors: Vectors<'t>,
    shadow: Option<(u64, Vectors<'t>)>,
    generation: u64,
}

impl<'t> Rows<'t> {
    fn open(transaction: &'t WriteTransaction, about: &About) -> Result<Self, DatabaseError> {
        let vectors = about.vectors();
        let shadow = about.shadow.map(|shadow| (shadow.generation, shadow.vectors()));
        let open = |name: &str| transaction.open_table(TableDefinition::new(name));
        Ok(Self {
            entries: transaction.open_table(ENTRIES)?,
            ids: transaction.open_table(IDS)?,
            gone: transaction.open_table(GONE)?,
            vectors: open(&vectors)?,
            shadow: shadow
                .map(|(number, name)| Ok::<_, DatabaseError>((number, open(&name)?)))
                .transpose()?,
            generation: about.generation,
        })
    }

    fn remove(&mut self, row: RowId) -> Result<Removed, StoreError> {
        let Some(record) = self.entries.remove(row.0).map_err(DatabaseError::from)? else {
            return Err(contradiction(row));
        };
        let record: RowRecord = decode(record.value())?;
        let has_chip = record.chip_bytes > 0;
        let entry = record.into_entry()?;
        self.ids.remove(entry.id.as_str()).map_err(DatabaseError::from)?;
        self.vectors.remove(row.0).map_err(DatabaseError::from)?;
        if let Some((_, shadow)) = &mut self.shadow {
            shadow.remove(row.0).map_err(DatabaseError::from)?;
        }
        if has_chip {
            self.gone.insert(row.0, ()).map_err(DatabaseError::from)?;
        }
        Ok(Removed { row, id: entry.id, has_chip })
    }

    fn insert(&mut self, effects: &Effects) -> Result<(), StoreError> {
        for (row, Inserted { record, .. }) in &effects.inserted {
            let entry = entry(record)?;
            self.entries.insert(row.0, record.as_slice()).map_err(DatabaseError::from)?;
            self.ids.insert(entry.id.as_str(), row.0).map_err(DatabaseError::from)?;
        }
        for (row, record) in &effects.rewritten {
            let before = self.entries.insert(row.0, record.as_slice()).map_err(DatabaseError::from)?;
            if before.is_none() {
                return Err(contradiction(*row));
            }
        }
        for ((row, generation), vector) in &effects.vectors {
            let table = match &mut self.shadow {
                Some((number, shadow)) if number == generation => shadow,
                _ if *generation == self.generation => &mut self.vectors,
                _ => continue,
            };
            table.insert(row.0, vector.as_slice()).map_err(DatabaseError::from)?;
        }
        Ok(())
    }

    /// The index of what the tables hold now.
    fn index(&self, about: &About) -> Result<Index, StoreError> {
        let mut index = Index::composed(about.dimension, about.composition);
        for row in self.entries.iter().map_err(DatabaseError::from)? {
            let (row, record) = row.map_err(DatabaseError::from)?;
            let row = RowId(row.value());
            let vector = self.vectors.get(row.0).map_err(DatabaseError::from)?;
            let code = code(vector.ok_or_else(|| contradiction(row))?.value(), about)?;
            index.push(row, &code, &entry(record.value())?);
        }
        index.settle_names();
        Ok(index)
    }
}

/// The index after `effects`, which leave its embeddings as they are.
fn updated(
    mut index: Index,
    removed: &[Removed],
    effects: &Effects,
    about: &About,
) -> Result<Index, StoreError> {
    for removed in removed {
        index.remove(removed.row, &removed.id);
    }
    for (row, Inserted { record, .. }) in &effects.inserted {
        let vector = effects.vectors.get(&(*row, about.generation)).ok_or_else(|| contradiction(*row))?;
        index.push(*row, &code(vector, about)?, &entry(record)?);
    }
    for (row, record) in &effects.rewritten {
        index.update(*row, &entry(record)?);
    }
    index.tidy_names();
    Ok(index)
}

fn entry(record: &[u8]) -> Result<Entry, Damage> {
    decode::<RowRecord>(record)?.into_entry()
}

fn code(vector: &[u8], about: &About) -> Result<Code, Damage> {
    let mut values = vec![0.0; about.dimension];
    read_vector(unseal(vector)?, &mut values)?;
    Ok(Code::composed(&values, about.composition.as_ref()))
}

fn contradiction(row: RowId) -> StoreError {
    StoreError::Unreadable(format!("row {} is not as others have left it", row.0))
}
