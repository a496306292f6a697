//! `shipreid model`: converts checkpoints into native models, inspects both, and manages the models of a running
//! server.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use shipreid::client::ClientError;
use shipreid::registry::{CALIBRATOR, calibrator_beside, calibrator_file, files_of};
use shipreid::weights::packed::{self, Part};
use shipreid::weights::quantize::check_source;
use shipreid::wire::{self, ActivateModelRequest, DeleteModelRequest, GetModelRequest, ImportModelResponse};

use super::access::{AccessFlags, endpoint_of_environment};
use super::chips::check_readable;
use super::confirm::ConfirmFlag;
use super::destination::ForceFlag;
use super::ensemble::EnsembleCommand;
use super::json::JsonFlag;
use super::model_file::{HintFlags, describe_any, describe_calibrator, dropped, open, open_any, replaces};
use super::quantize::Quantize;
use super::{Failure, Refusal, ServerFlag, block_on, digest, output};

#[derive(Subcommand)]
pub enum Model {
    /// Imports a checkpoint of TransOSS as a model, into a local folder or to a server.
    ///
    /// Examples:
    ///   shipreid model import transoss.pth models/transoss
    ///   shipreid model import transoss.pth --endpoint http://127.0.0.1:50051
    #[command(verbatim_doc_comment)]
    Import(Import),
    /// Describes a checkpoint or a model folder.
    Inspect {
        /// A .pth, a .safetensors or a model folder.
        path: PathBuf,
        #[command(flatten)]
        hints: HintFlags,
        /// The model in f32 that one in int8 must have been made from.
        #[arg(long, value_name = "MODEL")]
        source: Option<PathBuf>,
    },
    /// Writes a model with its linear layers in int8, and measures how far its embeddings are from the model's.
    Quantize(Quantize),
    /// Writes a model that is made of models, whose rankings are fused.
    Ensemble(EnsembleCommand),
    /// Lists the models of a server.
    List {
        #[command(flatten)]
        json: JsonFlag,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Shows one model of a server; with --json also its evaluations and, if it is yours, how it was trained.
    Show {
        /// Its digest, or at least its first 8 digits; default: the active model.
        #[arg(default_value = "", hide_default_value = true)]
        digest: String,
        #[command(flatten)]
        json: JsonFlag,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Writes a model of a server to a file, a zip of its folder.
    Export {
        /// Its digest, or at least its first 8 digits.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        digest: String,
        /// The file to write.
        file: PathBuf,
        #[command(flatten)]
        force: ForceFlag,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Activates a model of a server, without a restart or a failed call.
    Activate {
        /// Its digest, or at least its first 8 digits.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        digest: String,
        #[command(flatten)]
        server: ServerFlag,
    },
    /// Deletes a model of a server. Final.
    Delete {
        /// Its digest, or at least its first 8 digits.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        digest: String,
        #[command(flatten)]
        confirm: ConfirmFlag,
        #[command(flatten)]
        server: ServerFlag,
    },
}

#[derive(Args)]
#[group(id = "destination", multiple = false, args = ["folder", "endpoint"])]
pub struct Import {
    /// A .pth of PyTorch (nothing in it is executed) or a .safetensors; for a server also a model folder or an exported
    /// model.
    checkpoint: PathBuf,
    /// The folder to create.
    folder: Option<PathBuf>,
    #[command(flatten)]
    force: ForceFlag,
    /// The server to import into instead of a folder; default without a folder: SHIPREID_ENDPOINT.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    #[command(flatten)]
    access: AccessFlags,
    #[command(flatten)]
    hints: HintFlags,
}

impl Model {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Import(import) => import.run(),
            Self::Inspect { path, hints, source } => {
                let (model, origin) = open_any(&path, &hints)?;
                if let Some(source) = source {
                    let checked = check_source(&open(&path, &hints)?.0, open(&source, &hints)?.0);
                    checked.with_context(|| path.display().to_string()).map_err(Failure::Unusable)?;
                }
                let calibrator = calibrator_beside(&path, model.digest());
                let calibrator = calibrator.with_context(|| path.display().to_string());
                describe_any(&model, &origin);
                describe_calibrator(calibrator.map_err(Failure::Unusable)?.as_ref());
                Ok(())
            }
            Self::Quantize(quantize) => quantize.run(),
            Self::Ensemble(ensemble) => ensemble.run(),
            Self::List { json, server } => block_on(list(server, json)),
            Self::Show { digest, json, server } => block_on(show(server, digest, json)),
            Self::Export { digest, file, force, server } => {
                force.check_file(&file)?;
                block_on(export(server, digest, file))
            }
            Self::Activate { digest, server } => block_on(activate(server, digest)),
            Self::Delete { digest, confirm, server } => block_on(delete(server, digest, confirm)),
        }
    }
}

impl Import {
    fn run(self) -> Result<(), Failure> {
        if let Some(folder) = &self.folder {
            return self.write_to(folder);
        }
        let named = match &self.endpoint {
            Some(endpoint) => Some(endpoint.clone()),
            None => endpoint_of_environment()?,
        };
        let endpoint = named.ok_or_else(|| {
            Refusal("name a folder to create, or a server with --endpoint or SHIPREID_ENDPOINT".to_owned())
        })?;
        block_on(self.send_to(&endpoint))
    }

    fn write_to(&self, folder: &Path) -> Result<(), Failure> {
        let replaces = replaces(folder, &self.force)?;
        let (model, origin) = open_any(&self.checkpoint, &self.hints)?;
        let calibrator = calibrator_beside(&self.checkpoint, model.digest());
        let calibrator = calibrator.with_context(|| self.checkpoint.display().to_string());
        let calibrator = calibrator.map_err(Failure::Unusable)?;
        let name = self.checkpoint.file_name().context("a checkpoint is a file")?;
        if replaces {
            fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        model.save(folder, &name.to_string_lossy())?;
        if let Some(calibrator) = &calibrator {
            fs::write(folder.join(CALIBRATOR), calibrator_file(calibrator))?;
        }
        describe_any(&model, &origin);
        describe_calibrator(calibrator.as_ref());
        output::say(format_args!("written to  {}", folder.display()));
        Ok(())
    }

    async fn send_to(&self, endpoint: &str) -> anyhow::Result<()> {
        check_readable(&self.checkpoint)?;
        let client = self.access.connect(endpoint).await?;
        let named = || self.checkpoint.display().to_string();
        let packed = tempfile::tempdir()?;
        let file = if self.checkpoint.is_dir() {
            let name = self.checkpoint.file_name().unwrap_or("model".as_ref());
            let file = packed.path().join(name).with_added_extension("zip");
            pack(&self.checkpoint, &file).with_context(named)?;
            file
        } else {
            self.checkpoint.clone()
        };
        let bar = bytes_bar(fs::metadata(&file).with_context(named)?.len());
        let sent = bar.clone();
        let progress = move |bytes| sent.set_position(bytes);
        let imported = client.import_model(&file, self.hints.to_wire(), progress).await;
        bar.finish_and_clear();
        let ImportModelResponse { model, dropped_tensors } = imported?;
        output::say(table(model.as_slice()));
        if !dropped_tensors.is_empty() {
            output::say(dropped(&dropped_tensors));
        }
        Ok(())
    }
}

/// Writes a model folder as one file, with its history and calibrator if those are in it.
fn pack(folder: &Path, file: &Path) -> std::io::Result<()> {
    let part = |name: String| Ok(Part { file: File::open(folder.join(&name))?, name });
    let parts = files_of(folder).into_iter().map(part);
    packed::pack(parts.collect::<std::io::Result<_>>()?, File::create(file)?)
}

async fn list(server: ServerFlag, json: JsonFlag) -> anyhow::Result<()> {
    json.print(&server.connect().await?.list_models().await?, table);
    Ok(())
}

async fn show(server: ServerFlag, digest: String, json: JsonFlag) -> anyhow::Result<()> {
    let client = server.connect().await?;
    let request = GetModelRequest { digest: digest::resolve(&client, &digest).await? };
    let answer = client.models().get_model(request).await.map_err(ClientError::from)?;
    json.print(answer.into_inner().model.as_slice(), table);
    Ok(())
}

async fn export(server: ServerFlag, digest: String, file: PathBuf) -> anyhow::Result<()> {
    let client = server.connect().await?;
    let digest = digest::resolve(&client, &digest).await?;
    let request = GetModelRequest { digest: digest.clone() };
    let model = client.models().get_model(request).await.map_err(ClientError::from)?.into_inner().model;
    let bar = bytes_bar(model.unwrap_or_default().stored_bytes);
    let written = client.export_model(digest, &file, |bytes| bar.set_position(bytes)).await;
    bar.finish_and_clear();
    output::say(format_args!("wrote {} bytes to {}", written?, file.display()));
    Ok(())
}

async fn activate(server: ServerFlag, digest: String) -> anyhow::Result<()> {
    let client = server.connect().await?;
    let digest = digest::resolve(&client, &digest).await?;
    let answer =
        client.models().activate_model(ActivateModelRequest { digest }).await.map_err(ClientError::from)?;
    output::say(table(&answer.into_inner().model.into_iter().collect::<Vec<_>>()));
    Ok(())
}

async fn delete(server: ServerFlag, digest: String, confirm: ConfirmFlag) -> anyhow::Result<()> {
    confirm.needs_terminal(&format!("delete model {digest}"))?;
    let client = server.connect().await?;
    // The confirmation shows the full digest.
    let digest = digest::resolve(&client, &digest).await?;
    confirm.confirm(&format!("delete model {digest}"))?;
    let request = DeleteModelRequest { digest: digest.clone() };
    client.models().delete_model(request).await.map_err(ClientError::from)?;
    output::say(format_args!("model {digest} is deleted"));
    Ok(())
}

/// A progress bar on a terminal, hidden elsewhere.
fn bytes_bar(length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
        .expect("a constant template");
    ProgressBar::new(length).with_style(style)
}

fn table(models: &[wire::Model]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["digest", "origin", "dimension", "parameters", "mAP", "state"]);
    for model in models {
        let mut best = model.evaluations.iter().filter(|evaluation| evaluation.protocol == "all");
        let map = best.next_back().map(|evaluation| format!("{:.1} %", evaluation.map * 100.0));
        let state = match model {
            wire::Model { damage, .. } if !damage.is_empty() => format!("damaged: {damage}"),
            wire::Model { active: true, precision, .. } => format!("active, {precision}"),
            wire::Model { resident: true, precision, .. } => format!("resident, {precision}"),
            _ => String::new(),
        };
        table.add_row([
            model.digest.clone(),
            model.origin.clone(),
            model.dimension.to_string(),
            // Unknown for a model of the configuration without weights.
            if model.parameters_millions == 0 {
                String::new()
            } else {
                format!("{} M", model.parameters_millions)
            },
            map.unwrap_or_default(),
            state,
        ]);
    }
    table
}
