//! Files that take effect when they change: read at start, checked periodically, and left in effect while a new version
//! is broken.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::metrics;

/// Files that belong together, and how often they are checked.
#[derive(Clone, Debug)]
pub struct Files {
    /// A description of the files, for logs and as a label.
    pub subject: &'static str,
    pub paths: Vec<PathBuf>,
    pub every: Duration,
}

/// Why files could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{}: {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
}

impl Files {
    /// Reads the files and keeps watching them until the last receiver is dropped. `parse` gets the contents in the
    /// order of the paths. Contents are compared, not modification times: orchestrators swap links, and times may not
    /// change.
    ///
    /// # Errors
    /// A file cannot be read, or `parse` refuses it, on this first read.
    pub async fn follow<T: Send + Sync + 'static>(
        self,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, FileError> + Send + 'static,
    ) -> Result<watch::Receiver<Arc<T>>, FileError> {
        let contents = self.read().await?;
        let (sender, receiver) = watch::channel(Arc::new(parse(&contents)?));
        tokio::spawn(self.reload(contents, parse, sender));
        Ok(receiver)
    }

    async fn reload<T: Send + Sync + 'static>(
        self,
        mut tried: Vec<Vec<u8>>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, FileError> + Send + 'static,
        current: watch::Sender<Arc<T>>,
    ) {
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_readable = true;
        loop {
            tokio::select! {
                () = current.closed() => return,
                _ = ticks.tick() => {}
            }
            let contents = match self.read().await {
                Ok(contents) => contents,
                Err(cause) => {
                    // Reported once, not at every check.
                    if was_readable {
                        self.failed(&cause);
                    }
                    was_readable = false;
                    continue;
                }
            };
            was_readable = true;
            if contents == tried {
                continue;
            }
            match parse(&contents) {
                Ok(parsed) => {
                    current.send_replace(Arc::new(parsed));
                    metrics::reloaded(self.subject, "ok");
                    tracing::info!(subject = self.subject, "read again, and in use from now on");
                }
                Err(cause) => self.failed(&cause),
            }
            tried = contents;
        }
    }

    async fn read(&self) -> Result<Vec<Vec<u8>>, FileError> {
        let mut contents = Vec::with_capacity(self.paths.len());
        for path in &self.paths {
            let unreadable = |cause| FileError::Unreadable { path: path.clone(), cause };
            contents.push(tokio::fs::read(path).await.map_err(unreadable)?);
        }
        Ok(contents)
    }

    fn failed(&self, cause: &FileError) {
        metrics::reloaded(self.subject, "failed");
        tracing::error!(subject = self.subject, %cause, "the changed files cannot be used; the old ones stay in use");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_takes_effect_and_a_broken_one_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("number");
        // A rename, so that no check finds half a file.
        let put = |text: &str| {
            std::fs::write(folder.path().join("new"), text).expect("written");
            std::fs::rename(folder.path().join("new"), &path).expect("renamed");
        };
        put("1");
        let files = Files { subject: "numbers", paths: vec![path.clone()], every: Duration::from_millis(1) };
        let (looked, mut looks) = tokio::sync::mpsc::unbounded_channel();
        let named = path.clone();
        let parse = move |contents: &[Vec<u8>]| {
            let parsed = String::from_utf8_lossy(&contents[0]).parse::<u32>();
            looked.send(parsed.is_ok()).expect("somebody counts");
            parsed.map_err(|cause| FileError::Invalid { path: named.clone(), problem: cause.to_string() })
        };
        let mut current = files.clone().follow(parse.clone()).await.expect("valid at first");
        assert_eq!((**current.borrow_and_update(), looks.recv().await), (1, Some(true)));
        put("many");
        assert_eq!(looks.recv().await, Some(false));
        assert_eq!(**current.borrow(), 1);
        put("2");
        current.changed().await.expect("followed");
        assert_eq!(**current.borrow(), 2);
        put("many");
        assert!(files.follow(parse).await.is_err(), "at start, what is broken is refused");
    }
}
