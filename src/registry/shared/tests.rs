//! Models of two servers: what one adds, deletes and activates, the other has.

use std::fs;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::*;
use crate::postgres::trial::Trial;
use crate::registry::tests::{LIMITS, add_calibrated, calibrator, model, provenance};
use crate::registry::{Condition, Registry};

/// A server with a folder of its own.
async fn server(trial: &Trial) -> (Registry, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let registry = Registry::share(folder.path(), LIMITS, trial.cluster().await).expect("a registry");
    (registry, folder)
}

fn digests(registry: &Registry) -> Vec<ModelDigest> {
    registry.sync().expect("reachable");
    registry.list().iter().map(|model| model.digest).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn models_of_one_server_are_those_of_all() {
    let Some(trial) = Trial::new().await else { return };
    let ((first, _one), (second, other)) = (server(&trial).await, server(&trial).await);
    let [one, two] = [1, 2].map(|seed| model(seed).digest());
    assert_eq!(add_calibrated(&first, 1, 1).expect("room"), Added::New);
    assert_eq!(second.add(&model(2), &provenance(2)).expect("room"), Added::New);
    assert_eq!(second.add(&model(1), &provenance(7)).expect("known"), Added::Known);
    for registry in [&first, &second] {
        assert_eq!(digests(registry), [one, two], "by the time that their provenance tells");
    }
    assert_eq!(second.load(one).expect("a copy"), model(1));
    assert_eq!(second.calibrator(one).as_deref(), Some(&calibrator(1)));
    let facts = |registry: &Registry| registry.get(one).expect("there");
    assert_eq!(facts(&first), facts(&second));

    let active = ActiveModel { digest: two, former: one };
    first.set_active(active).expect("there");
    second.sync().expect("reachable");
    assert_eq!(second.active(), Some(active));
    assert!(matches!(second.delete(two), Err(RegistryError::Active(digest)) if digest == two));
    first.delete(one).expect("not active");
    assert!(matches!(second.delete(one), Err(RegistryError::NotFound(_))));
    assert_eq!(digests(&second), [two]);
    let place = other.path().join(&second.cluster().expect("shared").id).join(one.to_string());
    assert!(!place.exists(), "its copy is gone");
    let absent = ActiveModel { digest: one, former: two };
    assert!(matches!(first.set_active(absent), Err(RegistryError::NotFound(_))));

    // A server that starts with nothing has all of it.
    let (fresh, _third) = server(&trial).await;
    assert_eq!((digests(&fresh), fresh.active()), (vec![two], Some(active)));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_deleted_models_are_removed_also_those_that_another_server_has_left() {
    let Some(trial) = Trial::new().await else { return };
    let (registry, _folder) = server(&trial).await;
    let [one, two] = [1, 2].map(|seed| model(seed).digest());
    for seed in [1, 2] {
        registry.add(&model(seed), &provenance(seed)).expect("room");
    }
    // What a server leaves that dies while it deletes a model.
    let leave = format!("delete from models where digest = decode('{one}', 'hex')");
    trial.execute(&leave).await;
    assert_eq!(digests(&registry), [two]);
    assert_eq!(registry.add(&model(1), &provenance(1)).expect("room"), Added::New);
    let (other, _other) = server(&trial).await;
    assert_eq!(other.load(one).expect("a copy"), model(1));

    trial.execute(&leave).await;
    // More than one statement removes.
    let many = "insert into files (owner, name, term, path, piece, content)
        select 'models', 'gone', 0, 'a file', n, '' from generate_series(1, 200) as n";
    trial.execute(many).await;
    registry.delete(two).expect("not active");
    assert_eq!(trial.count("files").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_over_all_servers_and_what_exceeds_them_is_nowhere() {
    let Some(trial) = Trial::new().await else { return };
    let ((first, folder), (second, _other)) = (server(&trial).await, server(&trial).await);
    for seed in [1, 2, 3] {
        second.add(&model(seed), &provenance(seed)).expect("room");
    }
    let refused = first.add(&model(4), &provenance(4));
    assert!(matches!(refused, Err(RegistryError::TooMany { limit: 3 })), "{refused:?}");
    // And where a server does not know yet what others have added.
    let shared = first.shared.as_ref().expect("shared");
    let refused = shared.add(model(4).digest(), (folder.path(), 1), LIMITS, None);
    assert!(matches!(refused, Err(RegistryError::TooMany { limit: 3 })), "{refused:?}");
    assert_eq!(digests(&first).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_copied_again() {
    let Some(trial) = Trial::new().await else { return };
    let (registry, folder) = server(&trial).await;
    registry.add(&model(1), &provenance(1)).expect("room");
    let place =
        folder.path().join(&registry.cluster().expect("shared").id).join(model(1).digest().to_string());
    let path = place.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("there");
    // In the values of a weight.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&path, &bytes).expect("writable");
    assert_eq!(registry.load(model(1).digest()).expect("copied again"), model(1));
    assert!(matches!(registry.get(model(1).digest()).expect("there").condition, Condition::Intact(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_another_server_has_taken_over_adds_no_model() {
    let Some(trial) = Trial::new().await else { return };
    let (registry, _folder) = server(&trial).await;
    let left = tempfile::tempdir().expect("a temporary folder");
    let left = left.path().join("model");
    model(1).save(&left, "a job").expect("writable");
    fs::write(left.join("provenance.toml"), provenance(1).to_toml()).expect("writable");
    trial
        .execute(
            "insert into jobs (id, tenant, state, created_at, last_event, record, holder, term)
            values (7, 't', 'running', now(), 1, '', 'other', 3)",
        )
        .await;
    let adopt = |term| registry.adopt(&left, Some(Fence { job: 7, term }));
    assert!(matches!(adopt(2), Err(RegistryError::Lost)));
    assert_eq!(digests(&registry), []);
    assert_eq!(adopt(3).expect("it is held"), (model(1).digest(), Added::New));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_did_not_reach_the_database_is_not_here_either() {
    let Some(trial) = Trial::new().await else { return };
    let (registry, _folder) = server(&trial).await;
    registry.add(&model(1), &provenance(1)).expect("room");
    trial.execute(&format!("alter role {} nologin", trial.schema)).await;
    trial.end_connections().await;
    let refused = registry.add(&model(2), &provenance(2)).expect_err("there is no database");
    assert_eq!(refused.reason().name(), "DATABASE_UNREACHABLE");
    assert_eq!(registry.list().len(), 1);
    // What is here can be used.
    assert_eq!(registry.load(model(1).digest()).expect("a copy"), model(1));
    trial.execute(&format!("alter role {} login", trial.schema)).await;
    assert_eq!(registry.add(&model(2), &provenance(2)).expect("room"), Added::New);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_being_deleted_elsewhere_is_not_activated() {
    let Some(trial) = Trial::new().await else { return };
    let (registry, _folder) = server(&trial).await;
    let [one, two] = [1, 2].map(|seed| model(seed).digest());
    for seed in [1, 2] {
        registry.add(&model(seed), &provenance(seed)).expect("room");
    }
    // What another server does to delete it, up to the commit.
    let deleting = trial.connect().await;
    deleting.batch_execute("begin; select active from shipreid for update").await.expect("locked");
    let digest = two.as_bytes().as_slice();
    deleting.execute("delete from models where digest = $1", &[&digest]).await.expect("deleted");
    let (registry, activating) = (Arc::new(registry), ActiveModel { digest: two, former: one });
    let activated = spawn_blocking({
        let registry = Arc::clone(&registry);
        move || registry.set_active(activating)
    });
    while trial.waiting().await == 0 {}
    deleting.batch_execute("commit").await.expect("deleted");
    let refused = activated.await.expect("no panic");
    assert!(matches!(refused, Err(RegistryError::NotFound(digest)) if digest == two), "{refused:?}");
    assert_eq!((digests(&registry), registry.active()), (vec![one], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_copy_a_model_can_add_and_delete_models() {
    let Some(trial) = Trial::new().await else { return };
    let ((first, _one), (second, folder)) = (server(&trial).await, server(&trial).await);
    let [one, two, three] = [1, 2, 3].map(|seed| model(seed).digest());
    first.add(&model(1), &provenance(1)).expect("room");
    second.sync().expect("reachable");
    // Where the copy would be there is something else.
    let place = folder.path().join(&second.cluster().expect("shared").id).join(two.to_string());
    fs::write(&place, "in the way").expect("writable");
    first.add(&model(2), &provenance(2)).expect("room");
    assert!(matches!(second.sync(), Err(RegistryError::Io { .. })));
    assert_eq!(second.add(&model(3), &provenance(3)).expect("room"), Added::New);
    second.delete(one).expect("not active");
    second.delete(two).expect("not active");
    assert_eq!((digests(&first), digests(&second)), (vec![three], vec![three]));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_missed_nothing_does_not_wait_for_a_model_that_is_being_added() {
    let Some(trial) = Trial::new().await else { return };
    let (registry, _folder) = server(&trial).await;
    registry.add(&model(1), &provenance(1)).expect("room");
    let _adding = registry.writing();
    assert_eq!(digests(&registry), [model(1).digest()]);
}
