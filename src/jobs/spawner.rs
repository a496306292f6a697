//! Starts processes from a thread that lives as long as the jobs do.
//!
//! A training process asks the kernel to end it with its parent, and the kernel regards the thread that started it as
//! the parent. Threads of the runtime do not live long enough.

use std::io;
use std::sync::mpsc;
use std::thread;

use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

#[derive(Clone, Debug)]
pub struct Spawner(mpsc::Sender<(Command, oneshot::Sender<io::Result<Child>>)>);

impl Spawner {
    /// The thread ends with the last clone of the returned value, and the processes it started end with it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start() -> io::Result<Self> {
        let (sender, commands) = mpsc::channel::<(Command, oneshot::Sender<io::Result<Child>>)>();
        let runtime = Handle::current();
        thread::Builder::new().name("jobs".into()).spawn(move || {
            let _inside = runtime.enter();
            for (mut command, answer) in commands {
                // The caller may be gone; then the child is killed as it is dropped.
                let _ = answer.send(command.spawn());
            }
        })?;
        Ok(Self(sender))
    }

    /// # Errors
    /// The process cannot be started.
    pub async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (answer, spawned) = oneshot::channel();
        self.0.send((command, answer)).map_err(io::Error::other)?;
        spawned.await.map_err(io::Error::other)?
    }
}
