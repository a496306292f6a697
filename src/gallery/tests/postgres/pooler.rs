//! PgBouncer in transaction mode: each transaction may run on another connection of the database.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::thread;

use super::super::generator::OperationGenerator;
use super::*;
use crate::postgres::trial::{NOBODY, as_nobody};

/// Connections to the database: fewer than the servers have to the pooler.
const POOLED: usize = 3;

/// A pooler before the database server; the number of its port.
fn pooler(folder: &Path, role: &str) -> Option<u16> {
    let server = server()?;
    if !Path::new("/usr/sbin/pgbouncer").exists() {
        let _ = writeln!(std::io::stderr(), "skipped: a pooler: no pgbouncer (make operators)");
        return None;
    }
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let users = folder.join("users");
    fs::write(&users, format!("\"{role}\" \"\"\n")).expect("written");
    let text = format!(
        "[databases]\npostgres = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\n\
         default_pool_size = {POOLED}\nmax_client_conn = 100\n",
        server.folder.display(),
        server.port,
        users.display()
    );
    fs::write(folder.join("pgbouncer.ini"), text).expect("written");
    for path in [folder.to_owned(), users, folder.join("pgbouncer.ini")] {
        chown(&path, Some(NOBODY), Some(NOBODY)).expect("root, or it is ours");
    }
    let mut command = as_nobody(Path::new("/usr/sbin"), "pgbouncer", folder);
    command.arg("pgbouncer.ini");
    let (ready, is_ready) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut pooler = command.spawn().expect("setpriv runs");
        let log = BufReader::new(pooler.stderr.take().expect("piped"));
        for line in log.lines().map_while(Result::ok) {
            if line.contains("process up") {
                let _ = ready.send(());
            }
        }
        panic!("the pooler ended: {:?}", pooler.wait());
    });
    is_ready.recv().expect("it starts");
    Some(port)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_behind_a_pooler_in_transaction_mode_come_to_one_state() {
    let Some(shared) = Shared::new().await else { return };
    let folder = folder();
    let Some(port) = pooler(folder.path(), &shared.schema) else { return };
    // A pooler takes no options of a session.
    shared.execute(&format!("alter role {0} set search_path = {0}", shared.schema)).await;
    let url = format!("postgres://{}@127.0.0.1:{port}/postgres", shared.schema);
    let pooled = MemberSettings { url, ..shared.settings() };
    let servers = [shared.open_as(pooled.clone()).await, shared.open_as(pooled).await];
    let first = servers[0].create("t", &name("a"), new_gallery()).await.expect("made");
    let second = CatalogStore::get(&servers[1], "t", &name("a")).await.expect("there");
    let mut generator = OperationGenerator::new(17);
    for _ in 0..20 {
        let operations: Vec<_> = (0..12).map(|_| generator.operation()).collect();
        let asked = operations.into_iter().enumerate().map(async |(number, operation)| {
            let gallery = if number % 2 == 0 { &first } else { &second };
            operation.ask(&**gallery).await
        });
        futures_util::future::join_all(asked).await;
    }
    let mut exports = Vec::new();
    for server in servers.iter().chain([&shared.open().await]) {
        let gallery = CatalogStore::get(server, "t", &name("a")).await.expect("there");
        exports.push(
            tokio::task::spawn_blocking(move || export(&gallery, Chips::With)).await.expect("no panic"),
        );
    }
    assert!(exports.iter().all(|export| *export == exports[0]));
    assert!(first.info().entries > 0);
}
