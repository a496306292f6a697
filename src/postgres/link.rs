//! Connections to the database, on threads of their own: writers of galleries wait on their threads for it, and work that
//! has begun comes to its end where its caller leaves.

use std::fmt;
use std::ops::Deref;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, Object, Pool, RecycleError, RecycleResult};
use futures_util::future::poll_fn;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::failure::{Unreachable, failed};
use super::target::{Target, connector};
use crate::metrics;

/// Connections of a server. Those of writers that wait for a lock count.
const CONNECTIONS_MAX: usize = 16;
/// After this long without an answer, the database counts as unreachable.
const PATIENCE: Duration = Duration::from_secs(30);
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// The connections to one database. Cloning it is cheap.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

struct Inner {
    pool: Pool<Connector>,
    handle: Handle,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

/// A connection that goes back to the others when it is dropped.
pub type Connection = Object<Connector>;

/// One connection.
pub struct Link {
    client: Client,
    /// Set once a commit was made here that a standby may not have.
    is_unreplicated: Arc<AtomicBool>,
}

/// Opens connections.
pub struct Connector {
    config: Config,
    tls: MakeRustlsConnect,
}

impl Database {
    /// Connects to the database of `url` once, to see that it can be used.
    ///
    /// # Errors
    /// The URL or its authority's certificate is none, or the database cannot be reached or refuses its user.
    pub async fn open(url: &str) -> Result<Self, Unreachable> {
        let Target { mut config, authority } = Target::parse(url)?;
        let tls = connector(authority.as_deref())?;
        // After a failover, a host that has become a standby is passed over.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.connect_timeout(CONNECT_PATIENCE).tcp_user_timeout(PATIENCE);
        if config.get_application_name().is_none() {
            config.application_name("shipreid");
        }
        let runtime =
            Builder::new_multi_thread().worker_threads(2).thread_name("postgres").enable_all().build();
        let runtime = runtime.map_err(|cause| Unreachable(cause.to_string()))?;
        let pool = Pool::builder(Connector { config, tls }).max_size(CONNECTIONS_MAX).build();
        let pool = pool.map_err(|cause| Unreachable(cause.to_string()))?;
        let database =
            Self(Arc::new(Inner { pool, handle: runtime.handle().clone(), runtime: Some(runtime) }));
        database.run(|_| async { Ok::<_, Unreachable>(()) }).await?;
        metrics::limit("database_connections", CONNECTIONS_MAX as f64);
        Ok(database)
    }

    /// Runs work with a connection to its end, whether or not the caller waits for it.
    ///
    /// # Errors
    /// Those of `work`, and the database cannot be reached.
    pub async fn run<T, E, W>(&self, work: impl FnOnce(Connection) -> W + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Unreachable> + Send + 'static,
        W: Future<Output = Result<T, E>> + Send,
    {
        let pool = self.0.pool.clone();
        let running = self.0.handle.spawn(patient(async move { work(connection(&pool).await?).await }));
        running.await.unwrap_or_else(|cause| Err(Unreachable(cause.to_string()).into()))
    }

    /// Waits on this thread, whatever thread it is.
    ///
    /// # Errors
    /// Those of `work`, and the database took too long.
    pub fn wait<T: Send, E: From<Unreachable> + Send>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, E> {
        let wait = || self.0.handle.block_on(patient(work));
        if Handle::try_current().is_err() {
            return wait();
        }
        // A thread that belongs to a runtime must not wait for another.
        thread::scope(|scope| scope.spawn(wait).join()).unwrap_or_else(|panicked| resume_unwind(panicked))
    }

    /// # Errors
    /// The database cannot be reached.
    pub async fn connection(&self) -> Result<Connection, Unreachable> {
        connection(&self.0.pool).await
    }

    /// Records how many connections there are.
    pub fn observe(&self) {
        let status = self.0.pool.status();
        let idle = status.available.min(status.size);
        metrics::database_pool(status.size - idle, idle, status.waiting);
    }

    /// The threads of the connections.
    pub fn handle(&self) -> &Handle {
        &self.0.handle
    }
}

async fn patient<T, E: From<Unreachable>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let elapsed = |_| {
        metrics::database_failed("timeout");
        Unreachable(format!("no answer in {} s", PATIENCE.as_secs()))
    };
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|cause| Err(elapsed(cause).into()))
}

async fn connection(pool: &Pool<Connector>) -> Result<Connection, Unreachable> {
    pool.get().await.map_err(|cause| match cause {
        deadpool::managed::PoolError::Backend(cause) => cause,
        other => Unreachable(other.to_string()),
    })
}

impl Link {
    /// Whether the last commit waited in vain for a standby: the server then reports success with a warning.
    pub fn take_unreplicated(&self) -> bool {
        self.is_unreplicated.swap(false, Ordering::Relaxed)
    }
}

impl Deref for Link {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Manager for Connector {
    type Type = Link;
    type Error = Unreachable;

    async fn create(&self) -> Result<Link, Unreachable> {
        let (client, mut connection) =
            self.config.connect(self.tls.clone()).await.map_err(|cause| failed(&cause))?;
        let is_unreplicated = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_unreplicated);
        tokio::spawn(async move {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                match message {
                    // A wait for a standby that was cancelled. It has no code of its own.
                    Ok(AsyncMessage::Notice(notice)) if notice.code() == &SqlState::WARNING => {
                        tracing::warn!(%notice, "the database warns");
                        flag.store(true, Ordering::Relaxed);
                    }
                    Ok(_) => {}
                    Err(cause) => {
                        tracing::info!(%cause, "a connection to the database is lost");
                        break;
                    }
                }
            }
        });
        Ok(Link { client, is_unreplicated })
    }

    async fn recycle(&self, link: &mut Link, _: &Metrics) -> RecycleResult<Unreachable> {
        if link.client.is_closed() {
            return Err(RecycleError::message("it is closed"));
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("pool", &self.0.pool.status()).finish()
    }
}

/// Begins a transaction that writes. A server that is stopped while it holds a row's lock loses it, and its connection, after
/// a while.
pub const WRITING: &str = "begin; set local lock_timeout = '10s'; set local statement_timeout = '25s';
    set local idle_in_transaction_session_timeout = '15s'";
/// Begins one that reads one state of the database.
pub const READING: &str =
    "begin isolation level repeatable read read only; set local statement_timeout = '25s'";

/// A transaction. Dropped before its end, it takes its connection with it, which ends it.
pub struct Transaction(Option<Connection>);

impl Transaction {
    /// Begins by `sql`, such as [`WRITING`].
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn begin(database: &Database, sql: &str) -> Result<Self, Unreachable> {
        let begun = Self(Some(database.connection().await?));
        begun.batch_execute(sql).await.map_err(|cause| failed(&cause))?;
        begun.take_unreplicated();
        Ok(begun)
    }

    /// # Errors
    /// It was not committed, nobody knows whether it was, or a standby may not have it.
    pub async fn commit(self) -> Result<(), Unreachable> {
        self.end("commit").await
    }

    /// # Errors
    /// The database cannot be reached.
    pub async fn roll_back(self) -> Result<(), Unreachable> {
        self.end("rollback").await
    }

    async fn end(mut self, sql: &str) -> Result<(), Unreachable> {
        self.batch_execute(sql).await.map_err(|cause| failed(&cause))?;
        let ended = self.0.take();
        if ended.is_some_and(|connection| connection.take_unreplicated()) {
            metrics::database_failed("unreplicated");
            return Err(Unreachable("a standby did not confirm the commit".into()));
        }
        Ok(())
    }
}

impl Deref for Transaction {
    type Target = Link;

    fn deref(&self) -> &Link {
        self.0.as_ref().expect("it is not ended")
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(Connection::take(connection));
        }
    }
}
