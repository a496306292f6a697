//! Rows of galleries as parameters of statements: one statement for all rows of a commit.

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::chip::Modality;
use crate::gallery::embedded::RowRecord;
use crate::gallery::entry::{Entry, Time};
use crate::gallery::index::RowId;
use crate::gallery::record::decode;
use crate::gallery::store::StoreError;
use crate::postgres::{execute, failed};

/// Columns of `entries`, one value a row.
#[derive(Debug, Default)]
pub struct EntryColumns<'r> {
    rows: Vec<i64>,
    entry_ids: Vec<String>,
    vessel_ids: Vec<Option<String>>,
    modalities: Vec<&'static str>,
    sensors: Vec<String>,
    scene_ids: Vec<String>,
    observed_at: Vec<Option<i64>>,
    latitudes: Vec<Option<f64>>,
    longitudes: Vec<Option<f64>>,
    labels: Vec<String>,
    enrolled_at: Vec<i64>,
    records: Vec<&'r [u8]>,
}

const INSERT: &str = "
insert into entries (gallery, \"row\", changed, entry_id, vessel_id, modality, sensor, scene_id, observed_at,
    latitude_deg, longitude_deg, labels, enrolled_at, record)
select $1, n.\"row\", $2, n.entry_id, n.vessel_id, n.modality, n.sensor, n.scene_id,
    timestamptz 'epoch' + n.observed_at * interval '1 microsecond', n.latitude_deg, n.longitude_deg, n.labels::jsonb,
    timestamptz 'epoch' + n.enrolled_at * interval '1 microsecond', n.record
from unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) as n (\"row\", entry_id, vessel_id, modality,
    sensor, scene_id, observed_at, latitude_deg, longitude_deg, labels, enrolled_at, record)";

const UPDATE: &str = "
update entries e set changed = $2, vessel_id = n.vessel_id, modality = n.modality, sensor = n.sensor,
    scene_id = n.scene_id, observed_at = timestamptz 'epoch' + n.observed_at * interval '1 microsecond',
    latitude_deg = n.latitude_deg, longitude_deg = n.longitude_deg, labels = n.labels::jsonb, record = n.record
from unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) as n (\"row\", entry_id, vessel_id, modality,
    sensor, scene_id, observed_at, latitude_deg, longitude_deg, labels, enrolled_at, record)
where e.gallery = $1 and e.\"row\" = n.\"row\"";

impl<'r> EntryColumns<'r> {
    /// Adds a row with its sealed record.
    ///
    /// # Errors
    /// The record is damaged.
    pub fn push(&mut self, row: RowId, record: &'r [u8]) -> Result<(), StoreError> {
        let Entry { id, vessel, modality, observation, labels, enrolled_at, .. } =
            decode::<RowRecord>(record)?.into_entry()?;
        self.rows.push(row.0 as i64);
        self.entry_ids.push(id.as_str().to_owned());
        self.vessel_ids.push(vessel.map(|vessel| vessel.as_str().to_owned()));
        self.modalities.push(match modality {
            Modality::Optical => "optical",
            Modality::Sar => "sar",
        });
        self.sensors.push(observation.sensor);
        self.scene_ids.push(observation.scene_id);
        self.observed_at.push(observation.observed_at.map(micros));
        self.latitudes.push(observation.position.map(|position| position.latitude_deg()));
        self.longitudes.push(observation.position.map(|position| position.longitude_deg()));
        let labels: serde_json::Map<_, _> =
            labels.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        self.labels.push(serde_json::Value::Object(labels).to_string());
        self.enrolled_at.push(micros(enrolled_at));
        self.records.push(record);
        Ok(())
    }

    /// # Errors
    /// The database refuses them.
    pub async fn insert(&self, client: &Client, gallery: i64, changed: i64) -> Result<(), StoreError> {
        self.execute(client, INSERT, gallery, changed).await
    }

    /// # Errors
    /// The database refuses them.
    pub async fn update(&self, client: &Client, gallery: i64, changed: i64) -> Result<(), StoreError> {
        self.execute(client, UPDATE, gallery, changed).await
    }

    async fn execute(
        &self,
        client: &Client,
        sql: &str,
        gallery: i64,
        changed: i64,
    ) -> Result<(), StoreError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let parameters: [(&(dyn ToSql + Sync), Type); 14] = [
            (&gallery, Type::INT8),
            (&changed, Type::INT8),
            (&self.rows, Type::INT8_ARRAY),
            (&self.entry_ids, Type::TEXT_ARRAY),
            (&self.vessel_ids, Type::TEXT_ARRAY),
            (&self.modalities, Type::TEXT_ARRAY),
            (&self.sensors, Type::TEXT_ARRAY),
            (&self.scene_ids, Type::TEXT_ARRAY),
            (&self.observed_at, Type::INT8_ARRAY),
            (&self.latitudes, Type::FLOAT8_ARRAY),
            (&self.longitudes, Type::FLOAT8_ARRAY),
            (&self.labels, Type::TEXT_ARRAY),
            (&self.enrolled_at, Type::INT8_ARRAY),
            (&self.records, Type::BYTEA_ARRAY),
        ];
        client.execute_typed(sql, &parameters).await.map_err(|cause| failed(&cause))?;
        Ok(())
    }
}

/// Adds vectors, given with their generations and rows.
///
/// # Errors
/// The database refuses them.
pub async fn insert_vectors<'v>(
    client: &Client,
    gallery: i64,
    changed: i64,
    vectors: impl Iterator<Item = (u64, RowId, &'v [u8])>,
) -> Result<(), StoreError> {
    let (mut generations, mut rows, mut values) = (vec![], vec![], vec![]);
    for (generation, row, vector) in vectors {
        generations.push(generation as i64);
        rows.push(row.0 as i64);
        values.push(vector);
    }
    if rows.is_empty() {
        return Ok(());
    }
    let sql = "insert into vectors (gallery, changed, generation, \"row\", vector)
        select $1, $2, n.generation, n.\"row\", n.vector
        from unnest($3, $4, $5) as n (generation, \"row\", vector)";
    execute!(client, sql, gallery => INT8, changed => INT8, generations => INT8_ARRAY, rows => INT8_ARRAY,
        values => BYTEA_ARRAY)?;
    Ok(())
}

/// Adds chips.
///
/// # Errors
/// The database refuses them.
pub async fn insert_chips<'c>(
    client: &Client,
    gallery: i64,
    chips: impl Iterator<Item = (RowId, &'c [u8])>,
) -> Result<(), StoreError> {
    let (rows, values): (Vec<i64>, Vec<&[u8]>) = chips.map(|(row, chip)| (row.0 as i64, chip)).unzip();
    if rows.is_empty() {
        return Ok(());
    }
    let sql = "insert into chips (gallery, \"row\", chip)
        select $1, n.\"row\", n.chip from unnest($2, $3) as n (\"row\", chip)";
    execute!(client, sql, gallery => INT8, rows => INT8_ARRAY, values => BYTEA_ARRAY)?;
    Ok(())
}

fn micros(time: Time) -> i64 {
    time.nanos().div_euclid(1000)
}
