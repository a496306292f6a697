//! Scans of a gallery's tables on opening, which check that lookups find what is there.
//!
//! Lookups go by the keys of inner pages, which a scan of the leaves does not check. All keys of a leaf are found by the
//! same decisions if the first and the last are, so only those are looked up.

use redb::ReadableTable;

use super::record::{RowIdRecord, RowRecord};
use super::schema::SchemaError;
use super::snapshot::Tables;
use crate::durable::DatabaseError;
use crate::gallery::entry::Entry;
use crate::gallery::index::{IdSum, RowId};
use crate::gallery::record::{Damage, decode};

/// Where the bytes of the last item end. In a leaf, each item's bytes follow those of the item before it; other pages
/// are other allocations, which begin with a header. So an item that begins elsewhere is the first of its leaf.
#[derive(Default)]
struct Leaf {
    end: usize,
}

impl Leaf {
    /// Whether an item of a table is in the same leaf as the one before it.
    fn continues(&mut self, bytes: &[u8]) -> bool {
        let start = bytes.as_ptr() as usize;
        let continues = start == self.end;
        self.end = start + bytes.len();
        // Without bytes, two items of different leaves could not be told apart.
        continues && !bytes.is_empty()
    }
}

/// A checksum of the table of ids, which has no checksums of its own.
///
/// # Errors
/// A lookup does not find an id.
pub fn sum_ids(tables: &Tables) -> Result<IdSum, SchemaError> {
    let (mut sum, mut leaf) = (IdSum::default(), Leaf::default());
    let mut last = None;
    let check = |id: &str, row: u64| {
        let found = tables.ids.get(id).map_err(DatabaseError::from)?;
        if found.is_none_or(|found| found.value() != row) {
            return Err(SchemaError::from(Damage(format!("nothing leads to the id \"{id}\""))));
        }
        Ok(())
    };
    for item in tables.ids.iter().map_err(DatabaseError::from)? {
        let (id, row) = item.map_err(DatabaseError::from)?;
        let number = row.value();
        if !leaf.continues(id.value().as_bytes()) {
            if let Some((id, row)) = &last {
                let id: &redb::AccessGuard<'_, &'static str> = id;
                check(id.value(), *row)?;
            }
            check(id.value(), number)?;
        }
        sum.add(id.value(), RowId(number));
        last = Some((id, number));
    }
    if let Some((id, row)) = &last {
        check(id.value(), *row)?;
    }
    Ok(sum)
}

/// Calls `each` with all entries' rows and sealed records, by ascending row.
///
/// # Errors
/// The first error of `each`, or a lookup does not find a row.
pub fn for_each_record(
    tables: &Tables,
    mut each: impl FnMut(RowId, &[u8]) -> Result<(), SchemaError>,
) -> Result<(), SchemaError> {
    let (mut last, mut leaf) = (None, Leaf::default());
    let check = |row: u64| match tables.entries.get(row).map_err(DatabaseError::from)? {
        Some(_) => Ok(()),
        None => Err(SchemaError::from(Damage(format!("nothing leads to row {row}")))),
    };
    for item in tables.entries.iter().map_err(DatabaseError::from)? {
        let (row, sealed) = item.map_err(DatabaseError::from)?;
        let row = row.value();
        if !leaf.continues(sealed.value()) {
            last.map_or(Ok(()), &check)?;
            check(row)?;
        }
        each(RowId(row), sealed.value())?;
        last = Some(row);
    }
    last.map_or(Ok(()), check)
}

/// All rows and a checksum of their ids, once their records were found to be as they were written.
///
/// # Errors
/// A record is damaged, or a lookup does not find it.
pub fn whole_rows(tables: &Tables) -> Result<(Vec<RowId>, IdSum), SchemaError> {
    let (mut rows, mut ids) = (Vec::new(), IdSum::default());
    for_each_record(tables, |row, sealed| {
        let record = decode::<RowIdRecord>(sealed).map_err(|damage| of_row(row, &damage))?;
        ids.add(&record.entry.unwrap_or_default().id, row);
        rows.push(row);
        Ok(())
    })?;
    Ok((rows, ids))
}

/// Calls `each` with all entries by ascending row.
///
/// # Errors
/// The first error of `each`, or an entry is damaged.
pub fn for_each_entry(
    tables: &Tables,
    mut each: impl FnMut(RowId, &Entry) -> Result<(), SchemaError>,
) -> Result<(), SchemaError> {
    for_each_record(tables, |row, sealed| {
        let entry = decode::<RowRecord>(sealed).and_then(RowRecord::into_entry);
        each(row, &entry.map_err(|damage| of_row(row, &damage))?)
    })
}

fn of_row(row: RowId, damage: &Damage) -> Damage {
    Damage(format!("row {} {damage}", row.0))
}
