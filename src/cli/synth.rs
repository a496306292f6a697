//! `shipreid synth`: data sets of synthetic ships.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use shipreid::synth::{self, SynthPlan};

use super::destination::check_unused;
use super::embed::progress;
use super::{Failure, output};

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid synth --ids 200 --out target/synthetic
  shipreid eval --data target/synthetic/synthetic_hoss --by-size")]
pub struct Synth {
    /// Ships of the HOSS layout: half for training, half for testing.
    #[arg(long, value_name = "N")]
    ids: u64,
    /// Ships of the pair layout; default: twice --ids.
    #[arg(long, value_name = "N")]
    pairs: Option<u64>,
    /// Optical views of each ship in the HOSS layout, and as many SAR views.
    #[arg(long, default_value_t = 4)]
    views: u64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where synthetic_hoss, synthetic_pairs and synthetic_ships.png are written: a new or an empty folder.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

impl Synth {
    pub(super) fn run(self) -> Result<(), Failure> {
        let plan = SynthPlan {
            ships: self.ids,
            pairs: self.pairs.unwrap_or(2 * self.ids),
            views: self.views,
            seed: self.seed,
        };
        if let Err(cause) = check(&plan) {
            return Err(Failure::Unusable(cause));
        }
        check_unused(&self.out)?;
        let bar = progress((plan.ships + plan.pairs) as usize);
        synth::write(&plan, &self.out, &mut || bar.inc(1))?;
        bar.finish_and_clear();
        output::say(format_args!(
            "{} synthetic ships and {} synthetic pairs in {}",
            plan.ships,
            plan.pairs,
            self.out.display()
        ));
        Ok(())
    }
}

fn check(plan: &SynthPlan) -> anyhow::Result<()> {
    if !(2..=9999).contains(&plan.ships) || plan.pairs > 90_000 {
        bail!("--ids must be 2 to 9999 and --pairs at most 90000");
    }
    if !(2..=99).contains(&plan.views) {
        bail!("--views must be 2 to 99: one is the query, the others are enrolled");
    }
    Ok(())
}
