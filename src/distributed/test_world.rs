//! Ranks on threads of this process, over loopback, for tests.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use super::*;

pub const PATIENCE: Patience = Patience {
    join_max: Duration::from_secs(120),
    silence_max: Duration::from_secs(120),
    period: Duration::from_millis(100),
};

pub fn identity() -> Identity {
    let [build, configuration, data, weights] = ["1.0", "a", "b", "c"].map(str::to_owned);
    Identity { build, configuration, data, weights }
}

/// A store as torchrun serves one, and the places of a world that meets there.
pub fn launch(world_size: usize) -> (Store, Vec<Place>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let master_port = listener.local_addr().expect("bound").port();
    let place = |rank| Place {
        rank,
        world_size,
        local_rank: rank,
        master_host: "127.0.0.1".to_owned(),
        master_port,
        launcher_serves: true,
    };
    (Store::serve(listener).expect("a store"), (0..world_size).map(place).collect())
}

/// What each rank returns.
pub fn each<T: Send>(places: &[Place], work: impl Fn(&Place) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let ranks: Vec<_> = places.iter().map(|place| scope.spawn(|| work(place))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

pub fn join(place: &Place) -> Result<World, WorldError> {
    World::join(place, &identity(), PATIENCE, Box::new(|loss| panic!("{loss}")))
}
