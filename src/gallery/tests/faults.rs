//! Power failures, killed processes and disks that refuse writes: nothing acknowledged is lost, nothing deleted comes
//! back.

use std::sync::Arc;

use super::generator::OperationGenerator;
use super::model::{Answer, Model, Operation};
use super::*;
use crate::durable::Volume;
use crate::durable::faults::{Failure, FaultyDisk};
use crate::gallery::embedded::builder::GalleryBuilder;
use crate::gallery::embedded::handle::pending;
use crate::gallery::embedded::quota::Allowance;
use crate::gallery::embedded::schema::{CHIP_ROWS, CHIPS, CODES};
use crate::gallery::embedded::writer::{Bounds, Writer};

const SEEDS: u64 = 1000;
const CACHE_BYTES: usize = 1 << 20;

/// A gallery on a failing disk, and its expected state.
struct Trial {
    disk: FaultyDisk,
    generator: OperationGenerator,
    /// The acknowledged state.
    model: Model,
    /// The state if a group that was not acknowledged was committed all the same.
    perhaps: Option<Model>,
    /// A file of codes from earlier in its life.
    old_codes: Option<Vec<u8>>,
    /// How often the gallery moved to another model.
    flips: usize,
    /// How often it accepted writes again.
    recoveries: usize,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let disk = FaultyDisk::new(seed);
        let about = About::new(model(), DIMENSION, true, Time::from_nanos(5));
        let builder = GalleryBuilder::new(&disk, about, CACHE_BYTES).expect("no failure is planned");
        builder.finish(0).expect("no failure is planned");
        Self {
            disk,
            generator: OperationGenerator::new(seed),
            model: Model::default(),
            perhaps: None,
            old_codes: None,
            flips: 0,
            recoveries: 0,
        }
    }

    /// From opening the gallery to an orderly close, a killed process or a power failure.
    fn live(&mut self) {
        if self.generator.0.random_bool(0.7) {
            let lasts = if self.generator.0.random() { Failure::Lasting } else { Failure::Passing };
            self.disk.fail_after(self.generator.0.random_range(0..150), lasts);
        }
        let Some(mut writer) = self.open() else { return self.die() };
        for _ in 0..self.generator.0.random_range(1..8) {
            self.commit(&mut writer);
            if self.generator.0.random_bool(0.5) {
                self.turn(&mut writer);
            }
            if self.generator.0.random_bool(0.8) {
                writer.sweep();
            }
            if writer.awaits_room() && self.generator.0.random_bool(0.5) {
                writer = self.make_room(writer);
            }
        }
        self.model.check_embedded(&writer.published().snapshot());
        if self.generator.0.random_bool(0.3) {
            writer.close();
            self.disk.restart_process();
        } else {
            self.disk.cut();
            drop(writer);
            self.die();
        }
        self.mangle_codes();
    }

    /// `None` if the disk already refuses; a gallery that can be opened has its acknowledged state.
    fn open(&mut self) -> Option<Writer> {
        let bounds = Bounds {
            cache_bytes: CACHE_BYTES,
            quotas: settings().quotas,
            allowance: Arc::new(Allowance::new(u64::MAX)),
        };
        // A failing sync may make opening fail, which changes nothing.
        let writer = Writer::open(Arc::new(self.disk.clone()), bounds, None).ok()?;
        self.learn(&writer);
        Some(writer)
    }

    /// After an opening, an unacknowledged group is there as a whole or not at all.
    fn learn(&mut self, writer: &Writer) {
        let snapshot = writer.published().snapshot();
        let found = Model::of(&snapshot);
        if let Some(perhaps) = self.perhaps.take().filter(|perhaps| *perhaps == found) {
            self.model = perhaps;
        }
        self.model.check_embedded(&snapshot);
    }

    /// The disk has room again, which the gallery detects automatically.
    fn make_room(&mut self, writer: Writer) -> Writer {
        if self.generator.0.random_bool(0.3) {
            self.disk.fail_after(0, Failure::Lasting);
            let writer = writer.recover().expect("it does not try without room");
            assert!(writer.awaits_room());
            self.model.check_embedded(&writer.published().snapshot());
            self.disk.recover();
            return self.recovered(writer);
        }
        self.disk.recover();
        self.recovered(writer)
    }

    fn recovered(&mut self, writer: Writer) -> Writer {
        let writer = writer.recover().expect("no failure is planned");
        assert_eq!(writer.published().failure(), None);
        self.learn(&writer);
        self.recoveries += 1;
        writer
    }

    fn commit(&mut self, writer: &mut Writer) {
        let mut operations: Vec<_> =
            (0..self.generator.0.random_range(1..6)).map(|_| self.generator.operation()).collect();
        if self.generator.0.random_bool(0.6) {
            operations.push(self.generator.fill(&self.model));
        }
        let mut after = self.model.clone();
        let expected: Vec<Answer> = operations.iter().map(|operation| after.apply(operation)).collect();
        let of = |operation: Operation| pending(move |batch| operation.run(batch));
        let (mut jobs, mut answers): (Vec<_>, Vec<_>) = operations.into_iter().map(of).unzip();
        let fate = writer.commit(&mut jobs);
        jobs.into_iter().for_each(|job| job.acknowledge(fate.clone()));
        let answers = answers.iter_mut().map(|answer| answer.try_recv().expect("answered"));
        match fate {
            Ok(()) => {
                assert_eq!(answers.collect::<Result<Vec<_>, _>>().expect("acknowledged"), expected);
                self.model = after;
            }
            Err(error) => {
                answers.for_each(|answer| assert_eq!(answer, Err(error.clone())));
                assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
                self.perhaps.get_or_insert(after);
            }
        }
        self.model.check_embedded(&writer.published().snapshot());
    }

    /// The gallery begins to move to another model, drops the shadow, or flips.
    fn turn(&mut self, writer: &mut Writer) {
        let turn = self.generator.turn(&self.model);
        let mut after = self.model.clone();
        let expected = after.turn(&turn);
        match turn.run(writer) {
            Err(StoreError::ReadOnly { .. }) => {
                self.perhaps.get_or_insert(after);
            }
            outcome => {
                assert_eq!(outcome, expected, "{turn:?}");
                self.flips += usize::from(after.of != self.model.of);
                self.model = after;
            }
        }
        self.model.check_embedded(&writer.published().snapshot());
    }

    fn die(&mut self) {
        self.disk.cut();
        if self.generator.0.random_bool(0.7) {
            self.disk.restart_machine()
        } else {
            self.disk.restart_process()
        }
    }

    /// Nothing depends on the codes, so their file may be changed in any way.
    fn mangle_codes(&mut self) {
        let random = &mut self.generator.0;
        let Some(mut codes) = self.disk.bytes(CODES) else { return };
        let now = codes.clone();
        match random.random_range(0..6) {
            0 => codes.truncate(random.random_range(0..=codes.len())),
            1 => {
                let at = random.random_range(0..=codes.len());
                codes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.random_range(0..8));
            }
            2 => codes.extend(b"more"),
            3 => codes = self.old_codes.clone().unwrap_or_default(),
            4 => {
                let old = self.old_codes.clone().unwrap_or_default();
                let mixed = random.random_range(0..=old.len().min(codes.len()));
                codes[..mixed].copy_from_slice(&old[..mixed]);
            }
            _ => {}
        }
        self.old_codes = Some(now);
        self.disk.set_bytes(CODES, codes);
    }

    /// Chips of rows that were deleted or never committed are not kept.
    fn check_chips(&self) {
        use redb::{ReadableDatabase, ReadableTable};
        let file = self.disk.open(CHIPS).expect("there");
        let database = redb::Builder::new().create_with_backend(Wrapped(file)).expect("in order");
        let table = database.begin_read().expect("readable").open_table(CHIP_ROWS).expect("there");
        let rows: Vec<u64> =
            table.iter().expect("readable").map(|row| row.expect("readable").0.value()).collect();
        let with_chip = self.model.rows.iter().filter(|(_, kept)| kept.chip.is_some());
        assert_eq!(rows, with_chip.map(|(row, _)| row.0).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_acknowledged_survives_whatever_the_disk_does() {
    let (mut flips, mut recoveries) = (0, 0);
    for seed in 0..SEEDS {
        let mut trial = Trial::new(seed);
        for _ in 0..trial.generator.0.random_range(1..5) {
            trial.live();
        }
        trial.open().expect("no failure is planned").close();
        trial.check_chips();
        flips += trial.flips;
        recoveries += trial.recoveries;
    }
    assert!(flips > 100 && recoveries > 100, "{flips} {recoveries}");
}

/// redb requires a backend of a sized type.
#[derive(Debug)]
struct Wrapped(Box<dyn redb::StorageBackend>);

impl redb::StorageBackend for Wrapped {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
}
