//! Asks for confirmation before something irreversible.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;

use super::Refusal;

/// Whether somebody has to be asked.
#[derive(Args)]
pub struct ConfirmFlag {
    /// Skips the confirmation; required where there is no terminal.
    #[arg(long, short)]
    yes: bool,
}

impl ConfirmFlag {
    /// Checks, before any work, whether there is a terminal to ask on.
    ///
    /// # Errors
    /// There is no terminal to ask on.
    pub fn needs_terminal(&self, deed: &str) -> Result<(), Refusal> {
        if self.yes || (io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Ok(());
        }
        Err(Refusal(format!(
            "{deed}: this cannot be undone, and there is no terminal to confirm it on: add --yes to skip the question"
        )))
    }

    /// Asks for confirmation of `deed`, as "delete gallery harbour", unless it was given already.
    ///
    /// # Errors
    /// There is no terminal to ask on, or the answer is not yes.
    pub fn confirm(&self, deed: &str) -> Result<(), Refusal> {
        if self.yes {
            return Ok(());
        }
        self.needs_terminal(deed)?;
        let agreed = ask(deed, &mut io::stdin().lock(), &mut io::stderr().lock()).unwrap_or(false);
        if agreed { Ok(()) } else { Err(Refusal(format!("{deed}: cancelled"))) }
    }
}

/// Whether the answer begins with "y"; an empty answer is a no.
fn ask(deed: &str, answers: &mut impl BufRead, out: &mut impl Write) -> io::Result<bool> {
    write!(out, "{deed}? This cannot be undone. [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for (answer, agreed) in [
            ("y\n", true),
            ("Yes\n", true),
            ("yes", true),
            ("n\n", false),
            ("\n", false),
            ("", false),
            ("yeti\n", false),
        ] {
            let mut asked = Vec::new();
            let found = ask("delete gallery harbour", &mut answer.as_bytes(), &mut asked).expect("memory");
            assert_eq!(found, agreed, "{answer:?}");
            assert_eq!(asked, b"delete gallery harbour? This cannot be undone. [y/N] ");
        }
    }
}
