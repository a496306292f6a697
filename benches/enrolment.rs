//! Measures durable enrolment of ready embeddings against the disk's own sync, and how long a
//! gallery takes to reopen.
//!
//! Rounds alternate between enrolling and bare writes of the same number of bytes, each followed by a sync,
//! so that drift of the disk affects both equally. Ratios are medians over the rounds. Run it with `make
//! bench-gallery`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use shipreid::chip::Modality;
use shipreid::embedding::{Embedding, ModelDigest};
use shipreid::gallery::{
    Conflict, ContentHash, EmbeddedCatalog, EmbeddedSettings, Enrolment, Entry, EntryId, Gallery,
    GalleryName, ImportBounds, Labels, NewGallery, Observation, QueueSettings, Quotas, Time, VesselId,
};
use tokio::task::JoinSet;

const DIMENSION: usize = 768;
const CHIPS_PER_VESSEL: u64 = 20;
const TENANT: &str = "default";

#[derive(Parser)]
struct Arguments {
    /// Concurrent enrolments; each caller waits for its acknowledgement
    #[arg(long, value_delimiter = ',', default_value = "1,64,1024")]
    callers: Vec<usize>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of enrolling in a round
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Entries of the galleries that are reopened
    #[arg(long, value_delimiter = ',', default_value = "100000,1000000")]
    reopened: Vec<u64>,
    /// Where the galleries are created; must be a disk, not a memory file system
    #[arg(long, default_value = "target/bench-enrolment")]
    folder: std::path::PathBuf,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.folder)?;
    let folder = tempfile::tempdir_in(&arguments.folder)?;
    let mut enrolment = Vec::new();
    for callers in &arguments.callers {
        enrolment.push(measure_enrolment(&arguments, folder.path(), *callers).await?);
    }
    let mut reopening = Vec::new();
    for entries in &arguments.reopened {
        reopening.push(measure_reopening(folder.path(), *entries).await?);
    }
    println!("{}", json!({ "enrolment": enrolment, "reopening": reopening }));
    Ok(())
}

/// Entries per second with `callers` in flight, relative to the rate that one sync per `callers`
/// entries would allow.
async fn measure_enrolment(arguments: &Arguments, folder: &Path, callers: usize) -> Result<Value> {
    let catalog = open(&folder.join(format!("callers-{callers}")))?;
    let gallery = create(&catalog)?;
    let entry_bytes = 4 * DIMENSION;
    let (mut rates, mut syncs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        let sync = sync_seconds(&folder.join("bare"), callers * entry_bytes)?;
        let prefix = format!("{round}-");
        let rate = enrol_for(&gallery, &prefix, callers, Duration::from_secs_f64(arguments.seconds)).await?;
        rates.push(rate);
        syncs.push(sync);
        ratios.push(rate * sync / callers as f64);
    }
    catalog.close();
    let (rate, sync, ratio) = (median(rates), median(syncs), median(ratios));
    println!(
        "{callers} in flight: {rate:.0} entries/s; a sync of {} KiB takes {:.2} ms; ratio {ratio:.2}",
        (callers * entry_bytes) >> 10,
        sync * 1e3
    );
    Ok(json!({ "in_flight": callers, "entries_per_second": rate, "sync_seconds": sync, "ratio": ratio }))
}

/// Median time to append `bytes` to a file and sync it.
fn sync_seconds(path: &Path, bytes: usize) -> Result<f64> {
    let mut file = File::create(path)?;
    let piece = vec![0xA5; bytes];
    let mut times = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        file.write_all(&piece)?;
        file.sync_data()?;
        times.push(started.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

async fn enrol_for(gallery: &Gallery, prefix: &str, callers: usize, time: Duration) -> Result<f64> {
    let (next, started) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        let (gallery, next, prefix) = (gallery.clone(), Arc::clone(&next), prefix.to_owned());
        tasks.spawn(async move {
            let random = &mut ChaCha8Rng::seed_from_u64(caller as u64);
            while started.elapsed() < time {
                let number = next.fetch_add(1, Ordering::Relaxed);
                gallery.enrol(enrolment(&format!("{prefix}{number}"), number, random)?).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(next.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}

/// How long a gallery takes to open after a clean shutdown, and after one that left no codes on disk.
async fn measure_reopening(folder: &Path, entries: u64) -> Result<Value> {
    let root = folder.join(format!("reopened-{entries}"));
    let catalog = open(&root)?;
    fill(&create(&catalog)?, entries).await?;
    catalog.close();
    drop(catalog);
    let with_codes = reopen(&root, entries)?;
    for code in find(&root, "codes.i8")? {
        std::fs::remove_file(code)?;
    }
    let without_codes = reopen(&root, entries)?;
    let stored = folder_bytes(&root)?;
    std::fs::remove_dir_all(&root)?;
    println!(
        "{entries} entries: {:.1} GiB on disk; open again after {:.2} s, without its codes after {:.2} s; {:.0} MiB of \
         memory",
        stored as f64 / f64::from(1 << 30),
        with_codes.seconds,
        without_codes.seconds,
        with_codes.memory_bytes as f64 / f64::from(1 << 20),
    );
    Ok(json!({
        "entries": entries,
        "disk_bytes": stored,
        "open_seconds": with_codes.seconds,
        "open_without_codes_seconds": without_codes.seconds,
        "memory_bytes": with_codes.memory_bytes,
    }))
}

struct Reopened {
    seconds: f64,
    /// Resident memory of the open gallery.
    memory_bytes: u64,
}

fn reopen(root: &Path, entries: u64) -> Result<Reopened> {
    let (before, started) = (resident_bytes()?, Instant::now());
    let catalog = open(root)?;
    let gallery = catalog.get(TENANT, &name()?)?;
    let seconds = started.elapsed().as_secs_f64();
    anyhow::ensure!(gallery.info().entries == entries, "the gallery has other entries than were enrolled");
    let memory_bytes = resident_bytes()?.saturating_sub(before);
    catalog.close();
    Ok(Reopened { seconds, memory_bytes })
}

async fn fill(gallery: &Gallery, entries: u64) -> Result<()> {
    let random = &mut ChaCha8Rng::seed_from_u64(1);
    let mut tasks = JoinSet::new();
    for number in 0..entries {
        let (gallery, enrolment) = (gallery.clone(), enrolment(&number.to_string(), number, random)?);
        tasks.spawn(async move { gallery.enrol(enrolment).await });
        if tasks.len() == 4096 {
            tasks.join_next().await.context("tasks are running")???;
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

fn open(root: &Path) -> Result<EmbeddedCatalog> {
    let settings = EmbeddedSettings {
        cache_bytes: 64 << 20,
        queue: QueueSettings { operations_max: 4096, bytes_max: 64 << 20 },
        quotas: Quotas {
            galleries_per_tenant: 10,
            entries_per_gallery: u64::MAX,
            bytes_per_tenant: u64::MAX,
        },
        imports: ImportBounds { image_bytes_max: 1 << 20, bytes_max: 8 << 20 },
    };
    Ok(EmbeddedCatalog::open(root, settings)?)
}

fn name() -> Result<GalleryName> {
    Ok(GalleryName::new("bench")?)
}

fn create(catalog: &EmbeddedCatalog) -> Result<Gallery> {
    let new = NewGallery { model: digest(), dimension: DIMENSION, composition: None, keeps_chips: false };
    Ok(catalog.create(TENANT, &name()?, new)?)
}

fn digest() -> ModelDigest {
    ModelDigest::new([7; 32])
}

fn enrolment(id: &str, number: u64, random: &mut ChaCha8Rng) -> Result<Enrolment> {
    let values = (0..DIMENSION).map(|_| random.random_range(-1.0..1.0)).collect();
    let mut content = [0; 32];
    content[..8].copy_from_slice(&number.to_le_bytes());
    Ok(Enrolment {
        entry: Entry {
            id: EntryId::new(id)?,
            vessel: Some(VesselId::new(&(number / CHIPS_PER_VESSEL).to_string())?),
            modality: Modality::Sar,
            observation: Observation {
                observed_at: Some(Time::from_nanos(number as i64)),
                ..Observation::default()
            },
            labels: Labels::default(),
            extent_m: None,
            enrolled_at: Time::from_nanos(0),
            precision: None,
            content: ContentHash::new(content),
        },
        embedding: Embedding::from_feature(values)?,
        model: digest(),
        shadow: None,
        chip: None,
        conflict: Conflict::Refuse,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS is told")?;
    let kib: u64 = line.split_whitespace().next().context("a number")?.parse()?;
    Ok(kib << 10)
}

/// Files named `name` under `folder`.
fn find(folder: &Path, name: &str) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(find(&path, name)?);
        } else if path.file_name().is_some_and(|file| file == name) {
            found.push(path);
        }
    }
    Ok(found)
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        bytes += if path.is_dir() { folder_bytes(&path)? } else { std::fs::metadata(&path)?.len() };
    }
    Ok(bytes)
}
