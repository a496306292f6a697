//! `shipreid bench bare`: decode and forward in a loop, without the rest of the service.

use std::iter::Cycle;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use serde_json::json;
use shipreid::app::{self, LoadedModel};
use shipreid::chip::{self, ImageLimits, View};
use shipreid::encoder::{Batch, Encoder};

use super::chips::{ChipFile, ChipFlags};
use super::number::seconds;
use super::{ConfigFlags, Failure, output, prepare};

#[derive(Args)]
#[command(after_help = "\
Example: shipreid bench bare ../shared/data/hoss165 --set model.preset=vit_base")]
pub struct Bare {
    #[command(flatten)]
    chips: ChipFlags,
    #[command(flatten)]
    config: ConfigFlags,
    /// Seconds to measure.
    #[arg(long, default_value_t = 20.0, value_name = "SECONDS", value_parser = seconds)]
    duration: f64,
    /// Chips in one forward pass; default: encoder.batch_max.
    #[arg(long)]
    batch: Option<usize>,
}

impl Bare {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.config.load()?;
        prepare(app::threads_per_worker(&config))?;
        let files = self.chips.read()?;
        let loaded = app::load_model(&config).map_err(Failure::Unusable)?;
        let batch = self.batch.unwrap_or(config.encoder.batch_max).max(1);
        let limits = ImageLimits { bytes_max: config.chips.bytes_max, pixels_max: config.chips.pixels_max };
        let measured = measure(&loaded, &files, batch, limits, Duration::from_secs_f64(self.duration))?;
        output::say(measured);
        Ok(())
    }
}

/// Runs as many loops as a server has device threads, since they share caches and cores there as well.
fn measure(
    model: &LoadedModel,
    files: &[ChipFile],
    batch: usize,
    limits: ImageLimits,
    duration: Duration,
) -> anyhow::Result<serde_json::Value> {
    let (images, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let (ready, warm) = mpsc::channel();
        for worker in 0..model.workers {
            let (ready, images, stop) = (ready.clone(), &images, &stop);
            scope.spawn(move || {
                let mut encode_loop = match EncodeLoop::warm(worker, model, files, batch, limits) {
                    Ok(encode_loop) => encode_loop,
                    Err(cause) => return drop(ready.send(Err(cause))),
                };
                // The receiver outlives the loops unless one of them failed.
                let _ = ready.send(Ok(()));
                while !stop.load(Ordering::Relaxed) {
                    match encode_loop.once() {
                        Ok(done) => drop(images.fetch_add(done, Ordering::Relaxed)),
                        Err(cause) => return drop(ready.send(Err(cause))),
                    }
                }
            });
        }
        let measured = (0..model.workers).try_for_each(|_| warm.recv()?).and_then(|()| {
            let (started, cpu, done) = (Instant::now(), process_cpu(), images.load(Ordering::Relaxed));
            if let Ok(failed) = warm.recv_timeout(duration) {
                failed?;
            }
            let (elapsed, cpu) = (started.elapsed().as_secs_f64(), (process_cpu() - cpu).as_secs_f64());
            let done = images.load(Ordering::Relaxed) - done;
            Ok(json!({
                "loops": model.workers,
                "batch": batch,
                "images": done,
                "seconds": elapsed,
                "cpu_seconds": cpu,
                "images_per_second": done as f64 / elapsed,
                "images_per_cpu_second": done as f64 / cpu,
            }))
        });
        stop.store(true, Ordering::Relaxed);
        measured
    })
}

/// One loop's encoder and its position in the files.
struct EncodeLoop<'a> {
    encoder: Box<dyn Encoder>,
    model: &'a LoadedModel,
    files: Cycle<slice::Iter<'a, ChipFile>>,
    batch: usize,
    limits: ImageLimits,
}

impl<'a> EncodeLoop<'a> {
    /// An encoder that has run once.
    fn warm(
        worker: usize,
        model: &'a LoadedModel,
        files: &'a [ChipFile],
        batch: usize,
        limits: ImageLimits,
    ) -> anyhow::Result<Self> {
        let encoder = (model.factory)(worker).map_err(|cause| anyhow!(cause))?;
        let mut encode_loop = Self { encoder, model, files: files.iter().cycle(), batch, limits };
        encode_loop.once()?;
        Ok(encode_loop)
    }

    /// Decodes and embeds one batch; returns the number of images.
    fn once(&mut self) -> anyhow::Result<usize> {
        let (card, limits) = (&self.model.card, self.limits);
        let chips = self.files.by_ref().take(self.batch).map(|file| {
            let view = View::plain(file.modality);
            Ok(chip::prepare(&file.chip.image, &view, card.chip_form(), &limits)?.chip.into())
        });
        let batch = Batch { model: card.digest, chips: chips.collect::<anyhow::Result<_>>()? };
        Ok(self.encoder.forward(&batch)?.len())
    }
}

/// User and system time of this process.
pub(super) fn process_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Linux, and the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
