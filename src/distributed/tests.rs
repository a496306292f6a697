//! Meeting, exchanging, failing.

use std::net::TcpListener;
use std::time::Duration;

use tch::Tensor;

use super::test_world::{PATIENCE, each, identity, join, launch};
use super::*;

#[test]
fn ranks_exchange_tensors_numbers_and_bytes() {
    let (_store, places) = launch(3);
    let done = each(&places, |place| {
        let world = join(place).expect("all come");
        let rank = world.rank() as f64;
        // One rank without a GPU keeps everyone's gradients on the host.
        assert_eq!(world.connect_gpus(place.rank > 0), Ok(false));
        let tensor = Tensor::from_slice(&[rank as f32, 10.0 * rank as f32]);
        world.average(&tensor).expect("three ranks");
        let mean = Vec::<f32>::try_from(&tensor).expect("two numbers");
        let numbers = world.gather_numbers(&[rank, 1.0]).expect("three ranks");
        let said = [false, true].map(|one| world.any(one && rank > 1.0).expect("three ranks"));
        let shared = world.share(vec![7 + world.rank() as u8; 3 + world.rank()]).expect("three ranks");
        (mean, numbers, said, shared)
    });
    for (mean, numbers, said, shared) in done {
        assert_eq!(mean, [1.0, 10.0]);
        assert_eq!(numbers, [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]);
        assert_eq!(said, [false, true]);
        assert_eq!(shared, [7; 3]);
    }
}

#[test]
fn rank_0_serves_the_store_where_the_launcher_does_not() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let (_store, places) = launch(2);
    let alone: Vec<Place> = places
        .iter()
        .map(|place| Place { launcher_serves: false, master_port: free.port(), ..place.clone() })
        .collect();
    let sizes = each(&alone, |place| {
        let world = join(place).expect("all come");
        world.any(true).expect("two ranks");
        world.size()
    });
    assert_eq!(sizes, [2, 2]);
}

#[test]
fn an_attempt_meets_at_a_store_with_the_keys_of_an_earlier_one() {
    let (store, places) = launch(2);
    for attempt in 0..3 {
        // What a rank that was killed early leaves.
        store.set("shipreid/attempt", format!("dead-{attempt}").as_bytes()).expect("a store");
        store.set(&format!("shipreid/dead-{attempt}/came/1"), b"other 2").expect("a store");
        let said = each(&places, |place| join(place).expect("all come").any(place.rank == 1));
        assert_eq!(said, [Ok(true), Ok(true)], "{attempt}");
    }
}

#[test]
fn ranks_that_do_not_belong_together_say_why() {
    let causes = |join_max: Duration, change: fn(&mut Place, &mut Identity)| -> Vec<String> {
        let (_store, places) = launch(3);
        let refused = each(&places, |place| {
            let (mut place, mut identity) = (place.clone(), identity());
            if place.rank == 2 {
                change(&mut place, &mut identity);
            }
            let patience = Patience { join_max, ..PATIENCE };
            World::join(&place, &identity, patience, Box::new(|_| ())).map(drop)
        });
        refused.into_iter().map(|refused| refused.expect_err("refused").to_string()).collect()
    };
    let all = |cause: &str| [cause, cause, cause].map(str::to_owned).to_vec();
    assert_eq!(
        causes(PATIENCE.join_max, |_, identity| identity.configuration.push('!')),
        all("rank 2 has another configuration than rank 0")
    );
    assert_eq!(
        causes(PATIENCE.join_max, |_, identity| identity.build.push('!')),
        all("rank 2 has another build than rank 0")
    );
    assert_eq!(
        causes(PATIENCE.join_max, |_, identity| identity.data.push('!')),
        all("rank 2 has another data set than rank 0")
    );
    assert_eq!(
        causes(PATIENCE.join_max, |_, identity| identity.weights.push('!')),
        all("rank 2 has another starting point than rank 0")
    );
    assert_eq!(
        causes(PATIENCE.join_max, |place, _| place.world_size = 4),
        all("rank 2 was started as one of 4, rank 0 as one of 3")
    );
    let absent = causes(Duration::from_secs(5), |place, _| place.rank = 1);
    // Of two that come as rank 1, one is taken, and learns of rank 2.
    let causes: Vec<&str> = absent.iter().map(String::as_str).collect();
    let known = |cause: &&str| *cause == "rank 2 has not come within 5 seconds";
    assert!(known(&causes[0]) && causes.iter().filter(|cause| known(cause)).count() == 2, "{causes:?}");
    assert!(causes.iter().any(|cause| cause.contains("has not answered within 5 seconds")), "{causes:?}");
}

#[test]
fn ranks_that_cannot_train_together_say_why_also_where_rank_0_serves_the_store() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let (_store, places) = launch(3);
    let refused = each(&places, |place| {
        let place = Place { launcher_serves: false, master_port: free.port(), ..place.clone() };
        let mut identity = identity();
        if place.rank == 1 {
            identity.data.push('!');
        }
        World::join(&place, &identity, PATIENCE, Box::new(|_| ())).map(drop)
    });
    let causes = refused.into_iter().map(|refused| refused.expect_err("refused").to_string());
    assert_eq!(causes.collect::<Vec<_>>(), ["rank 1 has another data set than rank 0"; 3]);
}

#[test]
fn a_run_whose_store_another_run_uses_says_so() {
    let (store, places) = launch(2);
    let Place { master_host: host, master_port: port, .. } = places[0].clone();
    let refused = each(&places, |place| {
        if place.rank == 0 {
            return World::join(place, &identity(), PATIENCE, Box::new(|_| ())).map(drop);
        }
        // Rank 0 of another run, in place of the rank that this one waits for.
        while !store.has("shipreid/attempt").expect("a store") {
            std::thread::yield_now();
        }
        store.set("shipreid/attempt", b"another").expect("a store");
        Ok(())
    });
    let contested = WorldError::Contested { host: host.clone(), port };
    assert_eq!(refused, [Err(contested), Ok(())]);

    // Where rank 0 would serve the store itself, it cannot.
    let serving = Place { launcher_serves: false, ..places[0].clone() };
    let refused = World::join(&serving, &identity(), PATIENCE, Box::new(|_| ())).map(drop);
    let refused = refused.expect_err("the port is taken").to_string();
    let expected = format!("rank 0 cannot listen on port {port} of {host}, where the ranks meet: ");
    assert!(refused.starts_with(&expected), "{refused}");
}

#[test]
fn the_reason_of_the_first_rank_that_fails_is_everyones() {
    let (_store, places) = launch(3);
    let reasons = each(&places, |place| {
        let world = join(place).expect("all come");
        if place.rank == 1 {
            return world.fail("DISK_FULL", "the disk is full");
        }
        let lost = world.average(&Tensor::from_slice(&[1.0_f32])).expect_err("a rank is gone");
        world.fail("CRASHED", &lost.to_string())
    });
    let (kind, message) = ("DISK_FULL".to_owned(), "rank 1: the disk is full".to_owned());
    assert_eq!(reasons, vec![RankFailure { kind, message }; 3]);
}
