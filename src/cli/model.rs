//! `shipreid model`: checkpoints into models of ours, and what is in either.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use shipreid::chip::ChipSize;
use shipreid::weights::architecture::{ArchitectureHints, FeaturePoint};
use shipreid::weights::open::{Hints, OpenModel};

use super::Failure;

#[derive(Subcommand)]
pub enum Model {
    /// Writes a PyTorch checkpoint of TransOSS as a model folder.
    ///
    /// Example: shipreid model import transoss.pth models/transoss
    #[command(verbatim_doc_comment)]
    Import {
        /// A .pth as PyTorch writes it. Nothing in it is executed.
        checkpoint: PathBuf,
        /// The folder to make.
        folder: PathBuf,
        #[command(flatten)]
        hints: HintFlags,
    },
    /// Says what a checkpoint or a model folder holds.
    Inspect {
        /// A .pth or a model folder.
        path: PathBuf,
        #[command(flatten)]
        hints: HintFlags,
    },
}

/// What a checkpoint does not say itself.
#[derive(Args)]
pub struct HintFlags {
    /// Which feature becomes the embedding.
    #[arg(long, default_value = "before-neck", value_parser = feature_point, value_name = "before-neck|after-neck")]
    feature: FeaturePoint,
    /// Attention heads; embedding width / 64 without it.
    #[arg(long)]
    heads: Option<usize>,
    /// Pixels of a chip, as HEIGHTxWIDTH; 256x128 without it.
    #[arg(long, value_parser = chip_size, value_name = "HxW")]
    image: Option<ChipSize>,
    /// Distance between patches.
    #[arg(long)]
    stride: Option<usize>,
    /// Factor of the modality embedding; 3 without it.
    #[arg(long)]
    mie_coefficient: Option<f32>,
}

impl Model {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Import { checkpoint, folder, hints } => {
                let model = open(&checkpoint, &hints)?;
                let name = checkpoint.file_name().context("a checkpoint is a file")?;
                model.save(&folder, &name.to_string_lossy())?;
                describe(&model);
                println!("written to  {}", folder.display());
            }
            Self::Inspect { path, hints } => describe(&open(&path, &hints)?),
        }
        Ok(())
    }
}

fn open(path: &std::path::Path, flags: &HintFlags) -> Result<OpenModel, Failure> {
    let architecture = ArchitectureHints {
        image: flags.image,
        stride: flags.stride,
        heads: flags.heads,
        mie_coefficient: flags.mie_coefficient,
    };
    OpenModel::open(path, &Hints { feature_point: flags.feature, architecture })
        .map_err(|cause| Failure::Unusable(cause.into()))
}

fn describe(model: &OpenModel) {
    let a = &model.architecture;
    let parameters: usize = model.tensors.values().map(|tensor| tensor.values.len()).sum();
    let feature = match model.feature_point {
        FeaturePoint::BeforeNeck => "before the neck",
        FeaturePoint::AfterNeck => "after the neck",
    };
    let yes_no = |holds: bool| if holds { "yes" } else { "no" };
    println!("digest      {}", model.digest);
    println!("chip        {} x {} (height x width)", a.image.height, a.image.width);
    println!("network     {} blocks, {} wide, {} heads, MLP x{}", a.depth, a.embed_dim, a.heads, a.mlp_ratio);
    println!("tokens      {} (patch {}, stride {})", a.token_count(), a.patch, a.stride);
    println!("size token  {}", yes_no(a.size_token));
    println!("modality    {} (factor {})", yes_no(a.modality_embedding), a.mie_coefficient);
    println!("feature     {feature}");
    println!("classes     {}", a.classes);
    println!("tensors     {} with {parameters} numbers", model.tensors.len());
}

fn chip_size(text: &str) -> Result<ChipSize, String> {
    let sides = text.split_once('x').and_then(|(h, w)| Some((h.parse().ok()?, w.parse().ok()?)));
    sides
        .map(|(height, width)| ChipSize { height, width })
        .ok_or_else(|| "write height x width, for example 256x128".into())
}

fn feature_point(text: &str) -> Result<FeaturePoint, String> {
    match text {
        "before-neck" => Ok(FeaturePoint::BeforeNeck),
        "after-neck" => Ok(FeaturePoint::AfterNeck),
        _ => Err("write before-neck or after-neck".into()),
    }
}
