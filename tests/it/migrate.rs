//! `shipreid gallery migrate`: copies that are compared by digest, and what it leaves alone.

use shipreid::client::Client;
use shipreid::wire::{DeleteEntriesRequest, EntryIds, Observation, delete_entries_request::Selection};
use tempfile::TempDir;

use crate::galleries::{create, data_in, enroll, optical, ready, vector, with_chip};
use crate::program::shipreid;
use crate::server::start;

async fn fill(client: &Client, name: &str, count: usize) {
    create(client, name).await;
    let ready =
        (0..count).map(|number| ready(&number.to_string(), "v", vector(0, 0.1), Observation::default()));
    let mut items: Vec<_> = ready.chain([with_chip("chip", optical())]).collect();
    items.iter_mut().for_each(|item| item.gallery = name.into());
    assert!(enroll(client, items).await.iter().all(|answer| answer.error.is_none()));
}

/// Exit code, output and errors.
async fn migrate(names: &[&str], from: String, to: String) -> (Option<i32>, String, String) {
    let mut command = shipreid();
    command.args(["gallery", "migrate"]).args(names).args(["--endpoint", &from, "--to", &to]);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

#[tokio::test]
async fn galleries_are_copied_once_and_what_differs_is_left_alone() {
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let (from, source) = start(&[&data_in(&folders[0])]).await;
    let (to, target) = start(&[&data_in(&folders[1])]).await;
    fill(&source, "one", 3).await;
    fill(&source, "two", 0).await;
    let run = |names| migrate(names, from.address.to_string(), to.address.to_string());
    let (code, said, errors) = run(&["one"]).await;
    assert_eq!(code, Some(0), "{errors}");
    assert!(said.starts_with("one is copied, sha256 "), "{said}");
    let made = target.find_gallery("one").await.unwrap().expect("copied");
    assert_eq!((made.entries, made.keeps_chips), (4, true));

    // As after an interruption: what is there is compared, the rest is copied.
    let (code, said, errors) = run(&["one", "two"]).await;
    assert_eq!(code, Some(0), "{errors}");
    let lines: Vec<&str> = said.lines().map(|line| line.split(", sha256").next().unwrap()).collect();
    assert_eq!(lines, ["one is there already", "two is copied"]);

    let selection = Some(Selection::Ids(EntryIds { entry_ids: vec!["0".into()] }));
    let delete = DeleteEntriesRequest { gallery: "one".into(), selection };
    target.galleries().delete_entries(delete).await.unwrap();
    let (code, said, errors) = run(&["one"]).await;
    assert_eq!((code, said.as_str()), (Some(1), ""));
    assert!(errors.contains("both servers have one, with other content (sha256 "), "{errors}");
    assert_eq!(target.find_gallery("one").await.unwrap().expect("left alone").entries, 3);
    let (code, _, errors) = run(&["none"]).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("gallery none: the first server does not have it"), "{errors}");
    from.stop().await;
    to.stop().await;
}
