//! `shipreid gallery migrate`: galleries of one server copied to another while both serve, and compared by digest.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use sha2::{Digest, Sha256};
use shipreid::client::{Client, ClientError};
use shipreid::wire::{DeleteGalleryRequest, ExportGalleryRequest};

use super::{ServerFlag, output};

/// Bytes of an export that are read at once.
const PIECE_BYTES: usize = 1 << 20;
/// How often a gallery is copied that changes meanwhile.
const ATTEMPTS_MAX: u32 = 3;

/// Copies galleries.
#[derive(Args)]
pub struct Migrate {
    /// Names of the galleries.
    #[arg(required = true, value_name = "GALLERY")]
    names: Vec<String>,
    /// The server that they are copied to, with the same credentials.
    #[arg(long, value_name = "URL")]
    to: String,
    #[command(flatten)]
    server: ServerFlag,
}

impl Migrate {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (from, to) = (self.server.connect().await?, self.server.connect_to(&self.to).await?);
        let folder = tempfile::tempdir().context("a folder for the copies on their way")?;
        let servers = Servers { from, to, folder: folder.path() };
        for name in &self.names {
            let migrated = servers.migrate(name).await.with_context(|| format!("gallery {name}"))?;
            let Migrated { digest, was_there } = migrated;
            let done = if was_there { "is there already" } else { "is copied" };
            output::say(format_args!("{name} {done}, sha256 {digest}"));
        }
        Ok(())
    }
}

struct Servers<'f> {
    from: Client,
    to: Client,
    folder: &'f Path,
}

/// A gallery that both servers have.
struct Migrated {
    digest: String,
    was_there: bool,
}

impl Servers<'_> {
    async fn migrate(&self, name: &str) -> anyhow::Result<Migrated> {
        for _ in 0..ATTEMPTS_MAX {
            let before = commit(&self.from, name).await?.context("the first server does not have it")?;
            let file = self.folder.join("original");
            let digest = export(&self.from, name, &file).await?;
            let was_there = commit(&self.to, name).await?.is_some();
            if !was_there {
                self.to.import_gallery(name.to_owned(), &file).await?;
            }
            let made = commit(&self.to, name).await?.context("the copy is deleted already")?;
            let copied = export(&self.to, name, &self.folder.join("copy")).await?;
            if copied == digest && commit(&self.from, name).await? == Some(before) {
                return Ok(Migrated { digest, was_there });
            }
            if was_there {
                bail!(
                    "both servers have one, with other content (sha256 {digest} and {copied}): \
                     delete the one that is not wanted"
                );
            }
            // It changed while it was copied. What this run made is made again, unless somebody uses it.
            if commit(&self.to, name).await? != Some(made) {
                bail!(
                    "it is changed on both servers at once: stop who writes it, delete the copy and try again"
                );
            }
            let request = DeleteGalleryRequest { name: name.to_owned() };
            self.to.galleries().delete_gallery(request).await.map_err(ClientError::from)?;
        }
        bail!("it changed while it was copied, {ATTEMPTS_MAX} times: stop who writes it and try again")
    }
}

/// The last commit of a gallery; `None` if there is no such gallery.
async fn commit(client: &Client, name: &str) -> Result<Option<u64>, ClientError> {
    Ok(client.find_gallery(name).await?.map(|gallery| gallery.commit))
}

/// The digest of an export, which is written to `file`.
async fn export(client: &Client, name: &str, file: &Path) -> anyhow::Result<String> {
    let request = ExportGalleryRequest { gallery: name.to_owned(), with_chips: true };
    client.export_gallery(request, file).await?;
    let file = file.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        let (mut file, mut hasher) = (File::open(file)?, Sha256::new());
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                return Ok::<_, io::Error>(hex::encode(hasher.finalize()));
            }
            hasher.update(&piece[..read]);
        }
    });
    Ok(hashed.await??)
}
