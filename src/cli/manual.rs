//! Shell completions and manual pages of the commands.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use clap_complete::Shell;

use super::destination::ForceFlag;
use super::{NAME, command, output};

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid completions bash > ~/.local/share/bash-completion/completions/shipreid
  shipreid completions zsh > ~/.zfunc/_shipreid
  shipreid completions fish > ~/.config/fish/completions/shipreid.fish")]
pub struct Completions {
    /// The shell to complete for.
    shell: Shell,
}

#[derive(Args)]
#[command(after_help = "\
Example: shipreid man ~/.local/share/man/man1")]
pub struct Man {
    /// Where the pages are written: shipreid.1, shipreid-serve.1 and so on; it is created if it does not exist.
    folder: PathBuf,
    #[command(flatten)]
    force: ForceFlag,
}

impl Completions {
    pub(super) fn run(self) {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command(), NAME, &mut script);
        output::say(String::from_utf8_lossy(&script).trim_end());
    }
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let drawn_up = tempfile::tempdir()?;
        clap_mangen::generate_to(command(), drawn_up.path())?;
        let pages = fs::read_dir(drawn_up.path())?.map(|page| Ok(page?.path()));
        let pages = pages.collect::<std::io::Result<Vec<_>>>()?;
        let place = |page: &PathBuf| self.folder.join(page.file_name().unwrap_or_default());
        // All or none: otherwise the pages could be of two releases.
        pages.iter().try_for_each(|page| self.force.check(&place(page)))?;
        fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        for page in &pages {
            self.force.write_bytes(&place(page), fs::read(page)?)?;
        }
        output::say(format_args!("{} pages in {}", pages.len(), self.folder.display()));
        Ok(())
    }
}
