//! Which server embeds the chips of which gallery for another model.

use super::*;

async fn claimed(server: &PostgresCatalog, to: ModelDigest, wanted: &[Place]) -> String {
    let claimed = server.claim_moves(to, wanted).await.expect("reachable");
    claimed.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_share_out_the_galleries_that_move_and_lose_those_that_they_do_not_claim_again() {
    let Some(shared) = Shared::new().await else { return };
    let (one, two) = (shared.open().await, shared.open().await);
    for (tenant, gallery) in [("t", "a"), ("t", "b"), ("u", "a")] {
        one.create(tenant, &name(gallery), new_gallery()).await.expect("made");
        CatalogStore::get(&two, tenant, &name(gallery)).await.expect("there");
    }
    let all: Vec<Place> = one.served().into_iter().map(|(place, _)| place).collect();
    let to = other_model();
    assert_eq!(claimed(&one, to, &all).await, "", "they do not move yet");
    one.move_to(to, true).await.expect("reachable");
    assert_eq!(claimed(&two, model(), &all).await, "", "they move to another model");
    assert_eq!(claimed(&one, to, &all).await, "t-t/a t-u/a", "one of each tenant");
    assert_eq!(claimed(&two, to, &all).await, "t-t/b");
    assert_eq!(claimed(&one, to, &all).await, "t-t/a t-u/a", "it holds these");
    assert_eq!(claimed(&one, to, &all[1..2]).await, "", "the other server has it");

    shared.execute("update moves set held_until = now() - interval '1 second' where gallery = 1").await;
    assert_eq!(claimed(&two, to, &all[..1]).await, "t-t/a");
    assert_eq!(claimed(&one, to, &all[..1]).await, "", "it has said nothing for too long");
    assert_eq!(claimed(&one, to, &all[2..]).await, "t-u/a", "which changes nothing of the others");

    two.move_to(model(), false).await.expect("reachable");
    assert_eq!(claimed(&two, to, &all[..1]).await, "t-t/a", "a model that a server only has changes nothing");
    two.move_to(model(), true).await.expect("reachable");
    assert_eq!(claimed(&two, to, &all).await, "", "nobody moves to the former one any more");
    assert_eq!(claimed(&one, model(), &all).await, "t-t/a t-u/a");

    let digest = hex::encode(model().as_bytes());
    shared.execute(&format!("update shipreid set active = decode('{digest}', 'hex')")).await;
    one.move_to(to, true).await.expect("reachable");
    assert_eq!(claimed(&one, to, &all).await, "", "a server that follows late changes nothing");
    assert_eq!(claimed(&one, model(), &all).await, "t-t/a t-u/a");

    let digest = hex::encode(to.as_bytes());
    shared.execute(&format!("update shipreid set active = decode('{digest}', 'hex')")).await;
    two.move_to(to, false).await.expect("reachable");
    assert_eq!(claimed(&two, to, &all).await, "t-t/a t-u/a", "whoever says what is active is right");
}
