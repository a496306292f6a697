//! A database server of tests, and schemas of their own in it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::{Cluster, Tenancy};

/// The user that a server of tests runs as where the tests run as root, which it refuses.
pub const NOBODY: u32 = 65534;

/// Where Debian keeps the newest PostgreSQL, if it is installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<PathBuf> = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
    found.sort();
    found.pop().filter(|programs| programs.join("postgres").exists())
}

/// A database server, which ends with this process.
pub struct Server {
    /// Where its socket is, and the authority `ca.pem` of its certificate, which is for `localhost`.
    pub folder: PathBuf,
    /// On 127.0.0.1.
    pub port: u16,
}

/// The one of this process; `None` where PostgreSQL is not installed.
pub fn server() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(|| start(&programs()?).into()).as_ref()
}

/// Members of the role `secret` need their password over TCP.
const HBA: &str =
    "local all all trust\nhost all +secret 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";

fn start(programs: &Path) -> Server {
    let folder = tempfile::tempdir().expect("a temporary folder").keep();
    let data = folder.join("data");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    write_certificates(&folder);
    chown(&folder, Some(NOBODY), Some(NOBODY)).expect("root, or it is ours");
    let made = as_nobody(programs, "initdb", &folder)
        .arg("-D")
        .arg(&data)
        .args(["-U", "shipreid", "-A", "trust", "-E", "UTF8", "--no-sync"])
        .output()
        .expect("setpriv runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::write(data.join("pg_hba.conf"), HBA).expect("written");
    let (ready, is_ready) = std::sync::mpsc::channel();
    let mut command = as_nobody(programs, "postgres", &folder);
    command.arg("-D").arg(&data).arg("-k").arg(&folder).args(["-p", &port.to_string()]);
    let certificate = |kind: &str| folder.join(format!("server.{kind}")).display().to_string();
    for setting in [
        "listen_addresses=127.0.0.1",
        "fsync=off",
        "max_connections=400",
        "ssl=on",
        &format!("ssl_cert_file={}", certificate("pem")),
        &format!("ssl_key_file={}", certificate("key")),
    ] {
        command.args(["-c", setting]);
    }
    // The thread that starts it lives as long as the process, and with it the server does.
    thread::spawn(move || {
        let mut server = command.spawn().expect("setpriv runs");
        let log = BufReader::new(server.stderr.take().expect("piped"));
        for line in log.lines().map_while(Result::ok) {
            if line.contains("ready to accept connections") {
                let _ = ready.send(());
            }
        }
        panic!("the database server ended: {:?}", server.wait());
    });
    is_ready.recv().expect("it starts");
    Server { folder, port }
}

/// A program that ends when the thread that starts it does.
pub fn as_nobody(programs: &Path, program: &str, folder: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--pdeathsig", "INT"]);
    command.arg(programs.join(program)).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// `ca.pem`, `server.pem` for `localhost`, `server.key`, and `other.pem`, an authority that has nothing to do with them.
fn write_certificates(folder: &Path) {
    let authority = |name: &str| {
        let mut parameters = CertificateParams::new(Vec::new()).expect("no names");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("signed");
        (certificate.pem(), Issuer::new(parameters, key))
    };
    let ((ca, issuer), (other, _)) = (authority("ours"), authority("other"));
    let key = KeyPair::generate().expect("a key");
    let parameters = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let server = parameters.signed_by(&key, &issuer).expect("signed");
    for (name, text) in [
        ("ca.pem", ca),
        ("other.pem", other),
        ("server.pem", server.pem()),
        ("server.key", key.serialize_pem()),
    ] {
        let path = folder.join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        chown(&path, Some(NOBODY), Some(NOBODY)).expect("root, or it is ours");
    }
}

/// A schema of its own, with a role of its own that the servers of a test use.
pub struct Trial {
    pub url: String,
    /// As the database's superuser.
    pub admin_url: String,
    /// The name of the role as well.
    pub schema: String,
}

impl Trial {
    /// `None` where PostgreSQL is not installed.
    pub async fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let Some(server) = server() else {
            // Past the harness, which would keep it to itself.
            let _ = writeln!(std::io::stderr(), "skipped: shared stores: no PostgreSQL (make operators)");
            return None;
        };
        let schema = format!("trial_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let (host, port) = (server.folder.to_str().expect("text").replace('/', "%2F"), server.port);
        let url = |role: &str, name: &str| {
            format!(
                "postgres://{role}@{host}:{port}/postgres?options=-csearch_path%3D{schema}&application_name={name}"
            )
        };
        let (url, admin_url) = (url(&schema, &schema), url("shipreid", "operator"));
        let trial = Self { url, admin_url, schema };
        let role = &trial.schema;
        trial.execute(&format!("create role {role} login; create schema {role} authorization {role}")).await;
        Some(trial)
    }

    /// One more server of the database.
    pub async fn cluster(&self) -> Cluster {
        Cluster::open(&self.url, Tenancy::OneTenant).await.expect("it can be used")
    }

    /// A connection as the database's superuser, which ends when it is dropped.
    pub async fn connect(&self) -> tokio_postgres::Client {
        let (client, connection) =
            tokio_postgres::connect(&self.admin_url, tokio_postgres::NoTls).await.expect("a server");
        tokio::spawn(connection);
        client
    }

    /// Runs statements as an operator would.
    pub async fn execute(&self, sql: &str) {
        self.connect().await.batch_execute(sql).await.expect("executed");
    }

    /// The number of rows of a table, or of those that a condition names.
    pub async fn count(&self, rows: &str) -> i64 {
        let found = self.connect().await.query(&format!("select count(*) from {rows}"), &[]).await;
        found.expect("executed")[0].get(0)
    }

    /// The number of servers' connections that wait for a lock.
    pub async fn waiting(&self) -> i64 {
        let of_servers = format!("application_name = '{}'", self.schema);
        self.count(&format!("pg_stat_activity where wait_event_type = 'Lock' and {of_servers}")).await
    }

    /// Ends the connections that all servers have now, and returns once they have ended.
    pub async fn end_connections(&self) {
        self.execute(&format!(
            "do $$
            declare ended int[] := array (select pid from pg_stat_activity where application_name = '{}');
            begin
                perform pg_terminate_backend(pid) from unnest(ended) as pid;
                while exists (select from pg_stat_activity where pid = any (ended)) loop
                    perform pg_stat_clear_snapshot();
                end loop;
            end $$",
            self.schema
        ))
        .await;
    }
}
