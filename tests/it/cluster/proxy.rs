//! The network between a server and its database, whose connections a test can cut.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Clone, Copy, Debug, Default)]
pub enum Cut {
    /// At once.
    #[default]
    Now,
    /// Once the next request of each connection was answered, without the answer.
    BeforeAnswer,
}

/// Listens on a port of its own until it goes out of scope.
pub struct Proxy {
    pub port: u16,
    cut: watch::Sender<Cut>,
    is_down: Arc<AtomicBool>,
    /// How many connections the database has ended.
    pub ended: watch::Sender<usize>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = watch::Sender::default();
        let ended = watch::Sender::default();
        let is_down = Arc::new(AtomicBool::new(false));
        let (cuts, ends, refuses) = (cut.clone(), ended.clone(), Arc::clone(&is_down));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // In this order, no connection is accepted and not cut.
                let cuts = cuts.subscribe();
                if !refuses.load(Ordering::SeqCst) {
                    tokio::spawn(relay(client, socket.clone(), cuts, ends.clone()));
                }
            }
        });
        Self { port, cut, is_down, ended, accepting }
    }

    /// Cuts all connections, and refuses others until it is [up](Self::up) again.
    pub fn down(&self) {
        self.is_down.store(true, Ordering::SeqCst);
        self.cut(Cut::Now);
    }

    pub fn up(&self) {
        self.is_down.store(false, Ordering::SeqCst);
    }

    /// Cuts all connections that there are.
    pub fn cut(&self, cut: Cut) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Until one side ends, or the connection is cut.
async fn relay(
    mut client: TcpStream,
    socket: PathBuf,
    mut cuts: watch::Receiver<Cut>,
    ended: watch::Sender<usize>,
) {
    let Ok(mut database) = UnixStream::connect(socket).await else { return };
    let _ = client.set_nodelay(true);
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let cut = loop {
        let is_open = tokio::select! {
            read = client.read(&mut asked) => pass(read, &asked, &mut database).await,
            read = database.read(&mut answered) => {
                let is_open = pass(read, &answered, &mut client).await;
                if !is_open {
                    ended.send_modify(|ended| *ended += 1);
                }
                is_open
            }
            changed = cuts.changed() => match changed {
                Ok(()) => break *cuts.borrow(),
                Err(_) => false,
            },
        };
        if !is_open {
            return;
        }
    };
    if let Cut::BeforeAnswer = cut {
        let asked_for = client.read(&mut asked).await;
        if pass(asked_for, &asked, &mut database).await {
            let _ = database.read(&mut answered).await;
        }
    }
}

/// Whether something was read, and could be written.
async fn pass(read: std::io::Result<usize>, bytes: &[u8], to: &mut (impl AsyncWriteExt + Unpin)) -> bool {
    match read {
        Ok(count) if count > 0 => to.write_all(&bytes[..count]).await.is_ok(),
        _ => false,
    }
}
