//! PostgreSQL in processes of its own, on Unix sockets, which tests kill and start again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// The user that it runs as, since it refuses to run as root.
const NOBODY: u32 = 65534;
const SETTINGS: [&str; 5] = [
    "listen_addresses=",
    // Processes are killed here, machines are not.
    "fsync=off",
    "max_connections=100",
    "shared_buffers=64MB",
    "wal_sender_timeout=5s",
];

/// A database server. It is killed when it goes out of scope.
pub struct Database {
    programs: PathBuf,
    folder: TempDir,
    running: Option<Running>,
}

struct Running {
    pid: i32,
    /// Closed once it has ended.
    ended: Receiver<()>,
}

/// Where Debian keeps the newest PostgreSQL, if it is installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<PathBuf> = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
    found.sort();
    found.pop().filter(|programs| programs.join("postgres").exists())
}

impl Database {
    /// A new one; `None` where PostgreSQL is not installed.
    pub fn start(settings: &[&str]) -> Option<Self> {
        let mut database = Self::without_data(programs()?);
        let initdb = database.program("initdb").arg("-D").arg(database.data()).args(INITDB).output().unwrap();
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        database.configure(&[&SETTINGS, settings].concat());
        database.restart();
        Some(database)
    }

    /// A streaming standby of this one, called `standby` in `synchronous_standby_names`.
    pub fn standby(&self) -> Self {
        let mut standby = Self::without_data(self.programs.clone());
        let from = format!("host={} user=shipreid application_name=standby", self.socket_folder().display());
        let backup = standby
            .program("pg_basebackup")
            .args(["-d", &from, "-R", "-X", "stream", "--no-sync", "-c", "fast", "-D"])
            .arg(standby.data())
            .output()
            .unwrap();
        assert!(backup.status.success(), "{}", String::from_utf8_lossy(&backup.stderr));
        standby.restart();
        standby
    }

    /// Acknowledges commits once the standby has them, from when it follows.
    pub async fn replicate(&self) {
        self.configure(&["synchronous_standby_names=standby"]);
        let client = self.connect().await;
        client.batch_execute("select pg_reload_conf()").await.unwrap();
        let follows = "select exists (select from pg_stat_replication where sync_state = 'sync')";
        while !client.query_one(follows, &[]).await.unwrap().get::<_, bool>(0) {}
    }

    /// Makes a standby the database, which needs no standby of its own.
    pub async fn promote(&self) {
        self.configure(&["synchronous_standby_names="]);
        let client = self.connect().await;
        client.batch_execute("select pg_reload_conf()").await.unwrap();
        client.batch_execute("select pg_promote()").await.unwrap();
    }

    fn without_data(programs: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("root, or it is ours");
        Self { programs, folder, running: None }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// For a server on this machine.
    pub fn url(&self) -> String {
        let folder = self.socket_folder().display().to_string().replace('/', "%2F");
        format!("postgres://shipreid@{folder}/postgres")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(".s.PGSQL.5432")
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--pdeathsig", "KILL"]);
        command.arg(self.programs.join(name)).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Adds settings, which count from the next start or reload.
    pub fn configure(&self, settings: &[&str]) {
        let path = self.data().join("postgresql.auto.conf");
        let mut text = fs::read_to_string(&path).unwrap();
        for (name, value) in settings.iter().filter_map(|setting| setting.split_once('=')) {
            text += &format!("{name} = '{value}'\n");
        }
        fs::write(&path, text).unwrap();
    }

    /// Starts it on what is there, and waits until it takes connections.
    pub fn restart(&mut self) {
        loop {
            let mut command = self.program("postgres");
            command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            match Running::start(command) {
                Ok(running) => {
                    self.running = Some(running);
                    return;
                }
                // Processes of one that was killed may still be there.
                Err(log) if log.contains("is still in use") || log.contains("lock file") => {}
                Err(log) => panic!("the database does not start: {log}"),
            }
        }
    }

    /// SIGKILL to its first process; the others follow it.
    pub fn kill(&mut self) {
        drop(self.running.take());
    }

    /// A connection as an operator has it.
    pub async fn connect(&self) -> Client {
        self.try_connect().await.unwrap()
    }

    /// # Errors
    /// It is down, or recovers.
    pub async fn try_connect(&self) -> Result<Client, tokio_postgres::Error> {
        let host = format!("host={} user=shipreid dbname=postgres", self.socket_folder().display());
        let (client, connection) = tokio_postgres::connect(&host, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

const INITDB: [&str; 7] = ["-U", "shipreid", "-A", "trust", "-E", "UTF8", "--no-sync"];

impl Running {
    /// # Errors
    /// It has ended, with this log.
    fn start(mut command: Command) -> Result<Self, String> {
        let (ready, is_ready) = channel();
        let (end, ended) = channel();
        // The process ends with the thread that starts it.
        thread::spawn(move || {
            let _end = end;
            let mut process = command.spawn().expect("setpriv runs");
            let pid = i32::try_from(process.id()).unwrap();
            let mut log = String::new();
            for line in BufReader::new(process.stderr.take().expect("piped")).lines().map_while(Result::ok) {
                log += &line;
                log.push('\n');
                if line.contains("ready to accept") {
                    let _ = ready.send(Ok(pid));
                }
            }
            let _ = process.wait();
            let _ = ready.send(Err(log));
        });
        let pid = is_ready.recv().expect("it starts or ends")?;
        Ok(Self { pid, ended })
    }
}

impl Drop for Running {
    /// Ends it as a power failure does. Those that it started are ended as well: one that does not notice that it has gone would
    /// keep its log open, and its data folder in use.
    fn drop(&mut self) {
        let started =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).unwrap_or_default();
        let started = started.split_whitespace().map(|pid| pid.parse().expect("a process"));
        for pid in std::iter::once(self.pid).chain(started) {
            // SAFETY: its thread has not waited for the process, unless it has ended, which nothing but this lets it do.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        let _ = self.ended.recv();
    }
}
