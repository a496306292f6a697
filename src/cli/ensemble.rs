//! `shipreid model ensemble`: writes a model that is made of models.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use shipreid::registry::{PROVENANCE, Provenance};
use shipreid::weights::any::AnyModel;
use shipreid::weights::checkpoint::Origin;
use shipreid::weights::ensemble::Ensemble;
use shipreid::weights::open::{Hints, OpenModel};

use super::destination::ForceFlag;
use super::model_file::{describe_any, replaces};
use super::{Failure, output};

#[derive(Args)]
#[command(after_help = "\
Example: shipreid model ensemble models/first models/second --weights 1,0.5 --out models/both

A chip passes through every member, so an ensemble costs what they cost together. Match ranks its galleries by the sum of
weight / (k + rank) over the members' ranked lists. The folder has copies of the members.")]
pub struct EnsembleCommand {
    /// Model folders or exported models that read the same chips; two at least.
    #[arg(required = true, value_name = "MEMBER")]
    members: Vec<PathBuf>,
    /// The weight of each member, in their order; default: 1 each.
    #[arg(long, value_delimiter = ',', value_name = "WEIGHT,...", allow_hyphen_values = true)]
    weights: Vec<f64>,
    /// The larger, the less the first ranks count beside the others.
    #[arg(long, default_value_t = 3)]
    k: u32,
    /// Ranks of each member that count; no more candidates are returned.
    #[arg(long, default_value_t = 100)]
    depth: u32,
    /// The folder to create.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    force: ForceFlag,
}

impl EnsembleCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let replaces = replaces(&self.out, &self.force)?;
        let members = self.members.iter().map(|path| member(path));
        let members = members.collect::<anyhow::Result<Vec<_>>>().map_err(Failure::Unusable)?;
        let weights = if self.weights.is_empty() { vec![1.0; members.len()] } else { self.weights.clone() };
        let ensemble = Ensemble::new(members, &weights, self.k, self.depth);
        let ensemble = AnyModel::from(ensemble.map_err(|cause| Failure::Unusable(cause.into()))?);
        if replaces {
            fs::remove_dir_all(&self.out).with_context(|| self.out.display().to_string())?;
        }
        let names =
            self.members.iter().map(|path| path.file_name().unwrap_or("model".as_ref()).to_string_lossy());
        let provenance = Provenance::now(format!("ensemble of {}", names.collect::<Vec<_>>().join(", ")));
        ensemble.save(&self.out, &provenance.origin)?;
        let file = self.out.join(PROVENANCE);
        fs::write(&file, provenance.to_toml()).with_context(|| file.display().to_string())?;
        describe_any(&ensemble, &Origin::default());
        output::say(format_args!("written to  {}", self.out.display()));
        Ok(())
    }
}

/// A model that can be a member: one in our own format, which is no ensemble itself.
fn member(path: &Path) -> anyhow::Result<OpenModel> {
    match AnyModel::open(path, &Hints::default())? {
        AnyModel::Network(model) => Ok(model),
        AnyModel::Ensemble(_) => Err(anyhow!("{} is an ensemble: name its members instead", path.display())),
    }
}
